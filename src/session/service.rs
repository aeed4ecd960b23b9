//! A process that is a service of Windows: what its service control manager is told, and what it asks.
//!
//! The manager starts the process and waits to be told that it runs, which is when traffic flows; until then it is told that the start is under way. Its Stop, and
//! the end of the machine, are a signal like Ctrl-C, so that everything is undone in order, under the same watchdog.

use crate::driver::signals;
use std::ffi::OsString;
use std::io;
use std::sync::OnceLock;
use std::time::Duration;
use windows_service::service::{
    ServiceControl, ServiceControlAccept, ServiceExitCode, ServiceState, ServiceStatus, ServiceType,
};
use windows_service::service_control_handler::{self, ServiceControlHandlerResult, ServiceStatusHandle};
use windows_service::{define_windows_service, service_dispatcher};

/// What a start may take, a driver to be installed included; and a stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// The manager's handle; nothing in a process that is no service.
static MANAGER: OnceLock<ServiceStatusHandle> = OnceLock::new();

/// What a process does as a service.
#[derive(Debug)]
struct Work {
    name: &'static str,
    /// Gives an exit status.
    body: fn() -> u8,
}

/// What this one does.
static WORK: OnceLock<Work> = OnceLock::new();

define_windows_service!(service_main, serve_here);

/// Makes this process the service `name`, which does `body` on a thread of the manager's. Returns when the service has stopped.
///
/// # Errors
///
/// The system's; no service control manager has started this process.
pub fn serve(name: &'static str, body: fn() -> u8) -> io::Result<()> {
    if WORK.set(Work { name, body }).is_err() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    service_dispatcher::start(name, service_main).map_err(error)
}

/// The system's error behind one of the crate's.
pub fn error(error: windows_service::Error) -> io::Error {
    if let windows_service::Error::Winapi(error) = error { error } else { io::Error::other(error) }
}

/// Called by the dispatcher.
fn serve_here(_arguments: Vec<OsString>) {
    let Some(Work { name, body }) = WORK.get() else { return };
    signals::become_service();
    match service_control_handler::register(name, control) {
        Ok(manager) => {
            // A process becomes a service once.
            let _set_once = MANAGER.set(manager);
            tell(ServiceState::StartPending, 0);
            let code = body();
            tell(ServiceState::Stopped, code);
        }
        Err(error) => log::error!("cannot talk to the service control manager: {error}"),
    }
}

/// What the manager asks.
fn control(asked: ServiceControl) -> ServiceControlHandlerResult {
    if matches!(asked, ServiceControl::Stop | ServiceControl::Shutdown | ServiceControl::Preshutdown) {
        signals::ask_to_stop();
    } else if !matches!(asked, ServiceControl::Interrogate) {
        return ServiceControlHandlerResult::NotImplemented;
    }
    ServiceControlHandlerResult::NoError
}

/// Traffic flows.
pub(super) fn ready() {
    tell(ServiceState::Running, 0);
}

/// The run is being wound up.
pub(super) fn stopping() {
    tell(ServiceState::StopPending, 0);
}

fn tell(state: ServiceState, code: u8) {
    let Some(manager) = MANAGER.get() else { return };
    let pending = matches!(state, ServiceState::StartPending | ServiceState::StopPending);
    let running = state == ServiceState::Running;
    let status = ServiceStatus {
        service_type: ServiceType::OWN_PROCESS,
        current_state: state,
        controls_accepted: match running {
            true => ServiceControlAccept::STOP | ServiceControlAccept::SHUTDOWN,
            false => ServiceControlAccept::empty(),
        },
        exit_code: match code {
            0 => ServiceExitCode::NO_ERROR,
            code => ServiceExitCode::ServiceSpecific(code.into()),
        },
        checkpoint: pending.into(),
        wait_hint: if pending { PATIENCE } else { Duration::ZERO },
        process_id: None,
    };
    if let Err(error) = manager.set_service_status(status) {
        log::warn!("cannot tell the service control manager: {error}");
    }
}
