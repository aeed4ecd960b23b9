//! One connection to a name server: messages behind their length (RFC 7766 8), many queries in flight.
//!
//! Queries are written one behind the other, each under an id of this connection's own: the low octet is the place in the table of what is in
//! flight, the high one is another each time that the place is used, so that an answer to a query that was given up finds nothing.
//! Answers come in any order.
//!
//! Memory: what is not written yet is bounded by the caller, who looks at [`Stream::backlog`]; what has come holds at most one message.

use crate::dns::message;
use crate::flow::FlowId;

/// Queries in flight on one connection: one octet names them.
pub(super) const WINDOW: usize = 256;
/// Octets in front of a message.
const LENGTH: usize = 2;
/// Octets that are read at once, and kept between messages.
const CHUNK: usize = 4_096;

/// A place in the table of what is in flight.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// The high octet of the id.
    turn: u8,
    query: Option<FlowId>,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Stream {
    /// Queries that were put on it.
    sent: u32,
    /// Answers that have come by it.
    answered: u32,
    in_flight: usize,
    places: Vec<Place>,
    free: Vec<u8>,
    /// Where ids begin.
    first_turn: u8,
    outbox: Vec<u8>,
    written: usize,
    inbox: Vec<u8>,
    /// Octets of `inbox` that have come.
    filled: usize,
    /// Of those, octets of messages that were taken.
    taken: usize,
}

impl Stream {
    /// A connection whose ids begin at `turn`.
    pub(super) fn new(turn: u8) -> Stream {
        Stream {
            sent: 0,
            answered: 0,
            in_flight: 0,
            places: Vec::new(),
            free: Vec::new(),
            first_turn: turn,
            outbox: Vec::new(),
            written: 0,
            inbox: Vec::new(),
            filled: 0,
            taken: 0,
        }
    }

    pub(super) fn sent(&self) -> u32 {
        self.sent
    }

    pub(super) fn answered(&self) -> u32 {
        self.answered
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Octets that wait to be written.
    pub(super) fn backlog(&self) -> usize {
        self.outbox.len() - self.written
    }

    /// Puts a query behind the others; `false`, and nothing is done, when there is no place for it or it is too long.
    #[must_use]
    pub(super) fn push(&mut self, query: FlowId, message: &[u8]) -> bool {
        let Ok(length) = u16::try_from(message.len()) else { return false };
        let Some((_, rest)) = message.split_first_chunk::<2>() else { return false };
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                // The table has at most 256 places.
                let Ok(index) = u8::try_from(self.places.len()) else { return false };
                self.places.push(Place { turn: self.first_turn, query: None });
                index
            }
        };
        let Some(place) = self.places.get_mut(usize::from(index)) else { return false };
        place.turn = place.turn.wrapping_add(1);
        place.query = Some(query);
        let id = [place.turn, index];
        if self.written == self.outbox.len() {
            self.outbox.clear();
            self.written = 0;
        }
        self.outbox.extend_from_slice(&length.to_be_bytes());
        self.outbox.extend_from_slice(&id);
        self.outbox.extend_from_slice(rest);
        self.in_flight += 1;
        self.sent = self.sent.saturating_add(1);
        true
    }

    /// The query that is in flight under `id`.
    pub(super) fn find(&self, id: u16) -> Option<FlowId> {
        let [turn, index] = id.to_be_bytes();
        let place = self.places.get(usize::from(index))?;
        place.query.filter(|_| place.turn == turn)
    }

    /// The query under `id` was answered.
    pub(super) fn answer(&mut self, id: u16) {
        let [_, index] = id.to_be_bytes();
        if self.find(id).is_some()
            && let Some(place) = self.places.get_mut(usize::from(index))
        {
            place.query = None;
            self.free.push(index);
            self.in_flight -= 1;
            self.answered = self.answered.saturating_add(1);
        }
    }

    /// A query is in flight no more. Cost: the table.
    pub(super) fn forget(&mut self, query: FlowId) {
        for (place, index) in self.places.iter_mut().zip(0..=u8::MAX) {
            if place.query == Some(query) {
                place.query = None;
                self.free.push(index);
                self.in_flight -= 1;
            }
        }
    }

    /// Everything that is in flight.
    pub(super) fn queries(&self) -> impl DoubleEndedIterator<Item = FlowId> + '_ {
        self.places.iter().filter_map(|place| place.query)
    }

    /// Octets to be written.
    pub(super) fn output(&self) -> &[u8] {
        self.outbox.get(self.written..).unwrap_or_default()
    }

    /// The first `octets` of [`Stream::output`] were written.
    pub(super) fn wrote(&mut self, octets: usize) {
        self.written = self.written.saturating_add(octets).min(self.outbox.len());
        if self.written == self.outbox.len() {
            self.outbox.clear();
            self.written = 0;
            self.outbox.shrink_to(CHUNK);
        } else if self.written > self.outbox.len() / 2 {
            self.outbox.drain(..self.written);
            self.written = 0;
        }
    }

    /// Room for what comes: never empty, and enough for the rest of the message that has begun.
    pub(super) fn space(&mut self) -> &mut [u8] {
        let wanted = self.message_end().unwrap_or(0).max(self.filled.saturating_add(LENGTH)).max(CHUNK);
        if self.inbox.len() < wanted {
            self.inbox.resize(wanted, 0);
        }
        self.inbox.get_mut(self.filled..).unwrap_or_default()
    }

    /// The first `octets` of [`Stream::space`] were filled.
    pub(super) fn received(&mut self, octets: usize) {
        self.filled = self.filled.saturating_add(octets).min(self.inbox.len());
    }

    /// Where the next message ends, when its length is known.
    fn message_end(&self) -> Option<usize> {
        let length = self.inbox.get(self.taken..self.filled)?.first_chunk::<LENGTH>()?;
        Some(self.taken + LENGTH + usize::from(u16::from_be_bytes(*length)))
    }

    /// The next whole message; `None` when more has to come. Called until then after each [`Stream::received`].
    pub(super) fn next_message(&mut self) -> Option<&mut [u8]> {
        match self.message_end() {
            Some(end) if end <= self.filled => {
                let start = self.taken + LENGTH;
                self.taken = end;
                self.inbox.get_mut(start..end)
            }
            Some(_) | None => {
                self.inbox.copy_within(self.taken..self.filled, 0);
                self.filled -= self.taken;
                self.taken = 0;
                if self.filled <= CHUNK {
                    self.inbox.truncate(CHUNK);
                    self.inbox.shrink_to(CHUNK);
                }
                None
            }
        }
    }
}

