//! TCP segments (RFC 9293 3.1) and options: MSS, window scale and timestamps (RFC 7323), SACK (RFC 2018).

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
        let names = [(0x01, 'F'), (0x02, 'S'), (0x04, 'R'), (0x08, 'P'), (0x10, 'A'), (0x20, 'U'), (0x40, 'E'), (0x80, 'C')];
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
    pub fn parse(_src: IpAddr, _dst: IpAddr, _octets: &'p [u8], _verify_checksum: bool) -> Result<TcpSegment<'p>, WireError> {
        todo!()
    }

    /// SEG.LEN: octets of text plus one each for SYN and FIN (RFC 9293 3.4).
    pub fn len(&self) -> u32 {
        todo!()
    }

    /// Whether the segment occupies no sequence space.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Octets of header that [`TcpSegment::emit_header`] writes, options padded to four.
    pub fn header_len(&self) -> usize {
        todo!()
    }

    /// Writes header and options (payload not copied) into the front of `buffer` with a checksum
    /// field of zero; gives the header length. Timestamps come first, aligned by two NOPs, then
    /// SACK blocks; those that do not fit in 40 octets of options are left out.
    pub fn emit_header(&self, _buffer: &mut [u8]) -> usize {
        todo!()
    }
}
