//! `ztun service` on Windows: the service control manager is asked to start the program with the machine, and told how far it is.

use super::options::ServiceCommand;
use super::{Error, build, logging, print, print_error, route, service};
use crate::driver::Waiter;
use crate::host;
use crate::session::service as manager;
use crate::time::Duration;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use windows_service::service::{
    ServiceAccess, ServiceAction, ServiceActionType, ServiceDependency, ServiceErrorControl,
    ServiceFailureActions, ServiceFailureResetPeriod, ServiceInfo, ServiceStartType, ServiceState,
    ServiceType,
};
use windows_service::service_manager::{ServiceManager, ServiceManagerAccess};

/// How the service is called.
const NAME: &str = "ztun";
/// What it writes its log to, beside the program.
const LOG: &str = "ztun-service.log";
/// How long it may take to stop; the watchdog needs less.
const STOP_LIMIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the process runs as a service.
static OPTIONS: OnceLock<Vec<OsString>> = OnceLock::new();

/// Does what was asked.
pub(super) fn run(command: ServiceCommand) -> Result<u8, Error> {
    match command {
        ServiceCommand::Install { options } => install(&options),
        ServiceCommand::Remove => remove(),
        ServiceCommand::Run { directory, options } => serve(directory, options),
    }
}

fn install(options: &[OsString]) -> Result<u8, Error> {
    let here = std::env::current_dir().map_err(|error| failed("cannot tell where this is", &error))?;
    let launch_arguments = service::launch(options, &here, build::Names::Resolved)?;
    let executable_path =
        std::env::current_exe().map_err(|error| failed("cannot tell where ztun.exe is", &error))?;
    only_administrators_change(&executable_path)?;
    let log = log_file().map_err(|error| failed("cannot tell where ztun.exe is", &error))?;
    let info = ServiceInfo {
        name: NAME.into(),
        display_name: "ztun".into(),
        service_type: ServiceType::OWN_PROCESS,
        start_type: ServiceStartType::AutoStart,
        error_control: ServiceErrorControl::Normal,
        executable_path,
        launch_arguments,
        // What routes and filters are asked of.
        dependencies: ["Nsi", "BFE"].map(|name| ServiceDependency::Service(name.into())).into(),
        // The system itself: the driver wants administrators' rights.
        account_name: None,
        account_password: None,
    };
    let access = ServiceManagerAccess::CONNECT | ServiceManagerAccess::CREATE_SERVICE;
    let installed = ServiceManager::local_computer(None::<&str>, access).and_then(|manager| {
        let service = manager.create_service(&info, ServiceAccess::CHANGE_CONFIG | ServiceAccess::START)?;
        service.set_description("Sends everything this machine does through a SOCKS5 proxy")?;
        // A kill switch outlives a crash, and at the start of the machine the network may not be there yet.
        service.update_failure_actions(again())?;
        service.set_failure_actions_on_non_crash_failures(true)?;
        Ok(service)
    });
    let taken = "one that is there is taken away by `ztun service remove`";
    let service = installed.map_err(|error| refused("cannot install the service", error, taken))?;
    let remedy = format!("look into {}; `ztun service remove` takes it away", log.display());
    let started = service.start::<OsString>(&[]);
    started.map_err(|error| refused("the service is installed, but does not start", error, &remedy))?;
    print(|out| writeln!(out, "installed and started; its log is {}", log.display()))
}

/// What the manager does when the service ends otherwise than by being stopped: it starts it again, the last time over and over.
fn again() -> ServiceFailureActions {
    let after = |delay| ServiceAction { action_type: ServiceActionType::Restart, delay };
    ServiceFailureActions {
        reset_period: ServiceFailureResetPeriod::After(Duration::from_secs(3_600)),
        reboot_msg: None,
        command: None,
        actions: Some([5, 15, 60].map(|seconds| after(Duration::from_secs(seconds))).into()),
    }
}

/// Whoever can change the program is the system from the next start on.
fn only_administrators_change(program: &Path) -> Result<(), Error> {
    let open = host::program_is_open_to(program)
        .map_err(|error| failed("cannot tell who can change ztun.exe", &error))?;
    let Some((path, who)) = open else { return Ok(()) };
    let what =
        format!("{who} can change {}, and would be the system when the service starts", path.display());
    Err(Error::usage(
        &what,
        r"install it from a directory that only administrators can write to, as C:\Program Files\ztun",
    ))
}

fn remove() -> Result<u8, Error> {
    let removed = || {
        let manager = ServiceManager::local_computer(None::<&str>, ServiceManagerAccess::CONNECT)?;
        let access = ServiceAccess::STOP | ServiceAccess::QUERY_STATUS | ServiceAccess::DELETE;
        let service = manager.open_service(NAME, access)?;
        if service.query_status()?.current_state != ServiceState::Stopped {
            service.stop()?;
        }
        let (_nobody, waiter) = Waiter::pair().map_err(windows_service::Error::Winapi)?;
        let mut waited = Duration::ZERO;
        while service.query_status()?.current_state != ServiceState::Stopped && waited < STOP_LIMIT {
            waiter.wait(LOOK_EVERY).map_err(windows_service::Error::Winapi)?;
            waited += LOOK_EVERY;
        }
        // One that does not stop is marked, and goes when it does.
        service.delete()
    };
    let look = "look whether there is one: `sc query ztun`";
    removed().map_err(|error| refused("cannot remove the service", error, look))?;
    print(|out| writeln!(out, "stopped and removed"))
}

/// What Windows has started: the router, until Windows asks it to stop.
fn serve(directory: PathBuf, options: Vec<OsString>) -> Result<u8, Error> {
    std::env::set_current_dir(&directory)
        .map_err(|error| failed(&format!("cannot work in {}", directory.display()), &error))?;
    let cli = service::router(&options)?;
    let log = log_file().and_then(File::create);
    logging::start_in(&cli.log, log.map_err(|error| failed("cannot write the log", &error))?);
    // There is one such process, and it gets here once.
    let _set_once = OPTIONS.set(options);
    manager::serve(NAME, body).map_err(|error| {
        let remedy = "this is for Windows to call: `ztun service install`";
        Error::system(1, "no service control manager has started this", &error, remedy)
    })?;
    Ok(0)
}

/// The service itself: the exit status.
fn body() -> u8 {
    let options = OPTIONS.get().map_or(&[][..], Vec::as_slice);
    let ran = service::router(options).and_then(|cli| route(&cli.run));
    ran.unwrap_or_else(|error| {
        log::error!("{error}");
        print_error(&error)
    })
}

fn log_file() -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(LOG))
}

fn failed(what: &str, why: &io::Error) -> Error {
    Error::system(1, what, why, "start it again, as administrator")
}

fn refused(what: &str, why: windows_service::Error, remedy: &str) -> Error {
    let why = manager::error(why);
    match why.kind() == io::ErrorKind::PermissionDenied {
        true => Error::system(3, what, &why, "start it as administrator"),
        false => Error::system(1, what, &why, remedy),
    }
}
