//! Linux: policy rules and a table of our own by netlink, name servers by whoever has them here, namespaces, and whose a socket is.
//!
//! [`change`] is the vocabulary, [`plan`] decides, [`machine`] makes it so; `docs/HOST-CHANGES.md` lists what that is.

pub mod change;
pub mod dns;
mod existing;
mod holder;
mod kernel;
mod machine;
pub mod netns;
mod nft;
pub mod observe;
mod owner;
pub mod plan;
pub mod privilege;
pub mod process;
mod standin;

pub use change::Change;
pub use existing::reset_existing;
pub use kernel::{find as find_interface, index_of as interface_index};
pub use owner::LocalProxy;
pub use standin::stand_in_name;

pub(super) use dns::{Upkeep, name_servers, upkeep};
pub(super) use holder::{files_suffix, is_ending, is_ztun, start_time};
pub(super) use machine::Machine;
pub(super) use standin::{is_stood_in, stand_in};

use std::io;

/// Where journals and locks are kept.
pub(super) const RUN_DIR: &str = "/run/ztun";

/// What to try where a privilege is missing.
pub(super) const PRIVILEGE: &str = "run as root or with CAP_NET_ADMIN";

/// What to try where locks cannot be taken.
pub(super) const LOCK_REMEDY: &str = "run as root, or set ZTUN_RUN_DIR to a directory of your own";

/// What to try where there is no such device.
pub(super) const NO_DEVICE: &str = "another program may have deleted it; a device from another network namespace is set up there: use --no-route here";

/// The system's answer where there is no such device.
pub(super) fn no_device() -> io::Error {
    io::Error::from_raw_os_error(libc::ENODEV)
}

/// What to try where changes do not last.
pub(super) const NOT_KEPT: &str =
    "another program undoes them at once: stop it, or tell it to leave the device and protocol 122 alone";

/// What to try after an error that any request may end with.
pub(super) fn remedy(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => Some("raise the limit on open files (`ulimit -n`)"),
        _ => None,
    }
}
