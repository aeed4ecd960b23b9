//! Namespaces: one for the servers, one for each contestant, a veth pair between. They carry this process's id and are removed at the end; what a
//! run that was killed left behind is removed by the next.

use crate::Res;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

const PREFIX: &str = "bench-";

/// Where the targets are, whoever asks. No namespace but the servers' has it.
pub(crate) const TARGET: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);

/// A contestant's device; its default route leads there.
pub(crate) const DEVICE: &str = "bench0";

/// The namespaces of one run.
#[derive(Debug)]
pub(crate) struct Net {
    names: Vec<String>,
}

/// One contestant's namespace.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// Its namespace.
    pub(crate) name: String,
    /// Where its app is: the same, or a namespace of its own.
    pub(crate) app: String,
    /// The servers' end of the pair.
    pub(crate) server: Ipv4Addr,
}

impl Net {
    /// The servers' namespace.
    pub(crate) fn new() -> Res<Net> {
        remove_stale()?;
        let mut net = Net { names: Vec::new() };
        let server = net.namespace("s")?;
        ip(&["-n", &server, "addr", "add", &format!("{TARGET}/32"), "dev", "lo"])?;
        Ok(net)
    }

    pub(crate) fn server(&self) -> &str {
        &self.names[0]
    }

    /// A namespace for the contestant `name`, joined to the servers'; with `inner` another one for its app, which is joined to none.
    pub(crate) fn site(&mut self, name: &str, inner: bool) -> Res<Site> {
        let number = u8::try_from(self.names.len())?;
        let (near, server) = (Ipv4Addr::new(10, 99, number, 2), Ipv4Addr::new(10, 99, number, 1));
        let site = self.namespace(name)?;
        let far = format!("bench-s{number}");
        ip(&[
            "link",
            "add",
            "bench-c",
            "netns",
            &site,
            "type",
            "veth",
            "peer",
            "name",
            &far,
            "netns",
            self.server(),
        ])?;
        for (namespace, device, addr) in [(site.as_str(), "bench-c", near), (self.server(), &far, server)] {
            ip(&["-n", namespace, "addr", "add", &format!("{addr}/24"), "dev", device])?;
            ip(&["-n", namespace, "link", "set", device, "up"])?;
        }
        ip(&["-n", &site, "route", "add", "default", "via", &server.to_string()])?;
        let app = if inner { self.namespace(&format!("{name}-app"))? } else { site.clone() };
        Ok(Site { name: site, app, server })
    }

    fn namespace(&mut self, name: &str) -> Res<String> {
        let name = format!("{PREFIX}{}-{name}", std::process::id());
        ip(&["netns", "add", &name])?;
        self.names.push(name.clone());
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        // Ports must not run out: nearly all of them, and few connections in TIME-WAIT.
        for (key, value) in [
            ("net/ipv4/ip_local_port_range", "2048 65000"),
            ("net/ipv4/tcp_max_tw_buckets", "1000"),
            ("net/ipv4/tcp_max_syn_backlog", "8192"),
            ("net/core/somaxconn", "8192"),
        ] {
            let write = format!("echo '{value}' > /proc/sys/{key}");
            run(within(&name, "sh").args(["-c", &write]))?;
        }
        Ok(name)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in &self.names {
            ip(&["netns", "delete", name]).ok();
        }
    }
}

fn remove_stale() -> Res<()> {
    let list = Command::new("ip").args(["netns", "list"]).output()?;
    for name in String::from_utf8_lossy(&list.stdout).lines().filter_map(|line| line.split(' ').next()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()) {
            ip(&["netns", "delete", name])?;
        }
    }
    Ok(())
}

/// `program` in `namespace`, to be killed when this process ends.
pub(crate) fn within(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, program]).stdin(Stdio::null());
    // SAFETY: prctl is async-signal-safe and touches no memory of this process.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    command
}

/// Runs `ip` with `args`.
pub(crate) fn ip(args: &[&str]) -> Res<()> {
    run(Command::new("ip").args(args)).map(|_| ())
}

/// Runs a command to its end; what it wrote.
pub(crate) fn run(command: &mut Command) -> Res<String> {
    let output = command.stderr(Stdio::piped()).stdout(Stdio::piped()).output()?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        // This program in another role says all that is to be said.
        if let Some(own) = why.trim().strip_prefix(crate::ERROR) {
            return Err(own.into());
        }
        // A path says where it was measured, which is nobody's business.
        let name =
            |arg: &std::ffi::OsStr| Path::new(arg).file_name().unwrap_or(arg).to_string_lossy().into_owned();
        let args: Vec<_> = command.get_args().map(name).collect();
        return Err(format!("{}: {}", args.join(" "), why.trim()).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
