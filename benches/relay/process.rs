//! Processes: started, ended, and what they use of the machine.

use crate::Res;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

/// A process that ends with this value.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    pub(crate) fn start(command: &mut Command, dir: &Path, name: &str) -> Res<Running> {
        let log = dir.join(format!("{name}.log"));
        command.stderr(File::create(&log)?);
        Ok(Running { child: command.spawn()?, log })
    }

    /// Waits for the line `ready` on its standard output.
    pub(crate) fn started(mut self) -> Res<Running> {
        let output = self.child.stdout.take().ok_or("standard output is not piped")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        if line.trim() == "ready" { Ok(self) } else { Err(self.log_tail().into()) }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub(crate) fn has_said(&self, word: &str) -> bool {
        fs::read_to_string(&self.log).is_ok_and(|text| text.contains(word))
    }

    /// The end of what it wrote to standard error.
    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let name = self.log.file_name().unwrap_or_default().to_string_lossy();
        format!("{name}: {}", lines[lines.len().saturating_sub(5)..].join(" | "))
    }
}

impl Drop for Running {
    /// Asks first, so that it cleans up and takes its children along.
    fn drop(&mut self) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap_or(0);
        if pid > 0 {
            // SAFETY: a signal to a child that has not been waited for, so its id is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_secs(5) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The words of `/proc/PID/stat` from the third (the state) on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// CPU seconds of a process, its descendants, and those of them that have ended and were waited for.
pub(crate) fn cpu_of_tree(root: u32) -> f64 {
    // SAFETY: sysconf has no preconditions.
    let hertz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as f64;
    // pid -> (parent, ticks). The kernel may be built without the list of a process's children.
    let mut processes = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Some(words) = stat(pid) else { continue };
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0);
        // Counted from the state: ppid, and utime, stime, cutime, cstime.
        processes.insert(pid, (number(1) as u32, number(11) + number(12) + number(13) + number(14)));
    }
    let mut pids = vec![root];
    let mut ticks = 0.0;
    while let Some(pid) = pids.pop() {
        ticks += processes.get(&pid).map_or(0.0, |(_, ticks)| *ticks);
        pids.extend(processes.iter().filter(|(_, (parent, _))| *parent == pid).map(|(child, _)| *child));
    }
    ticks / hertz
}

/// Resident KB of a process.
pub(crate) fn resident_kb(pid: u32) -> Res<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}
