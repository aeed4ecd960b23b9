//! Archives, sums, and the manifests of package managers that name them.

use super::{ZTUN, output, project, yaml};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

const HOMEPAGE: &str = "https://example.org/owner/ztun";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// As `build-all.sh release` calls them.
const TARGETS: [&str; 5] =
    ["aarch64-macos", "aarch64-linux-musl", "x86_64-macos", "x86_64-windows", "x86_64-linux-musl"];

/// Packages of binaries that are not looked into: a line of text will do.
fn package(dir: &Path) -> BTreeMap<String, String> {
    for target in TARGETS {
        let end = if target.contains("windows") { ".exe" } else { "" };
        fs::create_dir_all(dir.join("dist")).unwrap();
        fs::write(dir.join("dist").join(format!("ztun-{VERSION}-{target}{end}")), target).unwrap();
    }
    let sums = output(Command::new(project("packaging/package.sh")).args([
        ZTUN.as_ref(),
        dir.join("dist").as_os_str(),
        dir.join("out").as_os_str(),
        HOMEPAGE.as_ref(),
    ]));
    sums.lines()
        .map(|line| line.split_once("  ").unwrap())
        .map(|(sum, name)| (name.into(), sum.into()))
        .collect()
}

/// The files in an archive, without folders.
fn files(archive: &Path) -> Vec<String> {
    let list = "import sys, tarfile, zipfile
path = sys.argv[1]
names = zipfile.ZipFile(path).namelist() if path.endswith('.zip') else [m.name for m in tarfile.open(path) if m.isfile()]
print('\\n'.join(names))";
    output(Command::new("python3").arg("-c").arg(list).arg(archive)).lines().map(str::to_owned).collect()
}

#[test]
fn each_target_gets_its_archive_and_the_sums_are_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let sums = package(dir.path());
    let out = dir.path().join("out");
    output(Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(&out));
    let ends = [
        "aarch64-linux-musl.tar.gz",
        "aarch64-macos.tar.gz",
        "x86_64-linux-musl.tar.gz",
        "x86_64-macos.tar.gz",
        "x86_64-windows.zip",
    ];
    let expected: Vec<String> = ["aarch64", "x86_64"]
        .map(|machine| format!("ztun-{VERSION}-1.{machine}.rpm"))
        .into_iter()
        .chain(ends.map(|end| format!("ztun-{VERSION}-{end}")))
        .chain(["amd64", "arm64"].map(|machine| format!("ztun_{VERSION}_{machine}.deb")))
        .collect();
    assert_eq!(sums.keys().cloned().collect::<Vec<_>>(), expected);

    let inside = |target: &str, end: &str| {
        let name = format!("ztun-{VERSION}-{target}");
        let mut found = files(&out.join(format!("{name}.{end}")));
        found.sort();
        found
            .iter()
            .map(|path| path.strip_prefix(&format!("{name}/")).unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        inside("x86_64-windows", "zip"),
        [
            "LICENSE",
            "LICENSE-wintun.txt",
            "README.md",
            "share/ztun.ps1",
            "share/ztun.toml",
            "wintun.dll",
            "ztun.exe"
        ]
    );
    let everywhere = ["LICENSE", "README.md", "share/_ztun", "share/ztun.1", "share/ztun.bash"];
    let with = |more: &[&str]| {
        let mut all: Vec<String> = everywhere.iter().chain(more).map(|name| (*name).to_owned()).collect();
        all.sort();
        all
    };
    assert_eq!(
        inside("aarch64-macos", "tar.gz"),
        with(&["share/ztun.fish", "share/ztun.plist", "share/ztun.toml", "ztun"])
    );
    assert_eq!(
        inside("aarch64-linux-musl", "tar.gz"),
        with(&[
            "share/ztun.config",
            "share/ztun.fish",
            "share/ztun.init",
            "share/ztun.service",
            "share/ztun.toml",
            "ztun"
        ])
    );
}

#[test]
fn the_same_binaries_make_the_same_packages() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert_eq!(package(one.path()), package(other.path()));
}

