//! One connection to a SOCKS5 server, from greeting to reply.
//!
//! The caller writes [`Client::output`] to the connection and feeds what it reads to
//! [`Client::handle_input`]. Octets may come in any portions; what follows the reply is not
//! consumed: it is the first data of the target.

use crate::config::Credentials;
use crate::wire::Endpoint;
use crate::wire::socks5::{Command, Reply};

/// What input has brought about. `consumed` counts octets of the input that belonged to the handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// More input is needed; all input was consumed. There may be new output.
    Pending,
    /// The method negotiation (and authentication) is over and no request has been made: a pooled connection is warm.
    /// All input was consumed.
    Negotiated,
    /// The request was granted. The rest of the input is the target's data.
    Granted {
        /// BND.ADDR and BND.PORT; `None` when the server gave a domain name.
        bound: Option<Endpoint>,
        /// Octets of the input that were the handshake's.
        consumed: usize,
    },
}

/// Why the handshake failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// No method in common (0xff).
    NoMethod,
    /// A method that was not offered.
    WrongMethod(u8),
    /// User or password refused.
    Denied,
    /// The server refused the request.
    Refused(Reply),
    /// Not SOCKS5, or malformed.
    Protocol,
}

/// The state machine.
#[derive(Debug)]
pub struct Client {}

impl Client {
    /// A client that negotiates the method and then waits for [`Client::request`].
    pub fn new(_credentials: Option<&Credentials>) -> Client {
        todo!()
    }

    /// Sets the request. It may be set at once, during the negotiation, or when negotiated; only once.
    pub fn request(&mut self, _command: Command, _target: Endpoint) {
        todo!()
    }

    /// Octets to be written now; the caller reports with [`Client::wrote`].
    pub fn output(&self) -> &[u8] {
        todo!()
    }

    /// The first `octets` of [`Client::output`] were written.
    pub fn wrote(&mut self, _octets: usize) {
        todo!()
    }

    /// Whether the method negotiation is over.
    pub fn is_negotiated(&self) -> bool {
        todo!()
    }

    /// Feeds octets read from the connection.
    pub fn handle_input(&mut self, _input: &[u8]) -> Result<Progress, Failure> {
        todo!()
    }
}
