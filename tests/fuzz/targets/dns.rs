//! Answers of any name server to the embedded proxy's resolver, and any messages through the DNS table.

use super::source::Source;
use ztun::dns::{Carrier, Course, DnsTable, message};
use ztun::proxy::resolve::{Files, Lookup, Step};
use ztun::rng::Rng;
use ztun::time::{Duration, Instant};
use ztun::wire::Endpoint;

pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    match source.u8() % 4 {
        0 => resolver(&mut source),
        1 => table(&mut source),
        3 => messages(source.all()),
        _ => {
            let text = String::from_utf8_lossy(source.all());
            let files = Files::parse(&text, &text);
            assert!((1..=3).contains(&files.servers().len()));
            assert!(files.local(text.split_whitespace().nth(1).unwrap_or("localhost")).len() <= 8);
        }
    }
}

/// Answers that fit the question but for one decision, and ones that do not.
fn resolver(source: &mut Source<'_>) {
    let mut rng = Rng::new([8; 16]);
    let mut now = Instant::from_millis(1_000);
    let servers = ["192.0.2.53:53".parse().expect("address"), "[2001:db8::53]:53".parse().expect("address")];
    let name = source.pick(&["example.com", "a.b.c.d.e.", "localhost", "xn--bcher-kva.example"]);
    let Some(mut lookup) = Lookup::new(name, &servers, &mut rng, now) else { return };
    let mut asked = 0;
    while !source.is_empty() {
        let queries: Vec<Vec<u8>> = lookup.queries().collect();
        assert!(!queries.is_empty() && queries.iter().all(|query| query.len() <= 271));
        let step = match source.u8() % 8 {
            0 => {
                now = now + Duration::from_millis(u64::from(source.u16()) % 3_000);
                lookup.handle_timeout(&mut rng, now)
            }
            1 => lookup.handle_unreachable(&mut rng, now),
            2 => {
                let len = usize::from(source.u8());
                lookup.handle_datagram(source.take(len), &mut rng, now)
            }
            _ => {
                let question = usize::from(source.u8()) % queries.len();
                let mut answer = queries[question].clone();
                // QR, and whatever flags and counts.
                answer[2] = 0x80 | source.pick(&[0x01, 0x03, 0x79, 0]);
                answer[3] = source.pick(&[0x80, 0x83, 0x82, 0xff]);
                answer[7] = source.u8();
                let len = usize::from(source.u8());
                answer.extend_from_slice(source.take(len));
                lookup.handle_datagram(&answer, &mut rng, now)
            }
        };
        match step {
            Step::Wait => {}
            Step::Ask => {
                asked += 1;
                assert!(asked < 4, "two rounds of two servers");
                assert!(servers.contains(&lookup.server()) && lookup.deadline() > now);
            }
            Step::Found(addresses) => {
                assert!((1..=8).contains(&addresses.len()));
                return;
            }
            Step::Failed(_) => return,
        }
    }
}

/// Whatever a message is, what is made of it here is well formed.
fn messages(octets: &[u8]) {
    let question = message::question(octets);
    assert!(question.is_none_or(|question| message::same_question(question, question)));
    assert!(message::answer_limit(octets) >= message::PLAIN_LIMIT);
    for write in [message::write_failure, message::write_truncated] {
        let mut out = Vec::new();
        write(octets, &mut out);
        assert_eq!(out.is_empty(), message::header(octets).is_none());
        assert_eq!(message::question(&out), question.filter(|_| !out.is_empty()));
        assert!(out.len() <= message::PLAIN_LIMIT);
    }
}

/// Against the rule that every query ends in exactly one way.
fn table(source: &mut Source<'_>) {
    const CAPACITY: usize = 4;
    let mut table = DnsTable::new(CAPACITY, Rng::new([9; 16]).keyed_hash());
    let mut now = Instant::from_millis(1_000);
    let local =
        |port: u8| Endpoint::new("198.18.0.1".parse().expect("address"), 40_000 + u16::from(port % 4));
    let remote = |n: u8| Endpoint::new("192.0.2.53".parse().expect("address"), 53 + u16::from(n % 2));
    while !source.is_empty() {
        let kind = source.u8();
        let (a, b) = (source.u8(), source.u8());
        let len = usize::from(source.u8() % 24);
        let message = source.take(len);
        match kind % 4 {
            0 | 1 => {
                let course =
                    Course { local: local(a), asked: remote(b), server: remote(b), carrier: Carrier::Udp };
                table.handle_query(course, message, now);
            }
            2 => {
                if let Some(answered) = table.handle_answer(local(a), remote(b), message, now) {
                    assert!(answered.latency <= now.since(Instant::ZERO));
                }
            }
            _ => {
                now = now + Duration::from_millis(u64::from(a) * u64::from(b));
                table.handle_timeout(now);
                assert!(table.poll_timeout().is_none_or(|next| next > now));
            }
        }
        let stats = table.stats();
        let open = stats.queries - stats.repeated - stats.answers - stats.timeouts - stats.evicted;
        assert!(table.len() <= CAPACITY && open == table.len() as u64, "{stats:?}");
    }
}
