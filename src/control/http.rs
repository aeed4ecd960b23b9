//! One connection of the metrics' server, without the socket: HTTP/1.1 (RFC 9112), as much as a page needs that is asked for by GET or HEAD.
//!
//! One request, one answer, and the connection ends (RFC 9112 9.6): nothing has to be known of where a body ends. A head has [`LONGEST`]
//! octets and [`HEADERS`] fields at most.

use super::talk::Talk;

/// Octets of the head of a request.
const LONGEST: usize = 8 << 10;
/// Fields in it.
const HEADERS: usize = 64;

/// What can be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Page {
    /// `/metrics`.
    Metrics,
    /// `/healthz`: whether the loop is alive, which the answer proves.
    Health,
    /// `/readyz`: whether traffic can flow.
    Ready,
}

/// An answer's status (RFC 9110 15).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Status {
    Ok,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    TooLarge,
    Unavailable,
}

impl Status {
    const fn line(self) -> &'static str {
        match self {
            Status::Ok => "200 OK",
            Status::BadRequest => "400 Bad Request",
            Status::NotFound => "404 Not Found",
            Status::MethodNotAllowed => "405 Method Not Allowed",
            Status::TooLarge => "431 Request Header Fields Too Large",
            Status::Unavailable => "503 Service Unavailable",
        }
    }
}

const PLAIN: &str = "text/plain; charset=utf-8";

/// The state of one connection.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    input: Vec<u8>,
    /// The answer has no body (RFC 9110 9.3.2).
    head_only: bool,
    output: Vec<u8>,
    written: usize,
    ended: bool,
    over: bool,
}

impl Exchange {
    /// What is asked for. What cannot be had is answered here.
    #[must_use]
    pub(super) fn poll_request(&mut self) -> Option<Page> {
        if self.over {
            return None;
        }
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let refusal = match request.parse(&self.input) {
            Ok(httparse::Status::Partial) if self.input.len() >= LONGEST => Status::TooLarge,
            Ok(httparse::Status::Partial) => {
                self.over = self.ended;
                return None;
            }
            Err(httparse::Error::TooManyHeaders) => Status::TooLarge,
            Err(_) => Status::BadRequest,
            Ok(httparse::Status::Complete(_)) => {
                let method = request.method.unwrap_or_default();
                self.head_only = method == "HEAD";
                let target = request.path.unwrap_or_default();
                let path = target.split('?').next().unwrap_or_default();
                match (method, path) {
                    ("GET" | "HEAD", "/metrics") => return Some(Page::Metrics),
                    ("GET" | "HEAD", "/healthz") => return Some(Page::Health),
                    ("GET" | "HEAD", "/readyz") => return Some(Page::Ready),
                    ("GET" | "HEAD", _) => Status::NotFound,
                    _ => Status::MethodNotAllowed,
                }
            }
        };
        let text = match refusal {
            Status::NotFound => "there are /metrics, /healthz and /readyz\n",
            Status::MethodNotAllowed => "GET and HEAD are allowed\n",
            Status::BadRequest => "this is no HTTP/1.1 request\n",
            Status::TooLarge => "the head of the request is too large\n",
            Status::Ok | Status::Unavailable => "",
        };
        self.answer(refusal, PLAIN, text);
        None
    }

    /// Answers, and takes nothing more.
    pub(super) fn answer(&mut self, status: Status, kind: &str, body: &str) {
        let allow = if status == Status::MethodNotAllowed { "Allow: GET, HEAD\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}Cache-Control: no-store\r\nConnection: close\r\n\r\n",
            status.line(),
            body.len()
        );
        self.output.extend_from_slice(head.as_bytes());
        if !self.head_only {
            self.output.extend_from_slice(body.as_bytes());
        }
        self.input = Vec::new();
        self.over = true;
    }

    /// [`Exchange::answer`] with plain text.
    pub(super) fn answer_plain(&mut self, status: Status, body: &str) {
        self.answer(status, PLAIN, body);
    }
}

impl Talk for Exchange {
    fn room(&self) -> usize {
        if self.over || self.ended { 0 } else { LONGEST.saturating_sub(self.input.len()) }
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
        self.written = self.written.saturating_add(octets);
    }

    fn is_over(&self) -> bool {
        self.over && self.output().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `octets` in pieces of `cut` and answers `Metrics` with `x`: what was written.
    fn fetch(octets: &[u8], cut: usize) -> String {
        let mut exchange = Exchange::default();
        for piece in octets.chunks(cut) {
            if let Some(page) = exchange.poll_request() {
                exchange.answer_plain(Status::Ok, &format!("{page:?}"));
            }
            exchange.handle_input(piece);
            assert!(exchange.input.len() <= LONGEST);
        }
        exchange.handle_end();
        if let Some(page) = exchange.poll_request() {
            exchange.answer_plain(Status::Ok, &format!("{page:?}"));
        }
        let written = String::from_utf8(exchange.output().to_vec()).unwrap();
        exchange.wrote(written.len());
        assert!(exchange.is_over());
        written
    }

    fn status(request: &str) -> String {
        let answer = fetch(request.as_bytes(), 7);
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    }

    #[test]
    fn pages_are_given_by_their_path() {
        assert!(fetch(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 1).ends_with("\r\n\r\nMetrics"));
        assert!(fetch(b"GET /healthz?verbose HTTP/1.0\r\n\r\n", 3).ends_with("\r\n\r\nHealth"));
        let head = fetch(b"HEAD /readyz HTTP/1.1\r\nHost: x\r\n\r\n", 99);
        assert!(head.contains("Content-Length: 5\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[test]
    fn what_cannot_be_had_is_refused_with_the_status_that_says_why() {
        assert_eq!(status("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "404");
        assert_eq!(status("POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), "405");
        assert_eq!(status("\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\r\n\r\n"), "400");
        assert_eq!(status(&format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(LONGEST))), "431");
        assert_eq!(status(&format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(HEADERS + 1))), "431");
        assert_eq!(status("GET /metrics HTTP/1.1\r\n"), "", "half a request is none");
    }

    proptest! {
        #[test]
        fn any_octets_end_in_an_answer_or_in_none(octets in prop::collection::vec(any::<u8>(), 0..300), cut in 1usize..50) {
            fetch(&octets, cut);
        }

        #[test]
        fn a_request_means_the_same_at_any_cut(
            method in prop::sample::select(vec!["GET", "HEAD", "PUT", "G\u{0}T", ""]),
            path in prop::sample::select(vec!["/metrics", "/readyz", "/", "*", "/\u{7f}", ""]),
            fields in prop::collection::vec("[A-Za-z-]{0,6}: ?[ -~]{0,12}", 0..70),
            cut in 1usize..200,
        ) {
            let request = format!("{method} {path} HTTP/1.1\r\n{}\r\n\r\n", fields.join("\r\n"));
            prop_assert_eq!(fetch(request.as_bytes(), cut), fetch(request.as_bytes(), request.len()));
        }
    }
}
