//! What asks to stop on Windows, as readiness of a socket: Ctrl-C, Ctrl-Break, a console that is closed, the end of the session or of the machine,
//! and whoever else speaks for the system ([`ask_to_stop`]: the service control manager).
//!
//! The system calls a handler on a thread of its own; it writes an octet into each pair of loopback sockets that somebody reads, which the poll takes
//! as it takes any other.

use crate::time::Duration;
use mio::net::TcpStream;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::windows::io::AsRawSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use windows_sys::Win32::Networking::WinSock::{POLLRDNORM, SOCKET, WSAPOLLFD, WSAPoll};
use windows_sys::Win32::System::Console::{
    CTRL_BREAK_EVENT, CTRL_C_EVENT, CTRL_LOGOFF_EVENT, SetConsoleCtrlHandler,
};
use windows_sys::core::BOOL;

/// Who is told, each under a number of its own.
static TOLD: Mutex<Vec<(u64, Waker)>> = Mutex::new(Vec::new());
static NEXT: AtomicU64 = AtomicU64::new(1);
/// Whether the system has the handler. Written under the lock of [`TOLD`].
static INSTALLED: AtomicBool = AtomicBool::new(false);

fn told() -> MutexGuard<'static, Vec<(u64, Waker)>> {
    // The list is whole between any two of its calls.
    TOLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this process is a service, which other people's log-off does not concern.
static SERVICE: AtomicBool = AtomicBool::new(false);

/// This process is a service from here on.
pub fn become_service() {
    SERVICE.store(true, Ordering::Relaxed);
}

/// One signal for everybody who listens, as Ctrl-C is: whether there is anybody.
pub fn ask_to_stop() -> bool {
    let told = told();
    for (_, waker) in told.iter() {
        // One whose buffer is full has been woken; one that is gone needs no waking.
        let _ = waker.wake();
    }
    !told.is_empty()
}

/// Called by the system on a thread of its own. What it returns: whether the event is dealt with.
unsafe extern "system" fn handler(event: u32) -> BOOL {
    // Whose log-off it is, is not said; what the system would do of itself is to end the process.
    if event == CTRL_LOGOFF_EVENT && SERVICE.load(Ordering::Relaxed) {
        return 1;
    }
    if !ask_to_stop() {
        return 0;
    }
    if matches!(event, CTRL_C_EVENT | CTRL_BREAK_EVENT) {
        return 1;
    }
    // The process is ended as soon as this returns: it has until it ends by itself, or until the system loses its patience.
    loop {
        std::thread::park();
    }
}

/// Two ends of a connection of this process with itself.
fn pair() -> io::Result<(std::net::TcpStream, std::net::TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let read = std::net::TcpStream::connect(listener.local_addr()?)?;
    let own = read.local_addr()?;
    loop {
        let (write, from) = listener.accept()?;
        // Anybody on this machine may have connected meanwhile.
        if from == own {
            write.set_nodelay(true)?;
            read.set_nonblocking(true)?;
            write.set_nonblocking(true)?;
            return Ok((read, write));
        }
    }
}

/// The read end of the pair that the events are written to.
#[derive(Debug)]
pub struct Signals {
    read: TcpStream,
    /// The same socket, for waiters.
    wait: std::net::TcpStream,
    write: std::net::TcpStream,
    number: Option<u64>,
}

impl Signals {
    /// Takes over the events that ask a program to stop.
    pub fn new() -> io::Result<Signals> {
        let mut signals = Signals::none()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        {
            let mut told = told();
            // For good: with nobody to be told it leaves the event to the system. To take it away could wait for ever for one that is running, which the
            // system calls under the lock of its list.
            if !INSTALLED.load(Ordering::Relaxed) {
                // SAFETY: the handler is a function of the type that the call expects, and lives as long as the program.
                if unsafe { SetConsoleCtrlHandler(Some(handler), 1) } == 0 {
                    return Err(io::Error::last_os_error());
                }
                INSTALLED.store(true, Ordering::Relaxed);
            }
            told.push((number, signals.waker()?));
        }
        signals.number = Some(number);
        Ok(signals)
    }

    /// Takes over none: what asks to stop is a waker ([`Signals::waker`]).
    pub fn none() -> io::Result<Signals> {
        let (read, write) = pair()?;
        let wait = read.try_clone()?;
        Ok(Signals { read: TcpStream::from_std(read), wait, write, number: None })
    }

