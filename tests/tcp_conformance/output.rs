//! Statements 25 to 38: windows, retransmission, congestion.

use crate::dsl::*;
use ztun::stack::{Closed, DropReason, StackConfig, TcpConfig};
use ztun::time::Duration;
use ztun::wire::SeqNumber;
use ztun::wire::tcp::{TcpOptions, Timestamps};

/// The time of each segment.
fn times(sent: &[(Duration, Seg)]) -> Vec<Duration> {
    sent.iter().map(|(at, _)| *at).collect()
}

/// A peer with data in flight: `count` full segments, none acknowledged. Gives them.
fn in_flight(peer: &mut Peer, count: usize) -> Vec<Seg> {
    let mss = usize::from(1460.min(1500 - peer.family.headers()));
    peer.write(&text(0, mss * count));
    let sent = peer.take();
    assert_eq!(sent.len(), count);
    sent
}

/// conformance 25
#[test]
fn the_right_edge_of_the_window_never_moves_left() {
    both(|family| {
        for (size, scale) in [(1_448, Some(7)), (1, Some(7)), (977, Some(0)), (1_460, None), (33, Some(14))] {
            let mut peer = Peer::new(family).like_a_kernel();
            peer.syn_options.window_scale = scale;
            let answer = peer.half_open();
            peer.complete();
            let shift = answer.options.window_scale.unwrap_or(0);
            let mut edge = answer.ack + u32::from(answer.window);
            peer.room = 0;
            let stream = text(0, 3 << 20);
            let start = peer.snd_nxt;
            for step in 0..2_000u32 {
                let at = peer.snd_nxt.distance_from(start) as usize;
                let room = edge.distance_from(peer.snd_nxt) as usize;
                let len = size.min(room);
                if len > 0 {
                    peer.say(&stream[at..at + len]);
                }
                if step % 64 == 63 {
                    peer.drain(step as usize * 20);
                }
                for segment in peer.take() {
                    let now = segment.ack + (u32::from(segment.window) << shift);
                    assert!(now.ge(edge), "{edge:?} to {now:?} with segments of {size}, step {step}");
                    edge = now;
                }
            }
            peer.drain(usize::MAX);
            assert_eq!(peer.received, stream[..peer.snd_nxt.distance_from(start) as usize]);
        }
    });
}

/// conformance 25
#[test]
fn a_reader_of_single_octets_opens_no_silly_window() {
    both(|family| {
        let config = TcpConfig { receive_buffer: 8_000, ..TcpConfig::default() };
        let mut peer = Peer::with_tcp(family, config).open();
        peer.room = 0;
        peer.say(&text(0, 8_000));
        let mut window = peer.wait(ms(100)).last().map_or(u16::MAX, |(_, segment)| segment.window);
        assert_eq!(window, 0);
        let least = 1460.min(1500 - family.headers());
        for _ in 0..8_000 {
            peer.drain(1);
            for segment in peer.take() {
                assert!(segment.window - window >= least, "from {window} to {}", segment.window);
                window = segment.window;
            }
        }
        assert!(window >= 4_000, "it was told of the room: {window}");
    });
}

/// conformance 26
#[test]
fn a_stalled_reader_closes_the_window_within_its_buffer_and_opens_it_when_drained() {
    both(|family| {
        let limit = 100_000;
        let config = TcpConfig { receive_buffer: limit, ..TcpConfig::default() };
        let mut peer = Peer::with_tcp(family, config).like_a_kernel().open();
        peer.room = 0;
        let shift = {
            let mut other =
                Peer::with_tcp(family, TcpConfig { receive_buffer: limit, ..TcpConfig::default() });
            other.syn_options.window_scale = Some(7);
            other.half_open().options.window_scale.expect("offered")
        };
        let start = peer.snd_nxt;
        let mut window = 65_535;
        let stream = text(0, 200_000);
        while window > 0 {
            let at = peer.snd_nxt.distance_from(start) as usize;
            peer.say(&stream[at..at + 1_000.min(window)]);
            let answers = peer.wait(ms(50));
            let last = &answers.last().expect("an acknowledgement").1;
            assert_eq!(last.ack, peer.snd_nxt);
            window = usize::from(last.window) << shift;
            assert!(at <= limit, "the window closes: {at}");
        }
        let stored = peer.snd_nxt.distance_from(start) as usize;
        assert!(stored <= limit && stored > limit / 2, "{stored}");
        // Probes, for hours.
        for _ in 0..20 {
            assert_eq!(peer.wait(secs(600)), []);
            let probe = peer.seg().data(&stream[stored..stored + 1]);
            peer.feed(&probe);
            let answer = peer.take_one();
            assert_eq!((answer.ack, answer.window), (peer.snd_nxt, 0));
        }
        peer.drain(usize::MAX);
        let update = peer.take_one();
        assert!(usize::from(update.window) << shift > limit / 2, "{update:?}");
        peer.say(&stream[stored..stored + 1_000]);
        assert_eq!(peer.received, stream[..stored + 1_000]);
    });
}

