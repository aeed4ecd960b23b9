//! `--pipeline` with servers that exist, and with two that do not cope.

use crate::world::*;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Mutex};

/// More flows than a proxy has to grant before it is worth a trial.
const FLOWS: u16 = 40;

/// So many connections to the target, one after the other, each to a port of its own from `first` on; each gets its echo.
fn flows(world: &World, first: u16) {
    for port in first..first + FLOWS {
        let mut app = world.client.connect(&format!("{TARGET}:{port}")).unwrap();
        talk(&mut app).unwrap();
    }
}

/// What `auto` finds out about each, and that every flow gets its answer meanwhile. microsocks takes what one call of recv(2) gives it for one
/// message.
#[test]
fn the_servers_that_everybody_has_are_told_what_they_can_take() {
    let Some(world) = world() else { return };
    for port in 1_000..1_000 + FLOWS {
        world.echo(&format!("{TARGET}:{port}"));
    }
    type Start = fn(&World, &str) -> Running;
    let servers: [(&str, Start, bool); 3] = [
        ("10.77.0.2:1080", |world, at| world.embedded(&world.server, at), true),
        ("10.77.0.2:1081", |world, at| world.microsocks(&world.server, at), false),
        ("10.77.0.2:1082", |world, at| world.dante(&world.server, at, "nobody"), true),
    ];
    for (at, start, copes) in servers {
        let _server = start(&world, at);
        let mut ztun = world.ztun(&format!("--socks5 {at} --pool 0 --connect-timeout 2s --log-level debug"));
        flows(&world, 1_000);
        until("a trial has shown what the server does", || ztun.log().contains("pipelined requests are"));
        assert_eq!(ztun.log().contains("pipelined requests are understood"), copes, "{at}: {}", ztun.log());
        flows(&world, 1_000);
        assert_eq!(ztun.stop(), Some(0));
        let way = if copes { "on" } else { "off" };
        let mut ztun = world.ztun(&format!("--socks5 {at} --pool 2 --pipeline {way}"));
        flows(&world, 1_000);
        assert_eq!(ztun.stop(), Some(0));
    }
}

/// What a server that answers connections itself has been asked for: commands and ports.
type Heard = Arc<Mutex<Vec<(u8, u16)>>>;

/// A server that takes the first octets for the greeting, whatever came with it, and either throws that away or ends the connection.
fn fussy(world: &World, ends: bool) -> Heard {
    let heard = Heard::default();
    let hears = Arc::clone(&heard);
    world.serve(PROXY, move |mut stream| {
        let octets = stream.read(&mut [0; 512])?;
        if octets == 0 || (ends && octets > 3) {
            return socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO));
        }
        stream.write_all(&[5, 0])?;
        let mut request = [0; 10];
        stream.read_exact(&mut request)?;
        hears.lock().unwrap().push((request[1], u16::from_be_bytes([request[8], request[9]])));
        let reply = if request[1] == 1 { 0 } else { 7 };
        stream.write_all(&[5, reply, 0, 1, 0, 0, 0, 0, 0, 0])?;
        if reply != 0 {
            return stream.shutdown(Shutdown::Both);
        }
        std::io::copy(&mut &stream, &mut &stream).map(drop)
    });
    heard
}

/// Nothing is lost, nothing is asked for twice, and no app waits for what was found out.
#[test]
fn a_server_that_does_not_cope_is_spoken_to_step_by_step() {
    for ends in [true, false] {
        let Some(world) = world() else { return };
        let heard = fussy(&world, ends);
        let mut ztun =
            world.ztun(&format!("--socks5 {PROXY} --connect-timeout 2s --dns off --log-level debug"));
        flows(&world, 1_000);
        until("a trial has failed", || ztun.log().contains("pipelined requests are not understood"));
        flows(&world, 2_000);
        assert_eq!(ztun.stop(), Some(0));
        let mut ports: Vec<u16> = heard
            .lock()
            .unwrap()
            .iter()
            .filter(|(command, _)| *command == 1)
            .map(|(_, port)| *port)
            .collect();
        ports.sort_unstable();
        let wanted: Vec<u16> = (1_000..1_000 + FLOWS).chain(2_000..2_000 + FLOWS).collect();
        assert_eq!(ports, wanted, "each once");
    }
}
