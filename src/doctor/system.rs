//! What this machine lets a run do: privilege, TUN driver, kernel, limits; and whether ztun runs, or has left anything.
//!
//! Facts come from [`observe`]; the judgements are functions of facts, so that each way a machine can be is a test.

use super::check::Check;
use crate::config::{Config, OffloadLevel};
use crate::driver::limits::needed;
use crate::host::change::Family;
use crate::host::observe::{self, Remains, TunDriver};
use crate::host::{LocalProxy, RunDir};
use std::fs;
use std::io;

/// CAP_NET_ADMIN (capabilities(7)).
const NET_ADMIN: u32 = 12;
/// CAP_SYS_RESOURCE: raises hard limits.
const SYS_RESOURCE: u32 = 24;

/// With fewer, a browser alone is too much.
const FEWEST: u64 = 512;

/// All of them, in the order in which a start would meet them.
pub(super) fn examine(config: &Config) -> Vec<Check> {
    let host = &config.host;
    let needs_privilege = !(host.no_route && host.tun_fd.is_some());
    let local = config.engine.proxies.iter().any(|proxy| proxy.addr.ip().is_loopback());
    let remains = observe::remains(&RunDir::standard());
    let mut checks = vec![privilege(capabilities(), needs_privilege)];
    checks.extend(tun(observe::tun_driver(), host.tun_fd.is_some(), host.offload > OffloadLevel::Off));
    checks.push(policy_routing(host.no_route, rules(Family::V4), rules(Family::V6)));
    checks.push(sock_diag(observe::sock_diag(), local && host.local_proxy && !host.no_route));
    checks.push(nf_tables(observe::nf_tables()));
    checks.push(namespaces(observe::private_namespace()));
    checks.push(running(&remains, &host.tun, host.no_route, config.replace));
    checks.push(leftovers(&remains));
    let (max_tcp, max_udp) = (config.engine.stack.tcp.max_flows, config.engine.max_udp);
    let may_raise = capabilities().is_ok_and(|bits| bits >> SYS_RESOURCE & 1 == 1);
    checks.push(limits(observe::open_files(), may_raise, needed(max_tcp, max_udp)));
    checks
}

fn rules(family: Family) -> io::Result<()> {
    observe::rules(family).map(drop)
}

/// The effective capabilities of this process.
fn capabilities() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let field = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = field.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/status names no capabilities"))
}

fn privilege(capabilities: io::Result<u64>, needed: bool) -> Check {
    let id = "privilege";
    match capabilities {
        Ok(bits) if bits >> NET_ADMIN & 1 == 1 => Check::ok(id, "CAP_NET_ADMIN is here"),
        Ok(_) if !needed => Check::ok(id, "none, and none is needed with --tun-fd and --no-route"),
        Ok(_) => Check::fail(
            id,
            "no CAP_NET_ADMIN: no device can be made, and no route",
            "run with sudo, or give the program the capability; `ztun exec` needs none where user namespaces are allowed",
        ),
        Err(error) => Check::warn(id, format!("cannot tell: {error}"), "run with sudo"),
    }
}

/// `tun`, whether there are devices, and `offload`, whether the kernel cuts and joins segments on them.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "the system has many errors; the last arm is for those without a remedy of their own"
)]
fn tun(driver: io::Result<TunDriver>, given: bool, offload: bool) -> [Check; 2] {
    let why = "the TUN driver cannot be asked";
    match driver {
        Err(_) if given => [
            Check::ok("tun", "the device comes with --tun-fd: the driver is not needed"),
            Check::skipped("offload", why),
        ],
        Ok(driver) => {
            let cut = if !offload {
                Check::skipped("offload", "--offload off")
            } else if driver.vnet {
                Check::ok("offload", "the kernel cuts and joins TCP segments on TUN devices")
            } else {
                Check::warn(
                    "offload",
                    "the TUN driver has no IFF_VNET_HDR: each segment is a packet of its own, and costs more",
                    "a newer kernel, for speed",
                )
            };
            [Check::ok("tun", "/dev/net/tun opens"), cut]
        }
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::NotFound => {
                    "`modprobe tun`; in a container, start it with --device /dev/net/tun (and --cap-add NET_ADMIN)"
                }
                io::ErrorKind::PermissionDenied => {
                    "run as root; in a container, allow the device: --device /dev/net/tun"
                }
                io::ErrorKind::InvalidData => {
                    "put it right: `mkdir -p /dev/net && mknod /dev/net/tun c 10 200 && chmod 666 /dev/net/tun`"
                }
                _ => "`modprobe tun`: the module may be missing, as after a kernel update without a restart",
            };
            [Check::fail("tun", format!("/dev/net/tun: {error}"), remedy), Check::skipped("offload", why)]
        }
    }
}