/// conformance 27
#[test]
fn a_zero_window_is_probed_with_growing_pauses_for_as_long_as_the_app_answers() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        peer.window = 0;
        let shut = peer.seg();
        peer.feed(&shut);
        let stream = text(0, 30_000);
        peer.write(&stream);
        assert!(peer.take().is_empty(), "nothing beyond the window");
        let mut pauses = Vec::new();
        let (mut pause, mut elapsed) = (Duration::ZERO, Duration::ZERO);
        while elapsed < secs(8 * 3600) {
            let probes = peer.wait(ms(100));
            pause += ms(100);
            elapsed += ms(100);
            if let Some((_, probe)) = probes.first() {
                assert!(probe.seq.le(peer.rcv_nxt) && probe.data.len() <= 1, "{probe:?}");
                assert_eq!(probes.len(), 1, "one probe at a time");
                pauses.push(std::mem::take(&mut pause));
                let still_shut = peer.seg();
                peer.feed(&still_shut);
                peer.take_nothing();
            }
            assert!(peer.is_alive());
        }
        assert!(pauses[0] <= ms(1_100), "after the RTO: {pauses:?}");
        assert!(pauses.windows(2).take(12).all(|pair| pair[1] + ms(200) >= pair[0]), "{pauses:?}");
        assert!(pauses[8] >= secs(50) && pauses.iter().all(|pause| *pause <= secs(61)), "{pauses:?}");
        // The app reads again: the octets flow at once, not after the pause.
        peer.window = 0xffff;
        let open = peer.seg();
        peer.feed(&open);
        let mut got = 0;
        for _ in 0..20 {
            let segments: Vec<Seg> = peer.wait(ms(10)).into_iter().map(|(_, segment)| segment).collect();
            for segment in segments {
                let skip = peer.rcv_nxt.distance_from(segment.seq) as usize;
                assert!(segment.seq.le(peer.rcv_nxt), "nothing is missing in between");
                if skip < segment.data.len() {
                    assert_eq!(segment.data[skip..], stream[got..got + segment.data.len() - skip]);
                    got += segment.data.len() - skip;
                    peer.rcv_nxt = segment.end();
                }
            }
            let ack = peer.seg();
            peer.feed(&ack);
        }
        assert_eq!(got, stream.len(), "everything within 200 ms");
    });
}

/// conformance 27, 33: where probes are a minute apart, R2 passes between two of them.
#[test]
fn a_few_lost_probes_do_not_end_a_connection_whose_window_is_closed() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        peer.window = 0;
        let shut = peer.seg();
        peer.feed(&shut);
        peer.write(b"patience");
        for round in 0..40 {
            peer.wait(secs(if round < 12 { 60 } else { 200 }));
            assert!(peer.is_alive(), "{:?}", peer.closed());
            let still_shut = peer.seg();
            peer.feed(&still_shut);
            peer.take();
        }
        // An app that says nothing at all is given up in the end.
        peer.wait(secs(1_000));
        assert_eq!(peer.closed(), Some(Closed::TimedOut));
    });
}

