//! Layer-3 devices: packets in, packets out, one file per system.
//!
//! # The contract
//!
//! - A [`Device`] never blocks: with nothing to read, or no room to write, it returns
//!   [`io::ErrorKind::WouldBlock`] and has the poll loop told when that changes ([`Device::listen`]). A signal is not an error.
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

#[cfg(any(windows, test))]
mod guid;
#[cfg(any(windows, test))]
mod handover;

#[cfg(windows)]
mod windows;
#[cfg(windows)]
mod wintun_library;
#[cfg(windows)]
pub use windows::Tun;
#[cfg(windows)]
use windows::can_pass;

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple", windows)))]
mod unsupported;
#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple", windows)))]
pub use unsupported::Tun;
#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple", windows)))]
use unsupported::can_pass;

use crate::stack::{Offload, OffloadLevel, Transmit};
use core::fmt;
use mio::{Registry, Token, Waker};
use std::io;
use std::sync::Arc;

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

/// What wakes a loop from another thread: made when the first device asks for it, and kept for the next, since a poll can have one only.
#[derive(Debug, Default)]
pub struct LoopWaker(Option<Arc<Waker>>);

impl LoopWaker {
    /// The waker of the loop that polls `registry`; it tells of `token`.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn get(&mut self, registry: &Registry, token: Token) -> io::Result<Arc<Waker>> {
        let waker = match self.0.take() {
            Some(waker) => waker,
            None => Arc::new(Waker::new(registry, token)?),
        };
        Ok(Arc::clone(self.0.insert(waker)))
    }

    /// Whether the device is told of by a waker, which knows no difference between reading and writing.
    pub fn is_used(&self) -> bool {
        self.0.is_some()
    }
}

/// A layer-3 device. The module's documentation is the contract.
pub trait Device {
    /// Has the poll tell under `token` when there is something to read, or room to write again: by the device's own readiness, or by a thread
    /// that calls `waker`, on systems whose devices have none.
    ///
    /// # Errors
    ///
    /// The system's; the device cannot be used in this loop then.
    fn listen(&mut self, registry: &Registry, token: Token, waker: &mut LoopWaker) -> io::Result<()>;

    /// Has the poll tell nothing of the device any more.
    ///
    /// # Errors
    ///
    /// The system's.
    fn ignore(&mut self, registry: &Registry) -> io::Result<()>;

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
