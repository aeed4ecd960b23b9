//! What may stand where in `src/`: imports, `unsafe`, sizes, beginnings of files, and what the documents say about files and tests.
//!
//! # Theory of operation
//!
//! [`tokens`] reads a file the way the compiler's lexer does, so that comments, texts and attributes are never taken for code; what is compiled for
//! tests only is cut out by [`shipped`]. Each rule is a function from those to a list of offences, and [`offences_of`] applies all of them to one
//! file. The rules see the real tree in the tests at the end, and samples that break them in [`the_rules`]: a check that cannot fail is none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Modules of the crate, and which of the others each may name. The pure core comes first.
const LAYERS: [(&str, &[&str]); 22] = [
    ("time", &[]),
    ("rng", &[]),
    ("wire", &[]),
    ("flow", &["time", "rng", "wire"]),
    ("stack", &["time", "rng", "wire", "flow"]),
    ("dns", &["time", "rng", "wire", "flow"]),
    ("config", &["time", "stack", "outbound"]),
    ("outbound", &["time", "rng", "wire", "config"]),
    ("engine", &["time", "rng", "wire", "flow", "stack", "dns", "config", "outbound"]),
    // Below: feature "os".
    ("tun", &["time", "stack"]),
    // How the kernel is talked to, for those who change its tables and those who watch them.
    ("netlink", &[]),
    ("route_socket", &[]),
    ("host", &["config", "outbound", "netlink", "route_socket"]),
    ("monitor", &["time", "netlink", "route_socket"]),
    ("proxy", &["time", "rng", "wire", "config"]),
    ("driver", &["time", "rng", "flow", "stack", "outbound", "engine", "tun"]),
    ("control", &["time", "config", "outbound", "flow", "stack", "dns", "engine", "tun", "driver"]),
    (
        "session",
        &["time", "config", "outbound", "engine", "tun", "host", "monitor", "proxy", "driver", "control"],
    ),
    ("doctor", &["time", "config", "wire", "dns", "outbound", "engine", "host", "driver"]),
    // A process of the demo tells its errors as the program does.
    ("demo", &["time", "config", "host", "proxy", "driver", "session", "cli"]),
    (
        "cli",
        &[
            "time", "stack", "config", "outbound", "host", "proxy", "driver", "control", "session", "doctor",
            "demo",
        ],
    ),
    ("ffi", &["time", "driver", "control", "session", "cli"]),
];

/// How many of [`LAYERS`] are the pure core.
const PURE: usize = 9;

