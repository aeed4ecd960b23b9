//! Statements 39 to 44: how connections end, and what keeps them.

use crate::dsl::*;
use crate::world::World;
use std::net::SocketAddr;
use ztun::config::{EngineConfig, Proxy};
use ztun::engine::{SocketError, SocketId};
use ztun::stack::{Closed, DropReason, StackConfig, StackEvent, TcpConfig};
use ztun::wire::SeqNumber;

fn socket_addr(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

/// The engine between an app and a target that it is connected to through the proxy.
fn engine() -> (World, smoltcp::iface::SocketHandle, SocketId) {
    let proxies = vec![Proxy { addr: socket_addr("192.0.2.10:1080"), credentials: None }];
    let mut world = World::new(EngineConfig { proxies, pool: 0, ..EngineConfig::default() }, false);
    let app = world.connect(socket_addr("203.0.113.5:80"));
    let socket = world.accept_dialled();
    world.grant(socket);
    (world, app, socket)
}

/// The stack's FIN is acknowledged by the app.
fn ack_fin(peer: &mut Peer, fin: &Seg) {
    assert!(fin.flags.contains(FIN), "{fin:?}");
    peer.ack(fin.end() + 1);
}

fn send_fin(peer: &mut Peer) {
    let fin = peer.seg().flags(FIN | ACK);
    peer.snd_nxt += 1;
    peer.feed(&fin);
}

/// conformance 39
#[test]
fn after_the_apps_fin_the_other_direction_goes_on() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        let last = peer.seg().flags(FIN | ACK).data(b"last words");
        peer.snd_nxt += 11;
        peer.feed(&last);
        assert_eq!(peer.received, b"last words");
        assert!(peer.tcp().recv_finished());
        assert_eq!(acknowledged_late(&mut peer), peer.snd_nxt);
        peer.wait(secs(200));
        peer.transfer(&text(0, 300_000));
        peer.shutdown();
        let fin = peer.take_one();
        ack_fin(&mut peer, &fin);
        assert_eq!(peer.closed(), Some(Closed::Finished));
        assert!(!peer.is_alive());
    });
}

/// Nothing is polled: what waits for its other half has a timer for its own end and no other.
#[test]
fn a_half_closed_connection_that_is_silent_wakes_nobody() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        send_fin(&mut peer);
        peer.take();
        peer.wait(secs(1));
        let due = peer.stack.poll_timeout().expect("its life is bounded");
        assert!(due.since(peer.now) > secs(10), "{due:?} at {:?}", peer.now);
    });
}

/// What an acknowledgement says that nothing else took along: it comes by itself after the delay of one (RFC 9293 3.8.6.3), not before.
fn acknowledged_late(peer: &mut Peer) -> SeqNumber {
    peer.take_nothing();
    let late = peer.wait(ms(100));
    let [(after, ack)] = &late[..] else { panic!("one acknowledgement: {late:?}") };
    assert!(ack.is_bare_ack() && *after >= ms(30) && *after <= ms(50), "{late:?}");
    ack.ack
}

/// Where the target ends as well, its FIN acknowledges the app's: a packet less for each short connection.
#[test]
fn both_ends_of_a_short_connection_are_one_segment() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        send_fin(&mut peer);
        peer.take_nothing();
        peer.shutdown();
        let fin = peer.take_one();
        assert_eq!((fin.ack, fin.flags.contains(FIN)), (peer.snd_nxt, true));
        ack_fin(&mut peer, &fin);
        assert_eq!(peer.closed(), Some(Closed::Finished));
    });
}

/// conformance 39, mirrored
#[test]
fn after_our_fin_the_apps_octets_still_come() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        peer.write(b"bye");
        peer.shutdown();
        let sent = peer.take();
        let last = sent.last().expect("the last segment").clone();
        ack_fin(&mut peer, &last);
        let stream = text(0, 100_000);
        for chunk in stream.chunks(1_000) {
            peer.say(chunk);
            peer.take();
        }
        assert_eq!(peer.received, stream);
        assert_eq!(peer.closed(), None);
        send_fin(&mut peer);
        assert_eq!(peer.take_one().ack, peer.snd_nxt);
        assert_eq!(peer.closed(), Some(Closed::Finished));
    });
}

