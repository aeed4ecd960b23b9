//! Layer-3 devices: packets in, packets out, one file per system.
//!
//! # The contract
//!
//! - A [`Device`] never blocks: with nothing to read, or no room to write, it returns
//!   [`io::ErrorKind::WouldBlock`] and, being a [`Source`], tells the poll loop when that changes. A signal is not an error.
//! - [`Device::recv`] gives exactly one packet, from the first octet of its IP header on. A length of 0 is a packet too short to have
//!   one, not an end of file: devices have none.
//! - [`Device::send`] takes a packet whole or not at all, straight out of the slices of a [`Transmit`]; nothing is copied together.
//! - Any other error means that the device is gone or down, and stays so.
//! - A device that is dropped is closed. One that was opened by name ends with it, and takes its addresses and routes along.
//!
//! Giving the device its addresses, and the machine its routes, is the business of `host`.

pub mod lifecycle;
pub mod vnet;

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
mod descriptor;

#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub use linux::Tun;
#[cfg(any(target_os = "linux", target_os = "android"))]
use linux::can_pass;

#[cfg(any(target_vendor = "apple", test))]
mod utun;

#[cfg(target_vendor = "apple")]
mod macos;
#[cfg(target_vendor = "apple")]
pub use macos::Tun;
#[cfg(target_vendor = "apple")]
use macos::can_pass;

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
mod unsupported;
#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
pub use unsupported::Tun;
#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
use unsupported::can_pass;

use crate::stack::{Offload, OffloadLevel, Transmit};
use core::fmt;
use mio::event::Source;
use std::io;

/// A device that a program has opened which hands it over.
#[cfg(unix)]
pub type Handed = std::os::fd::OwnedFd;
/// A device that a program has opened which hands it over.
#[cfg(windows)]
pub type Handed = std::os::windows::io::OwnedHandle;

/// What was read: one packet at the front of the buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// Octets of the packet.
    pub len: usize,
    /// Whether the transport checksum has to be verified: no when the kernel left it to be filled in or vouches for it.
    pub verify_checksum: bool,
    /// Octets of payload in each segment of a super-segment, or in each datagram of a train; 0: it is one.
    pub segment_size: u16,
}

/// Datagrams in one train to the device: what every kernel that takes trains takes.
pub const MOST_PIECES: usize = 64;

/// A layer-3 device. The module's documentation is the contract.
pub trait Device: Source {
    /// Reads one packet into `buffer`, which is at least as long as the MTU.
    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Received>;

    /// Writes one packet.
    fn send(&mut self, packet: &Transmit<'_>) -> io::Result<()>;

    /// Writes datagrams of one sender to one receiver as one packet that the device cuts: `header` is IP and UDP header, `pieces` are the payloads,
    /// at most [`MOST_PIECES`], all of `offload.segment_size` octets but the last, which may be shorter. Only with [`OffloadLevel::Full`].
    fn send_train(&mut self, header: &[u8], pieces: &[&[u8]], offload: Offload) -> io::Result<()>;

    /// What the device does of what the stack would have to do otherwise ([`Transmit::offload`]).
    fn offload(&self) -> OffloadLevel;

    /// The largest packet, in octets; with offload, of what is segmented.
    fn mtu(&self) -> u16;

    /// The interface's name.
    fn name(&self) -> &str;
}

/// Why there is no device.
#[derive(Debug)]
pub struct OpenError {
    /// What was tried.
    pub what: String,
    /// The system's answer.
    pub source: io::Error,
    /// What to try next.
    pub remedy: String,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.what, self.source, self.remedy)
    }
}

impl core::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        Some(&self.source)
    }
}
