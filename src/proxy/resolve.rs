//! Names to addresses without blocking: a stub resolver (RFC 1034 5.3.1) that does no I/O.
//!
//! A [`Lookup`] asks one name server for A and AAAA at once, moves on to the next server when one fails
//! or stays silent for [`ATTEMPT`], and ends when both questions are answered or every server has
//! been asked [`ROUNDS`] times. The caller gives it a fresh connected socket for each attempt, so an
//! answer has to come from the right address to the right (random) port, and it has to carry the
//! right random id and the question (RFC 5452 9.1, conformance 57).
//!
//! Answers are read without following a compression pointer: a name is only ever skipped, so no pointer
//! can make it loop (RFC 9267). What is understood is A and AAAA records of the answer section,
//! whatever chain of aliases the name server put in front of them.
//!
//! Not done: search lists (a proxy is asked for full names), TCP after a truncated answer (the
//! addresses that fitted are used), caching (the name server does it).

use crate::rng::Rng;
use crate::time::{Duration, Instant};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How long one name server may take for one attempt.
pub const ATTEMPT: Duration = Duration::from_secs(2);
/// How often each name server is asked.
pub const ROUNDS: usize = 2;
/// How much longer AAAA may take once A has brought addresses: RFC 8305 3 (Resolution Delay).
const LATECOMER: Duration = Duration::from_millis(50);
/// Name servers used, as in resolv.conf(5).
const MAX_SERVERS: usize = 3;
/// Addresses tried for one name.
const MAX_ADDRESSES: usize = 8;
/// A query of one question: header, name of at most 255 octets, type and class.
const MAX_QUERY: usize = 12 + 255 + 4;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;

/// What the machine's files say: `/etc/resolv.conf` and `/etc/hosts`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Files {
    servers: Vec<SocketAddr>,
    hosts: Vec<(Box<str>, IpAddr)>,
}

impl Files {
    /// Reads the text of both files. Without a usable `nameserver` line the one on this machine is asked
    /// (resolv.conf(5)). Lines that make no sense are passed over.
    pub fn parse(resolv_conf: &str, hosts: &str) -> Files {
        let mut files = Files::default();
        for line in resolv_conf.lines() {
            let mut words = line.split_ascii_whitespace();
            if words.next() == Some("nameserver") && files.servers.len() < MAX_SERVERS {
                // A scope ("%eth0") needs an interface index, which only the OS knows: such a server is left out.
                files.servers.extend(
                    words
                        .next()
                        .and_then(|word| word.parse().ok())
                        .map(|addr: IpAddr| SocketAddr::new(addr, 53)),
                );
            }
        }
        if files.servers.is_empty() {
            files.servers.push(SocketAddr::from((Ipv4Addr::LOCALHOST, 53)));
        }
        for line in hosts.lines() {
            let line = line.split_once('#').map_or(line, |(entry, _)| entry);
            let mut words = line.split_ascii_whitespace();
            if let Some(addr) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) {
                files.hosts.extend(words.map(|name| (name.into(), addr)));
            }
        }
        files
    }

    /// The name servers, at most three.
    pub fn servers(&self) -> &[SocketAddr] {
        &self.servers
    }

    /// The addresses that need no question: those of the hosts file, and loopback for `localhost` and below
    /// (RFC 6761 6.3). IPv4 comes first, see [`Lookup`].
    pub fn local(&self, name: &str) -> Vec<IpAddr> {
        let name = name.strip_suffix('.').unwrap_or(name);
        let mut addresses: Vec<IpAddr> = self
            .hosts
            .iter()
            .filter(|(host, _)| host.eq_ignore_ascii_case(name))
            .map(|&(_, addr)| addr)
            .collect();
        let top = name.rsplit('.').next().unwrap_or(name);
        if addresses.is_empty() && top.eq_ignore_ascii_case("localhost") {
            addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        }
        addresses.sort_by_key(|addr| addr.is_ipv6());
        addresses.dedup();
        addresses.truncate(MAX_ADDRESSES);
        addresses
    }
}

/// Why a name has no address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// It does not exist, or has no address.
    NotFound,
    /// No name server answered with anything usable.
    NoAnswer,
}