/// Every address in a manifest is that of a file of the release, with the file's sum after it.
#[test]
fn the_manifests_name_the_files_of_the_release_with_their_sums() {
    let dir = tempfile::tempdir().unwrap();
    let sums = package(dir.path());
    let manifests = dir.path().join("out/manifests");
    let read = |name: &str| {
        let text = fs::read_to_string(manifests.join(name)).unwrap();
        assert!(!text.contains('@'), "{name}: {text}");
        assert!(
            text.contains(VERSION) && text.contains(HOMEPAGE)
                || name == "ztun.ztun.yaml"
                || name.contains("installer"),
            "{name}"
        );
        text
    };
    let release = format!("{HOMEPAGE}/releases/download/v{VERSION}/");
    let named = |url: &str| sums[url.strip_prefix(&release).unwrap_or_else(|| panic!("{url}"))].clone();

    let formula = read("ztun.rb");
    output(Command::new("ruby").arg("-c").arg(manifests.join("ztun.rb")));
    let quoted = |key: &str| {
        let lines = formula
            .lines()
            .filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix(" \"")?.strip_suffix('"'));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let urls = quoted("url");
    assert_eq!(urls.len(), 4);
    assert_eq!(urls.iter().map(|url| named(url)).collect::<Vec<_>>(), quoted("sha256"));
    // What it installs is in each of those archives.
    let installed: Vec<&str> = formula
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|word| word.starts_with("share/") || *word == "ztun")
        .collect();
    assert!(installed.len() >= 6, "{installed:?}");
    for url in &urls {
        let name = url.strip_prefix(&release).unwrap();
        let inside = files(&dir.path().join("out").join(name));
        for path in &installed {
            assert!(
                inside.contains(&format!("{}/{path}", name.strip_suffix(".tar.gz").unwrap())),
                "{name}: {path}"
            );
        }
    }

    let scoop: serde_json::Value = serde_json::from_str(&read("ztun.json")).unwrap();
    let archive = &scoop["architecture"]["64bit"];
    assert_eq!(named(archive["url"].as_str().unwrap()), archive["hash"].as_str().unwrap());
    let zip = format!("ztun-{VERSION}-x86_64-windows");
    let program = format!("{}/{}", archive["extract_dir"].as_str().unwrap(), scoop["bin"].as_str().unwrap());
    assert!(files(&dir.path().join("out").join(format!("{zip}.zip"))).contains(&program), "{program}");
    // What scoop makes of a newer version is what this script would.
    let update = scoop["autoupdate"]["architecture"]["64bit"]["url"].as_str().unwrap();
    assert_eq!(update.replace("$version", VERSION), archive["url"].as_str().unwrap());

    let installer = yaml(&read("ztun.ztun.installer.yaml"));
    let (url, sum) =
        (&installer["Installers"][0]["InstallerUrl"], &installer["Installers"][0]["InstallerSha256"]);
    assert_eq!(named(url.as_str().unwrap()), sum.as_str().unwrap());
    let path = installer["NestedInstallerFiles"][0]["RelativeFilePath"].as_str().unwrap();
    assert_eq!(path.replace('\\', "/"), program);
    let version = yaml(&read("ztun.ztun.yaml"));
    let locale = yaml(&read("ztun.ztun.locale.en-US.yaml"));
    for (manifest, kind) in [(&installer, "installer"), (&version, "version"), (&locale, "defaultLocale")] {
        assert_eq!(manifest["PackageIdentifier"].as_str(), Some("ztun.ztun"));
        assert_eq!(manifest["PackageVersion"].as_str(), Some(VERSION));
        assert_eq!(manifest["ManifestType"].as_str(), Some(kind));
        assert_eq!(manifest["ManifestVersion"].as_str(), Some("1.6.0"));
    }
    assert_eq!(version["DefaultLocale"], locale["PackageLocale"]);
}

#[test]
fn a_sum_that_is_missing_makes_no_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let sums = dir.path().join("SHA256SUMS");
    fs::write(&sums, "").unwrap();
    let done = Command::new(project("packaging/manifests.sh"))
        .args([VERSION.as_ref(), HOMEPAGE.as_ref(), sums.as_os_str(), dir.path().as_os_str()])
        .output()
        .unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(!done.status.success() && said.contains("no sum of ztun-"), "{said}");
}
