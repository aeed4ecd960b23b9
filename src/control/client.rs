//! Asks a running router, from another process: blocking, and with an end to its patience.

use super::local;
use super::protocol::{Answer, Flow, Flows, Line, MOST_FLOWS, Refused, Request, Status, VERSION};
use crate::time::Duration;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Octets of an answer at most.
const LONGEST: u64 = 16 << 20;

/// Why there is no answer.
#[derive(Debug)]
pub enum AskError {
    /// The system's words.
    Io(io::Error),
    /// The router's.
    Refused(Refused),
    /// What came is not what was asked for.
    Answer(String),
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AskError::Io(error) if error.kind() == io::ErrorKind::WouldBlock => {
                write!(f, "no answer in {} s", PATIENCE.as_secs())
            }
            AskError::Io(error) => error.fmt(f),
            AskError::Refused(refused) => f.write_str(&refused.what),
            AskError::Answer(what) => write!(f, "the answer is not understood: {what}"),
        }
    }
}

impl std::error::Error for AskError {}

impl From<io::Error> for AskError {
    fn from(error: io::Error) -> AskError {
        AskError::Io(error)
    }
}

/// A connection to the control socket of a router.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<local::Connection>,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    ///
    /// The system's: nobody listens there, or this user may not.
    pub fn connect(path: &Path) -> io::Result<Client> {
        let stream = local::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    /// What the run is doing.
    ///
    /// # Errors
    ///
    /// See [`AskError`].
    pub fn status(&mut self) -> Result<Status, AskError> {
        self.ask(Request::Status)
    }

    /// Gives all flows to `take`, page after page, until it says `false`.
    ///
    /// # Errors
    ///
    /// See [`AskError`].
    pub fn flows(&mut self, mut take: impl FnMut(Vec<Flow>) -> bool) -> Result<(), AskError> {
        let mut cursor = 0;
        loop {
            let page: Flows = self.ask(Request::Flows { cursor, limit: MOST_FLOWS })?;
            if !take(page.flows) {
                return Ok(());
            }
            match page.next {
                Some(next) if next > cursor => cursor = next,
                Some(_) => return Err(AskError::Answer("the list of flows has no end".into())),
                None => return Ok(()),
            }
        }
    }

    /// Asks for anything.
    ///
    /// # Errors
    ///
    /// See [`AskError`].
    pub fn ask<T: DeserializeOwned>(&mut self, request: Request) -> Result<T, AskError> {
        let mut line = serde_json::to_vec(&Line { v: VERSION, id: None, request })
            .map_err(|error| AskError::Answer(error.to_string()))?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)?;
        let mut text = String::new();
        self.stream.by_ref().take(LONGEST).read_line(&mut text)?;
        if !text.ends_with('\n') {
            return Err(AskError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        read(&text)
    }
}

/// The version alone, since nothing else of another one can be relied on.
#[derive(Deserialize)]
struct Head {
    v: u32,
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, AskError> {
    let wrong = |error: serde_json::Error| AskError::Answer(error.to_string());
    let head: Head = serde_json::from_str(text).map_err(wrong)?;
    if head.v != VERSION {
        return Err(AskError::Answer(format!(
            "it is of version {}, and this program knows {VERSION}",
            head.v
        )));
    }
    let answer: Answer<T> = serde_json::from_str(text).map_err(wrong)?;
    match (answer.ok, answer.error) {
        (Some(ok), None) => Ok(ok),
        (_, Some(refused)) => Err(AskError::Refused(refused)),
        (None, None) => Err(AskError::Answer("it is empty".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::protocol::{Code, Done};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_answer_is_what_was_asked_for_or_why_not() {
        let done: Result<Done, AskError> = read("{\"v\":1,\"ok\":{\"warnings\":[\"w\"],\"later\":1}}\n");
        assert_eq!(done.unwrap().warnings, ["w"]);
        let refused =
            read::<Done>("{\"v\":1,\"error\":{\"code\":\"bad-value\",\"what\":\"w\"}}").unwrap_err();
        assert!(matches!(&refused, AskError::Refused(Refused { code: Code::BadValue, .. })), "{refused:?}");
        let refused =
            read::<Done>("{\"v\":1,\"error\":{\"code\":\"from-later\",\"what\":\"w\"}}").unwrap_err();
        assert!(matches!(&refused, AskError::Refused(Refused { code: Code::Other, .. })), "{refused:?}");
        for text in ["", "{}", "{\"v\":1}", "{\"v\":2,\"ok\":{}}", "{\"v\":1,\"ok\":[]}"] {
            assert!(matches!(read::<Status>(text), Err(AskError::Answer(_))), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(text in "(\\{\"v\":1,\"ok\":)?[ -~]{0,80}") {
            let _: Result<Status, AskError> = read(&text);
        }
    }
}
