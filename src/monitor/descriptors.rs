//! Two descriptors of Linux: one tells that `/etc/resolv.conf` was written or replaced, one that the clock was set or the machine woke.

use super::debounce::Clocks;
use super::system::{clock, owned};
use std::collections::BTreeSet;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::hash::Hasher;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where a machine's name servers are named (resolv.conf(5)).
const RESOLVER_FILE: &str = "/etc/resolv.conf";
/// More of it than any resolver reads.
const RESOLVER_OCTETS: u64 = 64 << 10;
/// `struct inotify_event` before its name (inotify(7)).
const EVENT_HEADER: usize = 16;

/// Reads from a descriptor that does not block.
fn read(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: the descriptor is open, and the buffer is as many octets as are said, which nothing else uses meanwhile.
        let got = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        if let Ok(got) = usize::try_from(got) {
            return Ok(got);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Watches the file of the name servers: itself, for one that is written in place or mounted over; its folder, for one that is replaced;
/// and where it leads to, for a symbolic link.
#[derive(Debug)]
pub(super) struct ResolverWatch {
    inotify: OwnedFd,
    file: PathBuf,
    /// Names that count, in whatever folder.
    names: BTreeSet<OsString>,
}

impl AsRawFd for ResolverWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.inotify.as_raw_fd()
    }
}

impl ResolverWatch {
    /// Watches `/etc/resolv.conf`.
    pub(super) fn new() -> io::Result<ResolverWatch> {
        ResolverWatch::of(Path::new(RESOLVER_FILE))
    }

    fn of(file: &Path) -> io::Result<ResolverWatch> {
        // SAFETY: takes a number only.
        let inotify = owned(unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) })?;
        let mut watch = ResolverWatch { inotify, file: file.to_owned(), names: BTreeSet::new() };
        watch.follow();
        Ok(watch)
    }

    /// Watches what is there; what is watched already stays so.
    fn follow(&mut self) {
        let written = libc::IN_CLOSE_WRITE;
        let replaced = written | libc::IN_CREATE | libc::IN_DELETE | libc::IN_MOVED_TO | libc::IN_MOVED_FROM;
        let target = fs::canonicalize(&self.file).ok();
        for path in [Some(self.file.clone()), target].into_iter().flatten() {
            self.names.extend(path.file_name().map(OsStr::to_owned));
            self.add(&path, written);
            if let Some(folder) = path.parent() {
                self.add(folder, replaced | libc::IN_ONLYDIR);
            }
        }
    }

    fn add(&self, path: &Path, mask: u32) {
        let Ok(name) = CString::new(path.as_os_str().as_bytes()) else { return };
        // SAFETY: the descriptor is open, and the name is a string that ends with NUL and outlives the call.
        if unsafe { libc::inotify_add_watch(self.inotify.as_raw_fd(), name.as_ptr(), mask) } < 0 {
            log::debug!("{} is not watched: {}", path.display(), io::Error::last_os_error());
        }
    }

    /// Takes all events; whether one of them is about the file.
    pub(super) fn drain(&mut self) -> bool {
        let mut about = false;
        let mut buffer = [0; 4_096];
        loop {
            match read(&self.inotify, &mut buffer) {
                Ok(0) => return about,
                Ok(octets) => {
                    for name in event_names(buffer.get(..octets).unwrap_or_default()) {
                        about |= name.is_empty() || self.names.contains(name);
                    }
                }
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        log::debug!("inotify: {error}");
                    }
                    return about;
                }
            }
        }
    }

    /// A fingerprint of what the file says; `None` when it cannot be read. Follows the file to where it is.
    pub(super) fn fingerprint(&mut self) -> Option<u64> {
        self.follow();
        let mut octets = Vec::new();
        File::open(&self.file).ok()?.take(RESOLVER_OCTETS).read_to_end(&mut octets).ok()?;
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(&octets);
        Some(hasher.finish())
    }
}