/// conformance 40
#[test]
fn an_abort_is_one_acceptable_reset() {
    both(|family| {
        let mut peer = Peer::new(family).like_a_kernel().open();
        peer.transfer(&text(0, 5_000));
        peer.write(b"never to be acknowledged");
        let sent = peer.take_one();
        peer.say(b"unread");
        peer.abort();
        let reset = peer.take_one();
        assert!(reset.flags.rst() && reset.seq.ge(peer.rcv_nxt) && reset.seq.le(sent.end()), "{reset:?}");
        assert_eq!(peer.closed(), None, "who aborts is not told");
        assert!(!peer.is_alive());
        let after = peer.seg();
        assert_eq!(peer.give(&after), Err(DropReason::NoFlow));
    });
}

/// conformance 40: FIN never becomes RST while data is pending.
#[test]
fn a_shutdown_behind_unsent_and_lost_data_delivers_it_before_the_fin() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        peer.window = 2_000;
        let window = peer.seg();
        peer.feed(&window);
        let stream = text(0, 20_000);
        assert_eq!(peer.write(&stream), stream.len());
        peer.shutdown();
        // The first flight is lost.
        peer.take();
        let mut got = Vec::new();
        let mut fin = None;
        for _ in 0..2_000 {
            for (_, segment) in peer.wait(ms(100)) {
                assert!(!segment.flags.rst());
                if segment.seq == peer.rcv_nxt {
                    got.extend_from_slice(&segment.data);
                    peer.rcv_nxt = segment.end();
                    if segment.flags.contains(FIN) {
                        fin = Some(segment.clone());
                        peer.rcv_nxt += 1;
                    }
                }
                let ack = peer.seg();
                peer.feed(&ack);
            }
            if fin.is_some() {
                break;
            }
        }
        assert_eq!(got, stream);
        assert!(fin.is_some(), "the FIN stands behind the data");
    });
}

/// conformance 41: at the engine's seam, where the other side is.
#[test]
fn octets_that_the_target_will_never_get_end_in_a_reset() {
    let (mut world, app, socket) = engine();
    world.fake(socket).room = Some(100);
    world.tcp(app).send_slice(&text(0, 5_000)).expect("send");
    world.settle();
    // The target's end has come for both directions while octets of the app wait.
    world.fail(socket, SocketError::Reset);
    assert_eq!(world.tcp(app).state(), smoltcp::socket::tcp::State::Closed, "RST, not FIN");
    assert_eq!(world.engine.tcp_flows(), 0);
    assert!(!world.is_open(socket));
}

/// conformance 41: what came before the end is delivered, the loss of the rest is shown.
#[test]
fn a_broken_upload_ends_in_a_reset_only_after_the_download() {
    let (mut world, app, socket) = engine();
    world.push(socket, b"503 go away");
    let now = world.now;
    world.engine.handle_write_error(socket, SocketError::Reset, now);
    world.settle();
    assert_eq!(world.read(app), b"503 go away");
    world.push_eof(socket);
    world.tcp(app).send_slice(b"more that nobody will read").expect("send");
    world.settle();
    assert_eq!(world.engine.tcp_flows(), 0, "not left half open");
    assert_eq!(world.tcp(app).state(), smoltcp::socket::tcp::State::Closed);
}

/// conformance 42
#[test]
fn a_fin_ahead_of_a_gap_counts_when_the_gap_is_filled() {
    both(|family| {
        let mut peer = Peer::new(family).with_sack().open();
        let start = peer.snd_nxt;
        let ahead = peer.seg().seq(start + 100).data(&text(100, 100)).flags(FIN | ACK);
        peer.feed(&ahead);
        assert_eq!(peer.take_one().ack, start);
        let bare = peer.seg().seq(start + 200).flags(FIN | ACK);
        peer.feed(&bare);
        peer.take();
        assert!(!peer.tcp().recv_finished());
        let rest = peer.seg().data(&text(0, 100));
        peer.feed(&rest);
        assert_eq!(peer.take_one().ack, start + 201);
        assert_eq!(peer.received, text(0, 200));
        assert!(peer.tcp().recv_finished());
    });
}

