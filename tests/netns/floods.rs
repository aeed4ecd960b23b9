//! More than there is room for: bounded memory, and those who were there keep what they have.

use crate::world::*;

/// F11: SYNs from everywhere that nobody answers for: memory stays bounded, and a connection is made right after.
#[test]
fn a_syn_flood_is_bounded() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    let ztun = world.ztun(&format!("--socks5 {PROXY} --connect-timeout 2s"));
    let mut old = world.client.connect(&format!("{TARGET}:7")).unwrap();
    talk(&mut old).unwrap();
    let before = ztun.memory();
    world.client.inside(|| {
        let raw = socket2::Type::from(libc::SOCK_RAW);
        let protocol = socket2::Protocol::from(libc::IPPROTO_RAW);
        let socket = socket2::Socket::new(socket2::Domain::IPV4, raw, Some(protocol)).unwrap();
        let to: std::net::SocketAddr = "203.0.113.66:0".parse().unwrap();
        for number in 0..100_000_u32 {
            // The kernel fills in the checksum of the IP header, and lengths.
            let mut packet = [0; 40];
            packet[0] = 0x45;
            packet[8..10].copy_from_slice(&[64, 6]);
            packet[12..16].copy_from_slice(&[198, 18, (number >> 8) as u8, (number | 2) as u8]);
            packet[16..20].copy_from_slice(&[203, 0, 113, 66]);
            packet[20..24].copy_from_slice(&[(number >> 10) as u8 | 4, number as u8, 0, 80]);
            packet[24..28].copy_from_slice(&number.to_be_bytes());
            packet[32..36].copy_from_slice(&[0x50, 2, 0xff, 0xff]);
            let sum = checksum(&packet[12..20], &packet[20..40]);
            packet[36..38].copy_from_slice(&sum.to_be_bytes());
            // A full queue of the device drops, as queues do.
            let _ = socket.send_to(&packet, &to.into());
        }
    });
    let grown = ztun.memory().saturating_sub(before);
    assert!(grown < 32 << 10, "{grown} KiB");
    talk(&mut old).unwrap();
    let mut new = world.client.connect(&format!("{TARGET}:7")).unwrap();
    talk(&mut new).unwrap();
}

/// TCP's checksum over the pseudo-header and the segment (RFC 9293 3.1).
fn checksum(addresses: &[u8], segment: &[u8]) -> u16 {
    let words = |octets: &[u8]| -> u32 {
        octets.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum()
    };
    let mut sum = words(addresses) + words(segment) + 6 + segment.len() as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// F12: datagrams from many ports: old mappings make room, memory stays bounded, names are still resolved.
#[test]
fn a_spray_of_datagrams_is_bounded() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    let ztun = world.ztun(&format!("--socks5 {PROXY} --max-udp 200"));
    let before = ztun.memory();
    world.client.inside(|| {
        for _ in 0..5_000 {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            // Refused for an earlier one, perhaps: that is an answer too.
            let _ = socket.send_to(b"spray", (TARGET, 9));
        }
    });
    let grown = ztun.memory().saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB");
    until("old mappings are gone", || ztun.descriptors() < 2 * 200 + 64);
    world.answer(&format!("{TARGET}:53"), |question| {
        let mut answer = question.to_vec();
        answer[2] |= 0x80;
        answer
    });
    let answer = world.client.ok(&format!("dig +tries=1 +time=10 +noedns name.test @{TARGET}"));
    assert!(answer.contains("NOERROR"), "{answer}");
}
