//! Headers of what the stack sends, and datagrams cut to the MTU.
//!
//! A datagram is not queued: [`Datagram`] lends its packets one by one, headers out of the stack's scratch space, data by
//! reference. One that does not fit the MTU leaves in fragments, which the app's kernel puts together again.

use super::{Offload, Transmit};
use crate::wire::ip::{Fragment, IpHeader, MAX_HEADER};
use crate::wire::udp;
use core::net::IpAddr;

/// TTL and hop limit of what the stack sends: one hop away from the app, but seen by it as coming from afar.
const HOP_LIMIT: u8 = 64;

/// An unfragmented header. "Don't fragment" is set, so the identification means nothing (RFC 6864 4.1).
pub(super) fn ip_header(src: IpAddr, dst: IpAddr, protocol: u8) -> IpHeader {
    IpHeader { src, dst, protocol, hop_limit: HOP_LIMIT, id: 0, dont_fragment: true, fragment: None }
}

/// Where the checksum stands in a UDP header.
pub(super) const CHECKSUM_OFFSET: u16 = 6;

/// Scratch space for the headers of one packet: IP, fragment, UDP.
pub(super) type Scratch = [u8; MAX_HEADER + udp::HEADER];

/// An upper-layer message on its way out: packets to be taken in order.
#[derive(Debug)]
pub struct Datagram<'a> {
    pub(super) scratch: &'a mut Scratch,
    pub(super) header: IpHeader,
    /// The front of the upper layer that is written by the stack: the UDP header; empty for ICMP.
    pub(super) front: [u8; udp::HEADER],
    pub(super) front_len: usize,
    pub(super) payload: &'a [u8],
    pub(super) mtu: usize,
    pub(super) id: u32,
    /// Octets of the upper layer given out so far.
    pub(super) offset: usize,
    /// The device sums it: the checksum field of `front` holds the sum of the pseudo-header.
    pub(super) sums: bool,
}

/// The header of datagrams that leave as one packet, which the device cuts.
#[derive(Clone, Copy, Debug)]
pub struct TrainHeader<'a> {
    /// IP and UDP header.
    pub header: &'a [u8],
    /// Where it is cut.
    pub offload: Offload,
}

impl Datagram<'_> {
    /// The next packet; `None` when all are taken.
    pub fn next_packet(&mut self) -> Option<Transmit<'_>> {
        let whole = self.front_len + self.payload.len();
        if self.offset >= whole {
            return None;
        }
        let unfragmented = self.header.header_len() + whole <= self.mtu;
        let len = if unfragmented {
            whole
        } else {
            let fragment = Fragment { id: self.id, offset: self.offset as u32, more: true };
            self.header.fragment = Some(fragment);
            self.header.dont_fragment = false;
            self.header.id = self.id as u16;
            // Fragments but the last hold a multiple of 8 octets (RFC 791 2.3, RFC 8200 4.5).
            let room = (self.mtu - self.header.header_len()) & !7;
            let len = room.min(whole - self.offset);
            self.header.fragment = Some(Fragment { more: self.offset + len < whole, ..fragment });
            len
        };
        let ip_len = self.header.emit(self.scratch, len);
        let mut at = ip_len;
        let mut payload_len = len;
        if self.offset == 0 {
            self.scratch[at..at + self.front_len].copy_from_slice(&self.front[..self.front_len]);
            at += self.front_len;
            payload_len -= self.front_len;
        }
        let start = self.offset.max(self.front_len) - self.front_len;
        self.offset += len;
        Some(Transmit {
            header: &self.scratch[..at],
            payload: [&self.payload[start..start + payload_len], &[]],
            offload: self.sums.then_some(Offload {
                checksum_start: ip_len as u16,
                checksum_offset: CHECKSUM_OFFSET,
                segment_size: 0,
            }),
        })
    }
}
