//! What the proxies can do, by asking them: each in three rounds, and all of them at once.
//!
//! First whether it is there and takes us in; then names, the relay, the resolver and IPv6; last an address, which may be one that the second
//! round has found out. The judgements are pure functions over [`Answer`]s. A target that cannot be reached is its own matter: it
//! fails the set-up only when nothing at all was reached.

use super::ask::{self, Answer, Ask, Question, Stage, Target, Trouble};
use super::check::Check;
use super::query::{NO_SUCH_NAME, Query, Resolved};
use super::{Options, names::Resolver};
use crate::config::{Config, DnsMode, Proxy, UdpMode};
use crate::driver::{EgressBinding, limits};
use crate::outbound::socks5::client::Failure;
use crate::time::Duration;
use crate::wire::socks5::Reply;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Time for each round; a run may be told to wait longer (`--connect-timeout`), the doctor may not.
const ROUNDS: [Duration; 3] = [Duration::from_secs(4), Duration::from_secs(5), Duration::from_secs(3)];

/// Connected to by address when the target has none that could be found out: it answers TCP on port 53.
const FALLBACK: IpAddr = IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1));
/// Likewise by IPv6.
const FALLBACK_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111));
const FALLBACK_PORT: u16 = 53;
/// Looked up when the target is an address.
const NAME: &str = "example.com";

/// The least payload of a QUIC datagram that carries an Initial packet (RFC 9000 14.1).
const QUIC: u32 = 1200;

const NO_SOCKS5: &str = "make sure that a SOCKS5 server listens there, and not one for HTTP or SOCKS4";

/// What is asked of each proxy.
struct Subject {
    target: Target,
    name: String,
    port: u16,
    resolver: SocketAddr,
    /// How names are resolved; not through the proxies at all when it is direct.
    dns: DnsMode,
    ipv6: bool,
    udp: UdpMode,
}

/// The answers of one proxy that takes us in.
struct Answers {
    by_name: Answer,
    by_tcp: Answer,
    by_udp: Option<Answer>,
    by_ipv6: Option<Answer>,
    /// And the address that was connected to.
    by_address: Option<(SocketAddr, Answer)>,
}

/// Checks every proxy of `config`.
pub(super) fn examine(
    config: &Config,
    options: &Options,
    resolver: &Resolver,
    binding: &EgressBinding,
) -> io::Result<Vec<Check>> {
    let proxies = &config.engine.proxies;
    let limit = |round: usize| config.engine.connect_timeout.min(ROUNDS[round]);
    let first: Vec<Question<'_>> =
        proxies.iter().map(|proxy| Question { proxy, ask: Ask::Negotiate }).collect();
    let negotiations = ask::all(&first, binding, limit(0))?;
    let usable: Vec<&Proxy> = proxies
        .iter()
        .zip(&negotiations)
        .filter(|(_, answer)| answer.result.is_ok())
        .map(|(proxy, _)| proxy)
        .collect();
    let subject = Subject::new(config, options, resolver)?;
    let mut rest = second_and_third(&subject, &usable, binding, &limit)?.into_iter();
    let mut checks = Vec::new();
    for (proxy, negotiation) in proxies.iter().zip(&negotiations) {
        let mut of_proxy = admission(proxy, negotiation, config.host.mtu);
        if !usable.is_empty() && negotiation.result.is_err() {
            of_proxy = of_proxy.into_iter().map(spare).collect();
        }
        if negotiation.result.is_ok()
            && let Some(answers) = rest.next()
        {
            of_proxy.extend(abilities(&subject, &answers));
        }
        checks.extend(of_proxy.into_iter().map(|check| check.of(proxy.addr)));
    }
    if usable.is_empty() {
        let ids = ["connect-name", "connect-address", "udp", "udp-relay", "dns", "ipv6-proxy"];
        checks.extend(ids.map(|id| Check::skipped(id, "no proxy can be asked")));
    }
    Ok(checks)
}

impl Subject {
    fn new(config: &Config, options: &Options, resolver: &Resolver) -> io::Result<Subject> {
        let (host, port) = (&options.target.host, options.target.port);
        let target = match host.parse::<IpAddr>() {
            Ok(addr) => Target::Ip(SocketAddr::new(addr, port)),
            Err(_) => Target::Name(host.clone(), port),
        };
        let name = if matches!(target, Target::Ip(_)) { NAME.into() } else { host.clone() };
        let ipv6 = options.ipv6;
        Ok(Subject {
            target,
            name,
            port,
            resolver: resolver.asked,
            dns: config.engine.dns,
            ipv6,
            udp: config.engine.udp,
        })
    }

