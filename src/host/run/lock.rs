//! Where ztun keeps its files while it runs, and the locks that keep two runs apart.
//!
//! The directory (`/run/ztun` on Linux, mode 0700) belongs to the user that ztun runs as: whoever can write to it can make root delete routes, so
//! one that belongs to someone else is refused. In it, for the device `ztun0`:
//!
//! - `ztun0.journal`: see [`journal`](super::journal).
//! - `ztun0.lock`: locked by the run that has the device; it holds the process id and the time at which the process was started, as the
//!   system counts, which tells it from a later process with the same id.
//! - `.routes.lock`: the same for the table and the rules, which all devices share.
//!
//! The files of a run in a network namespace of its own, which has devices, routes and rules of its own, carry that
//! namespace's number: `ztun0@4026532281.journal`.
//!
//! A lock file is deleted before it is released: [`files`] knows what follows from that.
//!
//! A process that was killed has its locks until the kernel has taken it down, device and all, which takes a moment. Whoever comes in that moment waits
//! for its end.

use super::files::{self, Attempt};
use crate::host::process::Other;
use crate::host::system;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a process that is ending has until the kernel has taken it down.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Where journals and locks are kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunDir {
    path: PathBuf,
    suffix: String,
}

impl RunDir {
    /// The directory of this machine: what the environment variable `ZTUN_RUN_DIR` says, else the system's own.
    pub fn standard() -> RunDir {
        let path = std::env::var_os("ZTUN_RUN_DIR").filter(|value| !value.is_empty());
        RunDir::at(path.map_or_else(files::standard_dir, PathBuf::from))
    }

    /// Another directory.
    pub fn at(path: PathBuf) -> RunDir {
        RunDir { path, suffix: system::files_suffix() }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What stands between a file's stem and its extension: the number of a network namespace of one's own.
    #[cfg(unix)]
    pub(in crate::host) fn suffix(&self) -> &str {
        &self.suffix
    }

    pub(in crate::host) fn file(&self, stem: &str, extension: &str) -> PathBuf {
        self.path.join(format!("{stem}{}.{extension}", self.suffix))
    }
}

/// A process that has a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// When it was started, as the system counts. With the id, no other process has it.
    pub started: u64,
}

impl Holder {
    /// This process.
    fn own() -> io::Result<Holder> {
        let pid = std::process::id();
        let started = system::start_time(pid)
            .ok_or_else(|| io::Error::other("the system does not tell when this process was started"))?;
        Ok(Holder { pid, started })
    }

    /// What a lock file says.
    fn parse(text: &str) -> Option<Holder> {
        let mut words = text.split_whitespace();
        let holder = Holder { pid: words.next()?.parse().ok()?, started: words.next()?.parse().ok()? };
        words.next().is_none().then_some(holder)
    }

    /// Whether the process lives and is a ztun: its start time is the one that it wrote, and it runs a program of that name, or this very program. One
    /// that was killed and has not ended yet does not live.
    pub fn is_alive(&self) -> bool {
        if system::start_time(self.pid) != Some(self.started) || system::is_ending(self.pid) {
            return false;
        }
        system::is_ztun(self.pid)
    }
}

/// The live ztun that has the device `name`, by its files in `dir`.
pub(super) fn holder_in(dir: &RunDir, name: &str) -> Option<Holder> {
    let text = fs::read_to_string(dir.file(name, "lock")).ok()?;
    Holder::parse(&text).filter(Holder::is_alive)
}

/// Why a lock was not taken.
#[derive(Debug)]
pub(in crate::host) enum LockError {
    /// A live process has it.
    Held {
        /// That process, if it has said who it is yet.
        holder: Option<Holder>,
    },
    /// The system refused.
    Io(io::Error),
}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> LockError {
        LockError::Io(error)
    }
}

