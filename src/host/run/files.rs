//! Files that this user alone may write to, and locks on them, on Unix systems.
//!
//! A lock file is deleted before it is released, so a process that waited for nothing may hold a lock on a deleted file: taking a lock
//! ends with a look whether the name still leads to the file that was locked.

use crate::host::system;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where they are kept.
pub(super) fn standard_dir() -> PathBuf {
    system::RUN_DIR.into()
}

/// What came of trying to take a lock.
#[derive(Debug)]
pub(super) enum Attempt {
    /// It was taken, and lasts as long as the file is open.
    Taken(File),
    /// A process has it, and has written this.
    Held(String),
    /// The one that had it has just deleted its file, or the directory: try again.
    Vanished,
}

/// Makes sure that there is a directory that only this user can write to.
pub(super) fn create_private(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let found = fs::symlink_metadata(path)?;
    // SAFETY: geteuid has no arguments and cannot fail.
    let user = unsafe { libc::geteuid() };
    if !found.is_dir() || found.uid() != user || found.mode() & 0o022 != 0 {
        let text = format!("{} must be a directory that only user {user} can write to", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(())
}

/// How a file is opened that only this user may read and write.
pub(super) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    options
}

/// Takes the lock of the file `path`, which is made when it is not there.
pub(super) fn try_lock(path: &Path) -> io::Result<Attempt> {
    let mut file = match private().read(true).write(true).create(true).truncate(false).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Attempt::Vanished),
        Err(error) => return Err(error),
    };
    // SAFETY: the descriptor is open; flock touches no memory of ours.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(error);
        }
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        return Ok(Attempt::Held(text));
    }
    let locked = file.metadata()?;
    let same = |found: fs::Metadata| found.dev() == locked.dev() && found.ino() == locked.ino();
    let kept = fs::symlink_metadata(path).is_ok_and(same);
    Ok(if kept { Attempt::Taken(file) } else { Attempt::Vanished })
}

/// Makes the names in the directory of `path` durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}
