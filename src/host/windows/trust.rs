//! Who can change a file, by its security descriptor in the language of those (SDDL). Pure.
//!
//! What runs as the system must lie where nobody else can put something in its place: in the file, in its directory (where a library that it loads could be
//! planted), or by moving one of the directories above.

/// What a path is to a program that is run as the system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// The program, or a library of it.
    File,
    /// The directory that it lies in.
    Directory,
    /// One further up, where others may make things of their own.
    Above,
}

/// Rights to a file (winnt.h), and what they are to a directory.
mod right {
    /// FILE_WRITE_DATA: of a directory, to make files in it.
    pub(super) const WRITE: u32 = 0x2;
    /// FILE_APPEND_DATA: of a directory, to make directories in it.
    pub(super) const APPEND: u32 = 0x4;
    /// FILE_DELETE_CHILD.
    pub(super) const DELETE_CHILD: u32 = 0x40;
    pub(super) const DELETE: u32 = 0x1_0000;
    pub(super) const WRITE_DAC: u32 = 0x4_0000;
    pub(super) const WRITE_OWNER: u32 = 0x8_0000;
    pub(super) const GENERIC_ALL: u32 = 0x1000_0000;
    pub(super) const GENERIC_WRITE: u32 = 0x4000_0000;
}

impl Place {
    /// The rights by which something can be put in the place of the program.
    fn harmful(self) -> u32 {
        let always = right::DELETE | right::WRITE_DAC | right::WRITE_OWNER | right::GENERIC_ALL;
        match self {
            Place::File | Place::Directory => {
                always | right::WRITE | right::APPEND | right::DELETE_CHILD | right::GENERIC_WRITE
            }
            Place::Above => always | right::DELETE_CHILD,
        }
    }
}

/// Administrators, the system, and what installs Windows itself, in SDDL.
const TRUSTED: [&str; 6] = [
    "BA",
    "SY",
    "S-1-5-32-544",
    "S-1-5-18",
    // TrustedInstaller.
    "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464",
    // Owner rights: the owner is looked at.
    "S-1-3-4",
];

fn is_trusted(who: &str) -> bool {
    TRUSTED.iter().any(|known| known.eq_ignore_ascii_case(who)) || who.eq_ignore_ascii_case("OW")
}

/// Somebody but administrators and the system who can put something else in the place of what is at `place`, if there is anybody, by the descriptor
/// `sddl` with its owner and its list of access. What cannot be read is taken for everybody.
pub(super) fn who_can_change(place: Place, sddl: &str) -> Option<String> {
    let everybody = || Some("WD".to_owned());
    let Some(owner) = part(sddl, "O:") else { return everybody() };
    if !is_trusted(owner) {
        return Some(owner.to_owned());
    }
    let Some(list) = part(sddl, "D:") else { return everybody() };
    let (flags, entries) = list.split_once('(').unwrap_or((list, ""));
    // No list at all lets everybody in; an empty one nobody.
    if flags.contains("NO_ACCESS_CONTROL") {
        return everybody();
    }
    entries.split('(').filter(|entry| !entry.is_empty()).find_map(|entry| {
        let mut fields = entry.trim_end().trim_end_matches(')').split(';');
        let (Some(kind), Some(flags), Some(rights)) = (fields.next(), fields.next(), fields.next()) else {
            return everybody();
        };
        let Some(who) = fields.nth(2) else { return everybody() };
        // What is denied can only lessen what others are given; what is for things made later says nothing of this one.
        let denies = matches!(kind, "D" | "OD" | "XD");
        let of_this = !flag_pairs(flags).any(|flag| flag == "IO");
        let can = mask(rights).is_none_or(|mask| mask & place.harmful() != 0);
        (!denies && of_this && can && !is_trusted(who)).then(|| who.to_owned())
    })
}

/// The part of a descriptor that begins with `mark`, up to the next one.
fn part<'a>(sddl: &'a str, mark: &str) -> Option<&'a str> {
    let marks = ["O:", "G:", "D:", "S:"];
    // Entries are in parentheses, and have no colon in what is looked at here.
    let begins = sddl.find(mark)?.checked_add(mark.len())?;
    let rest = sddl.get(begins..)?;
    let ends = marks.iter().filter_map(|mark| rest.find(mark)).min().unwrap_or(rest.len());
    rest.get(..ends)
}

fn flag_pairs(flags: &str) -> impl Iterator<Item = &str> {
    (0..flags.len()).step_by(2).filter_map(move |at| flags.get(at..at.checked_add(2)?))
}

