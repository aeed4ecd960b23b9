//! Where the control socket of a run is: a named pipe, whose name [`control`](crate::control) makes of this path.

use super::lock::RunDir;
use std::fs;
use std::path::PathBuf;

impl RunDir {
    /// The control socket of the run on `device`.
    pub fn control_socket(&self, device: &str) -> PathBuf {
        self.file(device, "sock")
    }

    /// The control sockets of all runs, in the order of their names: each has the lock of its device.
    pub fn control_sockets(&self) -> Vec<PathBuf> {
        // One that cannot be read has none for us.
        let entries = fs::read_dir(self.path()).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> =
            entries.map(|entry| entry.path()).filter(|path| is_lock(path)).collect();
        paths.iter_mut().for_each(|path| {
            path.set_extension("sock");
        });
        paths.sort();
        paths
    }
}

/// Whether this is the lock of a device, and not that of the routes.
fn is_lock(path: &std::path::Path) -> bool {
    let device = path.file_stem().is_some_and(|stem| !stem.to_string_lossy().starts_with('.'));
    device && path.extension().is_some_and(|extension| extension == "lock")
}

#[cfg(test)]
mod tests {
    use super::super::lock::Lock;
    use super::*;

    /// Under wine directories belong to no administrators.
    #[test]
    fn on_windows_a_run_is_found_by_the_lock_of_its_device() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::at(dir.path().join("run"));
        let _locks = [
            Lock::device(&run, "ztun1").unwrap(),
            Lock::device(&run, "ztun0").unwrap(),
            Lock::routes(&run).unwrap(),
        ];
        assert_eq!(run.control_sockets(), [run.control_socket("ztun0"), run.control_socket("ztun1")]);
        assert!(RunDir::at(dir.path().join("none")).control_sockets().is_empty());
    }
}
