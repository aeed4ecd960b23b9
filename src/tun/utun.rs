//! The header of a utun packet: four octets, the address family of what follows.
//!
//! Darwin's kernel writes and wants the family in network order (`utun_start` and `utun_ctl_send` of XNU's `if_utun.c`). Descriptors that another
//! program has made may have it in the host's, so reading takes both; what the packet itself says of its version has to agree.

/// Octets in front of each packet.
pub(super) const HEADER: usize = 4;

/// `AF_INET` and `AF_INET6` of Darwin.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 30;

/// The header of an IP packet that begins with `first`; `None`: it is no IP packet.
pub(super) fn describe(first: u8) -> Option<[u8; HEADER]> {
    match first >> 4 {
        4 => Some(AF_INET.to_be_bytes()),
        6 => Some(AF_INET6.to_be_bytes()),
        _ => None,
    }
}

/// Whether the header is that of the packet behind it.
pub(super) fn is_true_of(header: [u8; HEADER], packet: &[u8]) -> bool {
    let family = match packet.first().map(|first| first >> 4) {
        Some(4) => AF_INET,
        Some(6) => AF_INET6,
        Some(_) | None => return false,
    };
    u32::from_be_bytes(header) == family || u32::from_le_bytes(header) == family
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_family_is_written_in_network_order() {
        assert_eq!(describe(0x45), Some([0, 0, 0, 2]));
        assert_eq!(describe(0x60), Some([0, 0, 0, 30]));
        assert_eq!(describe(0x00), None);
    }

    #[test]
    fn both_orders_are_read() {
        for header in [[0, 0, 0, 2], [2, 0, 0, 0]] {
            assert!(is_true_of(header, &[0x45, 0]));
            assert!(!is_true_of(header, &[0x60, 0]));
        }
        for header in [[0, 0, 0, 30], [30, 0, 0, 0]] {
            assert!(is_true_of(header, &[0x60, 0]));
            assert!(!is_true_of(header, &[0x45, 0]));
        }
    }

    #[test]
    fn what_is_no_ip_packet_has_no_header() {
        assert!(!is_true_of([0, 0, 0, 2], &[]));
        assert!(!is_true_of([0, 0, 0, 0], &[0x00]));
        assert!(!is_true_of([0, 0, 0, 10], &[0x60]), "AF_INET6 of Linux");
    }
}
