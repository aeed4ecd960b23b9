//! What the apps of the demo talk to: one process for each service, each as simple as can be.

use crate::host::process::{Child, fork};
use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};

/// Gives as many octets as the 8 octets of the request say.
pub(super) const SOURCE: u16 = 7001;
/// Takes octets to the end and answers with their number and sum, 8 octets each.
pub(super) const SINK: u16 = 7002;
/// Gives back what it gets: TCP and UDP.
pub(super) const ECHO: u16 = 7;
/// DNS.
pub(super) const DNS: u16 = 53;

/// The answer to every question for an address.
pub(super) const ANSWER: [u8; 4] = [192, 0, 2, 53];

/// Octets that go through a socket at once.
pub(super) const CHUNK: usize = 1 << 17;

/// Starts all services on `addr`.
pub(super) fn start(addr: IpAddr) -> io::Result<Vec<Child>> {
    let mut children = Vec::new();
    for (port, serve) in [(SOURCE, source as fn(TcpStream) -> io::Result<()>), (SINK, sink), (ECHO, echo)] {
        let listener = TcpListener::bind((addr, port))?;
        children.push(fork(move || {
            for stream in listener.incoming() {
                // An app that goes away early is none of the next one's business.
                if let Err(error) = stream.and_then(serve) {
                    log::debug!("target {port}: {error}");
                }
            }
            0
        })?);
    }
    for (port, answer) in [(ECHO, same as fn(&mut [u8], usize) -> Option<usize>), (DNS, resolve)] {
        let socket = UdpSocket::bind((addr, port))?;
        children.push(fork(move || {
            let mut buffer = [0; 2048];
            loop {
                let sent = socket.recv_from(&mut buffer).and_then(|(octets, from)| {
                    match answer(&mut buffer, octets).and_then(|octets| buffer.get(..octets)) {
                        Some(reply) => socket.send_to(reply, from).map(drop),
                        None => Ok(()),
                    }
                });
                if let Err(error) = sent {
                    log::debug!("target {port}: {error}");
                }
            }
        })?);
    }
    Ok(children)
}

/// The octet at `position` of what the source gives and the sink expects: no two neighbouring words are alike.
pub(super) fn fill(chunk: &mut [u8], position: u64) {
    for (index, word) in chunk.chunks_mut(8).enumerate() {
        let number = (position / 8).wrapping_add(index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let octets = number.to_le_bytes();
        let len = word.len();
        word.copy_from_slice(&octets[..len]);
    }
}

fn source(mut stream: TcpStream) -> io::Result<()> {
    let mut size = [0; 8];
    stream.read_exact(&mut size)?;
    let (mut left, mut position) = (u64::from_le_bytes(size), 0);
    let mut chunk = vec![0; CHUNK];
    while left > 0 {
        let octets = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        fill(&mut chunk, position);
        stream.write_all(&chunk[..octets])?;
        left -= octets as u64;
        position += octets as u64;
    }
    Ok(())
}

fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut check = Check::default();
    let mut chunk = vec![0; CHUNK];
    loop {
        let octets = stream.read(&mut chunk)?;
        if octets == 0 {
            break;
        }
        check.add(&chunk[..octets]);
    }
    stream.write_all(&check.position.to_le_bytes())?;
    stream.write_all(&[u8::from(check.good)])
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut chunk = [0; 2048];
    loop {
        let octets = stream.read(&mut chunk)?;
        if octets == 0 {
            return Ok(());
        }
        stream.write_all(&chunk[..octets])?;
    }
}

fn same(_buffer: &mut [u8], octets: usize) -> Option<usize> {
    Some(octets)
}

/// Answers one question (RFC 1035 4.1) with [`ANSWER`].
fn resolve(buffer: &mut [u8], octets: usize) -> Option<usize> {
    // Response, recursion available, one answer.
    *buffer.get_mut(2)? |= 0x80;
    *buffer.get_mut(3)? = 0x80;
    buffer.get_mut(6..8)?.copy_from_slice(&[0, 1]);
    // The name of the question, type A, class IN, 60 s, four octets.
    let record = [0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4];
    let end = octets + record.len();
    buffer.get_mut(octets..end)?.copy_from_slice(&record);
    buffer.get_mut(end..end + 4)?.copy_from_slice(&ANSWER);
    Some(end + 4)
}

/// Compares octets with what they should be, however they are cut.
#[derive(Debug)]
pub(super) struct Check {
    /// Octets seen.
    pub(super) position: u64,
    /// Whether all of them were right.
    pub(super) good: bool,
    expected: Vec<u8>,
}

impl Default for Check {
    fn default() -> Check {
        Check { position: 0, good: true, expected: vec![0; CHUNK + 8] }
    }
}

impl Check {
    /// The next octets.
    pub(super) fn add(&mut self, octets: &[u8]) {
        for part in octets.chunks(CHUNK) {
            let skip = (self.position % 8) as usize;
            let expected = &mut self.expected[..skip + part.len()];
            fill(expected, self.position - skip as u64);
            self.good &= expected[skip..] == *part;
            self.position += part.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_takes_any_cut_and_notices_one_wrong_octet() {
        let mut data = vec![0; 100_003];
        fill(&mut data, 0);
        let cut = |data: &[u8]| {
            let mut check = Check::default();
            for part in data.chunks(997) {
                check.add(part);
            }
            (check.good, check.position)
        };
        assert_eq!(cut(&data), (true, 100_003));
        data[50_001] ^= 1;
        assert!(!cut(&data).0);
    }

    #[test]
    fn a_question_is_answered_behind_itself() {
        let question = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x04ztun\x04demo\0\0\x01\0\x01";
        let mut buffer = [0; 128];
        buffer[..question.len()].copy_from_slice(question);
        let len = resolve(&mut buffer, question.len()).unwrap();
        assert_eq!(len, question.len() + 16);
        assert_eq!(buffer[..4], [0x12, 0x34, 0x81, 0x80]);
        assert_eq!(buffer[len - 4..len], ANSWER);
        assert!(resolve(&mut [0; 4], 4).is_none());
    }
}
