//! The metrics' server: `/metrics`, `/healthz` and `/readyz` over HTTP, for monitoring (`--metrics`).
//!
//! Whoever can connect may read: there is no password in what is told, but the proxies' addresses are. So it belongs on a loopback address, and
//! anything else is warned of.

use super::desk::{Desk, Trade};
use super::http::{Exchange, Page, Status};
use super::metrics::{KIND, metrics, readiness};
use super::{report, server};
use crate::driver::{Scene, Service};
use crate::time::{Duration, Instant};
use crate::tun::Device;
use mio::event::Source;
use mio::net::{TcpListener, TcpStream};
use socket2::SockAddr;
use std::io;
use std::net::SocketAddr;

/// A request has to be complete, and an octet of its answer taken, in this time.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clients that wait to be let in.
const BACKLOG: i32 = 128;

/// The metrics' server, for [`crate::driver::Parts::services`]. Its answers leave with `mark`, so that they do not go into the tunnel.
///
/// # Errors
///
/// The system's, as for an address that is in use.
pub fn service<D: Device + 'static>(
    addr: SocketAddr,
    mark: Option<u32>,
    started: Instant,
) -> io::Result<Box<dyn Service<D>>> {
    let socket = crate::driver::socket::listening(addr, mark)?;
    socket.bind(&SockAddr::from(addr))?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from_std(socket.into());
    let addr = listener.local_addr()?;
    log::info!("metrics: http://{addr}/metrics");
    if !addr.ip().to_canonical().is_loopback() {
        log::warn!(
            "whoever reaches {addr} may read the metrics: a loopback address lets in only this machine"
        );
    }
    Ok(Box::new(Desk::new(Web { listener, started })))
}

struct Web {
    listener: TcpListener,
    started: Instant,
}

impl<D: Device> Trade<D> for Web {
    type Stream = TcpStream;
    type Talk = Exchange;

    fn listener(&mut self) -> &mut dyn Source {
        &mut self.listener
    }

    fn accept(&mut self) -> io::Result<Option<TcpStream>> {
        self.listener.accept().map(|(stream, _)| Some(stream))
    }

    fn answer(&mut self, talk: &mut Exchange, scene: &mut Scene<'_, D>, now: Instant) -> bool {
        let Some(page) = talk.poll_request() else { return false };
        if page == Page::Health {
            talk.answer_plain(Status::Ok, "ok\n");
            return true;
        }
        let status = report::status(scene.engine, server::device(scene), self.started, now);
        match (page, readiness(&status)) {
            (Page::Metrics | Page::Health, _) => {
                talk.answer(Status::Ok, KIND, &metrics(scene.engine, &status));
            }
            (Page::Ready, Ok(())) => talk.answer_plain(Status::Ok, "ready\n"),
            (Page::Ready, Err(why)) => talk.answer_plain(Status::Unavailable, &format!("not ready: {why}\n")),
        }
        true
    }

    fn patience(&self) -> (Duration, Duration) {
        (PATIENCE, PATIENCE)
    }
}
