//! Other processes of ztun, on systems where no run is found.

use std::io;
use std::time::Duration;

/// A process that cannot be.
#[derive(Debug)]
pub enum Other {}

impl Other {
    /// Finds nobody.
    pub fn open(_pid: u32) -> io::Result<Option<Other>> {
        Ok(None)
    }

    /// Asks it to end.
    pub fn terminate(&self) -> io::Result<()> {
        match *self {}
    }

    /// Ends it.
    pub fn kill(&self) -> io::Result<()> {
        match *self {}
    }

    /// Waits for its end.
    pub fn wait(&self, _limit: Duration) -> io::Result<bool> {
        match *self {}
    }
}

/// Ends this process at once, whatever its other threads do.
pub fn exit_now(status: i32) -> ! {
    std::process::exit(status)
}
