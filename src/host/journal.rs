//! What a run has to undo, on disk before it is done; and the lock that keeps two runs apart.
//!
//! The directory (`/run/ztun`, mode 0700) belongs to the user that ztun runs as: whoever can write to it can make root delete routes, so
//! one that belongs to someone else is refused. In it, for the device `ztun0`:
//!
//! - `ztun0.journal`: a first line that names the format, the device and its interface index, then the undo of every change in the order
//!   of the changes, one line each. A line counts when its newline is there: a torn one was never synced, so its change was never made.
//! - `ztun0.lock`: locked with `flock` by the run that has the device; it holds the process id.
//! - `.routes.lock`: the same for the table and the rules, which all devices share.
//!
//! The files of a run in a network namespace of its own, which has devices, routes and rules of its own, carry that
//! namespace's number: `ztun0@4026532281.journal`.
//!
//! A lock file is deleted before it is released, so a process that waited for nothing may hold a lock on a deleted file: taking a lock
//! ends with a look whether the name still leads to the file that was locked.

use super::change::Change;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const FORMAT: &str = "ztun-journal 1";

/// Where journals and locks are kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunDir {
    path: PathBuf,
    suffix: String,
}

impl RunDir {
    /// The directory of this machine: what the environment variable `ZTUN_RUN_DIR` says, else `/run/ztun`.
    pub fn standard() -> RunDir {
        let path = std::env::var_os("ZTUN_RUN_DIR").filter(|value| !value.is_empty());
        RunDir::at(path.unwrap_or("/run/ztun".into()).into())
    }

    /// Another directory.
    pub fn at(path: PathBuf) -> RunDir {
        RunDir { path, suffix: namespace_suffix() }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What stands between a file's stem and its extension: the number of a network namespace of one's own.
    pub(super) fn suffix(&self) -> &str {
        &self.suffix
    }

    /// The file of this name, told apart from those of other network namespaces.
    pub(super) fn file(&self, stem: &str, extension: &str) -> PathBuf {
        self.path.join(format!("{stem}{}.{extension}", self.suffix))
    }

    fn create(&self) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let found = fs::symlink_metadata(&self.path)?;
        // SAFETY: geteuid has no arguments and cannot fail.
        let user = unsafe { libc::geteuid() };
        if !found.is_dir() || found.uid() != user || found.mode() & 0o022 != 0 {
            let text =
                format!("{} must be a directory that only user {user} can write to", self.path.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        Ok(())
    }
}

/// Empty in the network namespace of process 1, `@NUMBER` in others, and where process 1 cannot be asked.
fn namespace_suffix() -> String {
    let number = |path| fs::metadata(path).map(|found| found.ino());
    match (number("/proc/thread-self/ns/net"), number("/proc/1/ns/net")) {
        (Ok(own), Ok(first)) if own != first => format!("@{own}"),
        (Ok(_), Ok(_) | Err(_)) | (Err(_), _) => String::new(),
    }
}

/// Why a lock was not taken.
#[derive(Debug)]
pub(super) enum LockError {
    /// A live process has it.
    Held {
        /// That process, if it wrote its number yet.
        pid: Option<u32>,
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
pub(super) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock on the device `name`.
    pub(super) fn device(dir: &RunDir, name: &str) -> Result<Lock, LockError> {
        Lock::take(dir, name)
    }

    /// Takes the lock on the table and the rules.
    pub(super) fn routes(dir: &RunDir) -> Result<Lock, LockError> {
        // With a dot in front it sorts first and is no name that the kernel gives by itself.
        Lock::take(dir, ".routes")
    }

    fn take(dir: &RunDir, stem: &str) -> Result<Lock, LockError> {
        let path = dir.file(stem, "lock");
        // Ends: every further round means that another run has just ended and deleted its file, or the directory.
        loop {
            dir.create()?;
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
                .open(&path);
            let mut file = match opened {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            // SAFETY: the descriptor is open; flock touches no memory of ours.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } < 0 {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::WouldBlock {
                    return Err(error.into());
                }
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                return Err(LockError::Held { pid: text.trim().parse().ok() });
            }
            let locked = file.metadata()?;
            let same = |found: fs::Metadata| found.dev() == locked.dev() && found.ino() == locked.ino();
            if fs::symlink_metadata(&path).is_ok_and(same) {
                file.set_len(0)?;
                file.write_all(format!("{}\n", std::process::id()).as_bytes())?;
                return Ok(Lock { file, path });
            }
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
        log::trace!("lock on descriptor {} released", self.file.as_raw_fd());
    }
}

/// What a journal says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Pending {
    /// Interface index of the device that the run had; `None` when the first line cannot be read.
    pub(super) index: Option<u32>,
    /// Undos, the latest change's first: the order in which they are applied.
    pub(super) undos: Vec<Change>,
    /// Complete lines that describe no change.
    pub(super) unreadable: usize,
}

/// The journal of one device.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: Option<File>,
}

impl Journal {
    /// The journal of the device `name`. The caller has its lock.
    pub(super) fn new(dir: &RunDir, name: &str) -> Journal {
        Journal { path: dir.file(name, "journal"), file: None }
    }

