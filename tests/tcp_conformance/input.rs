//! Statements 1 to 24: segments that arrive.

use crate::dsl::*;
use ztun::stack::{
    Closed, DropReason, Offload, OffloadLevel, Packet, Refusal, StackConfig, StackEvent, TcpConfig,
};
use ztun::time::Instant;
use ztun::wire::SeqNumber;
use ztun::wire::tcp::{TcpFlags, TcpOptions};

/// conformance 1
#[test]
fn a_wrong_or_zero_checksum_is_dropped_without_state_or_reply() {
    both(|family| {
        for wrong in [0u16, 0xffff, 0x1234] {
            let mut peer = Peer::new(family);
            let at = usize::from(family.headers()) - 20;
            let mut syn = peer.syn().octets();
            syn[at + 16..at + 18].copy_from_slice(&wrong.to_be_bytes());
            assert_eq!(peer.give_octets(&syn), Err(DropReason::BadChecksum));
            assert_eq!((peer.events.len(), peer.stack.tcp_flows().count()), (0, 0));
            peer.take_nothing();

            let mut peer = peer.open();
            let mut data = peer.seg().data(b"forged").octets();
            let last = data.len() - 1;
            data[last] ^= 1;
            assert_eq!(peer.give_octets(&data), Err(DropReason::BadChecksum));
            peer.take_nothing();
            peer.say(b"genuine");
            assert_eq!(peer.received, b"genuine");
        }
    });
}

/// conformance 1: NEEDS_CSUM and DATA_VALID are the device's word.
#[test]
fn a_checksum_that_the_device_vouches_for_is_not_verified() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        let mut data = peer.seg().data(b"partial").octets();
        let at = usize::from(family.headers()) - 20;
        data[at + 16..at + 18].fill(0);
        peer.give_packet(Packet { octets: &data, verify_checksum: false, segment_size: 0 }).expect("taken");
        assert_eq!(peer.received, b"partial");
    });
}

/// conformance 2
#[test]
fn illegal_option_lengths_and_data_offsets_hurt_nobody() {
    both(|family| {
        let illegal: [&[u8]; 8] = [
            &[2, 0, 1, 1],
            &[2, 1, 1, 1],
            &[2, 255, 1, 1],
            &[254, 41, 0, 0],
            &[1, 1, 1, 2],
            &[8, 0, 0, 0],
            &[5, 2, 5, 3],
            &[3, 4, 200, 200],
        ];
        let mut peer = Peer::new(family).open();
        for options in illegal {
            let segment = peer.seg().raw_options(options).data(b"x");
            peer.snd_nxt += 1;
            peer.feed(&segment);
        }
        assert_eq!(peer.received, b"xxxxxxxx");
        let at = usize::from(family.headers()) - 20;
        for offset in (0..5).chain(8..16) {
            let mut octets = peer.seg().data(b"12345678").octets();
            octets[at + 12] = offset << 4;
            sum(&mut octets, at);
            assert_eq!(peer.give_octets(&octets), Err(DropReason::BadTcp), "data offset {offset}");
        }
        for options in illegal {
            let mut other = Peer::new(family);
            let syn = other.syn().raw_options(options);
            other.feed(&syn);
            assert_eq!(other.take_one().flags, SYN | ACK);
        }
        peer.say(b"alive");
        assert_eq!(peer.received, b"xxxxxxxxalive");
        assert!(peer.is_alive());
    });
}

