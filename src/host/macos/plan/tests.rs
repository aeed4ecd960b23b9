//! Golden texts of plans, and what is true of every plan.

use super::*;
use crate::config::HostPlanConfig;
use proptest::prelude::*;

fn net(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn route(to: &str, way: &str) -> Route {
    let Ok(Change::RouteAdd(route)) = format!("route add {to} {way}").parse() else { panic!("{to} {way}") };
    route
}

/// A laptop in a home network, as `netstat -rn` shows it.
fn have() -> Have {
    Have {
        ipv6: true,
        mtu: 1380,
        up: false,
        addresses: Vec::new(),
        routes: vec![
            route("0.0.0.0/0", "via 192.168.1.1"),
            route("127.0.0.0/8", "dev lo0"),
            route("169.254.0.0/16", "dev en0"),
            route("192.168.1.0/24", "dev en0"),
            route("224.0.0.0/4", "dev en0"),
            route("255.255.255.255/32", "dev en0"),
            route("::/0", "via fe80::1%en0"),
            route("2001:db8::/64", "dev en0"),
        ],
    }
}

fn want() -> Want {
    let nets = |texts: &[&str]| texts.iter().map(|text| net(text)).collect();
    let config = HostPlanConfig {
        addresses: nets(&["198.18.0.1/16", "fd7a:7a74:756e::1/64"]),
        routes: nets(&["0.0.0.0/0", "::/0"]),
        bypass: nets(&["10.9.8.7/8"]),
        mtu: 1500,
        dns: ["198.18.0.2", "fd7a:7a74:756e::2"].map(|server| server.parse().unwrap()).into(),
        ..HostPlanConfig::default()
    };
    Want::new(&config, "utun122", &["203.0.113.9", "127.0.0.1"].map(|addr| addr.parse().unwrap()), None)
}

fn text(changes: &[Change]) -> String {
    changes.iter().map(|change| format!("{change}\n")).collect()
}

fn lines(have: &Have, want: &Want, start: &str) -> Vec<String> {
    let text = text(&plan(have, true, want));
    text.lines().filter(|line| line.starts_with(start)).map(str::to_owned).collect()
}

#[test]
fn the_plan_for_a_whole_machine() {
    let golden = "\
mtu set 1500 was 1380 dev utun122
address add 198.18.0.1/16 dev utun122
address add fd7a:7a74:756e::1/64 dev utun122
link up dev utun122
route add 203.0.113.9/32 via 192.168.1.1
route add 10.0.0.0/8 via 192.168.1.1
route add 128.0.0.0/1 dev utun122
route add 64.0.0.0/2 dev utun122
route add 32.0.0.0/3 dev utun122
route add 16.0.0.0/4 dev utun122
route add 8.0.0.0/5 dev utun122
route add 4.0.0.0/6 dev utun122
route add 2.0.0.0/7 dev utun122
route add 1.0.0.0/8 dev utun122
route add 8000::/1 dev utun122
route add 4000::/2 dev utun122
route add 2000::/3 dev utun122
route add 1000::/4 dev utun122
route add 800::/5 dev utun122
route add 400::/6 dev utun122
route add 200::/7 dev utun122
route add 100::/8 dev utun122
route add 80::/9 dev utun122
route add 40::/10 dev utun122
route add 20::/11 dev utun122
route add 10::/12 dev utun122
route add 8::/13 dev utun122
route add 4::/14 dev utun122
route add 2::/15 dev utun122
route add 1::/16 dev utun122
dns set 198.18.0.2,fd7a:7a74:756e::2
";
    assert_eq!(text(&plan(&have(), true, &want())), golden);
}

#[test]
fn no_route_leaves_only_the_device_to_set_up() {
    let golden = "\
mtu set 1500 was 1380 dev utun122
address add 198.18.0.1/16 dev utun122
address add fd7a:7a74:756e::1/64 dev utun122
link up dev utun122
";
    let want = Want { routes: Vec::new(), dns: Vec::new(), ..want() };
    assert_eq!(text(&plan(&have(), true, &want)), golden);
}

#[test]
fn what_is_there_already_is_not_changed_and_so_not_undone() {
    let have = Have { mtu: 1500, up: true, addresses: want().addresses, ..have() };
    let text = text(&plan(&have, false, &want()));
    assert!(text.lines().all(|line| line.starts_with("route add ")), "{text}");
}

#[test]
fn without_ipv6_on_the_machine_nothing_of_it_is_planned() {
    let text = text(&plan(&Have { ipv6: false, ..have() }, true, &want()));
    assert!(!text.contains("::"), "{text}");
    assert!(text.ends_with("dns set 198.18.0.2\n"), "{text}");
}

/// L-14; F19
#[test]
fn the_kill_switch_refuses_each_piece_behind_its_two_halves() {
    let want = Want { routes: vec![net("10.0.0.0/8")], bypass: Vec::new(), kill_switch: true, ..want() };
    assert_eq!(
        lines(&have(), &want, "route add"),
        [
            "route add 10.0.0.0/8 reject",
            "route add 10.0.0.0/9 dev utun122",
            "route add 10.128.0.0/9 dev utun122",
            "route add 198.18.0.0/16 dev utun122"
        ]
    );
}

#[test]
fn the_kill_switch_of_a_whole_machine_refuses_what_it_captures() {
    let have = have();
    let want = Want { kill_switch: true, ..want() };
    let routes = lines(&have, &want, "route add");
    let with = |end: &str| routes.iter().filter(|line| line.ends_with(end)).count();
    assert_eq!((with(" reject"), with(" dev utun122")), (8 + 16, 2 * (8 + 16)));
    let without = Want { kill_switch: false, ..want };
    let captured = lines(&have, &without, "route add").into_iter().filter(|line| line.ends_with("utun122"));
    for line in captured {
        assert!(routes.contains(&line.replace("dev utun122", "reject")), "{line}");
    }
}

/// RFC 7359; F23
#[test]
fn ipv6_beside_a_tunnel_for_all_of_ipv4_is_refused() {
    let want = Want { routes: vec![net("0.0.0.0/1"), net("128.0.0.0/1")], ..want() };
    let routes = lines(&have(), &want, "route add");
    assert!(routes.contains(&"route add 8000::/1 reject".into()), "{routes:?}");
    assert!(routes.contains(&"route add 2000::/3 reject".into()), "{routes:?}");
    assert!(!routes.iter().any(|line| line.contains("::") && line.ends_with("utun122")), "{routes:?}");
    let half = Want { routes: vec![net("0.0.0.0/1")], ..want };
    assert!(!lines(&have(), &half, "route add").iter().any(|line| line.contains("::")));
}

#[test]
fn a_proxy_in_the_local_network_has_its_route() {
    let want = Want { proxies: vec!["192.168.1.77".parse().unwrap()], bypass: Vec::new(), ..want() };
    assert!(!lines(&have(), &want, "route add").iter().any(|line| !line.ends_with("dev utun122")));
}

#[test]
fn a_proxy_behind_another_tunnel_stays_there() {
    let mut have = have();
    have.routes.push(route("203.0.112.0/23", "dev utun3"));
    assert!(
        !lines(&have, &want(), "route add 203").iter().any(|line| line.starts_with("route add 203.0.113.9"))
    );
    // One that is less specific than the tunnel's routes would lose it.
    have.routes.retain(|other| other.to != net("203.0.112.0/23"));
    have.routes.push(route("128.0.0.0/1", "dev utun3"));
    let routes = lines(&have, &want(), "route add");
    assert!(routes.contains(&"route add 203.0.113.9/32 dev utun3".into()), "{routes:?}");
    // Theirs is not touched, and ours are more specific.
    assert!(!routes.contains(&"route add 128.0.0.0/1 dev utun122".into()), "{routes:?}");
    assert!(routes.contains(&"route add 128.0.0.0/2 dev utun122".into()), "{routes:?}");
}

#[test]
fn an_ipv6_proxy_keeps_its_link_local_gateway() {
    let want = Want { proxies: vec!["2606:4700::1".parse().unwrap()], ..want() };
    let routes = lines(&have(), &want, "route add 2606");
    assert_eq!(routes, ["route add 2606:4700::1/128 via fe80::1%en0"]);
}

#[test]
fn a_machine_without_a_way_out_gets_none_made_up() {
    let nowhere = Have { routes: Vec::new(), ..have() };
    assert!(lines(&nowhere, &want(), "route add 203.0.113.9").is_empty());
    assert_eq!(lines(&nowhere, &want(), "route add 128.0.0.0/1").len(), 1);
}

#[test]
fn what_is_bypassed_is_left_out_of_what_is_captured() {
    let want = Want { bypass: vec![net("64.0.0.0/2"), net("100.64.0.0/10")], ..want() };
    let routes = lines(&have(), &want, "route add");
    assert!(!routes.contains(&"route add 64.0.0.0/2 dev utun122".into()), "{routes:?}");
    // Nothing of ours leads there, so nothing has to lead out again.
    assert!(!routes.iter().any(|line| line.starts_with("route add 100.64")), "{routes:?}");
}

#[test]
fn a_captured_family_always_has_an_address_on_the_device() {
    let want = Want { addresses: vec![net("10.0.0.1/24")], ..want() };
    let added = lines(&have(), &want, "address add");
    assert_eq!(
        added,
        ["address add 10.0.0.1/24 dev utun122", "address add fd7a:7a74:756e::1/64 dev utun122"]
    );
}

fn nets() -> impl Strategy<Value = Cidr> {
    let v4 = (any::<[u8; 4]>(), 0u8..=32).prop_map(|(addr, prefix)| Cidr { addr: addr.into(), prefix });
    let v6 = (any::<[u8; 16]>(), 0u8..=128).prop_map(|(addr, prefix)| Cidr { addr: addr.into(), prefix });
    prop_oneof![v4, v6, Just(net("0.0.0.0/0")), Just(net("::/0")), Just(net("0.0.0.0/1"))]
}

proptest! {
    /// The kernel takes one with the address 0 for the default route, and has one route to a destination.
    #[test]
    fn no_plan_touches_a_default_route_or_has_two_routes_to_one_destination(
        routes in proptest::collection::vec(nets(), 0..4),
        bypass in proptest::collection::vec(nets(), 0..3),
        kill_switch: bool,
        ipv6: bool,
    ) {
        let want = Want { routes, bypass, kill_switch, ..want() };
        let have = Have { ipv6, ..have() };
        let mut seen: Vec<Cidr> = Vec::new();
        for change in plan(&have, true, &want) {
            if let Change::RouteAdd(route) = change {
                prop_assert!(!route.to.addr.is_unspecified(), "{}", route);
                prop_assert_eq!(network(&route.to), route.to);
                prop_assert!(!seen.contains(&route.to), "{} twice", route.to);
                seen.push(route.to);
            }
        }
    }

    /// With the kill switch, whoever finds a route into the device finds one that refuses without the device.
    #[test]
    fn what_the_kill_switch_captures_is_refused_when_the_device_is_gone(
        routes in proptest::collection::vec(nets(), 1..4),
        host: [u8; 4],
    ) {
        let want = Want { routes, bypass: Vec::new(), proxies: Vec::new(), kill_switch: true, ..want() };
        let have = Have { routes: vec![route("0.0.0.0/0", "via 192.168.1.1")], ..have() };
        let to = Cidr::host(IpAddr::from(host));
        let ours: Vec<Route> = plan(&have, true, &want)
            .into_iter()
            .filter_map(|change| if let Change::RouteAdd(route) = change { Some(route) } else { None })
            .collect();
        let best = |gone: bool| {
            let left = ours.iter().filter(|route| !gone || !matches!(route.way, Way::Link(_)));
            left.filter(|route| covers(&route.to, &to)).max_by_key(|route| route.to.prefix)
        };
        let captured = want.routes.iter().any(|net| net.contains(to.addr) && net.prefix < 32);
        let single = want.routes.iter().any(|net| net.contains(to.addr) && net.prefix == 32);
        if captured && !single && host[0] != 0 {
            prop_assert!(matches!(best(false), Some(Route { way: Way::Link(_), .. })), "{:?}", best(false));
            prop_assert!(matches!(best(true), Some(Route { way: Way::Reject, .. })), "{:?}", best(true));
        }
    }
}
