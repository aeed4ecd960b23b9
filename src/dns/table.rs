//! Which queries wait for an answer, and for how long.
//!
//! # Theory of operation
//!
//! A transaction is named by its message id and the two endpoints (RFC 5452 9.1): an answer with the right id from another
//! server, or to another port, matches nothing. The server is the one that is asked, which need not be the one that the app addressed;
//! the table keeps that one, so that the answer can come from it. Of a message only the header is read (RFC 1035 4.1.1): id and QR.
//! Nothing in a message is judged or changed, and the relay does not depend on the outcome.
//!
//! Transactions live in a [`FlowTable`] of bounded size. Each has a deadline of [`TIMEOUT`] in a [`TimerWheel`]. A query that the
//! app repeats is the same transaction: its deadline starts again, its latency does not, since that is what
//! the app waits. When the table is full the transaction whose query was sent longest ago makes room.

use super::message::{self, Header};
use crate::flow::{FlowId, FlowKey, FlowTable, LruList, TimerWheel};
use crate::rng::KeyedHash;
use crate::time::{Duration, Instant};
use crate::wire::Endpoint;

/// Time after which a query counts as unanswered: what resolvers commonly wait before they ask again or elsewhere.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// By what a query travels.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Carrier {
    /// Datagrams through the proxy.
    Udp,
    /// A TCP connection through the proxy.
    Tcp,
    /// Datagrams out of the egress interface.
    Direct,
}

/// What went one way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CarrierStats {
    /// Queries, repeated ones included.
    pub queries: u64,
    /// Answers that matched a query.
    pub answers: u64,
    /// Queries that were not answered in time.
    pub timeouts: u64,
}

/// What went through port 53; each counts since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DnsStats {
    /// Queries, repeated ones included.
    pub queries: u64,
    /// Queries that repeated one in flight.
    pub repeated: u64,
    /// Answers that matched a query.
    pub answers: u64,
    /// Queries that were not answered in [`TIMEOUT`].
    pub timeouts: u64,
    /// Answers that matched no query: late, second, or forged.
    pub unmatched: u64,
    /// Queries that were forgotten for lack of space.
    pub evicted: u64,
    /// Messages shorter than a header, queries marked as answers and answers marked as queries.
    pub malformed: u64,
    /// Queries that went to another server than the app addressed.
    pub redirected: u64,
    /// Queries that were answered with SERVFAIL here, because their server could not be asked or did not answer.
    pub servfails: u64,
    /// Answers that were too large for the app's datagrams: it is told to ask over TCP.
    pub truncated: u64,
    /// Times that names were moved to TCP because datagrams through the proxy did not work.
    pub fallbacks: u64,
    /// Datagrams through the proxy.
    pub udp: CarrierStats,
    /// Over TCP through the proxy.
    pub tcp: CarrierStats,
    /// Out of the egress interface.
    pub direct: CarrierStats,
}

impl DnsStats {
    /// What went one way.
    pub fn carrier(&self, carrier: Carrier) -> &CarrierStats {
        match carrier {
            Carrier::Udp => &self.udp,
            Carrier::Tcp => &self.tcp,
            Carrier::Direct => &self.direct,
        }
    }

    pub(super) fn carrier_mut(&mut self, carrier: Carrier) -> &mut CarrierStats {
        match carrier {
            Carrier::Udp => &mut self.udp,
            Carrier::Tcp => &mut self.tcp,
            Carrier::Direct => &mut self.direct,
        }
    }
}

/// Where a query goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Course {
    /// The app.
    pub local: Endpoint,
    /// Whom the app addressed.
    pub asked: Endpoint,
    /// Who is asked.
    pub server: Endpoint,
    /// By what.
    pub carrier: Carrier,
}

/// What an answer is one to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answered {
    /// Whom the app addressed: the answer is to come from there.
    pub asked: Endpoint,
    /// Time since the query was first sent.
    pub latency: Duration,
}

/// Names a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Transaction {
    tuple: FlowKey,
    id: u16,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// When it was first asked.
    since: Instant,
    asked: Endpoint,
    carrier: Carrier,
}

/// Transactions in flight.
#[derive(Debug)]
pub struct DnsTable {
    transactions: FlowTable<Transaction, Waiting>,
    deadlines: TimerWheel,
    /// By the last query of each.
    order: LruList,
    stats: DnsStats,
}

