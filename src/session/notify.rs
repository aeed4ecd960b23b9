//! Tells the service manager how far the run is: sd_notify(3), one datagram to the socket named in `NOTIFY_SOCKET`.

use std::io;
use std::os::unix::net::UnixDatagram;

/// Traffic flows.
pub(crate) fn ready() {
    report("READY=1");
}

/// The run is being wound up.
pub(crate) fn stopping() {
    report("STOPPING=1");
}

fn report(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else { return };
    if let Err(error) = send(&path, state) {
        log::warn!("cannot tell the service manager {state}: {error}");
    }
}

fn send(path: &std::ffi::OsStr, state: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::ffi::OsStrExt;
        // A leading @ stands for the NUL of an abstract name.
        if let Some(name) = path.as_bytes().strip_prefix(b"@") {
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            return socket.send_to_addr(state.as_bytes(), &address).map(drop);
        }
    }
    socket.send_to(state.as_bytes(), path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_reaches_a_socket_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "READY=1").unwrap();
        let mut buffer = [0; 32];
        let octets = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..octets], b"READY=1");
        #[cfg(target_os = "linux")]
        {
            use std::os::linux::net::SocketAddrExt;
            let name = format!("ztun-notify-{}", std::process::id());
            let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
            let manager = UnixDatagram::bind_addr(&address).unwrap();
            send(format!("@{name}").as_ref(), "STOPPING=1").unwrap();
            let octets = manager.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..octets], b"STOPPING=1");
        }
        assert!(send(dir.path().join("nobody").as_os_str(), "READY=1").is_err());
    }
}
