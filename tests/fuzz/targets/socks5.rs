//! SOCKS5 on both sides: the client against any server, the server against any client, datagrams of any relay. However octets are
//! cut into portions, the outcome is the same.

use super::source::Source;
use ztun::config::Credentials;
use ztun::outbound::socks5::{Client, Failure, Progress, associate};
use ztun::proxy::session::{self, Session};
use ztun::wire::Endpoint;
use ztun::wire::socks5::{Address, Command, Reply, UdpHeader, parse_reply};

pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let kind = source.u8();
    let piece = usize::from(source.u8()) + 1;
    let octets = source.all();
    let credentials = (kind & 1 != 0).then(|| Credentials { user: "user".into(), password: "pass".into() });
    let credentials = credentials.as_ref();
    assert_eq!(client(octets, piece, credentials), client(octets, usize::MAX, credentials));
    assert_eq!(server(octets, piece, credentials), server(octets, usize::MAX, credentials));
    messages(octets);
}

/// What was sent, how it ended if it did, and octets consumed.
type Dialogue<T, E> = (Vec<u8>, Option<Result<T, E>>, usize);

/// How the dialogue of a client with a server that says `input` ends.
fn client(
    mut input: &[u8],
    piece: usize,
    credentials: Option<&Credentials>,
) -> Dialogue<Option<Endpoint>, Failure> {
    let mut client = Client::new(credentials);
    let target = Endpoint::new("203.0.113.5".parse().expect("address"), 80);
    client.request(Command::Connect, target);
    let mut sent = Vec::new();
    let mut consumed = 0;
    loop {
        sent.extend_from_slice(client.output());
        client.wrote(client.output().len());
        // A message at a time at most: a server that answers before it was asked is refused, which is another outcome.
        let turn = if client.is_negotiated() { usize::MAX } else { 2 };
        let len = input.len().min(piece).min(turn);
        if len == 0 {
            return (sent, None, consumed);
        }
        let (now, later) = input.split_at(len);
        match client.handle_input(now) {
            Ok(Progress::Pending | Progress::Negotiated) => consumed += len,
            Ok(Progress::Granted { bound, consumed: taken }) => {
                assert!(taken <= len && client.output().is_empty());
                return (sent, Some(Ok(bound)), consumed + taken);
            }
            Err(failure) => {
                assert_eq!(client.handle_input(b"x").err(), Some(failure), "a failure is final");
                return (sent, Some(Err(failure)), 0);
            }
        }
        input = later;
    }
}

/// How the dialogue of the server with a client that says `input` ends.
fn server(
    mut input: &[u8],
    piece: usize,
    credentials: Option<&Credentials>,
) -> Dialogue<session::Request, session::Failure> {
    let mut session = Session::new();
    let mut sent = Vec::new();
    let mut consumed = 0;
    loop {
        let len = input.len().min(piece);
        if len == 0 {
            return (sent, None, consumed);
        }
        let (now, later) = input.split_at(len);
        let progress = session.handle_input(now, credentials);
        sent.extend_from_slice(session.output());
        session.wrote(session.output().len());
        match progress {
            Ok(session::Progress::Pending) => consumed += len,
            Ok(session::Progress::Request { request, consumed: taken }) => {
                assert!(taken <= len);
                session.reply(Reply::Succeeded, Endpoint::new("::1".parse().expect("address"), 1));
                assert!(session.output().len() <= 22 && session.output().starts_with(&[5, 0, 0]));
                return (sent, Some(Ok(request)), consumed + taken);
            }
            Err(failure) => return (sent, Some(Err(failure)), 0),
        }
        input = later;
    }
}

/// What parses is written again and parses to the same.
fn messages(octets: &[u8]) {
    if let Ok(Some((address, used))) = Address::parse(octets) {
        let mut again = vec![0; address.buffer_len()];
        assert_eq!(address.emit(&mut again), again.len());
        assert_eq!((again.as_slice(), used), (&octets[..used], again.len()));
        for cut in 0..used {
            assert_eq!(Address::parse(&octets[..cut]), Ok(None), "a part asks for more");
        }
    }
    if let Ok(Some((_, used))) = parse_reply(octets) {
        // A refusal is known by its second octet.
        assert!(used >= 2 && used <= octets.len());
    }
    if let Ok((header, data)) = UdpHeader::parse(octets) {
        assert!(octets.ends_with(data));
        let mut again = vec![0; 262];
        let len = header.emit(&mut again);
        assert_eq!(again[..len], octets[..octets.len() - data.len()]);
    }
    if let Ok((remote, data)) = associate::decapsulate(octets) {
        let mut header = [0; associate::MAX_HEADER];
        let len = associate::encapsulate(remote, &mut header);
        let mut again = header[..len].to_vec();
        again.extend_from_slice(data);
        assert_eq!(associate::decapsulate(&again), Ok((remote, data)));
        let proxy = "192.0.2.10:1080".parse().expect("address");
        if let Some(relay) = associate::relay_address(Some(remote), proxy) {
            assert!(relay.port() != 0 && !relay.ip().is_unspecified() && !relay.ip().is_multicast());
        }
    }
}
