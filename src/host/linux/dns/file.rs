//! `/etc/resolv.conf` replaced by a file of ours, and put back: whoever is killed in between.
//!
//! # Theory of operation
//!
//! Where the name `resolv.conf` can be renamed over, the file from before is never written to. It gets a second name beside the first
//! (`resolv.conf.ztun`, a hard link, of a symbolic link as well), ours is written under a third (`resolv.conf.ztun-new`), synced, and renamed over
//! the first. Putting back is one rename of the second name over the first: content, mode, owner, times and all are the file's own, and no disk
//! can be too full for it. Each step leaves a state that [`Place::restore`] knows:
//!
//! | killed before | `resolv.conf` | `.ztun` | `.ztun-new` | putting back |
//! |---|---|---|---|---|
//! | the link | theirs | | | nothing to do |
//! | the new file | theirs | theirs | | the second name goes |
//! | the rename | theirs | theirs | ours | the second and third name go |
//! | putting back | ours | theirs | | the rename |
//!
//! Where the second name is lost, or the file system has no hard links, the file is made again from what ours says of it (see [`text`](super::text)).
//!
//! A file that is mounted for itself (in a container, or by `ip netns exec`) cannot be renamed over: it is written into. Its content is
//! first copied to the run directory, its blocks are reserved before they are written, and a write that fails is taken back.
//!
//! What another program has put in the place meanwhile is what must stand afterwards: it is not touched when we end, and becomes
//! the file from before when ours takes its place again.

use super::text::{How, Meta, Ours, Was, Whose};
use crate::host::Outcome;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The longest file that is taken for a resolv.conf(5), octets.
const LONGEST: u64 = 64 << 10;
/// The longest of ours, octets: it has all lines of another behind two more octets each, and some of them once more.
const LONGEST_OF_OURS: u64 = 5 * LONGEST;
/// Tries to replace a file that another program replaces at the same moment.
const TRIES: u32 = 3;

/// The names around one resolv.conf.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// The file itself.
    pub(super) path: PathBuf,
    /// The second name of the file from before.
    kept: PathBuf,
    /// The name under which ours is written.
    fresh: PathBuf,
    /// The copy of the content of a file that is written into.
    copy: PathBuf,
    /// Whether the directory is another machine's, so that nothing may be renamed there.
    mounted: bool,
}

/// What stands in the place.
struct Found {
    whose: Whose,
    /// What it is, as ours would say of it. Of a link that is the link; `octets` are of what it leads to.
    was: Was,
    octets: Vec<u8>,
    /// The file, or the link, itself.
    identity: Option<(u64, u64)>,
}

impl Place {
    /// The place at `path`, with copies at `copy`. Where the directory is another machine's, `mounted` is set.
    pub(super) fn new(path: &Path, copy: PathBuf, mounted: bool) -> Place {
        let beside = |suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        Place { path: path.into(), kept: beside(".ztun"), fresh: beside(".ztun-new"), copy, mounted }
    }

    /// Whose the file in the place is, and its content.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is none.
    pub(super) fn whose(&self) -> io::Result<(Whose, Vec<u8>)> {
        self.look().map(|found| (found.whose, found.octets))
    }

    /// Puts a file of ours with `servers` in the place.
    ///
    /// # Errors
    ///
    /// The system refuses, and everything is as before.
    pub(super) fn set(&self, device: &str, servers: &[IpAddr]) -> io::Result<()> {
        if self.mounted {
            return self.set_by_writing(device, servers);
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let Err(error) = self.set_by_rename(device, servers) else { return Ok(()) };
            if error.kind() == ErrorKind::Interrupted && tries < TRIES {
                continue;
            }
            // Mounted for itself; or writable for itself in a file system that is not.
            let unmovable = matches!(
                error.kind(),
                ErrorKind::ResourceBusy | ErrorKind::CrossesDevices | ErrorKind::ReadOnlyFilesystem
            );
            if unmovable && fs::symlink_metadata(&self.path).is_ok_and(|found| found.is_file()) {
                return self.set_by_writing(device, servers);
            }
            return Err(error);
        }
    }

    /// Puts back what was there before, if ours is still in the place, and removes the other names.
    ///
    /// # Errors
    ///
    /// The system refuses; then it can be tried again.
    pub(super) fn restore(&self) -> io::Result<Outcome> {
        match self.restore_once() {
            // Another one of our threads, which has no patience left, was quicker.
            Err(error) if error.kind() == ErrorKind::NotFound => self.restore_once(),
            result => result,
        }
    }