fn policy_routing(no_route: bool, v4: io::Result<()>, v6: io::Result<()>) -> Check {
    let id = "policy-routing";
    if no_route {
        return Check::skipped(id, "--no-route");
    }
    match (v4, v6) {
        (Ok(()), Ok(())) => Check::ok(id, "the kernel has rules for IPv4 and IPv6"),
        (Ok(()), Err(error)) => Check::warn(
            id,
            format!("no rules for IPv6: {error}"),
            "--ipv6 off, or a kernel with CONFIG_IPV6_MULTIPLE_TABLES",
        ),
        (Err(error), Ok(()) | Err(_)) => Check::fail(
            id,
            format!("no rules for IPv4: {error}"),
            "a kernel with CONFIG_IP_MULTIPLE_TABLES, or --no-route and routes of your own",
        ),
    }
}

fn sock_diag(found: io::Result<()>, needed: bool) -> Check {
    let id = "sock-diag";
    match found {
        Ok(()) => Check::ok(id, "the kernel tells whose a connection is"),
        Err(error) if needed => Check::fail(
            id,
            format!("the kernel does not tell whose a connection is: {error}"),
            "`modprobe inet_diag tcp_diag udp_diag`, or --local-proxy off for a proxy that keeps itself outside",
        ),
        Err(error) => Check::skipped(id, format!("not needed: no proxy runs on this machine ({error})")),
    }
}

fn nf_tables(found: io::Result<()>) -> Check {
    let id = "nf-tables";
    match found {
        Ok(()) => {
            Check::ok(id, "the kernel has filters: the local network cannot find out the tunnel's addresses")
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Check::skipped(id, format!("only root may ask: {error}"))
        }
        Err(error) => Check::warn(
            id,
            format!("no filters, so that a neighbour can find out the tunnel's addresses: {error}"),
            "`modprobe nf_tables`, or a kernel with CONFIG_NF_TABLES, where the local network is not trusted",
        ),
    }
}

fn namespaces(found: io::Result<()>) -> Check {
    let id = "namespaces";
    match found {
        Ok(()) => Check::ok(id, "`ztun exec` can be used"),
        Err(error) => Check::warn(
            id,
            format!("no namespace of one's own, so no `ztun exec` and `ztun demo`: {error}"),
            "run as root, or allow them: sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns",
        ),
    }
}

/// Whether another run is in the way of one on `device`.
fn running(remains: &io::Result<Remains>, device: &str, no_route: bool, replace: bool) -> Check {
    let id = "running";
    let remains = match remains {
        Ok(remains) => remains,
        Err(error) => return Check::skipped(id, format!("cannot look for it: {error}")),
    };
    let all = remains.live.iter().map(|(device, pid)| match pid {
        Some(pid) => format!("{device} (process {pid})"),
        None => device.clone(),
    });
    let all = all.collect::<Vec<_>>().join(", ");
    let in_the_way = remains.live.iter().any(|(other, _)| other == device) || remains.routed && !no_route;
    if remains.live.is_empty() {
        return Check::ok(id, "no ztun runs");
    }
    if in_the_way && !replace {
        return Check::warn(
            id,
            format!("ztun runs on {all}: another start is refused"),
            "--replace takes over; or stop that one first",
        );
    }
    Check::ok(id, format!("ztun runs on {all}, and is not in the way"))
}

/// What a dead run has left: a start heals it.
fn leftovers(remains: &io::Result<Remains>) -> Check {
    let id = "leftovers";
    let remains = match remains {
        Ok(remains) => remains,
        Err(error) => return Check::skipped(id, format!("cannot look for any: {error}")),
    };
    let mut left: Vec<String> =
        remains.journals.iter().map(|device| format!("the journal of {device}")).collect();
    if !remains.routed {
        left.extend(remains.changes.iter().cloned());
    }
    match left.as_slice() {
        [] => Check::ok(id, "nothing of a dead run"),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            Check::warn(
                id,
                format!("a run that died has left {first}{more}"),
                "`sudo ztun restore` undoes it; so does the next start",
            )
        }
    }
}

