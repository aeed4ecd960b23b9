//! What went wrong in a call, and how it is told: a code, and a text that the thread keeps.

use super::types::Code;
use crate::cli;
use crate::session::{RunError, StartError};
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::io;

thread_local! {
    /// What the last call on this thread that failed had to say.
    static LAST: RefCell<CString> = RefCell::default();
}

/// A call that has failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: Code,
    pub(super) text: String,
}

impl Failure {
    pub(super) fn new(code: Code, text: impl Into<String>) -> Failure {
        Failure { code, text: text.into() }
    }

    /// The system's refusal.
    pub(super) fn system(what: &str, why: &io::Error) -> Failure {
        Failure::new(Code::System, format!("{what}: {why}"))
    }
}

impl From<cli::Error> for Failure {
    /// The configuration's refusal.
    fn from(error: cli::Error) -> Failure {
        Failure::new(Code::Config, error.to_string())
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Failure {
        let code = match &error {
            RunError::Proxy { .. } => Code::Proxy,
            RunError::Machine { .. }
            | RunError::Loop(_)
            | RunError::Child(_)
            | RunError::Output(_)
            | RunError::Cleanup { .. } => Code::System,
        };
        Failure::new(code, cli::Error::from(error).to_string())
    }
}

impl<T> From<StartError<Result<T, RunError>>> for Failure {
    fn from(error: StartError<Result<T, RunError>>) -> Failure {
        match error {
            StartError::AlreadyRunning(state) => {
                Failure::new(Code::State, format!("the session is {state} already"))
            }
            StartError::System(error) => Failure::system("cannot start a session", &error),
            StartError::Failed(Err(error)) => error.into(),
            StartError::Failed(Ok(_)) => {
                Failure::new(Code::State, "the session was stopped while it started")
            }
        }
    }
}

/// Keeps the text for `ztun_last_error`.
pub(super) fn remember(text: &str) {
    // A text of C ends with its first NUL.
    let text = CString::new(text.replace('\0', "\\0")).unwrap_or_default();
    // A thread that is ending keeps nothing.
    let _ = LAST.try_with(|last| *last.borrow_mut() = text);
}

/// The text, which is valid until the next call on this thread that fails.
pub(super) fn last() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}
