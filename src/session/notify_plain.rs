//! Systems whose service manager is told nothing.

use crate::driver::Service;
use crate::time::Instant;

/// Traffic flows.
pub(crate) fn ready() {}

/// The run is being wound up.
pub(crate) fn stopping() {}

/// There is no manager.
pub(super) fn service<D>(_now: Instant) -> Option<Box<dyn Service<D>>> {
    None
}