/// conformance 27: the octet of the probe is not lost sight of when the window opens without it.
#[test]
fn a_short_rest_behind_a_probe_is_sent_when_the_window_opens() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        peer.window = 0;
        let shut = peer.seg();
        peer.feed(&shut);
        peer.write(b"short rest");
        for _ in 0..6 {
            peer.wait(secs(70));
            let still_shut = peer.seg();
            peer.feed(&still_shut);
        }
        peer.take();
        peer.window = 0xffff;
        let open = peer.seg();
        peer.feed(&open);
        let mut sent: Vec<Seg> = peer.take();
        sent.extend(peer.wait(ms(300)).into_iter().map(|(_, segment)| segment));
        let first = sent.iter().find(|segment| segment.seq == peer.rcv_nxt);
        assert!(
            first.is_some_and(|segment| !segment.data.is_empty()),
            "the first octet comes soon: {sent:?}"
        );
        assert!(sent.iter().any(|segment| segment.end() == peer.rcv_nxt + 10));
    });
}

/// conformance 28
#[test]
fn a_window_that_shrinks_below_what_is_in_flight_loses_nothing() {
    both(|family| {
        for shrunk in [0u16, 1, 500, 3_000] {
            let mut peer = Peer::new(family).with_sack().open();
            let sent = in_flight(&mut peer, 8);
            let end = sent[7].end();
            peer.window = shrunk;
            let shrink = peer.seg();
            peer.feed(&shrink);
            peer.write(b"new");
            assert!(peer.take().iter().all(|segment| segment.seq.lt(end)), "no new data beyond the window");
            // Kernels drop what lies beyond; what is inside comes again and is acknowledged.
            let edge = peer.rcv_nxt + u32::from(shrunk);
            let mut inside = false;
            for _ in 0..10 {
                for (_, segment) in peer.wait(secs(20)) {
                    inside |= segment.seq == peer.rcv_nxt && !segment.data.is_empty();
                    if segment.seq == peer.rcv_nxt && segment.end().le(edge) {
                        peer.rcv_nxt = segment.end();
                    }
                    peer.window = edge.distance_from(peer.rcv_nxt) as u16;
                    let ack = peer.seg();
                    peer.feed(&ack);
                }
            }
            assert!(inside, "what is not acknowledged comes again, at {shrunk}");
            assert!(peer.is_alive(), "200 s without progress end nothing while the app answers");
            peer.window = 0xffff;
            let open = peer.seg();
            peer.feed(&open);
            for _ in 0..100 {
                for (_, segment) in peer.wait(ms(100)) {
                    if segment.seq.le(peer.rcv_nxt) && segment.end().gt(peer.rcv_nxt) {
                        peer.rcv_nxt = segment.end();
                    }
                    let ack = peer.seg();
                    peer.feed(&ack);
                }
            }
            assert_eq!(peer.rcv_nxt, end + 3, "everything arrives in the end, at {shrunk}");
        }
    });
}

/// conformance 29
#[test]
fn windows_are_scaled_only_when_both_syns_say_so() {
    both(|family| {
        // Without the option nothing is scaled.
        let mut plain = Peer::new(family);
        assert_eq!(plain.half_open().options.window_scale, None);
        plain.complete();
        plain.window = 1_000;
        let window = plain.seg();
        plain.feed(&window);
        plain.write(&text(0, 8_000));
        assert_eq!(plain.take().iter().map(|segment| segment.data.len()).sum::<usize>(), 1_000);

        // A shift above 14 counts as 14; the window of the SYN itself is not scaled.
        for (shift, counts) in [(0u8, 0u8), (1, 1), (14, 14), (15, 14), (255, 14)] {
            let mut peer = Peer::new(family).like_a_kernel();
            peer.syn_options.window_scale = Some(shift);
            peer.window = 2_000;
            let answer = peer.half_open();
            assert!(answer.options.window_scale.is_some_and(|ours| ours <= 14));
            assert_eq!(answer.window, u16::MAX, "not scaled in the SYN-ACK");
            peer.window = 1;
            peer.complete();
            peer.write(&text(0, 30_000));
            let sent: usize = peer.take().iter().map(|segment| segment.data.len()).sum();
            let allowed = 1usize << counts;
            assert!(sent <= allowed && sent * 2 > allowed.min(14_000), "{sent} of {allowed}, shift {shift}");
        }
    });
}

