//! The library for programs that are not in Rust: `include/ztun.h` is made of this module, and says what is said here.
//!
//! # Theory of operation
//!
//! A handle is a [`Session`](crate::session::Session) whose run is [embedded](crate::session::Embedding): the program opens the TUN device and looks
//! after the machine, ztun carries what comes out of the device. `session` is the handle in safe Rust, `callback` calls what the program has
//! registered, `failure` keeps what went wrong, `types` is what C sees besides functions.
//!
//! Every function goes through [`entered`]: it refuses to run inside a callback where it could wait for itself, and stops a panic, which must not cross into a
//! language that does not know it.
//!
//! What C hands over is judged as far as C lets it: NULL, texts that are not UTF-8, numbers out of range and descriptors that are not open are refused. A
//! pointer that leads nowhere, and a handle that was freed, cannot be told.

mod callback;
mod failure;
mod session;
mod types;

pub use session::Session;
pub use types::{Code, Level, LogCallback, ProtectCallback, SessionState};

use callback::User;
use failure::Failure;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{self, AssertUnwindSafe};

use crate::session::STOP_LIMIT;
use crate::time::Duration;

/// Runs `body` with a guard against what must not cross the border; `refused` is what the function answers when it is refused.
fn entered<T>(body: impl FnOnce() -> Result<T, Failure>, refused: impl FnOnce(Code) -> T) -> T {
    let result = if callback::within() {
        Err(Failure::new(Code::Callback, "this function must not be called from a callback"))
    } else {
        panic::catch_unwind(AssertUnwindSafe(body))
            .unwrap_or_else(|_| Err(Failure::new(Code::Panic, "ztun has a bug: it has panicked")))
    };
    result.unwrap_or_else(|Failure { code, text }| {
        failure::remember(&text);
        refused(code)
    })
}

/// [`entered`] for a function that answers with a code.
fn coded(body: impl FnOnce() -> Result<(), Failure>) -> Code {
    entered(|| body().map(|()| Code::Ok), |code| code)
}

/// # Safety
///
/// `session` is NULL or came from [`ztun_new`], and is not freed meanwhile.
unsafe fn handle<'a>(session: *const Session) -> Result<&'a Session, Failure> {
    // SAFETY: the function's own contract.
    unsafe { session.as_ref() }.ok_or_else(|| Failure::new(Code::Argument, "the session is NULL"))
}

/// # Safety
///
/// `text` is NULL or ends with NUL, and is not changed meanwhile.
unsafe fn text<'a>(text: *const c_char) -> Result<Option<&'a str>, Failure> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the function's own contract.
    let text = unsafe { CStr::from_ptr(text) };
    let refused = |_| Failure::new(Code::Argument, "the configuration is not UTF-8");
    text.to_str().map(Some).map_err(refused)
}

/// The version of this library, as in "1.2.3". The text is the library's, and is never freed. May be called from anywhere, callbacks included.
#[unsafe(no_mangle)]
pub extern "C" fn ztun_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// What the last call on this thread that failed had to say: what failed and why, and perhaps in a second line what to try. Empty before the first
/// failure, never NULL. The text is the library's, and is valid until the next call on this thread that fails, and no longer than the thread. May be
/// called from anywhere, callbacks included.
#[unsafe(no_mangle)]
pub extern "C" fn ztun_last_error() -> *const c_char {
    failure::last()
}

/// Sends the log of all sessions to `callback`, from `level` (a ztun_level) upwards. Until this is called nothing is logged anywhere, and NULL goes back
/// to that.
///
/// The callback runs on the thread that has something to log: that of a session, or any that calls a function of this library; never two at a
/// time. It must return soon, since packets wait for it, must not throw or longjmp, and must wait neither for a thread that is in a function of this library
/// nor for a lock that such a thread holds. Of this library it may call ztun_version, ztun_last_error, ztun_state and ztun_text_free.
///
/// `user` is handed back with each call, and is not looked at. It stays the caller's and has to be valid until this function has been called again and has
/// returned: from then on the callback before is called no more.
///
/// # Safety
///
/// `callback` may be called from any thread with `user`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ztun_set_log(callback: LogCallback, user: *mut c_void, level: c_int) -> Code {
    coded(|| {
        let filter = Level::filter(level)
            .ok_or_else(|| Failure::new(Code::Argument, format!("{level} is no level of the log")))?;
        callback::set_log(callback, User(user), filter)
    })
}