/// Crates, and the modules that may name them. One that is not here may be named nowhere.
const CRATES: [(&str, &[&str]); 22] = [
    (
        "log",
        &[
            "stack", "engine", "tun", "netlink", "host", "monitor", "proxy", "driver", "control", "session",
            "doctor", "demo", "cli", "ffi",
        ],
    ),
    ("siphasher", &["rng"]),
    ("slab", &["proxy"]),
    ("mio", &["tun", "monitor", "proxy", "driver", "control", "session", "doctor"]),
    ("socket2", &["proxy", "driver", "control", "session", "demo"]),
    ("libc", &["tun", "netlink", "route_socket", "host", "monitor", "proxy", "driver", "control"]),
    ("signal_hook", &["proxy", "driver"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("env_logger", &["cli"]),
    ("netlink_packet_core", &["netlink", "host"]),
    ("netlink_packet_route", &["netlink", "host", "monitor"]),
    ("serde", &["control", "doctor", "cli"]),
    ("serde_json", &["control", "doctor", "cli"]),
    ("toml", &["cli"]),
    ("prometheus_client", &["control"]),
    ("httparse", &["control"]),
    // Windows.
    ("windows_sys", &["tun", "host", "monitor", "driver"]),
    ("wintun", &["tun"]),
    ("windows_service", &["session", "cli"]),
    ("ipconfig", &["host", "proxy"]),
];

/// The rest of the netlink family and the oracle of the tests, known by name like those above.
const MORE_CRATES: [(&str, &[&str]); 6] = [
    ("netlink_packet_sock_diag", &["host"]),
    ("netlink_sys", &["netlink", "host"]),
    ("etherparse", &[]),
    ("smoltcp", &[]),
    ("proptest", &[]),
    ("tokio", &[]),
];

/// Where `unsafe` may stand.
const UNSAFE: [&str; 7] = ["tun", "netlink", "route_socket", "host", "monitor", "driver", "ffi"];

/// Parts of the standard library that the pure core may not name: what they do needs an operating system.
const IMPURE_STD: [&str; 8] = ["env", "fs", "io", "net", "os", "process", "thread", "path"];

/// Lines of a file before its tests.
const MAX_LINES: usize = 600;
/// Lines of a function, the signature's included.
const MAX_FUNCTION: usize = 100;

// ---- reading Rust ----

#[derive(Clone, PartialEq, Eq, Debug)]
enum Kind {
    /// A name or a keyword.
    Word(String),
    /// One character of punctuation.
    Mark(char),
    /// A text, a character, a number or a lifetime: never code.
    Literal,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Token {
    kind: Kind,
    line: usize,
}

impl Token {
    fn is(&self, mark: char) -> bool {
        self.kind == Kind::Mark(mark)
    }

    fn word(&self) -> Option<&str> {
        match &self.kind {
            Kind::Word(word) => Some(word),
            Kind::Mark(_) | Kind::Literal => None,
        }
    }
}

/// The tokens of Rust source, without comments and blanks.
fn tokens(source: &str) -> Vec<Token> {
    let text: Vec<char> = source.chars().collect();
    let mut out = Vec::new();
    let (mut at, mut line) = (0, 1);
    while let Some(&c) = text.get(at) {
        let next = text.get(at + 1).copied().unwrap_or('\0');
        let (end, kind) = if c == '/' && next == '/' {
            (past(&text, at, |c| c != '\n'), None)
        } else if c == '/' && next == '*' {
            (past_comment(&text, at), None)
        } else if let Some(end) = past_raw_text(&text, at) {
            (end, Some(Kind::Literal))
        } else if c == '"' || (matches!(c, 'b' | 'c') && next == '"') {
            (past_text(&text, at + usize::from(c != '"')), Some(Kind::Literal))
        } else if c == '\'' || (c == 'b' && next == '\'') {
            (past_character(&text, at + usize::from(c == 'b')), Some(Kind::Literal))
        } else if c.is_ascii_digit() {
            (past(&text, at, |c| c.is_alphanumeric() || c == '_'), Some(Kind::Literal))
        } else if c.is_alphabetic() || c == '_' {
            let end = past(&text, at, |c| c.is_alphanumeric() || c == '_');
            (end, Some(Kind::Word(text[at..end].iter().collect())))
        } else {
            (at + 1, (!c.is_whitespace()).then_some(Kind::Mark(c)))
        };
        if let Some(kind) = kind {
            out.push(Token { kind, line });
        }
        line += text[at..end].iter().filter(|c| **c == '\n').count();
        at = end;
    }
    out
}

fn past(text: &[char], at: usize, belongs: impl Fn(char) -> bool) -> usize {
    text[at..].iter().position(|c| !belongs(*c)).map_or(text.len(), |found| at + found)
}

/// Comments of this form nest.
fn past_comment(text: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < text.len() {
        match (text[at], text.get(at + 1)) {
            ('/', Some('*')) => depth += 1,
            ('*', Some('/')) => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            break;
        }
    }
    at.min(text.len())
}

fn past_raw_text(text: &[char], at: usize) -> Option<usize> {
    let r = at + usize::from(matches!(text[at], 'b' | 'c'));
    if text.get(r) != Some(&'r') {
        return None;
    }
    let open = past(text, r + 1, |c| c == '#');
    if text.get(open) != Some(&'"') {
        return None;
    }
    let hashes = open - r - 1;
    let closes = |end: usize| text[end] == '"' && past(text, end + 1, |c| c == '#') > end + hashes;
    let end = (open + 1..text.len()).find(|end| closes(*end))?;
    Some(end + 1 + hashes)
}

fn past_text(text: &[char], open: usize) -> usize {
    let mut at = open + 1;
    while at < text.len() && text[at] != '"' {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

/// A character, or a lifetime, which has no closing quote.
fn past_character(text: &[char], quote: usize) -> usize {
    match (text.get(quote + 1), text.get(quote + 2)) {
        (Some('\\'), _) => past(text, quote + 3, |c| c != '\'') + 1,
        (Some(_), Some('\'')) => quote + 3,
        _ => past(text, quote + 1, |c| c.is_alphanumeric() || c == '_'),
    }
    .min(text.len())
}

/// Where the bracket that is open at `at` closes.
fn closing(tokens: &[Token], at: usize) -> usize {
    let mut depth = 0usize;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        match token.kind {
            Kind::Mark('(' | '[' | '{') => depth += 1,
            Kind::Mark(')' | ']' | '}') => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return index;
                }
            }
            Kind::Mark(_) | Kind::Word(_) | Kind::Literal => {}
        }
    }
    tokens.len().saturating_sub(1)
}

fn words<'t>(tokens: &'t [Token], wanted: &[&str]) -> bool {
    let mut rest: &'t [Token] = tokens;
    for want in wanted {
        let Some((first, behind)) = rest.split_first() else { return false };
        let same = match &first.kind {
            Kind::Word(word) => word == want,
            Kind::Mark(mark) => mark.to_string() == *want,
            Kind::Literal => false,
        };
        if !same {
            return false;
        }
        rest = behind;
    }
    true
}

/// The tokens of what is shipped: items marked `#[cfg(test)]` are cut out.
fn shipped(tokens: &[Token]) -> Vec<Token> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if !words(&tokens[at..], &["#", "[", "cfg", "(", "test", ")", "]"]) {
            out.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at += 7;
        while words(&tokens[at..], &["#", "["]) {
            at = closing(tokens, at + 1) + 1;
        }
        // The item ends with its block, or with a semicolon outside of all brackets.
        while at < tokens.len() && !tokens[at].is(';') && !tokens[at].is('{') {
            at = if tokens[at].is('(') || tokens[at].is('[') { closing(tokens, at) + 1 } else { at + 1 };
        }
        if at < tokens.len() {
            at = if tokens[at].is('{') { closing(tokens, at) + 1 } else { at + 1 };
        }
    }
    out
}