/// conformance 30
#[test]
fn timestamps_are_in_every_segment_once_negotiated_and_echo_by_the_rule() {
    both(|family| {
        let mut plain = Peer::new(family);
        assert_eq!(plain.half_open().options.timestamps, None);
        plain.complete();
        plain.write(b"x");
        assert_eq!(plain.take_one().options.timestamps, None);

        let mut peer = Peer::new(family).like_a_kernel();
        let answer = peer.half_open();
        assert_eq!(answer.options.timestamps.expect("offered").echo, 0xffff_ff00);
        peer.complete();
        let ours = |segment: &Seg| segment.options.timestamps.expect("in every segment");
        peer.write(b"data");
        let data = peer.take_one();
        assert_eq!(ours(&data).echo, 0xffff_ff00);
        peer.ack(data.end());
        // The echo is of the segment that the acknowledgement answers first (RFC 7323 4.3), across the wrap.
        let start = peer.snd_nxt;
        for (n, clock) in [(0u32, 0xffff_fff0u32), (1, 5), (2, 9)] {
            peer.clock = Some(clock);
            let segment = peer.seg().seq(start + 100 * n).data(&text(0, 100));
            peer.snd_nxt += 100;
            peer.feed(&segment);
        }
        let delayed = peer.wait(ms(200));
        assert_eq!(delayed.len(), 1);
        assert_eq!(ours(&delayed[0].1).echo, 0xffff_fff0, "the earliest that is not acknowledged");
        // Out of order does not count.
        peer.clock = Some(50);
        let ahead = peer.seg().seq(peer.snd_nxt + 100).data(b"ahead");
        peer.feed(&ahead);
        let duplicate = peer.take_one();
        assert_ne!(ours(&duplicate).echo, 50);
        // Its own clock goes on.
        let before = ours(&duplicate).value;
        peer.wait(secs(3));
        peer.write(b"later");
        let later = ours(&peer.take_one()).value.wrapping_sub(before);
        assert!((2_900..3_100).contains(&later) || (290..310).contains(&later), "ticks in 3 s: {later}");
    });
}

/// conformance 30: PAWS.
#[test]
fn an_old_or_missing_timestamp_drops_a_segment_and_never_a_reset() {
    both(|family| {
        let mut peer = Peer::new(family).like_a_kernel().open();
        peer.clock = Some(1_000);
        peer.say(b"new");
        peer.wait(secs(1));
        let old = peer.seg().timestamps(999, peer.echo).data(b"old duplicate");
        assert_eq!(peer.give(&old), Err(DropReason::Paws));
        let answer = peer.take_one();
        assert!(answer.is_bare_ack() && answer.ack == peer.snd_nxt);
        let missing = peer.seg().options(TcpOptions::default()).data(b"without");
        assert_eq!(peer.give(&missing), Err(DropReason::Paws));
        peer.take_nothing();
        assert!(peer.is_alive());
        assert_eq!(peer.received, b"new");
        // After 24 days of silence the clock may have wrapped (RFC 7323 5.5).
        let mut silent =
            Peer::with_tcp(family, TcpConfig { idle: secs(90 * 24 * 3600), ..TcpConfig::default() })
                .like_a_kernel()
                .open();
        silent.wait(secs(25 * 24 * 3600));
        let wrapped = silent.seg().timestamps(5, silent.echo).data(b"wrapped");
        silent.feed(&wrapped);
        assert_eq!(silent.received, b"wrapped");

        let reset = peer.seg().flags(RST).timestamps(1, 0);
        peer.feed(&reset);
        assert_eq!(peer.closed(), Some(Closed::Reset));
    });
}

/// conformance 31
#[test]
fn sack_blocks_are_sent_only_when_permitted_newest_first() {
    both(|family| {
        let mut plain = Peer::new(family).open();
        let ahead = plain.seg().seq(plain.snd_nxt + 100).data(b"ahead");
        plain.feed(&ahead);
        assert!(plain.take_one().options.sack.is_empty());

        let mut peer = Peer::new(family).like_a_kernel().open();
        let start = peer.snd_nxt;
        for at in [100, 500, 300, 700] {
            let ahead = peer.seg().seq(start + at).data(&text(at as usize, 50));
            peer.feed(&ahead);
            let blocks = peer.take_one().options.sack;
            assert_eq!(blocks.as_slice()[0], (start + at, start + at + 50), "the newest first");
        }
        // A segment that joins two stretches: the block is the whole of them.
        let joins = peer.seg().seq(start + 350).data(&text(350, 150));
        peer.feed(&joins);
        assert_eq!(peer.take_one().options.sack.as_slice()[0], (start + 300, start + 550));
    });
}

