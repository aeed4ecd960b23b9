//! What of a DNS message has to be understood: header, question, and the OPT record of EDNS.
//!
//! Messages come from any app and any server, so nothing in them is believed (RFC 9267): every read is checked against the end of the
//! message, a name is skipped and never followed through its pointers, and each step moves on by an octet at least. What is not understood is no
//! error: the message is passed on, and who it is for may judge.

use std::ops::Range;

/// Octets of a header (RFC 1035 4.1.1).
pub const HEADER: usize = 12;
/// The largest answer that a client takes that does not say (RFC 1035 4.2.1).
pub const PLAIN_LIMIT: usize = 512;

/// QR, and TC, in the third octet.
const QR: u8 = 0x80;
const TC: u8 = 0x02;
/// OPCODE and RD in the third octet, CD in the fourth: what an answer repeats of its query.
const REPEATED: (u8, u8) = (0x79, 0x10);
/// RA in the fourth octet.
const RA: u8 = 0x80;
/// "Unable to process this query due to a problem with the name server".
const SERVFAIL: u8 = 2;
/// TYPE of the OPT record (RFC 6891 6.1.1).
const OPT: [u8; 2] = [0, 41];
/// Octets of an OPT record without options: root, TYPE, CLASS, TTL, RDLENGTH.
const OPT_LEN: usize = 11;
/// What we say that we take: the agreed size that is not fragmented.
const OUR_LIMIT: u16 = 1_232;
/// The longest name (RFC 1035 3.1).
const MAX_NAME: usize = 255;

/// What a header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// ID.
    pub id: u16,
    /// QR: it is an answer.
    pub answer: bool,
    /// QDCOUNT, ANCOUNT, NSCOUNT, ARCOUNT.
    pub counts: [u16; 4],
}

/// Reads a header; `None` when there is no whole one.
pub fn header(message: &[u8]) -> Option<Header> {
    let header: &[u8; HEADER] = message.first_chunk()?;
    let field = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    Some(Header {
        id: field(0),
        answer: header[2] & QR != 0,
        counts: [field(4), field(6), field(8), field(10)],
    })
}

/// Whether the message is a query, as far as its header tells.
pub fn is_query(message: &[u8]) -> bool {
    header(message).is_some_and(|header| !header.answer)
}

/// Writes another id.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(slot) = message.first_chunk_mut::<2>() {
        *slot = id.to_be_bytes();
    }
}

/// The octets of the only question: QNAME, QTYPE, QCLASS. `None` when there is not exactly one, or none that is well formed.
pub fn question(message: &[u8]) -> Option<&[u8]> {
    if header(message)?.counts[0] != 1 {
        return None;
    }
    let (name, pointer) = name(message, HEADER)?;
    // There is nothing before it that it could point to.
    if pointer {
        return None;
    }
    message.get(HEADER..name.end.checked_add(4)?)
}

/// Whether two questions, as [`question`] gives them, ask the same: names without regard to case (RFC 4343), type and class.
pub fn same_question(a: &[u8], b: &[u8]) -> bool {
    let split = |question: &[u8]| question.len().saturating_sub(4);
    let (a, b) = (a.split_at(split(a)), b.split_at(split(b)));
    // Octets of length are below any letter's.
    a.0.eq_ignore_ascii_case(b.0) && a.1 == b.1
}

/// What an OPT record says (RFC 6891 6.1.2, 6.1.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edns {
    /// The largest message by datagram that its sender takes.
    pub payload: u16,
    /// Extended RCODE, version, and flags.
    pub ttl: [u8; 4],
}

/// The OPT record among the additional ones.
pub fn edns(message: &[u8]) -> Option<Edns> {
    let counts = header(message)?.counts;
    let mut at = HEADER;
    for _ in 0..counts[0] {
        at = name(message, at)?.0.end.checked_add(4)?;
    }
    for (section, count) in counts.into_iter().enumerate().skip(1) {
        for _ in 0..count {
            let (owner, _) = name(message, at)?;
            let fixed: &[u8; 10] = message.get(owner.end..)?.first_chunk()?;
            if section == 3 && owner.len() == 1 && fixed[..2] == OPT {
                let payload = u16::from_be_bytes([fixed[2], fixed[3]]);
                return Some(Edns { payload, ttl: [fixed[4], fixed[5], fixed[6], fixed[7]] });
            }
            let data = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
            at = owner.end.checked_add(10)?.checked_add(data)?;
        }
    }
    None
}

