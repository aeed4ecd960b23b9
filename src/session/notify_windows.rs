//! Tells the service control manager of Windows how far the run is, where one has started this process.

use super::service as manager;
use crate::driver::Service;
use crate::time::Instant;

/// Traffic flows.
pub(crate) fn ready() {
    manager::ready();
}

/// The run is being wound up.
pub(crate) fn stopping() {
    manager::stopping();
}

/// The manager asks for no sign of life.
pub(super) fn service<D>(_now: Instant) -> Option<Box<dyn Service<D>>> {
    None
}