    /// No command runs under this program here: nothing was left to it.
    pub fn add_interrupt(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Who calls it counts as a signal.
    pub fn waker(&self) -> io::Result<Waker> {
        self.write.try_clone().map(Waker)
    }

    /// For whoever waits where there is no loop yet.
    pub fn waiter(&self) -> io::Result<Waiter> {
        self.wait.try_clone().map(Waiter)
    }

    /// How many signals came since the last call.
    pub fn drain(&mut self) -> usize {
        let mut octets = [0; 16];
        let mut count = 0;
        while let Ok(read) = self.read.read(&mut octets) {
            if read == 0 {
                break;
            }
            count += read;
        }
        count
    }

    /// What to register with the poll.
    pub fn source(&mut self) -> &mut TcpStream {
        &mut self.read
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        told().retain(|(other, _)| *other != number);
    }
}

/// The end that is written to.
#[derive(Debug)]
pub struct Waker(std::net::TcpStream);

impl Waker {
    /// One signal more. A buffer that is full has woken whoever waits already.
    pub fn wake(&self) -> io::Result<()> {
        (&self.0).write(&[0]).map(drop)
    }
}

/// Nothing: there is no SIGPIPE here.
pub fn withhold_sigpipe() -> io::Result<()> {
    Ok(())
}

/// Sees signals without taking them.
#[derive(Debug)]
pub struct Waiter(std::net::TcpStream);

/// What ended a wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// What this waiter waits for.
    Here,
    /// What the other one waits for.
    There,
    /// Neither, in time.
    Late,
}

impl Waiter {
    /// Waits for `Waker`, or for its end.
    pub fn pair() -> io::Result<(Waker, Waiter)> {
        let (read, write) = pair()?;
        Ok((Waker(write), Waiter(read)))
    }

    /// Waits until there is a signal, or `limit` has passed: whether there is one.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let woken = poll(&[&self.0], Some(limit))?;
        Ok(woken == Some(0))
    }

    /// Waits for a signal and for `other`, at most for `limit`. When both are there it is the other that is told.
    pub fn wait_with(&self, other: &Waiter, limit: Option<Duration>) -> io::Result<Woken> {
        Ok(match poll(&[&other.0, &self.0], limit)? {
            Some(0) => Woken::There,
            Some(_) => Woken::Here,
            None => Woken::Late,
        })
    }
}

/// Waits until one of the sockets is readable: the first that is.
fn poll(sockets: &[&std::net::TcpStream], limit: Option<Duration>) -> io::Result<Option<usize>> {
    let watch = |socket: &&std::net::TcpStream| WSAPOLLFD {
        // The same number under two names.
        fd: socket.as_raw_socket() as SOCKET,
        events: POLLRDNORM,
        revents: 0,
    };
    let mut watched: Vec<WSAPOLLFD> = sockets.iter().map(watch).collect();
    let milliseconds = limit.map_or(-1, |limit| i32::try_from(limit.as_millis()).unwrap_or(i32::MAX));
    // SAFETY: the pointer is to as many live structs as the count says.
    match unsafe { WSAPoll(watched.as_mut_ptr(), watched.len() as u32, milliseconds) } {
        0 => Ok(None),
        1.. => Ok(watched.iter().position(|socket| socket.revents != 0)),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_events_and_a_managers_stop_are_signals_and_anothers_log_off_is_none_for_a_service() {
        let mut signals = Signals::new().expect("signals");
        let waiter = signals.waiter().expect("waiter");
        // SAFETY: the handler takes a number, and what it shares is behind a lock.
        assert_eq!(unsafe { handler(CTRL_BREAK_EVENT) }, 1);
        assert!(ask_to_stop());
        let mut count = 0;
        while count < 2 && waiter.wait(Duration::from_secs(10)).expect("wait") {
            count += signals.drain();
        }
        assert_eq!(count, 2);
        become_service();
        // SAFETY: as above.
        assert_eq!(unsafe { handler(CTRL_LOGOFF_EVENT) }, 1);
        assert!(!waiter.wait(Duration::from_millis(20)).expect("wait"));
    }

    #[test]
    fn a_waker_counts_as_a_signal_and_a_dropped_one_ends_a_wait() {
        let mut signals = Signals::none().expect("signals");
        let waiter = signals.waiter().expect("waiter");
        let (other, disarmed) = Waiter::pair().expect("pair");
        assert!(!waiter.wait(Duration::from_millis(1)).expect("wait"));
        signals.waker().and_then(|waker| waker.wake()).expect("wake");
        assert_eq!(waiter.wait_with(&disarmed, None).expect("wait"), Woken::Here);
        drop(other);
        assert_eq!(waiter.wait_with(&disarmed, None).expect("wait"), Woken::There);
        assert_eq!(signals.drain(), 1);
    }
}