    fn restore_once(&self) -> io::Result<Outcome> {
        let done = match self.whose_there()?.0 {
            Whose::Others => false,
            Whose::Ours(Ours { how: How::Written, was, .. }) => self.write_back(was).map(|()| true)?,
            // In another machine's directory nothing of ours was ever renamed.
            Whose::Ours(Ours { how: How::Renamed, .. }) | Whose::Spoilt if self.mounted => {
                return Ok(Outcome::Already);
            }
            Whose::Ours(Ours { how: How::Renamed, was, .. }) => self.rename_back(was).map(|()| true)?,
            Whose::Spoilt if self.keeps(None) => fs::rename(&self.kept, &self.path).map(|()| true)?,
            Whose::Spoilt => {
                return Err(io::Error::new(
                    ErrorKind::InvalidData,
                    "it is ztun's, but what was there before cannot be read from it",
                ));
            }
        };
        step();
        if done && !self.mounted {
            sync_directory(&self.path)?;
        }
        let cleaned = self.clean()?;
        Ok(if done || cleaned { Outcome::Done } else { Outcome::Already })
    }

    /// Puts back what was there before by a rename.
    fn rename_back(&self, was: Was) -> io::Result<()> {
        let from = match was {
            Was::Nothing => return fs::remove_file(&self.path),
            Was::Link(_) | Was::File { .. } if self.keeps(Some(&was)) => &self.kept,
            Was::Link(target) => {
                remove(&self.fresh)?;
                std::os::unix::fs::symlink(target, &self.fresh)?;
                &self.fresh
            }
            Was::File { meta, content } => {
                self.write_fresh(&content, meta)?;
                &self.fresh
            }
        };
        step();
        fs::rename(from, &self.path)
    }

    /// The device and name servers of a file of ours in the place, or nothing of them when only another name is left; `None` when
    /// there is nothing of ours.
    pub(super) fn leftover(&self) -> Option<(String, Vec<IpAddr>)> {
        let (whose, octets) = self.whose_there().ok()?;
        match whose {
            Whose::Ours(Ours { how: How::Renamed, .. }) | Whose::Spoilt if self.mounted => None,
            Whose::Ours(ours) => Some((ours.device, nameservers(&octets))),
            Whose::Spoilt => Some((String::new(), nameservers(&octets))),
            Whose::Others => {
                let left = self.names().into_iter().any(|name| fs::symlink_metadata(name).is_ok());
                left.then(Default::default)
            }
        }
    }

    /// Whose the file in the place is, and its content; what is no resolv.conf(5) at all is another's.
    fn whose_there(&self) -> io::Result<(Whose, Vec<u8>)> {
        match self.look() {
            Ok(found) => Ok((found.whose, found.octets)),
            Err(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::FileTooLarge) => {
                Ok((Whose::Others, Vec::new()))
            }
            Err(error) => Err(error),
        }
    }

    /// The names besides the first that may be ours.
    fn names(&self) -> Vec<&Path> {
        let beside = [self.kept.as_path(), &self.fresh];
        beside.into_iter().filter(|_| !self.mounted).chain([self.copy.as_path()]).collect()
    }

    /// Removes them, and tells whether there were any.
    fn clean(&self) -> io::Result<bool> {
        let mut any = false;
        for name in self.names() {
            any |= remove(name)?;
        }
        if any && !self.mounted {
            sync_directory(&self.path)?;
        }
        Ok(any)
    }

    /// Whether the second name leads to what was there before: to anything that is not ours, when that is not known.
    fn keeps(&self, was: Option<&Was>) -> bool {
        let Ok(kept) = fs::symlink_metadata(&self.kept) else { return false };
        if kept.is_symlink() {
            let target = fs::read_link(&self.kept).map(PathBuf::into_os_string);
            return match was {
                Some(Was::Link(known)) => target.is_ok_and(|target| target.as_os_str() == known.as_str()),
                Some(Was::Nothing | Was::File { .. }) => false,
                None => true,
            };
        }
        let Ok(octets) = read(&self.kept) else { return false };
        match was {
            Some(Was::File { content, .. }) => *content == octets,
            Some(Was::Nothing | Was::Link(_)) => false,
            None => Ours::parse(&octets) == Whose::Others,
        }
    }