/// A session that was never started, the caller's until ztun_free. Any number of them may be there and run at once, each on a device of its own. NULL
/// when it was called from a callback.
///
/// All functions that take a session may be called from any thread, at the same time as others, but for ztun_free, which is the last.
#[unsafe(no_mangle)]
pub extern "C" fn ztun_new() -> *mut Session {
    entered(|| Ok(Box::into_raw(Box::new(Session::new()))), |_| std::ptr::null_mut())
}

/// Stops the session like ztun_stop, with a limit of 10 seconds, and frees it: no function may be called with it any more. NULL is no session, and nothing is
/// done. From a callback it is refused, with ZTUN_CODE_CALLBACK, and the session is still there; whatever else it answers, the session is gone.
///
/// # Safety
///
/// `session` is NULL or came from ztun_new and was not freed; no other thread is in a function with it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ztun_free(session: *mut Session) -> Code {
    coded(|| {
        if session.is_null() {
            return Ok(());
        }
        // SAFETY: it came from a box, and nobody else has it, as the function's own contract says.
        let session = unsafe { Box::from_raw(session) };
        session.stop(STOP_LIMIT)
    })
}

/// Has `callback` asked about each socket that ztun opens towards the outside, before that is connected or sends anything: for runs that are started
/// from here on. NULL: nobody is asked.
///
/// The callback runs on the thread of the session, for connections to the proxy, for datagrams and for what goes out directly. It must return soon, since
/// packets wait for it, must not throw or longjmp, and may call what a log callback may.
///
/// `user` is handed back with each call, and is not looked at. It stays the caller's and has to be valid until the runs that were started with it have
/// ended: when ztun_stop has answered anything but ZTUN_CODE_FORCED the callback is called no more. After that answer only a call that was
/// under way may still go on.
///
/// # Safety
///
/// `session` is NULL or came from ztun_new; `callback` may be called from any thread with `user`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ztun_set_protect(
    session: *mut Session,
    callback: ProtectCallback,
    user: *mut c_void,
) -> Code {
    coded(|| {
        // SAFETY: the function's own contract.
        unsafe { handle(session) }?.set_protect(callback, User(user));
        Ok(())
    })
}

/// Starts the session on a TUN device that is open, configured and routed into, and returns when traffic flows, or when it has failed. Names of proxies are
/// resolved meanwhile, which may take as long as the system's resolver does. What is refused has changed nothing.
///
/// `tun_fd` stays the caller's: ztun works on a duplicate, which it closes when the run ends. The caller may close his as soon as this has returned; a device lives
/// as long as one of the two is open. What both share is the open file: it is made non-blocking. On Linux and Android it has to be a TUN device without
/// packet information (IFF_TUN and IFF_NO_PI), on iOS and macOS a utun.
///
/// `config` is the text of a file of options in TOML, as `ztun --config` has it, in UTF-8: socks5 = ["127.0.0.1:1080"]. It is copied. NULL takes that of the
/// last start of this session that worked. Options that say how to change the machine, or how to log, are refused: this library changes neither
/// addresses nor routes nor name servers, no limit and no privilege of the process, and no signal; it only blocks SIGPIPE on threads of its own.
///
/// The run has a thread of its own. It may end by itself, as when the device is gone: see ztun_state and ztun_stop.
///
/// ZTUN_CODE_STATE when the session is running, or was stopped by another thread while it started.
///
/// # Safety
///
/// `session` is NULL or came from ztun_new; `config` is NULL or ends with NUL; nobody closes `tun_fd` meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ztun_start(session: *mut Session, tun_fd: c_int, config: *const c_char) -> Code {
    // SAFETY: the function's own contract.
    coded(|| unsafe { handle(session)?.start(tun_fd, text(config)?) })
}