/// The hard limit `found`; what is `wanted` of it a start raises it to, where it may.
fn limits(found: io::Result<u64>, may_raise: bool, wanted: u64) -> Check {
    let id = "limits";
    let remedy = "raise the hard limit: `ulimit -Hn`, or LimitNOFILE= in a systemd unit; or lower --max-tcp and --max-udp";
    match found {
        Ok(limit) if limit >= wanted => {
            Check::ok(id, format!("{limit} open files, of which {wanted} may be needed"))
        }
        Ok(limit) if may_raise => Check::ok(
            id,
            format!("{limit} open files, raised at start as far as {wanted}, which may be needed"),
        ),
        Ok(limit) if limit < FEWEST => Check::fail(id, format!("{limit} open files at most"), remedy),
        Ok(limit) => Check::warn(
            id,
            format!("{limit} open files at most; --max-tcp and --max-udp need {wanted}"),
            remedy,
        ),
        Err(error) => Check::warn(id, format!("cannot tell how many files may be open: {error}"), remedy),
    }
}

/// How each proxy that runs on this machine is kept out of the tunnel.
pub(super) fn local_proxy(config: &Config) -> Vec<Check> {
    let id = "local-proxy";
    if config.host.no_route {
        return vec![Check::skipped(id, "--no-route: nothing is captured")];
    }
    let mut checks = Vec::new();
    for proxy in &config.engine.proxies {
        let check = match LocalProxy::find(proxy.addr) {
            Ok(None) => Check::ok(id, "not on this machine"),
            Ok(Some(_)) if !config.host.local_proxy => Check::warn(
                id,
                "on this machine, and --local-proxy off: what it sends goes into the tunnel unless it keeps itself outside",
                "leave --local-proxy at auto",
            ),
            Ok(Some(local)) => judge_local(&local),
            Err(error) => Check::fail(
                id,
                format!("cannot look for its process on this machine: {error}"),
                "a kernel with CONFIG_INET_DIAG; or --local-proxy off for a proxy that keeps itself outside",
            ),
        };
        checks.push(check.of(proxy.addr));
    }
    checks
}

fn judge_local(local: &LocalProxy) -> Check {
    let id = "local-proxy";
    let names: Vec<String> = local.pids().map(|pid| format!("{} ({pid})", name(pid))).collect();
    let names = names.join(", ");
    match local.exclusive_uid() {
        _ if !local.is_running() => Check::warn(
            id,
            "on this machine, and nobody is seen to listen there",
            "start the proxy; if it runs, run this with sudo: whose a socket is, only root can see",
        ),
        Some(uid) => {
            Check::ok(id, format!("{names}: kept outside by its user, {uid}, which runs nothing else"))
        }
        None => Check::ok(id, format!("{names}: kept outside flow by flow")),
    }
}

