//! `ztun top`: what flows, repainted every second, until q or Ctrl-C.
//!
//! One picture is a status and the flows that moved the most octets since the last one. It is made as text and cut to the terminal, then written
//! at once over the old one, so that nothing flickers. The terminal's other screen is used: what was there comes back at the end.

use super::Error;
use super::ask::{FLOW_HEAD, connect, failed, flow_line, octets, status_text};
use super::options::WhereOptions;
use crate::control::client::{AskError, Client};
use crate::control::protocol::{Flow, Status};
use crate::driver::terminal::{self, Terminal, Wake};
use crate::time::Duration;
use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;

/// Time between two pictures.
const EVERY: Duration = Duration::from_secs(1);
/// Flows that are asked for: a table that is larger than that is sampled from its start.
const MOST: usize = 16_384;

/// Other screen, cursor hidden; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// To the upper left corner.
const HOME: &str = "\x1b[H";
/// The rest of the line, the rest of the screen.
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// Keys that end it: q, Ctrl-C, Ctrl-D, escape.
const QUIT: [u8; 5] = [b'q', b'Q', 3, 4, 27];

pub(super) fn top(place: &WhereOptions) -> Result<u8, Error> {
    if !io::stdout().is_terminal() {
        return Err(Error {
            code: 1,
            what: "`ztun top` paints on a terminal, and standard output is none".into(),
            remedy: Some("`ztun status --json` and `ztun flows --json` are for programs".into()),
        });
    }
    let (mut client, path) = connect(place)?;
    let terminal =
        |error: io::Error| Error::system(1, "the terminal cannot be used", &error, "`ztun status`");
    let mut keys = Terminal::open().map_err(terminal)?;
    let ended = write(ENTER).and_then(|()| paint(&mut client, &mut keys));
    // Back first, then the error, which would be lost on the other screen.
    let left = write(LEAVE);
    keys.close();
    match ended.and_then(|asked| left.map(|()| asked)) {
        Ok(Ok(())) => Ok(0),
        Ok(Err(error)) => Err(failed(&path, &error)),
        Err(error) => Err(terminal(error)),
    }
}