/// Stops the session's run, if there is one, and starts the next, as ztun_start does. A configuration or a descriptor that is refused at once leaves the first run
/// alone; what the system refuses later leaves the session stopped. The run before has 5 seconds to end, and is given up then.
///
/// # Safety
///
/// As for ztun_start.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ztun_restart(session: *mut Session, tun_fd: c_int, config: *const c_char) -> Code {
    // SAFETY: the function's own contract.
    coded(|| unsafe { handle(session)?.restart(tun_fd, text(config)?) })
}

/// Stops the session's run, if there is one, and returns when everything of it is closed: connections are ended in order, which takes up to 3 seconds
/// where the other side does not answer. After `limit_ms` milliseconds it is given up: ZTUN_CODE_FORCED. Any number of threads may stop one session; all wait for
/// the same end. A session that does not run is stopped already.
///
/// A run that had failed, by itself or while it stopped, is told of here, once: ZTUN_CODE_SYSTEM or ZTUN_CODE_PANIC. The session is stopped all the same.
///
/// # Safety
///
/// `session` is NULL, which is ZTUN_CODE_ARGUMENT, or came from ztun_new.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ztun_stop(session: *mut Session, limit_ms: u32) -> Code {
    // SAFETY: the function's own contract.
    coded(|| unsafe { handle(session) }?.stop(Duration::from_millis(limit_ms.into())))
}

/// Tells the session that the machine's network is another: Wi-Fi has gone, mobile data has come. To be called where the system tells the program and not ztun: on
/// Android from ConnectivityManager.NetworkCallback, on iOS from NWPathMonitor. Elsewhere ztun hears of it by itself, and a call does no harm; how often
/// it is called matters little, since calls in quick succession count as one.
///
/// The session's own thread looks, a third of a second later: connections whose address the machine no longer has are ended or made again, those that live stay,
/// and new ones leave by the network that there is then. ZTUN_CODE_STATE when the session is not running.
///
/// # Safety
///
/// `session` is NULL, which is ZTUN_CODE_ARGUMENT, or came from ztun_new.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ztun_network_changed(session: *const Session) -> Code {
    // SAFETY: the function's own contract.
    coded(|| unsafe { handle(session) }?.network_changed())
}

/// Where the session stands. It never waits, and may be called from callbacks. NULL was never started.
///
/// # Safety
///
/// `session` is NULL or came from ztun_new.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ztun_state(session: *const Session) -> SessionState {
    // SAFETY: the function's own contract.
    unsafe { session.as_ref() }.map_or(SessionState::Idle, |session| session.state().into())
}

/// How the run is, as `ztun status --json` tells it: one JSON object in UTF-8, described in docs/CONTROL.md. Fields may be added in later versions. The text
/// is the caller's, to be freed by ztun_text_free. The run's own thread answers between two packets; one that has not answered after 5 seconds is no
/// longer waited for. NULL when the session is NULL or not running, or does not answer.
///
/// # Safety
///
/// `session` is NULL or came from ztun_new.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ztun_stats(session: *const Session) -> *mut c_char {
    let told = || {
        // SAFETY: the function's own contract.
        let status = unsafe { handle(session) }?.status()?;
        // JSON has no NUL: it would be written as an escape.
        CString::new(status).map_err(|error| Failure::new(Code::Panic, error.to_string()))
    };
    entered(|| told().map(CString::into_raw), |_| std::ptr::null_mut())
}

/// Frees a text of ztun_stats; nothing else may be given to it, and no text twice. NULL is no text, and nothing is done. May be called from anywhere,
/// callbacks included.
///
/// # Safety
///
/// `text` is NULL or came from ztun_stats and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ztun_text_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: it came from `CString::into_raw`, and nobody else has it, as the function's own contract says.
        drop(unsafe { CString::from_raw(text) });
    }
}

#[cfg(test)]
mod tests;