    fn look(&self) -> io::Result<Found> {
        let meta = match fs::symlink_metadata(&self.path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Found {
                    whose: Whose::Others,
                    was: Was::Nothing,
                    octets: Vec::new(),
                    identity: None,
                });
            }
            Err(error) => return Err(error),
        };
        let octets = match read(&self.path) {
            Ok(octets) => octets,
            // A link that leads nowhere.
            Err(error) if error.kind() == ErrorKind::NotFound && meta.is_symlink() => Vec::new(),
            Err(error) => return Err(error),
        };
        let identity = Some((meta.dev(), meta.ino()));
        if meta.is_symlink() && !self.mounted {
            // Ours never lies behind a link: whose it leads to is another's.
            let target = fs::read_link(&self.path)?.into_os_string().into_string();
            let target = target.ok().filter(|target| !target.contains(char::is_control));
            let refused = || io::Error::new(ErrorKind::InvalidData, "the name it links to is not text");
            let was = Was::Link(target.ok_or_else(refused)?);
            return Ok(Found { whose: Whose::Others, was, octets, identity });
        }
        let (whose, meta) = (Ours::parse(&octets), meta_of(&fs::metadata(&self.path)?));
        Ok(Found { whose, was: Was::File { meta, content: octets.clone() }, octets, identity })
    }

    fn set_by_rename(&self, device: &str, servers: &[IpAddr]) -> io::Result<()> {
        let found = self.look()?;
        let (was, kept_already) = match found.whose {
            Whose::Others => (found.was, false),
            Whose::Ours(Ours { how: How::Renamed, was, .. }) => (was, true),
            Whose::Ours(Ours { how: How::Written, .. }) => return Err(ErrorKind::ResourceBusy.into()),
            Whose::Spoilt => return Err(ErrorKind::InvalidData.into()),
        };
        let mut meta = match &was {
            Was::File { meta, .. } => *meta,
            Was::Nothing | Was::Link(_) => Meta { mode: 0o644, uid: 0, gid: 0, modified: (0, 0) },
        };
        // Ours is as old as it is, whatever the age of the other.
        meta.modified = (0, libc::UTIME_OMIT);
        let octets = Ours { how: How::Renamed, device: device.into(), was }.emit(servers, &found.octets);
        step();
        if !kept_already && found.identity.is_some() {
            self.keep()?;
        }
        step();
        let placed = self.write_fresh(&octets, meta).and_then(|()| {
            step();
            // The second name must lead to what is about to be replaced.
            let same = fs::symlink_metadata(&self.path).ok().map(|meta| (meta.dev(), meta.ino()));
            if same != found.identity {
                return Err(io::Error::new(ErrorKind::Interrupted, "another program replaces it just now"));
            }
            fs::rename(&self.fresh, &self.path)
        });
        if let Err(error) = placed {
            if kept_already { remove(&self.fresh).map(drop) } else { self.clean().map(drop) }
                .unwrap_or_else(|error| log::debug!("{}: {error}", self.fresh.display()));
            return Err(error);
        }
        step();
        sync_directory(&self.path)
    }

    /// Gives what is in the place its second name.
    fn keep(&self) -> io::Result<()> {
        remove(&self.kept)?;
        match fs::hard_link(&self.path, &self.kept) {
            Ok(()) => sync_directory(&self.path),
            // No hard links here: ours says what was there.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::PermissionDenied | ErrorKind::Unsupported | ErrorKind::TooManyLinks
                ) =>
            {
                log::debug!("{}: {error}", self.kept.display());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Writes a new file under the third name, and syncs it.
    fn write_fresh(&self, octets: &[u8], meta: Meta) -> io::Result<()> {
        let written = write_new(&self.fresh, octets, meta);
        if written.is_err()
            && let Err(error) = remove(&self.fresh)
        {
            log::debug!("{}: {error}", self.fresh.display());
        }
        written
    }

    fn set_by_writing(&self, device: &str, servers: &[IpAddr]) -> io::Result<()> {
        let file = open(OpenOptions::new().read(true).write(true), &self.path)?;
        let octets = read_all(&file)?;
        let meta = meta_of(&file.metadata()?);
        let (was, copied_already) = match Ours::parse(&octets) {
            Whose::Others => (Was::File { meta, content: octets.clone() }, false),
            Whose::Ours(Ours { how: How::Written, was, .. }) => (was, true),
            Whose::Ours(Ours { how: How::Renamed, .. }) | Whose::Spoilt => {
                return Err(ErrorKind::InvalidData.into());
            }
        };
        step();
        if !copied_already {
            remove(&self.copy)?;
            let copied = write_new(&self.copy, &octets, meta).and_then(|()| sync_directory(&self.copy));
            if let Err(error) = copied {
                remove(&self.copy)?;
                let text = format!("no copy at {}: {error}", self.copy.display());
                return Err(io::Error::new(error.kind(), text));
            }
        }
        step();
        let new = Ours { how: How::Written, device: device.into(), was }.emit(servers, &octets);
        let written = reserve(&file, new.len()).and_then(|()| overwrite(&file, &new));
        if let Err(error) = written {
            overwrite(&file, &octets)?;
            if !copied_already {
                set_times(&file, meta)?;
                remove(&self.copy)?;
            }
            return Err(error);
        }
        step();
        Ok(())
    }

    /// Writes what was there before back into the file.
    fn write_back(&self, was: Was) -> io::Result<()> {
        let Was::File { meta, content } = was else {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                "a file that was written into was no file before",
            ));
        };
        // A write that was cut short has cut what ours says short.
        let content = match read(&self.copy) {
            Ok(copy) if Ours::parse(&copy) == Whose::Others => copy,
            Ok(_) => content,
            Err(error) => {
                log::debug!("{}: {error}; what the file itself says is used", self.copy.display());
                content
            }
        };
        let file = open(OpenOptions::new().write(true), &self.path)?;
        overwrite(&file, &content)?;
        set_times(&file, meta)
    }
}

