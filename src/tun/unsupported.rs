//! Systems without a device of their own: type-checks, opens nothing.

use super::{Device, Handed, LoopWaker, OpenError, Received};
use crate::stack::{Offload, OffloadLevel, Transmit};
use mio::{Registry, Token};
use std::io;

/// What there is on a system without a device.
const REMEDY: &str = "a Linux machine; here there is `ztun proxy` so far";

/// A device that cannot exist here.
#[derive(Debug)]
pub enum Tun {}

impl Tun {
    /// Fails: this system is not supported.
    pub fn open(name: &str, _mtu: u16, _wanted: OffloadLevel) -> Result<Tun, OpenError> {
        Err(OpenError {
            what: format!("cannot create the device {name}: this version has none on this system"),
            source: io::ErrorKind::Unsupported.into(),
            remedy: REMEDY.into(),
        })
    }

    /// Fails: this system is not supported.
    pub fn from_fd(_fd: Handed, _mtu: u16, _wanted: OffloadLevel) -> Result<Tun, OpenError> {
        Err(OpenError {
            what: "cannot use what was handed over as a TUN device".into(),
            source: io::ErrorKind::Unsupported.into(),
            remedy: REMEDY.into(),
        })
    }

    /// Fails: this system is not supported.
    pub fn from_raw(raw: i32, _mtu: u16, _wanted: OffloadLevel) -> Result<Tun, OpenError> {
        Err(OpenError {
            what: format!("cannot use descriptor {raw} as a TUN device"),
            source: io::ErrorKind::Unsupported.into(),
            remedy: REMEDY.into(),
        })
    }
}

/// Whether opening a device may succeed when it is tried again.
pub(super) fn can_pass(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::ResourceBusy | io::ErrorKind::WouldBlock
    )
}

impl Device for Tun {
    fn listen(&mut self, _registry: &Registry, _token: Token, _waker: &mut LoopWaker) -> io::Result<()> {
        match *self {}
    }

    fn ignore(&mut self, _registry: &Registry) -> io::Result<()> {
        match *self {}
    }

    fn recv(&mut self, _buffer: &mut [u8]) -> io::Result<Received> {
        match *self {}
    }

    fn send(&mut self, _packet: &Transmit<'_>) -> io::Result<()> {
        match *self {}
    }

    fn send_train(&mut self, _header: &[u8], _pieces: &[&[u8]], _offload: Offload) -> io::Result<()> {
        match *self {}
    }

    fn offload(&self) -> OffloadLevel {
        match *self {}
    }

    fn mtu(&self) -> u16 {
        match *self {}
    }

    fn name(&self) -> &str {
        match *self {}
    }
}
