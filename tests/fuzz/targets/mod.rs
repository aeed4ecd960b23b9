//! What is tried with arbitrary octets: one function for each target, shared by the fuzzer, the replay of its corpus and the property
//! tests.
//!
//! Octets are read as decisions by [`source::Source`], by hand and not by a derive: the meaning of a corpus file must not change
//! with the version of a library.

pub mod dns;
pub mod engine;
pub mod packets;
pub mod socks5;
pub mod source;
pub mod stack;
pub mod wire;

/// Takes any octets, and panics when something is wrong.
pub type Target = fn(&[u8]);

/// All targets by the names of their corpus folders.
pub const ALL: [(&str, Target); 5] = [
    ("wire", wire::run),
    ("stack", stack::run),
    ("engine", engine::run),
    ("socks5", socks5::run),
    ("dns", dns::run),
];
