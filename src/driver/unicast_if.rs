//! The value of IP_UNICAST_IF and IPV6_UNICAST_IF, by which a socket of Windows leaves by one interface only.

use std::num::NonZeroU32;

/// The octets of the option for this interface; `None` takes the binding away. The two families differ: IPv4 wants the number in network order,
/// since any other value there could be an address, and IPv6 in the machine's (Microsoft's "IPPROTO_IP socket options" and "IPPROTO_IPV6 socket options").
pub(super) fn value(interface: Option<NonZeroU32>, v6: bool) -> [u8; 4] {
    let number = interface.map_or(0, NonZeroU32::get);
    if v6 { number.to_ne_bytes() } else { number.to_be_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_in_network_order_for_ipv4_only() {
        let interface = NonZeroU32::new(0x0102_0304);
        assert_eq!(value(interface, false), [1, 2, 3, 4]);
        assert_eq!(value(interface, true), 0x0102_0304_u32.to_ne_bytes());
        assert_eq!(value(NonZeroU32::new(12), false), [0, 0, 0, 12]);
        assert_eq!((value(None, false), value(None, true)), ([0; 4], [0; 4]));
    }
}
