//! TCP segments (RFC 9293 3.1) and options: MSS, window scale and timestamps (RFC 7323), SACK (RFC 2018).

use super::checksum::Checksum;
use super::ip::protocol;
use super::{SeqNumber, WireError};
use core::net::IpAddr;

/// The longest TCP header: 60 octets (data offset 15).
pub const MAX_HEADER: usize = 60;

/// Control bits.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: TcpFlags = TcpFlags(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: TcpFlags = TcpFlags(0x02);
    /// Reset the connection.
    pub const RST: TcpFlags = TcpFlags(0x04);
    /// Push.
    pub const PSH: TcpFlags = TcpFlags(0x08);
    /// The acknowledgement field is significant.
    pub const ACK: TcpFlags = TcpFlags(0x10);
    /// The urgent pointer is significant.
    pub const URG: TcpFlags = TcpFlags(0x20);

    /// Whether every bit of `other` is set.
    pub const fn contains(self, other: TcpFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether SYN is set.
    pub const fn syn(self) -> bool {
        self.contains(TcpFlags::SYN)
    }
    /// Whether ACK is set.
    pub const fn ack(self) -> bool {
        self.contains(TcpFlags::ACK)
    }
    /// Whether RST is set.
    pub const fn rst(self) -> bool {
        self.contains(TcpFlags::RST)
    }
    /// Whether FIN is set.
    pub const fn fin(self) -> bool {
        self.contains(TcpFlags::FIN)
    }
}

impl core::ops::BitOr for TcpFlags {
    type Output = TcpFlags;
    fn bitor(self, other: TcpFlags) -> TcpFlags {
        TcpFlags(self.0 | other.0)
    }
}

impl core::fmt::Debug for TcpFlags {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let names = [
            (0x01, 'F'),
            (0x02, 'S'),
            (0x04, 'R'),
            (0x08, 'P'),
            (0x10, 'A'),
            (0x20, 'U'),
            (0x40, 'E'),
            (0x80, 'C'),
        ];
        names.iter().filter(|(bit, _)| self.0 & bit != 0).try_for_each(|(_, name)| write!(f, "{name}"))
    }
}

/// A timestamps option (RFC 7323 3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timestamps {
    /// TSval.
    pub value: u32,
    /// TSecr.
    pub echo: u32,
}

/// Up to four SACK blocks, `[left, right)`, first the most recently received (RFC 2018 3, 4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SackBlocks {
    blocks: [(SeqNumber, SeqNumber); 4],
    len: u8,
}

impl SackBlocks {
    /// The blocks in order.
    pub fn as_slice(&self) -> &[(SeqNumber, SeqNumber)] {
        &self.blocks[..usize::from(self.len)]
    }

    /// Appends a block; a fifth is ignored.
    pub fn push(&mut self, left: SeqNumber, right: SeqNumber) {
        if let Some(slot) = self.blocks.get_mut(usize::from(self.len)) {
            *slot = (left, right);
            self.len += 1;
        }
    }

    /// Keeps the first `len` blocks.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(u8::try_from(len).unwrap_or(u8::MAX));
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The options that the stack understands; all others are skipped (RFC 9293 3.1, MUST-6).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpOptions {
    /// Maximum segment size as sent, not clamped.
    pub mss: Option<u16>,
    /// Window scale shift as sent, not clamped.
    pub window_scale: Option<u8>,
    /// SACK permitted.
    pub sack_permitted: bool,
    /// Timestamps.
    pub timestamps: Option<Timestamps>,
    /// SACK blocks.
    pub sack: SackBlocks,
}

/// A validated TCP segment.
#[derive(Clone, Copy, Debug)]
pub struct TcpSegment<'p> {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// SEG.SEQ.
    pub seq: SeqNumber,
    /// SEG.ACK; significant when the ACK bit is set.
    pub ack: SeqNumber,
    /// Control bits.
    pub flags: TcpFlags,
    /// SEG.WND as sent, not scaled.
    pub window: u16,
    /// Urgent pointer; significant when URG is set.
    pub urgent: u16,
    /// Options understood.
    pub options: TcpOptions,
    /// The octets of text.
    pub payload: &'p [u8],
}

