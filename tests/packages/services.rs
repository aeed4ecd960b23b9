//! ztun as a service of OpenWrt and of macOS. (That of systemd is in `tests/systemd.rs`, and started by [`deb`](super::deb).)

use super::{ZTUN, output, project, text, ztun_takes};
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

/// What the init script uses of OpenWrt: its functions read a configuration that has a line `SECTION NAME VALUE` or `LIST NAME VALUE` for each option, and
/// write down what procd is told.
const OPENWRT: &str = r#"
config_load() {
    local kind name value
    config_cb ztun main
    while read -r kind name value; do
        "${kind}_cb" "$name" "$value"
    done <"$OPTIONS"
    config_cb
}
config_get_bool() {
    local value
    value=$(sed -n "s/^option $3 //p" "$OPTIONS")
    export "$1=${value:-$4}"
}
procd_open_instance() { :; }
procd_close_instance() { :; }
procd_set_param() {
    local name="$1"
    shift
    [ "$name" != command ] || printf '%s\n' "$@"
}
procd_append_param() {
    [ "$1" != command ] || printf '%s\n' "$2"
}
. "$INIT"
start_service
"#;

/// The command that procd is told, in words, for options of /etc/config/ztun.
fn openwrt(options: &str) -> Result<Vec<String>, String> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("options"), options).unwrap();
    let done = Command::new("dash")
        .args(["-c", OPENWRT])
        .env("OPTIONS", dir.path().join("options"))
        .env("INIT", project("packaging/openwrt/ztun.init"))
        .output()
        .unwrap();
    let [said, error] = [done.stdout, done.stderr].map(|text| String::from_utf8(text).unwrap());
    if done.status.success() && error.is_empty() {
        Ok(said.lines().map(str::to_owned).collect())
    } else {
        Err(error)
    }
}

/// The options of /etc/config/ztun as it is shipped, without quotes.
fn shipped_options() -> String {
    let lines = text("packaging/openwrt/ztun.config");
    let options =
        lines.lines().map(str::trim).filter(|line| line.starts_with("option ") || line.starts_with("list "));
    options.map(|line| format!("{}\n", line.replace('\'', ""))).collect()
}

#[test]
fn openwrt_starts_nothing_until_it_is_enabled() {
    assert!(openwrt(&shipped_options()).unwrap_err().contains("not enabled"));
}

#[test]
fn openwrt_hands_its_options_to_the_program() {
    let options =
        shipped_options().replace("enabled 0", "enabled 1").replace("kill_switch 0", "kill_switch 1")
            + "list rule dst=10.0.0.0/8 -> direct\noption udp_idle 30s\noption no_route 0\n";
    let command = openwrt(&options).unwrap();
    let expected = [
        "/usr/bin/ztun",
        "--socks5=192.168.1.2:1080",
        "--bypass=192.168.1.0/24",
        "--kill-switch",
        "--rule=dst=10.0.0.0/8 -> direct",
        "--udp-idle=30s",
    ];
    assert_eq!(command, expected);
    let plan = ztun_takes(&expected[1..]);
    assert!(plan.contains("to 192.168.1.0/24 lookup main") && plan.contains("unreachable"), "{plan}");
}

/// The script knows which options stand alone, and the program says the same.
#[test]
fn openwrt_knows_the_options_that_have_no_value() {
    let help = output(Command::new(ZTUN).arg("--help"));
    let alone: BTreeSet<String> = help
        .lines()
        .filter_map(|line| {
            line.trim().strip_prefix("--").or_else(|| line.trim().split_once(", --").map(|(_, rest)| rest))
        })
        .filter(|rest| !rest.split("  ").next().unwrap().contains('<'))
        .map(|rest| rest.split_whitespace().next().unwrap().replace('-', "_"))
        .filter(|name| !["help", "version", "dry_run"].contains(&name.as_str()))
        .collect();
    let script = text("packaging/openwrt/ztun.init");
    let flags = script.lines().find_map(|line| line.strip_prefix("FLAGS=\"")?.strip_suffix('"')).unwrap();
    assert_eq!(flags.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>(), alone);
}

#[test]
fn launchd_is_told_what_the_program_takes() {
    let read = "import json, plistlib, sys; print(json.dumps(plistlib.load(open(sys.argv[1], 'rb'))))";
    let read =
        output(Command::new("python3").args(["-c", read]).arg(project("packaging/launchd/ztun.plist")));
    let plist: serde_json::Value = serde_json::from_str(&read).unwrap();
    assert_eq!(plist["Label"], "ztun");
    assert_eq!(plist["RunAtLoad"], true);
    // An end that was asked for has status 0: only others are followed by another start.
    assert_eq!(plist["KeepAlive"]["SuccessfulExit"], false);
    // launchd kills after that many seconds; the program is gone after 3.5.
    assert!(plist["ExitTimeOut"].as_i64().unwrap() >= 4);
    let mut arguments: Vec<&str> =
        plist["ProgramArguments"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(arguments.remove(0), "/usr/local/bin/ztun");
    let options = project("contrib/ztun.toml");
    for word in &mut arguments {
        if *word == "/etc/ztun/ztun.toml" {
            *word = options.to_str().unwrap();
        }
    }
    assert!(arguments.contains(&options.to_str().unwrap()));
    ztun_takes(&arguments);
}