    fn query(&self) -> io::Result<Query> {
        let [high, low, ..] = limits::seed()?;
        Query::new(&self.name, u16::from_be_bytes([high, low])).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "the target is no name that can be looked up")
        })
    }

    /// The text of the target that is asked for by name: an address is a name too, to a proxy.
    fn by_name(&self) -> Target {
        match &self.target {
            Target::Name(name, port) => Target::Name(name.clone(), *port),
            Target::Ip(addr) => Target::Name(addr.ip().to_string(), addr.port()),
        }
    }

    /// Whether the target was found out, or given, as an address, so that both ways lead to the same.
    fn address(&self, answers: &Answers) -> (SocketAddr, bool) {
        match self.target {
            Target::Ip(addr) => (addr, true),
            Target::Name(..) => {
                match resolved(self.dns, answers).and_then(|(resolved, _)| resolved.addresses.first()) {
                    Some(addr) => (SocketAddr::new(*addr, self.port), true),
                    None => (SocketAddr::new(FALLBACK, FALLBACK_PORT), false),
                }
            }
        }
    }
}

fn second_and_third(
    subject: &Subject,
    usable: &[&Proxy],
    binding: &EgressBinding,
    limit: &impl Fn(usize) -> Duration,
) -> io::Result<Vec<Answers>> {
    let v6 = Target::Ip(SocketAddr::new(FALLBACK_V6, FALLBACK_PORT));
    let udp = matches!(subject.udp, UdpMode::Auto | UdpMode::Socks5);
    let mut questions = Vec::new();
    for &proxy in usable {
        let mut add = |ask| questions.push(Question { proxy, ask });
        add(Ask::Connect(subject.by_name()));
        add(Ask::ByTcp(subject.resolver, subject.query()?));
        if udp {
            add(Ask::ByUdp(subject.resolver, subject.query()?));
        }
        if subject.ipv6 {
            add(Ask::Connect(v6.clone()));
        }
    }
    let mut answers = ask::all(&questions, binding, limit(1))?.into_iter();
    let mut all = Vec::new();
    for _ in usable {
        let missing = || io::Error::other("a question was lost");
        all.push(Answers {
            by_name: answers.next().ok_or_else(missing)?,
            by_tcp: answers.next().ok_or_else(missing)?,
            by_udp: if udp { answers.next() } else { None },
            by_ipv6: if subject.ipv6 { answers.next() } else { None },
            by_address: None,
        });
    }
    let addresses: Vec<SocketAddr> = all.iter().map(|answers| subject.address(answers).0).collect();
    let questions: Vec<Question<'_>> = usable
        .iter()
        .zip(&addresses)
        .map(|(proxy, addr)| Question { proxy, ask: Ask::Connect(Target::Ip(*addr)) })
        .collect();
    for ((answers, addr), answer) in
        all.iter_mut().zip(addresses).zip(ask::all(&questions, binding, limit(2))?)
    {
        answers.by_address = Some((addr, answer));
    }
    Ok(all)
}

/// A proxy that fails while another one can be used: only failover suffers.
fn spare(check: Check) -> Check {
    match (check.status, &check.remedy) {
        (super::Status::Fail, Some(remedy)) => {
            Check::warn(check.id, format!("{}; another proxy can be used", check.why), remedy)
        }
        (super::Status::Ok | super::Status::Warn | super::Status::Skipped | super::Status::Fail, _) => check,
    }
}

/// Whether a proxy is there, and takes us in.
fn admission(proxy: &Proxy, answer: &Answer, mtu: u16) -> Vec<Check> {
    let Some(connected) = answer.connected else {
        let (why, remedy) = match &answer.result {
            Err(Trouble::System(error)) => (error.to_string(), unreachable_remedy(error)),
            Ok(_) | Err(_) => (
                "no answer to the connection".into(),
                "look at the address, and at firewalls on the way: they drop without a word",
            ),
        };
        return vec![
            Check::fail("proxy", why, remedy),
            Check::skipped("method", "the proxy cannot be reached"),
        ];
    };
    let there = Check::ok("proxy", format!("connected in {}", milliseconds(connected)));
    let mut checks = vec![there, method(proxy, answer)];
    checks.extend(answer.path_mtu.map(|path| path_mtu(mtu, path, proxy.addr)));
    checks
}

