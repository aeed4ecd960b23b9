//! ICMP from the app's kernel: echo requests are answered, errors about what we sent are believed only when they fit.

use super::egress::{Datagram, Scratch, ip_header};
use super::tcp::IcmpError;
use super::{DropReason, EchoMode};
use crate::flow::FlowKey;
use crate::wire::icmp::IcmpMessage;
use crate::wire::ip::{IpPacket, protocol};
use crate::wire::{Endpoint, SeqNumber, WireError};
use core::net::IpAddr;

/// What an ICMP message asks for.
#[derive(Debug)]
pub(super) enum Verdict<'p> {
    /// Answer with an echo reply.
    Echo { id: u16, seq: u16, data: &'p [u8] },
    /// An error about a TCP segment of ours.
    Tcp { key: FlowKey, seq: SeqNumber, error: IcmpError },
}

/// Judges one message.
pub(super) fn judge<'p>(packet: &IpPacket<'p>, echo: EchoMode) -> Result<Verdict<'p>, DropReason> {
    let message =
        IcmpMessage::parse(packet.src, packet.dst, packet.payload).map_err(|error| match error {
            WireError::Checksum => DropReason::BadChecksum,
            WireError::Truncated
            | WireError::Version
            | WireError::HeaderLength
            | WireError::Length
            | WireError::Extension
            | WireError::Value => DropReason::BadIcmp,
        })?;
    match message {
        IcmpMessage::EchoRequest { id, seq, data } => match echo {
            EchoMode::Reply => Ok(Verdict::Echo { id, seq, data }),
            EchoMode::Drop => Err(DropReason::EchoOff),
        },
        IcmpMessage::PacketTooBig { mtu, quoted } => about_us(packet, quoted, IcmpError::PacketTooBig(mtu)),
        IcmpMessage::Unreachable { quoted, .. } | IcmpMessage::TimeExceeded { quoted, .. } => {
            about_us(packet, quoted, IcmpError::Soft)
        }
        // Source quench (RFC 6633), redirects, neighbour discovery: nothing for an endpoint behind a point-to-point device.
        IcmpMessage::EchoReply { .. } | IcmpMessage::Other { .. } => Err(DropReason::IcmpIgnored),
    }
}

/// An error is about us when it quotes a TCP segment that goes from the remote end to the app, and comes from that app (RFC 5927 4).
/// An error never ends a UDP mapping (RFC 4787 REQ-12), so other quotes are ignored.
fn about_us<'p>(packet: &IpPacket<'p>, quoted: &[u8], error: IcmpError) -> Result<Verdict<'p>, DropReason> {
    let quote = Quote::parse(quoted).ok_or(DropReason::BadIcmp)?;
    if quote.protocol != protocol::TCP || quote.dst != packet.src {
        return Err(DropReason::IcmpIgnored);
    }
    let upper: &[u8; 8] = quote.upper.first_chunk().ok_or(DropReason::BadIcmp)?;
    let port = |at: usize| u16::from_be_bytes([upper[at], upper[at + 1]]);
    let key = FlowKey { local: Endpoint::new(quote.dst, port(2)), remote: Endpoint::new(quote.src, port(0)) };
    let seq = SeqNumber(u32::from_be_bytes([upper[4], upper[5], upper[6], upper[7]]));
    Ok(Verdict::Tcp { key, seq, error })
}

/// The front of a packet, as an error quotes it: lengths and checksums cannot be checked.
struct Quote<'p> {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    upper: &'p [u8],
}

impl<'p> Quote<'p> {
    fn parse(octets: &'p [u8]) -> Option<Quote<'p>> {
        let (src, dst) = crate::wire::ip::ends(octets)?;
        let (protocol, header_len) = match src {
            IpAddr::V4(_) => (*octets.get(9)?, usize::from(octets.first()? & 0x0f) * 4),
            IpAddr::V6(_) => (*octets.get(6)?, 40),
        };
        if header_len < 20 {
            return None;
        }
        Some(Quote { src, dst, protocol, upper: octets.get(header_len..)? })
    }
}

/// An echo reply with everything of the request (Z9), from the address that was pinged; in fragments when the request came so.
pub(super) fn echo_reply<'a>(
    scratch: &'a mut Scratch,
    message: &'a [u8],
    src: IpAddr,
    dst: IpAddr,
    mtu: u16,
    id: u32,
) -> Datagram<'a> {
    let protocol = if src.is_ipv6() { protocol::ICMPV6 } else { protocol::ICMP };
    Datagram {
        scratch,
        header: ip_header(src, dst, protocol),
        front: [0; 8],
        front_len: 0,
        payload: message,
        mtu: mtu.into(),
        id,
        offset: 0,
        sums: false,
    }
}