// ---- rules ----

/// A file as the rules see it: its path below `src/`, its text, and the tokens of what is shipped of it.
struct File<'a> {
    path: &'a str,
    text: &'a str,
    code: Vec<Token>,
}

impl<'a> File<'a> {
    fn new(path: &'a str, text: &'a str) -> File<'a> {
        File { path, text, code: shipped(&tokens(text)) }
    }

    /// The module of the crate that the file belongs to; the crate's own root has none.
    fn module(&self) -> Option<&str> {
        let first = self.path.split('/').next().unwrap_or_default();
        let name = first.strip_suffix(".rs").unwrap_or(first);
        (!matches!(name, "lib" | "main")).then_some(name)
    }

    /// How many times `super` has to be said to be at the crate's root.
    fn depth(&self) -> usize {
        let folders = self.path.matches('/').count();
        if self.path.ends_with("/mod.rs") { folders } else { folders + 1 }
    }

    fn offence(&self, line: usize, what: impl std::fmt::Display) -> String {
        format!("src/{}:{line}: {what}", self.path)
    }
}

/// What is named directly behind a path's end at `at`, which is behind its `::`.
fn named(code: &[Token], at: usize) -> Vec<(&str, usize)> {
    match code.get(at) {
        Some(token) if token.is('{') => {
            let end = closing(code, at);
            let mut names = Vec::new();
            let mut index = at + 1;
            let mut fresh = true;
            while index < end {
                if fresh && let Some(word) = code[index].word() {
                    names.push((word, code[index].line));
                }
                fresh = code[index].is(',');
                index = if code[index].is('{') { closing(code, index) + 1 } else { index + 1 };
            }
            names
        }
        Some(token) => token.word().map(|word| (word, token.line)).into_iter().collect(),
        None => Vec::new(),
    }
}

