//! What the stack counts, and why it drops packets.

/// Why a packet was not acted on. Every variant has a counter in [`Stats`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum DropReason {
    /// IP header malformed or truncated.
    BadIp,
    /// Source address that nothing may come from (unspecified, loopback, multicast, broadcast, the destination itself).
    BadSource,
    /// Multicast, broadcast or link-local destination.
    Noise,
    /// Fragment that is malformed, overlaps (RFC 5722) or finds the reassembler full.
    BadFragment,
    /// Upper-layer protocol that is not handled (answered with ICMP where the RFC says so).
    Protocol,
    /// TCP header malformed.
    BadTcp,
    /// TCP or UDP or ICMP checksum wrong.
    BadChecksum,
    /// UDP header malformed.
    BadUdp,
    /// ICMP malformed.
    BadIcmp,
    /// ICMP that is not asked for, does not fit a flow, or is ignored by rule.
    IcmpIgnored,
    /// A table or queue is full.
    Full,
    /// A TCP segment outside the window, or otherwise unacceptable (answered where the RFC says so).
    Unacceptable,
    /// A TCP segment for no flow (answered with RST where the RFC says so).
    NoFlow,
    /// Timestamp too old (PAWS) or missing.
    Paws,
    /// Echo mode is drop.
    EchoOff,
}

impl DropReason {
    /// Number of variants.
    pub const COUNT: usize = 15;

    /// All of them, in the order of [`Stats::drops`].
    pub const ALL: [DropReason; DropReason::COUNT] = [
        DropReason::BadIp,
        DropReason::BadSource,
        DropReason::Noise,
        DropReason::BadFragment,
        DropReason::Protocol,
        DropReason::BadTcp,
        DropReason::BadChecksum,
        DropReason::BadUdp,
        DropReason::BadIcmp,
        DropReason::IcmpIgnored,
        DropReason::Full,
        DropReason::Unacceptable,
        DropReason::NoFlow,
        DropReason::Paws,
        DropReason::EchoOff,
    ];

    /// For reports.
    pub const fn name(self) -> &'static str {
        match self {
            DropReason::BadIp => "bad_ip",
            DropReason::BadSource => "bad_source",
            DropReason::Noise => "noise",
            DropReason::BadFragment => "bad_fragment",
            DropReason::Protocol => "protocol",
            DropReason::BadTcp => "bad_tcp",
            DropReason::BadChecksum => "bad_checksum",
            DropReason::BadUdp => "bad_udp",
            DropReason::BadIcmp => "bad_icmp",
            DropReason::IcmpIgnored => "icmp_ignored",
            DropReason::Full => "full",
            DropReason::Unacceptable => "unacceptable",
            DropReason::NoFlow => "no_flow",
            DropReason::Paws => "paws",
            DropReason::EchoOff => "echo_off",
        }
    }
}

/// The order of [`DropReason::ALL`] is that of the numbers.
const _: () = {
    let mut index = 0;
    while index < DropReason::COUNT {
        assert!(DropReason::ALL[index] as usize == index);
        index += 1;
    }
};

/// Counters since the start; they wrap never in practice (64 bits).
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Packets taken in.
    pub packets_in: u64,
    /// Packets given out.
    pub packets_out: u64,
    /// Drops by reason, indexed by `DropReason as usize`.
    pub drops: [u64; DropReason::COUNT],
    /// Segments retransmitted.
    pub retransmits: u64,
    /// Retransmission time-outs.
    pub timeouts: u64,
    /// Challenge ACKs sent.
    pub challenge_acks: u64,
    /// RST segments sent.
    pub resets_sent: u64,
    /// ICMP errors sent.
    pub icmp_errors_sent: u64,
    /// ICMP errors withheld by the rate limit.
    pub icmp_errors_limited: u64,
    /// Echo requests answered.
    pub echoes: u64,
    /// SYNs refused because a table was full.
    pub syn_refused_full: u64,
    /// SYNs passed over because the SYN queue was full of connections being made.
    pub syn_dropped_full: u64,
    /// Flows accepted to ESTABLISHED.
    pub established: u64,
}