/// conformance 3
#[test]
fn unknown_unaligned_and_late_options_are_ignored() {
    both(|family| {
        let mut peer = Peer::new(family);
        // Unknown kinds, then window scale at an odd place; what stands behind the end of the list does not count.
        let mut syn = peer.syn().raw_options(&[254, 5, 1, 2, 3, 1, 3, 3, 4, 30, 2, 0, 4, 2, 0, 0]);
        syn.options = TcpOptions { mss: Some(1000), ..TcpOptions::default() };
        peer.feed(&syn);
        let answer = peer.take_one();
        assert!(answer.options.window_scale.is_some(), "read at an odd place");
        assert!(!answer.options.sack_permitted, "SACK permitted stood behind the end of the list");

        let mut peer = Peer::new(family).open();
        let mss = peer.transfer(&text(0, 6_000))[0].data.len();
        let late = peer.seg().data(b"late").options(TcpOptions {
            mss: Some(100),
            window_scale: Some(9),
            sack_permitted: true,
            ..TcpOptions::default()
        });
        peer.snd_nxt += 4;
        peer.feed(&late);
        peer.window = 100;
        let segment = peer.seg();
        peer.feed(&segment);
        assert_eq!(peer.received, b"late");
        peer.write(&text(0, 3_000));
        let sent: usize = peer.take().iter().map(|segment| segment.data.len()).sum();
        assert_eq!(sent, 100, "the window is not scaled by a late option");
        peer.rcv_nxt += 100;
        peer.window = 0xffff;
        let segment = peer.seg();
        peer.feed(&segment);
        assert_eq!(peer.take()[0].data.len(), mss, "MSS of a later segment is ignored");
    });
}

/// conformance 4
#[test]
fn segments_fit_the_mss_of_the_app_and_the_mtu_less_the_options() {
    both(|family| {
        let own = 1500 - family.headers();
        let default = if family == Family::V4 { 536 } else { 1220 };
        for (theirs, most) in [(None, default), (Some(1000), 1000), (Some(9000), own), (Some(u16::MAX), own)]
        {
            for timestamps in [false, true] {
                let mut peer = Peer::new(family).like_a_kernel();
                peer.syn_options.mss = theirs;
                if !timestamps {
                    peer.syn_options.timestamps = None;
                }
                let answer = peer.half_open();
                assert_eq!(answer.options.mss, Some(own));
                peer.complete();
                let most = usize::from(most) - if timestamps { 12 } else { 0 };
                let sent = peer.transfer(&text(0, 20_000));
                assert_eq!(sent.iter().map(|segment| segment.data.len()).max(), Some(most), "{theirs:?}");
                assert!(sent.iter().all(|segment| segment.packet <= 1500));
            }
        }
    });
}

/// conformance 5, CVE-2019-11479
#[test]
fn a_tiny_mss_is_no_storm_of_headers() {
    both(|family| {
        for mss in [0, 1, 8] {
            let mut peer = Peer::new(family);
            peer.syn_options.mss = Some(mss);
            let mut peer = peer.open();
            let sent = peer.transfer(&text(0, 64_000));
            assert!(sent.len() <= 1_100, "{} segments for MSS {mss}", sent.len());
        }
    });
}

/// conformance 6
#[test]
fn initial_sequence_numbers_follow_the_clock_for_one_tuple_and_no_rule_across_tuples() {
    both(|family| {
        let iss = |seed: u8, now: Instant, port: u16, remote_port: u16| {
            let mut peer = Peer::at(family, StackConfig::default(), now);
            peer.stack = ztun::stack::Stack::new(StackConfig::default(), [seed; 16]);
            peer.local.port = port;
            peer.remote.port = remote_port;
            peer.half_open().seq
        };
        let start = Instant::from_millis(1);
        let base = iss(1, start, 1000, 80);
        for micros in [4u64, 400, 4_000_000, 3_600_000_000] {
            let later = iss(1, start + ztun::time::Duration::from_micros(micros), 1000, 80);
            assert_eq!(later.distance_from(base), (micros / 4) as u32, "a clock of 4 microseconds");
        }
        // Neighbouring tuples and another boot: no two distances are equal.
        let mut distances: Vec<u32> =
            (1..200).map(|n| iss(1, start, 1000 + n, 80).distance_from(base)).collect();
        distances.extend((1..200).map(|n| iss(1, start, 1000, 80 + n).distance_from(base)));
        distances.extend((2..100).map(|seed| iss(seed, start, 1000, 80).distance_from(base)));
        let count = distances.len();
        distances.sort_unstable();
        distances.dedup();
        assert_eq!(distances.len(), count);
        let upper = distances.iter().filter(|distance| **distance > u32::MAX / 2).count();
        assert!((count / 3..2 * count / 3).contains(&upper), "spread over the circle: {upper} of {count}");
    });
}

