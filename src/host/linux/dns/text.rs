//! The text of a resolv.conf(5) of ours: it says whose it is and what was there before, so that it can be undone with nothing else at hand.
//!
//! # Theory of operation
//!
//! ```text
//! # ztun resolv.conf 1 renamed dev ztun0 was file 644 0 0 1700000000.000000007
//! # Names are asked for in the tunnel. Put back when ztun ends, or by: sudo ztun restore
//! #=nameserver 192.168.1.1
//! #=
//! search lan
//! nameserver 198.18.0.2
//! ```
//!
//! The first line names how the file came there, the device, and what was there before: `nothing`, a `link` with its target, or a `file` with its
//! mode, owner, group and time of modification. The content of a file follows, each line behind `#=`; the pieces are those between newlines, so
//! that the last one tells whether the content ended with one.
//!
//! A file with such a first line anywhere in it counts as ours: whatever someone has added, its name servers are gone with the tunnel.

use crate::host::linux::netns;
use core::fmt::Write as _;
use std::net::IpAddr;

/// How every first line begins.
const MARK: &str = "# ztun resolv.conf 1 ";
/// How the lines of the content from before begin.
const QUOTE: &[u8] = b"#=";

/// How a file of ours came into its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum How {
    /// By a rename: what was there before is another file, which may be kept.
    Renamed,
    /// By writing into the file that was there: one that is mounted cannot be replaced.
    Written,
}

/// What was there before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Was {
    /// Nothing.
    Nothing,
    /// A symbolic link to there.
    Link(String),
    /// A file.
    File {
        /// What a rename does not keep.
        meta: Meta,
        /// Its content.
        content: Vec<u8>,
    },
}

/// What belongs to a file besides its content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Meta {
    /// Permissions.
    pub(super) mode: u32,
    /// Owner.
    pub(super) uid: u32,
    /// Group.
    pub(super) gid: u32,
    /// Time of modification: seconds and nanoseconds.
    pub(super) modified: (i64, i64),
}

/// A file of ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Ours {
    /// How it came there.
    pub(super) how: How,
    /// The device that names are asked for behind.
    pub(super) device: String,
    /// What was there before.
    pub(super) was: Was,
}

/// Whose a file is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Whose {
    /// Another program's, or a person's.
    Others,
    /// Ours.
    Ours(Ours),
    /// Ours, but what was there before cannot be read from it.
    Spoilt,
}

impl Ours {
    /// The whole file, with `servers`, and with what else than name servers stands in `found`.
    pub(super) fn emit(&self, servers: &[IpAddr], found: &[u8]) -> Vec<u8> {
        let mut head = format!("{MARK}{} dev {} was ", self.how.name(), self.device);
        let content = match &self.was {
            Was::Nothing => {
                head.push_str("nothing");
                None
            }
            Was::Link(target) => {
                head.push_str("link ");
                head.push_str(target);
                None
            }
            Was::File { meta, content } => {
                let Meta { mode, uid, gid, modified: (seconds, nanoseconds) } = meta;
                // Writing to a text cannot fail.
                let _ = write!(head, "file {mode:o} {uid} {gid} {seconds}.{nanoseconds:09}");
                Some(content)
            }
        };
        let mut octets = head.into_bytes();
        octets.extend_from_slice(
            b"\n# Names are asked for in the tunnel. Put back when ztun ends, or by: sudo ztun restore\n",
        );
        for line in content.iter().flat_map(|content| content.split(|&octet| octet == b'\n')) {
            octets.extend_from_slice(QUOTE);
            octets.extend_from_slice(line);
            octets.push(b'\n');
        }
        let found = String::from_utf8_lossy(found);
        let settings: String =
            found.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
        octets.extend_from_slice(netns::resolv_conf(&settings, servers).as_bytes());
        octets
    }

    /// Whose the file with this content is.
    pub(super) fn parse(octets: &[u8]) -> Whose {
        let mut lines = octets.split(|&octet| octet == b'\n');
        let Some(head) = lines.find_map(|line| line.strip_prefix(MARK.as_bytes())) else {
            return Whose::Others;
        };
        let Some((how, device, was)) = core::str::from_utf8(head).ok().and_then(parse_head) else {
            return Whose::Spoilt;
        };
        let quoted: Vec<&[u8]> = lines.filter_map(|line| line.strip_prefix(QUOTE)).collect();
        let was = match was {
            Was::File { meta, .. } if !quoted.is_empty() => Was::File { meta, content: quoted.join(&b'\n') },
            Was::File { .. } => return Whose::Spoilt,
            Was::Nothing | Was::Link(_) => was,
        };
        Whose::Ours(Ours { how, device: device.into(), was })
    }
}

