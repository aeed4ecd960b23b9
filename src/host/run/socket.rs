//! Where the control socket of a run is.

use super::lock::RunDir;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

impl RunDir {
    /// The control socket of the run on `device`.
    pub fn control_socket(&self, device: &str) -> PathBuf {
        self.file(device, "sock")
    }

    /// The control sockets of all runs in this network namespace, in the order of their names.
    pub fn control_sockets(&self) -> Vec<PathBuf> {
        // One that cannot be read has none for us.
        let entries = fs::read_dir(self.path()).into_iter().flatten().flatten();
        let sockets = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()));
        let mut paths: Vec<PathBuf> =
            sockets.map(|entry| entry.path()).filter(|path| self.is_own(path)).collect();
        paths.sort();
        paths
    }

    /// Whether a file belongs to this network namespace.
    fn is_own(&self, path: &std::path::Path) -> bool {
        let stem = path.extension().filter(|extension| *extension == "sock").and(path.file_stem());
        let Some(stem) = stem.and_then(|stem| stem.to_str()) else { return false };
        match self.suffix() {
            "" => !stem.contains('@'),
            suffix => stem.ends_with(suffix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_sockets_of_this_namespace_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::at(dir.path().to_owned());
        let (one, two) = (run.control_socket("ztun1"), run.control_socket("ztun0"));
        let _listening = [&one, &two].map(|path| UnixListener::bind(path).unwrap());
        let _foreign = UnixListener::bind(dir.path().join("ztun2@1.sock")).unwrap();
        let _other = UnixListener::bind(dir.path().join("ztun0.lock")).unwrap();
        fs::write(run.control_socket("file"), "").unwrap();
        assert_eq!(run.control_sockets(), [two, one]);
        assert!(RunDir::at(dir.path().join("none")).control_sockets().is_empty());
    }
}