/// conformance 7
#[test]
fn data_on_the_syn_is_not_acknowledged_and_is_delivered_once_when_it_comes_again() {
    both(|family| {
        let mut peer = Peer::new(family);
        let syn = peer.syn().data(b"early");
        peer.feed(&syn);
        let answer = peer.take_one();
        let next = peer.snd_nxt + 1;
        assert!(answer.ack == next || answer.ack == next + 5);
        peer.snd_nxt += 1;
        peer.rcv_nxt = answer.seq + 1;
        peer.complete();
        // A kernel sends again what the SYN-ACK did not cover.
        peer.say(b"early");
        peer.say(b" bird");
        assert_eq!(peer.received, b"early bird");
    });
}

/// conformance 8
#[test]
fn scans_leave_no_session_and_a_reset_is_never_answered() {
    both(|family| {
        let xmas = TcpFlags(FIN.0 | PSH.0 | URG.0);
        for flags in [NONE, xmas, SYN | FIN, SYN | RST, SYN | FIN | RST, TcpFlags(0xff), RST, RST | ACK, FIN]
        {
            let mut peer = Peer::new(family);
            let scan = peer.syn().flags(flags);
            assert!(peer.give(&scan).is_err(), "{flags:?}");
            assert_eq!((peer.events.len(), peer.stack.tcp_flows().count()), (0, 0), "{flags:?}");
            let answers = peer.take();
            assert!(answers.iter().all(|answer| answer.flags.rst()), "{flags:?}: {answers:?}");
            assert!(answers.is_empty() || !flags.rst(), "{flags:?}");
        }
    });
}

/// conformance 9
#[test]
fn a_stray_segment_is_answered_with_the_reset_that_its_sender_accepts() {
    both(|family| {
        let mut peer = Peer::new(family);
        let with_ack = peer.seg().ack(SeqNumber(77)).data(b"who are you");
        assert_eq!(peer.give(&with_ack), Err(DropReason::NoFlow));
        let reset = peer.take_one();
        assert_eq!((reset.flags, reset.seq), (RST, SeqNumber(77)));
        assert_eq!((reset.src, reset.dst), (peer.remote, peer.local));

        let syn_ack = peer.seg().flags(SYN | ACK).ack(SeqNumber(78));
        assert_eq!(peer.give(&syn_ack), Err(DropReason::NoFlow));
        assert_eq!(peer.take_one().seq, SeqNumber(78));

        let without = peer.seg().flags(FIN).data(b"12345");
        assert_eq!(peer.give(&without), Err(DropReason::NoFlow));
        let reset = peer.take_one();
        assert_eq!((reset.flags, reset.seq, reset.ack), (RST | ACK, SeqNumber(0), ISS + 6));
    });
}

/// conformance 10
#[test]
fn in_syn_received_a_duplicate_syn_gets_the_same_answer_and_a_bad_ack_a_reset() {
    both(|family| {
        let mut peer = Peer::new(family).like_a_kernel();
        let syn = peer.syn();
        let first = peer.half_open();
        peer.feed(&syn);
        assert_eq!(peer.take_one(), first);
        for ack in [first.seq, first.seq + 2, first.seq - 1_000] {
            let bad = peer.seg().ack(ack);
            assert_eq!(peer.give(&bad), Err(DropReason::Unacceptable));
            let reset = peer.take_one();
            assert_eq!((reset.flags, reset.seq), (RST, ack));
        }
        peer.complete();
    });
}

/// conformance 10
#[test]
fn in_syn_received_an_exact_reset_ends_the_attempt_and_others_do_not() {
    both(|family| {
        let mut peer = Peer::new(family);
        peer.half_open();
        let inside = peer.seg().flags(RST).seq(peer.snd_nxt + 100);
        assert_eq!(peer.give(&inside), Err(DropReason::Unacceptable));
        assert_eq!(peer.take_one().flags, ACK, "challenged (RFC 5961 3.2)");
        let outside = peer.seg().flags(RST).seq(peer.snd_nxt - 100);
        assert_eq!(peer.give(&outside), Err(DropReason::Unacceptable));
        peer.take_nothing();
        let exact = peer.seg().flags(RST);
        peer.feed(&exact);
        peer.take_nothing();
        assert_eq!(peer.closed(), Some(Closed::Reset));
        assert!(!peer.is_alive());
        peer.snd_nxt = ISS + 5_000;
        peer.half_open();
        peer.complete();
    });
}