/// Modules of the crate that the file names, by `crate::` or by enough `super::`.
fn imports<'f>(file: &'f File<'_>) -> Vec<(&'f str, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < file.code.len() {
        let rest = &file.code[at..];
        if words(rest, &["crate", ":", ":"]) {
            found.extend(named(&file.code, at + 3));
        }
        let mut supers = 0;
        while words(&file.code[at..], &["super", ":", ":"]) {
            supers += 1;
            at += 3;
        }
        if supers > 0 && supers == file.depth() {
            found.extend(named(&file.code, at));
        }
        at += usize::from(supers == 0);
    }
    found
}

fn forbidden_imports(file: &File<'_>) -> Vec<String> {
    let Some(module) = file.module() else { return Vec::new() };
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else {
        return vec![file.offence(1, format!("the module {module} has no place in LAYERS"))];
    };
    let known: BTreeSet<&str> = LAYERS.iter().map(|(name, _)| *name).collect();
    imports(file)
        .into_iter()
        .filter(|(name, _)| known.contains(name) && *name != module && !allowed.contains(name))
        .map(|(name, line)| file.offence(line, format!("{module} may not name {name}")))
        .collect()
}

fn forbidden_crates(file: &File<'_>) -> Vec<String> {
    let Some(module) = file.module() else { return Vec::new() };
    let mut offences = Vec::new();
    for (at, token) in file.code.iter().enumerate() {
        let Some(word) = token.word() else { continue };
        let before = at.checked_sub(1).and_then(|before| file.code.get(before));
        let path = words(&file.code[at + 1..], &[":", ":"]) && !before.is_some_and(|token| token.is(':'));
        if !path && before.and_then(Token::word) != Some("use") {
            continue;
        }
        let known = CRATES.iter().chain(&MORE_CRATES).find(|(name, _)| *name == word);
        if known.is_some_and(|(_, allowed)| !allowed.contains(&module)) {
            offences.push(file.offence(token.line, format!("{module} may not name the crate {word}")));
        }
        let pure = LAYERS[..PURE].iter().any(|(name, _)| *name == module);
        if pure && word == "std" && path {
            for (part, line) in named(&file.code, at + 3) {
                if IMPURE_STD.contains(&part) {
                    offences
                        .push(file.offence(line, format!("{module} is pure and may not name std::{part}")));
                }
            }
        }
    }
    offences
}

fn forbidden_words(file: &File<'_>) -> Vec<String> {
    let mut offences = Vec::new();
    for (at, token) in file.code.iter().enumerate() {
        let Some(word) = token.word() else { continue };
        let before = at.checked_sub(1).and_then(|before| file.code.get(before));
        let method = before.is_some_and(|token| token.is('.'));
        let attribute =
            at >= 2 && file.code[at - 1].is('[') && (file.code[at - 2].is('#') || file.code[at - 2].is('!'));
        if word == "unsafe" && !file.module().is_some_and(|module| UNSAFE.contains(&module)) {
            offences.push(file.offence(token.line, format!("unsafe stands only in {UNSAFE:?}")));
        }
        if word == "unwrap" && method {
            offences.push(file.offence(token.line, "unwrap: say what holds with expect, or give an error"));
        }
        if matches!(word, "allow" | "expect") && attribute {
            let end = closing(&file.code, at + 1);
            if !file.code[at..end].iter().any(|token| token.word() == Some("reason")) {
                offences.push(file.offence(token.line, format!("{word} without a reason")));
            }
        }
        if matches!(word, "todo" | "unimplemented")
            && file.code.get(at + 1).is_some_and(|token| token.is('!'))
        {
            offences.push(file.offence(token.line, format!("{word}!")));
        }
    }
    for (line, text) in file.text.lines().enumerate() {
        for mark in ["TODO", "FIXME", "XXX"] {
            if text.contains(mark) {
                offences.push(file.offence(line + 1, format!("{mark}: file an issue instead")));
            }
        }
    }
    offences
}

