//! A system whose network is not watched yet: everything else works, and a change is met by what fails.

use super::debounce::Clocks;
use super::{Monitor, NetworkState, Noticed, Own, Path, Question};
use mio::event::Source;
use mio::{Interest, Registry, Token};
use std::io;

/// Nobody watches.
#[derive(Debug)]
pub struct SystemMonitor(());

impl SystemMonitor {
    /// # Errors
    ///
    /// Always [`io::ErrorKind::Unsupported`].
    pub fn new(_own: Own) -> io::Result<SystemMonitor> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Source for SystemMonitor {
    fn register(&mut self, _registry: &Registry, _token: Token, _interests: Interest) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn reregister(&mut self, _registry: &Registry, _token: Token, _interests: Interest) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn deregister(&mut self, _registry: &Registry) -> io::Result<()> {
        Ok(())
    }
}

impl Monitor for SystemMonitor {
    fn drain(&mut self) -> io::Result<Noticed> {
        Ok(Noticed::NOTHING)
    }

    fn state(&mut self) -> io::Result<NetworkState> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn path(&mut self, _question: Question) -> io::Result<Option<Path>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn clocks(&self) -> Clocks {
        Clocks { wall: core::time::Duration::ZERO, boot: core::time::Duration::ZERO }
    }
}