/// `mtu` is the device's. What an app sends as a datagram gets three headers on its way to the proxy: IP, UDP, and that of the relay.
fn path_mtu(mtu: u16, path: u32, proxy: SocketAddr) -> Check {
    let ip: u32 = if proxy.ip().to_canonical().is_ipv4() { 20 } else { 40 };
    // 8 of UDP; 10 or 22 of RFC 1928 7.
    let (v4, v6) = (path.saturating_sub(ip + 8 + 10), path.saturating_sub(ip + 8 + 22));
    let why = format!("the device has {mtu}, the path to the proxy {path}");
    let id = "mtu";
    if v6 < QUIC {
        let why = format!("{why}: QUIC's datagrams go in fragments, TCP does not mind");
        return Check::warn(
            id,
            why,
            "raise the MTU of the interface towards the proxy, or refuse QUIC: --rule 'proto=udp,port=443 -> reject'",
        );
    }
    if u32::from(mtu) > path {
        let fits = v6.saturating_add(40 + 8).clamp(1280, path);
        let why = format!("{why}: datagrams of more than {v4} octets go in fragments, TCP does not mind");
        return Check::warn(id, why, format!("--mtu {fits}"));
    }
    Check::ok(id, format!("{why}: datagrams of up to {v4} octets go in one piece"))
}

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "the system has many errors; the last arm is for those without a remedy of their own"
)]
fn unreachable_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "start the proxy, or look at its port: nobody listens there",
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
            "look at the address, and at this machine's routes (`ip route get ADDRESS`)"
        }
        io::ErrorKind::PermissionDenied => "a firewall of this machine refuses it",
        _ => "look at the address of the proxy",
    }
}

fn method(proxy: &Proxy, answer: &Answer) -> Check {
    let with = proxy.credentials.is_some();
    let id = "method";
    match &answer.result {
        Ok(_) if with => Check::ok(id, "it takes us in, with or without the user and password given"),
        Ok(_) => Check::ok(id, "it asks for no user and password"),
        Err(Trouble::Refused(Failure::NoMethod)) if with => Check::fail(
            id,
            "it takes neither user and password nor none (method 255)",
            "a proxy with another method, such as GSSAPI, cannot be used",
        ),
        Err(Trouble::Refused(Failure::NoMethod)) => Check::fail(
            id,
            "it wants a user and a password (method 255 to 'none')",
            "--socks5 USER:PASS@HOST:PORT, or USER@HOST:PORT with --socks5-password-file",
        ),
        Err(Trouble::Refused(Failure::Denied)) => Check::fail(
            id,
            "it refuses the user or the password",
            "look for a typing error; a character such as @ or : in a password is written %40 or %3A, or the password in a file",
        ),
        Err(Trouble::Refused(Failure::WrongMethod(number))) => Check::fail(
            id,
            format!("it chooses a method that was not offered ({number})"),
            if with { NO_SOCKS5 } else { "--socks5 USER:PASS@HOST:PORT: it may want a user and a password" },
        ),
        Err(Trouble::Refused(Failure::Protocol | Failure::Refused(_)) | Trouble::NoRelay) => {
            Check::fail(id, "what it says is no SOCKS5", NO_SOCKS5)
        }
        Err(Trouble::Silent) => Check::fail(id, "it accepts the connection and says nothing", NO_SOCKS5),
        Err(Trouble::Closed) => Check::fail(
            id,
            "it closes the connection",
            "let this machine in at the proxy; or it is no SOCKS5 server",
        ),
        Err(Trouble::System(error)) => Check::fail(id, format!("the connection broke: {error}"), NO_SOCKS5),
    }
}

fn abilities(subject: &Subject, answers: &Answers) -> Vec<Check> {
    let granted = |answer: &Answer| answer.result.is_ok() || answer.stage > Stage::Requesting;
    let by_address = answers.by_address.as_ref();
    let reached = granted(&answers.by_name)
        || granted(&answers.by_tcp)
        || by_address.is_some_and(|(_, answer)| granted(answer));
    let mut checks = vec![connect_by_name(subject, &answers.by_name, reached)];
    if let Some((addr, answer)) = by_address {
        let same = subject.address(answers).1 && granted(&answers.by_name);
        checks.push(connect_by_address(*addr, answer, reached, same));
    }
    checks.extend(udp(subject, answers));
    checks.push(dns(subject, answers));
    checks.push(match &answers.by_ipv6 {
        Some(answer) => ipv6(answer),
        None => Check::skipped("ipv6-proxy", "this machine, or --ipv6 off, sends no IPv6"),
    });
    checks
}