/// Where what follows `<..>` is, if that is what stands at `at`.
fn behind_generics(code: &[Token], mut at: usize) -> usize {
    let mut depth = 0usize;
    while let Some(token) = code.get(at) {
        let arrow = at > 0 && token.is('>') && (code[at - 1].is('-') || code[at - 1].is('='));
        match token.kind {
            Kind::Mark('<') => depth += 1,
            Kind::Mark('>') if !arrow => depth = depth.saturating_sub(1),
            Kind::Mark(_) | Kind::Word(_) | Kind::Literal if depth == 0 => break,
            Kind::Mark(_) | Kind::Word(_) | Kind::Literal => {}
        }
        at += 1;
    }
    at
}

/// `now: Instant` is the last argument of each function that has it; and functions are short enough to be read.
fn shapes_of_functions(file: &File<'_>) -> Vec<String> {
    let mut offences = Vec::new();
    for (at, token) in file.code.iter().enumerate() {
        let Some(name) = file.code.get(at + 1).and_then(Token::word) else { continue };
        if token.word() != Some("fn") {
            continue;
        }
        let open = behind_generics(&file.code, at + 2);
        let close = closing(&file.code, open);
        for index in open..close {
            if words(&file.code[index..], &["now", ":", "Instant"]) {
                let rest = &file.code[index + 3..=close];
                if !(rest.len() == 1 || (rest.len() == 2 && rest[0].is(','))) {
                    offences.push(file.offence(token.line, format!("{name}: `now` is the last argument")));
                }
            }
        }
        let mut body = close + 1;
        while body < file.code.len() && !file.code[body].is('{') && !file.code[body].is(';') {
            body = if file.code[body].is('[') { closing(&file.code, body) + 1 } else { body + 1 };
        }
        if body >= file.code.len() {
            continue;
        }
        let lines = if file.code[body].is('{') {
            file.code[closing(&file.code, body)].line - token.line + 1
        } else {
            1
        };
        if lines > MAX_FUNCTION {
            offences.push(
                file.offence(token.line, format!("{name} has {lines} lines of at most {MAX_FUNCTION}")),
            );
        }
    }
    offences
}

fn shape_of_file(file: &File<'_>) -> Vec<String> {
    let mut offences = Vec::new();
    if !file.text.starts_with("//!") {
        offences.push(file.offence(1, "a file starts with what it is: //!"));
    }
    let lines = file.text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
    if lines > MAX_LINES {
        offences.push(file.offence(1, format!("{lines} lines before the tests, of at most {MAX_LINES}")));
    }
    offences
}

/// Everything that is wrong with one file.
fn offences_of(path: &str, text: &str) -> Vec<String> {
    let file = File::new(path, text);
    let rules = [forbidden_imports, forbidden_crates, forbidden_words, shapes_of_functions, shape_of_file];
    rules.iter().flat_map(|rule| rule(&file)).collect()
}

// ---- the tree ----

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the project") {
            let path = entry.expect("an entry of the folder").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> BTreeMap<String, String> {
    let src = root().join("src");
    let text = |path: &PathBuf| fs::read_to_string(path).expect("a source file");
    let name = |path: &PathBuf| path.strip_prefix(&src).expect("below src").to_string_lossy().into_owned();
    let shipped = |path: &&PathBuf| !is_test_module(path);
    files_below(&src, "rs").iter().filter(shipped).map(|path| (name(path), text(path))).collect()
}

/// Whether the file is `NAME/tests.rs`, and `NAME.rs` or `NAME/mod.rs` has it for tests only.
fn is_test_module(path: &Path) -> bool {
    let Some(folder) = path.parent().filter(|_| path.ends_with("tests.rs")) else { return false };
    [folder.with_extension("rs"), folder.join("mod.rs")]
        .iter()
        .filter_map(|parent| fs::read_to_string(parent).ok())
        .any(|text| text.contains("#[cfg(test)]\nmod tests;"))
}

