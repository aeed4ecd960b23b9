//! The machine's side of DNS: what is seen of it, and how it is told, put back, and kept.
//!
//! # Theory of operation
//!
//! Everything is found without a journal: a file of ours by its first line, or by the names beside it; a record of resolvconf by its name; and
//! what systemd-resolved knows of a link goes with the link.
//!
//! A network namespace other than process 1's may share `/etc` with it, wholly (`ip netns exec` without a file of its own), but for the
//! one file that is mounted over it (with one), or not at all (a container). The three are told apart by comparing files with those that process 1
//! sees, symbolic links followed inside of its root: a file that is the same is never touched, and in a directory that is the same nothing is renamed.

use super::super::kernel;
use super::command::Programs;
use super::file::{Place, nameservers};
use super::text::Whose;
use super::{Choice, Dns, Situation, Way, choose};
use crate::host::linux::process::{first_process, in_first_network};
use crate::host::{DnsCheck, Outcome, RunDir};
use std::ffi::CString;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The time that another program may take while a run starts.
const PATIENCE: Duration = Duration::from_secs(3);
/// The same while flows wait for it, or a run ends: that has 3 s for everything.
const SHORT_PATIENCE: Duration = Duration::from_secs(1);
/// The same for resolvconf at the end of a run: it may have other programs to tell, and killed it would leave its file as it was.
const LAST_PATIENCE: Duration = Duration::from_secs(2);
/// The end of the name of every record of ours in resolvconf.
const RECORD: &str = ".ztun";
/// Times that ours is put back before it is left to others.
const PUT_BACKS: u32 = 10;
/// Looks after which one more is allowed: there are several for each time that another program and ours replace each other.
const LOOKS_FOR_ONE_MORE: u32 = 20;

/// Where the parts of the machine's DNS are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Places {
    resolv_conf: PathBuf,
    run_dir: RunDir,
    programs: Programs,
    /// What systemd-resolved writes.
    resolved: PathBuf,
    /// Where the versions of resolvconf keep their records.
    records: Vec<PathBuf>,
    /// What the system says of process 1, or of whoever stands for it.
    first_process: PathBuf,
}

/// Whose the resolv.conf is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Extent {
    /// This network namespace is process 1's.
    First,
    /// This one's alone, with its directory.
    Own,
    /// This one's alone, in a directory that process 1 has as well.
    OwnFile,
    /// Process 1's as well; or nobody can tell.
    Shared,
}

impl Places {
    /// Those of this machine.
    pub fn standard() -> Places {
        let records = ["interface", "interfaces", "keys"].map(|name| Path::new("/run/resolvconf").join(name));
        Places {
            resolv_conf: "/etc/resolv.conf".into(),
            run_dir: RunDir::standard(),
            programs: Programs::standard(),
            resolved: "/run/systemd/resolve".into(),
            records: records.into(),
            // A name that leads nowhere: nobody can tell whose the file is.
            first_process: if in_first_network() {
                "/proc/self".into()
            } else {
                first_process().unwrap_or_default()
            },
        }
    }

    /// Whose the file is.
    fn extent(&self) -> Extent {
        let namespace = |process: &Path| fs::metadata(process.join("ns/net")).map(|found| identity(&found));
        match (namespace(Path::new("/proc/thread-self")), namespace(&self.first_process)) {
            (Ok(own), Ok(first)) if own != first => {}
            (Ok(_), Ok(_)) | (Err(_), _) => return Extent::First,
            (Ok(_), Err(_)) => return Extent::Shared,
        }
        self.extent_beside_first().unwrap_or(Extent::Shared)
    }

    fn extent_beside_first(&self) -> io::Result<Extent> {
        let root = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC)
            .open(self.first_process.join("root"))?;
        let same = |path: &Path| {
            let there = match open_in_root(&root, path) {
                Ok(there) => Some(identity(&there.metadata()?)),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            match fs::metadata(path) {
                Ok(here) => Ok(Some(identity(&here)) == there),
                // Missing on both sides may be the same name in the same directory.
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(there.is_none()),
                Err(error) => Err(error),
            }
        };
        let directory = self.resolv_conf.parent().ok_or(ErrorKind::InvalidInput)?;
        Ok(match (same(directory)?, same(&self.resolv_conf)?) {
            (false, false) => Extent::Own,
            // Nothing there on either side, in different directories.
            (false, true) if fs::metadata(&self.resolv_conf).is_err() => Extent::Own,
            (true, false) => Extent::OwnFile,
            (true | false, true) => Extent::Shared,
        })
    }