/// RFC 1928 6, in words.
fn words(reply: Reply) -> String {
    let words = match reply {
        Reply::Succeeded => "granted",
        Reply::GeneralFailure => "general failure",
        Reply::NotAllowed => "not allowed by its rules",
        Reply::NetworkUnreachable => "network unreachable",
        Reply::HostUnreachable => "host unreachable",
        Reply::ConnectionRefused => "connection refused",
        Reply::TtlExpired => "TTL expired",
        Reply::CommandNotSupported => "command not supported",
        Reply::AddressTypeNotSupported => "address type not supported",
        Reply::Other(number) => return format!("answer {number}"),
    };
    words.into()
}

fn trouble(trouble: &Trouble) -> String {
    match trouble {
        Trouble::System(error) => error.to_string(),
        Trouble::Silent => "no answer in time".into(),
        Trouble::Closed => "it closes the connection".into(),
        Trouble::Refused(Failure::Refused(reply)) => words(*reply),
        Trouble::Refused(Failure::Denied) => "it refuses the user or the password".into(),
        Trouble::Refused(Failure::NoMethod | Failure::WrongMethod(_)) => "it accepts no method".into(),
        Trouble::Refused(Failure::Protocol) => "what it answers is no SOCKS5".into(),
        Trouble::NoRelay => "granted, but without a port to send to".into(),
    }
}

fn text(target: &Target) -> String {
    match target {
        Target::Name(name, port) => format!("{name}:{port}"),
        Target::Ip(addr) => addr.to_string(),
    }
}

/// The target is not reached for a reason that is the target's: broken only when nothing else is reached either.
fn unreached(id: &'static str, target: &str, answer: &Trouble, reached: bool) -> Check {
    let why = format!("CONNECT {target}: {}", trouble(answer));
    if reached {
        return Check::warn(id, why, "name a target that is up: --target HOST:PORT");
    }
    Check::fail(
        id,
        why,
        "look at the proxy's own way out, and at its rules; --target HOST:PORT names one that it must reach",
    )
}

fn connect_by_name(subject: &Subject, answer: &Answer, reached: bool) -> Check {
    let id = "connect-name";
    let target = text(&subject.by_name());
    match &answer.result {
        Ok(_) => Check::ok(id, format!("CONNECT {target} is granted")),
        Err(Trouble::Refused(Failure::Refused(Reply::AddressTypeNotSupported))) => Check::warn(
            id,
            "it refuses names (address type not supported)",
            "nothing while connections are made by address; what asks for names needs another proxy",
        ),
        Err(Trouble::Refused(Failure::Refused(Reply::CommandNotSupported))) => no_connect(id),
        Err(Trouble::Refused(Failure::Protocol)) => {
            Check::fail(id, "what it answers is no SOCKS5", NO_SOCKS5)
        }
        Err(trouble) => unreached(id, &target, trouble, reached),
    }
}

fn no_connect(id: &'static str) -> Check {
    Check::fail(
        id,
        "it does no CONNECT (command not supported)",
        "allow CONNECT at the proxy, or use another one",
    )
}

/// `same`: the same target was granted by its name.
fn connect_by_address(addr: SocketAddr, answer: &Answer, reached: bool, same: bool) -> Check {
    let id = "connect-address";
    match &answer.result {
        Ok(_) => Check::ok(id, format!("CONNECT {addr} is granted")),
        Err(Trouble::Refused(Failure::Refused(Reply::AddressTypeNotSupported))) => Check::fail(
            id,
            "it refuses addresses (address type not supported)",
            "let it take addresses, or use another proxy: apps connect by address",
        ),
        Err(Trouble::Refused(Failure::Refused(Reply::CommandNotSupported))) => no_connect(id),
        Err(Trouble::Refused(Failure::Protocol)) => {
            Check::fail(id, "what it answers is no SOCKS5", NO_SOCKS5)
        }
        Err(Trouble::Refused(Failure::Refused(reply))) if same => Check::fail(
            id,
            format!(
                "CONNECT {addr}: {}, while the same by name is granted: it refuses addresses",
                words(*reply)
            ),
            "let it take addresses, or use another proxy: apps connect by address",
        ),
        Err(trouble) => unreached(id, &addr.to_string(), trouble, reached),
    }
}

