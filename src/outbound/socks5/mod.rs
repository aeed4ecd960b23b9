//! The client's side of SOCKS5 (RFC 1928, RFC 1929) without I/O.

pub mod associate;
pub mod client;

pub use client::{Client, Failure, Progress};

use super::Denial;
use crate::wire::socks5::Reply;

/// What a failed handshake means for the flow that asked for it (RFC 1928 6, conformance 60).
///
/// A server that speaks nonsense, or that refuses *us* (method, password), leaves the app with the
/// same plain refusal as a closed port: it is definite and prompt. ICMP is for what the server says
/// about the way to the target.
pub fn denial(failure: &Failure) -> Denial {
    match failure {
        Failure::Refused(reply) => match reply {
            Reply::NotAllowed => Denial::Prohibited,
            Reply::NetworkUnreachable => Denial::Network,
            Reply::HostUnreachable | Reply::TtlExpired => Denial::Host,
            Reply::Succeeded
            | Reply::GeneralFailure
            | Reply::ConnectionRefused
            | Reply::CommandNotSupported
            | Reply::AddressTypeNotSupported
            | Reply::Other(_) => Denial::Refused,
        },
        Failure::NoMethod | Failure::WrongMethod(_) | Failure::Denied | Failure::Protocol => Denial::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// conformance 60
    #[test]
    fn every_failure_has_one_meaning_for_the_app() {
        let refused = |reply| denial(&Failure::Refused(reply));
        assert_eq!(refused(Reply::GeneralFailure), Denial::Refused);
        assert_eq!(refused(Reply::NotAllowed), Denial::Prohibited);
        assert_eq!(refused(Reply::NetworkUnreachable), Denial::Network);
        assert_eq!(refused(Reply::HostUnreachable), Denial::Host);
        assert_eq!(refused(Reply::ConnectionRefused), Denial::Refused);
        assert_eq!(refused(Reply::TtlExpired), Denial::Host);
        assert_eq!(refused(Reply::CommandNotSupported), Denial::Refused);
        assert_eq!(refused(Reply::AddressTypeNotSupported), Denial::Refused);
        assert_eq!(refused(Reply::Other(0xfe)), Denial::Refused);
        for failure in [Failure::NoMethod, Failure::WrongMethod(0x80), Failure::Denied, Failure::Protocol] {
            assert_eq!(denial(&failure), Denial::Refused);
        }
    }
}
