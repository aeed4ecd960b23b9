//! A dialogue with one client, without its socket: what the machines behind the control socket and the metrics have in common.

/// One client's dialogue.
pub(super) trait Talk: Default {
    /// Octets that it takes at present.
    fn room(&self) -> usize;

    /// Takes octets, no more than there is room for.
    fn handle_input(&mut self, octets: &[u8]);

    /// The client sends no more. What is there is answered yet.
    fn handle_end(&mut self);

    /// What is to be written.
    fn output(&self) -> &[u8];

    /// The first `octets` of [`Talk::output`] were written.
    fn wrote(&mut self, octets: usize);

    /// Whether the client can be let go.
    fn is_over(&self) -> bool;
}
