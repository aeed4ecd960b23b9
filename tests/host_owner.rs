//! Whose a socket is: processes of this machine that listen, connect, end, and hand sockets on.
//!
//! Between fork and exec a child has all sockets of its parent. So these tests have a process of their own, in which no other test starts a program, and
//! take turns.
#![cfg(all(feature = "os", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use ztun::host::LocalProxy;
use ztun::outbound::rule::Proto;

/// One test at a time.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A child that holds what it was given, until it is dropped.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Starts a process whose standard input is `socket`.
fn hold(socket: impl Into<OwnedFd>) -> Holder {
    let stdin = Stdio::from(socket.into());
    Holder(Command::new("sleep").arg("600").stdin(stdin).spawn().unwrap())
}

#[test]
fn nobody_is_found_where_nobody_listens_or_the_address_is_elsewhere() {
    let _turn = turn();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    assert!(!LocalProxy::find(addr).unwrap().unwrap().is_running());
    assert!(LocalProxy::find("203.0.113.250:1080".parse().unwrap()).unwrap().is_none());
}

#[test]
fn the_listener_and_its_connections_are_found_and_others_are_not() {
    let _turn = turn();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = listener.local_addr().unwrap();
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = target.local_addr().unwrap();
    // Another process serves the address; this one only connects.
    let holder = hold(listener);
    let mut proxy = LocalProxy::find(listen).unwrap().unwrap();
    assert_eq!(proxy.pids().collect::<Vec<_>>(), [holder.0.id()]);
    let app = TcpStream::connect(remote).unwrap();
    let local = app.local_addr().unwrap();
    assert!(!proxy.owns(Proto::Tcp, local, remote));
    // What a child has that it did not have before is noticed.
    let theirs = TcpStream::connect(remote).unwrap();
    let local = theirs.local_addr().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp_local = udp.local_addr().unwrap();
    let _other = hold(theirs);
    assert!(!proxy.owns(Proto::Tcp, local, remote));
    assert!(!proxy.owns(Proto::Udp, udp_local, remote));
    assert!(!proxy.owns(Proto::Icmp, udp_local, remote));
}

#[test]
fn this_process_is_found_with_its_children_tcp_and_udp_and_both_families() {
    let _turn = turn();
    for any in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
        let listener = TcpListener::bind(any).unwrap();
        let mut listen = listener.local_addr().unwrap();
        if listen.ip().is_unspecified() {
            listen.set_ip(if listen.is_ipv4() {
                Ipv4Addr::LOCALHOST.into()
            } else {
                Ipv6Addr::LOCALHOST.into()
            });
        }
        let mut proxy = LocalProxy::find(listen).unwrap().unwrap();
        assert!(proxy.pids().any(|pid| pid == std::process::id()), "{any}");
        let own = TcpStream::connect(listen).unwrap();
        assert!(proxy.owns(Proto::Tcp, own.local_addr().unwrap(), listen), "{any}");
        let udp = UdpSocket::bind(SocketAddr::new(listen.ip(), 0)).unwrap();
        assert!(proxy.owns(Proto::Udp, udp.local_addr().unwrap(), listen), "{any}");
        // A child that was started later and holds the socket alone.
        let theirs = TcpStream::connect(listen).unwrap();
        let local = theirs.local_addr().unwrap();
        let child = hold(theirs);
        assert!(proxy.owns(Proto::Tcp, local, listen), "{any}");
        drop(child);
        assert!(!proxy.owns(Proto::Tcp, local, listen), "{any}");
    }
}

#[test]
fn a_proxy_that_is_started_again_is_found_again() {
    let _turn = turn();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = listener.local_addr().unwrap();
    let first = hold(listener.try_clone().unwrap());
    let second = hold(listener);
    let mut proxy = LocalProxy::find(listen).unwrap().unwrap();
    assert_eq!(proxy.pids().count(), 2);
    drop(first);
    let stream = TcpStream::connect(listen).unwrap();
    assert!(!proxy.owns(Proto::Tcp, stream.local_addr().unwrap(), listen));
    assert_eq!(proxy.pids().collect::<Vec<_>>(), [second.0.id()]);
    drop(second);
    let listener = TcpListener::bind(listen).unwrap();
    let third = hold(listener);
    // The first connection went with the listener that it waited at.
    let stream = TcpStream::connect(listen).unwrap();
    assert!(!proxy.owns(Proto::Tcp, stream.local_addr().unwrap(), listen));
    assert_eq!(proxy.pids().collect::<Vec<_>>(), [third.0.id()]);
}

/// A child of a child, ended by its id.
struct Orphan(u32);

impl Drop for Orphan {
    fn drop(&mut self) {
        let pid = libc::pid_t::try_from(self.0).unwrap();
        // SAFETY: kill takes numbers; the process is this test's own.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

#[test]
fn a_child_that_outlives_the_proxy_does_not_hide_the_next_one() {
    let _turn = turn();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = listener.local_addr().unwrap();
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = target.local_addr().unwrap();
    // Its id is told when it has let go of the listener.
    let script = "sh -c 'echo $$; exec sleep 600 >/dev/null 2>&1' </dev/null & wait";
    let mut first = Holder(
        Command::new("sh")
            .args(["-c", script])
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut child = String::new();
    BufReader::new(first.0.stdout.take().unwrap()).read_line(&mut child).unwrap();
    let child = Orphan(child.trim().parse().unwrap());
    let mut proxy = LocalProxy::find(listen).unwrap().unwrap();
    assert_eq!(proxy.pids().collect::<BTreeSet<_>>(), BTreeSet::from([first.0.id(), child.0]));
    drop(first);
    // Another program takes the address over.
    let listener = TcpListener::bind(listen).unwrap();
    let stream = TcpStream::connect(remote).unwrap();
    let local = stream.local_addr().unwrap();
    let second = Holder(
        Command::new("sleep")
            .arg("600")
            .stdin(OwnedFd::from(listener))
            .stdout(OwnedFd::from(stream))
            .spawn()
            .unwrap(),
    );
    assert!(proxy.owns(Proto::Tcp, local, remote));
    assert_eq!(proxy.pids().collect::<Vec<_>>(), [second.0.id()]);
}

#[test]
fn a_user_that_runs_other_programs_is_not_exclusive() {
    let _turn = turn();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = LocalProxy::find(listener.local_addr().unwrap()).unwrap().unwrap();
    // The process that runs this test has the same user as the one that started it, or is root.
    assert_eq!(proxy.exclusive_uid(), None);
}
