//! One finding, all of them, and how people and programs read them.

use core::fmt;
use serde::Serialize;
use std::net::SocketAddr;

/// What a check came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// ztun runs; something is slower, missing, or may surprise.
    Warn,
    /// ztun does not run, or what is sent does not arrive.
    Fail,
    /// Not asked, for the reason given.
    Skipped,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
            Status::Skipped => "skip",
        }
    }
}

/// One check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Check {
    /// Its name, which stays the same from version to version.
    pub id: &'static str,
    /// The proxy that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<SocketAddr>,
    /// What it came to.
    pub status: Status,
    /// What was found, with the system's own words.
    pub why: String,
    /// What to do; there is something for each warning and each failure.
    pub remedy: Option<String>,
}

impl Check {
    fn new(id: &'static str, status: Status, why: &str, remedy: Option<&str>) -> Check {
        Check { id, proxy: None, status, why: printable(why), remedy: remedy.map(printable) }
    }

    /// As it should be.
    pub(super) fn ok(id: &'static str, why: impl AsRef<str>) -> Check {
        Check::new(id, Status::Ok, why.as_ref(), None)
    }

    /// Worth knowing.
    pub(super) fn warn(id: &'static str, why: impl AsRef<str>, remedy: impl AsRef<str>) -> Check {
        Check::new(id, Status::Warn, why.as_ref(), Some(remedy.as_ref()))
    }

    /// Broken. Public for what is found out before the doctor is called, such as a name that has no address.
    pub fn fail(id: &'static str, why: impl AsRef<str>, remedy: impl AsRef<str>) -> Check {
        Check::new(id, Status::Fail, why.as_ref(), Some(remedy.as_ref()))
    }

    /// Not asked.
    pub(super) fn skipped(id: &'static str, why: impl AsRef<str>) -> Check {
        Check::new(id, Status::Skipped, why.as_ref(), None)
    }

    /// The same about one proxy.
    pub(super) fn of(self, proxy: SocketAddr) -> Check {
        Check { proxy: Some(proxy), ..self }
    }
}

/// Without what would move a terminal's cursor or colour: names of interfaces come from others.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// All checks, in the order in which they were made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    /// The program's version.
    version: &'static str,
    /// Whether nothing fails.
    ok: bool,
    /// The checks.
    checks: Vec<Check>,
}

impl Report {
    /// A report of `checks`.
    pub fn new(checks: Vec<Check>) -> Report {
        let ok = checks.iter().all(|check| check.status != Status::Fail);
        Report { version: env!("CARGO_PKG_VERSION"), ok, checks }
    }

    /// Whether nothing fails; warnings do not count.
    pub fn is_ok(&self) -> bool {
        self.ok
    }

    /// The checks.
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// One JSON object: `version`, `ok`, and `checks`, each with `id`, `status`, `why`, `remedy` (or null), and `proxy` where it is about one.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("texts, numbers and a list have a form in JSON")
    }

    fn count(&self, status: Status) -> usize {
        self.checks.iter().filter(|check| check.status == status).count()
    }
}

impl fmt::Display for Report {
    /// A line for each check, below it what to do, and a last line that counts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.checks.iter().map(|check| check.id.len()).max().unwrap_or(0);
        for check in &self.checks {
            write!(f, "{:<4}  {:<id$}  ", check.status.word(), check.id)?;
            if let Some(proxy) = check.proxy {
                write!(f, "{proxy}: ")?;
            }
            writeln!(f, "{}", check.why)?;
            if let Some(remedy) = &check.remedy {
                writeln!(f, "{:<4}  {:<id$}  try: {remedy}", "", "")?;
            }
        }
        write!(
            f,
            "{} ok, {} warn, {} fail, {} skipped",
            self.count(Status::Ok),
            self.count(Status::Warn),
            self.count(Status::Fail),
            self.count(Status::Skipped)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let proxy = "127.0.0.1:1080".parse().unwrap();
        Report::new(vec![
            Check::ok("privilege", "root"),
            Check::warn("tun", "a\u{1b}[31m device", "another"),
            Check::fail("proxy", "refused", "start it").of(proxy),
            Check::skipped("udp", "no proxy"),
        ])
    }

    #[test]
    fn people_get_a_line_for_each_with_what_to_do_below_it() {
        let text = report().to_string();
        assert_eq!(
            text,
            "ok    privilege  root\n\
             warn  tun        a?[31m device\n                 try: another\n\
             FAIL  proxy      127.0.0.1:1080: refused\n                 try: start it\n\
             skip  udp        no proxy\n\
             1 ok, 1 warn, 1 fail, 1 skipped"
        );
    }

    #[test]
    fn programs_get_one_object() {
        let json: serde_json::Value = serde_json::from_str(&report().to_json()).unwrap();
        assert_eq!(json["ok"], false);
        assert_eq!(json["checks"][0]["status"], "ok");
        assert_eq!(json["checks"][0]["remedy"], serde_json::Value::Null);
        assert_eq!(json["checks"][2]["proxy"], "127.0.0.1:1080");
        assert_eq!(json["checks"][3]["status"], "skipped");
    }

    #[test]
    fn warnings_do_not_fail() {
        assert!(!report().is_ok());
        let rest = report().checks.into_iter().filter(|check| check.status != Status::Fail).collect();
        assert!(Report::new(rest).is_ok());
    }
}
