//! Systems where no command runs under the loop, so that there is no process to watch.

use mio::{Registry, Token};
use std::io;

/// A process that cannot be.
#[derive(Debug)]
pub enum Watch {}

impl Watch {
    pub(super) fn register(&self, _registry: &Registry, _token: Token) -> io::Result<()> {
        match *self {}
    }

    pub(super) fn deregister(&self, _registry: &Registry) -> io::Result<()> {
        match *self {}
    }

    pub(super) fn terminate(&self) {
        match *self {}
    }
}