/// What the process calls itself.
fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).map_or("process".into(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn os(number: i32) -> io::Error {
        io::Error::from_raw_os_error(number)
    }

    const ENOENT: i32 = 2;
    const EACCES: i32 = 13;
    const ENODEV: i32 = 19;
    const ENOSPC: i32 = 28;
    const EOPNOTSUPP: i32 = 95;

    #[test]
    fn privilege_is_the_capability_and_not_the_user() {
        assert_eq!(privilege(Ok(1 << NET_ADMIN), true).status, Status::Ok);
        assert_eq!(privilege(Ok(!(1 << NET_ADMIN)), true).status, Status::Fail);
        assert_eq!(privilege(Ok(0), false).status, Status::Ok);
        assert_eq!(privilege(Err(os(ENOENT)), true).status, Status::Warn);
        assert!(capabilities().is_ok());
    }

    #[test]
    fn each_way_of_having_no_tun_has_its_remedy() {
        let remedy = |number| tun(Err(os(number)), false, true)[0].remedy.clone().unwrap();
        assert!(remedy(ENOENT).contains("modprobe tun"));
        assert!(remedy(EACCES).contains("root"));
        assert_ne!(remedy(ENODEV), remedy(ENOENT));
        let other = tun(Err(io::Error::from(io::ErrorKind::InvalidData)), false, true);
        assert!(other[0].remedy.clone().unwrap().contains("mknod"));
        assert_eq!((other[0].status, other[1].status), (Status::Fail, Status::Skipped));
        assert_eq!(tun(Err(os(ENOENT)), true, true)[0].status, Status::Ok, "--tun-fd");
    }

    #[test]
    fn offload_is_told_where_the_kernel_has_it() {
        let judged = |vnet, wanted| tun(Ok(TunDriver { vnet }), false, wanted)[1].status;
        assert_eq!(judged(true, true), Status::Ok);
        assert_eq!(judged(false, true), Status::Warn);
        assert_eq!(judged(true, false), Status::Skipped);
    }

    #[test]
    fn a_kernel_without_rules_fails_and_one_without_those_of_ipv6_warns() {
        let no = || Err(os(EOPNOTSUPP));
        assert_eq!(policy_routing(false, Ok(()), Ok(())).status, Status::Ok);
        assert_eq!(policy_routing(false, Ok(()), no()).status, Status::Warn);
        assert_eq!(policy_routing(false, no(), no()).status, Status::Fail);
        assert_eq!(policy_routing(true, no(), no()).status, Status::Skipped);
    }

    #[test]
    fn sock_diag_matters_to_a_proxy_on_this_machine() {
        assert_eq!(sock_diag(Ok(()), true).status, Status::Ok);
        assert_eq!(sock_diag(Err(os(ENOENT)), true).status, Status::Fail);
        assert_eq!(sock_diag(Err(os(ENOENT)), false).status, Status::Skipped);
    }

    #[test]
    fn a_kernel_without_filters_is_worth_a_word() {
        const EPERM: i32 = 1;
        const EPROTONOSUPPORT: i32 = 93;
        assert_eq!(nf_tables(Ok(())).status, Status::Ok);
        assert_eq!(nf_tables(Err(os(EPERM))).status, Status::Skipped);
        assert_eq!(nf_tables(Err(os(EPROTONOSUPPORT))).status, Status::Warn);
    }

    #[test]
    fn namespaces_that_are_refused_cost_only_exec() {
        assert_eq!(namespaces(Ok(())).status, Status::Ok);
        let refused = namespaces(Err(os(ENOSPC)));
        assert_eq!(refused.status, Status::Warn);
        assert!(refused.why.contains("No space"), "{}", refused.why);
    }

    #[test]
    fn a_run_on_another_device_is_in_the_way_only_by_the_routes() {
        let live =
            |routed| Ok(Remains { live: vec![("ztun1".into(), Some(7))], routed, ..Remains::default() });
        assert_eq!(running(&Ok(Remains::default()), "ztun0", false, false).status, Status::Ok);
        let other = running(&live(true), "ztun0", false, false);
        assert_eq!(other.status, Status::Warn);
        assert!(other.why.contains("process 7"), "{}", other.why);
        assert_eq!(running(&live(true), "ztun0", true, false).status, Status::Ok);
        assert_eq!(running(&live(false), "ztun1", true, false).status, Status::Warn);
        assert_eq!(running(&live(false), "ztun1", true, true).status, Status::Ok, "--replace");
        assert_eq!(running(&Err(os(EACCES)), "ztun0", false, false).status, Status::Skipped);
    }

    #[test]
    fn what_a_live_run_has_is_nobodys_leftover() {
        let remains = |journals: &[&str], routed| {
            let journals = journals.iter().map(|journal| String::from(*journal)).collect();
            Ok(Remains { journals, routed, changes: vec!["rule add".into()], live: Vec::new() })
        };
        assert_eq!(leftovers(&remains(&[], true)).status, Status::Ok);
        let left = leftovers(&remains(&["ztun0"], false));
        assert_eq!(left.status, Status::Warn);
        assert!(left.why.contains("ztun0") && left.why.contains("1 more"), "{}", left.why);
        assert_eq!(leftovers(&Err(os(EACCES))).status, Status::Skipped);
    }

    #[test]
    fn descriptors_are_counted_for_all_flows() {
        assert_eq!(limits(Ok(FEWEST), false, FEWEST).status, Status::Ok);
        assert_eq!(limits(Ok(FEWEST), false, u64::MAX).status, Status::Warn);
        assert_eq!(limits(Ok(FEWEST - 1), false, 65_536).status, Status::Fail);
        assert_eq!(limits(Ok(FEWEST - 1), true, 65_536).status, Status::Ok);
        assert_eq!(limits(Err(os(EACCES)), false, 1).status, Status::Warn);
    }
}
