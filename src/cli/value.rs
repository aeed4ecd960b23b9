//! Single values of the command line: text to meaning, each refusal with what is allowed.

use super::refusal::shown;
use crate::config::{Cidr, CidrError, Credentials};
use crate::time::Duration;
use core::fmt::Display;
use core::str::FromStr;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The longest time that an option takes: a year.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads a time as in `90s`, `2h4m`, `500ms`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let forms = || format!("{} is no time; write numbers with units, as in 90s, 2h4m, 500ms", shown(text));
    if text.is_empty() {
        return Err(forms());
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(forms)?;
        let (number, after) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| forms())?;
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(forms()),
        };
        let part = Duration::from_millis(number.saturating_mul(millis));
        total = total.saturating_add(part);
        rest = after;
    }
    match total {
        Duration::ZERO => Err(format!("{} is no time: it must be more than nothing, as in 90s", shown(text))),
        total if total > LONGEST => Err(format!("{} is more than a year (365d)", shown(text))),
        total => Ok(total),
    }
}

/// Reads the name of an interface.
pub(super) fn device(text: &str) -> Result<String, String> {
    let fits = (1..=15).contains(&text.len());
    let plain = text.bytes().all(|octet| octet.is_ascii_graphic() && octet != b'/' && octet != b':');
    if fits && plain && text != "." && text != ".." && !text.contains('%') {
        Ok(text.into())
    } else {
        Err("the name of an interface has 1 to 15 characters, without spaces and / : %".into())
    }
}

/// Reads the name of an interface that there is: on Windows those have spaces and any letters, and up to 256 of them.
pub(super) fn interface(text: &str) -> Result<String, String> {
    if !cfg!(windows) {
        return device(text);
    }
    let fits = (1..=256).contains(&text.encode_utf16().count());
    match fits && !text.chars().any(char::is_control) {
        true => Ok(text.into()),
        false => Err("the name of an interface has 1 to 256 characters".into()),
    }
}

/// Reads a mark: decimal, or hexadecimal after 0x.
pub(super) fn mark(text: &str) -> Result<u32, String> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |digits| (digits, 16));
    // The standard parser takes a plus sign.
    let plain = digits.bytes().all(|octet| octet.is_ascii_hexdigit());
    let mark = u32::from_str_radix(digits, radix).ok().filter(|mark| plain && *mark > 0);
    mark.ok_or_else(|| format!("{} is no mark: a number from 1 to 0xffffffff", shown(text)))
}

/// Reads the MTU of the device; 1280 is the least that IPv6 takes (RFC 8200 5).
pub(super) fn mtu(text: &str) -> Result<u16, String> {
    within(text, 1280, u16::MAX)
}

/// Reads the number of connections in the pool.
pub(super) fn pool(text: &str) -> Result<u16, String> {
    within(text, 0, 64)
}

/// Reads the size of a table.
pub(super) fn table(text: &str) -> Result<u32, String> {
    within(text, 1, 1_048_576)
}

/// Reads the number of a descriptor, which is none of the three that every program has.
pub(super) fn descriptor(text: &str) -> Result<i32, String> {
    within(text, 3, i32::MAX)
}

fn within<T: FromStr + PartialOrd + Display>(text: &str, low: T, high: T) -> Result<T, String> {
    let plain = text.bytes().all(|octet| octet.is_ascii_digit());
    let number = text.parse().ok().filter(|number| plain && (&low..=&high).contains(&number));
    number.ok_or_else(|| format!("{} is no number from {low} to {high}", shown(text)))
}

/// Reads an address of the device.
pub(super) fn address(text: &str) -> Result<Cidr, String> {
    let net: Cidr = text.parse().map_err(|error: CidrError| error.to_string())?;
    let loopback = net.addr.to_canonical().is_loopback();
    if net.addr.is_unspecified() || net.addr.is_multicast() || loopback {
        return Err(format!("{} is no address for a device", shown(text)));
    }
    Ok(net)
}

/// Reads where to listen.
pub(super) fn listen(text: &str) -> Result<SocketAddr, String> {
    let wrong = || {
        format!(
            "{} is no place to listen; write ADDRESS:PORT, as in 127.0.0.1:1080 or [::]:1080",
            shown(text)
        )
    };
    text.parse().map_err(|_| wrong())
}

