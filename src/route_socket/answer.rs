//! A question to the routing socket and its answer, on a socket where everything else is told as well.
//!
//! The kernel has answered before the write of the question returns. But nobody reads between questions, so what others were told meanwhile stands in
//! front, and when that has left no room the answer is lost without a word. So it is read away first.

use super::{Kind, Message, Request, RouteMessage, encode, messages};
use std::io::{self, ErrorKind, Read, Write};

/// More than any message of the routing socket.
pub(crate) const LONGEST: usize = 2_048;

/// Asks a question, with a number that no earlier one of the process `own` had.
///
/// # Errors
///
/// Why the kernel has no answer; `WouldBlock` when so much was told at this moment that the answer is lost.
pub(super) fn ask(
    socket: &mut (impl Read + Write),
    own: i32,
    question: Request<'_>,
    seq: i32,
) -> io::Result<RouteMessage> {
    let mut buffer = [0; LONGEST];
    loop {
        match next(socket, &mut buffer) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    socket.write_all(&encode(question, seq))?;
    loop {
        let answer = messages(next(socket, &mut buffer)?).find_map(|message| match message {
            Message::Route(route) if route.kind == Kind::Got && route.pid == own && route.seq == seq => {
                Some(route)
            }
            Message::Route(_) | Message::Interface(_) | Message::Address { .. } | Message::Other => None,
        });
        if let Some(answer) = answer {
            return Ok(answer);
        }
    }
}

/// What was told next.
fn next<'b>(socket: &mut impl Read, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
    loop {
        match socket.read(buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => return Ok(buffer.get(..len).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    const OWN: i32 = 77;

    /// A routing socket: what is told stands here until it is read, and what finds no room is lost.
    #[derive(Default)]
    struct Socket {
        told: VecDeque<Vec<u8>>,
        room: usize,
        /// What is told to all before the answer.
        meanwhile: usize,
    }

    impl Socket {
        fn tell(&mut self, mut message: Vec<u8>, pid: i32) {
            message[16..20].copy_from_slice(&pid.to_le_bytes());
            if self.told.len() < self.room {
                self.told.push_back(message);
            }
        }
    }

    fn question() -> Request<'static> {
        Request::Get { to: "203.0.113.7".parse().unwrap(), scope: None }
    }

    impl Write for Socket {
        fn write(&mut self, message: &[u8]) -> io::Result<usize> {
            for _ in 0..self.meanwhile {
                self.tell(message.to_vec(), OWN + 1);
            }
            self.tell(message.to_vec(), OWN);
            Ok(message.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Read for Socket {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let message = self.told.pop_front().ok_or(ErrorKind::WouldBlock)?;
            buffer[..message.len()].copy_from_slice(&message);
            Ok(message.len())
        }
    }

    #[test]
    fn the_answer_is_told_from_what_others_were_answered() {
        let mut socket = Socket { room: 8, meanwhile: 3, ..Socket::default() };
        for seq in 1..4 {
            let answer = ask(&mut socket, OWN, question(), seq).unwrap();
            assert_eq!((answer.pid, answer.seq), (OWN, seq));
        }
    }

    #[test]
    fn what_was_told_since_the_last_question_leaves_room_for_the_answer() {
        let mut socket = Socket { room: 4, ..Socket::default() };
        for _ in 0..9 {
            socket.tell(encode(question(), 1), OWN + 1);
        }
        assert_eq!(ask(&mut socket, OWN, question(), 1).unwrap().pid, OWN);
    }

    #[test]
    fn an_answer_that_is_lost_is_not_waited_for() {
        let mut socket = Socket { room: 4, meanwhile: 4, ..Socket::default() };
        let lost = ask(&mut socket, OWN, question(), 1).unwrap_err();
        assert_eq!(lost.kind(), ErrorKind::WouldBlock);
    }
}
