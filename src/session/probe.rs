//! Asks a proxy before the start whether it can be used (`--require-proxy`): connection, method, user and password.
//!
//! Nothing runs yet, so this may wait, up to the time-out for connecting.

use crate::config::Proxy;
use crate::driver::{Clock, EgressBinding};
use crate::engine::Egress;
use crate::outbound::socks5::client::Client;
use crate::time::{Duration, Instant};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use std::io::{self, ErrorKind, Read, Write};

/// Whether one of `proxies` answers and takes the user; what each of them said if none does.
pub(crate) fn any(proxies: &[Proxy], binding: &EgressBinding, limit: Duration) -> Result<(), String> {
    let mut why = Vec::new();
    for proxy in proxies {
        match negotiate(proxy, binding, limit) {
            Ok(()) => return Ok(()),
            Err(error) => why.push(format!("{}: {error}", proxy.addr)),
        }
    }
    Err(why.join("; "))
}

fn negotiate(proxy: &Proxy, binding: &EgressBinding, limit: Duration) -> io::Result<()> {
    let clock = Clock::new();
    let deadline = clock.now() + limit;
    let mut poll = Poll::new()?;
    let mut stream = binding.dial(proxy.addr, Egress::Proxy)?;
    poll.registry().register(&mut stream, Token(0), Interest::READABLE | Interest::WRITABLE)?;
    let mut client = Client::new(proxy.credentials.as_ref());
    let mut events = Events::with_capacity(4);
    loop {
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        match step(&mut stream, &mut client) {
            Ok(()) if client.is_negotiated() => return Ok(()),
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {}
            Err(error) => return Err(error),
        }
        wait(&mut poll, &mut events, deadline, &clock)?;
    }
}

/// Writes what is to be said and reads until there is no more.
fn step(stream: &mut TcpStream, client: &mut Client) -> io::Result<()> {
    loop {
        while !client.output().is_empty() {
            let octets = stream.write(client.output())?;
            client.wrote(octets);
        }
        let mut octet = [0];
        if stream.read(&mut octet)? == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "it closed the connection"));
        }
        client
            .handle_input(&octet)
            .map_err(|failure| io::Error::other(format!("it refuses: {failure:?}")))?;
        if client.is_negotiated() {
            return Ok(());
        }
    }
}

fn wait(poll: &mut Poll, events: &mut Events, deadline: Instant, clock: &Clock) -> io::Result<()> {
    let left = deadline.since(clock.now());
    if left == Duration::ZERO {
        return Err(io::Error::new(ErrorKind::TimedOut, "it does not answer"));
    }
    match poll.poll(events, Some(left)) {
        Err(error) if error.kind() != ErrorKind::Interrupted => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Credentials;
    use crate::proxy::{ProxyConfig, Server};
    use std::net::TcpListener;

    fn proxy(addr: std::net::SocketAddr) -> Proxy {
        Proxy { addr, credentials: None }
    }

    #[test]
    fn a_silent_proxy_is_out_of_time_and_a_refused_one_says_so() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let refused = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        let proxies = [proxy(silent.local_addr().unwrap()), proxy(refused)];
        let why = any(&proxies, &EgressBinding::default(), Duration::from_millis(50)).unwrap_err();
        assert!(why.contains("does not answer") && why.contains("refused"), "{why}");
    }

    #[test]
    fn a_proxy_that_takes_the_user_can_be_used_and_one_that_does_not_cannot() {
        let credentials = Credentials { user: "u".into(), password: "p".into() };
        let listen = "127.0.0.1:0".parse().unwrap();
        let config = ProxyConfig { listen, credentials: Some(credentials.clone()), ..ProxyConfig::default() };
        let server = Server::bind(config).unwrap();
        let addr = server.local_addr().unwrap();
        let stop = server.stop_handle();
        let limit = Duration::from_secs(5);
        let server = serve(server);
        let good = Proxy { addr, credentials: Some(credentials) };
        any(&[good], &EgressBinding::default(), limit).unwrap();
        let why = any(&[proxy(addr)], &EgressBinding::default(), limit).unwrap_err();
        assert!(why.contains("NoMethod"), "{why}");
        stop.stop().unwrap();
        server.join().unwrap();
    }

    #[allow(clippy::disallowed_methods, reason = "the other end of a test has a thread of its own")]
    fn serve(mut server: Server) -> std::thread::JoinHandle<()> {
        std::thread::spawn(move || server.serve().unwrap())
    }
}
