//! The image and the gateway for other containers, without an engine: the image is put together as the Dockerfile says, and systemd starts what is in it
//! with what the compose file gives it: root, capabilities, device, read-only files. What an engine does besides (its bridge, its resolver) is not tried.

use super::deb;
use super::machine::{Machine, PROXY, TARGET};
use super::{text, words, yaml};
use yaml_rust2::Yaml;

/// The instructions of the Dockerfile.
fn instructions() -> Vec<(String, String)> {
    let text = text("packaging/docker/Dockerfile");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once(' ').unwrap()).map(|(name, rest)| (name.into(), rest.into())).collect()
}

fn instruction(name: &str) -> String {
    let instructions = instructions();
    let mut found = instructions.iter().filter(|(other, _)| other == name);
    let (_, rest) = found.next().unwrap_or_else(|| panic!("no {name}"));
    assert!(found.next().is_none(), "{name} twice");
    rest.clone()
}

fn entry_point() -> Vec<String> {
    serde_json::from_str(&instruction("ENTRYPOINT")).unwrap()
}

#[test]
fn the_image_has_the_program_and_nothing_else() {
    let names: Vec<String> = instructions().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["FROM", "COPY", "WORKDIR", "ENTRYPOINT"]);
    assert_eq!(instruction("FROM"), "scratch");
    assert_eq!(instruction("COPY"), format!("ztun {}", entry_point()[0]));
    assert_eq!(entry_point().len(), 1);
}

/// Puts the image together on the machine, and gives the command that starts something in it: as root, with what the compose file allows.
fn engine(machine: &Machine, gateway: &Yaml) -> String {
    assert_eq!(words(&gateway["cap_drop"]), ["ALL"]);
    assert_eq!(words(&gateway["security_opt"]), ["no-new-privileges:true"]);
    assert_eq!(words(&gateway["devices"]), ["/dev/net/tun"]);
    assert_eq!(gateway["read_only"].as_bool(), Some(true));
    assert_eq!(words(&gateway["tmpfs"]), ["/run"]);
    assert!(gateway["environment"]["ZTUN_SOCKS5"].as_str().unwrap().starts_with("${ZTUN_SOCKS5:?"));
    let capabilities: Vec<String> =
        words(&gateway["cap_add"]).iter().map(|name| format!("CAP_{name}")).collect();
    // The libraries are for the program under test alone: what is released is static.
    machine.ok(&format!(
        "mkdir -p /test/run /test/image{} /test/image/{{proc,sys,dev,etc,usr/bin}}; cp /test/ztun /test/image{}
         for library in $(ldd /test/ztun | grep -o '/[^ ]*'); do cp --parents -L \"$library\" /test/image; done
         cp /etc/resolv.conf /test/image/etc",
        instruction("WORKDIR"),
        entry_point()[0],
    ));
    format!(
        "systemd-run --quiet --property=RootDirectory=/test/image --property=MountAPIVFS=yes --property=ReadOnlyPaths=/ \
         --property=BindPaths=/test/run:/run --property=WorkingDirectory={} --property=NoNewPrivileges=yes \
         --property=CapabilityBoundingSet='{}' --property=DevicePolicy=closed --property=DeviceAllow='/dev/net/tun rw' \
         --setenv=ZTUN_SOCKS5={PROXY}",
        instruction("WORKDIR"),
        capabilities.join(" "),
    )
}

#[test]
fn what_shares_the_network_of_the_gateway_goes_through_the_proxy_or_nowhere() {
    let Some(machine) = Machine::boot(&deb::built()) else { return };
    let compose = yaml(&text("packaging/docker/compose.yaml"));
    let (gateway, app) = (&compose["services"]["gateway"], &compose["services"]["app"]);
    assert_eq!(app["network_mode"].as_str(), Some("service:gateway"));
    assert_eq!(app["depends_on"]["gateway"]["condition"].as_str(), Some("service_healthy"));

    let engine = engine(&machine, gateway);
    let command = [entry_point()[0].as_str(), &words(&gateway["command"]).join(" ")].join(" ");
    machine.ok(&format!("{engine} --unit=gateway {command}"));
    let health = words(&gateway["healthcheck"]["test"]);
    assert_eq!(health[0], "CMD");
    let health = format!("{engine} --property=Type=oneshot {}", health[1..].join(" "));
    machine.until(&health);
    assert!(machine.ok(&format!("ip route get {TARGET}")).contains("dev ztun0"));
    let fetch = format!("curl --silent --show-error --max-time 30 http://{TARGET}/");
    assert!(machine.ok(&fetch).contains("ztun.deb"));
    machine.ok("systemctl kill --signal=KILL gateway");
    machine.until("! systemctl is-active gateway");
    machine.fails(&fetch);
}