    /// The file's place, for as far as it is this network namespace's.
    fn place(&self, extent: Extent) -> Option<Place> {
        let mounted = match extent {
            Extent::First | Extent::Own => false,
            Extent::OwnFile => true,
            Extent::Shared => return None,
        };
        let copy = self.run_dir.file("resolv.conf", "copy");
        Some(Place::new(&self.resolv_conf, copy, mounted))
    }

    /// Whether the file leads to systemd-resolved.
    fn leads_to_resolved(&self, servers: &[IpAddr]) -> bool {
        let stub = |server: &IpAddr| {
            [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(127, 0, 0, 54)].iter().any(|stub| server == stub)
        };
        let linked = || {
            Some(
                fs::canonicalize(&self.resolv_conf).ok()?.starts_with(fs::canonicalize(&self.resolved).ok()?),
            )
        };
        (!servers.is_empty() && servers.iter().all(stub)) || linked().unwrap_or(false)
    }
}

fn identity(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// Opens, to look at it, what `path` means to a process with this root.
fn open_in_root(root: &File, path: &Path) -> io::Result<File> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a structure of numbers may be all zeros.
    let mut how: libc::open_how = unsafe { core::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_IN_ROOT;
    // SAFETY: an open descriptor, a string that ends with NUL, and a live structure with its size.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    let fd = libc::c_int::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the descriptor was just made, and nobody else has it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Looks at the machine's DNS. systemd-resolved is asked whether it is there, which may take a few seconds where it is ill.
pub(in crate::host::linux) fn observe(places: &Places) -> Situation {
    let extent = places.extent();
    let octets = original(places, extent);
    let servers = nameservers(&octets);
    let serves = extent == Extent::First;
    let resolved = serves && places.leads_to_resolved(&servers) && {
        let asked = places.programs.run("resolvectl", &["dns"], "", PATIENCE);
        if let Err(error) = &asked {
            log::debug!("systemd-resolved is not used: {error}");
        }
        asked.is_ok()
    };
    let made = String::from_utf8_lossy(&octets)
        .lines()
        .any(|line| line.starts_with('#') && line.to_ascii_lowercase().contains("generated by resolvconf"));
    let resolvconf = serves && made && places.programs.find("resolvconf").is_some();
    let situation = Situation { own_file: extent != Extent::Shared, resolved, resolvconf, servers };
    match choose(&situation) {
        Choice::Change(way) => {
            log::debug!("names are asked for in the tunnel by way of {}", what(places, way))
        }
        Choice::LeaveToOthers => log::info!(
            "{} is left alone: it is also that of the machine outside this network namespace. \
             Queries to port 53 are captured all the same",
            places.resolv_conf.display()
        ),
        Choice::LeaveAsIs => {
            log::debug!("the name servers are public and reached through the tunnel: left as they are")
        }
    }
    situation
}

/// What resolv.conf says, or said before a run changed it; nothing where it is not this network namespace's.
fn original(places: &Places, extent: Extent) -> Vec<u8> {
    let text = places.place(extent).and_then(|place| place.whose().ok());
    text.map(|(_, octets)| octets).unwrap_or_default()
}

/// The name servers that [`observe`] sees; no other program is asked.
pub(in crate::host::linux) fn servers(places: &Places) -> Vec<IpAddr> {
    nameservers(&original(places, places.extent()))
}

/// Tells the machine its name servers. What fails is a warning, and as before.
pub(in crate::host::linux) fn set(places: &Places, dns: &Dns) -> Outcome {
    let result = match dns.way {
        Way::Resolved => set_resolved(places, dns, PATIENCE),
        Way::Resolvconf => set_resolvconf(places, dns),
        Way::File => match places.place(places.extent()) {
            Some(place) => place.set(&dns.device, &dns.servers),
            None => return Outcome::Already,
        },
    };
    match result {
        Ok(()) => Outcome::Done,
        Err(error) => {
            log::warn!(
                "the machine's DNS stays as it is ({}): {error}; {}. Queries to port 53 are captured all the same",
                what(places, dns.way),
                remedy(dns.way, &error)
            );
            Outcome::Already
        }
    }
}

fn what(places: &Places, way: Way) -> String {
    match way {
        Way::Resolved => "systemd-resolved".into(),
        Way::Resolvconf => "resolvconf".into(),
        Way::File => places.resolv_conf.display().to_string(),
    }
}

fn remedy(way: Way, error: &io::Error) -> &'static str {
    match (way, error.kind()) {
        (Way::Resolved, _) => "see `resolvectl status` and `journalctl -u systemd-resolved`",
        (Way::Resolvconf, _) => "see `resolvconf -l`",
        (Way::File, ErrorKind::ReadOnlyFilesystem) => {
            "make its file system writable, or leave it with --dns off"
        }
        (Way::File, ErrorKind::PermissionDenied) => {
            "run as root; make the file mutable (`chattr -i`); or leave it with --dns off"
        }
        (Way::File, ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => "make room on its disk",
        (Way::File, ErrorKind::InvalidData | ErrorKind::FileTooLarge) => {
            "look at it: it is no usual resolv.conf"
        }
        (Way::File, _) => "look at it and its directory, or leave it with --dns off",
    }
}

/// Puts back what was before [`set`], if it still stands.
///
/// # Errors
///
/// It stands and cannot be undone: what, why and what to try.
pub(in crate::host::linux) fn restore(places: &Places, dns: &Dns) -> io::Result<Outcome> {
    match dns.way {
        Way::Resolved => {
            if kernel::index_of(&dns.device).is_err() {
                return Ok(Outcome::Already);
            }
            match places.programs.run("resolvectl", &["revert", &dns.device], "", SHORT_PATIENCE) {
                Ok(()) => Ok(Outcome::Done),
                Err(error) => {
                    log::warn!("systemd-resolved forgets {} when the device goes: {error}", dns.device);
                    Ok(Outcome::Already)
                }
            }
        }
        Way::Resolvconf => restore_resolvconf(places, dns),
        Way::File => match places.place(places.extent()) {
            Some(place) => place.restore().map_err(|error| {
                let text = format!(
                    "cannot put {} back: {error}; {}, then run `sudo ztun restore`",
                    places.resolv_conf.display(),
                    remedy(Way::File, &error)
                );
                io::Error::new(error.kind(), text)
            }),
            None => Ok(Outcome::Already),
        },
    }
}

/// What a run that died has left of its DNS, found without a journal.
pub(in crate::host::linux) fn leftovers(places: &Places) -> Vec<Dns> {
    let extent = places.extent();
    let mut found = Vec::new();
    if let Some((device, servers)) = places.place(extent).and_then(|place| place.leftover()) {
        found.push(Dns { way: Way::File, device, servers });
    }
    if extent != Extent::First {
        return found;
    }
    for record in records(places) {
        let device = record.strip_prefix("tun.").and_then(|rest| rest.strip_suffix(RECORD));
        let device = device.unwrap_or_default().to_owned();
        let dns = Dns { way: Way::Resolvconf, device, servers: Vec::new() };
        if !found.contains(&dns) {
            found.push(dns);
        }
    }
    found
}

/// The names of our records.
fn records(places: &Places) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for entry in
        places.records.iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten().flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let device = name.strip_prefix("tun.").and_then(|rest| rest.strip_suffix(RECORD));
        if device.is_some_and(|device| !device.is_empty()) && !names.contains(&name) {
            names.push(name);
        }
    }
    names.sort();
    names
}