/// conformance 11
#[test]
fn a_syn_from_or_to_an_address_that_is_no_single_host_is_silently_dropped() {
    let cases = [
        ("0.0.0.0", "203.0.113.5", DropReason::BadSource),
        ("127.0.0.1", "203.0.113.5", DropReason::BadSource),
        ("224.0.0.1", "203.0.113.5", DropReason::BadSource),
        ("255.255.255.255", "203.0.113.5", DropReason::BadSource),
        ("198.18.255.255", "203.0.113.5", DropReason::BadSource),
        ("203.0.113.5", "203.0.113.5", DropReason::BadSource),
        ("198.18.0.1", "224.0.0.251", DropReason::Noise),
        ("198.18.0.1", "255.255.255.255", DropReason::Noise),
        ("198.18.0.1", "198.18.255.255", DropReason::Noise),
        ("198.18.0.1", "0.0.0.0", DropReason::Noise),
        ("198.18.0.1", "127.0.0.1", DropReason::Noise),
        ("::", "2001:db8::5", DropReason::BadSource),
        ("::1", "2001:db8::5", DropReason::BadSource),
        ("ff02::1", "2001:db8::5", DropReason::BadSource),
        ("2001:db8::5", "2001:db8::5", DropReason::BadSource),
        ("fd7a:7a74:756e::1", "ff02::fb", DropReason::Noise),
        ("fd7a:7a74:756e::1", "::1", DropReason::Noise),
        ("fd7a:7a74:756e::1", "::", DropReason::Noise),
    ];
    let config = StackConfig { broadcasts: vec![addr("198.18.255.255")], ..StackConfig::default() };
    for (src, dst, why) in cases {
        let mut peer = Peer::with(Family::V4, config.clone());
        let mut syn = peer.syn();
        (syn.src.addr, syn.dst.addr) = (addr(src), addr(dst));
        assert_eq!(peer.give(&syn), Err(why), "{src} to {dst}");
        assert_eq!(peer.events, []);
        peer.take_nothing();
    }
}

/// conformance 12
#[test]
fn data_outside_the_window_gets_one_acknowledgement_and_data_partly_inside_is_trimmed() {
    both(|family| {
        let window = 1_000;
        let mut peer =
            Peer::with_tcp(family, TcpConfig { receive_buffer: window, ..TcpConfig::default() }).open();
        peer.room = 0;
        for far in [window as u32, 5_000, 1 << 30] {
            let outside = peer.seg().seq(peer.snd_nxt + far).data(b"far away");
            assert_eq!(peer.give(&outside), Err(DropReason::Unacceptable));
            let answer = peer.take_one();
            assert!(answer.is_bare_ack() && answer.ack == peer.snd_nxt, "{answer:?}");
        }
        let stream = text(0, 1_500);
        let partly = peer.seg().data(&stream);
        peer.feed(&partly);
        let answer = peer.take_one();
        assert_eq!((answer.ack, answer.window), (peer.snd_nxt + window as u32, 0));
        peer.drain(usize::MAX);
        assert_eq!(peer.received, stream[..window]);
        peer.snd_nxt += window as u32;
        peer.take();
        peer.say(&stream[window..]);
        assert_eq!(peer.received, stream);
    });
}

/// conformance 13
#[test]
fn what_was_received_before_is_trimmed_and_the_rest_is_used() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        let stream = text(0, 900);
        let start = peer.snd_nxt;
        peer.say(&stream[..600]);
        let overlapping = peer.seg().seq(start + 300).data(&stream[300..]);
        peer.feed(&overlapping);
        assert_eq!(peer.received, stream);
        peer.wait(ms(500));
        let old = peer.seg().seq(start).data(&stream[..900]);
        assert_eq!(peer.give(&old), Err(DropReason::Unacceptable));
        assert_eq!(peer.take_one().ack, start + 900);
        assert_eq!(peer.received, stream);
    });
}

