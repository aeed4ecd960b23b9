//! The identity of a Wintun adapter: the same for the same name, so that Windows does not take each run's device for a new network.
//!
//! What Windows keeps of an adapter, it keeps by its GUID: the network's profile, the firewall's choice. A fresh GUID for each run would leave a trail of
//! "Network 7" and "Network 8" in the registry. The GUID is made of the name: RFC 9562 5.8 leaves all but six bits of a version 8 to whoever makes it.

/// What stands before each name, so that no other program's hash of a name is ours.
const SPACE: &str = "ztun-wintun:";

/// FNV-1a of 128 bits (draft-eastlake-fnv): spread is enough here, since nobody gains anything by a collision with a name of their own.
const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

/// The GUID of the device of this name. Windows knows no difference of case in names of interfaces, and neither has the GUID.
pub(super) fn of(name: &str) -> u128 {
    let octets = SPACE.bytes().chain(name.to_lowercase().into_bytes());
    let hash = octets.fold(BASIS, |hash, octet| (hash ^ u128::from(octet)).wrapping_mul(PRIME));
    // Version 8 and the variant of the RFC.
    let (version, variant) = (0xf_u128 << 76, 0b11_u128 << 62);
    hash & !version & !variant | 8 << 76 | 0b10 << 62
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_name_has_one_guid_for_ever() {
        assert_eq!(format!("{:032x}", of("ztun0")), GUID_OF_ZTUN0);
        assert_eq!(of("ZTUN0"), of("ztun0"));
    }

    /// Computed apart from this code.
    const GUID_OF_ZTUN0: &str = "a772829094bd869e86113ab88515f647";

    #[test]
    fn it_is_a_guid_of_version_8_and_names_do_not_share_one() {
        let names = (0..1_000).map(|number| format!("ztun{number}"));
        let guids: BTreeSet<u128> = names.map(|name| of(&name)).collect();
        assert_eq!(guids.len(), 1_000);
        for guid in guids {
            assert_eq!((guid >> 76 & 0xf, guid >> 62 & 0b11), (8, 0b10), "{guid:032x}");
        }
    }
}