/// conformance 42
#[test]
fn a_repeated_fin_is_acknowledged_each_time_and_nothing_is_taken_behind_it() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        let fin = peer.seg().flags(FIN | ACK).data(b"end");
        peer.feed(&fin);
        peer.snd_nxt += 4;
        assert_eq!(acknowledged_late(&mut peer), peer.snd_nxt);
        for _ in 0..3 {
            assert!(peer.give(&fin).is_err());
            assert_eq!(peer.take_one().ack, peer.snd_nxt);
        }
        let behind = peer.seg().data(b"behind the end");
        peer.feed(&behind);
        assert_eq!(peer.take_one().ack, peer.snd_nxt);
        assert_eq!(peer.received, b"end");
    });
}

/// conformance 42: a FIN ends the stream where it was first seen.
#[test]
fn text_that_claims_to_lie_behind_a_fin_is_not_delivered() {
    both(|family| {
        let mut peer = Peer::new(family).with_sack().open();
        let start = peer.snd_nxt;
        let fin = peer.seg().seq(start + 10).flags(FIN | ACK);
        peer.feed(&fin);
        let beyond = peer.seg().data(&text(0, 100));
        peer.feed(&beyond);
        assert_eq!(peer.received, text(0, 10));
        assert!(peer.tcp().recv_finished());
        assert_eq!(peer.take().last().expect("acknowledged").ack, start + 11);

        // Text ahead of a gap, and then a FIN in front of it: the app contradicts itself, the stream is what came first.
        let mut peer = Peer::new(family).with_sack().open();
        let start = peer.snd_nxt;
        let ahead = peer.seg().seq(start + 50).data(&text(50, 50));
        peer.feed(&ahead);
        let fin = peer.seg().seq(start + 10).flags(FIN | ACK);
        peer.feed(&fin);
        let rest = peer.seg().data(&text(0, 50));
        peer.feed(&rest);
        assert_eq!(peer.received, text(0, 100));
        assert!(!peer.tcp().recv_finished());
        peer.snd_nxt += 100;
        send_fin(&mut peer);
        assert!(peer.tcp().recv_finished());
    });
}

/// conformance 42
#[test]
fn both_sides_closing_at_once_end_in_time_wait() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        peer.shutdown();
        let ours = peer.take_one();
        // The app's FIN crosses: it does not acknowledge ours (CLOSING).
        send_fin(&mut peer);
        let answer = peer.take_one();
        assert_eq!((answer.ack, answer.flags.contains(FIN)), (peer.snd_nxt, false));
        assert_eq!(peer.closed(), None);
        ack_fin(&mut peer, &ours);
        assert_eq!(peer.closed(), Some(Closed::Finished));
        // TIME-WAIT: a repeated FIN is acknowledged.
        peer.wait(secs(1));
        let again = peer.seg().seq(peer.snd_nxt - 1).flags(FIN | ACK);
        assert!(peer.give(&again).is_err());
        assert_eq!(peer.take_one().ack, peer.snd_nxt);
        peer.wait(secs(300));
        assert_eq!(peer.give(&again), Err(DropReason::NoFlow), "forgotten after 2 MSL");
    });
}

/// conformance 42
#[test]
fn a_lost_fin_is_sent_again_and_last_ack_ends_without_time_wait() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        send_fin(&mut peer);
        peer.take();
        peer.shutdown();
        let fin = peer.take_one();
        let again = peer.wait(secs(4));
        assert!(!again.is_empty() && again.iter().all(|(_, s)| s.flags.contains(FIN) && s.seq == fin.seq));
        ack_fin(&mut peer, &fin);
        assert_eq!(peer.closed(), Some(Closed::Finished));
        let after = peer.seg();
        assert_eq!(peer.give(&after), Err(DropReason::NoFlow), "the app closed first: no TIME-WAIT here");
    });
}

