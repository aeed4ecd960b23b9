//! Sans-IO ways out: which one a flow takes, and the dialogue that opens it.

pub mod rule;
pub mod socks5;
