//! `ztun doctor`: the options of a run, examined instead of run.

use super::options::DoctorOptions;
use super::{Error, build};
use crate::config::Config;

/// Labels of a name (RFC 1035 2.3.4), octets.
const LONGEST_LABEL: usize = 63;

/// Reads HOST:PORT.
pub(super) fn target(text: &str) -> Result<(String, u16), String> {
    let wrong = || "HOST:PORT, as in example.com:80 or [2001:db8::1]:80".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = Some(port).filter(|port| port.bytes().all(|octet| octet.is_ascii_digit()));
    let port = port.and_then(|port| port.parse().ok()).filter(|port| *port > 0).ok_or_else(wrong)?;
    if let Some(inner) = host.strip_prefix('[') {
        let addr = inner.strip_suffix(']').and_then(|addr| addr.parse::<std::net::Ipv6Addr>().ok());
        return addr.map(|addr| (addr.to_string(), port)).ok_or_else(wrong);
    }
    let octet = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_');
    let label = |label: &str| (1..=LONGEST_LABEL).contains(&label.len()) && label.bytes().all(octet);
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(wrong());
    }
    Ok((host.into(), port))
}

/// Exit status 0 when nothing fails, 1 when something does.
pub(super) fn run(mut options: DoctorOptions) -> Result<u8, Error> {
    impatient();
    let mut early = Vec::new();
    let config = match build::config_without_proxy(&options.run, build::Names::Resolved) {
        Ok(config) => config,
        // Not what was typed, but what the machine's resolver says of it, is wrong: a finding, and the rest can be examined.
        Err(error) if error.code == 1 => {
            let way = &mut options.run.way;
            (way.socks5, way.socks5_password_file, options.run.bypass) = (Vec::new(), None, Vec::new());
            early.push(error);
            build::config_without_proxy(&options.run, build::Names::Resolved)?
        }
        Err(error) => return Err(error),
    };
    report(&config, &options, early)
}

#[cfg(target_os = "linux")]
fn report(config: &Config, options: &DoctorOptions, early: Vec<Error>) -> Result<u8, Error> {
    use super::options::Ipv6Choice;
    use super::print;
    use crate::doctor::{self, Check, Report};
    let (host, port) = options.target.clone();
    let target = doctor::Target { host, port };
    let asked = doctor::Options { target, ipv6: options.run.way.ipv6 != Ipv6Choice::Off };
    let early = early.into_iter().map(|error| {
        let remedy = error.remedy.unwrap_or_else(|| "give the address instead of the name".into());
        Check::fail("names", error.what, remedy)
    });
    let mut checks: Vec<Check> = early.collect();
    checks.extend(doctor::examine(config, &asked));
    let report = Report::new(checks);
    let text = if options.json { report.to_json() } else { report.to_string() };
    print(|out| std::io::Write::write_all(out, format!("{text}\n").as_bytes()))?;
    Ok(u8::from(!report.is_ok()))
}

#[cfg(not(target_os = "linux"))]
fn report(_: &Config, _: &DoctorOptions, _: Vec<Error>) -> Result<u8, Error> {
    Err(Error {
        code: 3,
        what: "`ztun doctor` examines Linux, and no other system yet".into(),
        remedy: Some("a Linux machine; here `ztun --dry-run` shows what would be changed".into()),
    })
}

/// A resolver that is dead is told so within seconds.
fn impatient() {
    #[cfg(target_os = "linux")]
    if let Err(error) = crate::host::observe::impatient_resolver() {
        log::debug!("the resolver takes its time: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_host_and_a_port() {
        assert_eq!(target("example.com:80"), Ok(("example.com".into(), 80)));
        assert_eq!(target("10.0.0.1:53"), Ok(("10.0.0.1".into(), 53)));
        assert_eq!(target("[2001:db8::1]:53"), Ok(("2001:db8::1".into(), 53)));
        let long = format!("{}:1", "a".repeat(64));
        for bad in [
            "",
            "x",
            ":80",
            "x:",
            "x:0",
            "x:65536",
            "x:+1",
            "a..b:1",
            "u:p@h:1",
            "2001:db8::1:53",
            "[x]:1",
            &long,
        ] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }
}