/// conformance 31
#[test]
fn what_the_app_sacked_and_then_forgot_is_sent_again() {
    both(|family| {
        let mut peer = Peer::new(family).with_sack().open();
        let sent = in_flight(&mut peer, 4);
        let sack = peer.seg().sack(&[(sent[1].seq, sent[3].end())]);
        peer.feed(&sack);
        let mut missing: Vec<SeqNumber> = peer.take().iter().map(|segment| segment.seq).collect();
        // The app reneges: it acknowledges the first and claims nothing else.
        peer.rcv_nxt = sent[0].end();
        let renege = peer.seg();
        peer.feed(&renege);
        missing.extend(peer.wait(secs(3)).iter().map(|(_, segment)| segment.seq));
        for segment in &sent[1..] {
            if segment.seq == peer.rcv_nxt {
                assert!(missing.contains(&segment.seq), "{missing:?}");
            }
        }
        for _ in 0..10 {
            for (_, segment) in peer.wait(secs(1)) {
                if segment.seq == peer.rcv_nxt {
                    peer.rcv_nxt = segment.end();
                    let ack = peer.seg();
                    peer.feed(&ack);
                }
            }
        }
        assert_eq!(peer.rcv_nxt, sent[3].end());
    });
}

/// conformance 31: blocks of an app that was not allowed to send them.
#[test]
fn sack_blocks_that_were_not_negotiated_are_ignored() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        let sent = in_flight(&mut peer, 5);
        let sack = peer.seg().sack(&[(sent[1].seq, sent[4].end())]);
        peer.feed(&sack);
        peer.take_nothing();
    });
}

/// conformance 32
#[test]
fn the_retransmission_timer_doubles_and_starts_anew_after_an_acknowledgement() {
    both(|family| {
        let config = TcpConfig { rto_min: secs(1), ..TcpConfig::default() };
        let mut peer = Peer::with_tcp(family, config).open();
        peer.write(b"lost");
        let first = peer.take_one();
        let sent = peer.wait(secs(16));
        assert_eq!(times(&sent), [secs(1), secs(3), secs(7), secs(15)]);
        assert!(sent.iter().all(|(_, segment)| segment.seq == first.seq && segment.data == b"lost"));
        peer.ack(first.end());
        peer.write(b"lost too");
        peer.take_one();
        let pause = times(&peer.wait(secs(4)))[0];
        assert!(pause <= ms(1_500), "not backed off any more: {pause:?}");
    });
}

/// conformance 32: Karn's algorithm.
#[test]
fn an_acknowledgement_of_a_retransmission_tells_nothing_about_the_round_trip() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        // Two more segments arrive behind a lost one; a second later its repetition fills the gap.
        let sent = in_flight(&mut peer, 3);
        for _ in 0..2 {
            let duplicate = peer.seg();
            peer.feed(&duplicate);
        }
        let again = peer.wait(secs(2));
        assert!(again.iter().any(|(_, segment)| segment.seq == sent[0].seq));
        peer.ack(sent[2].end());
        peer.take_nothing();
        peer.write(b"next");
        peer.take_one();
        let pause = times(&peer.wait(secs(10)))[0];
        assert!(pause <= ms(1_000), "the timer is not fooled by the wait: {pause:?}");
    });
}

/// conformance 33
#[test]
fn a_connection_is_given_up_only_after_r2_and_both_sides_are_told() {
    both(|family| {
        for idle in [Duration::ZERO, secs(3_600)] {
            let mut peer = Peer::new(family).open();
            peer.wait(idle);
            peer.write(b"into the void");
            peer.take_one();
            let sent = peer.wait(secs(100));
            assert!(peer.is_alive(), "100 s are not over (after {idle:?} of idleness)");
            assert!(sent.len() > 3, "sent again meanwhile");
            let sent = peer.wait(secs(300));
            assert_eq!(peer.closed(), Some(Closed::TimedOut));
            let last = &sent.last().expect("the app is told").1;
            assert!(last.flags.rst() && last.seq.ge(peer.rcv_nxt), "{last:?}");
            assert!(!peer.is_alive());
        }
    });
}