/// What is to be done next for a [`Lookup`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Wait for a datagram or for [`Lookup::deadline`].
    Wait,
    /// Open a new connected socket to [`Lookup::server`] and send [`Lookup::queries`].
    Ask,
    /// The addresses, at least one. IPv4 comes first: they are tried one after the other, and an IPv6 route
    /// that leads nowhere is the commoner fault.
    Found(Vec<IpAddr>),
    /// There are none.
    Failed(Failure),
}

/// One of the two questions.
#[derive(Debug)]
struct Question {
    kind: u16,
    id: u16,
    /// `None` until answered for good.
    answer: Option<Vec<IpAddr>>,
}

/// The addresses of one name, being asked for.
#[derive(Debug)]
pub struct Lookup {
    /// The name as labels.
    name: Vec<u8>,
    servers: Vec<SocketAddr>,
    /// Attempts made; the server is `attempt % servers.len()`.
    attempt: usize,
    questions: [Question; 2],
    deadline: Instant,
}

impl Lookup {
    /// A lookup of `name` at `servers`, which first wants [`Step::Ask`]; `None` when it is no domain name
    /// (RFC 1035 2.3.4: labels of 1 to 63 octets, 255 in all) or there is no server.
    pub fn new(name: &str, servers: &[SocketAddr], rng: &mut Rng, now: Instant) -> Option<Lookup> {
        let name = encode_name(name)?;
        if servers.is_empty() {
            return None;
        }
        let question = |kind, rng: &mut Rng| Question { kind, id: rng.next_u16(), answer: None };
        Some(Lookup {
            name,
            servers: servers.to_vec(),
            attempt: 0,
            questions: [question(TYPE_A, rng), question(TYPE_AAAA, rng)],
            deadline: now + ATTEMPT,
        })
    }

    /// The server of this attempt.
    pub fn server(&self) -> SocketAddr {
        // `new` does not make a lookup without servers.
        self.servers[self.attempt % self.servers.len()]
    }

