//! Which of the sockets that the system lists is which. Pure.

use super::rows::SeenSocket;
use core::net::{IpAddr, SocketAddr};

/// Whether a socket bound to `bound` takes what is sent to `addr`.
fn serves(bound: IpAddr, addr: IpAddr) -> bool {
    let bound = bound.to_canonical();
    // A socket on `::` takes IPv4 too unless it was told not to.
    bound == addr || bound.is_unspecified() && (bound.is_ipv6() || addr.is_ipv4())
}

/// The processes whose sockets take what is sent to `listen`, each once.
pub(super) fn listeners(sockets: &[SeenSocket], listen: SocketAddr) -> Vec<u32> {
    let takes = |socket: &&SeenSocket| {
        socket.listens && socket.local.port() == listen.port() && serves(socket.local.ip(), listen.ip())
    };
    let mut pids: Vec<u32> = sockets.iter().filter(takes).map(|socket| socket.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// The process whose socket is bound to `local` and connected to `remote`; a datagram socket's other end is not known. One that is bound to that
/// very address comes before one that is bound to all.
pub(super) fn owner(sockets: &[SeenSocket], local: SocketAddr, remote: Option<SocketAddr>) -> Option<u32> {
    let matches = |socket: &&SeenSocket| match remote {
        Some(remote) => socket.remote == remote && socket.local == local,
        None => socket.local.port() == local.port() && serves(socket.local.ip(), local.ip()),
    };
    let found = sockets.iter().filter(matches).max_by_key(|socket| socket.local == local);
    found.map(|socket| socket.pid)
}

/// What decides on a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Around {
    /// Sockets of the machine that listen.
    pub(super) listening: Vec<SeenSocket>,
    /// The machine's addresses.
    pub(super) own: Vec<IpAddr>,
    /// Those of them that are the device's.
    pub(super) device: Vec<IpAddr>,
    /// This process.
    pub(super) process: u32,
}

impl Around {
    /// Whether this is a connection that passes the tunnel by, and would not if it were opened now: it has a process, which is not this one, it leaves the
    /// machine and its link, by another interface than the device, and did not come in.
    pub(super) fn passes_by(&self, socket: &SeenSocket) -> bool {
        let (local, remote) = (socket.local.ip(), socket.remote.ip());
        let link_local = match remote {
            IpAddr::V4(addr) => addr.is_link_local(),
            IpAddr::V6(addr) => addr.is_unicast_link_local(),
        };
        // What has been closed and is not forgotten yet has no process.
        let ours = socket.pid == 0 || socket.pid == self.process;
        let inside = |addr: IpAddr| addr.is_loopback() || self.own.contains(&addr);
        !ours
            && !socket.listens
            && !remote.is_unspecified()
            && !link_local
            && !inside(remote)
            && !local.is_loopback()
            && !self.device.contains(&local)
            && listeners(&self.listening, socket.local).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_go_out_past_the_device_are_closed_and_no_others() {
        let around = Around {
            listening: vec![socket("0.0.0.0:3389", "0.0.0.0:0", 4)],
            own: ["192.168.1.5", "198.18.0.1"].map(|addr| addr.parse().unwrap()).into(),
            device: vec!["198.18.0.1".parse().unwrap()],
            process: 9,
        };
        for (local, remote, pid, closed) in [
            ("192.168.1.5:50000", "203.0.113.9:443", 7, true),
            ("192.168.1.5:50000", "203.0.113.9:443", 9, false),
            ("192.168.1.5:50000", "203.0.113.9:443", 0, false),
            ("198.18.0.1:50000", "203.0.113.9:443", 7, false),
            ("192.168.1.5:3389", "203.0.113.9:50000", 7, false),
            ("192.168.1.5:50000", "192.168.1.5:445", 7, false),
            ("127.0.0.1:50000", "127.0.0.1:445", 7, false),
            ("192.168.1.5:50000", "169.254.1.1:445", 7, false),
            ("0.0.0.0:80", "0.0.0.0:0", 7, false),
        ] {
            assert_eq!(around.passes_by(&socket(local, remote, pid)), closed, "{local} {remote} {pid}");
        }
    }

    fn socket(local: &str, remote: &str, pid: u32) -> SeenSocket {
        let remote = remote.parse().unwrap();
        SeenSocket { local: local.parse().unwrap(), remote, listens: remote.port() == 0, pid }
    }

    #[test]
    fn a_proxy_is_who_listens_at_its_address_or_at_all() {
        let sockets = [
            socket("127.0.0.1:1080", "0.0.0.0:0", 7),
            socket("[::]:1080", "[::]:0", 8),
            socket("0.0.0.0:1080", "0.0.0.0:0", 7),
            socket("[::1]:1080", "[::]:0", 9),
            socket("127.0.0.2:1080", "0.0.0.0:0", 10),
            socket("127.0.0.1:1081", "0.0.0.0:0", 11),
            socket("127.0.0.1:1080", "127.0.0.1:50000", 12),
        ];
        assert_eq!(listeners(&sockets, "127.0.0.1:1080".parse().unwrap()), [7, 8]);
        assert_eq!(listeners(&sockets, "[::1]:1080".parse().unwrap()), [8, 9]);
    }

    #[test]
    fn a_connection_is_known_by_both_its_ends() {
        let sockets = [
            socket("198.18.0.1:50000", "203.0.113.9:443", 7),
            socket("198.18.0.1:50000", "203.0.113.8:443", 8),
        ];
        let ask = |remote: &str| {
            owner(&sockets, "198.18.0.1:50000".parse().unwrap(), Some(remote.parse().unwrap()))
        };
        assert_eq!(ask("203.0.113.8:443"), Some(8));
        assert_eq!(ask("203.0.113.7:443"), None);
    }

    #[test]
    fn a_datagram_is_of_the_socket_that_is_bound_most_exactly() {
        let sockets = [
            socket("198.18.0.1:5000", "0.0.0.0:0", 7),
            socket("0.0.0.0:5000", "0.0.0.0:0", 8),
            socket("[::]:5001", "[::]:0", 9),
        ];
        let ask = |local: &str| owner(&sockets, local.parse().unwrap(), None);
        assert_eq!(ask("198.18.0.1:5000"), Some(7));
        assert_eq!(ask("198.18.0.2:5000"), Some(8));
        assert_eq!(ask("198.18.0.2:5001"), Some(9));
        assert_eq!(ask("198.18.0.2:5002"), None);
    }
}
