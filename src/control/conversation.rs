//! One connection of the control socket, without the socket: octets in, requests out, answers in, octets out.
//!
//! # Bounds
//!
//! A line has [`LONGEST`] octets at most; one that is longer is answered with an error, and nothing after it is read, since nobody knows where it
//! ends. While an answer waits to be written nothing is read and nothing is asked for ([`Talk::room`] is 0): whoever does not read
//! gets no second answer, so that what is held for one connection is one line and one answer. Blank lines are passed over.

use super::protocol::{Answer, Asked, Code, Id, Refused, VERSION, line, parse};
use super::talk::Talk;
use serde::Serialize;

/// Octets of a line, its end not counted.
pub(super) const LONGEST: usize = 8 << 10;

/// The state of one connection.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    /// What has come and was not yet read as a line.
    input: Vec<u8>,
    /// Octets of `input` that are known to hold no end of a line.
    searched: usize,
    output: Vec<u8>,
    written: usize,
    /// The client sends no more.
    ended: bool,
    /// No more lines are taken.
    over: bool,
}

impl Conversation {
    /// The next request; none before its predecessor's answer is written.
    #[must_use]
    pub(super) fn poll_request(&mut self) -> Option<Asked> {
        while self.output.is_empty() && !self.over {
            let Some(at) = self.input[self.searched..].iter().position(|octet| *octet == b'\n') else {
                self.searched = self.input.len();
                if self.input.len() > LONGEST {
                    self.over = true;
                    self.input = Vec::new();
                    let what = format!("a line has {LONGEST} octets at most");
                    return Some(Asked { id: None, request: Err(Refused { code: Code::TooLong, what }) });
                }
                // A last line without its end is none: it may have been cut off.
                self.over = self.ended;
                return None;
            };
            let end = self.searched + at;
            self.searched = 0;
            let rest = self.input.split_off(end + 1);
            let line = core::mem::replace(&mut self.input, rest);
            let line = line[..end].trim_ascii();
            if !line.is_empty() {
                return Some(parse(line));
            }
        }
        None
    }

    /// Answers a request with what was asked for, or with why not.
    pub(super) fn answer<T: Serialize>(&mut self, id: Option<Id>, result: Result<T, Refused>) {
        let (ok, error) = match result {
            Ok(ok) => (Some(ok), None),
            Err(error) => (None, Some(error)),
        };
        self.output.extend_from_slice(&line(&Answer { v: VERSION, id, ok, error }));
    }
}

impl Talk for Conversation {
    fn room(&self) -> usize {
        // The end of the longest line is one octet more.
        if self.over || self.ended || !self.output.is_empty() {
            return 0;
        }
        (LONGEST + 1).saturating_sub(self.input.len())
    }

    fn handle_input(&mut self, octets: &[u8]) {
        let taken = octets.len().min(self.room());
        self.input.extend_from_slice(&octets[..taken]);
    }

    fn handle_end(&mut self) {
        self.ended = true;
    }

    fn output(&self) -> &[u8] {
        self.output.get(self.written..).unwrap_or_default()
    }

    fn wrote(&mut self, octets: usize) {
        self.written += octets;
        if self.written >= self.output.len() {
            self.output = Vec::new();
            self.written = 0;
        }
    }