/// The largest answer that whoever sent `query` by datagram takes.
pub fn answer_limit(query: &[u8]) -> usize {
    edns(query).map_or(PLAIN_LIMIT, |edns| usize::from(edns.payload).max(PLAIN_LIMIT))
}

/// Writes the answer to `query` that says that there is none: SERVFAIL.
pub fn write_failure(query: &[u8], out: &mut Vec<u8>) {
    let Some(&[id0, id1, flags, more, ..]) = query.first_chunk::<HEADER>() else { return };
    let (repeated, also) = REPEATED;
    // DO is repeated (RFC 3225 3).
    let edns = edns(query).map(|edns| Edns { payload: OUR_LIMIT, ttl: [0, 0, edns.ttl[2] & 0x80, 0] });
    let head = [id0, id1, QR | flags & repeated, RA | more & also | SERVFAIL];
    write(head, question(query), edns, out);
}

/// Writes what is left of an answer that its client cannot take: TC tells it to ask over TCP (RFC 2181 9).
pub fn write_truncated(answer: &[u8], out: &mut Vec<u8>) {
    let Some(&[id0, id1, flags, more, ..]) = answer.first_chunk::<HEADER>() else { return };
    write([id0, id1, flags | TC, more], question(answer), edns(answer), out);
}

fn write(head: [u8; 4], question: Option<&[u8]>, edns: Option<Edns>, out: &mut Vec<u8>) {
    out.extend_from_slice(&head);
    out.extend_from_slice(&[0, u8::from(question.is_some()), 0, 0, 0, 0, 0, u8::from(edns.is_some())]);
    out.extend_from_slice(question.unwrap_or_default());
    if let Some(Edns { payload, ttl }) = edns {
        let mut opt = [0; OPT_LEN];
        opt[1..3].copy_from_slice(&OPT);
        opt[3..5].copy_from_slice(&payload.to_be_bytes());
        opt[5..9].copy_from_slice(&ttl);
        out.extend_from_slice(&opt);
    }
}

