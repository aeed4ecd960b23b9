//! Calls of the program's callbacks: one at a time for the log, and a note on the thread that it is in one.
//!
//! What a callback calls of ztun in turn may wait for the very thread that is in the callback. So a thread that is in one is told apart ([`within`]), and
//! the functions that wait or lock refuse to be called there; what they would log is not logged.

use super::failure::Failure;
use super::types::{Code, Level, LogCallback, ProtectCallback};
use crate::cli::printable;
use crate::driver::Protect;
use log::{LevelFilter, Log, Metadata, Record};
use std::cell::Cell;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, PoisonError};

thread_local! {
    static WITHIN: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in a callback.
pub(super) fn within() -> bool {
    WITHIN.try_with(Cell::get).unwrap_or(false)
}

/// Has `call` run as a callback.
pub(super) fn called<T>(call: impl FnOnce() -> T) -> T {
    let before = WITHIN.try_with(|within| within.replace(true));
    let result = call();
    if let Ok(before) = before {
        // It was there a moment ago.
        let _ = WITHIN.try_with(|within| within.set(before));
    }
    result
}

/// What the program wants back with each call.
#[derive(Clone, Copy, Debug)]
pub(super) struct User(pub(super) *mut c_void);

// SAFETY: ztun does not look at what the pointer leads to; it is handed back only, and the contract of the functions that take it says on which threads.
unsafe impl Send for User {}
// SAFETY: likewise.
unsafe impl Sync for User {}

/// Where the log goes.
struct Sink(Mutex<Option<(Callee, User)>>);

type Callee = unsafe extern "C" fn(*mut c_void, Level, *const std::ffi::c_char);

static SINK: Sink = Sink(Mutex::new(None));

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if within() || !self.enabled(record.metadata()) {
            return;
        }
        let line = CString::new(printable(&record.args().to_string())).unwrap_or_default();
        let sink = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((callee, User(user))) = *sink {
            // SAFETY: the function and its pointer are those that `ztun_set_log` was given, which says that they hold until it is given others; that waits for the lock
            // that is held here. The text ends with NUL and outlives the call.
            called(|| unsafe { callee(user, Level::of(record.level()), line.as_ptr()) });
        }
    }

    fn flush(&self) {}
}

/// Sends the log of this library to `callback` from here on; when this returns, the one before is called no more.
pub(super) fn set_log(callback: LogCallback, user: User, level: LevelFilter) -> Result<(), Failure> {
    static OURS: Mutex<bool> = Mutex::new(false);
    let mut ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
    if !*ours {
        // Where this is linked into a program in Rust, that may have a logger of its own.
        log::set_logger(&SINK)
            .map_err(|_| Failure::new(Code::State, "the log of this program goes elsewhere already"))?;
        *ours = true;
    }
    let mut sink = SINK.0.lock().unwrap_or_else(PoisonError::into_inner);
    *sink = callback.map(|callee| (callee, user));
    log::set_max_level(if callback.is_some() { level } else { LevelFilter::Off });
    Ok(())
}

/// What asks `callback`.
pub(super) fn protect(callback: ProtectCallback, user: User) -> Option<Protect> {
    let callee = callback?;
    Some(Protect::new(move |descriptor| {
        // The whole of it, not the pointer alone, which could not go to another thread.
        let User(user) = { user };
        // SAFETY: the function and its pointer are those that `ztun_set_protect` was given, which says that they hold as long as a run has them.
        called(|| unsafe { callee(user, descriptor) })
    }))
}