fn set_resolved(places: &Places, dns: &Dns, limit: Duration) -> io::Result<()> {
    let servers: Vec<String> = dns.servers.iter().map(IpAddr::to_string).collect();
    let mut arguments = vec!["dns", &dns.device];
    arguments.extend(servers.iter().map(String::as_str));
    let run = |arguments: &[&str]| places.programs.run("resolvectl", arguments, "", limit);
    run(&arguments)?;
    // All names belong to this link, before those that other links have said to be theirs.
    run(&["domain", &dns.device, "~."])?;
    // Old versions lack these two, and have no need of them: there the first is the consequence of the domain, and the second is off.
    for optional in [["default-route", &dns.device, "true"], ["dnsovertls", &dns.device, "no"]] {
        if let Err(error) = run(&optional) {
            log::debug!("{error}");
        }
    }
    Ok(())
}

/// The name of the record: Debian's list of interfaces has those that begin with `tun` before those of the machine's network.
fn record_of(dns: &Dns) -> String {
    format!("tun.{}{RECORD}", dns.device)
}

fn set_resolvconf(places: &Places, dns: &Dns) -> io::Result<()> {
    let found = places.place(places.extent()).and_then(|place| place.whose().ok());
    let octets = found.map(|(_, octets)| octets).unwrap_or_default();
    let text = crate::host::linux::netns::resolv_conf(&String::from_utf8_lossy(&octets), &dns.servers);
    // -m 0 -x: with the highest preference, and no others (openresolv).
    places.programs.run("resolvconf", &["-a", &record_of(dns), "-m", "0", "-x"], &text, PATIENCE)
}

