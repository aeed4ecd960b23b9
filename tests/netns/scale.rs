//! As many flows as descriptors allow through the shipped program: what each costs, that they cost nothing while they are idle, and that the memory
//! comes back. A hundred thousand of them in one engine are in `tests/scale.rs`.

use crate::world::*;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

/// Resident octets of an idle flow, all in all.
const FLOW: u64 = 600;
/// What may stay resident of a peak, KiB: blocks and buffers for what comes next, and what the allocator does not give back.
const LEFT_BEHIND: u64 = 2_048;
/// Enough of them to tell what one costs.
const MOST: u64 = 20_000;

/// Raises this process's limit on open files: the flows that fit, where each has two ends here.
fn flows_that_fit() -> u64 {
    let limit = ztun::driver::limits::raise_open_files(2 * MOST + 1_000).unwrap();
    ((limit - 1_000) / 2).min(MOST)
}

/// A SOCKS5 server that is the target as well, so that a flow has one descriptor here: sends eight octets back once, and holds `count` connections.
fn hold(listener: &TcpListener, count: u64) -> Vec<TcpStream> {
    let mut held = Vec::new();
    // The time limit holds for accept(2) as well (socket(7)).
    socket2::SockRef::from(listener).set_read_timeout(Some(PATIENCE)).unwrap();
    while (held.len() as u64) < count {
        let mut stream = patient(listener.accept().unwrap().0);
        let mut request = [0; 3 + 10];
        // Greeting and request come apart or together.
        stream.read_exact(&mut request[..3]).unwrap();
        stream.write_all(&[5, 0]).unwrap();
        stream.read_exact(&mut request[3..]).unwrap();
        if request[..7] != [5, 1, 0, 5, 1, 0, 1] {
            // Not CONNECT to an IPv4 address: nothing that a flow asks for.
            stream.write_all(&[5, 7, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
            continue;
        }
        stream.write_all(&[5, 0, 0, 1, 10, 0, 0, 1, 0, 9]).unwrap();
        let mut octets = [0; 8];
        stream.read_exact(&mut octets).unwrap();
        stream.write_all(&octets).unwrap();
        held.push(stream);
    }
    held
}

fn open() -> TcpStream {
    let mut stream = patient(TcpStream::connect(format!("{TARGET}:7")).unwrap());
    stream.write_all(b"question").unwrap();
    stream.read_exact(&mut [0; 8]).unwrap();
    stream
}

/// Issue 4: memory of idle flows, and idle CPU.
#[test]
fn thousands_of_idle_flows_cost_little_and_do_nothing() {
    let Some(world) = world() else { return };
    let count = flows_that_fit();
    let listener = world.server.listen(PROXY);
    let server = world.server.spawn(move || {
        let held = hold(&listener, 1 + count);
        (held, listener)
    });
    let mut ztun = world.ztun(&format!("--socks5 {PROXY} --pool 0 --pipeline off --max-tcp 65536"));
    // What the first flow takes, all others use too.
    let first = world.client.inside(open);
    let (empty, descriptors) = (ztun.memory(), ztun.descriptors());
    let apps = world.client.inside(move || (0..count).map(|_| open()).collect::<Vec<_>>());
    let (held, listener) = server.join().unwrap();
    assert_eq!(ztun.descriptors() as u64, descriptors as u64 + count);
    // All of them come to rest.
    let most = empty + count * FLOW / 1_024;
    until("the flows are small", || ztun.memory() <= most);
    let each = (ztun.memory() - empty) * 1_024 / count;
    eprintln!("{count} idle flows: {each} resident octets each");
    // The same moment passes for a loop that does turn.
    let before = ztun.ticks();
    Command::new("sh").args(["-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"]).status().unwrap();
    assert!(ztun.ticks() - before <= 1, "{} ticks of {count} idle flows", ztun.ticks() - before);
    drop((first, apps));
    // The far ends are closed when the near ones were, as a server does that reads end of file.
    for mut stream in held {
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    }
    until("the descriptors are given back", || ztun.descriptors() < descriptors);
    until("the memory comes back", || ztun.memory() <= empty + LEFT_BEHIND);
    eprintln!("{} KiB stay behind", ztun.memory().saturating_sub(empty));
    drop(listener);
    assert_eq!(ztun.stop(), Some(0));
}