/// conformance 14
#[test]
fn any_order_overlap_and_duplication_of_segments_gives_the_stream_once() {
    use proptest::prelude::*;
    let cases = proptest::collection::vec((0usize..3_000, 1usize..700, any::<bool>(), 0usize..900), 1..60);
    proptest!(ProptestConfig::with_cases(300), |(v6: bool, pieces in cases)| {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let mut peer = Peer::new(family).like_a_kernel().open();
        let stream = text(0, 3_000);
        let start = peer.snd_nxt;
        peer.room = 0;
        for (at, len, fin, room) in pieces {
            let end = (at + len).min(stream.len());
            let mut piece = peer.seg().seq(start + at as u32).data(&stream[at..end]);
            if fin && end == stream.len() {
                piece = piece.flags(ACK | FIN);
            }
            let _unacceptable_when_old = peer.give(&piece);
            peer.drain(room);
            prop_assert!(stream.starts_with(&peer.received));
            for answer in peer.take() {
                prop_assert!(answer.ack.ge(start) && answer.ack.le(start + 3_001));
            }
        }
        // The app sends again from the start what is missing.
        let whole = peer.seg().seq(start).data(&stream).flags(ACK | FIN);
        let _unacceptable_when_all_is_there = peer.give(&whole);
        peer.drain(usize::MAX);
        prop_assert_eq!(&peer.received, &stream);
        prop_assert!(peer.tcp().recv_finished());
    });
}

/// conformance 15
#[test]
fn a_segment_out_of_order_and_one_that_fills_a_gap_are_acknowledged_at_once() {
    both(|family| {
        let mut peer = Peer::new(family).with_sack().open();
        let start = peer.snd_nxt;
        for n in 1..4u32 {
            let ahead = peer.seg().seq(start + 100 * n).data(&text(100 * n as usize, 100));
            peer.feed(&ahead);
            let duplicate = peer.take_one();
            assert!(duplicate.is_bare_ack() && duplicate.ack == start, "{duplicate:?}");
        }
        let half = peer.seg().data(&text(0, 50));
        peer.feed(&half);
        assert_eq!(peer.take_one().ack, start + 50, "filled in part");
        let rest = peer.seg().seq(start + 50).data(&text(50, 50));
        peer.feed(&rest);
        assert_eq!(peer.take_one().ack, start + 400, "filled");
        assert_eq!(peer.received, text(0, 400));
    });
}

/// conformance 16, CVE-2018-5390
#[test]
fn a_flood_of_single_octets_out_of_order_is_bounded_and_harms_no_stream() {
    both(|family| {
        let mut peer = Peer::new(family).like_a_kernel().open();
        let start = peer.snd_nxt;
        let stream = text(0, 60_000);
        let before = peer.stack.stats().drops[DropReason::Full as usize];
        // Every second octet: 30,000 gaps if all were kept.
        for at in (1..stream.len()).step_by(2) {
            let octet = peer.seg().seq(start + at as u32).data(&stream[at..at + 1]);
            peer.feed(&octet);
            assert!(peer.take().len() <= 1);
        }
        let refused = peer.stack.stats().drops[DropReason::Full as usize] - before;
        assert!(refused > 29_000, "what is not kept is counted: {refused}");
        for (n, chunk) in stream.chunks(1_400).enumerate() {
            let piece = peer.seg().seq(start + 1_400 * n as u32).data(chunk);
            peer.feed(&piece);
        }
        assert_eq!(peer.received, stream);
    });
}

/// conformance 16: the memory of all flows together.
#[test]
fn out_of_order_octets_of_all_flows_share_one_budget_and_flows_in_order_go_on() {
    both(|family| {
        let config = TcpConfig { buffer_budget: 256 << 10, ..TcpConfig::default() };
        let mut peer = Peer::with_tcp(family, config).open();
        let good = (peer.local, peer.snd_nxt, peer.rcv_nxt, peer.flow);
        for port in 0..40 {
            peer.local.port = 50_000 + port;
            peer.snd_nxt = ISS;
            peer.half_open();
            peer.complete();
            let ahead = peer.seg().seq(peer.snd_nxt + 50_000).data(&text(0, 1_000));
            peer.feed(&ahead);
            peer.take();
        }
        assert!(peer.stack.stats().drops[DropReason::Full as usize] > 30, "the budget holds four such flows");
        (peer.local, peer.snd_nxt, peer.rcv_nxt, peer.flow) = good;
        peer.say(&text(0, 10_000));
        assert_eq!(peer.received, text(0, 10_000));
    });
}