/// A lock; released, and its file deleted, when dropped. The kernel releases it when the process dies.
#[derive(Debug)]
pub(in crate::host) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock on the device `name`.
    pub(in crate::host) fn device(dir: &RunDir, name: &str) -> Result<Lock, LockError> {
        Lock::take(dir, name)
    }

    /// Takes the lock on the table and the rules.
    pub(in crate::host) fn routes(dir: &RunDir) -> Result<Lock, LockError> {
        // With a dot in front it sorts first and is no name that the kernel gives by itself.
        Lock::take(dir, ".routes")
    }

    fn take(dir: &RunDir, stem: &str) -> Result<Lock, LockError> {
        let path = dir.file(stem, "lock");
        let mut waited = false;
        // Ends: every further round means that another run has just ended and deleted its file, or the directory.
        loop {
            files::create_private(&dir.path)?;
            let file = match files::try_lock(&path)? {
                Attempt::Taken(file) => file,
                Attempt::Vanished => continue,
                Attempt::Held(text) => {
                    let holder = Holder::parse(&text);
                    if !core::mem::replace(&mut waited, true)
                        && let Some(ending) = holder.filter(|holder| !holder.is_alive())
                    {
                        if let Some(process) = Other::open(ending.pid)? {
                            process.wait(END_LIMIT)?;
                        }
                        continue;
                    }
                    return Err(LockError::Held { holder });
                }
            };
            // From here on the file goes with the lock, whatever fails.
            let mut lock = Lock { file, path };
            let Holder { pid, started } = Holder::own()?;
            lock.file.set_len(0)?;
            lock.file.write_all(format!("{pid} {started}\n").as_bytes())?;
            return Ok(lock);
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::debug!("lock file {} stays: {error}", self.path.display());
        }
        // The directory goes with the last of them; while another run has files in it, it stays.
        if let Some(dir) = self.path.parent()
            && let Err(error) = fs::remove_dir(dir)
        {
            log::trace!("directory {} stays: {error}", dir.display());
        }
        log::trace!("lock {} released", self.path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> (tempfile::TempDir, RunDir) {
        let temporary = tempfile::tempdir().unwrap();
        let dir = RunDir::at(temporary.path().join("run"));
        (temporary, dir)
    }

    /// Under wine directories belong to no administrators.
    #[cfg(windows)]
    #[test]
    fn on_windows_a_second_lock_names_the_holder() {
        second_lock();
    }

    #[cfg(unix)]
    #[test]
    fn a_second_lock_names_the_holder_and_the_first_is_released_by_drop() {
        second_lock();
    }

    fn second_lock() {
        let (_temporary, dir) = dir();
        let lock = Lock::device(&dir, "ztun0").unwrap();
        let held = Lock::device(&dir, "ztun0").unwrap_err();
        let LockError::Held { holder: Some(holder) } = held else { panic!("{held:?}") };
        assert_eq!(holder.pid, std::process::id());
        assert_eq!(holder_in(&dir, "ztun0"), Some(holder));
        let other = Lock::device(&dir, "ztun1").unwrap();
        drop(lock);
        let again = Lock::device(&dir, "ztun0").unwrap();
        drop((again, other));
        assert_eq!(holder_in(&dir, "ztun0"), None);
        assert!(!dir.path.exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let (temporary, _) = dir();
        let path = temporary.path().join("open");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let refused = Lock::device(&RunDir::at(path), "ztun0").unwrap_err();
        assert!(matches!(refused, LockError::Io(error) if error.kind() == io::ErrorKind::PermissionDenied));
    }

    #[test]
    fn a_process_that_only_has_the_same_number_holds_nothing() {
        let own = Holder::own().unwrap();
        assert!(own.is_alive());
        assert!(!Holder { started: own.started + 1, ..own }.is_alive());
    }

    #[cfg(unix)]
    #[test]
    fn a_process_of_another_program_holds_nothing() {
        let init = Holder { pid: 1, started: system::start_time(1).unwrap() };
        assert!(!init.is_alive(), "process 1 is no ztun");
    }

    #[test]
    fn a_lock_file_that_says_nothing_names_nobody() {
        for text in ["", "12", "x 3", "12 3 4", "-1 3"] {
            assert_eq!(Holder::parse(text), None, "{text}");
        }
        assert_eq!(Holder::parse("12 34\n"), Some(Holder { pid: 12, started: 34 }));
    }
}
