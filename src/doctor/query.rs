//! One DNS query (RFC 1035 4) and what answers it: enough to tell that a resolver is reached, and what it says.

use core::net::{IpAddr, Ipv4Addr};

/// Octets of the header (RFC 1035 4.1.1).
const HEADER: usize = 12;
/// The type of an IPv4 address, and the class of the internet (RFC 1035 3.2).
const A: u16 = 1;
const IN: u16 = 1;
/// The longest label and the longest name, octets (RFC 1035 2.3.4).
const LONGEST_LABEL: usize = 63;
const LONGEST_NAME: usize = 255;
/// Response code of a name that there is not (RFC 1035 4.1.1).
pub(super) const NO_SUCH_NAME: u8 = 3;

/// A query for the IPv4 addresses of a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Query {
    octets: Vec<u8>,
}

/// What a resolver said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Resolved {
    /// The response code: 0 for no error.
    pub(super) code: u8,
    /// The addresses, in the order of the answer.
    pub(super) addresses: Vec<IpAddr>,
}

impl Query {
    /// A query for `name`, which may end with a dot; `None` when it is no name.
    pub(super) fn new(name: &str, id: u16) -> Option<Query> {
        let mut octets = Vec::with_capacity(HEADER + LONGEST_NAME + 4);
        octets.extend(id.to_be_bytes());
        // RD, one question.
        octets.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        for label in name.strip_suffix('.').unwrap_or(name).split('.') {
            let len =
                u8::try_from(label.len()).ok().filter(|len| (1..=LONGEST_LABEL).contains(&(*len).into()))?;
            octets.push(len);
            octets.extend(label.as_bytes());
        }
        octets.push(0);
        if octets.len() > HEADER + LONGEST_NAME {
            return None;
        }
        octets.extend(A.to_be_bytes());
        octets.extend(IN.to_be_bytes());
        Some(Query { octets })
    }

    /// The message.
    pub(super) fn octets(&self) -> &[u8] {
        &self.octets
    }

    /// What `message` says, if it answers this query. One that is cut short says what it has.
    pub(super) fn answer(&self, message: &[u8]) -> Option<Resolved> {
        let header = message.first_chunk::<HEADER>()?;
        let [id_high, id_low, flags, code, ..] = *header;
        if self.octets.get(..2)? != [id_high, id_low] || flags & 0x80 == 0 {
            return None;
        }
        let (questions, answers) =
            (u16::from_be_bytes([header[4], header[5]]), u16::from_be_bytes([header[6], header[7]]));
        let mut rest = message.get(HEADER..)?;
        for _ in 0..questions {
            rest = past_name(rest)?.get(4..)?;
        }
        let mut addresses = Vec::new();
        for _ in 0..answers {
            let Some((address, behind)) = record(rest) else { break };
            addresses.extend(address);
            rest = behind;
        }
        Some(Resolved { code: code & 0x0f, addresses })
    }
}

/// The address of the record at the front, if it has one, and what is behind it.
fn record(octets: &[u8]) -> Option<(Option<IpAddr>, &[u8])> {
    let (head, rest) = past_name(octets)?.split_first_chunk::<10>()?;
    let [t0, t1, c0, c1, .., l0, l1] = *head;
    let (data, behind) = rest.split_at_checked(u16::from_be_bytes([l0, l1]).into())?;
    let of_interest = u16::from_be_bytes([t0, t1]) == A && u16::from_be_bytes([c0, c1]) == IN;
    let address = <[u8; 4]>::try_from(data).ok().filter(|_| of_interest);
    Some((address.map(|address| Ipv4Addr::from(address).into()), behind))
}

/// What is behind the name at the front; a pointer (RFC 1035 4.1.4) ends it and is not followed.
fn past_name(mut octets: &[u8]) -> Option<&[u8]> {
    loop {
        let (&len, rest) = octets.split_first()?;
        match len {
            0 => return Some(rest),
            0xc0.. => return rest.get(1..),
            0x40..=0xbf => return None,
            len => octets = rest.get(len.into()..)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn query() -> Query {
        Query::new("example.com", 0x1234).unwrap()
    }

    /// The query as a resolver sends it back, with a CNAME and an address.
    fn answer() -> Vec<u8> {
        let mut message = query().octets().to_vec();
        message[2] = 0x81;
        message[7] = 2;
        message.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 60, 0, 2, 0xc0, 12]);
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
        message
    }

    #[test]
    fn the_query_is_one_that_resolvers_take() {
        let mut expected = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        expected.extend(b"\x07example\x03com\0\0\x01\0\x01");
        assert_eq!(query().octets(), expected);
        assert_eq!(Query::new("example.com.", 0x1234), Some(query()));
    }

    #[test]
    fn what_is_no_name_is_not_asked() {
        let label = "a".repeat(64);
        let long = vec!["a"; 200].join(".");
        for bad in ["", ".", "a..b", &label, &long] {
            assert_eq!(Query::new(bad, 0), None, "{bad}");
        }
    }

    #[test]
    fn addresses_are_found_behind_other_records() {
        let addresses = vec!["192.0.2.7".parse().unwrap()];
        assert_eq!(query().answer(&answer()), Some(Resolved { code: 0, addresses }));
    }

    #[test]
    fn an_error_is_told_and_another_message_is_no_answer() {
        let mut refused = answer();
        refused[3] = NO_SUCH_NAME;
        assert_eq!(query().answer(&refused).unwrap().code, NO_SUCH_NAME);
        let mut other = answer();
        other[1] ^= 1;
        assert_eq!(query().answer(&other), None);
        assert_eq!(query().answer(query().octets()), None, "a query is no answer");
    }

    #[test]
    fn an_answer_that_is_cut_short_says_what_it_has() {
        let whole = answer();
        assert!(query().answer(&whole[..whole.len() - 1]).unwrap().addresses.is_empty());
        assert_eq!(query().answer(&whole[..HEADER + 3]), None);
    }

    proptest! {
        #[test]
        fn no_octets_make_the_reader_panic(mut octets in proptest::collection::vec(any::<u8>(), 0..96)) {
            for (at, octet) in [0x12, 0x34, 0x81].into_iter().enumerate().take(octets.len()) {
                octets[at] = octet;
            }
            let _ = query().answer(&octets);
        }
    }
}
