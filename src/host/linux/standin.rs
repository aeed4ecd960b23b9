//! A second device that takes the first one's place while that one is gone.
//!
//! A device that somebody deletes takes its addresses and routes along, and until it is made anew the machine's own routes would carry what was
//! captured: packets would leave beside the tunnel, and connections that are opened in that moment would go on doing so. So a second device, which nobody reads, has
//! the same addresses, and the same routes with a metric that lets the first one win. What goes into it is lost, as packets are, and sent again.
//!
//! It dies with the process, and with it all that is done to it: nothing of it is journalled, and nothing has to be undone. With the kill switch there are
//! routes that refuse in its place.

use super::change::{Address, Change, Route};
use super::kernel::{self, address_message, route_message, set_ipv6, set_link};
use crate::config::Cidr;
use crate::netlink::Netlink;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkFlags;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use std::io;

/// The metric of its routes: behind all others but those that refuse.
pub(super) const METRIC: u32 = u32::MAX - 1;

/// What is added to the device's name.
const SUFFIX: &str = "-gap";

/// The longest name that a device can have.
const LONGEST: usize = libc::IFNAMSIZ - 1;

/// The name of the stand-in of `device`; every device has one here.
pub fn stand_in_name(device: &str) -> Option<String> {
    let mut name = device.to_owned();
    let room = LONGEST - SUFFIX.len();
    while name.len() > room {
        name.pop();
    }
    Some(name + SUFFIX)
}

/// Gives `device`, which exists and dies with this process, what `changes` give the first one.
pub(in crate::host) fn stand_in(device: &str, changes: &[Change]) -> io::Result<()> {
    let mut netlink = Netlink::route()?;
    let create = NLM_F_CREATE | NLM_F_EXCL;
    for change in changes {
        if let Change::Ipv6On { .. } = change {
            set_ipv6(device, "0")?;
        }
        if let Change::AddressAdd(address) = change {
            // That address alone: its network is routed into the first one.
            let address = Cidr::host(address.address.addr);
            let copy = Address { device: device.into(), address, prefix_route: false };
            netlink.acknowledged(RouteNetlinkMessage::NewAddress(address_message(&copy)?), create)?;
        }
    }
    set_link(&mut netlink, device, |message| {
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
    })?;
    for change in changes {
        if let Change::RouteAdd(route) = change {
            let copy = Route { device: device.into(), ..route.clone() };
            let mut message = route_message(&copy)?;
            message.attributes.push(RouteAttribute::Priority(METRIC));
            netlink.acknowledged(RouteNetlinkMessage::NewRoute(message), create)?;
        }
    }
    log::debug!("{device} stands in for a device that is deleted: index {:?}", kernel::index_of(device));
    Ok(())
}

/// Whether all of `changes` that lead into the first device lead into `device` as well.
pub(in crate::host) fn is_stood_in(device: &str, changes: &[Change]) -> io::Result<bool> {
    let mut netlink = Netlink::route()?;
    let Ok(index) = kernel::index_of(device) else { return Ok(false) };
    let mut there = 0;
    for message in netlink.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))? {
        let RouteNetlinkMessage::NewRoute(message) = message else { continue };
        let has = |wanted: &RouteAttribute| message.attributes.contains(wanted);
        if has(&RouteAttribute::Oif(index)) && has(&RouteAttribute::Priority(METRIC)) {
            there += 1;
        }
    }
    Ok(there == changes.iter().filter(|change| matches!(change, Change::RouteAdd(_))).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_longer_than_a_device_may_have() {
        assert_eq!(stand_in_name("ztun0").unwrap(), "ztun0-gap");
        assert_eq!(stand_in_name("fifteen-octets-").unwrap(), "fifteen-oct-gap");
        assert_eq!(stand_in_name("fifteen-octets-").unwrap().len(), LONGEST);
    }
}