/// The rights that an entry gives; `None` when they are written as nothing that is known.
fn mask(rights: &str) -> Option<u32> {
    if let Some(digits) = rights.strip_prefix("0x") {
        return u32::from_str_radix(digits, 16).ok();
    }
    if !rights.is_empty() && rights.bytes().all(|octet| octet.is_ascii_digit()) {
        return rights.parse().ok();
    }
    if !rights.len().is_multiple_of(2) {
        return None;
    }
    let known = |pair: &str| {
        Some(match pair {
            "GA" => right::GENERIC_ALL,
            "GW" => right::GENERIC_WRITE,
            "GR" => 0x8000_0000,
            "GX" => 0x2000_0000,
            "FA" => 0x1f_01ff,
            "FR" => 0x12_0089,
            "FW" => 0x12_0116,
            "FX" => 0x12_00a0,
            "RC" => 0x2_0000,
            "SD" => right::DELETE,
            "WD" => right::WRITE_DAC,
            "WO" => right::WRITE_OWNER,
            "CC" => 0x1,
            "DC" => right::WRITE,
            "LC" => right::APPEND,
            "SW" => 0x8,
            "RP" => 0x10,
            "WP" => 0x20,
            "DT" => right::DELETE_CHILD,
            "LO" => 0x80,
            "CR" => 0x100,
            _ => return None,
        })
    };
    (0..rights.len())
        .step_by(2)
        .try_fold(0, |mask, at| Some(mask | known(rights.get(at..at.checked_add(2)?)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As Windows makes them.
    const PROGRAM_FILES: &str = "O:S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464G:S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464\
        D:PAI(A;;FA;;;S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464)(A;CIIO;GA;;;S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464)\
        (A;;0x1301bf;;;SY)(A;OICIIO;GA;;;SY)(A;;0x1301bf;;;BA)(A;OICIIO;GA;;;BA)(A;;0x1200a9;;;BU)(A;OICIIO;GXGR;;;BU)(A;OICIIO;GA;;;CO)\
        (A;;0x1200a9;;;AC)(A;OICIIO;GXGR;;;AC)";
    const ROOT: &str = "O:S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464D:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;0x1200a9;;;BU)\
        (A;OICIIO;SDGXGWGR;;;AU)(A;;LC;;;AU)";
    const IN_ROOT: &str = "O:BAG:DUD:AI(A;OICIID;FA;;;BA)(A;OICIID;FA;;;SY)(A;OICIID;0x1200a9;;;BU)(A;ID;0x1301bf;;;AU)(A;OICIIOID;SDGXGWGR;;;AU)";
    const DOWNLOADS: &str =
        "O:S-1-5-21-1-2-3-1001D:AI(A;OICIID;FA;;;SY)(A;OICIID;FA;;;BA)(A;OICIID;FA;;;S-1-5-21-1-2-3-1001)";

    #[test]
    fn a_directory_of_windows_own_is_nobodys_to_change_and_a_fresh_one_in_the_root_is_everybodys() {
        for place in [Place::File, Place::Directory, Place::Above] {
            assert_eq!(who_can_change(place, PROGRAM_FILES), None, "{place:?}");
            assert_eq!(who_can_change(place, IN_ROOT).as_deref(), Some("AU"), "{place:?}");
            assert_eq!(who_can_change(place, DOWNLOADS).as_deref(), Some("S-1-5-21-1-2-3-1001"), "{place:?}");
        }
    }

    #[test]
    fn above_a_directory_others_may_make_their_own() {
        assert_eq!(who_can_change(Place::Above, ROOT), None);
        assert_eq!(who_can_change(Place::Directory, ROOT).as_deref(), Some("AU"));
        let moves = "O:BAD:(A;;DT;;;BU)";
        assert_eq!(who_can_change(Place::Above, moves).as_deref(), Some("BU"));
    }

    #[test]
    fn whoever_owns_it_can_change_it_whatever_the_list_says() {
        assert_eq!(who_can_change(Place::File, "O:BUD:(A;;FA;;;BA)").as_deref(), Some("BU"));
        assert_eq!(who_can_change(Place::File, "O:BAD:(A;;FA;;;BA)S:(ML;;NW;;;HI)"), None);
    }

    #[test]
    fn what_cannot_be_read_is_taken_for_everybody() {
        for sddl in ["", "O:BA", "D:(A;;FA;;;BA)", "O:BAD:NO_ACCESS_CONTROL", "O:BAD:(A;;FA"] {
            assert_eq!(who_can_change(Place::File, sddl).as_deref(), Some("WD"), "{sddl}");
        }
        assert_eq!(who_can_change(Place::File, "O:BAD:(A;;ZZ;;;BU)").as_deref(), Some("BU"));
        assert_eq!(who_can_change(Place::File, "O:BAD:P"), None);
    }

    #[test]
    fn what_is_denied_lets_nobody_in() {
        assert_eq!(who_can_change(Place::File, "O:BAD:(D;;FA;;;WD)(A;;FA;;;SY)"), None);
        assert_eq!(who_can_change(Place::File, "O:BAD:(A;;FR;;;WD)(A;;FW;;;BU)").as_deref(), Some("BU"));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_panic(sddl: String, list in "O:BAD:[(;)A-Z0-9x]{0,40}") {
            let _ = who_can_change(Place::File, &sddl);
            let _ = who_can_change(Place::Above, &list);
        }
    }
}