/// conformance 17
#[test]
fn an_acknowledgement_waits_less_than_half_a_second_and_for_no_second_full_segment() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        peer.say(b"one keystroke");
        peer.take_nothing();
        let sent = peer.wait(secs(1));
        assert_eq!(sent.len(), 1, "{sent:?}");
        assert!(sent[0].0 < ms(500) && sent[0].1.ack == peer.snd_nxt);
        let full = usize::from(1460.min(1500 - family.headers()));
        peer.say(&text(0, full));
        peer.take_nothing();
        peer.say(&text(full, full));
        assert_eq!(peer.take_one().ack, peer.snd_nxt);
        // With something to send, the acknowledgement rides on it.
        peer.say(b"question");
        peer.write(b"answer");
        let answer = peer.take_one();
        assert_eq!((answer.ack, answer.data.as_slice()), (peer.snd_nxt, &b"answer"[..]));
        peer.ack(answer.end());
        assert_eq!(peer.wait(secs(1)), []);
    });
}

/// conformance 18
#[test]
fn only_a_reset_at_exactly_rcv_nxt_ends_a_connection() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        for inside in [1, 1_000, 60_000] {
            let reset = peer.seg().flags(RST).seq(peer.snd_nxt + inside);
            assert_eq!(peer.give(&reset), Err(DropReason::Unacceptable));
            let challenge = peer.take_one();
            assert!(challenge.is_bare_ack() && challenge.ack == peer.snd_nxt, "{challenge:?}");
        }
        for outside in [peer.snd_nxt - 1, peer.snd_nxt - 100_000, peer.snd_nxt + (1 << 22)] {
            let reset = peer.seg().flags(RST).seq(outside);
            assert_eq!(peer.give(&reset), Err(DropReason::Unacceptable));
            peer.take_nothing();
        }
        assert!(peer.is_alive());
        let exact = peer.seg().flags(RST);
        peer.feed(&exact);
        assert_eq!(peer.closed(), Some(Closed::Reset));
        peer.take_nothing();
    });
}

/// conformance 19
#[test]
fn a_syn_on_an_established_connection_is_challenged_and_nothing_else() {
    both(|family| {
        for kernel in [false, true] {
            let mut peer = Peer::new(family);
            if kernel {
                peer = peer.like_a_kernel();
            }
            let mut peer = peer.open();
            for (seq, flags) in [
                (peer.snd_nxt, SYN),
                (peer.snd_nxt + 500, SYN),
                (peer.snd_nxt - 100_000, SYN),
                (ISS, SYN | ACK),
            ] {
                // A machine that has started anew knows nothing of timestamps.
                for options in [TcpOptions::default(), peer.seg().options] {
                    let syn = peer.seg().flags(flags).seq(seq).options(options);
                    assert!(peer.give(&syn).is_err());
                    let challenge = peer.take_one();
                    assert!(challenge.is_bare_ack() && challenge.ack == peer.snd_nxt, "{challenge:?}");
                    peer.wait(secs(1));
                }
            }
            peer.say(b"unharmed");
            assert_eq!(peer.received, b"unharmed");
        }
    });
}

/// conformance 20
#[test]
fn an_ack_of_what_was_not_sent_or_is_too_old_is_dropped_and_answered() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        peer.window = 1_000;
        peer.transfer(&text(0, 200_000));
        for ack in
            [peer.rcv_nxt + 1, peer.rcv_nxt + (1 << 30), peer.rcv_nxt - 65_536, peer.rcv_nxt - (1 << 30)]
        {
            let bad = peer.seg().ack(ack).data(b"injected");
            assert_eq!(peer.give(&bad), Err(DropReason::Unacceptable));
            let answer = peer.take_one();
            assert!(answer.is_bare_ack() && answer.ack == peer.snd_nxt, "{answer:?}");
        }
        assert_eq!(peer.received, b"");
        let old_but_plausible = peer.seg().ack(peer.rcv_nxt - 900).data(b"late");
        peer.feed(&old_but_plausible);
        assert_eq!(peer.received, b"late");
    });
}