/// The octets of the name at `at`, and whether a pointer ends it (RFC 1035 4.1.4), which is not followed.
fn name(message: &[u8], at: usize) -> Option<(Range<usize>, bool)> {
    let mut end = at;
    loop {
        let length = *message.get(end)?;
        match length & 0xc0 {
            0 if length == 0 => return Some((at..end.checked_add(1)?, false)),
            0 => end = end.checked_add(1)?.checked_add(length.into())?,
            0xc0 => {
                let past = end.checked_add(2)?;
                return (past <= message.len()).then_some((at..past, true));
            }
            _ => return None,
        }
        if end.checked_sub(at)? >= MAX_NAME {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A query for `a.` of this type, with an OPT record or without.
    fn query(kind: u16, payload: Option<u16>) -> Vec<u8> {
        let mut octets = vec![0x12, 0x34, 0x01, 0x10, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0];
        octets.extend_from_slice(&kind.to_be_bytes());
        octets.extend_from_slice(&[0, 1]);
        if let Some(payload) = payload {
            octets[11] = 1;
            octets.extend_from_slice(&[0, 0, 41]);
            octets.extend_from_slice(&payload.to_be_bytes());
            octets.extend_from_slice(&[0, 0, 0x80, 0, 0, 4, 9, 9, 9, 9]);
        }
        octets
    }

    #[test]
    fn the_size_that_a_client_takes_is_in_its_opt_record() {
        assert_eq!(answer_limit(&query(1, None)), 512);
        assert_eq!(answer_limit(&query(1, Some(4_096))), 4_096);
        assert_eq!(answer_limit(&query(1, Some(100))), 512, "RFC 6891 6.2.3: less counts as 512");
        // Behind a record of the answer section, whose owner is a pointer.
        let mut octets = query(1, None);
        octets[7] = 1;
        octets[11] = 1;
        octets.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 1, 2, 3, 4]);
        octets.extend_from_slice(&[0, 0, 41, 0x08, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(answer_limit(&octets), 2_048);
        // An OPT record elsewhere is none.
        octets[9] = 1;
        octets[11] = 0;
        assert_eq!(answer_limit(&octets), 512);
    }

    #[test]
    fn questions_are_the_same_without_regard_to_case_of_the_name_alone() {
        let lower = query(1, None);
        let mut upper = lower.clone();
        upper[13] = b'A';
        assert!(same_question(question(&lower).unwrap(), question(&upper).unwrap()));
        // 65 and 97 are an upper and a lower case A.
        let (https, other) = (query(65, None), query(97, None));
        assert!(!same_question(question(&https).unwrap(), question(&other).unwrap()));
        assert!(!same_question(question(&https).unwrap(), question(&lower).unwrap()));
    }

    /// RFC 9267: names that point, that are too long, that end too late; counts that promise too much.
    #[test]
    fn a_malformed_question_is_none() {
        let good = query(1, None);
        for len in 0..good.len() {
            assert_eq!(question(&good[..len]), None, "{len}");
        }
        let with = |name: &[u8]| [&good[..HEADER], name, &[0, 1, 0, 1]].concat();
        for name in [&[0xc0, 12][..], &[1, b'a', 0xc0, 12], &[0xc0], &[0x40, 0], &[63; 300]] {
            assert_eq!(question(&with(name)), None, "{name:?}");
        }
        // A label that ends in what looks like a pointer is none; the root alone is a name.
        assert!(question(&with(&[2, b'a', 0xc0, 0])).is_some_and(|found| found.len() == 8));
        assert_eq!(question(&with(&[0])).map(<[u8]>::len), Some(5));
        let longest = [&[63; 64][..], &[63; 64], &[63; 64], &[61; 62], &[0]].concat();
        assert_eq!(longest.len(), 255);
        assert_eq!(question(&with(&longest)).map(<[u8]>::len), Some(259));
        let mut two = good.clone();
        two[5] = 2;
        assert_eq!(question(&two), None);
        assert_eq!(edns(&two), None);
    }

    #[test]
    fn a_failure_repeats_the_question_and_says_servfail() {
        let mut out = Vec::new();
        write_failure(&query(28, Some(4_096)), &mut out);
        assert_eq!(out[..12], [0x12, 0x34, 0x81, 0x92, 0, 1, 0, 0, 0, 0, 0, 1]);
        assert_eq!(out[12..19], [1, b'a', 0, 0, 28, 0, 1]);
        assert_eq!(edns(&out), Some(Edns { payload: 1_232, ttl: [0, 0, 0x80, 0] }));
        out.clear();
        write_failure(&query(28, None)[..15], &mut out);
        assert_eq!(
            out,
            [0x12, 0x34, 0x81, 0x92, 0, 0, 0, 0, 0, 0, 0, 0],
            "a question that is cut off is left out"
        );
        out.clear();
        write_failure(&[0; 11], &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn a_truncated_answer_is_its_question_with_tc() {
        let mut answer = query(16, None);
        answer[2..4].copy_from_slice(&[0x85, 0x80]);
        answer[7] = 1;
        answer.extend_from_slice(&[0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 60, 2, 0]);
        answer.extend_from_slice(&[7; 512]);
        let mut out = Vec::new();
        write_truncated(&answer, &mut out);
        assert_eq!(out, [&[0x12, 0x34, 0x87, 0x80, 0, 1, 0, 0, 0, 0, 0, 0][..], &answer[12..19]].concat());
    }

    /// Messages that begin well, so that the walk gets somewhere.
    fn messages() -> impl Strategy<Value = Vec<u8>> {
        let counts = prop::collection::vec(0u8..4, 4);
        let rest = prop::collection::vec(prop_oneof![Just(0u8), Just(0xc0), 0u8..16, any::<u8>()], 0..200);
        let plausible = (counts, rest).prop_map(|(counts, rest)| {
            let mut octets = vec![1, 2, 1, 0];
            octets.extend(counts.into_iter().flat_map(|count| [0, count]));
            octets.extend(rest);
            octets
        });
        prop_oneof![plausible, prop::collection::vec(any::<u8>(), 0..300)]
    }

    proptest! {
        #[test]
        fn no_message_panics_and_what_is_made_of_it_is_well_formed(message in messages()) {
            if let Some(found) = question(&message) {
                prop_assert!(same_question(found, found));
                prop_assert!((5..=MAX_NAME + 4).contains(&found.len()));
            }
            prop_assert!(answer_limit(&message) >= PLAIN_LIMIT);
            for write in [write_failure, write_truncated] {
                let mut out = Vec::new();
                write(&message, &mut out);
                prop_assert_eq!(out.is_empty(), message.len() < HEADER);
                prop_assert!(out.len() <= PLAIN_LIMIT);
                if let Some(header) = header(&out) {
                    prop_assert_eq!(u16::from_be_bytes([message[0], message[1]]), header.id);
                    let wanted = question(&message);
                    prop_assert_eq!(question(&out), wanted);
                    let len = HEADER + wanted.map_or(0, <[u8]>::len) + usize::from(header.counts[3]) * OPT_LEN;
                    prop_assert_eq!(out.len(), len);
                    prop_assert_eq!(edns(&out).is_some(), edns(&message).is_some());
                }
            }
        }
    }
}