    /// When [`Lookup::handle_timeout`] is due.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The datagrams of this attempt: a query for each question that is not answered yet.
    pub fn queries(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        self.questions.iter().filter(|question| question.answer.is_none()).map(|question| {
            let mut query = Vec::with_capacity(MAX_QUERY);
            query.extend(question.id.to_be_bytes());
            // RD, one question.
            query.extend([0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
            query.extend(&self.name);
            query.extend(question.kind.to_be_bytes());
            query.extend(CLASS_IN.to_be_bytes());
            query
        })
    }

    /// Takes a datagram that came on the socket of this attempt. One that answers nothing is passed over.
    pub fn handle_datagram(&mut self, datagram: &[u8], rng: &mut Rng, now: Instant) -> Step {
        for question in self.questions.iter_mut().filter(|question| question.answer.is_none()) {
            match parse_answer(datagram, question.id, &self.name, question.kind) {
                None => continue,
                Some(Err(())) => return self.next_server(Failure::NoAnswer, rng, now),
                Some(Ok(addresses)) => question.answer = Some(addresses),
            }
            return self.result(now);
        }
        Step::Wait
    }

    /// The socket reported that nothing listens there.
    pub fn handle_unreachable(&mut self, rng: &mut Rng, now: Instant) -> Step {
        self.next_server(Failure::NoAnswer, rng, now)
    }

    /// The deadline is past.
    pub fn handle_timeout(&mut self, rng: &mut Rng, now: Instant) -> Step {
        if now < self.deadline {
            return Step::Wait;
        }
        match self.found() {
            Some(addresses) => Step::Found(addresses),
            None => self.next_server(Failure::NoAnswer, rng, now),
        }
    }

    fn result(&mut self, now: Instant) -> Step {
        if self.questions.iter().all(|question| question.answer.is_some()) {
            return self.found().map_or(Step::Failed(Failure::NotFound), Step::Found);
        }
        if self.found().is_some() {
            self.deadline = self.deadline.min(now + LATECOMER);
        }
        Step::Wait
    }

    fn found(&self) -> Option<Vec<IpAddr>> {
        let addresses: Vec<IpAddr> =
            self.questions.iter().flat_map(|question| question.answer.iter().flatten().copied()).collect();
        (!addresses.is_empty()).then_some(addresses)
    }

    fn next_server(&mut self, failure: Failure, rng: &mut Rng, now: Instant) -> Step {
        self.attempt = self.attempt.saturating_add(1);
        if self.attempt >= self.servers.len().saturating_mul(ROUNDS) {
            return self.found().map_or(Step::Failed(failure), Step::Found);
        }
        for question in &mut self.questions {
            question.id = rng.next_u16();
        }
        self.deadline = now + ATTEMPT;
        Step::Ask
    }
}

/// A name as a sequence of labels with the root at its end.
fn encode_name(name: &str) -> Option<Vec<u8>> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut octets = Vec::with_capacity(name.len().saturating_add(2));
    for label in name.split('.') {
        let len = u8::try_from(label.len()).ok().filter(|len| (1..=63).contains(len))?;
        octets.push(len);
        octets.extend(label.as_bytes());
    }
    octets.push(0);
    (octets.len() <= 255).then_some(octets)
}

/// Reads an answer to the question (`id`, `name`, `kind`): its addresses (none when the name does not exist);
/// `Err` when the server cannot or will not say; `None` when the datagram is something else.
fn parse_answer(datagram: &[u8], id: u16, name: &[u8], kind: u16) -> Option<Result<Vec<IpAddr>, ()>> {
    let mut reader = Reader { rest: datagram };
    let received_id = reader.u16()?;
    let flags = reader.u16()?;
    let [questions, answers, _, _] = [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
    // QR set, an ordinary query, one question: ours.
    if received_id != id || flags & 0xf800 != 0x8000 || questions != 1 {
        return None;
    }
    let asked = reader.take(name.len())?;
    if !asked.eq_ignore_ascii_case(name) || reader.u16()? != kind || reader.u16()? != CLASS_IN {
        return None;
    }
    match flags & 0x000f {
        0 => {}
        3 => return Some(Ok(Vec::new())),
        _ => return Some(Err(())),
    }
    let mut addresses = Vec::new();
    for _ in 0..answers {
        // A record that does not fit ends the answer: it was cut, and what came before it holds.
        let Some((record, data)) = reader.record() else { break };
        if record != kind || addresses.len() >= MAX_ADDRESSES / 2 {
            continue;
        }
        let addr = match kind {
            TYPE_A => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
        };
        addresses.extend(addr);
    }
    let truncated = flags & 0x0200 != 0;
    if truncated && addresses.is_empty() {
        return Some(Err(()));
    }
    Some(Ok(addresses))
}

/// What is left of a message.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|octets| u16::from_be_bytes([octets[0], octets[1]]))
    }

    /// Skips a name: labels up to the root or a pointer, which ends it (RFC 1035 4.1.4).
    fn skip_name(&mut self) -> Option<()> {
        loop {
            let len = usize::from(self.take(1)?[0]);
            match len & 0xc0 {
                0xc0 => return self.take(1).map(|_| ()),
                0x00 if len == 0 => return Some(()),
                0x00 => self.take(len)?,
                _ => return None,
            };
        }
    }

