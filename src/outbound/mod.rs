//! Sans-IO ways out: which one a flow takes, and the dialogue that opens it.

pub mod rule;
pub mod socks5;

/// Why a way out did not open, in terms that do not depend on the kind of way. The engine turns it
/// into what the app sees: an RST, an ICMP error, or nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Denial {
    /// The target (or the proxy for it) said no: a reset.
    Refused,
    /// The target's network cannot be reached.
    Network,
    /// The target host cannot be reached.
    Host,
    /// Policy forbids it.
    Prohibited,
    /// No answer in time.
    TimedOut,
    /// The proxy itself cannot be reached or went away in mid-dialogue.
    ProxyDown,
}
