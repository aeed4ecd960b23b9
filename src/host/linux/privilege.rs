//! What this process may do: no more than a run needs, from before it begins.
//!
//! # Theory of operation
//!
//! A router is started by root and speaks with strangers. Whoever found a way to have it do what he wants would have all that root has; so before the
//! first thread is started and the first packet read, [`confine`] gives up every capability (capabilities(7)) that the run will not use, for
//! this process and for what it starts, and for good: permitted, effective, inheritable, ambient and bounding set, and no_new_privs (prctl(2)), with
//! which no program that is started gains any.
//!
//! [`needed`] says what a run uses, which follows from what it is to do:
//!
//! | capability | for what | when |
//! |---|---|---|
//! | `CAP_NET_ADMIN` | the device, routes, rules, marks, closing connections | always |
//! | `CAP_SYS_PTRACE`, `CAP_DAC_READ_SEARCH` | which process holds a socket (/proc/PID/fd of other users); whether this is the machine's own network (/proc/1/ns) | routes are set |
//! | `CAP_DAC_OVERRIDE`, `CAP_CHOWN`, `CAP_FOWNER` | `resolv.conf` made again as it was, whosever it is | routes are set, and the machine's DNS with them |
//! | `CAP_NET_BIND_SERVICE` | a port below 1024 | metrics are served there |
//!
//! A process of root that has given them up still owns root's files. What is left to do about that is the service manager's:
//! `contrib/systemd/ztun.service`.
//!
//! Capabilities belong to threads: what one gives up another keeps. [`confine`] is for a process that has one thread yet.

use crate::config::HostPlanConfig;
use core::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;

/// Capabilities by their numbers (linux/capability.h).
const NAMES: [(u32, &str); 8] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (2, "CAP_DAC_READ_SEARCH"),
    (3, "CAP_FOWNER"),
    (8, "CAP_SETPCAP"),
    (10, "CAP_NET_BIND_SERVICE"),
    (12, "CAP_NET_ADMIN"),
    (19, "CAP_SYS_PTRACE"),
];

/// A set of capabilities, one bit for each number.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(u64);

impl Capabilities {
    /// None.
    pub const NONE: Capabilities = Capabilities(0);
    /// Changing file owners.
    pub const CHOWN: Capabilities = Capabilities(1 << 0);
    /// Files of others, whatever their mode.
    pub const DAC_OVERRIDE: Capabilities = Capabilities(1 << 1);
    /// Reading files and directories of others, whatever their mode.
    pub const DAC_READ_SEARCH: Capabilities = Capabilities(1 << 2);
    /// Modes and times of files of others.
    pub const FOWNER: Capabilities = Capabilities(1 << 3);
    /// Giving up bounding capabilities.
    const SETPCAP: Capabilities = Capabilities(1 << 8);
    /// Ports below 1024.
    pub const NET_BIND_SERVICE: Capabilities = Capabilities(1 << 10);
    /// Devices, routes, rules, marks.
    pub const NET_ADMIN: Capabilities = Capabilities(1 << 12);
    /// Looking into processes of others.
    pub const SYS_PTRACE: Capabilities = Capabilities(1 << 19);

    /// Those of both.
    #[must_use]
    pub const fn with(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 | other.0)
    }

    /// Those that both have.
    #[must_use]
    pub const fn and(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 & other.0)
    }

    /// Whether all of `other` are among them.
    pub const fn contains(self, other: Capabilities) -> bool {
        self.0 & other.0 == other.0
    }

    const fn has(self, number: u32) -> bool {
        self.0 & (1 << number) != 0
    }
}

impl fmt::Display for Capabilities {
    /// Names of those that this program knows, numbers of the others.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = (0..u64::BITS).filter(|number| self.has(*number));
        let name = |number: u32| {
            let known = NAMES.iter().find(|(other, _)| *other == number);
            known.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned())
        };
        let names: Vec<String> = numbers.map(name).collect();
        f.write_str(if names.is_empty() { "none" } else { "" })?;
        f.write_str(&names.join(" "))
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capabilities({self})")
    }
}

/// What a run of `host` that serves metrics at `metrics` uses.
pub fn needed(host: &HostPlanConfig, metrics: Option<SocketAddr>) -> Capabilities {
    let mut needed = Capabilities::NET_ADMIN;
    if !host.no_route {
        let processes = Capabilities::SYS_PTRACE.with(Capabilities::DAC_READ_SEARCH);
        let files = Capabilities::DAC_OVERRIDE.with(Capabilities::CHOWN).with(Capabilities::FOWNER);
        needed = needed.with(processes).with(files);
    }
    if metrics.is_some_and(|addr| (1..1_024).contains(&addr.port())) {
        needed = needed.with(Capabilities::NET_BIND_SERVICE);
    }
    needed
}