#[test]
fn every_source_file_keeps_the_rules() {
    let sources = sources();
    assert!(sources.len() > 50, "only {} files were found", sources.len());
    let offences: Vec<String> = sources.iter().flat_map(|(path, text)| offences_of(path, text)).collect();
    assert!(offences.is_empty(), "{} offences:\n{}", offences.len(), offences.join("\n"));
}

#[test]
fn the_pure_core_is_what_is_built_without_an_operating_system() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).expect("lib.rs");
    let code = tokens(&lib);
    let mut built = BTreeSet::new();
    for (at, _) in code.iter().enumerate().filter(|(_, token)| token.word() == Some("mod")) {
        // `#[cfg(..)] pub mod NAME;`: a bracket that closes before `pub` or `mod` belongs to an attribute.
        let gated = [1, 2].iter().any(|back| at >= *back && code[at - back].is(']'));
        let name = code[at + 1].word().expect("a module has a name");
        assert!(LAYERS.iter().any(|(known, _)| *known == name), "{name} has no place in LAYERS");
        if !gated {
            built.insert(name);
        }
    }
    let pure: BTreeSet<&str> = LAYERS[..PURE].iter().map(|(name, _)| *name).collect();
    assert_eq!(built, pure);
}

#[test]
fn the_allowed_imports_have_no_way_from_the_core_to_the_shell() {
    let pure: BTreeSet<&str> = LAYERS[..PURE].iter().map(|(name, _)| *name).collect();
    for (name, allowed) in &LAYERS[..PURE] {
        assert!(allowed.iter().all(|other| pure.contains(other)), "{name}");
    }
    // These know neither each other nor the engine.
    for half in ["tun", "host"] {
        let (_, allowed) = LAYERS.iter().find(|(name, _)| *name == half).expect("a layer");
        assert!(["tun", "host", "engine", "driver"].iter().all(|other| !allowed.contains(other)), "{half}");
    }
}

#[test]
fn every_dependency_has_its_line_in_the_record_of_dependencies() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    let record = fs::read_to_string(root().join("docs/adr/0001-dependencies.md")).expect("the record");
    let mut listed = false;
    let mut crates = 0;
    for line in manifest.lines() {
        if line.starts_with('[') {
            listed = line.contains("dependencies]");
            continue;
        }
        let Some((name, _)) = line.split_once(" = ").filter(|_| listed) else { continue };
        crates += 1;
        assert!(
            record.contains(&format!("| `{name}` |")),
            "{name} has no line in docs/adr/0001-dependencies.md"
        );
    }
    assert!(crates > 10, "only {crates} dependencies were found");
}

/// Names in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Links of a document to files of the project that are not there; `exists` is asked relative to the document's folder.
fn dead_links(name: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let local = targets.filter(|target| !target.contains("://") && !target.starts_with('#'));
    local.filter(|target| !exists(target)).map(|target| format!("{name}: no {target}")).collect()
}

/// Numbers of the sixty statements that have no row with a test in `text`.
fn unproved(text: &str) -> Vec<u32> {
    let proved =
        |n: &u32| text.lines().any(|line| line.starts_with(&format!("| {n} | ")) && line.contains(".rs::"));
    (1..=60).filter(|n| !proved(n)).collect()
}

#[test]
fn every_statement_has_a_test() {
    let protocols = fs::read_to_string(root().join("docs/PROTOCOLS.md")).expect("docs/PROTOCOLS.md");
    assert_eq!(unproved(&protocols), Vec::<u32>::new());
}

