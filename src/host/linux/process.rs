//! Child processes that go on in this program instead of executing another one.
//!
//! A child is a copy of this process with its one thread, so it may do anything that the parent might have done. It ends with its parent
//! (PR_SET_PDEATHSIG), and a [`Child`] that is dropped is killed and waited for: nothing stays behind on either side.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A child process.
#[derive(Debug)]
pub struct Child {
    pid: libc::pid_t,
    pidfd: Option<OwnedFd>,
    ended: bool,
}

/// How a child has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitStatus {
    /// By itself, with this status.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

impl ExitStatus {
    /// As a shell reports it: 128 and the number of the signal.
    pub fn code(self) -> u8 {
        match self {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => signal.saturating_add(128),
        }
    }
}

/// Runs `body` in a child process, which ends with the status that it returns, and no later than this process.
///
/// # Errors
///
/// The system refuses a process, or this one has more than one thread: a copy of one of them would find the locks of the others held for ever.
pub fn fork(body: impl FnOnce() -> u8) -> io::Result<Child> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with several threads cannot be copied"));
    }
    io::stdout().flush()?;
    // Whoever started this may have had it ignored; then a child's status would be lost with the child.
    // SAFETY: SIG_DFL is no function of ours; the call takes numbers.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    // SAFETY: getpid has no arguments and cannot fail.
    let parent = unsafe { libc::getpid() };
    // SAFETY: this process has one thread, so its copy is whole: no lock is held by a thread that is not in it.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        // SAFETY: both calls take numbers only.
        let orphan =
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) < 0 || libc::getppid() != parent };
        // A panic has been printed by its hook; it must not unwind into the copy of the parent's frames.
        let body = std::panic::AssertUnwindSafe(body);
        let code = if orphan { 1 } else { std::panic::catch_unwind(body).unwrap_or(101) };
        // What cannot be written any more has nobody to read it.
        let _ = io::stdout().flush();
        // SAFETY: _exit takes a number and does not return.
        unsafe { libc::_exit(code.into()) }
    }
    let mut child = Child { pid, pidfd: None, ended: false };
    // Dropped, the child is killed. It has not been waited for, so its number is its own.
    child.pidfd = Some(pidfd_open(pid)?);
    Ok(child)
}

impl Child {
    /// The process id.
    pub fn id(&self) -> i32 {
        self.pid
    }

    /// A descriptor that becomes readable when the child ends.
    pub fn pidfd(&self) -> io::Result<OwnedFd> {
        self.pidfd.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?.try_clone()
    }

    /// Asks it to end.
    pub fn terminate(&self) -> io::Result<()> {
        self.signal(libc::SIGTERM)
    }

    /// Sends a signal.
    fn signal(&self, signal: i32) -> io::Result<()> {
        // SAFETY: kill takes numbers; the child has not been waited for, so its number is its own.
        if self.ended || unsafe { libc::kill(self.pid, signal) } == 0 {
            return Ok(());
        }
        Err(io::Error::last_os_error())
    }

    /// Waits for the child's end.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            let mut status = 0;
            // SAFETY: the pointer is to a live int; the child is ours and was not waited for before.
            if unsafe { libc::waitpid(self.pid, &raw mut status, 0) } == self.pid {
                self.ended = true;
                let octet = |number: i32| u8::try_from(number & 0xff).unwrap_or(u8::MAX);
                return Ok(if libc::WIFSIGNALED(status) {
                    ExitStatus::Signal(octet(libc::WTERMSIG(status)))
                } else {
                    ExitStatus::Code(octet(libc::WEXITSTATUS(status)))
                });
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                self.ended = true;
                return Err(error);
            }
        }
    }
}

