//! Why a run failed: what, the system's words, what to try, and the exit status.

use crate::host::HostError;
use crate::tun::OpenError;
use crate::tun::lifecycle::{LifecycleError, StepError};
use std::fmt;
use std::io;

/// Why a run failed.
#[derive(Debug)]
pub enum RunError {
    /// The machine refuses what the router needs: privilege, device, interface.
    Machine {
        /// What was being done.
        what: String,
        /// The system's words.
        source: io::Error,
        /// What to try.
        remedy: String,
    },
    /// `--require-proxy`, and no proxy answers.
    Proxy {
        /// What each of them said.
        why: String,
    },
    /// The loop failed while running.
    Loop(io::Error),
    /// A process of ours ended with this status; it has said why.
    Child(u8),
    /// Standard output is closed.
    Output(io::Error),
    /// The run is over, but something that it changed could not be undone.
    Cleanup {
        /// What is left.
        report: String,
    },
}

impl RunError {
    /// What the user can try.
    pub fn remedy(&self) -> Option<&str> {
        match self {
            RunError::Machine { remedy, .. } => Some(remedy),
            RunError::Proxy { .. } => Some(
                "check the address, and user and password; without --require-proxy ztun waits for the proxy",
            ),
            RunError::Child(_) | RunError::Output(_) => None,
            RunError::Loop(_) => {
                Some("start again; if the device was deleted by another program, stop that one")
            }
            RunError::Cleanup { .. } => Some("run `sudo ztun restore`"),
        }
    }

    /// The exit status of the contract of the command line.
    pub fn exit_code(&self) -> u8 {
        match self {
            RunError::Loop(_) | RunError::Cleanup { .. } | RunError::Output(_) => 1,
            RunError::Child(code) => *code,
            RunError::Machine { .. } => 3,
            RunError::Proxy { .. } => 4,
        }
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Machine { what, .. } => f.write_str(what),
            RunError::Proxy { why } => write!(f, "no proxy can be used: {why}"),
            RunError::Loop(_) => f.write_str("the event loop failed"),
            RunError::Child(code) => write!(f, "a process of this run ended with status {code}"),
            RunError::Output(_) => f.write_str("cannot write to standard output"),
            RunError::Cleanup { report } => write!(f, "not everything could be undone: {report}"),
        }
    }
}

impl std::error::Error for RunError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            RunError::Machine { source, .. } | RunError::Loop(source) | RunError::Output(source) => {
                Some(source)
            }
            RunError::Proxy { .. } | RunError::Cleanup { .. } | RunError::Child(_) => None,
        }
    }
}

impl From<HostError> for RunError {
    fn from(error: HostError) -> RunError {
        RunError::Machine { what: error.what, source: error.source, remedy: error.remedy }
    }
}

impl From<OpenError> for RunError {
    fn from(error: OpenError) -> RunError {
        RunError::Machine { what: error.what, source: error.source, remedy: error.remedy }
    }
}

impl From<LifecycleError> for RunError {
    fn from(error: LifecycleError) -> RunError {
        match error {
            LifecycleError::ConfigurationFailed { error: StepError { what, source, remedy }, .. } => {
                RunError::Machine { what, source, remedy }
            }
            LifecycleError::InvalidStateTransition { .. }
            | LifecycleError::InterfaceNotReady { .. }
            | LifecycleError::CleanupTimeout { .. }
            | LifecycleError::Cancelled
            | LifecycleError::Left { .. } => RunError::Cleanup { report: error.to_string() },
        }
    }
}
