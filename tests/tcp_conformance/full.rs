//! Full tables: what gives way, what is kept, what the sender hears.

use crate::dsl::*;
use ztun::stack::{Closed, DropReason, StackEvent, TcpConfig};

/// The app's next connection, from another port.
fn from_port(peer: &mut Peer, port: u16) -> Give {
    peer.local.port = port;
    peer.syn()
}

/// A SYN queue full of connections that are being made passes a SYN over without a word: its sender repeats it, and is served then.
#[test]
fn a_full_syn_queue_passes_over_what_comes() {
    both(|family| {
        let mut peer = Peer::with_tcp(family, TcpConfig { max_syn: 2, ..TcpConfig::default() });
        peer.accepting = false;
        for port in [1, 2] {
            let syn = from_port(&mut peer, port);
            peer.feed(&syn);
        }
        let syn = from_port(&mut peer, 3);
        assert_eq!(peer.give(&syn), Err(DropReason::Full));
        peer.take_nothing();
        assert_eq!(peer.stack.stats().syn_dropped_full, 1);
        // One is refused: there is room again.
        let now = peer.now;
        peer.tcp().refuse(ztun::stack::Refusal::Reset, now);
        peer.take();
        assert_eq!(peer.give(&syn), Ok(()));
    });
}

/// Conformance 21: SYN-ACKs that nobody answers do not keep others out: the oldest gives way once it is overdue, and not before.
#[test]
fn an_overdue_handshake_gives_way_in_a_full_syn_queue() {
    both(|family| {
        let mut peer = Peer::with_tcp(family, TcpConfig { max_syn: 2, ..TcpConfig::default() });
        for port in [1, 2] {
            let syn = from_port(&mut peer, port);
            peer.feed(&syn);
            assert_eq!(peer.take_one().flags, SYN | ACK);
        }
        let syn = from_port(&mut peer, 3);
        assert_eq!(peer.give(&syn), Err(DropReason::Full));
        peer.wait(ms(999));
        assert_eq!(peer.give(&syn), Err(DropReason::Full));
        peer.wait(ms(1));
        peer.take();
        peer.events.clear();
        assert_eq!(peer.give(&syn), Ok(()));
        assert_eq!(peer.take_one().flags, SYN | ACK);
        let gone = |event: &&StackEvent| matches!(event, StackEvent::Closed { why: Closed::TimedOut, .. });
        assert_eq!(peer.events.iter().filter(gone).count(), 1);
    });
}

/// A full table keeps its connections: a new one is refused, aloud.
#[test]
fn a_full_table_refuses_the_new_and_keeps_the_old() {
    both(|family| {
        let mut peer = Peer::with_tcp(family, TcpConfig { max_flows: 1, ..TcpConfig::default() }).open();
        let syn = peer.seg().flags(SYN).ack(ztun::wire::SeqNumber(0));
        let mut other = syn.clone();
        other.src.port = 7;
        assert_eq!(peer.give(&other), Err(DropReason::Full));
        let answer = peer.take_one();
        assert_eq!((answer.flags, answer.ack), (RST | ACK, syn.seq + 1));
        assert_eq!(peer.stack.stats().syn_refused_full, 1);
        peer.say(b"still here");
        assert_eq!(peer.received, b"still here");
    });
}

/// A connection in TIME-WAIT makes room in a full table.
#[test]
fn time_wait_gives_way_in_a_full_table() {
    both(|family| {
        let mut peer = Peer::with_tcp(family, TcpConfig { max_flows: 1, ..TcpConfig::default() }).open();
        crate::close::time_wait(&mut peer);
        peer.take();
        let syn = from_port(&mut peer, 7);
        assert_eq!(peer.give(&syn), Ok(()));
        assert_eq!(peer.take_one().flags, SYN | ACK);
    });
}