fn restore_resolvconf(places: &Places, dns: &Dns) -> io::Result<Outcome> {
    let record = record_of(dns);
    let there = || records(places).contains(&record);
    if !there() {
        return Ok(Outcome::Already);
    }
    let result = places.programs.run("resolvconf", &["-d", &record, "-f"], "", LAST_PATIENCE);
    if !there() {
        return Ok(Outcome::Done);
    }
    let why = result.err().map_or("it is still there".to_owned(), |error| error.to_string());
    Err(io::Error::other(format!("cannot delete the record {record}: {why}; try `resolvconf -d {record}`")))
}

/// Keeps the machine's DNS as it was set, for as long as a run lasts.
#[derive(Debug)]
pub struct Upkeep {
    places: Places,
    dns: Dns,
    /// Times that ours may still be put back.
    put_backs: u32,
    /// Looks since one more was allowed.
    looks: u32,
    unsettled: bool,
    /// That it is left to others has been said.
    said: bool,
}

impl Upkeep {
    /// Of what [`set`] has set; `None` when it failed, or when it keeps itself.
    pub(in crate::host::linux) fn new(places: Places, dns: Dns) -> Option<Upkeep> {
        let upkeep = Upkeep { places, dns, put_backs: PUT_BACKS, looks: 0, unsettled: false, said: false };
        (upkeep.dns.way != Way::Resolvconf && upkeep.stands() == Some(true)).then_some(upkeep)
    }

    /// Looks whether what was set still stands, and puts it back if another program has replaced it. Cost: a few system calls when it stands.
    pub fn check(&mut self) -> DnsCheck {
        self.looks += 1;
        if self.looks == LOOKS_FOR_ONE_MORE {
            (self.looks, self.put_backs) = (0, PUT_BACKS.min(self.put_backs + 1));
        }
        match self.stands() {
            Some(true) => {
                self.unsettled = false;
                self.said &= self.put_backs < PUT_BACKS;
                return DnsCheck::Kept;
            }
            None if !self.unsettled => {
                self.unsettled = true;
                return DnsCheck::Unsettled;
            }
            Some(false) | None => self.unsettled = false,
        }
        let result = match self.put_backs.checked_sub(1) {
            Some(left) => {
                self.put_backs = left;
                self.put_back()
            }
            None => Err(io::Error::other("another program replaces it again and again")),
        };
        let what = what(&self.places, self.dns.way);
        match result {
            Ok(()) => {
                log::info!(
                    "another program has replaced {what}: what it wrote stands when this run has ended"
                );
                DnsCheck::PutBack
            }
            Err(error) => {
                self.put_backs = 0;
                if !core::mem::replace(&mut self.said, true) {
                    log::warn!(
                        "{what} is left as another program wrote it: {error}; stop that program, or use --dns off. \
                         Queries to port 53 are captured all the same"
                    );
                }
                DnsCheck::LeftToOthers
            }
        }
    }

    fn put_back(&self) -> io::Result<()> {
        match self.dns.way {
            Way::Resolved => set_resolved(&self.places, &self.dns, SHORT_PATIENCE),
            Way::Resolvconf => Ok(()),
            Way::File => match self.places.place(self.places.extent()) {
                Some(place) => place.set(&self.dns.device, &self.dns.servers),
                None => Err(io::Error::other("it has become that of another network namespace as well")),
            },
        }
    }