/// conformance 21, CVE-2016-5696
#[test]
fn challenges_of_one_connection_do_not_tell_about_another() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        let victim = (peer.local, peer.snd_nxt, peer.rcv_nxt, peer.flow);
        peer.local.port = 50_000;
        peer.snd_nxt = ISS;
        peer.half_open();
        peer.complete();
        let provoke = |peer: &mut Peer| {
            let reset = peer.seg().flags(RST).seq(peer.snd_nxt + 10);
            assert_eq!(peer.give(&reset), Err(DropReason::Unacceptable));
            peer.take().len()
        };
        let answered: usize = (0..1_000).map(|_| provoke(&mut peer)).sum();
        assert!((1..=100).contains(&answered), "limited: {answered}");
        assert_eq!(provoke(&mut peer), 0, "spent");
        (peer.local, peer.snd_nxt, peer.rcv_nxt, peer.flow) = victim;
        let other: usize = (0..1_000).map(|_| provoke(&mut peer)).sum();
        assert_eq!(other, answered, "the other connection has a limit of its own");
    });
}

/// RFC 9293 3.8.6.3: while the device has more packets, the acknowledgements of a stream that can go on without them are one, soon.
#[test]
fn bulk_data_is_acknowledged_when_the_device_is_empty_or_a_millisecond_later_or_when_it_is_much() {
    both(|family| {
        let mut peer = Peer::new(family).like_a_kernel().open();
        let end_of_batch = |peer: &mut Peer, more| peer.stack.end_of_batch(more, peer.now);
        // The first says how large the window is.
        peer.say(&text(0, 10_000));
        peer.take_one();
        peer.say(&text(0, 60_000));
        end_of_batch(&mut peer, true);
        peer.take_nothing();
        peer.say(&text(0, 60_000));
        end_of_batch(&mut peer, false);
        assert_eq!(peer.take_one().ack, peer.snd_nxt, "the device is empty");

        end_of_batch(&mut peer, true);
        peer.say(&text(0, 60_000));
        peer.take_nothing();
        peer.now = peer.now + ms(1);
        end_of_batch(&mut peer, true);
        assert_eq!(peer.take_one().ack, peer.snd_nxt, "it is never empty");

        end_of_batch(&mut peer, true);
        for _ in 0..3 {
            peer.say(&text(0, 60_000));
            peer.take_nothing();
            end_of_batch(&mut peer, true);
        }
        peer.say(&text(0, 60_000));
        assert_eq!(peer.take_one().ack, peer.snd_nxt, "a quarter of what the window still allows");

        // What is more than an acknowledgement does not wait.
        peer.say(&text(0, 60_000));
        peer.write(b"answer");
        assert_eq!(peer.take_one().data, b"answer");
        let ahead = peer.seg().seq(peer.snd_nxt + 10).data(&text(0, 10_000));
        peer.feed(&ahead);
        assert_eq!(peer.take_one().ack, peer.snd_nxt, "a gap");
    });
}

/// conformance 22
#[test]
fn resets_urgent_data_and_acknowledgements_are_processed_at_a_zero_window() {
    both(|family| {
        let config = TcpConfig { receive_buffer: 1_000, ..TcpConfig::default() };
        let mut peer = Peer::with_tcp(family, config).open();
        peer.room = 0;
        peer.write(b"to be acknowledged");
        let sent = peer.take_one();
        peer.say(&text(0, 1_000));
        assert_eq!(peer.wait(ms(100)).pop().map(|(_, segment)| segment.window), Some(0));
        // URG and an ACK with a text that has no place.
        peer.rcv_nxt = sent.end();
        let urgent = peer.seg().urgent(5).data(b"urgent");
        peer.feed(&urgent);
        assert_eq!(peer.tcp().send_queue(), 0, "the ACK field counts");
        assert_eq!(peer.take_one().window, 0);
        let reset = peer.seg().flags(RST);
        peer.feed(&reset);
        assert_eq!(peer.closed(), Some(Closed::Reset));
    });
}

/// conformance 23, URGENT/11
#[test]
fn an_urgent_pointer_of_any_value_costs_no_octet() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        let mut stream = Vec::new();
        for (n, urgent) in [0, 1, 2, 3, 100, 0x7fff, 0x8000, 0xffff].into_iter().enumerate() {
            let chunk = text(n * 3, 3);
            let segment = peer.seg().urgent(urgent).data(&chunk);
            peer.snd_nxt += 3;
            peer.feed(&segment);
            stream.extend(chunk);
            let bare = peer.seg().urgent(urgent);
            peer.feed(&bare);
        }
        assert_eq!(peer.received, stream);
    });
}