/// conformance 33
#[test]
fn an_unanswered_syn_ack_is_repeated_for_three_minutes() {
    both(|family| {
        let mut peer = Peer::new(family);
        let first = peer.half_open();
        let sent = peer.wait(secs(179));
        assert!(peer.is_alive());
        assert!(times(&sent).starts_with(&[secs(1), secs(3), secs(7)]), "{:?}", times(&sent));
        assert!(sent.iter().all(|(_, segment)| (segment.seq, segment.flags) == (first.seq, SYN | ACK)));
        peer.wait(secs(200));
        assert_eq!(peer.closed(), Some(Closed::TimedOut));
        assert!(!peer.is_alive());
    });
}

/// conformance 34
#[test]
fn three_duplicate_acknowledgements_bring_the_missing_segment_and_a_partial_one_the_next() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        let sent = in_flight(&mut peer, 8);
        for n in 1..=3 {
            let duplicate = peer.seg();
            peer.feed(&duplicate);
            if n < 3 {
                peer.take_nothing();
            }
        }
        assert_eq!(peer.take()[0].seq, sent[0].seq, "fast retransmit");
        peer.ack(sent[2].end());
        assert!(peer.take().iter().any(|segment| segment.seq == sent[3].seq), "partial acknowledgement");
        peer.ack(sent[7].end());
        assert_eq!(peer.stack.stats().timeouts, 0);
        assert_eq!(peer.tcp().send_queue(), 0);
    });
}

/// conformance 34
#[test]
fn holes_between_sack_blocks_are_filled_without_a_time_out() {
    both(|family| {
        let mut peer = Peer::new(family).with_sack().open();
        let sent = in_flight(&mut peer, 10);
        let blocks =
            [(sent[1].seq, sent[2].end()), (sent[4].seq, sent[5].end()), (sent[7].seq, sent[9].end())];
        for count in 1..=3 {
            let sack = peer.seg().sack(&blocks[..count]);
            peer.feed(&sack);
        }
        let mut again: Vec<SeqNumber> = peer.take().iter().map(|segment| segment.seq).collect();
        again.extend(peer.wait(ms(100)).iter().map(|(_, segment)| segment.seq));
        for hole in [0, 3, 6] {
            assert!(again.contains(&sent[hole].seq), "hole {hole}: {again:?}");
        }
        for there in [1, 2, 4, 5, 7, 8, 9] {
            assert!(!again.contains(&sent[there].seq), "{there} has arrived");
        }
        assert_eq!(peer.stack.stats().timeouts, 0);
    });
}

/// conformance 35
#[test]
fn a_lost_tail_is_found_by_a_probe_before_the_retransmission_timer() {
    both(|family| {
        let mut peer = Peer::new(family).like_a_kernel();
        peer.half_open();
        peer.wait(ms(10));
        peer.complete();
        let sent = in_flight_with_timestamps(&mut peer, 4);
        peer.wait(ms(10));
        peer.rcv_nxt = sent[2].end();
        let ack = peer.seg();
        peer.feed(&ack);
        let probes = peer.wait(ms(150));
        assert_eq!(probes.len(), 1, "{probes:?}");
        assert_eq!(probes[0].1.seq, sent[3].seq);
        assert_eq!(peer.stack.stats().timeouts, 0);
    });
}

fn in_flight_with_timestamps(peer: &mut Peer, count: usize) -> Vec<Seg> {
    let mss = usize::from(1460.min(1500 - peer.family.headers())) - 12;
    peer.write(&text(0, mss * count));
    let sent = peer.take();
    assert_eq!(sent.len(), count);
    sent
}

/// conformance 36
#[test]
fn after_a_time_out_one_segment_is_in_flight_and_never_more_than_both_windows_allow() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        let mss = u32::from(1460.min(1500 - family.headers()));
        let stream = text(0, 30_000);
        let written = peer.write(&stream);
        let sent = peer.take();
        let flight: usize = sent.iter().map(|segment| segment.data.len()).sum();
        assert!(flight <= 10 * mss as usize, "the initial window (RFC 6928): {flight}");
        let again = peer.wait(ms(300));
        assert_eq!(again.len(), 1, "one segment after the time-out");
        assert_eq!(again[0].1.seq, sent[0].seq);
        // Slow start from one segment: each acknowledgement brings at most two.
        peer.ack(sent[0].end());
        assert!(peer.take().len() <= 2);
        let mut small = Peer::new(family).open();
        small.window = 3_000;
        let window = small.seg();
        small.feed(&window);
        small.write(&stream);
        assert!(small.take().iter().all(|segment| segment.end().le(small.rcv_nxt + 3_000)));
        assert!(written >= flight);
    });
}