/// Reads `IP` or `IP:PORT`; the port is 53 when it is left out.
pub(super) fn dns_server(text: &str) -> Result<SocketAddr, String> {
    let addr = text.parse::<IpAddr>().map(|addr| SocketAddr::new(addr, 53));
    let somebody = |addr: &SocketAddr| {
        let ip = addr.ip().to_canonical();
        let nobody = ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
        !nobody && addr.port() > 0
    };
    addr.or_else(|_| text.parse::<SocketAddr>()).ok().filter(somebody).ok_or_else(|| {
        format!(
            "{} is no server; write IP or IP:PORT, as in 9.9.9.9, 9.9.9.9:53, [2620:fe::fe]:53",
            shown(text)
        )
    })
}

/// A proxy as typed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ProxyUrl {
    /// Who is to be let in.
    pub(super) user: Option<User>,
    /// Name or address.
    pub(super) host: String,
    /// Port.
    pub(super) port: u16,
}

impl ProxyUrl {
    /// A user was typed, and no password.
    pub(super) fn wants_password(&self) -> bool {
        self.user.as_ref().is_some_and(|user| user.password.is_none())
    }
}

/// User, and password if it was typed.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) password: Option<String>,
}

impl core::fmt::Debug for User {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("User(..)")
    }
}

impl User {
    /// What RFC 1929 carries: 1 to 255 octets each.
    pub(super) fn credentials(&self, password: &str) -> Result<Credentials, String> {
        for (what, text) in [("user", self.name.as_str()), ("password", password)] {
            if !(1..=255).contains(&text.len()) {
                return Err(format!("the {what} has {} octets; SOCKS5 carries 1 to 255", text.len()));
            }
        }
        Ok(Credentials { user: self.name.clone(), password: password.into() })
    }
}

/// Reads `[socks5://][USER[:PASS]@]HOST:PORT`. What is refused is not repeated: it may hold a password.
pub(super) fn proxy(text: &str) -> Result<ProxyUrl, String> {
    if text.is_empty() {
        return Err("it is empty (a variable that is not set?)".into());
    }
    let (scheme, rest) = text.split_once("://").map_or(("socks5", text), |(scheme, rest)| (scheme, rest));
    if !matches!(scheme, "socks5" | "socks5h") {
        return Err("the proxy's scheme is not known; it speaks socks5://".into());
    }
    // An @ in a password may be left unescaped: the last one ends it.
    let (user, place) = match rest.rsplit_once('@') {
        Some((user, place)) => (Some(self::user(user)?), place),
        None => (None, rest),
    };
    let place = place.strip_suffix('/').unwrap_or(place);
    let (host, port) = place.rsplit_once(':').ok_or("the proxy's port is missing, as in 127.0.0.1:1080")?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').ok_or("the bracket of an IPv6 address is not closed")?,
        None if host.contains(':') => {
            return Err("an IPv6 address stands in brackets, as in [2001:db8::1]:1080".into());
        }
        None => host,
    };
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
    if host.is_empty() || host.len() > 255 || !host.chars().all(name) {
        return Err("the proxy's host is neither a name nor an address".into());
    }
    let port = port.bytes().all(|octet| octet.is_ascii_digit()).then(|| port.parse().ok()).flatten();
    let port = port.filter(|port| *port > 0).ok_or("the proxy's port is a number from 1 to 65535")?;
    Ok(ProxyUrl { user, host: host.into(), port })
}

fn user(text: &str) -> Result<User, String> {
    let (name, password) = match text.split_once(':') {
        Some((name, password)) => (name, Some(unescaped(password)?)),
        None => (text, None),
    };
    let user = User { name: unescaped(name)?, password };
    user.credentials(user.password.as_deref().unwrap_or("x"))?;
    Ok(user)
}

