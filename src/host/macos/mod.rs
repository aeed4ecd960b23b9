//! macOS: routes by the routing socket, the device by ioctl(2), name servers by the dynamic store of configd, and whose a socket is by libproc.
//!
//! [`change`] is the vocabulary, [`plan`] decides, `machine` makes it so; `docs/HOST-CHANGES.md` lists what that is. What builds and reads octets and texts
//! is compiled for tests on every system.

pub mod change;
pub mod names;
pub mod plan;
mod request;
mod sockets;

#[cfg(target_os = "macos")]
mod kernel;
#[cfg(target_os = "macos")]
mod machine;
#[cfg(target_os = "macos")]
mod owner;
#[cfg(target_os = "macos")]
pub mod process;
#[cfg(target_os = "macos")]
mod processes;
#[cfg(target_os = "macos")]
mod scutil;
#[cfg(target_os = "macos")]
mod system;

#[cfg(target_os = "macos")]
pub use change::Change;
#[cfg(target_os = "macos")]
pub use kernel::{find as find_interface, index_of as interface_index};
#[cfg(target_os = "macos")]
pub use owner::LocalProxy;
#[cfg(target_os = "macos")]
pub use system::{reset_existing, stand_in_name};

#[cfg(target_os = "macos")]
pub(super) use machine::Machine;
#[cfg(target_os = "macos")]
pub(super) use processes::{files_suffix, is_ending, is_ztun, start_time};
#[cfg(target_os = "macos")]
pub(super) use scutil::{Upkeep, name_servers};
#[cfg(target_os = "macos")]
pub(super) use system::{
    LOCK_REMEDY, NO_DEVICE, NOT_KEPT, PRIVILEGE, RUN_DIR, is_stood_in, no_device, remedy, stand_in, upkeep,
};

#[cfg(test)]
mod tests;