/// conformance 37
#[test]
fn the_last_segment_of_what_is_buffered_has_psh_and_nothing_waits_for_more() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        peer.write(&text(0, 5_000));
        let sent = peer.take();
        let (last, others) = sent.split_last().expect("segments");
        assert!(last.flags.contains(PSH) && others.iter().all(|segment| !segment.flags.contains(PSH)));
        peer.ack(last.end());
        // A small rest leaves although nothing follows and something is in flight.
        peer.write(b"a");
        assert_eq!(peer.take_one().data, b"a");
        peer.write(b"b");
        let sent: Vec<Seg> =
            peer.take().into_iter().chain(peer.wait(ms(200)).into_iter().map(|(_, s)| s)).collect();
        assert!(sent.iter().any(|segment| segment.data.ends_with(b"b")), "{sent:?}");
        // What comes in is passed on at once, PSH or not.
        peer.say(b"no push");
        assert_eq!(peer.received, b"no push");
    });
}

/// conformance 38
#[test]
fn streams_cross_two_to_the_31_and_two_to_the_32_in_each_direction() {
    both(|family| {
        for edge in [0u32, 1 << 31] {
            for before in [1u32, 2, 3, 70_000] {
                let mut peer = Peer::with_iss(family, StackConfig::default(), SeqNumber(edge) - before);
                peer.snd_nxt = SeqNumber(edge) - before;
                let mut peer = peer.like_a_kernel().open();
                assert_eq!(peer.iss, SeqNumber(edge) - before, "the ISS is forced");
                let stream = text(0, 200_000);
                for chunk in stream.chunks(1_400) {
                    // Every other segment in two pieces, the second first.
                    let (a, b) = chunk.split_at(chunk.len() / 2);
                    let ahead = peer.seg().seq(peer.snd_nxt + a.len() as u32).data(b);
                    peer.feed(&ahead);
                    peer.say(a);
                    peer.snd_nxt += b.len() as u32;
                    peer.take();
                }
                assert_eq!(peer.received, stream);
                peer.transfer(&stream);
                assert!(peer.snd_nxt.0 < 1 << 31 || edge != 0);
            }
        }
    });
}

/// conformance 38: retransmission and SACK across the edge.
#[test]
fn loss_is_repaired_across_the_wrap() {
    both(|family| {
        for edge in [0u32, 1 << 31] {
            let mut peer =
                Peer::with_iss(family, StackConfig::default(), SeqNumber(edge) - 4_000).with_sack().open();
            let sent = in_flight(&mut peer, 8);
            assert!(sent[0].seq.lt(SeqNumber(edge)) && sent[7].seq.gt(SeqNumber(edge)));
            let sack = peer.seg().sack(&[(sent[4].seq, sent[7].end()), (sent[1].seq, sent[2].end())]);
            peer.feed(&sack);
            let again: Vec<SeqNumber> = peer.wait(ms(100)).iter().map(|(_, segment)| segment.seq).collect();
            assert!(again.contains(&sent[0].seq) && again.contains(&sent[3].seq), "{again:?}");
            assert!(!again.contains(&sent[1].seq) && !again.contains(&sent[6].seq), "{again:?}");
            peer.ack(sent[7].end());
            assert_eq!(peer.tcp().send_queue(), 0);
        }
    });
}

/// RFC 7323 4.2: the value sent is the clock's, echoed values do not disturb it.
#[test]
fn an_absurd_echo_does_not_disturb_the_timer() {
    both(|family| {
        let mut peer = Peer::new(family).like_a_kernel().open();
        peer.write(b"data");
        let data = peer.take_one();
        peer.rcv_nxt = data.end();
        let absurd = peer.seg().options(TcpOptions {
            timestamps: Some(Timestamps { value: 0xffff_ff10, echo: 0x1234_5678 }),
            ..TcpOptions::default()
        });
        peer.feed(&absurd);
        peer.write(b"more");
        peer.take_one();
        assert!(!peer.wait(ms(1_500)).is_empty(), "the retransmission timer is sane");
    });
}