    /// The type and data of the next record; a class other than IN reads as type 0.
    fn record(&mut self) -> Option<(u16, &'a [u8])> {
        self.skip_name()?;
        let kind = self.u16()?;
        let class = self.u16()?;
        self.take(4)?;
        let len = self.u16()?;
        let data = self.take(usize::from(len))?;
        Some((if class == CLASS_IN { kind } else { 0 }, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use proptest::prelude::{any, prop_assert, proptest};

    const T0: Instant = Instant::from_millis(1_000);

    fn rng() -> Rng {
        Rng::new([1; 16])
    }

    fn servers(n: u8) -> Vec<SocketAddr> {
        (1..=n).map(|last| SocketAddr::from(([192, 0, 2, last], 53))).collect()
    }

    /// An answer to `query` with records (type, data), each owned by a pointer to the question.
    fn answer(query: &[u8], rcode: u8, records: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = query.to_vec();
        message[2] |= 0x80;
        message[3] = 0x80 | rcode;
        message[7] = records.len() as u8;
        for (kind, data) in records {
            message.extend([0xc0, 12]);
            message.extend(kind.to_be_bytes());
            message.extend([0, 1, 0, 0, 0, 60]);
            message.extend((data.len() as u16).to_be_bytes());
            message.extend(*data);
        }
        message
    }

    fn lookup(name: &str, n: u8) -> (Lookup, Rng) {
        let mut rng = rng();
        (Lookup::new(name, &servers(n), &mut rng, T0).unwrap(), rng)
    }

    fn queries(lookup: &Lookup) -> Vec<Vec<u8>> {
        lookup.queries().collect()
    }

    #[test]
    fn both_families_are_asked_with_random_ids_and_found_with_ipv4_first() {
        let (mut lookup, mut rng) = lookup("Example.com.", 1);
        let asked = queries(&lookup);
        assert_eq!(asked.len(), 2);
        assert_ne!(asked[0][..2], asked[1][..2]);
        assert_eq!(&asked[0][2..], b"\x01\0\0\x01\0\0\0\0\0\0\x07Example\x03com\0\0\x01\0\x01");
        let v6 = answer(&asked[1], 0, &[(5, b"\x01x\0"), (28, &[0x20; 16])]);
        assert_eq!(lookup.handle_datagram(&v6, &mut rng, T0), Step::Wait);
        let v4 = answer(&asked[0], 0, &[(5, b"\x01x\0"), (1, &[192, 0, 2, 9]), (1, &[192, 0, 2, 8])]);
        let Step::Found(found) = lookup.handle_datagram(&v4, &mut rng, T0) else { panic!("not found") };
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].to_string(), "192.0.2.9");
        assert!(found[2].is_ipv6());
    }

    /// conformance 57
    #[test]
    fn an_answer_with_another_id_question_or_direction_is_passed_over() {
        let (mut lookup, mut rng) = lookup("example.com", 1);
        let asked = queries(&lookup);
        let good = answer(&asked[0], 0, &[(1, &[192, 0, 2, 9])]);
        for (at, octet) in
            [(0, good[0] ^ 1), (1, good[1] ^ 1), (2, 0x01), (2, 0x89), (5, 2), (13, b'E' ^ 0xff)]
        {
            let mut forged = good.clone();
            forged[at] = octet;
            assert_eq!(lookup.handle_datagram(&forged, &mut rng, T0), Step::Wait, "octet {at}");
        }
        let mut other_type = good.clone();
        other_type[26] = 28;
        assert_eq!(lookup.handle_datagram(&other_type, &mut rng, T0), Step::Wait);
        for len in 0..asked[0].len() {
            assert_eq!(lookup.handle_datagram(&good[..len], &mut rng, T0), Step::Wait);
        }
        assert_eq!(queries(&lookup).len(), 2, "nothing was believed");
        let mut upper = good.clone();
        upper[13..20].make_ascii_uppercase();
        lookup.handle_datagram(&upper, &mut rng, T0);
        assert_eq!(queries(&lookup).len(), 1, "a name matches in any case");
    }

    #[test]
    fn a_name_that_does_not_exist_fails_when_both_answers_say_so() {
        let (mut lookup, mut rng) = lookup("nowhere.example", 2);
        let asked = queries(&lookup);
        assert_eq!(lookup.handle_datagram(&answer(&asked[0], 3, &[]), &mut rng, T0), Step::Wait);
        assert_eq!(
            lookup.handle_datagram(&answer(&asked[1], 0, &[]), &mut rng, T0),
            Step::Failed(Failure::NotFound)
        );
    }

    #[test]
    fn a_server_that_fails_or_is_silent_is_followed_by_the_next_and_all_of_it_ends() {
        let (mut lookup, mut rng) = lookup("example.com", 2);
        let first = queries(&lookup);
        assert_eq!(lookup.server(), servers(2)[0]);
        assert_eq!(lookup.handle_datagram(&answer(&first[0], 2, &[]), &mut rng, T0), Step::Ask);
        assert_eq!(lookup.server(), servers(2)[1]);
        assert_ne!(queries(&lookup)[0][..2], first[0][..2], "a new id for each attempt");
        assert_eq!(lookup.handle_timeout(&mut rng, T0), Step::Wait);
        let mut asked = 2;
        let (end, now) = loop {
            let now = lookup.deadline();
            match lookup.handle_timeout(&mut rng, now) {
                Step::Ask => asked += 1,
                step @ (Step::Wait | Step::Found(_) | Step::Failed(_)) => break (step, now),
            }
        };
        assert_eq!((end, asked), (Step::Failed(Failure::NoAnswer), 4));
        assert_eq!(now.since(T0), ATTEMPT * 3);
    }

    #[test]
    fn a_late_aaaa_holds_up_an_answer_only_briefly() {
        let (mut lookup, mut rng) = lookup("example.com", 1);
        let asked = queries(&lookup);
        let v4 = answer(&asked[0], 0, &[(1, &[192, 0, 2, 9])]);
        assert_eq!(lookup.handle_datagram(&v4, &mut rng, T0), Step::Wait);
        assert_eq!(lookup.deadline(), T0 + LATECOMER);
        let deadline = lookup.deadline();
        assert_eq!(
            lookup.handle_timeout(&mut rng, deadline),
            Step::Found(vec!["192.0.2.9".parse().unwrap()])
        );
    }

    #[test]
    fn a_truncated_answer_gives_what_fitted() {
        let (mut lookup, mut rng) = lookup("example.com", 1);
        let asked = queries(&lookup);
        let mut cut = answer(&asked[0], 0, &[(1, &[192, 0, 2, 9]), (1, &[192, 0, 2, 8])]);
        cut[2] |= 0x02;
        cut.truncate(cut.len() - 2);
        lookup.handle_datagram(&cut, &mut rng, T0);
        assert_eq!(lookup.found(), Some(vec!["192.0.2.9".parse().unwrap()]));
    }

    #[test]
    fn names_are_bounded() {
        let mut rng = rng();
        let label = "x".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "x".repeat(61));
        for (name, good) in [
            ("a", true),
            (&longest, true),
            (&format!("{longest}x"), false),
            (&format!("{label}x.com"), false),
            ("", false),
            (".", false),
            ("a..b", false),
        ] {
            assert_eq!(Lookup::new(name, &servers(1), &mut rng, T0).is_some(), good, "{name}");
        }
        assert!(Lookup::new("a", &[], &mut rng, T0).is_none());
    }

