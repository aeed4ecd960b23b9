//! Other programs, run for a short time only: no shell, no environment, and an end that comes whatever they do.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// Where programs of the system are; the last is NixOS's.
const DIRECTORIES: [&str; 5] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/run/current-system/sw/bin"];
/// Octets of its complaint that are passed on.
const COMPLAINT: u64 = 400;

/// Where programs are looked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Programs(pub(super) Vec<PathBuf>);

impl Programs {
    /// The directories of the system, whatever the environment says: they are run with all rights.
    pub(super) fn standard() -> Programs {
        Programs(DIRECTORIES.iter().map(PathBuf::from).collect())
    }

    /// The path of the program `name`, if there is one.
    pub(super) fn find(&self, name: &str) -> Option<PathBuf> {
        self.0.iter().map(|directory| directory.join(name)).find(|path| path.is_file())
    }

    /// Runs a program, with `input` to read, for at most `limit`.
    ///
    /// # Errors
    ///
    /// There is no such program, it fails, or it takes longer and is killed.
    pub(super) fn run(&self, name: &str, arguments: &[&str], input: &str, limit: Duration) -> io::Result<()> {
        let path = self.find(name).ok_or(io::ErrorKind::NotFound)?;
        log::debug!("run: {name} {}", arguments.join(" "));
        let mut child = start(&path, arguments)?;
        if let Some(mut stdin) = child.stdin.take()
            // Shorter than a pipe: this never waits. One that does not read has no use for it.
            && let Err(error) = stdin.write_all(input.as_bytes())
        {
            log::debug!("{name}: {error}");
        }
        let Some(status) = wait(&mut child, limit)? else {
            let text = format!("`{name} {}` took longer than {limit:?}", arguments.join(" "));
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        };
        if status.success() {
            return Ok(());
        }
        let complaint = complaint(&mut child);
        Err(io::Error::other(format!("`{name} {}` failed, {status}: {complaint}", arguments.join(" "))))
    }
}

fn start(path: &Path, arguments: &[&str]) -> io::Result<Child> {
    Command::new(path)
        .args(arguments)
        .env_clear()
        .env("PATH", DIRECTORIES.join(":"))
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // Signals of the terminal are for us, and what it starts ends with it.
        .process_group(0)
        .spawn()
}

/// Waits for its end; `None` when that did not come in time, and it has been killed with all that it started.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let ended = ends_within(child, limit);
    if !matches!(ended, Ok(true)) {
        let group = libc::pid_t::try_from(child.id()).unwrap_or(libc::pid_t::MAX);
        // SAFETY: kill takes numbers; the child has not been waited for, so its number and its group's are its own.
        if unsafe { libc::kill(-group, libc::SIGKILL) } < 0 {
            child.kill()?;
        }
    }
    let status = child.wait()?;
    ended.map(|ended| ended.then_some(status))
}

fn ends_within(child: &Child, limit: Duration) -> io::Result<bool> {
    // SAFETY: pidfd_open takes numbers; the child has not been waited for.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    let fd = libc::c_int::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the descriptor was just made, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut watched = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let limit = libc::timespec {
        tv_sec: isize::try_from(limit.as_secs()).unwrap_or(isize::MAX) as _,
        tv_nsec: limit.subsec_nanos() as libc::c_long,
    };
    // SAFETY: a set of signals may be all zeros, and sigfillset makes one of it.
    let mut all: libc::sigset_t = unsafe { core::mem::zeroed() };
    // SAFETY: the pointer is to a live set.
    unsafe { libc::sigfillset(&raw mut all) };
    // With all signals held back, none of them cuts the wait short or makes it start again.
    // SAFETY: the pointers are to one live pollfd, as the count says, a live timespec and a live set.
    match unsafe { libc::ppoll(&raw mut watched, 1, &raw const limit, &raw const all) } {
        0 => Ok(false),
        1.. => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The beginning of what it wrote to its standard error.
fn complaint(child: &mut Child) -> String {
    let Some(stderr) = child.stderr.take() else { return String::new() };
    // What it started may hold the other end open: what is there is read, and nothing waited for.
    // SAFETY: the call takes an open descriptor and numbers.
    if unsafe { libc::fcntl(stderr.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
        return String::new();
    }
    let mut octets = Vec::new();
    // That it would wait is the usual end.
    let _ = stderr.take(COMPLAINT).read_to_end(&mut octets);
    let text: String = String::from_utf8_lossy(&octets).trim().replace(char::is_control, " ");
    if text.is_empty() { "it does not say why".into() } else { text }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Programs that are the scripts given, in a directory of the test's.
    pub(in crate::host::linux::dns) fn scripts(directory: &Path, scripts: &[(&str, &str)]) -> Programs {
        for (name, script) in scripts {
            let path = directory.join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        Programs(vec![directory.into()])
    }

    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn a_program_gets_its_arguments_and_input_and_no_environment() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let script = format!("{{ echo \"$@\"; cat; env; }} > {}", log.display());
        let programs = scripts(directory.path(), &[("tool", &script)]);
        programs.run("tool", &["-a", "b c"], "some input\n", LIMIT).unwrap();
        let text = std::fs::read_to_string(log).unwrap();
        assert!(text.starts_with("-a b c\nsome input\n"), "{text}");
        let home = std::env::vars().any(|(name, _)| name == "CARGO_MANIFEST_DIR");
        assert!(home && !text.contains("CARGO_MANIFEST_DIR"), "{text}");
    }

    #[test]
    fn what_it_complains_of_is_passed_on() {
        let directory = tempfile::tempdir().unwrap();
        let programs = scripts(directory.path(), &[("tool", "echo no bus >&2; exit 3"), ("quiet", "exit 1")]);
        let error = programs.run("tool", &["x"], "", LIMIT).unwrap_err().to_string();
        assert!(error.contains("`tool x` failed") && error.contains("no bus"), "{error}");
        let error = programs.run("quiet", &[], "", LIMIT).unwrap_err().to_string();
        assert!(error.contains("does not say why"), "{error}");
        assert_eq!(programs.run("none", &[], "", LIMIT).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn one_that_hangs_is_killed_with_what_it_started() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        // Both wait for a reader that never comes; the background one holds standard error open.
        let script = format!("mkfifo {0}; : > {0} & : > {0}", fifo.display());
        let programs = scripts(directory.path(), &[("tool", &script)]);
        let error = programs.run("tool", &[], "", Duration::from_millis(300)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("took longer than 300ms"), "{error}");
    }

    #[test]
    fn the_end_of_a_program_is_enough_though_its_children_live_on() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        let script = format!("mkfifo {0}; cat {0} & echo sorry >&2; exit 1", fifo.display());
        let programs = scripts(directory.path(), &[("tool", &script)]);
        let error = programs.run("tool", &[], "", LIMIT).unwrap_err().to_string();
        assert!(error.contains("sorry"), "{error}");
        // Lets the one in the background end.
        OpenFifo::write(&fifo);
    }

    struct OpenFifo;

    impl OpenFifo {
        fn write(path: &Path) {
            drop(std::fs::OpenOptions::new().write(true).open(path).unwrap());
        }
    }
}