    fn is_over(&self) -> bool {
        self.over && self.output.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::protocol::{Done, Request};
    use super::*;
    use proptest::prelude::*;

    /// Feeds `octets` in pieces of the lengths of `cuts`, over and over, and answers everything; the requests and what was written.
    fn talk(octets: &[u8], cuts: &[usize], end: bool) -> (Vec<Asked>, Vec<u8>, Conversation) {
        let mut conversation = Conversation::default();
        let (mut asked, mut written) = (Vec::new(), Vec::new());
        let mut rest = octets;
        let mut cuts = cuts.iter().cycle();
        loop {
            while let Some(request) = conversation.poll_request() {
                assert_eq!(conversation.output(), b"");
                conversation.answer(request.id.clone(), Ok(Done::default()));
                asked.push(request);
                assert_eq!(conversation.room(), 0, "an answer waits");
                while !conversation.output().is_empty() {
                    let piece = (*cuts.next().unwrap()).clamp(1, conversation.output().len());
                    written.extend_from_slice(&conversation.output()[..piece]);
                    conversation.wrote(piece);
                }
            }
            let piece = (*cuts.next().unwrap()).max(1).min(rest.len()).min(conversation.room());
            if piece == 0 {
                break;
            }
            conversation.handle_input(&rest[..piece]);
            rest = &rest[piece..];
            assert!(conversation.input.len() <= LONGEST + 1);
        }
        if end {
            conversation.handle_end();
            assert_eq!(conversation.poll_request(), None);
            assert!(conversation.is_over());
        }
        (asked, written, conversation)
    }

    #[test]
    fn requests_are_answered_one_by_one() {
        let text =
            b"{\"v\":1,\"request\":\"ping\"}\n\r\n  \n{\"v\":1,\"id\":2,\"request\":\"stop\"}\r\n{\"v\":1";
        let (asked, written, conversation) = talk(text, &[3], true);
        assert_eq!(asked.len(), 2);
        assert_eq!(asked[1], Asked { id: Some(Id::Number(2)), request: Ok(Request::Stop) });
        assert_eq!(written, b"{\"v\":1,\"ok\":{}}\n{\"v\":1,\"id\":2,\"ok\":{}}\n");
        assert!(conversation.is_over(), "half a line is none");
    }

    #[test]
    fn the_longest_line_is_read_and_one_octet_more_ends_it() {
        let line = |length: usize| {
            let mut line = b"{\"v\":1,\"request\":\"ping\"".to_vec();
            line.resize(length - 1, b' ');
            line.extend_from_slice(b"}\n{\"v\":1,\"request\":\"stop\"}\n");
            line
        };
        let (asked, _, conversation) = talk(&line(LONGEST), &[1_000], false);
        assert_eq!(asked.iter().filter(|asked| asked.request.is_ok()).count(), 2);
        assert!(!conversation.is_over());
        let (asked, _, conversation) = talk(&line(LONGEST + 1), &[1_000], false);
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0].request.as_ref().unwrap_err().code, Code::TooLong);
        assert!(conversation.is_over());
    }

    #[test]
    fn whoever_does_not_read_is_asked_nothing_more() {
        let mut conversation = Conversation::default();
        conversation.handle_input(b"{\"v\":1,\"request\":\"ping\"}\n{\"v\":1,\"request\":\"ping\"}\n");
        let asked = conversation.poll_request().unwrap();
        conversation.answer(asked.id, Ok(Done::default()));
        assert_eq!(conversation.room(), 0);
        assert_eq!(conversation.poll_request(), None);
        conversation.handle_end();
        assert!(!conversation.is_over());
        conversation.wrote(conversation.output().len());
        let asked = conversation.poll_request().unwrap();
        assert!(!conversation.is_over(), "what is there is answered yet");
        conversation.answer(asked.id, Ok(Done::default()));
        conversation.wrote(conversation.output().len());
        assert!(conversation.poll_request().is_none() && conversation.is_over());
    }

    proptest! {
        /// Any octets, cut anywhere, mean the same, and never more is held than one line.
        #[test]
        fn octets_mean_the_same_at_any_cut(
            lines in prop::collection::vec(
                prop_oneof![
                    Just(b"{\"v\":1,\"request\":\"ping\"}".to_vec()),
                    Just(b"{\"v\":1,\"id\":\"a\",\"request\":\"status\"}".to_vec()),
                    Just(vec![b'x'; LONGEST - 1]),
                    Just(vec![b'x'; LONGEST + 1]),
                    prop::collection::vec(any::<u8>(), 0..300),
                ],
                0..8,
            ),
            cuts in prop::collection::vec(1usize..9_000, 1..8),
            end in any::<bool>(),
        ) {
            let text = lines.join(&b'\n');
            let (asked, written, conversation) = talk(&text, &cuts, end);
            let (asked_at_once, written_at_once, other) = talk(&text, &[LONGEST + 1], end);
            prop_assert_eq!(asked, asked_at_once);
            prop_assert_eq!(written, written_at_once);
            prop_assert_eq!(conversation.is_over(), other.is_over());
        }
    }
}