/// Keeps `wanted`, as far as this process has them, and gives up all other capabilities for good; what is left.
///
/// # Errors
///
/// The kernel refuses. What was given up until then stays so.
pub fn confine(wanted: Capabilities) -> io::Result<Capabilities> {
    let have = current()?;
    let keep = have.and(wanted);
    no_new_privileges()?;
    clear_ambient()?;
    if have.contains(Capabilities::SETPCAP) {
        // Beyond the last that the kernel knows it says EINVAL.
        for number in (0..u64::BITS).filter(|number| !keep.has(*number)) {
            if !drop_bounding(number)? {
                break;
            }
        }
    }
    set(keep)?;
    Ok(keep)
}

/// The permitted capabilities of this thread.
///
/// # Errors
///
/// The kernel's.
pub fn current() -> io::Result<Capabilities> {
    let mut data = [Data::default(); 2];
    capability_call(libc::SYS_capget, &mut data)?;
    Ok(Capabilities(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32))
}

fn set(keep: Capabilities) -> io::Result<()> {
    // The lower and the upper 32 numbers.
    let half = |bits: u64| {
        let bits = bits as u32;
        Data { effective: bits, permitted: bits, inheritable: 0 }
    };
    capability_call(libc::SYS_capset, &mut [half(keep.0), half(keep.0 >> 32)])
}

/// `struct __user_cap_header_struct` of linux/capability.h.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct` of linux/capability.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`: two structs of data.
const VERSION_3: u32 = 0x2008_0522;

fn capability_call(call: libc::c_long, data: &mut [Data; 2]) -> io::Result<()> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    // SAFETY: both calls take a header and, for this version, two structs of data, all of them live, writable and laid out as the kernel has them.
    let result = unsafe { libc::syscall(call, &raw mut header, data.as_mut_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn no_new_privileges() -> io::Result<()> {
    // SAFETY: this request takes numbers only.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn clear_ambient() -> io::Result<()> {
    // SAFETY: this request takes numbers only.
    let result = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(()),
        // A kernel before 4.3 has no ambient set.
        error if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        error => Err(error),
    }
}

/// `false` when the kernel knows no capability of that number.
fn drop_bounding(number: u32) -> io::Result<bool> {
    // SAFETY: this request takes numbers only.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(true),
        error if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        error => Err(error),
    }
}

/// Whether this process has one thread only. When the system does not tell, it has not.
pub fn has_one_thread() -> bool {
    fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(change: impl FnOnce(&mut HostPlanConfig)) -> HostPlanConfig {
        let mut host = HostPlanConfig::default();
        change(&mut host);
        host
    }

    #[test]
    fn a_run_needs_what_it_is_to_do() {
        let all = needed(&host(|_| {}), Some("127.0.0.1:9100".parse().unwrap()));
        assert_eq!(
            all.to_string(),
            "CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_NET_ADMIN CAP_SYS_PTRACE"
        );
        assert_eq!(needed(&host(|host| host.no_route = true), None), Capabilities::NET_ADMIN);
        let low = needed(&host(|host| host.no_route = true), Some("127.0.0.1:80".parse().unwrap()));
        assert_eq!(low.to_string(), "CAP_NET_BIND_SERVICE CAP_NET_ADMIN");
    }

    #[test]
    fn sets_are_told_by_name_and_by_number() {
        assert_eq!(Capabilities::NONE.to_string(), "none");
        assert_eq!(Capabilities(1 << 12 | 1 << 40).to_string(), "CAP_NET_ADMIN 40");
    }

    /// What a thread gives up is its own: the others keep theirs, so this test harms none.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "a thread gives its capabilities up for good")]
    fn what_is_given_up_is_gone_for_good() {
        let status = |name: &str| {
            let text = fs::read_to_string("/proc/thread-self/status").unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap()
        };
        let thread = std::thread::spawn(move || {
            let before = current().unwrap();
            let kept = confine(Capabilities::NET_ADMIN).unwrap();
            assert_eq!(kept, before.and(Capabilities::NET_ADMIN));
            assert_eq!(current().unwrap(), kept);
            for set in ["CapPrm", "CapEff"] {
                assert_eq!(status(set), kept.0, "{set}");
            }
            assert_eq!((status("CapInh"), status("CapAmb")), (0, 0));
            if before.contains(Capabilities::SETPCAP) {
                assert_eq!(status("CapBnd"), kept.0);
            }
            assert_eq!(status("NoNewPrivs"), 1);
            // It cannot be had again, neither here nor by a program that root starts.
            assert!(set(before).is_err() || before == kept);
            let child = std::process::Command::new("cat").arg("/proc/self/status").output().unwrap();
            let child = String::from_utf8(child.stdout).unwrap();
            let line = child.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
            assert_eq!(u64::from_str_radix(line.trim(), 16).unwrap() & !kept.0, 0);
            // A second time changes nothing.
            assert_eq!(confine(Capabilities::NET_ADMIN).unwrap(), kept);
        });
        thread.join().unwrap();
        assert!(!has_one_thread());
    }
}