    /// Whether it is as it was set; `None` when there is nothing at all.
    fn stands(&self) -> Option<bool> {
        match self.dns.way {
            Way::Resolved => {
                // It writes the servers of all links there, with every change that it makes.
                let text = fs::read(self.places.resolved.join("resolv.conf")).ok()?;
                let known = nameservers(&text);
                Some(self.dns.servers.iter().all(|server| known.contains(server)))
            }
            Way::Resolvconf => Some(true),
            Way::File => match self.places.place(self.places.extent())?.whose() {
                Ok((Whose::Ours(_), octets)) => Some(nameservers(&octets) == self.dns.servers),
                Ok((Whose::Others, octets)) if octets.is_empty() => None,
                Ok((Whose::Others | Whose::Spoilt, _)) | Err(_) => Some(false),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::command::tests::scripts;
    use super::*;

    const LAN: &str = "nameserver 192.168.1.1\n";

    struct Machine {
        directory: tempfile::TempDir,
        places: Places,
    }

    impl Machine {
        /// One whose resolv.conf has this text, with these programs.
        fn new(text: &str, programs: &[(&str, &str)]) -> Machine {
            let directory = tempfile::tempdir().unwrap();
            let path = |name: &str| directory.path().join(name);
            for name in ["etc", "bin", "run", "resolve", "records"] {
                fs::create_dir(path(name)).unwrap();
            }
            fs::write(path("etc/resolv.conf"), text).unwrap();
            let prelude = format!("cd {}\necho \"$(basename $0) $*\" >> log\n", directory.path().display());
            let texts: Vec<(&str, String)> =
                programs.iter().map(|(name, text)| (*name, format!("{prelude}{text}"))).collect();
            let texts: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (*name, text.as_str())).collect();
            let places = Places {
                resolv_conf: path("etc/resolv.conf"),
                run_dir: RunDir::at(path("run")),
                programs: scripts(&path("bin"), &texts),
                resolved: path("resolve"),
                records: vec![path("none"), path("records")],
                first_process: "/proc/self".into(),
            };
            Machine { directory, places }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn log(&self) -> String {
            fs::read_to_string(self.path("log")).unwrap_or_default()
        }

        fn text(&self) -> String {
            fs::read_to_string(&self.places.resolv_conf).unwrap()
        }

        fn choice(&self) -> Choice {
            choose(&observe(&self.places))
        }
    }

    fn dns(way: Way) -> Dns {
        // The device of every machine.
        let servers = vec!["198.18.0.2".parse().unwrap(), "fd7a:7a74:756e::2".parse().unwrap()];
        Dns { way, device: "lo".into(), servers }
    }

    #[test]
    fn systemd_resolved_is_used_when_the_file_leads_to_it_and_it_answers() {
        let stub = "nameserver 127.0.0.53\noptions edns0\n";
        let machine = Machine::new(stub, &[("resolvectl", "")]);
        assert_eq!(machine.choice(), Choice::Change(Way::Resolved));
        assert_eq!(machine.log(), "resolvectl dns\n");
        assert_eq!(Machine::new(stub, &[]).choice(), Choice::Change(Way::File));
        assert_eq!(Machine::new(stub, &[("resolvectl", "exit 1")]).choice(), Choice::Change(Way::File));
        let elsewhere = Machine::new(LAN, &[("resolvectl", "")]);
        assert_eq!((elsewhere.choice(), elsewhere.log().as_str()), (Choice::Change(Way::File), ""));
        // What it writes with all servers of the machine's.
        fs::remove_file(&elsewhere.places.resolv_conf).unwrap();
        fs::write(elsewhere.path("resolve/resolv.conf"), "nameserver 9.9.9.9\n").unwrap();
        std::os::unix::fs::symlink("../resolve/resolv.conf", &elsewhere.places.resolv_conf).unwrap();
        assert_eq!(elsewhere.choice(), Choice::Change(Way::Resolved));
    }

    #[test]
    fn systemd_resolved_is_told_of_servers_and_all_domains_of_the_link() {
        let machine = Machine::new("", &[("resolvectl", "[ $1 != default-route ]")]);
        let dns = dns(Way::Resolved);
        assert_eq!(set(&machine.places, &dns), Outcome::Done);
        assert_eq!(restore(&machine.places, &dns).unwrap(), Outcome::Done);
        let golden = "\
resolvectl dns lo 198.18.0.2 fd7a:7a74:756e::2
resolvectl domain lo ~.
resolvectl default-route lo true
resolvectl dnsovertls lo no
resolvectl revert lo
";
        assert_eq!(machine.log(), golden);
        let gone = Dns { device: "no-such-device".into(), ..dns };
        assert_eq!(restore(&machine.places, &gone).unwrap(), Outcome::Already);
        assert_eq!(machine.log(), golden);
    }

    #[test]
    fn what_systemd_resolved_refuses_is_no_reason_to_fail() {
        let machine = Machine::new("", &[("resolvectl", "exit 1")]);
        assert_eq!(set(&machine.places, &dns(Way::Resolved)), Outcome::Already);
        assert_eq!(machine.log(), "resolvectl dns lo 198.18.0.2 fd7a:7a74:756e::2\n");
        assert_eq!(restore(&machine.places, &dns(Way::Resolved)).unwrap(), Outcome::Already);
    }

    /// resolvconf as far as it matters here: records, of which the last one by name makes the file.
    const RESOLVCONF: &str = "\
case $1 in -a) cat > records/$2;; -d) rm records/$2;; esac
{ echo '# Generated by resolvconf'; cat $(ls records/* | tail -n 1); } > etc/resolv.conf";

    /// F19
    #[test]
    fn a_record_of_resolvconf_is_made_found_and_deleted() {
        let text = "# Generated by resolvconf\nsearch lan\nnameserver 192.168.1.1\n";
        let machine = Machine::new(text, &[("resolvconf", RESOLVCONF)]);
        fs::write(machine.path("records/eth0"), "search lan\nnameserver 192.168.1.1\n").unwrap();
        assert_eq!(machine.choice(), Choice::Change(Way::Resolvconf));
        let dns = dns(Way::Resolvconf);
        assert_eq!(leftovers(&machine.places), []);
        assert_eq!(set(&machine.places, &dns), Outcome::Done);
        let during =
            "# Generated by resolvconf\nsearch lan\nnameserver 198.18.0.2\nnameserver fd7a:7a74:756e::2\n";
        assert_eq!(machine.text(), during);
        assert_eq!(machine.log(), "resolvconf -a tun.lo.ztun -m 0 -x\n");
        let found = leftovers(&machine.places);
        assert_eq!(found, [Dns { servers: Vec::new(), ..dns.clone() }]);
        assert_eq!(restore(&machine.places, &found[0]).unwrap(), Outcome::Done);
        assert_eq!(machine.text(), text);
        assert_eq!(leftovers(&machine.places), []);
        assert_eq!(restore(&machine.places, &dns).unwrap(), Outcome::Already);
    }

    #[test]
    fn a_record_that_resolvconf_does_not_delete_is_an_error_that_says_what_to_do() {
        let machine = Machine::new(LAN, &[("resolvconf", "echo broken >&2; exit 1")]);
        fs::write(machine.path("records/tun.lo.ztun"), "").unwrap();
        let error = restore(&machine.places, &dns(Way::Resolvconf)).unwrap_err().to_string();
        assert!(error.contains("broken") && error.contains("try `resolvconf -d tun.lo.ztun`"), "{error}");
    }

    #[test]
    fn a_file_that_only_looks_like_resolvconfs_is_replaced() {
        let text = "# Generated by resolvconf\nnameserver 192.168.1.1\n";
        assert_eq!(Machine::new(text, &[]).choice(), Choice::Change(Way::File));
        assert_eq!(Machine::new(LAN, &[("resolvconf", "")]).choice(), Choice::Change(Way::File));
        assert_eq!(Machine::new("nameserver 9.9.9.9\n", &[]).choice(), Choice::LeaveAsIs);
    }

    #[test]
    fn a_network_namespace_with_the_same_file_leaves_everything_alone() {
        let mut machine = Machine::new(LAN, &[("resolvectl", ""), ("resolvconf", RESOLVCONF)]);
        let first = machine.path("first");
        fs::create_dir_all(first.join("ns")).unwrap();
        // Another network namespace, and the same root.
        fs::write(first.join("ns/net"), "").unwrap();
        std::os::unix::fs::symlink("/", first.join("root")).unwrap();
        machine.places.first_process = first.clone();
        assert_eq!(machine.choice(), Choice::LeaveToOthers);
        assert_eq!(set(&machine.places, &dns(Way::File)), Outcome::Already);
        assert_eq!((machine.text().as_str(), machine.log().as_str()), (LAN, ""));
        // The same while the file is that of a run in the other one.
        let home = Places { first_process: "/proc/self".into(), ..machine.places.clone() };
        assert_eq!(set(&home, &dns(Way::File)), Outcome::Done);
        fs::write(machine.path("records/tun.lo.ztun"), "").unwrap();
        let during = machine.text();
        assert_eq!(leftovers(&machine.places), []);
        assert_eq!(restore(&machine.places, &dns(Way::File)).unwrap(), Outcome::Already);
        assert_eq!(machine.text(), during);
        // With another root the file is this one's alone, but for the programs that serve the other.
        fs::remove_file(first.join("root")).unwrap();
        fs::create_dir(first.join("root")).unwrap();
        let found = leftovers(&machine.places);
        assert_eq!(found, [dns(Way::File)]);
        assert_eq!(restore(&machine.places, &found[0]).unwrap(), Outcome::Done);
        assert_eq!(machine.choice(), Choice::Change(Way::File));
    }

    fn kept(machine: &Machine, way: Way) -> Upkeep {
        assert_eq!(set(&machine.places, &dns(way)), Outcome::Done);
        Upkeep::new(machine.places.clone(), dns(way)).unwrap()
    }

    /// F20
    #[test]
    fn what_another_program_writes_is_replaced_and_stands_afterwards() {
        let machine = Machine::new(LAN, &[]);
        let mut upkeep = kept(&machine, Way::File);
        assert_eq!(upkeep.check(), DnsCheck::Kept);
        fs::write(&machine.places.resolv_conf, "search new\nnameserver 172.16.0.1\n").unwrap();
        assert_eq!(upkeep.check(), DnsCheck::PutBack);
        assert!(
            machine.text().ends_with("search new\nnameserver 198.18.0.2\nnameserver fd7a:7a74:756e::2\n")
        );
        assert_eq!(upkeep.check(), DnsCheck::Kept);
        assert_eq!(restore(&machine.places, &dns(Way::File)).unwrap(), Outcome::Done);
        assert_eq!(machine.text(), "search new\nnameserver 172.16.0.1\n");
    }

    /// F20
    #[test]
    fn a_file_that_is_missing_for_a_moment_is_waited_for() {
        let machine = Machine::new(LAN, &[]);
        let mut upkeep = kept(&machine, Way::File);
        fs::remove_file(&machine.places.resolv_conf).unwrap();
        assert_eq!(upkeep.check(), DnsCheck::Unsettled);
        fs::write(&machine.places.resolv_conf, "").unwrap();
        assert_eq!(upkeep.check(), DnsCheck::PutBack);
        fs::remove_file(&machine.places.resolv_conf).unwrap();
        assert_eq!((upkeep.check(), upkeep.check()), (DnsCheck::Unsettled, DnsCheck::PutBack));
        assert_eq!(restore(&machine.places, &dns(Way::File)).unwrap(), Outcome::Done);
        assert!(fs::symlink_metadata(&machine.places.resolv_conf).is_err());
    }

    #[test]
    fn a_program_that_never_stops_is_left_its_file_and_not_for_ever() {
        let machine = Machine::new(LAN, &[]);
        let mut upkeep = kept(&machine, Way::File);
        let mut checks = Vec::new();
        for _ in 0..100 {
            fs::write(&machine.places.resolv_conf, LAN).unwrap();
            checks.push(upkeep.check());
        }
        assert!(checks[..10].iter().all(|check| *check == DnsCheck::PutBack), "{checks:?}");
        let later = checks[10..].iter().filter(|check| **check == DnsCheck::PutBack).count();
        assert!((1..=5).contains(&later), "{checks:?}");
        assert!(checks[10..].iter().all(|check| matches!(check, DnsCheck::PutBack | DnsCheck::LeftToOthers)));
    }

    #[test]
    fn servers_that_systemd_resolved_has_forgotten_are_told_again() {
        let remember = "[ $1 = dns ] && printf 'nameserver %s\\n' $3 $4 > resolve/resolv.conf; true";
        let machine = Machine::new("nameserver 127.0.0.53\n", &[("resolvectl", remember)]);
        let mut upkeep = kept(&machine, Way::Resolved);
        assert_eq!(upkeep.check(), DnsCheck::Kept);
        fs::write(machine.path("resolve/resolv.conf"), LAN).unwrap();
        assert_eq!((upkeep.check(), upkeep.check()), (DnsCheck::PutBack, DnsCheck::Kept));
    }

    #[test]
    fn what_was_not_set_is_not_kept() {
        let machine = Machine::new(LAN, &[("resolvectl", "")]);
        assert!(Upkeep::new(machine.places.clone(), dns(Way::File)).is_none());
        assert!(Upkeep::new(machine.places.clone(), dns(Way::Resolved)).is_none());
        assert!(Upkeep::new(machine.places.clone(), dns(Way::Resolvconf)).is_none());
    }
}