/// The names in a buffer of events; an empty one for an event of the watched file itself, or for events that were lost.
fn event_names(mut octets: &[u8]) -> impl Iterator<Item = &OsStr> {
    core::iter::from_fn(move || {
        let (header, rest) = octets.split_at_checked(EVENT_HEADER)?;
        let len = usize::try_from(u32::from_ne_bytes(header.get(12..)?.try_into().ok()?)).ok()?;
        let (name, rest) = rest.split_at_checked(len)?;
        octets = rest;
        let end = name.iter().position(|octet| *octet == 0).unwrap_or(name.len());
        Some(OsStr::from_bytes(name.get(..end)?))
    })
}

/// Tells that the clock was set, or that the machine has woken from sleep (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET). The timer itself
/// never fires.
#[derive(Debug)]
pub(super) struct ClockWatch(OwnedFd);

impl AsRawFd for ClockWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl ClockWatch {
    pub(super) fn new() -> io::Result<ClockWatch> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: takes numbers only.
        let timer = owned(unsafe { libc::timerfd_create(libc::CLOCK_REALTIME, flags) })?;
        let watch = ClockWatch(timer);
        watch.arm()?;
        Ok(watch)
    }

    fn arm(&self) -> io::Result<()> {
        let never = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: libc::timespec { tv_sec: isize::MAX as _, tv_nsec: 0 },
        };
        let flags = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;
        // SAFETY: the descriptor is open; the new value outlives the call, and no old one is asked for.
        let result =
            unsafe { libc::timerfd_settime(self.as_raw_fd(), flags, &raw const never, std::ptr::null_mut()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Whether the clock was set since the last call.
    pub(super) fn drain(&mut self) -> bool {
        match read(&self.0, &mut [0; 8]) {
            Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => {
                if let Err(error) = self.arm() {
                    log::debug!("timerfd_settime: {error}");
                }
                true
            }
            Ok(_) | Err(_) => false,
        }
    }
}

/// The clocks that go on while the machine sleeps.
pub(super) fn clocks() -> Clocks {
    Clocks { wall: clock(libc::CLOCK_REALTIME), boot: clock(libc::CLOCK_BOOTTIME) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_file_written_replaced_or_led_elsewhere_is_noticed_and_its_neighbours_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        let mut watch = ResolverWatch::of(&file).unwrap();
        let first = watch.fingerprint();
        assert!(first.is_some());
        assert!(!watch.drain());
        fs::write(dir.path().join("hosts"), "x").unwrap();
        assert!(!watch.drain(), "a neighbour");
        fs::write(&file, "nameserver 192.0.2.2\n").unwrap();
        assert!(watch.drain(), "written in place");
        let second = watch.fingerprint();
        assert_ne!(first, second);
        fs::write(dir.path().join("new"), "nameserver 192.0.2.1\n").unwrap();
        fs::rename(dir.path().join("new"), &file).unwrap();
        assert!(watch.drain(), "replaced");
        assert_eq!(watch.fingerprint(), first, "what it says counts, not which file it is");
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("stub"), "nameserver 127.0.0.53\n").unwrap();
        fs::remove_file(&file).unwrap();
        symlink(elsewhere.join("stub"), &file).unwrap();
        assert!(watch.drain(), "led elsewhere");
        assert!(watch.fingerprint().is_some());
        watch.drain();
        fs::write(elsewhere.join("stub"), "nameserver 127.0.0.54\n").unwrap();
        assert!(watch.drain(), "written where it leads to");
        fs::remove_file(&file).unwrap();
        assert!(watch.drain(), "deleted");
        assert_eq!(watch.fingerprint(), None);
    }

    #[test]
    fn a_clock_that_nobody_sets_tells_nothing() {
        let mut watch = ClockWatch::new().unwrap();
        assert!(!watch.drain());
        assert!(clocks().wall > Duration::ZERO && clocks().boot > Duration::ZERO);
    }

    proptest! {
        #[test]
        fn no_octets_make_the_reader_of_events_panic(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(event_names(&octets).count() <= octets.len() / EVENT_HEADER);
        }
    }
}