    #[test]
    fn the_files_of_the_machine_are_understood() {
        let files = Files::parse(
            "# comment\nsearch example.com\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\n nameserver ::1 # x\noptions edns0\n",
            "127.0.0.1 localhost\n::1 ip6-localhost # loopback\n192.0.2.7\tBox.example box\n2001:db8::7 box\nnonsense here\n",
        );
        assert_eq!(files.servers(), ["192.0.2.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()]);
        let local = |name| files.local(name).iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(local("box"), ["192.0.2.7", "2001:db8::7"]);
        assert_eq!(local("BOX.EXAMPLE."), ["192.0.2.7"]);
        assert_eq!(local("localhost"), ["127.0.0.1"]);
        assert_eq!(local("a.localhost"), ["127.0.0.1", "::1"]);
        assert_eq!(local("elsewhere"), Vec::<String>::new());
        assert_eq!(Files::parse("", "").servers(), ["127.0.0.1:53".parse().unwrap()]);
    }

    proptest! {
        #[test]
        fn no_answer_panics_or_brings_more_than_fits(
            tail in proptest::collection::vec(any::<u8>(), 0..400), flags: u16, answers: u16, raw: bool
        ) {
            let (mut lookup, mut rng) = lookup("example.com", 1);
            let mut message = if raw { Vec::new() } else {
                let mut query = queries(&lookup)[0].clone();
                query[2..4].copy_from_slice(&(0x8000 | flags & 0x07f0).to_be_bytes());
                query[6..8].copy_from_slice(&answers.to_be_bytes());
                query
            };
            message.extend(tail);
            lookup.handle_datagram(&message, &mut rng, T0);
            prop_assert!(lookup.found().is_none_or(|found| found.len() <= MAX_ADDRESSES));
        }
    }
}