/// Paints until a key ends it.
fn paint(client: &mut Client, keys: &mut Terminal) -> io::Result<Result<(), AskError>> {
    let mut before = Picture::default();
    loop {
        let picture = match Picture::ask(client) {
            Ok(picture) => picture,
            Err(error) => return Ok(Err(error)),
        };
        let (columns, rows) = terminal::size().unwrap_or((80, 24));
        write(&frame(&picture.lines(&before), columns, rows))?;
        before = picture;
        match keys.wait(EVERY)? {
            Wake::Key(key) if QUIT.contains(&key) => return Ok(Ok(())),
            Wake::Signal => return Ok(Ok(())),
            // Any other key repaints at once.
            Wake::Key(_) | Wake::Timeout => {}
        }
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Lines cut to a screen, painted over what is there.
fn frame(lines: &[String], columns: usize, rows: usize) -> String {
    let mut text = HOME.to_owned();
    for (row, line) in lines.iter().take(rows).enumerate() {
        if row > 0 {
            text.push_str("\r\n");
        }
        // What comes from the router are addresses and words; a terminal takes no orders from them all the same.
        text.extend(line.chars().filter(|c| !c.is_control()).take(columns));
        text.push_str(CLEAR_LINE);
    }
    text.push_str(CLEAR_BELOW);
    text
}

/// What tells one flow from another.
type Key = (String, SocketAddr, SocketAddr);

#[derive(Default)]
struct Picture {
    status: Option<Status>,
    flows: Vec<Flow>,
}

impl Picture {
    fn ask(client: &mut Client) -> Result<Picture, AskError> {
        let status = Some(client.status()?);
        let mut flows = Vec::new();
        client.flows(|page| {
            flows.extend(page);
            flows.len() < MOST
        })?;
        Ok(Picture { status, flows })
    }

    /// The octets of each flow.
    fn totals(&self) -> BTreeMap<Key, (u64, u64)> {
        self.flows.iter().map(|flow| (key(flow), (flow.up, flow.down))).collect()
    }

    /// Everything there is to paint, the busiest flows first.
    fn lines(&self, before: &Picture) -> Vec<String> {
        let Some(status) = &self.status else { return Vec::new() };
        let mut lines: Vec<String> = status_text(status).lines().map(str::to_owned).collect();
        if let Some(old) = &before.status {
            let rate = |name: &str| {
                let count = |status: &Status| status.counters.get(name).copied().unwrap_or(0);
                let millis = status.uptime_ms.saturating_sub(old.uptime_ms).max(1);
                count(status).saturating_sub(count(old)).saturating_mul(1_000) / millis
            };
            let (up, down) = (octets(rate("upload_bytes")), octets(rate("download_bytes")));
            lines.push(format!("{:<9}{up}/s up, {down}/s down", "now"));
        }
        lines.push(String::new());
        lines.push(FLOW_HEAD.into());
        let totals = before.totals();
        let mut flows: Vec<(u64, &Flow)> =
            self.flows.iter().map(|flow| (moved(flow, totals.get(&key(flow)).copied()), flow)).collect();
        flows.sort_by_key(|(moved, flow)| (core::cmp::Reverse(*moved), flow.idle_ms, flow.app));
        lines.extend(flows.into_iter().map(|(_, flow)| flow_line(flow)));
        lines
    }
}

fn key(flow: &Flow) -> Key {
    (flow.proto.clone(), flow.app, flow.to)
}

/// Octets since a flow was `before`; a successor with the same ends has fewer than its predecessor.
fn moved(flow: &Flow, before: Option<(u64, u64)>) -> u64 {
    let (up, down) = before.unwrap_or_default();
    let since = |octets: u64, before: u64| octets.checked_sub(before).unwrap_or(octets);
    since(flow.up, up).saturating_add(since(flow.down, down))
}

#[cfg(test)]
mod tests {
    use super::super::ask::tests::{a_flow, a_status};
    use super::*;

    fn picture(octets: [u64; 2]) -> Picture {
        let busy = Flow { app: "198.18.0.1:2".parse().unwrap(), ..a_flow(octets[1]) };
        Picture { status: Some(a_status()), flows: vec![a_flow(octets[0]), busy] }
    }

    #[test]
    fn the_busiest_flow_comes_first_and_rates_are_told() {
        let before = picture([9_000, 10]);
        let mut after = picture([9_001, 20]);
        if let Some(status) = &mut after.status {
            status.uptime_ms += 2_000;
            status.counters.insert("download_bytes".into(), (5 << 30) + 4_096);
        }
        let lines = after.lines(&before);
        assert!(lines.iter().any(|line| line == "now      0 B/s up, 2.0 KiB/s down"), "{lines:?}");
        let at = lines.iter().position(|line| line == FLOW_HEAD).unwrap();
        assert!(lines[at + 1].contains("198.18.0.1:2 "), "{lines:?}");
        assert!(!picture([1, 2]).lines(&Picture::default()).iter().any(|line| line.starts_with("now")));
    }

    #[test]
    fn a_picture_is_cut_to_the_screen_and_gives_it_no_orders() {
        let lines = ["abc\x1b[2Jdef".to_owned(), "é".repeat(9), "third".into()];
        let text = frame(&lines, 5, 2);
        assert_eq!(text, format!("{HOME}abc[2{CLEAR_LINE}\r\nééééé{CLEAR_LINE}{CLEAR_BELOW}"));
    }

    #[test]
    fn a_flow_that_began_anew_has_moved_what_it_has() {
        let flow = a_flow(50);
        assert_eq!(moved(&flow, None), 150);
        assert_eq!(moved(&flow, Some((100, 20))), 30);
        assert_eq!(moved(&flow, Some((1_000, 1_000))), 150);
    }
}