/// What a document says of files and tests and what is not there: `path`, or `path::test`.
fn dead_references(name: &str, text: &str, exists: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut dead = Vec::new();
    let is_ours = |quote: &&str| {
        let known = ["src/", "tests/", "docs/", "benches/"].iter().any(|folder| quote.starts_with(folder));
        known && !quote.contains([' ', '*', '{', '<', 'N'])
    };
    for quote in quoted(text).filter(is_ours) {
        let (path, test) = quote.split_once("::").map_or((quote, None), |(path, test)| (path, Some(test)));
        match (exists(path), test) {
            (None, _) => dead.push(format!("{name}: `{path}` is not there")),
            (Some(found), Some(test)) if !found.contains(&format!("fn {test}(")) => {
                dead.push(format!("{name}: `{path}` has no test {test}"));
            }
            (Some(_), _) => {}
        }
    }
    dead
}

#[test]
fn files_and_tests_that_documents_name_are_there() {
    let exists = |path: &str| {
        let path = root().join(path);
        if path.is_dir() { Some(String::new()) } else { fs::read_to_string(path).ok() }
    };
    let mut documents = files_below(&root().join("docs"), "md");
    documents.push(root().join("README.md"));
    let mut references = 0;
    let mut dead = Vec::new();
    for document in documents {
        let text = fs::read_to_string(&document).expect("a document");
        references += quoted(&text).filter(|quote| quote.starts_with("src/")).count();
        let folder = document.parent().unwrap_or(&document).to_path_buf();
        dead.extend(dead_links(&document.to_string_lossy(), &text, |target| folder.join(target).exists()));
        dead.extend(dead_references(
            &document.file_name().unwrap_or_default().to_string_lossy(),
            &text,
            exists,
        ));
    }
    assert!(references > 20, "only {references} references were found");
    assert!(dead.is_empty(), "{}", dead.join("\n"));
}

mod the_rules {
    use super::*;

    /// The offences of a file that starts as it should.
    fn found(path: &str, code: &str) -> Vec<String> {
        offences_of(path, &format!("//! A sample.\n{code}"))
    }

    fn one(path: &str, code: &str, what: &str) {
        let offences = found(path, code);
        assert_eq!(offences.len(), 1, "{code}: {offences:?}");
        assert!(offences[0].contains(what), "{offences:?}");
    }

    #[test]
    fn see_an_import_however_it_is_written() {
        for code in [
            "use crate::engine::Engine;",
            "use crate::{time::Instant, engine};",
            "use crate::{\n    time::{Duration, Instant},\n    engine::Engine,\n};",
            "fn f() { crate::engine::f() }",
            "pub(crate) use crate::engine as e;",
        ] {
            one("stack/mod.rs", code, "stack may not name engine");
        }
        one("stack/mod.rs", "use super::engine::Engine;", "stack may not name engine");
        one("stack/tcp/mod.rs", "use super::super::engine::Engine;", "stack may not name engine");
        one("stack/tcp/rtt.rs", "use super::super::super::{engine, time};", "stack may not name engine");
        one("time.rs", "use super::wire::Endpoint;", "time may not name wire");
    }

    #[test]
    fn let_pass_what_is_allowed_and_what_is_no_code() {
        for code in [
            "use crate::time::Instant;",
            "use crate::stack::Packet;",
            "// crate::engine::Engine, unsafe, x.unwrap()",
            "/* crate::engine /* nested */ crate::engine */",
            "/// [`crate::engine::Engine`]",
            "const A: &str = \"crate::engine::Engine.unwrap() \\\" unsafe\";",
            "const A: &str = r#\"crate::engine \" unsafe\"#;",
            "const A: char = '\"'; fn f<'a>(x: &'a str) { let _ = '\\''; }",
            "#[cfg(test)]\nmod tests {\n    use crate::engine::Engine;\n    fn f() { None::<u8>.unwrap(); }\n}",
            "#[cfg(test)]\nuse crate::engine::Engine;",
            "fn f(x: Option<u8>) -> u8 { x.unwrap_or(0) }",
            "#[allow(dead_code, reason = \"a sample\")]\nfn f() {}",
        ] {
            assert_eq!(found("stack/udp.rs", code), Vec::<String>::new(), "{code}");
        }
        // Below its module `super` is the module itself.
        assert_eq!(found("stack/tcp/rtt.rs", "use super::engine;"), Vec::<String>::new());
    }