/// `udp`, whether there is an association and where its relay is, and `udp-relay`, whether datagrams come back from it.
fn udp(subject: &Subject, answers: &Answers) -> Vec<Check> {
    let Some(answer) = &answers.by_udp else {
        let why = "--udp direct or reject: no datagrams are sent through the proxy";
        return vec![Check::skipped("udp", why), Check::skipped("udp-relay", why)];
    };
    let (Some(relay), true) = (answer.relay, answer.stage == Stage::Resolving) else {
        let why = match &answer.result {
            Err(found) => format!("UDP ASSOCIATE: {}", trouble(found)),
            Ok(_) => "UDP ASSOCIATE: no relay".into(),
        };
        let check = if subject.udp == UdpMode::Socks5 {
            Check::fail("udp", why, "allow UDP at the proxy, or leave it to ztun with --udp auto")
        } else {
            Check::warn(
                "udp",
                format!(
                    "{why}; datagrams are refused at once, so that apps fall back to TCP, and names are asked by TCP"
                ),
                "allow UDP at the proxy for calls, games and QUIC",
            )
        };
        return vec![check, Check::skipped("udp-relay", "there is no relay")];
    };
    let said = answer.bound.map(SocketAddr::from).unwrap_or(relay);
    let at = if said.ip().to_canonical() == relay.ip().to_canonical() {
        format!("UDP ASSOCIATE is granted, its relay is {relay}")
    } else {
        format!(
            "UDP ASSOCIATE is granted; {said} as its relay cannot be reached from here, so {relay} is used"
        )
    };
    vec![Check::ok("udp", at), relay_check(subject, answers, answer, relay)]
}

fn relay_check(subject: &Subject, answers: &Answers, answer: &Answer, relay: SocketAddr) -> Check {
    let id = "udp-relay";
    let resolver = subject.resolver;
    let remedy = "open the relay's UDP ports between here and the proxy; --udp reject does without datagrams";
    match &answer.result {
        Ok(_) => Check::ok(id, format!("a query to {resolver} through {relay} is answered")),
        Err(Trouble::System(error)) => Check::fail(id, format!("datagrams to {relay}: {error}"), remedy),
        Err(Trouble::Closed) => Check::fail(
            id,
            format!("it ends the association with the first datagram to {relay}"),
            "look at the proxy's log; --udp reject does without datagrams",
        ),
        Err(_) if answers.by_tcp.stage == Stage::Resolving => Check::fail(
            id,
            format!("no datagram comes back through {relay}, while {resolver} is reached by TCP"),
            remedy,
        ),
        Err(_) => Check::warn(
            id,
            format!("{resolver} answers neither through {relay} nor by TCP, so the relay cannot be judged"),
            "name a resolver that the proxy reaches: --dns-server IP",
        ),
    }
}

/// What was said to a query that went as a run's would, and by which way it went.
fn resolved(dns: DnsMode, answers: &Answers) -> Option<(&Resolved, &'static str)> {
    let said = |answer: &'_ Answer| answer.result.as_ref().ok().is_some_and(Option::is_some);
    let by_udp = answers.by_udp.as_ref().filter(|answer| said(answer) && dns != DnsMode::Tcp);
    let by_tcp =
        Some(&answers.by_tcp).filter(|answer| said(answer) && matches!(dns, DnsMode::Auto | DnsMode::Tcp));
    let (answer, way) = by_udp.map(|answer| (answer, "UDP")).or(by_tcp.map(|answer| (answer, "TCP")))?;
    Some((answer.result.as_ref().ok()?.as_ref()?, way))
}

