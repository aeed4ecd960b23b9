//! The border from the side of C, as far as that needs no device; `tests/ffi` goes further, from a program in C.

use super::*;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr;

const CONFIG: &CStr = c"socks5 = ['127.0.0.1:1080']";

/// What the last refusal on this thread was about.
fn last() -> String {
    // SAFETY: the text ends with NUL, and is copied before the next call.
    unsafe { CStr::from_ptr(ztun_last_error()) }.to_str().unwrap().to_owned()
}

/// A session that is freed by the test's end.
struct Held(*mut Session);

impl Held {
    fn new() -> Held {
        let session = ztun_new();
        assert!(!session.is_null());
        Held(session)
    }

    fn start(&self, fd: c_int, config: *const c_char) -> Code {
        // SAFETY: the session is held, and the texts of these tests end with NUL.
        unsafe { ztun_start(self.0, fd, config) }
    }

    fn restart(&self, fd: c_int, config: *const c_char) -> Code {
        // SAFETY: likewise.
        unsafe { ztun_restart(self.0, fd, config) }
    }

    fn stop(&self) -> Code {
        // SAFETY: the session is held.
        unsafe { ztun_stop(self.0, 1_000) }
    }

    fn state(&self) -> SessionState {
        // SAFETY: the session is held.
        unsafe { ztun_state(self.0) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        assert_eq!(unsafe { ztun_free(self.0) }, Code::Ok);
    }
}

#[test]
fn null_is_refused_or_nothing() {
    let nobody: *mut Session = ptr::null_mut();
    // SAFETY: NULL is allowed everywhere here.
    unsafe {
        assert_eq!(ztun_start(nobody, 0, CONFIG.as_ptr()), Code::Argument);
        assert_eq!(last(), "the session is NULL");
        assert_eq!(ztun_restart(nobody, 0, CONFIG.as_ptr()), Code::Argument);
        assert_eq!(ztun_stop(nobody, 1), Code::Argument);
        assert_eq!(ztun_set_protect(nobody, None, ptr::null_mut()), Code::Argument);
        assert_eq!(ztun_network_changed(nobody), Code::Argument);
        assert_eq!(ztun_state(nobody), SessionState::Idle);
        assert!(ztun_stats(nobody).is_null());
        assert_eq!(ztun_free(nobody), Code::Ok);
        ztun_text_free(ptr::null_mut());
    }
    let session = Held::new();
    assert_eq!(session.start(3, ptr::null()), Code::Argument);
    assert!(last().starts_with("no configuration is given"), "{}", last());
}

#[test]
fn a_session_that_never_ran_is_idle_and_stops_at_once() {
    let session = Held::new();
    assert_eq!((session.stop(), session.stop(), session.state()), (Code::Ok, Code::Ok, SessionState::Idle));
    // SAFETY: the session is held.
    assert!(unsafe { ztun_stats(session.0) }.is_null());
    assert!(last().starts_with("the session is Idle"), "{}", last());
    // SAFETY: the session is held.
    assert_eq!(unsafe { ztun_network_changed(session.0) }, Code::State);
    assert_eq!(last(), "the session is Idle, and only a running one follows the network");
}

#[test]
fn a_configuration_is_refused_in_the_words_of_the_command_line() {
    let session = Held::new();
    assert_eq!(session.start(0, c"socks5 = ['127.0.0.1:1']\nmtu = 1\n".as_ptr()), Code::Config);
    assert!(last().starts_with("error: config:2: mtu: ") && last().contains("\n  try: "), "{}", last());
    assert_eq!(session.start(0, c"\xff".as_ptr()), Code::Argument);
    assert_eq!(last(), "the configuration is not UTF-8");
    assert_eq!(session.start(0, c"socks5 = ['127.0.0.1:1']\ntun = 'x'".as_ptr()), Code::Config);
    assert!(last().contains("tun has no meaning in a library"), "{}", last());
    assert_eq!(session.state(), SessionState::Idle);
}

#[test]
fn a_descriptor_that_is_no_tun_is_refused_by_its_number_and_stays_the_callers() {
    let session = Held::new();
    for closed in [-1, c_int::MIN, c_int::MAX] {
        assert_eq!(session.start(closed, CONFIG.as_ptr()), Code::Argument);
        assert!(last().contains(&closed.to_string()), "{}", last());
        assert_eq!(session.restart(closed, CONFIG.as_ptr()), Code::Argument);
    }
    assert_eq!(session.state(), SessionState::Idle);
    let file = File::open("/dev/null").unwrap();
    assert_eq!(session.start(file.as_raw_fd(), CONFIG.as_ptr()), Code::System);
    let wanted = format!("error: cannot use descriptor {} as a TUN device: ", file.as_raw_fd());
    assert!(last().starts_with(&wanted), "{}", last());
    assert_eq!(session.state(), SessionState::Stopped);
    // It was told of by the start.
    assert_eq!(session.stop(), Code::Ok);
    file.metadata().expect("it is open");
    // No start has worked yet, so there is no configuration of an earlier one.
    assert_eq!(session.start(file.as_raw_fd(), ptr::null()), Code::Argument);
}

#[test]
fn what_could_wait_for_itself_is_refused_in_a_callback() {
    let session = Held::new();
    callback::called(|| {
        assert_eq!(session.start(0, CONFIG.as_ptr()), Code::Callback);
        assert!(last().contains("callback"), "{}", last());
        assert_eq!(session.restart(0, CONFIG.as_ptr()), Code::Callback);
        assert_eq!(session.stop(), Code::Callback);
        assert!(ztun_new().is_null());
        // SAFETY: the session is held; a callback of NULL is none.
        unsafe {
            assert!(ztun_stats(session.0).is_null());
            assert_eq!(ztun_network_changed(session.0), Code::Callback);
            assert_eq!(ztun_free(session.0), Code::Callback);
            assert_eq!(ztun_set_log(None, ptr::null_mut(), 0), Code::Callback);
            assert_eq!(ztun_set_protect(session.0, None, ptr::null_mut()), Code::Callback);
        }
        // What never waits.
        assert_eq!(session.state(), SessionState::Idle);
        assert!(!ztun_version().is_null());
        // Callbacks do not nest by themselves; should they, the outer one is still one.
        callback::called(|| ());
        assert_eq!(session.stop(), Code::Callback);
    });
    assert_eq!(session.stop(), Code::Ok);
}

#[test]
fn a_panic_does_not_cross_and_is_told() {
    let code = coded(|| panic!("on purpose"));
    assert_eq!(code, Code::Panic);
    assert!(last().contains("panicked"), "{}", last());
    assert_eq!(coded(|| Ok(())), Code::Ok);
    assert!(last().contains("panicked"), "a success leaves the last failure's text");
}

#[test]
fn each_thread_has_the_text_of_its_own_failure() {
    let code = coded(|| Err(Failure::new(Code::State, "here\0there")));
    assert_eq!((code, last().as_str()), (Code::State, "here\\0there"));
    #[allow(clippy::disallowed_methods, reason = "the text is a thread's own")]
    let there = std::thread::spawn(last).join().unwrap();
    assert_eq!(there, "");
}

#[test]
fn a_level_that_is_none_is_refused() {
    for level in [-1, 6, c_int::MAX] {
        // SAFETY: a callback of NULL is none.
        assert_eq!(unsafe { ztun_set_log(None, ptr::null_mut(), level) }, Code::Argument);
    }
}

#[test]
fn the_version_is_the_crates() {
    // SAFETY: the text ends with NUL and is static.
    let version = unsafe { CStr::from_ptr(ztun_version()) };
    assert_eq!(version.to_str(), Ok(env!("CARGO_PKG_VERSION")));
}