    #[test]
    fn see_behind_an_item_that_is_for_tests_only() {
        let code = "#[cfg(test)]\nmod tests { fn f() {} }\nuse crate::engine::Engine;";
        one("stack/udp.rs", code, "stack may not name engine");
    }

    #[test]
    fn see_crates_and_systems_where_they_do_not_belong() {
        one("engine/mod.rs", "use mio::Poll;", "engine may not name the crate mio");
        one("wire/ip.rs", "fn f() { log::debug!(\"x\") }", "wire may not name the crate log");
        one("session/mod.rs", "use clap;", "session may not name the crate clap");
        one("dns/table.rs", "use std::fs::File;", "std::fs");
        one("dns/table.rs", "use std::{collections::VecDeque, thread};", "std::thread");
        assert_eq!(found("dns/table.rs", "use std::collections::VecDeque;"), Vec::<String>::new());
        one("new_folder/mod.rs", "fn f() {}", "no place in LAYERS");
    }

    #[test]
    fn see_words_that_are_forbidden() {
        one("stack/udp.rs", "fn f() { unsafe { g() } }", "unsafe");
        assert_eq!(found("tun/linux.rs", "fn f() { unsafe { g() } }"), Vec::<String>::new());
        one("stack/udp.rs", "fn f() { x.unwrap(); }", "unwrap");
        one("stack/udp.rs", "#[allow(dead_code)]\nfn f() {}", "without a reason");
        one("stack/udp.rs", "#![expect(dead_code)]\nfn f() {}", "without a reason");
        one("stack/udp.rs", "fn f() { todo!() }", "todo");
        one("stack/udp.rs", "// TODO: later", "TODO");
    }

    #[test]
    fn see_now_anywhere_but_last() {
        one("stack/udp.rs", "fn f(now: Instant, x: u8) {}", "last argument");
        one("stack/udp.rs", "impl A { fn f(&self, now: Instant, x: u8); }", "last argument");
        one("stack/udp.rs", "fn f<F: Fn(u8) -> Vec<u8>>(now: Instant, x: F) -> [u8; 2] {}", "last argument");
        assert_eq!(found("stack/udp.rs", "fn f(x: u8, now: Instant) {}"), Vec::<String>::new());
        assert_eq!(found("stack/udp.rs", "fn f(\n    x: u8,\n    now: Instant,\n) {}"), Vec::<String>::new());
    }

    #[test]
    fn see_what_is_too_long_or_has_no_beginning() {
        let long = |lines: usize| "    g();\n".repeat(lines);
        one("stack/udp.rs", &format!("fn f() {{\n{}}}", long(99)), "101 lines");
        assert_eq!(found("stack/udp.rs", &format!("fn f() {{\n{}}}", long(98))), Vec::<String>::new());
        one("stack/udp.rs", &"const A: u8 = 0;\n".repeat(600), "601 lines");
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}", "const A: u8 = 0;\n".repeat(900));
        assert_eq!(found("stack/udp.rs", &tests), Vec::<String>::new());
        assert_eq!(offences_of("stack/udp.rs", "fn f() {}").len(), 1);
    }

    #[test]
    fn see_dead_references_in_documents() {
        let exists = |path: &str| (path == "tests/a.rs").then(|| "fn it_works() {}".to_owned());
        let dead = |text: &str| dead_references("sample", text, exists).len();
        assert_eq!(dead("`tests/a.rs` and `tests/a.rs::it_works`, `cargo test`"), 0);
        assert_eq!(dead("`tests/b.rs`"), 1);
        assert_eq!(dead("`tests/a.rs::it_fails`"), 1);
        let text = "[here](a.md), [there](../b.md), [far](https://example.com)";
        assert_eq!(dead_links("sample", text, |target| target == "a.md"), ["sample: no ../b.md"]);
        let rows = "| 2 | two | `tests/a.rs::it_works` |\n| 3 | three | nothing |";
        assert!(!unproved(rows).contains(&2) && unproved(rows).contains(&3) && unproved(rows).len() == 59);
    }
}