/// The name servers in a resolv.conf(5).
pub(super) fn nameservers(octets: &[u8]) -> Vec<IpAddr> {
    crate::host::linux::netns::all_nameservers(&String::from_utf8_lossy(octets)).collect()
}

fn meta_of(meta: &Metadata) -> Meta {
    Meta {
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        modified: (meta.mtime(), meta.mtime_nsec()),
    }
}

fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // Whatever it is, opening it does not wait.
    options.custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY).open(path)
}

/// The content of the file that `path` leads to.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_all(&open(OpenOptions::new().read(true), path)?)
}

fn read_all(file: &File) -> io::Result<Vec<u8>> {
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidData, "it is no file"));
    }
    let mut octets = Vec::new();
    file.take(LONGEST_OF_OURS + 1).read_to_end(&mut octets)?;
    let longest = if Ours::parse(&octets) == Whose::Others { LONGEST } else { LONGEST_OF_OURS };
    if octets.len() as u64 > longest {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("it has more than {longest} octets")));
    }
    Ok(octets)
}

/// Writes a file that was not there, with its mode and, where that is allowed, its owner; and syncs it.
fn write_new(path: &Path, octets: &[u8], meta: Meta) -> io::Result<()> {
    remove(path)?;
    let mut options = OpenOptions::new();
    let mut file = open(options.write(true).create_new(true).mode(0o600), path)?;
    file.write_all(octets)?;
    // First the owner: changing it clears bits of the mode.
    if let Err(error) = std::os::unix::fs::fchown(&file, Some(meta.uid), Some(meta.gid)) {
        log::debug!("owner of {}: {error}", path.display());
    }
    file.set_permissions(fs::Permissions::from_mode(meta.mode))?;
    set_times(&file, meta)?;
    file.sync_all()
}

/// Sets the time of modification.
fn set_times(file: &File, meta: Meta) -> io::Result<()> {
    let (seconds, nanoseconds) = meta.modified;
    let omitted = libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT };
    // Narrower than 64 bits on old 32-bit systems only, whose files cannot have times that do not fit.
    let modified = libc::timespec { tv_sec: seconds as _, tv_nsec: nanoseconds as libc::c_long };
    let times = [omitted, modified];
    // SAFETY: the descriptor is open, and the pointer is to two live timespecs, as the call wants.
    if unsafe { libc::futimens(file.as_raw_fd(), times.as_ptr()) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Reserves blocks for `length` octets, where the file system can.
fn reserve(file: &File, length: usize) -> io::Result<()> {
    let length = libc::off_t::try_from(length).map_err(|_| ErrorKind::FileTooLarge)?;
    // SAFETY: the call takes an open descriptor and numbers.
    if unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 0, length) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => Ok(()),
        _ => Err(error),
    }
}

/// Gives a file another content. It is never empty in between.
fn overwrite(file: &File, octets: &[u8]) -> io::Result<()> {
    file.write_all_at(octets, 0)?;
    file.set_len(octets.len() as u64)?;
    file.sync_all()
}