/// Undoes percent-encoding (RFC 3986 2.1).
fn unescaped(text: &str) -> Result<String, String> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(octet) = rest.next() {
        if octet != b'%' {
            octets.push(octet);
            continue;
        }
        let digit = |octet: Option<u8>| octet.and_then(|octet| char::from(octet).to_digit(16));
        let (Some(high), Some(low)) = (digit(rest.next()), digit(rest.next())) else {
            return Err("a % in user or password is written %25".into());
        };
        octets.push((high << 4 | low) as u8);
    }
    String::from_utf8(octets).map_err(|_| "user and password are UTF-8".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2h4m"), Ok(Duration::from_secs(7_440)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1d"), Ok(Duration::from_secs(86_400)));
        for bad in ["", "90", "s", "-1s", "1.5s", "10x", "0s", "366d", "99999999999999999999s", "1sm"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_proxy_is_read_with_and_without_user_and_scheme() {
        let url = proxy("127.0.0.1:1080").unwrap();
        assert_eq!((url.user, url.host.as_str(), url.port), (None, "127.0.0.1", 1080));
        let url = proxy("socks5://al%40ice:p%3Ass@w@[2001:db8::1]:1080/").unwrap();
        let user = User { name: "al@ice".into(), password: Some("p:ss@w".into()) };
        assert_eq!((url.user, url.host.as_str()), (Some(user), "2001:db8::1"));
        let url = proxy("bob@proxy.example:1").unwrap();
        assert_eq!(url.user, Some(User { name: "bob".into(), password: None }));
    }

    #[test]
    fn a_refused_proxy_is_not_repeated() {
        let long = format!("u:{}@h:1", "x".repeat(256));
        for bad in [
            "",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:+1",
            ":1080",
            "::1:1080",
            "[::1:1080",
            "http://h:1",
            "a b:1",
            "u:secret@h",
            "u:%zz@h:1",
            ":secret@h:1",
            "u:@h:1",
            "u:%ff@h:1",
            &long,
        ] {
            let error = proxy(bad).expect_err(bad);
            assert!(!error.contains("secret") && error.len() > 10, "{bad}: {error}");
        }
        let user = User { name: "u".into(), password: Some("secret".into()) };
        assert!(!format!("{user:?}").contains("secret"));
    }

    #[test]
    fn names_marks_and_servers() {
        assert!(device("ztun0").is_ok());
        for bad in ["", "a/b", "a b", "..", "sixteen-letters-", "tun%d"] {
            assert!(device(bad).is_err(), "{bad}");
        }
        assert_eq!(mark("0x7a74"), Ok(0x7a74));
        assert_eq!(mark("9"), Ok(9));
        assert!(mark("0").is_err() && mark("0x1ffffffff").is_err() && mark("x").is_err());
        assert_eq!(dns_server("9.9.9.9"), Ok("9.9.9.9:53".parse().unwrap()));
        assert_eq!(dns_server("[::1]:5353"), Ok("[::1]:5353".parse().unwrap()));
        assert!(dns_server("9.9.9.9:0").is_err() && dns_server("dns.example").is_err());
        for nobody in ["0.0.0.0", "[::]:53", "255.255.255.255", "224.0.0.251:5353", "::ffff:0.0.0.0"] {
            assert!(dns_server(nobody).is_err(), "{nobody}");
        }
    }

    #[test]
    fn numbers_have_bounds_and_no_sign() {
        assert_eq!((mtu("1280"), mtu("65535")), (Ok(1280), Ok(65_535)));
        assert_eq!((pool("0"), pool("64")), (Ok(0), Ok(64)));
        assert_eq!((table("1"), table("1048576")), (Ok(1), Ok(1_048_576)));
        assert_eq!(descriptor("3"), Ok(3));
        for bad in [mtu("1279"), mtu("65536"), mtu("+1500"), mtu(""), mtu("-1"), mtu("1e3"), pool("65")] {
            assert!(bad.unwrap_err().contains(" to "));
        }
        assert!(table("0").is_err() && table("1048577").is_err());
        assert!(descriptor("2").is_err() && descriptor("2147483648").is_err());
        assert!(mark("+1").is_err() && mark("0x+1").is_err() && mark("0x").is_err());
    }

    #[test]
    fn addresses_are_those_that_a_host_can_have() {
        assert!(address("10.0.0.1/24").is_ok() && address("fd00::1/64").is_ok());
        for bad in ["0.0.0.0/0", "::/0", "224.0.0.1/4", "ff02::1/128", "127.0.0.1/8", "::ffff:127.0.0.1", "x"]
        {
            assert!(address(bad).is_err(), "{bad}");
        }
        assert!(listen("[::]:0").is_ok() && listen("1080").is_err() && listen("localhost:1080").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_a_reader_panic(text in ".*") {
            let _ = (duration(&text), device(&text), mark(&text), dns_server(&text), proxy(&text), table(&text));
            let _ = (mtu(&text), pool(&text), descriptor(&text), address(&text), listen(&text));
        }
    }
}
