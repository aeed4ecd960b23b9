//! What the C side sees besides functions: enums of fixed numbers, and the types of callbacks.

use crate::session::State;
use std::ffi::{c_char, c_int, c_void};

/// What a function answers. Anything but ZTUN_CODE_OK has left a text for ztun_last_error().
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub enum Code {
    /// It is done.
    Ok = 0,
    /// An argument is NULL or no text in UTF-8 where that is not allowed, or a descriptor is not open.
    Argument = -1,
    /// The configuration is refused, in the words of `ztun --config`.
    Config = -2,
    /// The session is not in a state for that.
    State = -3,
    /// The system, or the device, refuses what a run needs; or a run has failed.
    System = -4,
    /// `require-proxy` is on, and no proxy can be used.
    Proxy = -5,
    /// The function was called from a callback, where it is not allowed.
    Callback = -6,
    /// It did not end in time and was given up. Its thread is left behind; its callbacks are called no more, but for one that has not returned.
    Forced = -7,
    /// ztun has a bug. The session is stopped and can be started again.
    Panic = -8,
}

/// Where a session stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub enum SessionState {
    /// It was never started.
    Idle = 0,
    /// It is being started.
    Starting = 1,
    /// Traffic flows.
    Running = 2,
    /// It was asked to stop and is closing what it has. One that fails by itself is running until it is stopped.
    Stopping = 3,
    /// It has ended, and holds nothing any more.
    Stopped = 4,
}

impl From<State> for SessionState {
    fn from(state: State) -> SessionState {
        match state {
            State::Idle => SessionState::Idle,
            State::Starting => SessionState::Starting,
            State::Running => SessionState::Running,
            State::Stopping => SessionState::Stopping,
            State::Stopped => SessionState::Stopped,
        }
    }
}

/// How much is logged, and how grave a line is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub enum Level {
    /// Nothing.
    Off = 0,
    /// Something is broken.
    Error = 1,
    /// Something needs a person.
    Warn = 2,
    /// What a run does.
    Info = 3,
    /// Names, addresses and flows.
    Debug = 4,
    /// Packets.
    Trace = 5,
}

impl Level {
    pub(super) fn of(level: log::Level) -> Level {
        match level {
            log::Level::Error => Level::Error,
            log::Level::Warn => Level::Warn,
            log::Level::Info => Level::Info,
            log::Level::Debug => Level::Debug,
            log::Level::Trace => Level::Trace,
        }
    }

    /// What the number means; `None` when it means nothing.
    pub(super) fn filter(number: c_int) -> Option<log::LevelFilter> {
        use log::LevelFilter as Filter;
        let all = [Filter::Off, Filter::Error, Filter::Warn, Filter::Info, Filter::Debug, Filter::Trace];
        usize::try_from(number).ok().and_then(|index| all.get(index)).copied()
    }
}

/// Takes a line of the log: one line, without its line feed, in UTF-8 and without control characters. `text` is ztun's and is gone when the call
/// returns.
pub type LogCallback = Option<unsafe extern "C" fn(user: *mut c_void, level: Level, text: *const c_char)>;

/// Keeps a socket outside the tunnel, as Android's VpnService.protect() does: true when that is done; with false the flow fails that the socket is
/// for. The descriptor is ztun's: it must not be closed, and may be another socket's as soon as the call has returned.
pub type ProtectCallback = Option<unsafe extern "C" fn(user: *mut c_void, descriptor: c_int) -> bool>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_the_numbers_of_the_header() {
        for level in log::Level::iter() {
            assert_eq!(Level::filter(Level::of(level) as c_int), Some(level.to_level_filter()));
        }
        assert_eq!(Level::filter(Level::Off as c_int), Some(log::LevelFilter::Off));
        for nothing in [-1, 6, c_int::MIN, c_int::MAX] {
            assert_eq!(Level::filter(nothing), None);
        }
    }
}
