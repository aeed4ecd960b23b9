//! Who talks to whom: tables of bounded size whose cost per packet does not grow with the number of flows.
//!
//! - [`table::FlowTable`]: a [`slab::Slab`] with a keyed-hash index; ids carry a generation, so that an id of a flow
//!   that is gone never names its successor.
//! - [`wheel::TimerWheel`]: one deadline for each slab index, set and cancelled in constant time.
//! - [`lru::LruList`]: the order of use of slab indices, for the eviction of the least recently used.
//! - [`paged::Paged`]: what else belongs to a slab index.
//!
//! Memory is taken and given back in pages of some indices: never more than a page too much, and nothing is moved when a table grows.

mod index;
pub mod lru;
pub mod paged;
pub mod slab;
pub mod table;
pub mod wheel;

pub use self::slab::Slab;
pub use lru::LruList;
pub use paged::Paged;
pub use table::{FlowId, FlowTable};
pub use wheel::TimerWheel;

use crate::wire::Endpoint;

/// The two ends of a flow, named from the app's side whichever way a packet travels.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// The app: source of what comes out of the TUN.
    pub local: Endpoint,
    /// Whom it talks to: destination of what comes out of the TUN.
    pub remote: Endpoint,
}