/// Whether a name resolves through the proxy.
fn dns(subject: &Subject, answers: &Answers) -> Check {
    let id = "dns";
    if subject.dns == DnsMode::Direct {
        return Check::skipped(id, "--dns direct: names are not resolved through the proxy");
    }
    let (name, resolver) = (&subject.name, subject.resolver);
    let remedy = "name a resolver that the proxy reaches: --dns-server IP";
    match resolved(subject.dns, answers) {
        Some((Resolved { code: 0, addresses }, way)) => {
            let first = addresses.first().map_or("no IPv4 address".into(), IpAddr::to_string);
            Check::ok(id, format!("{name} is {first}, from {resolver} by {way} through the proxy"))
        }
        Some((Resolved { code: NO_SUCH_NAME, .. }, way)) => Check::warn(
            id,
            format!("{resolver} answers by {way} through the proxy, and knows no {name}"),
            "name a target that there is: --target HOST:PORT",
        ),
        Some((Resolved { code, .. }, way)) => Check::warn(
            id,
            format!("{resolver} answers {name} with error {code}, by {way} through the proxy"),
            remedy,
        ),
        None => {
            let found = |answer: &Answer| answer.result.as_ref().err().map_or("no answer".into(), trouble);
            let by_udp = answers.by_udp.as_ref().map_or("not sent".into(), found);
            let found = match subject.dns {
                DnsMode::Udp | DnsMode::Off => format!("by UDP: {by_udp}; --dns auto asks by TCP too"),
                DnsMode::Auto | DnsMode::Tcp | DnsMode::Direct => {
                    format!("by TCP: {}", found(&answers.by_tcp))
                }
            };
            let why = format!("{resolver} cannot be asked through the proxy ({found})");
            // Whoever gives an address as target may have no names at all.
            match subject.target {
                Target::Ip(_) => Check::warn(id, why, remedy),
                Target::Name(..) => Check::fail(id, why, remedy),
            }
        }
    }
}

