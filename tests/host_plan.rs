//! The plans for the main situations of a machine, as text: what `--dry-run` prints and a run makes, in its order.

#![cfg(all(feature = "os", target_os = "linux"))]

use std::net::IpAddr;
use ztun::config::HostPlanConfig;
use ztun::host::change::Change;
use ztun::host::plan::{Have, Ipv6, plan};
use ztun::host::{Reversible, Want};

fn have() -> Have {
    Have {
        ipv6: Ipv6::On,
        mtu: 1500,
        up: false,
        addresses: Vec::new(),
        own_addresses: vec![ip("192.168.1.5"), ip("2001:db8::5")],
        dns: None,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn routes(texts: &[&str]) -> HostPlanConfig {
    let nets = texts.iter().map(|text| text.parse().expect("a network"));
    HostPlanConfig { routes: nets.collect(), ..HostPlanConfig::default() }
}

/// The plan, and that undoing it in reverse is what undoes it.
fn text(have: &Have, config: &HostPlanConfig, proxies: &[&str], uid: Option<u32>) -> String {
    let proxies: Vec<IpAddr> = proxies.iter().map(|text| ip(text)).collect();
    let changes = plan(have, &Want::new(config, "ztun0", &proxies, uid));
    for change in &changes {
        assert_eq!(change.undo().undo(), *change);
        assert_eq!(change.to_string().parse::<Change>().as_ref(), Ok(change));
    }
    changes.iter().map(|change| format!("{change}\n")).collect()
}

/// A machine with both versions of IP and a proxy elsewhere.
#[test]
fn default_with_a_remote_proxy() {
    let golden = "\
address add 198.18.0.1/16 dev ztun0 noprefixroute
address add fd7a:7a74:756e::1/64 dev ztun0 noprefixroute
link up dev ztun0
filter add packets to 198.18.0.1,fd7a:7a74:756e::1 not by dev ztun0
filter add arp to 198.18.0.1 not by dev ztun0
rule add v4 pref 5200 fwmark 0x7a74 lookup main
rule add v4 pref 5201 fwmark 0x7a74 unreachable
rule add v4 pref 5202 iif ztun0 lookup main
rule add v4 pref 5203 from 203.0.113.9/32 lookup main
rule add v4 pref 5203 to 203.0.113.9/32 lookup main
rule add v4 pref 5205 from 192.168.1.5/32 lookup main
rule add v4 pref 5206 to 169.254.0.0/16 lookup main
rule add v4 pref 5206 to 224.0.0.0/4 lookup main
rule add v4 pref 5206 to 255.255.255.255/32 lookup main
rule add v6 pref 5200 fwmark 0x7a74 lookup main
rule add v6 pref 5201 fwmark 0x7a74 unreachable
rule add v6 pref 5202 iif ztun0 lookup main
rule add v6 pref 5205 from 2001:db8::5/128 lookup main
rule add v6 pref 5206 to fe80::/10 lookup main
rule add v6 pref 5206 to ff00::/8 lookup main
route add 0.0.0.0/0 dev ztun0 table 31348
route add ::/0 dev ztun0 table 31348
rule add v4 pref 5204 ipproto udp dport 53 lookup 31348
rule add v4 pref 5204 ipproto tcp dport 53 lookup 31348
rule add v4 pref 5210 all lookup 31348
rule add v6 pref 5204 ipproto udp dport 53 lookup 31348
rule add v6 pref 5204 ipproto tcp dport 53 lookup 31348
rule add v6 pref 5210 all lookup 31348
";
    assert_eq!(text(&have(), &HostPlanConfig::default(), &["203.0.113.9"], None), golden);
}

/// What `--kill-switch` adds, and what it takes from IPv6's own addresses.
#[test]
fn kill_switch() {
    let without = text(&have(), &HostPlanConfig::default(), &[], None);
    let config = HostPlanConfig { kill_switch: true, ..HostPlanConfig::default() };
    let with = text(&have(), &config, &[], None);
    let only = |one: &str, other: &str| -> Vec<String> {
        one.lines().filter(|line| !other.lines().any(|there| there == *line)).map(str::to_owned).collect()
    };
    assert_eq!(
        only(&with, &without),
        [
            "route add unreachable 0.0.0.0/0 table 31348 metric 4294967295",
            "route add unreachable ::/0 table 31348 metric 4294967295",
            "rule add v6 pref 5205 from 2001:db8::5/128 ipproto tcp sport 1-32767 lookup main",
            "rule add v4 pref 5211 all unreachable",
            "rule add v6 pref 5211 all unreachable",
        ]
    );
    assert_eq!(only(&without, &with), ["rule add v6 pref 5205 from 2001:db8::5/128 lookup main"]);
}

/// A machine without IPv6: nothing of it is mentioned, with a proxy on the machine itself that has a user of its own.
#[test]
fn ipv4_only_machine_with_a_local_proxy() {
    let golden = "\
address add 198.18.0.1/16 dev ztun0 noprefixroute
link up dev ztun0
filter add packets to 198.18.0.1 not by dev ztun0
filter add arp to 198.18.0.1 not by dev ztun0
rule add v4 pref 5200 fwmark 0x7a74 lookup main
rule add v4 pref 5201 fwmark 0x7a74 unreachable
rule add v4 pref 5202 iif ztun0 lookup main
rule add v4 pref 5203 uid 115 lookup main
rule add v4 pref 5205 from 192.168.1.5/32 lookup main
rule add v4 pref 5206 to 169.254.0.0/16 lookup main
rule add v4 pref 5206 to 224.0.0.0/4 lookup main
rule add v4 pref 5206 to 255.255.255.255/32 lookup main
route add 0.0.0.0/0 dev ztun0 table 31348
rule add v4 pref 5204 ipproto udp dport 53 lookup 31348
rule add v4 pref 5204 ipproto tcp dport 53 lookup 31348
rule add v4 pref 5210 all lookup 31348
";
    let have = Have { ipv6: Ipv6::Absent, ..have() };
    assert_eq!(text(&have, &HostPlanConfig::default(), &["127.0.0.1"], Some(115)), golden);
}

/// `--local-proxy off` makes no rule for a user.
#[test]
fn local_proxy_off() {
    let config = HostPlanConfig { local_proxy: false, ..HostPlanConfig::default() };
    assert!(!text(&have(), &config, &["127.0.0.1"], Some(115)).contains("uid"));
}

/// RFC 7359: only IPv4 is asked for, on a machine that speaks both.
#[test]
fn ipv4_only_tunnel() {
    let golden = "\
address add 198.18.0.1/16 dev ztun0 noprefixroute
address add fd7a:7a74:756e::1/64 dev ztun0 noprefixroute
link up dev ztun0
filter add packets to 198.18.0.1,fd7a:7a74:756e::1 not by dev ztun0
filter add arp to 198.18.0.1 not by dev ztun0
route add unreachable ::/0 table 31348 metric 4294967295
rule add v4 pref 5200 fwmark 0x7a74 lookup main
rule add v4 pref 5201 fwmark 0x7a74 unreachable
rule add v4 pref 5202 iif ztun0 lookup main
rule add v4 pref 5205 from 192.168.1.5/32 lookup main
rule add v4 pref 5206 to 169.254.0.0/16 lookup main
rule add v4 pref 5206 to 224.0.0.0/4 lookup main
rule add v4 pref 5206 to 255.255.255.255/32 lookup main
rule add v6 pref 5200 fwmark 0x7a74 lookup main
rule add v6 pref 5201 fwmark 0x7a74 unreachable
rule add v6 pref 5202 iif ztun0 lookup main
rule add v6 pref 5205 from 2001:db8::5/128 ipproto tcp sport 1-32767 lookup main
rule add v6 pref 5206 to fe80::/10 lookup main
rule add v6 pref 5206 to ff00::/8 lookup main
route add 0.0.0.0/0 dev ztun0 table 31348
rule add v4 pref 5204 ipproto udp dport 53 lookup 31348
rule add v4 pref 5204 ipproto tcp dport 53 lookup 31348
rule add v4 pref 5210 all lookup 31348
rule add v6 pref 5204 ipproto udp dport 53 lookup 31348
rule add v6 pref 5204 ipproto tcp dport 53 lookup 31348
rule add v6 pref 5210 all lookup 31348
";
    assert_eq!(text(&have(), &routes(&["0.0.0.0/0"]), &[], None), golden);
}

/// The local network is let out; a resolver in it is not, unless it is named alone.
#[test]
fn bypassed_networks_and_a_bypassed_host() {
    let bypass = ["192.168.0.0/16", "192.168.1.1", "fd00::/8"].map(|net| net.parse().expect("a network"));
    let config = HostPlanConfig { bypass: bypass.to_vec(), ..HostPlanConfig::default() };
    let plan = text(&have(), &config, &[], None);
    let lines = |word: &str| plan.lines().filter(|line| line.contains(word)).collect::<Vec<_>>();
    assert_eq!(
        lines("to 192.168"),
        [
            "rule add v4 pref 5203 to 192.168.1.1/32 lookup main",
            "rule add v4 pref 5206 to 192.168.0.0/16 lookup main"
        ]
    );
    assert_eq!(lines("fd00::/8"), ["rule add v6 pref 5206 to fd00::/8 lookup main"]);
}

/// `--no-route`: the device alone.
#[test]
fn no_route() {
    let config = HostPlanConfig { no_route: true, kill_switch: true, ..HostPlanConfig::default() };
    let golden = "\
address add 198.18.0.1/16 dev ztun0
address add fd7a:7a74:756e::1/64 dev ztun0
link up dev ztun0
";
    assert_eq!(text(&have(), &config, &["203.0.113.9"], Some(115)), golden);
}