impl DnsTable {
    /// A table of at most `capacity` transactions (at least one), indexed under `hash`.
    pub fn new(capacity: usize, hash: KeyedHash) -> DnsTable {
        DnsTable {
            transactions: FlowTable::new(capacity.max(1), hash),
            deadlines: TimerWheel::new(),
            order: LruList::new(),
            stats: DnsStats::default(),
        }
    }

    /// Notes a query, the data of a datagram.
    pub fn handle_query(&mut self, course: Course, payload: &[u8], now: Instant) {
        let Some(Header { id, answer: false, .. }) = message::header(payload) else {
            self.stats.malformed += 1;
            return;
        };
        let Course { local, asked, server, carrier } = course;
        self.stats.queries += 1;
        self.stats.redirected += u64::from(asked != server);
        self.stats.carrier_mut(carrier).queries += 1;
        let key = Transaction { tuple: FlowKey { local, remote: server }, id };
        let entry = match self.transactions.find(&key) {
            Some(entry) => {
                self.stats.repeated += 1;
                if let Some(waiting) = self.transactions.get_mut(entry) {
                    *waiting = Waiting { asked, carrier, ..*waiting };
                }
                entry
            }
            None => {
                if self.transactions.is_full() {
                    self.evict();
                }
                let Ok(entry) = self.transactions.insert(key, Waiting { since: now, asked, carrier }) else {
                    return;
                };
                entry
            }
        };
        self.order.touch(entry.index());
        self.deadlines.set(entry.index(), now + TIMEOUT);
    }

    /// Notes an answer, the data of a datagram from the server at `remote` to the app at `local`, and gives
    /// what it answers.
    pub fn handle_answer(
        &mut self,
        local: Endpoint,
        remote: Endpoint,
        payload: &[u8],
        now: Instant,
    ) -> Option<Answered> {
        let Some(Header { id, answer: true, .. }) = message::header(payload) else {
            self.stats.malformed += 1;
            return None;
        };
        let Some(entry) = self.transactions.find(&Transaction { tuple: FlowKey { local, remote }, id })
        else {
            self.stats.unmatched += 1;
            return None;
        };
        let Waiting { since, asked, carrier } = self.forget(entry)?;
        self.stats.answers += 1;
        self.stats.carrier_mut(carrier).answers += 1;
        Some(Answered { asked, latency: now.since(since) })
    }