fn ipv6(answer: &Answer) -> Check {
    let id = "ipv6-proxy";
    match &answer.result {
        Ok(_) => Check::ok(id, "it connects to IPv6 addresses"),
        Err(Trouble::Refused(Failure::Refused(reply))) => Check::warn(
            id,
            format!("it refuses IPv6 addresses: {}; they fail at once, and nothing leaks", words(*reply)),
            "--ipv6 off saves the question, or give the proxy IPv6",
        ),
        Err(found) => Check::warn(
            id,
            format!("CONNECT to an IPv6 address: {}; each attempt waits as long", trouble(found)),
            "--ipv6 off refuses IPv6 at once",
        ),
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use crate::config::Credentials;
    use crate::wire::Endpoint;

    const RELAY: &str = "203.0.113.1:5000";

    fn answer(stage: Stage, result: Result<Option<Resolved>, Trouble>) -> Answer {
        let connected = (stage > Stage::Connecting).then_some(Duration::from_micros(1_500));
        Answer { stage, connected, path_mtu: None, bound: None, relay: None, result }
    }

    fn refused(reply: Reply) -> Answer {
        answer(Stage::Requesting, Err(Trouble::Refused(Failure::Refused(reply))))
    }

    fn granted() -> Answer {
        answer(Stage::Requesting, Ok(None))
    }

    fn resolving(code: u8) -> Answer {
        let addresses = vec!["192.0.2.7".parse().unwrap()];
        answer(Stage::Resolving, Ok(Some(Resolved { code, addresses })))
    }

    fn relayed(bound: &str, result: Result<Option<Resolved>, Trouble>) -> Answer {
        let bound: SocketAddr = bound.parse().unwrap();
        let relay = Some(RELAY.parse().unwrap());
        Answer { bound: Some(Endpoint::from(bound)), relay, ..answer(Stage::Resolving, result) }
    }

    fn subject(udp: UdpMode) -> Subject {
        Subject {
            target: Target::Name("example.com".into(), 80),
            name: "example.com".into(),
            port: 80,
            resolver: "9.9.9.9:53".parse().unwrap(),
            dns: DnsMode::Auto,
            ipv6: true,
            udp,
        }
    }

    fn well() -> Answers {
        let resolved = Some(Resolved { code: 0, addresses: vec!["192.0.2.7".parse().unwrap()] });
        Answers {
            by_name: granted(),
            by_tcp: resolving(0),
            by_udp: Some(relayed(RELAY, Ok(resolved))),
            by_ipv6: Some(granted()),
            by_address: Some(("192.0.2.7:80".parse().unwrap(), granted())),
        }
    }

    /// Every check by its id.
    fn judged(answers: &Answers, udp: UdpMode) -> Vec<(&'static str, Status, String)> {
        let checks = abilities(&subject(udp), answers);
        for check in &checks {
            let said = matches!(check.status, Status::Ok | Status::Skipped);
            assert_eq!(said, check.remedy.is_none(), "{check:?}");
        }
        checks.into_iter().map(|check| (check.id, check.status, check.why)).collect()
    }

    fn status(answers: &Answers, id: &str) -> Status {
        judged(answers, UdpMode::Auto).into_iter().find(|check| check.0 == id).unwrap().1
    }

    #[test]
    fn a_proxy_that_does_all_is_well() {
        for (id, status, why) in judged(&well(), UdpMode::Auto) {
            assert_eq!(status, Status::Ok, "{id}: {why}");
        }
    }

    /// A proxy that refuses names or addresses is told from a target that cannot be reached.
    #[test]
    fn who_refuses_names_or_addresses_is_told_from_a_target_that_is_down() {
        let names = Answers { by_name: refused(Reply::AddressTypeNotSupported), ..well() };
        assert_eq!(status(&names, "connect-name"), Status::Warn);
        let down = || Some(("192.0.2.7:80".parse().unwrap(), refused(Reply::HostUnreachable)));
        let by_address = Some(("192.0.2.7:80".parse().unwrap(), refused(Reply::AddressTypeNotSupported)));
        let addresses = Answers { by_address, ..well() };
        assert_eq!(status(&addresses, "connect-address"), Status::Fail);
        // The same target, granted by its name and refused by its address.
        let by_rule = Answers { by_address: down(), ..well() };
        assert_eq!(status(&by_rule, "connect-address"), Status::Fail);
        // The target is down, and another one was reached.
        let target = Answers { by_name: refused(Reply::HostUnreachable), by_address: down(), ..well() };
        assert_eq!(status(&target, "connect-name"), Status::Warn);
        assert_eq!(status(&target, "connect-address"), Status::Warn);
        // Nothing is reached at all.
        let nothing = Answers { by_tcp: refused(Reply::NetworkUnreachable), ..target };
        assert_eq!(status(&nothing, "connect-name"), Status::Fail);
        assert_eq!(status(&nothing, "connect-address"), Status::Fail);
    }

    #[test]
    fn a_proxy_without_connect_fails() {
        let none = Answers { by_name: refused(Reply::CommandNotSupported), ..well() };
        assert_eq!(status(&none, "connect-name"), Status::Fail);
    }

    #[test]
    fn no_udp_is_a_warning_unless_it_was_demanded() {
        for by_udp in [refused(Reply::CommandNotSupported), answer(Stage::Requesting, Err(Trouble::Silent))] {
            let answers = Answers { by_udp: Some(by_udp), ..well() };
            assert_eq!(status(&answers, "udp"), Status::Warn);
            assert_eq!(status(&answers, "udp-relay"), Status::Skipped);
            assert_eq!(status(&answers, "dns"), Status::Ok, "by TCP");
            assert!(
                judged(&answers, UdpMode::Socks5)
                    .iter()
                    .any(|(id, status, _)| (*id, *status) == ("udp", Status::Fail))
            );
        }
        let none = Answers { by_udp: None, ..well() };
        assert_eq!(status(&none, "udp"), Status::Skipped);
    }

    #[test]
    fn a_relay_that_was_replaced_is_said_and_a_dead_one_fails() {
        let why = |answers: &Answers| judged(answers, UdpMode::Auto).remove(2);
        let resolved = || Ok(Some(Resolved { code: 0, addresses: Vec::new() }));
        let (id, found, text) = why(&Answers { by_udp: Some(relayed("0.0.0.0:5000", resolved())), ..well() });
        assert_eq!((id, found), ("udp", Status::Ok));
        assert!(text.contains("0.0.0.0:5000") && text.contains(RELAY), "{text}");
        for trouble in [Trouble::Silent, Trouble::Closed, Trouble::System(io::Error::other("x"))] {
            let dead = Answers { by_udp: Some(relayed(RELAY, Err(trouble))), ..well() };
            assert_eq!(status(&dead, "udp-relay"), Status::Fail);
        }
        // Neither way leads to the resolver: then it may be the resolver.
        let by_udp = Some(relayed(RELAY, Err(Trouble::Silent)));
        let unknown = Answers { by_udp, by_tcp: refused(Reply::HostUnreachable), ..well() };
        assert_eq!(status(&unknown, "udp-relay"), Status::Warn);
        assert_eq!(status(&unknown, "dns"), Status::Fail);
    }

    #[test]
    fn a_resolver_that_knows_nothing_or_refuses_is_a_warning() {
        for code in [NO_SUCH_NAME, 2, 5] {
            let answers = Answers { by_udp: None, by_tcp: resolving(code), ..well() };
            assert_eq!(status(&answers, "dns"), Status::Warn);
        }
    }

    #[test]
    fn names_are_asked_the_way_that_a_run_asks_them() {
        let only_tcp = Answers { by_udp: Some(refused(Reply::CommandNotSupported)), ..well() };
        let only_udp = Answers { by_tcp: refused(Reply::HostUnreachable), ..well() };
        let judged =
            |dns, answers: &Answers| super::dns(&Subject { dns, ..subject(UdpMode::Auto) }, answers).status;
        for (mode, with_tcp, with_udp) in [
            (DnsMode::Auto, Status::Ok, Status::Ok),
            (DnsMode::Tcp, Status::Ok, Status::Fail),
            (DnsMode::Udp, Status::Fail, Status::Ok),
            (DnsMode::Off, Status::Fail, Status::Ok),
            (DnsMode::Direct, Status::Skipped, Status::Skipped),
        ] {
            assert_eq!((judged(mode, &only_tcp), judged(mode, &only_udp)), (with_tcp, with_udp), "{mode:?}");
        }
    }

    #[test]
    fn a_proxy_without_ipv6_is_a_warning() {
        for by_ipv6 in [refused(Reply::NetworkUnreachable), answer(Stage::Requesting, Err(Trouble::Silent))] {
            assert_eq!(status(&Answers { by_ipv6: Some(by_ipv6), ..well() }, "ipv6-proxy"), Status::Warn);
        }
        assert_eq!(status(&Answers { by_ipv6: None, ..well() }, "ipv6-proxy"), Status::Skipped);
    }

    #[test]
    fn every_end_of_the_negotiation_has_its_words_and_no_password() {
        let credentials = Some(Credentials { user: "alice".into(), password: "secret".into() });
        let proxy = |credentials| Proxy { addr: "203.0.113.1:1080".parse().unwrap(), credentials };
        let ends = || {
            [
                Trouble::System(io::Error::other("broken")),
                Trouble::Silent,
                Trouble::Closed,
                Trouble::Refused(Failure::NoMethod),
                Trouble::Refused(Failure::Denied),
                Trouble::Refused(Failure::WrongMethod(1)),
                Trouble::Refused(Failure::Protocol),
            ]
        };
        for proxy in [proxy(None), proxy(credentials)] {
            for end in ends() {
                let checks = admission(&proxy, &answer(Stage::Negotiating, Err(end)), 1500);
                assert_eq!((checks[0].status, checks[1].status), (Status::Ok, Status::Fail));
                assert!(!format!("{checks:?}").contains("secret"));
            }
            for end in ends().into_iter().take(2) {
                let checks = admission(&proxy, &answer(Stage::Connecting, Err(end)), 1500);
                assert_eq!((checks[0].status, checks[1].status), (Status::Fail, Status::Skipped));
            }
            assert_eq!(admission(&proxy, &answer(Stage::Negotiating, Ok(None)), 1500)[1].status, Status::Ok);
        }
    }

    #[test]
    fn a_dead_proxy_beside_one_that_can_be_used_is_a_warning() {
        assert_eq!(spare(Check::fail("proxy", "refused", "start it")).status, Status::Warn);
        assert_eq!(spare(Check::ok("proxy", "there")).status, Status::Ok);
    }

    #[test]
    fn a_path_that_cuts_datagrams_is_a_warning() {
        let v4 = "203.0.113.1:1080".parse().unwrap();
        let v6 = "[2001:db8::1]:1080".parse().unwrap();
        assert_eq!(path_mtu(1500, 1500, v4).status, Status::Ok);
        assert_eq!(path_mtu(1500, 65_535, v4).status, Status::Ok);
        let short = path_mtu(1500, 1420, v6);
        assert_eq!(short.status, Status::Warn);
        assert_eq!(short.remedy.unwrap(), "--mtu 1398");
        let quic = path_mtu(1280, 1249, v4);
        assert!(quic.why.contains("QUIC"), "{}", quic.why);
        assert_eq!(path_mtu(1500, 0, v6).status, Status::Warn);
    }
}