/// conformance 42: whatever the order, one `Closed` and nothing left.
#[test]
fn every_order_of_closing_ends_in_closed_without_a_leak() {
    use proptest::prelude::*;
    let steps = proptest::collection::vec(0u8..6, 0..20);
    proptest!(ProptestConfig::with_cases(300), |(v6: bool, steps in steps, window in prop_oneof![Just(0u16), Just(1), Just(u16::MAX)])| {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let mut peer = Peer::new(family).like_a_kernel().open();
        let (mut fin_sent, mut shut) = (false, false);
        let start = peer.snd_nxt;
        for step in steps {
            if !peer.is_alive() { break; }
            match step {
                0 if !fin_sent => peer.say(b"upload"),
                1 if !fin_sent => { send_fin(&mut peer); fin_sent = true; }
                2 if !shut => { peer.write(b"download"); }
                3 if !shut => { peer.shutdown(); shut = true; }
                4 => {
                    for segment in peer.take() {
                        let end = segment.end() + u32::from(segment.flags.contains(FIN));
                        if segment.seq.le(peer.rcv_nxt) { peer.rcv_nxt = peer.rcv_nxt.max(end); }
                    }
                    let ack = peer.seg();
                    let _may_be_old = peer.give(&ack);
                }
                _ => {
                    peer.window = window;
                    peer.wait(ms(300));
                }
            }
        }
        // Both come to an end.
        peer.window = u16::MAX;
        for _ in 0..40 {
            if !fin_sent { if peer.is_alive() { send_fin(&mut peer); } fin_sent = true; }
            if !shut { if peer.is_alive() { peer.shutdown(); } shut = true; }
            for (_, segment) in peer.wait(secs(2)) {
                prop_assert!(!segment.flags.rst());
                let end = segment.end() + u32::from(segment.flags.contains(FIN));
                if segment.seq.le(peer.rcv_nxt) { peer.rcv_nxt = peer.rcv_nxt.max(end); }
            }
            if peer.closed().is_none() {
                let ack = peer.seg();
                let _may_be_old = peer.give(&ack);
            }
        }
        peer.wait(secs(600));
        prop_assert_eq!(peer.closed(), Some(Closed::Finished));
        let closings = peer.events.iter().filter(|event| matches!(event, StackEvent::Closed { .. })).count();
        prop_assert_eq!(closings, 1);
        prop_assert_eq!(peer.stack.tcp_flows().count(), 0);
        prop_assert_eq!(peer.received.len() as u32 + 1, peer.snd_nxt.distance_from(start));
        prop_assert_eq!(peer.stack.poll_timeout(), None, "no timer is left");
    });
}

/// A connection in TIME-WAIT, the stack having closed first.
pub fn time_wait(peer: &mut Peer) {
    peer.shutdown();
    let fin = peer.take_one();
    ack_fin(peer, &fin);
    send_fin(peer);
    peer.take_one();
    assert_eq!(peer.closed(), Some(Closed::Finished));
}

/// conformance 43, RFC 1337
#[test]
fn time_wait_ignores_resets_and_old_segments() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        time_wait(&mut peer);
        peer.wait(secs(1));
        for seq in [peer.snd_nxt, peer.snd_nxt - 1] {
            let reset = peer.seg().flags(RST).seq(seq);
            assert_eq!(peer.give(&reset), Err(DropReason::Unacceptable));
            peer.take_nothing();
        }
        let old = peer.syn().seq(peer.snd_nxt - 5_000);
        assert_eq!(peer.give(&old), Err(DropReason::Unacceptable));
        assert_eq!(peer.take_one().ack, peer.snd_nxt, "answered with what is known");
        // Still there: the repeated FIN is acknowledged rather than reset.
        peer.wait(secs(1));
        let fin = peer.seg().seq(peer.snd_nxt - 1).flags(FIN | ACK);
        assert!(peer.give(&fin).is_err());
        assert_eq!(peer.take_one().flags, ACK);
    });
}