impl How {
    fn name(self) -> &'static str {
        match self {
            How::Renamed => "renamed",
            How::Written => "written",
        }
    }
}

fn parse_head(head: &str) -> Option<(How, &str, Was)> {
    let (how, rest) = head.split_once(" dev ")?;
    let how = [How::Renamed, How::Written].into_iter().find(|known| known.name() == how)?;
    let (device, was) = rest.split_once(" was ")?;
    if was == "nothing" {
        return Some((how, device, Was::Nothing));
    }
    if let Some(target) = was.strip_prefix("link ") {
        return Some((how, device, Was::Link(target.into())));
    }
    let words: Vec<&str> = was.strip_prefix("file ")?.split(' ').collect();
    let [mode, uid, gid, modified] = words[..] else { return None };
    let (seconds, nanoseconds) = modified.split_once('.')?;
    let meta = Meta {
        mode: u32::from_str_radix(mode, 8).ok()?,
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        modified: (seconds.parse().ok()?, nanoseconds.parse().ok()?),
    };
    Some((how, device, Was::File { meta, content: Vec::new() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn meta() -> impl Strategy<Value = Meta> {
        (0..0o10000_u32, any::<u32>(), any::<u32>(), any::<i64>(), 0..1_000_000_000_i64)
            .prop_map(|(mode, uid, gid, seconds, nano)| Meta { mode, uid, gid, modified: (seconds, nano) })
    }

    fn ours() -> impl Strategy<Value = Ours> {
        let was = prop_oneof![
            Just(Was::Nothing),
            "[a-z./ -]{1,30}".prop_map(Was::Link),
            (meta(), proptest::collection::vec(any::<u8>(), 0..200))
                .prop_map(|(meta, content)| Was::File { meta, content }),
        ];
        let how = proptest::sample::select(&[How::Renamed, How::Written][..]);
        (how, "[a-z][a-z0-9.-]{0,14}", was).prop_map(|(how, device, was)| Ours { how, device, was })
    }

    #[test]
    fn the_file_has_our_servers_and_the_rest_of_what_was_there() {
        let found = b"# a comment\ndomain lan\nnameserver 192.168.1.1\nsearch a b\noptions ndots:2\nsortlist 10.0.0.0";
        let meta = Meta { mode: 0o640, uid: 1, gid: 2, modified: (3, 4) };
        let ours = Ours {
            how: How::Renamed,
            device: "ztun0".into(),
            was: Was::File { meta, content: found.to_vec() },
        };
        let servers = ["198.18.0.2", "fd7a:7a74:756e::2"].map(|server| server.parse().unwrap());
        let text = String::from_utf8(ours.emit(&servers, found)).unwrap();
        let golden = "\
# ztun resolv.conf 1 renamed dev ztun0 was file 640 1 2 3.000000004
# Names are asked for in the tunnel. Put back when ztun ends, or by: sudo ztun restore
#=# a comment
#=domain lan
#=nameserver 192.168.1.1
#=search a b
#=options ndots:2
#=sortlist 10.0.0.0
domain lan
search a b
options ndots:2
sortlist 10.0.0.0
nameserver 198.18.0.2
nameserver fd7a:7a74:756e::2
";
        assert_eq!(text, golden);
    }

    #[test]
    fn a_file_of_others_is_not_ours_and_a_damaged_one_is_spoilt() {
        for text in ["", "nameserver 10.0.0.1\n", "# ztun\n", "#=nameserver 10.0.0.1\n"] {
            assert_eq!(Ours::parse(text.as_bytes()), Whose::Others, "{text}");
        }
        for text in [
            "# ztun resolv.conf 1 \n",
            "# ztun resolv.conf 1 renamed dev ztun0 was file 644 0 0 1.2\nnameserver 10.0.0.1\n",
            "# ztun resolv.conf 1 copied dev ztun0 was nothing\n",
            "# ztun resolv.conf 1 renamed dev ztun0 was file 9 0 0 1.2\n#=\n",
        ] {
            assert_eq!(Ours::parse(text.as_bytes()), Whose::Spoilt, "{text}");
        }
        let added = "nameserver 10.0.0.1\n# ztun resolv.conf 1 renamed dev ztun0 was nothing\n";
        assert!(matches!(Ours::parse(added.as_bytes()), Whose::Ours(Ours { was: Was::Nothing, .. })));
    }

    proptest! {
        #[test]
        fn what_was_there_is_read_back_octet_for_octet(ours in ours(), found in ".{0,80}") {
            let octets = ours.emit(&["198.18.0.2".parse().unwrap()], found.as_bytes());
            prop_assert_eq!(Ours::parse(&octets), Whose::Ours(ours));
        }

        #[test]
        fn any_octets_are_read_without_a_panic(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
            Ours::parse(&octets);
        }
    }
}
