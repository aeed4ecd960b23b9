//! What is to be on a machine while a run lasts, whichever system it is.

use crate::config::{Cidr, HostPlanConfig};
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Everything of ours in the kernel's tables carries this protocol number where they know such a number (RTA_PROTOCOL, FRA_PROTOCOL): 'z'.
pub const PROTOCOL: u8 = 122;

/// The address of the device in a family that is captured while none was given.
pub(super) const DEFAULT_V4: Cidr = Cidr { addr: IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), prefix: 16 };
pub(super) const DEFAULT_V6: Cidr =
    Cidr { addr: IpAddr::V6(Ipv6Addr::new(0xfd7a, 0x7a74, 0x756e, 0, 0, 0, 0, 1)), prefix: 64 };

/// A version of IP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of a network.
    pub fn of(net: &Cidr) -> Family {
        if net.addr.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "v4",
            Family::V6 => "v6",
        })
    }
}

/// What is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Want {
    /// The device.
    pub device: String,
    /// Its MTU, octets.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<Cidr>,
    /// What goes into it; nothing with `--no-route`.
    pub routes: Vec<Cidr>,
    /// What stays outside besides the proxies.
    pub bypass: Vec<Cidr>,
    /// The mark of our own sockets.
    pub mark: u32,
    /// The proxies.
    pub proxies: Vec<IpAddr>,
    /// The local proxy's user, when that is exact.
    pub local_uid: Option<u32>,
    /// What is captured fails when the device is gone.
    pub kill_switch: bool,
    /// Name servers for the machine that are reached through the device; with none, its DNS is left alone.
    pub dns: Vec<IpAddr>,
}

impl Want {
    /// What `config` asks for.
    pub fn new(config: &HostPlanConfig, device: &str, proxies: &[IpAddr], local_uid: Option<u32>) -> Want {
        let mut want = Want {
            device: device.into(),
            mtu: config.mtu.into(),
            addresses: config.addresses.clone(),
            routes: if config.no_route { Vec::new() } else { config.routes.clone() },
            bypass: config.bypass.clone(),
            mark: config.mark,
            proxies: proxies.to_vec(),
            local_uid: local_uid.filter(|_| config.local_proxy),
            kill_switch: config.kill_switch,
            dns: config.dns.clone(),
        };
        if !want.captures_all_v4() {
            // Names of what is reached outside may be known outside only.
            want.dns.clear();
        }
        want
    }

    /// Whether any of `family` is captured.
    pub(super) fn is_routed(&self, family: Family) -> bool {
        self.routes.iter().any(|net| Family::of(net) == family)
    }

    /// Whether all of IPv4 is captured.
    pub(super) fn captures_all_v4(&self) -> bool {
        let whole = |net: &Cidr| Family::of(net) == Family::V4 && net.prefix == 0;
        let half = |first: [u8; 4]| {
            let addr = Ipv4Addr::from(first);
            self.routes.iter().any(|net| net.prefix == 1 && network(net).addr == IpAddr::V4(addr))
        };
        self.routes.iter().any(whole) || (half([0; 4]) && half([128, 0, 0, 0]))
    }

    /// Whether a family is refused because all of the other one is captured, and it would leak beside it (RFC 7359).
    pub(super) fn is_refused(&self, family: Family) -> bool {
        family == Family::V6 && self.captures_all_v4() && !self.is_routed(family)
    }

    /// What of `family` is captured, each network once.
    pub(super) fn destinations(&self, family: Family) -> Vec<Cidr> {
        let mut destinations: Vec<Cidr> = Vec::new();
        for net in self.routes.iter().filter(|net| Family::of(net) == family).map(network) {
            if !destinations.contains(&net) {
                destinations.push(net);
            }
        }
        destinations
    }
}

/// Whether a connection to `remote` stays outside by what `config` says: it is to a proxy or a bypassed network, or to none that is captured. For
/// [`reset_existing`](super::reset_existing).
pub fn stays_outside(config: &HostPlanConfig, proxies: &[IpAddr], remote: IpAddr) -> bool {
    let within = |nets: &[Cidr]| nets.iter().any(|net| net.contains(remote));
    proxies.contains(&remote) || within(&config.bypass) || !within(&config.routes)
}

/// Whether all of `net` lies in `outer`.
pub(super) fn covers(outer: &Cidr, net: &Cidr) -> bool {
    outer.prefix <= net.prefix && outer.contains(net.addr)
}

/// The network with its host bits cleared, as systems want routes, and give them back.
pub(super) fn network(net: &Cidr) -> Cidr {
    let prefix = u32::from(net.prefix);
    let addr = match net.addr {
        IpAddr::V4(addr) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix)).unwrap_or(0);
            Ipv4Addr::from_bits(addr.to_bits() & mask).into()
        }
        IpAddr::V6(addr) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix)).unwrap_or(0);
            Ipv6Addr::from_bits(addr.to_bits() & mask).into()
        }
    };
    Cidr { addr, prefix: net.prefix }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_bypassed_networks_and_what_is_not_captured_stay_outside() {
        let mut config = HostPlanConfig { bypass: vec!["10.0.0.0/8".parse().unwrap()], ..Default::default() };
        let proxies = ["203.0.113.9".parse().unwrap()];
        let outside =
            |config: &HostPlanConfig, remote: &str| stays_outside(config, &proxies, remote.parse().unwrap());
        assert!(outside(&config, "203.0.113.9") && outside(&config, "10.1.2.3"));
        assert!(!outside(&config, "8.8.8.8") && !outside(&config, "2606:4700::1111"));
        config.routes = vec!["172.16.0.0/12".parse().unwrap()];
        assert!(outside(&config, "8.8.8.8") && !outside(&config, "172.16.0.1"));
    }
}
