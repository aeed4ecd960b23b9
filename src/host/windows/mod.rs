//! Windows: routes, addresses and sockets by the IP Helper, names by the registry and the service Dnscache, what must not leave by the Windows Filtering
//! Platform.
//!
//! [`change`] is the vocabulary, [`plan`] decides, `machine` makes it so; `docs/HOST-CHANGES.md` lists what that is. What builds and reads octets and texts
//! is compiled for tests on every system.

pub mod change;
pub mod guard;
mod nrpt;
mod octets;
pub mod plan;
pub mod rows;
mod sockets;
mod trust;

#[cfg(windows)]
mod existing;
#[cfg(windows)]
mod helper;
#[cfg(windows)]
mod machine;
#[cfg(windows)]
mod owner;
#[cfg(windows)]
pub mod process;
#[cfg(windows)]
mod protection;
#[cfg(windows)]
mod registry;
#[cfg(windows)]
mod resolver;
#[cfg(windows)]
mod system;
#[cfg(windows)]
mod wfp;

#[cfg(windows)]
pub use change::Change;
#[cfg(windows)]
pub use existing::reset_existing;
#[cfg(windows)]
pub use owner::LocalProxy;
#[cfg(windows)]
pub use protection::program_is_open_to;
#[cfg(windows)]
pub use system::{find_interface, interface_index, stand_in_name};

#[cfg(windows)]
pub(super) use machine::Machine;
#[cfg(windows)]
pub(super) use process::{is_ending, is_ztun, start_time};
#[cfg(windows)]
pub(super) use system::{
    LOCK_REMEDY, NO_DEVICE, NOT_KEPT, PRIVILEGE, Upkeep, files_suffix, is_stood_in, name_servers, no_device,
    remedy, stand_in, upkeep,
};

#[cfg(any(target_os = "linux", windows))]
#[cfg(test)]
mod tests;