impl<'p> TcpSegment<'p> {
    /// Reads a segment from the upper layer of an IP packet. The checksum is verified when
    /// `verify_checksum` (a device that vouches for it by NEEDS_CSUM clears that). A data offset
    /// below 5 or beyond the segment is refused; an option with an illegal length ends option
    /// processing (RFC 9293 3.1, MUST-7).
    pub fn parse(
        src: IpAddr,
        dst: IpAddr,
        octets: &'p [u8],
        verify_checksum: bool,
    ) -> Result<TcpSegment<'p>, WireError> {
        let fixed: &[u8; 20] = octets.first_chunk().ok_or(WireError::Truncated)?;
        let header_len = usize::from(fixed[12] >> 4) * 4;
        if header_len < 20 {
            return Err(WireError::HeaderLength);
        }
        let options = octets.get(20..header_len).ok_or(WireError::HeaderLength)?;
        if verify_checksum {
            let length = u32::try_from(octets.len()).map_err(|_| WireError::Length)?;
            if Checksum::pseudo_header(src, dst, protocol::TCP, length).with(octets).finish() != 0 {
                return Err(WireError::Checksum);
            }
        }
        Ok(TcpSegment {
            src_port: u16::from_be_bytes([fixed[0], fixed[1]]),
            dst_port: u16::from_be_bytes([fixed[2], fixed[3]]),
            seq: SeqNumber(u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]])),
            ack: SeqNumber(u32::from_be_bytes([fixed[8], fixed[9], fixed[10], fixed[11]])),
            flags: TcpFlags(fixed[13]),
            window: u16::from_be_bytes([fixed[14], fixed[15]]),
            urgent: u16::from_be_bytes([fixed[18], fixed[19]]),
            options: TcpOptions::parse(options),
            payload: &octets[header_len..],
        })
    }

    /// SEG.LEN: octets of text plus one each for SYN and FIN (RFC 9293 3.4).
    pub fn len(&self) -> u32 {
        // An IP payload is at most 65,535 octets.
        self.payload.len() as u32 + u32::from(self.flags.syn()) + u32::from(self.flags.fin())
    }

    /// Whether the segment occupies no sequence space.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Octets of header that [`TcpSegment::emit_header`] writes, options padded to four.
    pub fn header_len(&self) -> usize {
        20 + self.options.buffer_len()
    }

    /// Writes header and options (payload not copied) into the front of `buffer` with a checksum
    /// field of zero; gives the header length. Timestamps come before SACK blocks; blocks that do not fit in 40 octets of
    /// options are left out. `buffer` must hold [`TcpSegment::header_len`] octets.
    pub fn emit_header(&self, buffer: &mut [u8]) -> usize {
        let len = self.header_len();
        let header = &mut buffer[..len];
        header[..2].copy_from_slice(&self.src_port.to_be_bytes());
        header[2..4].copy_from_slice(&self.dst_port.to_be_bytes());
        header[4..8].copy_from_slice(&self.seq.0.to_be_bytes());
        header[8..12].copy_from_slice(&self.ack.0.to_be_bytes());
        header[12..14].copy_from_slice(&[(len as u8 / 4) << 4, self.flags.0]);
        header[14..16].copy_from_slice(&self.window.to_be_bytes());
        header[16..18].fill(0);
        header[18..20].copy_from_slice(&self.urgent.to_be_bytes());
        self.options.emit(&mut header[20..]);
        len
    }
}

mod option {
    pub(super) const END: u8 = 0;
    pub(super) const NOP: u8 = 1;
    pub(super) const MSS: u8 = 2;
    pub(super) const WINDOW_SCALE: u8 = 3;
    pub(super) const SACK_PERMITTED: u8 = 4;
    pub(super) const SACK: u8 = 5;
    pub(super) const TIMESTAMPS: u8 = 8;
}

/// Octets of options in a header (data offset 15).
const MAX_OPTIONS: usize = 40;

impl TcpOptions {
    /// Reads options as far as their lengths are legal (RFC 9293 3.1, MUST-7). An option that is understood but has another length than
    /// its RFC gives it is skipped.
    fn parse(mut octets: &[u8]) -> TcpOptions {
        let mut options = TcpOptions::default();
        loop {
            let (kind, body) = match octets {
                [] | [option::END, ..] => return options,
                [option::NOP, rest @ ..] => {
                    octets = rest;
                    continue;
                }
                [kind, len, rest @ ..] if *len >= 2 && usize::from(*len) - 2 <= rest.len() => {
                    let (body, rest) = rest.split_at(usize::from(*len) - 2);
                    octets = rest;
                    (*kind, body)
                }
                [_, ..] => return options,
            };
            match (kind, body) {
                (option::MSS, [a, b]) => options.mss = Some(u16::from_be_bytes([*a, *b])),
                (option::WINDOW_SCALE, [shift]) => options.window_scale = Some(*shift),
                (option::SACK_PERMITTED, []) => options.sack_permitted = true,
                (option::TIMESTAMPS, [a, b, c, d, e, f, g, h]) => {
                    let value = u32::from_be_bytes([*a, *b, *c, *d]);
                    let echo = u32::from_be_bytes([*e, *f, *g, *h]);
                    options.timestamps = Some(Timestamps { value, echo });
                }
                (option::SACK, blocks) if blocks.len() % 8 == 0 => {
                    let (blocks, _) = blocks.as_chunks::<8>();
                    for [a, b, c, d, e, f, g, h] in blocks {
                        let left = SeqNumber(u32::from_be_bytes([*a, *b, *c, *d]));
                        options.sack.push(left, SeqNumber(u32::from_be_bytes([*e, *f, *g, *h])));
                    }
                }
                _ => {}
            }
        }
    }

