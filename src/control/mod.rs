//! What a running router tells about itself, and what may be changed while it runs.
//!
//! # Theory of operation
//!
//! ```text
//!  octets ──▶ conversation ──▶ protocol ──▶ server ──▶ engine          the control socket: one JSON object a line
//!  octets ──▶ http ──▶ metrics ──▶ engine                              metrics and health for monitoring
//! ```
//!
//! `protocol` and `conversation`, and `http` for metrics, are machines without sockets: whatever octets come, they hold a bounded number and never
//! fail. `desk` gives them sockets (those of `local` and of `web`), as a [`Service`](crate::driver::Service) of the loop, so that a question is answered between two packets by the one
//! thread that owns everything, and no lock is needed. `report` and `counters` put the engine into words. `client` asks from another process,
//! `inquiry` from another thread of this one.
//!
//! The protocol is described in `docs/CONTROL.md`.

pub mod client;
mod conversation;
mod counters;
mod desk;
mod http;
mod inquiry;
#[cfg_attr(windows, path = "local_windows.rs")]
mod local;
mod metrics;
#[cfg(any(windows, test))]
mod pipe_name;
pub mod protocol;
mod report;
mod server;
mod talk;
mod web;

pub use inquiry::Inquiry;
pub use local::Listener;
pub use server::{Surroundings, service};
pub use web::service as metrics_service;