    /// What a run that died has left to undo; `None` when there is no journal.
    pub(super) fn pending(&self) -> io::Result<Option<Pending>> {
        let mut octets = Vec::new();
        match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(&self.path)
        {
            Ok(mut file) => file.read_to_end(&mut octets)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(read(&String::from_utf8_lossy(&octets))))
    }

    /// Starts an empty journal for the device with this interface index.
    pub(super) fn begin(&mut self, index: u32) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(&self.path)?;
        file.write_all(format!("{FORMAT} index {index}\n").as_bytes())?;
        file.sync_data()?;
        sync_parent(&self.path)?;
        self.file = Some(file);
        Ok(())
    }

    /// Makes `undo` durable; the change itself is made after that. A record that fails leaves the journal as it was.
    pub(super) fn record(&mut self, undo: &Change) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the journal was not begun"));
        };
        let end = file.seek(SeekFrom::End(0))?;
        let written = file.write_all(format!("{undo}\n").as_bytes()).and_then(|()| file.sync_data());
        if written.is_err() {
            // A torn line in the middle would spoil the one after it.
            file.set_len(end)?;
        }
        written
    }

    /// Deletes the journal: nothing is left to undo.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.file = None;
        match fs::remove_file(&self.path) {
            Ok(()) => sync_parent(&self.path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn read(text: &str) -> Pending {
    let mut pending = Pending::default();
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let Some(line) = line.strip_suffix('\n') else { continue };
        if number == 0
            && let Some(index) = line.strip_prefix(FORMAT).and_then(|rest| rest.strip_prefix(" index "))
            && let Ok(index) = index.parse()
        {
            pending.index = Some(index);
            continue;
        }
        match line.parse() {
            Ok(undo) => pending.undos.push(undo),
            Err(_) => pending.unreadable += 1,
        }
    }
    pending.undos.reverse();
    pending
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::change::tests::change;
    use proptest::prelude::*;

    fn dir() -> (tempfile::TempDir, RunDir) {
        let temporary = tempfile::tempdir().unwrap();
        let dir = RunDir::at(temporary.path().join("run"));
        (temporary, dir)
    }

    fn up() -> Change {
        Change::LinkUp { device: "ztun0".into() }
    }

    #[test]
    fn undos_come_back_the_latest_first_also_to_another_process() {
        let (_temporary, dir) = dir();
        let _lock = Lock::device(&dir, "ztun0").unwrap();
        let mut journal = Journal::new(&dir, "ztun0");
        assert_eq!(journal.pending().unwrap(), None);
        journal.begin(7).unwrap();
        journal.record(&up().undo()).unwrap();
        journal.record(&up()).unwrap();
        let pending = Journal::new(&dir, "ztun0").pending().unwrap().unwrap();
        assert_eq!(pending, Pending { index: Some(7), undos: vec![up(), up().undo()], unreadable: 0 });
        journal.clear().unwrap();
        journal.clear().unwrap();
        assert_eq!(journal.pending().unwrap(), None);
    }

    #[test]
    fn a_record_without_a_beginning_is_refused() {
        let (_temporary, dir) = dir();
        assert!(Journal::new(&dir, "ztun0").record(&up()).is_err());
    }

    #[test]
    fn a_torn_last_line_is_not_an_undo_and_rubbish_is_counted() {
        assert_eq!(read("ztun-journal 1 index 7\nlink up dev ztun0").undos, []);
        let pending = read("ztun-journal 1 index x\n\0\u{fffd}\nlink up dev ztun0\n");
        assert_eq!(pending, Pending { index: None, undos: vec![up()], unreadable: 2 });
        assert_eq!(read(""), Pending::default());
    }

    #[test]
    fn a_second_lock_names_the_holder_and_the_first_is_released_by_drop() {
        let (_temporary, dir) = dir();
        let lock = Lock::device(&dir, "ztun0").unwrap();
        let held = Lock::device(&dir, "ztun0").unwrap_err();
        assert!(matches!(held, LockError::Held { pid: Some(pid) } if pid == std::process::id()), "{held:?}");
        let other = Lock::device(&dir, "ztun1").unwrap();
        drop(lock);
        let again = Lock::device(&dir, "ztun0").unwrap();
        drop((again, other));
        assert!(!dir.path.exists());
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let (temporary, _) = dir();
        let path = temporary.path().join("open");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let refused = Lock::device(&RunDir::at(path), "ztun0").unwrap_err();
        assert!(matches!(refused, LockError::Io(error) if error.kind() == io::ErrorKind::PermissionDenied));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic_and_whole_lines_survive_a_tear(
            changes in proptest::collection::vec(change(), 0..8),
            rubbish in ".*",
            cut in any::<proptest::sample::Index>(),
        ) {
            read(&rubbish);
            let text: String = changes.iter().map(|change| format!("{change}\n")).collect();
            let text = format!("{FORMAT} index 3\n{text}");
            let torn = &text[..cut.index(text.len() + 1)];
            let whole = torn.matches('\n').count().saturating_sub(1);
            let mut expected = changes[..whole].to_vec();
            expected.reverse();
            prop_assert_eq!(read(torn).undos, expected);
        }
    }
}