    /// SACK blocks that fit beside the other options.
    fn sack_that_fits(&self, used: usize) -> &[(SeqNumber, SeqNumber)] {
        let room = MAX_OPTIONS.saturating_sub(used + 4) / 8;
        let blocks = self.sack.as_slice();
        &blocks[..blocks.len().min(room)]
    }

    fn len_without_sack(&self) -> usize {
        let mss = if self.mss.is_some() { 4 } else { 0 };
        let scale = if self.window_scale.is_some() { 4 } else { 0 };
        // SACK permitted stands where the timestamps' padding would be.
        let timestamps = if self.timestamps.is_some() { 12 } else { 0 };
        let permitted = if self.sack_permitted && self.timestamps.is_none() { 4 } else { 0 };
        mss + scale + timestamps + permitted
    }

    fn buffer_len(&self) -> usize {
        let used = self.len_without_sack();
        match self.sack_that_fits(used) {
            [] => used,
            blocks => used + 4 + 8 * blocks.len(),
        }
    }

    fn emit(&self, buffer: &mut [u8]) {
        let mut at = 0;
        let mut put = |octets: &[u8]| {
            buffer[at..at + octets.len()].copy_from_slice(octets);
            at += octets.len();
        };
        if let Some(mss) = self.mss {
            let [a, b] = mss.to_be_bytes();
            put(&[option::MSS, 4, a, b]);
        }
        let padding =
            if self.sack_permitted { [option::SACK_PERMITTED, 2] } else { [option::NOP, option::NOP] };
        if let Some(timestamps) = self.timestamps {
            put(&padding);
            put(&[option::TIMESTAMPS, 10]);
            put(&timestamps.value.to_be_bytes());
            put(&timestamps.echo.to_be_bytes());
        } else if self.sack_permitted {
            put(&[option::NOP, option::NOP, option::SACK_PERMITTED, 2]);
        }
        if let Some(shift) = self.window_scale {
            put(&[option::NOP, option::WINDOW_SCALE, 3, shift]);
        }
        let blocks = self.sack_that_fits(self.len_without_sack());
        if !blocks.is_empty() {
            put(&[option::NOP, option::NOP, option::SACK, 2 + 8 * blocks.len() as u8]);
            for (left, right) in blocks {
                put(&left.0.to_be_bytes());
                put(&right.0.to_be_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SRC: &str = "192.0.2.1";
    const DST: &str = "198.51.100.2";

    fn addrs() -> (IpAddr, IpAddr) {
        (SRC.parse().expect("address"), DST.parse().expect("address"))
    }

    fn emit(segment: &TcpSegment<'_>) -> Vec<u8> {
        let (src, dst) = addrs();
        let mut octets = vec![0; segment.header_len()];
        segment.emit_header(&mut octets);
        octets.extend_from_slice(segment.payload);
        let checksum =
            Checksum::pseudo_header(src, dst, protocol::TCP, octets.len() as u32).with(&octets).finish();
        octets[16..18].copy_from_slice(&checksum.to_be_bytes());
        octets
    }

    fn segment(options: TcpOptions) -> TcpSegment<'static> {
        TcpSegment {
            src_port: 40_000,
            dst_port: 80,
            seq: SeqNumber(0xffff_fff0),
            ack: SeqNumber(7),
            flags: TcpFlags::ACK | TcpFlags::PSH,
            window: 500,
            urgent: 3,
            options,
            payload: b"text",
        }
    }

    /// conformance 1
    #[test]
    fn a_wrong_checksum_is_refused_unless_the_device_vouches_for_it() {
        let (src, dst) = addrs();
        let mut octets = emit(&segment(TcpOptions::default()));
        octets[20] ^= 1;
        assert_eq!(TcpSegment::parse(src, dst, &octets, true).map(|_| ()), Err(WireError::Checksum));
        assert!(TcpSegment::parse(src, dst, &octets, false).is_ok());
    }

    /// conformance 2
    #[test]
    fn an_impossible_data_offset_is_refused() {
        let (src, dst) = addrs();
        let mut octets = emit(&segment(TcpOptions::default()));
        octets[12] = 0x40;
        assert_eq!(TcpSegment::parse(src, dst, &octets, false).map(|_| ()), Err(WireError::HeaderLength));
        octets[12] = 0xf0;
        assert_eq!(TcpSegment::parse(src, dst, &octets, false).map(|_| ()), Err(WireError::HeaderLength));
        assert_eq!(TcpSegment::parse(src, dst, &octets[..19], false).map(|_| ()), Err(WireError::Truncated));
    }

    /// conformance 2, 3
    #[test]
    fn an_illegal_option_length_ends_the_options_and_unknown_ones_are_skipped() {
        assert_eq!(TcpOptions::parse(&[2, 0, 5, 180]), TcpOptions::default());
        assert_eq!(TcpOptions::parse(&[2, 1, 5, 180]), TcpOptions::default());
        assert_eq!(TcpOptions::parse(&[2, 9, 5, 180]), TcpOptions::default());
        assert_eq!(TcpOptions::parse(&[2]), TcpOptions::default());
        let known = TcpOptions::parse(&[254, 4, 0, 0, 1, 2, 4, 5, 180, 0, 3, 3, 7]);
        assert_eq!(known, TcpOptions { mss: Some(1460), ..TcpOptions::default() });
    }

    #[test]
    fn the_options_of_a_syn_are_as_long_as_a_kernels() {
        let timestamps = Some(Timestamps { value: 1, echo: 0 });
        let options = TcpOptions {
            mss: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps,
            ..TcpOptions::default()
        };
        assert_eq!(segment(options).header_len(), 40);
    }

    #[test]
    fn sack_blocks_that_do_not_fit_are_left_out() {
        let mut options =
            TcpOptions { timestamps: Some(Timestamps { value: 1, echo: 2 }), ..TcpOptions::default() };
        for n in 0..4 {
            options.sack.push(SeqNumber(n * 100), SeqNumber(n * 100 + 50));
        }
        let octets = emit(&segment(options));
        let (src, dst) = addrs();
        let parsed = TcpSegment::parse(src, dst, &octets, true).expect("valid");
        assert_eq!(parsed.options.sack.as_slice(), &options.sack.as_slice()[..3]);
    }

    fn any_options() -> impl Strategy<Value = TcpOptions> {
        let blocks = proptest::collection::vec((any::<u32>(), any::<u32>()), 0..3);
        (any::<Option<u16>>(), any::<Option<u8>>(), any::<bool>(), any::<Option<(u32, u32)>>(), blocks)
            .prop_map(|(mss, window_scale, sack_permitted, timestamps, blocks)| {
                let mut options = TcpOptions {
                    mss,
                    window_scale,
                    sack_permitted,
                    timestamps: timestamps.map(|(value, echo)| Timestamps { value, echo }),
                    ..TcpOptions::default()
                };
                // Only a SYN carries MSS and scale, and it carries no blocks.
                if mss.is_none() && window_scale.is_none() {
                    blocks
                        .iter()
                        .for_each(|(left, right)| options.sack.push(SeqNumber(*left), SeqNumber(*right)));
                }
                options
            })
    }

    proptest! {
        #[test]
        fn arbitrary_octets_never_panic(octets in proptest::collection::vec(any::<u8>(), 0..100), offset: u8) {
            let (src, dst) = addrs();
            let mut octets = octets;
            if let Some(octet) = octets.get_mut(12) { *octet = offset; }
            let _outcome = TcpSegment::parse(src, dst, &octets, false);
            let _options = TcpOptions::parse(&octets);
        }

        #[test]
        fn what_is_emitted_is_parsed_back(options in any_options(), seq: u32, ack: u32, flags: u8, window: u16) {
            let (src, dst) = addrs();
            let sent = TcpSegment { seq: SeqNumber(seq), ack: SeqNumber(ack), flags: TcpFlags(flags), window, ..segment(options) };
            let octets = emit(&sent);
            let parsed = TcpSegment::parse(src, dst, &octets, true).expect("valid");
            prop_assert_eq!(parsed.options, options);
            prop_assert_eq!((parsed.seq, parsed.ack, parsed.flags, parsed.window, parsed.urgent), (sent.seq, sent.ack, sent.flags, window, 3));
            prop_assert_eq!(parsed.payload, b"text");
            // etherparse, written by others, is the oracle.
            let other = etherparse::TcpHeaderSlice::from_slice(&octets).expect("valid to others");
            prop_assert_eq!(other.sequence_number(), seq);
            prop_assert_eq!(usize::from(other.data_offset()) * 4, octets.len() - 4);
            prop_assert_eq!(other.calc_checksum_ipv4_raw([192, 0, 2, 1], [198, 51, 100, 2], b"text").expect("short"), other.checksum());
        }
    }
}