impl Child {
    /// Waits for the child's end, at most for `limit`; `None` when it has not ended by then, or when a signal came first.
    pub fn wait_for(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let fd = self.pidfd.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        match has_ended(fd, limit) {
            Ok(true) => self.wait().map(Some),
            Ok(false) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let ended = self.signal(libc::SIGKILL).and_then(|()| self.wait());
        if let Err(error) = ended {
            log::debug!("process {}: {error}", self.pid);
        }
    }
}

/// A process that is not a child of this one, held by a descriptor: its number is not given to another one as far as this is concerned.
#[derive(Debug)]
pub struct Other(OwnedFd);

impl Other {
    /// The process `pid`, if there is one.
    pub fn open(pid: u32) -> io::Result<Option<Other>> {
        let Ok(number) = libc::pid_t::try_from(pid) else { return Ok(None) };
        match pidfd_open(number) {
            Ok(fd) => Ok(Some(Other(fd))),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks it to end.
    pub fn terminate(&self) -> io::Result<()> {
        self.signal(libc::SIGTERM)
    }

    /// Ends it.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(libc::SIGKILL)
    }

    fn signal(&self, signal: i32) -> io::Result<()> {
        let (fd, info) = (self.0.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: a descriptor that is open, numbers, and the null siginfo that the call allows.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, 0) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Waits for its end, at most for `limit`: whether it has ended.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        has_ended(&self.0, limit)
    }
}

/// A descriptor of the process `pid`, which becomes readable when it ends.
fn pidfd_open(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = libc::c_int::try_from(fd).expect("a descriptor is an int");
    // SAFETY: the descriptor was just made, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits for the end of the process that `pidfd` leads to, at most for `limit`: whether it has ended. A signal is an error (EINTR).
fn has_ended(pidfd: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let mut watched = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let milliseconds = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the pointer is to one live pollfd, as the count says.
    match unsafe { libc::poll(&raw mut watched, 1, milliseconds) } {
        0 => Ok(false),
        1.. => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether this network namespace is the machine's: that of process 1, or, where that one may not be looked at (some virtual machines do not let
/// even root), the kernel's first.
pub(super) fn in_first_network() -> bool {
    let number = |path: &str| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    match (number("/proc/thread-self/ns/net"), number("/proc/1/ns/net")) {
        (Ok(own), Ok(first)) => own == first,
        // Every network namespace has settings of its own; those of the whole kernel are to be seen in the first one alone.
        (Ok(_), Err(_)) => Path::new("/proc/sys/net/core/netdev_max_backlog").exists(),
        (Err(_), _) => true,
    }
}

/// The directory in /proc of a process of the machine's own network: process 1, or, where that one may not be looked at, the oldest ancestor of
/// this process that may be and is in another network namespace.
pub(super) fn first_process() -> Option<PathBuf> {
    let number = |process: &Path| fs::metadata(process.join("ns/net")).map(|found| found.ino()).ok();
    let first = PathBuf::from("/proc/1");
    if number(&first).is_some() {
        return Some(first);
    }
    let own = number(Path::new("/proc/thread-self"))?;
    let (mut pid, mut oldest) = (std::process::id(), None);
    // Ends: an ancestor is older, and process 0 is the last.
    while let Some(parent) = parent_of(pid).filter(|parent| *parent != 0 && *parent != pid) {
        let directory = PathBuf::from(format!("/proc/{parent}"));
        if number(&directory).is_some_and(|network| network != own) {
            oldest = Some(directory);
        }
        pid = parent;
    }
    oldest
}

fn parent_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// Ends this process at once, whatever its other threads do; nothing of it runs any more.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit takes a number and does not return.
    unsafe { libc::_exit(status) }
}

/// Whether this process has a terminal, which sends its signals to the children too.
pub fn has_terminal() -> bool {
    fs::File::open("/dev/tty").is_ok()
}

/// Lets signals end this process again, after it has handled or ignored them.
pub fn end_on_signals() {
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: SIG_DFL is no function of ours; the call takes numbers.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Leaves SIGINT and SIGQUIT to the children: a terminal sends them to all, and the one whose work it is decides.
pub fn ignore_terminal_signals() {
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: SIG_IGN is no function of ours; the call takes numbers.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