    /// Forgets the queries whose time is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(index) = self.deadlines.pop(now) {
            let entry = self.transactions.id_at(index);
            if let Some(Waiting { carrier, .. }) = entry.and_then(|entry| self.forget(entry)) {
                self.stats.timeouts += 1;
                self.stats.carrier_mut(carrier).timeouts += 1;
            }
        }
    }

    /// When [`DnsTable::handle_timeout`] is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.next_deadline()
    }

    /// Counters.
    pub fn stats(&self) -> &DnsStats {
        &self.stats
    }

    /// Queries in flight.
    pub fn len(&self) -> usize {
        self.transactions.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.transactions.is_empty()
    }

    /// Takes a query back, as if it had not been noted: it goes another way.
    pub fn withdraw(&mut self, local: Endpoint, server: Endpoint, payload: &[u8]) {
        let Some(Header { id, .. }) = message::header(payload) else { return };
        let key = Transaction { tuple: FlowKey { local, remote: server }, id };
        if let Some(Waiting { carrier, asked, .. }) =
            self.transactions.find(&key).and_then(|entry| self.forget(entry))
        {
            self.stats.queries -= 1;
            self.stats.redirected -= u64::from(asked != server);
            self.stats.carrier_mut(carrier).queries -= 1;
        }
    }

    /// Counters, for those who carry queries otherwise.
    pub fn stats_mut(&mut self) -> &mut DnsStats {
        &mut self.stats
    }

    fn evict(&mut self) {
        let oldest = self.order.oldest().and_then(|index| self.transactions.id_at(index));
        if let Some(entry) = oldest {
            self.forget(entry);
            self.stats.evicted += 1;
        }
    }

    /// Takes a transaction out of every structure.
    fn forget(&mut self, entry: FlowId) -> Option<Waiting> {
        self.deadlines.cancel(entry.index());
        self.order.remove(entry.index());
        self.transactions.remove(entry).map(|(_, waiting)| waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::message::HEADER;
    use crate::rng::{Rng, SEED_LEN};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const SERVER: &str = "9.9.9.9:53";

    fn endpoint(text: &str) -> Endpoint {
        text.parse::<std::net::SocketAddr>().unwrap().into()
    }

    fn app(port: u16) -> Endpoint {
        Endpoint::new("10.0.0.1".parse().unwrap(), port)
    }

    fn message(id: u16, answer: bool) -> [u8; HEADER] {
        let mut octets = [0; HEADER];
        octets[..2].copy_from_slice(&id.to_be_bytes());
        octets[2] = if answer { 0x81 } else { 0x01 };
        octets
    }

    fn course(port: u16) -> Course {
        let server = endpoint(SERVER);
        Course { local: app(port), asked: server, server, carrier: Carrier::Udp }
    }

    fn table(capacity: usize) -> DnsTable {
        DnsTable::new(capacity, Rng::new([5; SEED_LEN]).keyed_hash())
    }

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    /// Z7: matched by id and both endpoints, and only once.
    #[test]
    fn an_answer_matches_only_its_own_query() {
        let mut dns = table(8);
        let server = endpoint(SERVER);
        dns.handle_query(course(1000), &message(7, false), at(0));
        assert_eq!(dns.handle_answer(app(1000), server, &message(8, true), at(1)), None);
        assert_eq!(dns.handle_answer(app(1001), server, &message(7, true), at(1)), None);
        assert_eq!(dns.handle_answer(app(1000), endpoint("9.9.9.10:53"), &message(7, true), at(1)), None);
        assert_eq!(dns.handle_answer(app(1000), endpoint("9.9.9.9:54"), &message(7, true), at(1)), None);
        assert_eq!(
            dns.handle_answer(app(1000), server, &message(7, true), at(30)),
            Some(Answered { asked: server, latency: Duration::from_millis(30) })
        );
        assert_eq!(dns.handle_answer(app(1000), server, &message(7, true), at(31)), None);
        let udp = CarrierStats { queries: 1, answers: 1, timeouts: 0 };
        assert_eq!(
            *dns.stats(),
            DnsStats { queries: 1, answers: 1, unmatched: 5, udp, ..DnsStats::default() }
        );
        assert!(dns.is_empty());
        assert_eq!(dns.poll_timeout(), None);
    }

    /// Z7: a query that nobody answers is noticed after five seconds, not before.
    #[test]
    fn a_query_without_an_answer_times_out() {
        let mut dns = table(8);
        dns.handle_query(course(1000), &message(7, false), at(100));
        let mut wakeups = 0;
        while let Some(next) = dns.poll_timeout() {
            assert!(next <= at(5_100));
            dns.handle_timeout(next);
            wakeups += 1;
        }
        assert!(wakeups <= 4, "{wakeups}");
        assert_eq!(dns.stats().timeouts, 1);
        assert_eq!(dns.handle_answer(app(1000), endpoint(SERVER), &message(7, true), at(5_200)), None);
        assert_eq!(dns.stats().unmatched, 1);
    }

    #[test]
    fn a_repeated_query_is_one_transaction_with_a_new_deadline() {
        let mut dns = table(8);
        dns.handle_query(course(1000), &message(7, false), at(0));
        dns.handle_query(course(1000), &message(7, false), at(4_000));
        assert_eq!(dns.len(), 1);
        dns.handle_timeout(at(8_999));
        assert_eq!(dns.len(), 1);
        let latency = dns.handle_answer(app(1000), endpoint(SERVER), &message(7, true), at(8_999));
        assert_eq!(latency.map(|answered| answered.latency), Some(Duration::from_millis(8_999)));
        let udp = CarrierStats { queries: 2, answers: 1, timeouts: 0 };
        assert_eq!(
            *dns.stats(),
            DnsStats { queries: 2, repeated: 1, answers: 1, udp, ..DnsStats::default() }
        );
    }

    /// Z7: the table is bounded; the query sent longest ago makes room and is counted.
    #[test]
    fn a_full_table_evicts_the_oldest() {
        let mut dns = table(2);
        dns.handle_query(course(1), &message(1, false), at(0));
        dns.handle_query(course(2), &message(2, false), at(1));
        dns.handle_query(course(1), &message(1, false), at(2));
        dns.handle_query(course(3), &message(3, false), at(3));
        assert_eq!(dns.len(), 2);
        assert_eq!(dns.handle_answer(app(2), endpoint(SERVER), &message(2, true), at(4)), None);
        assert!(dns.handle_answer(app(1), endpoint(SERVER), &message(1, true), at(4)).is_some());
        assert!(dns.handle_answer(app(3), endpoint(SERVER), &message(3, true), at(4)).is_some());
        assert_eq!(dns.stats().evicted, 1);
        // The evicted one's deadline is gone with it.
        dns.handle_timeout(at(60_000));
        assert_eq!(dns.stats().timeouts, 0);
    }

    #[test]
    fn what_is_no_message_is_counted_and_not_tracked() {
        let mut dns = table(8);
        for len in 0..HEADER {
            dns.handle_query(course(1), &message(1, false)[..len], at(0));
            assert_eq!(dns.handle_answer(app(1), endpoint(SERVER), &message(1, true)[..len], at(0)), None);
        }
        dns.handle_query(course(1), &message(1, true), at(0));
        assert_eq!(dns.handle_answer(app(1), endpoint(SERVER), &message(1, false), at(0)), None);
        assert_eq!(*dns.stats(), DnsStats { malformed: 26, ..DnsStats::default() });
        assert!(dns.is_empty());
    }

    /// Z7: who was asked instead of the resolver that the app addressed answers in its name; each way is counted apart.
    #[test]
    fn an_answer_of_another_server_comes_from_the_one_that_was_addressed() {
        let mut dns = table(8);
        let (server, router) = (endpoint(SERVER), endpoint("192.168.1.1:53"));
        let course = Course { asked: router, carrier: Carrier::Direct, ..course(1) };
        dns.handle_query(course, &message(7, false), at(0));
        dns.handle_query(course, &message(8, false), at(0));
        assert_eq!(dns.handle_answer(app(1), router, &message(7, true), at(1)), None, "it was not asked");
        let answered = dns.handle_answer(app(1), server, &message(7, true), at(2));
        assert_eq!(answered, Some(Answered { asked: router, latency: Duration::from_millis(2) }));
        dns.handle_timeout(at(6_000));
        assert_eq!(dns.stats().redirected, 2);
        assert_eq!(
            *dns.stats().carrier(Carrier::Direct),
            CarrierStats { queries: 2, answers: 1, timeouts: 1 }
        );
        assert_eq!(*dns.stats().carrier(Carrier::Udp), CarrierStats::default());
    }

    proptest! {
        /// Against a map: every query ends in exactly one of answered, timed out, evicted, or in flight.
        #[test]
        fn every_query_is_accounted_for(
            steps in prop::collection::vec((0u8..3, 0u16..6, 0u16..4, 0u64..3_000), 0..200),
        ) {
            let mut dns = table(4);
            let mut model: BTreeMap<(u16, u16), (u64, u64)> = BTreeMap::new();
            let mut now = 0;
            for (step, id, port, wait) in steps {
                match step {
                    0 => {
                        dns.handle_query(course(port), &message(id, false), at(now));
                        let first = model.get(&(id, port)).map_or(now, |(first, _)| *first);
                        model.insert((id, port), (first, now + 5_000));
                    }
                    1 => {
                        let answered = dns.handle_answer(app(port), endpoint(SERVER), &message(id, true), at(now));
                        let latency = answered.map(|answered| answered.latency);
                        // What was evicted is not in the table though it is in the model.
                        let expected = model.remove(&(id, port)).map(|(first, _)| Duration::from_millis(now - first));
                        prop_assert!(latency.is_none() || latency <= expected);
                    }
                    _ => {
                        now += wait;
                        dns.handle_timeout(at(now));
                        model.retain(|_, (_, deadline)| *deadline > now);
                    }
                }
                let s = dns.stats();
                prop_assert!(dns.len() <= 4);
                prop_assert_eq!(
                    s.queries - s.repeated,
                    s.answers + s.timeouts + s.evicted + u64::try_from(dns.len()).unwrap()
                );
                if s.evicted == 0 {
                    prop_assert_eq!(dns.len(), model.len());
                }
            }
        }
    }
}