/// Whether `message`, which came under the id of `query`, answers it: the question is the same where there is one (RFC 7766 7).
pub(super) fn answers(message: &[u8], query: &[u8]) -> bool {
    let Some(header) = message::header(message) else { return false };
    match (message::question(query), header.counts[0]) {
        _ if !header.answer => false,
        // Servers that refuse or fail may leave the question out.
        (_, 0) | (None, _) => true,
        (Some(asked), _) => {
            message::question(message).is_some_and(|said| message::same_question(asked, said))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn query(n: u64) -> FlowId {
        FlowId::from_bits(n)
    }

    /// The ids under which queries were written.
    fn ids(stream: &mut Stream) -> Vec<u16> {
        let mut ids = Vec::new();
        let mut output = stream.output();
        while let [length0, length1, rest @ ..] = output {
            let (message, rest) = rest.split_at(usize::from(u16::from_be_bytes([*length0, *length1])));
            ids.push(u16::from_be_bytes([message[0], message[1]]));
            output = rest;
        }
        let written = stream.output().len();
        stream.wrote(written);
        ids
    }

    #[test]
    fn ids_are_unique_and_come_back_late() {
        let mut stream = Stream::new(250);
        for n in 0..WINDOW as u64 {
            assert!(stream.push(query(n), b"\x12\x34rest"));
        }
        assert!(!stream.push(query(999), b"\x12\x34rest"), "the table is full");
        let first = ids(&mut stream);
        let mut unique = first.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), WINDOW);
        assert_eq!(stream.find(first[7]), Some(query(7)));
        stream.answer(first[7]);
        assert_eq!(stream.find(first[7]), None);
        for n in 1_000..1_255 {
            assert!(stream.push(query(n), b"\x12\x34rest"));
            let [id] = ids(&mut stream)[..] else { panic!("one query") };
            assert_ne!(id, first[7], "{n}");
            assert_eq!(stream.find(id), Some(query(n)));
            stream.answer(id);
        }
        assert_eq!((stream.in_flight(), stream.sent(), stream.answered()), (255, 511, 256));
        assert_eq!(stream.queries().count(), 255);
    }

    #[test]
    fn what_cannot_be_framed_is_not_taken() {
        let mut stream = Stream::new(0);
        assert!(!stream.push(query(1), &[0; 65_536]));
        assert!(!stream.push(query(1), &[0]));
        assert_eq!((stream.in_flight(), stream.output().len()), (0, 0));
        assert!(stream.push(query(1), &[0; 65_535]));
        assert_eq!(stream.backlog(), 65_537);
    }

    #[test]
    fn an_answer_is_matched_by_its_question_where_it_has_one() {
        let question = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1];
        let mut answer = question;
        assert!(!answers(&answer, &question), "a query answers nothing");
        answer[2] = 0x81;
        assert!(answers(&answer, &question));
        answer[13] = b'A';
        assert!(answers(&answer, &question));
        answer[13] = b'b';
        assert!(!answers(&answer, &question));
        answer[5] = 0;
        assert!(answers(&answer[..12], &question));
        assert!(!answers(&answer[..11], &question));
    }

    proptest! {
        /// Messages of any size come out whole however the connection cuts them, and memory is given back.
        #[test]
        fn messages_come_out_as_they_went_in(
            sizes in prop::collection::vec(prop_oneof![0usize..40, 500usize..9_000], 0..30),
            cuts in prop::collection::vec(1usize..6_000, 1..20),
        ) {
            let messages: Vec<Vec<u8>> =
                sizes.iter().map(|size| (0..*size).map(|n| (n * 7 + size) as u8).collect()).collect();
            let octets: Vec<u8> = messages
                .iter()
                .flat_map(|message| [&(message.len() as u16).to_be_bytes()[..], message].concat())
                .collect();
            let mut stream = Stream::new(0);
            let mut rest = &octets[..];
            let mut came = Vec::new();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let space = stream.space();
                let len = space.len().min(rest.len()).min(*cut);
                space[..len].copy_from_slice(&rest[..len]);
                rest = &rest[len..];
                stream.received(len);
                while let Some(message) = stream.next_message() {
                    came.push(message.to_vec());
                }
            }
            prop_assert_eq!(came, messages);
            prop_assert!(stream.inbox.len() <= CHUNK && stream.filled == 0);
        }
    }
}