/// conformance 43, F6: a kernel that has forgotten the connection resets what comes late.
#[test]
fn a_reset_behind_both_fins_costs_the_slow_reader_nothing() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        peer.room = 0;
        peer.say(b"not yet read");
        peer.shutdown();
        let fin = peer.take_one();
        ack_fin(&mut peer, &fin);
        send_fin(&mut peer);
        peer.take();
        let reset = peer.seg().flags(RST);
        assert_eq!(peer.give(&reset), Err(DropReason::Unacceptable));
        // Longer than a closing connection may idle, since it is not the app that is waited for.
        peer.wait(secs(3_000));
        assert_eq!(peer.closed(), None);
        peer.drain(usize::MAX);
        assert_eq!(peer.received, b"not yet read");
        assert_eq!(peer.closed(), Some(Closed::Finished));
    });
}

/// conformance 43
#[test]
fn a_newer_syn_takes_over_a_connection_in_time_wait_above_its_sequence_numbers() {
    both(|family| {
        for kernel in [false, true] {
            let mut peer = Peer::new(family);
            if kernel {
                peer = peer.like_a_kernel();
            }
            let mut peer = peer.open();
            // Far more octets than the clock of the ISN counts meanwhile.
            peer.transfer(&text(0, 3_000_000));
            time_wait(&mut peer);
            let last = peer.rcv_nxt;
            peer.wait(ms(20));
            peer.snd_nxt = if kernel {
                // By timestamp (RFC 6191).
                peer.syn_options.timestamps = peer
                    .clock
                    .map(|clock| ztun::wire::tcp::Timestamps { value: clock.wrapping_add(100), echo: 0 });
                peer.snd_nxt - 1_000
            } else {
                peer.snd_nxt + 1
            };
            peer.events.clear();
            let answer = peer.half_open();
            assert!(answer.seq.gt(last), "RFC 9293 3.6.1: {:?} behind {last:?}", answer.seq);
            peer.complete();
            peer.received.clear();
            peer.say(b"second life");
            assert_eq!(peer.received, b"second life");
        }
    });
}

/// conformance 44, RFC 5382 REQ-5
#[test]
fn idle_connections_live_two_hours_and_closing_ones_four_minutes() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        assert_eq!(peer.wait(secs(2 * 3600 + 3 * 60)), []);
        peer.say(b"still here");
        assert_eq!(peer.received, b"still here");
        let sent = peer.wait(secs(2 * 3600 + 5 * 60));
        assert_eq!(peer.closed(), Some(Closed::Idle));
        assert!(sent.last().expect("the app is told").1.flags.rst());

        let mut closing = Peer::new(family).open();
        closing.shutdown();
        let fin = closing.take_one();
        ack_fin(&mut closing, &fin);
        closing.wait(secs(4 * 60 - 1));
        assert!(closing.is_alive());
        closing.wait(secs(60));
        assert_eq!(closing.closed(), Some(Closed::Idle));

        let mut half = Peer::new(family);
        half.accepting = false;
        let syn = half.syn();
        half.feed(&syn);
        half.wait(secs(60));
        assert!(half.is_alive(), "a SYN waits for the outbound");
    });
}

/// The configured times are those that hold.
#[test]
fn idle_times_are_configured() {
    let config = TcpConfig { idle: secs(10), time_wait: secs(2), ..TcpConfig::default() };
    let mut peer = Peer::with(Family::V4, StackConfig { tcp: config, ..StackConfig::default() }).open();
    peer.wait(secs(9));
    assert!(peer.is_alive());
    peer.wait(secs(2));
    assert_eq!(peer.closed(), Some(Closed::Idle));
    assert_ne!(peer.iss, SeqNumber(0));
}
