//! A session as the C side has it: a [`Lifecycle`](crate::session::Lifecycle), the configuration of its last start, and by whom its sockets are protected.

use super::callback::{self, User};
use super::failure::Failure;
use super::types::{Code, ProtectCallback};
use crate::cli;
use crate::control::Inquiry;
use crate::driver::{Clock, Signals, Waker};
use crate::session::{self, Embedding, Router, State};
use crate::time::Duration;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How long a status may take: the loop answers between two packets.
const STATUS_LIMIT: Duration = Duration::from_secs(5);

/// A session. All of it may be used from any thread.
#[derive(Debug)]
pub struct Session {
    lifecycle: session::Session,
    given: Mutex<Given>,
}

/// What was given to it so far.
#[derive(Debug)]
struct Given {
    /// The configuration of the last start.
    config: Option<String>,
    protect: (ProtectCallback, User),
    /// The run that was started last.
    run: Option<Run>,
}

/// How a run is spoken to.
#[derive(Debug)]
struct Run {
    inquiry: Inquiry,
    /// Says that the network is another.
    network: Waker,
}

impl Session {
    /// An idle session.
    pub(super) fn new() -> Session {
        let given = Given { config: None, protect: (None, User(std::ptr::null_mut())), run: None };
        Session { lifecycle: session::Session::new(), given: Mutex::new(given) }
    }

    fn given(&self) -> MutexGuard<'_, Given> {
        // Every field is set whole.
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is asked about the sockets of runs that are started from here on.
    pub(super) fn set_protect(&self, callback: ProtectCallback, user: User) {
        self.given().protect = (callback, user);
    }

    /// Starts a run on a copy of `descriptor`; comes back when traffic flows.
    pub(super) fn start(&self, descriptor: RawFd, config: Option<&str>) -> Result<(), Failure> {
        match self.state() {
            State::Idle | State::Stopped => {}
            // Before names are resolved for nothing.
            state @ (State::Starting | State::Running | State::Stopping) => {
                return Err(Failure::new(Code::State, format!("the session is {state} already")));
            }
        }
        let (router, run) = self.router(descriptor, config)?;
        self.launch(config, run, || self.lifecycle.start(router).map_err(Failure::from))
    }

    /// Stops the run, if there is one, and starts the next. What is refused at once leaves the first run alone.
    pub(super) fn restart(&self, descriptor: RawFd, config: Option<&str>) -> Result<(), Failure> {
        let (router, run) = self.router(descriptor, config)?;
        self.launch(config, run, || self.lifecycle.restart(router).map(drop).map_err(Failure::from))
    }

    /// Keeps what belongs to a run, if it was started.
    fn launch(
        &self,
        config: Option<&str>,
        run: Run,
        start: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        start()?;
        let mut given = self.given();
        given.run = Some(run);
        if let Some(config) = config {
            given.config = Some(config.to_owned());
        }
        Ok(())
    }

    /// A run of `config`, or of the one before where there is none.
    fn router(&self, descriptor: RawFd, config: Option<&str>) -> Result<(Router, Run), Failure> {
        let (before, (callback, user)) = {
            let given = self.given();
            (given.config.clone(), given.protect)
        };
        let text = config.or(before.as_deref()).ok_or_else(|| {
            Failure::new(Code::Argument, "no configuration is given, and there is none of an earlier start")
        })?;
        let config = cli::embedded_config(text)?;
        if descriptor < 0 {
            return Err(Failure::new(Code::Argument, format!("{descriptor} is no descriptor")));
        }
        // SAFETY: a descriptor that is not open makes the duplication fail and nothing else; the contract of `ztun_start` says that nobody closes it
        // meanwhile.
        let copy = unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned();
        let tun = copy.map_err(|error| {
            Failure::new(Code::Argument, format!("cannot use descriptor {descriptor}: {error}"))
        })?;
        let pipe = |error| Failure::system("cannot make a pipe to the session's thread", &error);
        let inquiry = Inquiry::new().map_err(pipe)?;
        let network = Signals::none().map_err(pipe)?;
        let run = Run { inquiry: inquiry.clone(), network: network.waker().map_err(pipe)? };
        let embedding = Embedding {
            tun,
            number: descriptor,
            protect: callback::protect(callback, user),
            inquiry,
            network,
        };
        Ok((Router::embedded(config, embedding, Clock::new()), run))
    }

    /// Stops the run, if there is one; after `limit` it is given up. A run that had failed is told of, once.
    pub(super) fn stop(&self, limit: Duration) -> Result<(), Failure> {
        let stopping = !matches!(self.state(), State::Idle | State::Stopped);
        self.lifecycle.stop(limit);
        if stopping && self.lifecycle.was_forced() {
            let text = "the session did not end in time and was given up";
            return Err(Failure::new(Code::Forced, text));
        }
        if let Some(said) = self.lifecycle.take_panic() {
            return Err(Failure::new(Code::Panic, format!("the session has panicked: {said}")));
        }
        match self.lifecycle.take_end() {
            Some(Err(error)) => Err(error.into()),
            Some(Ok(_)) | None => Ok(()),
        }
    }

    /// The state.
    pub(super) fn state(&self) -> State {
        self.lifecycle.state()
    }

    /// Has the run look at the machine's network.
    pub(super) fn network_changed(&self) -> Result<(), Failure> {
        let state = self.state();
        match self.given().run.as_ref().filter(|_| state == State::Running) {
            // A pipe that is full has told it already.
            Some(run) => match run.network.wake() {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    Err(Failure::system("cannot tell the session's thread", &error))
                }
                Ok(()) | Err(_) => Ok(()),
            },
            None => Err(Failure::new(
                Code::State,
                format!("the session is {state}, and only a running one follows the network"),
            )),
        }
    }

    /// The status of the run, in JSON.
    pub(super) fn status(&self) -> Result<String, Failure> {
        let state = self.state();
        let inquiry = self.given().run.as_ref().map(|run| run.inquiry.clone());
        match inquiry.filter(|_| state == State::Running) {
            Some(inquiry) => inquiry.status(STATUS_LIMIT).ok_or_else(|| {
                Failure::new(Code::State, "the session does not answer: it is ending, or hangs")
            }),
            None => Err(Failure::new(
                Code::State,
                format!("the session is {state}, and only a running one has a status"),
            )),
        }
    }
}