/// conformance 24
#[test]
fn a_keep_alive_of_the_app_is_acknowledged() {
    both(|family| {
        let mut peer = Peer::new(family).like_a_kernel().open();
        peer.say(b"something");
        peer.wait(secs(1));
        for garbage in [&b""[..], b"?"] {
            let probe = peer.seg().seq(peer.snd_nxt - 1).data(garbage);
            assert_eq!(peer.give(&probe), Err(DropReason::Unacceptable));
            let answer = peer.take_one();
            assert!(answer.is_bare_ack() && answer.ack == peer.snd_nxt, "{answer:?}");
        }
        assert_eq!(peer.received, b"something");
    });
}

/// conformance 24: never unless asked for.
#[test]
fn keep_alives_are_sent_only_when_configured_and_end_a_connection_only_when_unanswered() {
    both(|family| {
        let mut peer = Peer::new(family).open();
        assert_eq!(peer.wait(secs(2 * 3600)), [], "off by default");

        let config =
            TcpConfig { keepalive: Some(secs(2 * 3600)), idle: secs(1_000_000), ..TcpConfig::default() };
        let mut peer = Peer::with_tcp(family, config).open();
        for _ in 0..5 {
            let sent = peer.wait(secs(2 * 3600 + 1));
            assert_eq!(sent.len(), 1, "{sent:?}");
            let (at, probe) = &sent[0];
            assert!(*at >= secs(2 * 3600) - ms(1));
            assert_eq!((probe.seq, probe.data.len()), (peer.rcv_nxt - 1, 0));
            let answer = peer.seg();
            peer.feed(&answer);
        }
        peer.wait(secs(12 * 2 * 3600));
        assert_eq!(peer.closed(), Some(Closed::TimedOut));
    });
}

/// RFC 9293 3.10.7.4: what the stack sends has its own checksum in place, or says where it belongs.
#[test]
fn with_offload_the_checksum_field_holds_the_sum_of_the_pseudo_header() {
    both(|family| {
        let config = StackConfig { offload: OffloadLevel::Tcp, ..StackConfig::default() };
        let mut peer = Peer::with(family, config).open();
        peer.write(&text(0, 5_000));
        let now = peer.now;
        let transmit = peer.stack.poll_transmit(now).expect("a super-segment");
        let start = family.headers() - 20;
        let mss = 1460.min(1500 - family.headers());
        let offload = Offload { checksum_start: start, checksum_offset: 16, segment_size: mss };
        assert_eq!(transmit.offload, Some(offload));
        let mut octets = [transmit.header, transmit.payload[0], transmit.payload[1]].concat();
        let (src, dst) = ztun::wire::ip::ends(&octets).expect("an IP header");
        let at = usize::from(start);
        let length = (octets.len() - at) as u32;
        let pseudo = ztun::wire::checksum::Checksum::pseudo_header(src, dst, 6, length).partial();
        assert_eq!(octets[at + 16..at + 18], pseudo.to_be_bytes());
        sum(&mut octets, at);
        assert_eq!(Seg::parse(&octets).data, text(0, 5_000));
    });
}

/// RFC 5508 REQ-8, conformance 10: a SYN that is refused gets a RST that its sender accepts.
#[test]
fn a_refused_syn_gets_a_reset_and_leaves_nothing() {
    both(|family| {
        let mut peer = Peer::new(family);
        peer.accepting = false;
        let syn = peer.syn();
        peer.feed(&syn);
        peer.take_nothing();
        let (flow, now) = (peer.flow.expect("a SYN"), peer.now);
        assert_eq!(peer.events, [StackEvent::Syn { flow }]);
        peer.stack.tcp(flow).expect("waiting").refuse(Refusal::Reset, now);
        let reset = peer.take_one();
        assert_eq!((reset.flags, reset.seq, reset.ack), (RST | ACK, SeqNumber(0), ISS + 1));
        assert_eq!(peer.stack.tcp_flows().count(), 0);
        assert_eq!(peer.events.len(), 1, "no event follows");
    });
}