/// Removes a name, and tells whether it was there.
fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        // What is not there cannot be removed from a file system that cannot be written to either.
        Err(error)
            if error.kind() == ErrorKind::ReadOnlyFilesystem && fs::symlink_metadata(path).is_err() =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// Between two steps: where tests end a run as `kill -9` does.
fn step() {
    #[cfg(test)]
    tests::step();
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    thread_local! {
        /// Steps until the end of the run; `None` for a run that lives.
        static STEPS_LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// What unwinds has nothing to clean up: all that it does not do afterwards, a killed process does not do either.
    struct Killed;

    pub(super) fn step() {
        match STEPS_LEFT.get() {
            Some(0) => std::panic::resume_unwind(Box::new(Killed)),
            Some(left) => STEPS_LEFT.set(Some(left - 1)),
            None => {}
        }
    }

    /// Runs `body` and kills it after `steps`; whether it was.
    fn killed_after(steps: u32, body: impl FnOnce()) -> bool {
        STEPS_LEFT.set(Some(steps));
        let result = catch_unwind(AssertUnwindSafe(body));
        STEPS_LEFT.set(None);
        match result {
            Ok(()) => false,
            Err(why) if why.is::<Killed>() => true,
            Err(why) => std::panic::resume_unwind(why),
        }
    }

    const CONTENT: &str = "# the machine's own\nsearch lan\nnameserver 192.168.1.1";

    struct Etc {
        directory: tempfile::TempDir,
        place: Place,
    }

    impl Etc {
        fn empty() -> Etc {
            let directory = tempfile::tempdir().unwrap();
            fs::create_dir(directory.path().join("run")).unwrap();
            fs::create_dir(directory.path().join("etc")).unwrap();
            let place = Place::new(
                &directory.path().join("etc/resolv.conf"),
                directory.path().join("run/resolv.conf.copy"),
                false,
            );
            Etc { directory, place }
        }

        fn with_file() -> Etc {
            let etc = Etc::empty();
            etc.write(CONTENT);
            fs::set_permissions(&etc.place.path, fs::Permissions::from_mode(0o640)).unwrap();
            let meta = Meta { mode: 0, uid: 0, gid: 0, modified: (1_600_000_000, 123_456_789) };
            set_times(&File::open(&etc.place.path).unwrap(), meta).unwrap();
            etc
        }

        fn with_link(target: &str) -> Etc {
            let etc = Etc::empty();
            std::os::unix::fs::symlink(target, &etc.place.path).unwrap();
            etc
        }

        /// As those that cannot rename over the file have it.
        fn mounted(mut self) -> Etc {
            self.place.mounted = true;
            self
        }

        fn write(&self, text: &str) {
            fs::write(&self.place.path, text).unwrap();
        }

        fn read(&self) -> String {
            fs::read_to_string(&self.place.path).unwrap()
        }

        /// Everything below the directory: names, kinds, contents, modes, owners, times; with `inodes` also which file it is.
        fn state(&self, inodes: bool) -> Vec<String> {
            let mut state = Vec::new();
            for directory in ["etc", "run"] {
                for entry in fs::read_dir(self.directory.path().join(directory)).unwrap() {
                    let path = entry.unwrap().path();
                    let meta = fs::symlink_metadata(&path).unwrap();
                    let content = if meta.is_symlink() {
                        format!("-> {}", fs::read_link(&path).unwrap().display())
                    } else {
                        format!("{:?}", fs::read(&path).unwrap())
                    };
                    let file = meta_of(&meta);
                    // The time of a link is not kept by one that is made again.
                    let times = (!meta.is_symlink()).then_some(file.modified);
                    let inode = inodes.then_some(meta.ino());
                    let (mode, owner) = (file.mode, (file.uid, file.gid));
                    state
                        .push(format!("{} {content} {mode:o} {owner:?} {times:?} {inode:?}", path.display()));
                }
            }
            state.sort();
            state
        }

        fn set(&self) {
            self.place.set("ztun0", &servers()).unwrap();
        }
    }

    fn servers() -> [IpAddr; 2] {
        ["198.18.0.2", "fd7a:7a74:756e::2"].map(|server| server.parse().unwrap())
    }

    fn all_kinds() -> Vec<Etc> {
        vec![
            Etc::with_file(),
            Etc::with_link("../run/resolv.conf"),
            Etc::with_link("/nowhere/resolv.conf"),
            Etc::empty(),
            Etc::with_file().mounted(),
        ]
    }

    #[test]
    fn names_are_asked_for_in_the_tunnel_and_the_file_is_the_same_afterwards() {
        for etc in all_kinds() {
            let before = etc.state(true);
            etc.set();
            let (whose, octets) = etc.place.whose().unwrap();
            assert!(matches!(whose, Whose::Ours(ref ours) if ours.device == "ztun0"), "{whose:?}");
            assert_eq!(nameservers(&octets), servers());
            assert_eq!(etc.place.leftover(), Some(("ztun0".into(), servers().into())));
            assert_eq!(etc.place.restore().unwrap(), Outcome::Done);
            assert_eq!(etc.state(true), before);
            assert_eq!(etc.place.leftover(), None);
            assert_eq!(etc.place.restore().unwrap(), Outcome::Already);
        }
    }

    #[test]
    fn search_and_options_stay_and_so_do_mode_and_readers() {
        let etc = Etc::with_file();
        etc.set();
        assert!(etc.read().ends_with("\nsearch lan\nnameserver 198.18.0.2\nnameserver fd7a:7a74:756e::2\n"));
        assert_eq!(fs::metadata(&etc.place.path).unwrap().mode() & 0o7777, 0o640);
        let etc = Etc::with_link("../run/resolv.conf");
        fs::write(etc.directory.path().join("run/resolv.conf"), "options edns0\nnameserver 10.0.0.1\n")
            .unwrap();
        etc.set();
        assert!(etc.read().contains("\noptions edns0\n"));
        assert_eq!(fs::metadata(&etc.place.path).unwrap().mode() & 0o7777, 0o644);
    }

    /// F19
    #[test]
    fn a_run_killed_between_any_two_steps_is_undone_and_the_next_one_starts() {
        for kind in 0..all_kinds().len() {
            let mut ends = 0;
            for steps in 0.. {
                let etc = all_kinds().remove(kind);
                let before = etc.state(true);
                if !killed_after(steps, || etc.set()) {
                    break;
                }
                ends += 1;
                etc.place.restore().unwrap();
                assert_eq!(etc.state(true), before, "kind {kind}, killed after {steps} steps");
                // And once more, without undoing what the killed run left.
                killed_after(steps, || etc.set());
                etc.set();
                etc.place.restore().unwrap();
                assert_eq!(etc.state(true), before, "kind {kind}, killed after {steps} steps, then run");
            }
            assert!(ends > 2, "{ends}");
        }
    }

    /// F18
    #[test]
    fn putting_back_can_be_killed_and_repeated() {
        for kind in 0..all_kinds().len() {
            for steps in 0..3 {
                let etc = all_kinds().remove(kind);
                let before = etc.state(true);
                etc.set();
                killed_after(steps, || assert_eq!(etc.place.restore().unwrap(), Outcome::Done));
                etc.place.restore().unwrap();
                assert_eq!(etc.state(true), before, "kind {kind}, killed after {steps} steps");
            }
        }
    }

    #[test]
    fn with_the_other_names_lost_it_is_made_again_from_what_ours_says() {
        for etc in all_kinds() {
            let before = etc.state(false);
            etc.set();
            for name in etc.place.names() {
                remove(name).unwrap();
            }
            assert_eq!(etc.place.restore().unwrap(), Outcome::Done);
            assert_eq!(etc.state(false), before);
        }
    }

    #[test]
    fn a_second_name_that_leads_to_something_else_is_not_put_back() {
        let etc = Etc::with_file();
        etc.set();
        fs::remove_file(&etc.place.kept).unwrap();
        fs::write(&etc.place.kept, "nameserver 6.6.6.6\n").unwrap();
        etc.place.restore().unwrap();
        assert_eq!(etc.read(), CONTENT);
        assert!(fs::symlink_metadata(&etc.place.kept).is_err());
    }

    /// F20
    #[test]
    fn what_another_program_writes_meanwhile_stands_afterwards() {
        for etc in all_kinds() {
            etc.set();
            let theirs = "nameserver 172.16.0.1\n";
            if etc.place.mounted {
                etc.write(theirs);
            } else {
                let other = etc.place.path.with_extension("theirs");
                fs::write(&other, theirs).unwrap();
                fs::rename(other, &etc.place.path).unwrap();
            }
            let inode = fs::metadata(&etc.place.path).unwrap().ino();
            assert_eq!(etc.place.leftover(), Some(Default::default()).filter(|_| etc.state(false).len() > 1));
            etc.place.restore().unwrap();
            assert_eq!((etc.read().as_str(), etc.state(false).len()), (theirs, 1));
            assert_eq!(fs::metadata(&etc.place.path).unwrap().ino(), inode);
        }
    }

    /// F20
    #[test]
    fn ours_over_what_another_program_wrote_is_undone_to_that() {
        for etc in all_kinds() {
            etc.set();
            etc.write("nameserver 172.16.0.1\n");
            for steps in 0..6 {
                let killed = killed_after(steps, || etc.set());
                assert!(!killed || etc.place.leftover().is_some() || etc.read().contains("172.16.0.1"));
            }
            etc.set();
            assert_eq!(nameservers(etc.read().as_bytes()), servers());
            etc.place.restore().unwrap();
            assert_eq!(etc.read(), "nameserver 172.16.0.1\n");
            assert_eq!(etc.state(false).len(), 1);
        }
    }

    #[test]
    fn a_line_added_to_ours_is_gone_with_it() {
        for etc in [Etc::with_file(), Etc::with_file().mounted()] {
            let before = etc.state(true);
            etc.set();
            etc.write(&format!("nameserver 10.9.9.9\n{}options rotate\n", etc.read()));
            etc.set();
            assert_eq!(nameservers(etc.read().as_bytes()), servers());
            assert!(etc.read().contains("\noptions rotate\n"), "{}", etc.read());
            etc.place.restore().unwrap();
            assert_eq!(etc.state(true), before);
        }
    }

    #[test]
    fn one_of_ours_that_is_damaged_is_undone_by_the_second_name_or_not_at_all() {
        let etc = Etc::with_file();
        let before = etc.state(true);
        etc.set();
        let damaged = etc.read().replace(" was file ", " was ");
        etc.write(&damaged);
        assert_eq!(etc.place.restore().unwrap(), Outcome::Done);
        assert_eq!(etc.state(true), before);
        etc.write(&damaged);
        assert_eq!(etc.place.restore().unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(etc.place.set("ztun0", &servers()).unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(etc.read(), damaged);
    }

    #[test]
    fn what_is_no_resolv_conf_is_left_alone() {
        let huge = Etc::empty();
        huge.write(&"# long\n".repeat(10_000));
        let directory = Etc::empty();
        fs::create_dir(&directory.place.path).unwrap();
        let fifo = Etc::empty();
        let name = std::ffi::CString::new(fifo.place.path.to_str().unwrap()).unwrap();
        // SAFETY: a string that ends with NUL, and a number.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o644) }, 0);
        for (etc, kind) in [
            (huge, ErrorKind::FileTooLarge),
            (directory, ErrorKind::InvalidData),
            (fifo, ErrorKind::InvalidData),
        ] {
            assert_eq!(etc.place.set("ztun0", &servers()).unwrap_err().kind(), kind);
            assert_eq!(etc.place.restore().unwrap(), Outcome::Already);
            assert_eq!(fs::read_dir(etc.directory.path().join("etc")).unwrap().count(), 1);
        }
    }

    #[test]
    fn the_longest_file_that_is_taken_comes_back() {
        for etc in [Etc::empty(), Etc::empty().mounted()] {
            etc.write(&"\n".repeat(LONGEST as usize));
            let before = etc.state(true);
            etc.set();
            etc.place.restore().unwrap();
            assert_eq!(etc.state(true), before);
        }
    }

    #[test]
    fn without_a_place_for_the_copy_nothing_is_written_into() {
        let etc = Etc::with_file().mounted();
        fs::remove_dir(etc.directory.path().join("run")).unwrap();
        let error = etc.place.set("ztun0", &servers()).unwrap_err();
        assert!(error.to_string().contains("no copy at"), "{error}");
        assert_eq!(etc.read(), CONTENT);
    }

    #[test]
    fn in_a_directory_of_another_machine_no_name_is_touched() {
        let etc = Etc::with_file();
        etc.set();
        // The same file seen from a network namespace that has its directory, but not the file, in common with this one.
        let other = Place { mounted: true, ..etc.place.clone() };
        let during = etc.state(true);
        assert_eq!(other.leftover(), None);
        assert_eq!(other.restore().unwrap(), Outcome::Already);
        assert_eq!(etc.state(true), during);
    }
}
