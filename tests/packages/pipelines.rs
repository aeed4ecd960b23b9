//! The pipelines: every command that they call is one of build-all.sh, and they may no more than they need.

use super::{text, yaml};
use std::collections::BTreeSet;
use yaml_rust2::Yaml;

const PIPELINES: [&str; 2] = [".github/workflows/ci.yml", ".github/workflows/release.yml"];

/// The commands of build-all.sh: the patterns of its last `case`.
fn commands() -> BTreeSet<String> {
    let script = text("build-all.sh");
    let (_, cases) = script.rsplit_once("\ncase ").unwrap();
    let names = cases.lines().filter_map(|line| line.trim().split_once(')').map(|(name, _)| name.to_owned()));
    names
        .filter(|name| {
            name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '-') && !name.is_empty()
        })
        .collect()
}

fn jobs(pipeline: &Yaml) -> Vec<(&str, &Yaml)> {
    let jobs = pipeline["jobs"].as_hash().unwrap();
    jobs.iter().map(|(name, job)| (name.as_str().unwrap(), job)).collect()
}

fn steps(job: &Yaml) -> &[Yaml] {
    job["steps"].as_vec().unwrap()
}

#[test]
fn every_command_is_one_of_build_all() {
    let known = commands();
    assert!(known.contains("check") && known.contains("package"), "{known:?}");
    let mut called = BTreeSet::new();
    for path in PIPELINES {
        let pipeline = yaml(&text(path));
        for (name, job) in jobs(&pipeline) {
            // A command may come from the job's matrix.
            let matrix = &job["strategy"]["matrix"]["command"];
            let choices: Vec<&str> = matrix
                .as_vec()
                .map_or(vec![], |list| list.iter().map(|word| word.as_str().unwrap()).collect());
            for step in steps(job).iter().filter_map(|step| step["run"].as_str()) {
                for line in step.lines().filter_map(|line| line.trim().strip_prefix("./build-all.sh ")) {
                    if line == "${{ matrix.command }}" {
                        assert!(!choices.is_empty(), "{path}, {name}");
                        called.extend(choices.iter().map(|&choice| choice.to_owned()));
                    } else {
                        called.insert(line.split_whitespace().next().unwrap().to_owned());
                    }
                }
            }
        }
    }
    assert!(called.is_subset(&known), "{:?} are not there", called.difference(&known).collect::<Vec<_>>());
    for needed in
        ["test", "check", "package", "portable", "system", "release", "reproduce", "lib", "cross-test"]
    {
        assert!(called.contains(needed), "nobody calls {needed}");
    }
    assert!(!called.contains("cross-check"), "check does that already");
}

#[test]
fn they_may_no_more_than_they_need() {
    for path in PIPELINES {
        let pipeline = yaml(&text(path));
        let permissions = pipeline["permissions"].as_hash().unwrap_or_else(|| panic!("{path}"));
        assert!(
            permissions
                .iter()
                .all(|(name, right)| name.as_str() == Some("contents") && right.as_str() == Some("read")),
            "{path}"
        );
        assert!(pipeline["concurrency"]["group"].as_str().is_some(), "{path}");
        for (name, job) in jobs(&pipeline) {
            assert!(job["timeout-minutes"].as_i64().is_some(), "{path}, {name}: it may run for six hours");
            for step in steps(job) {
                if let Some(action) = step["uses"].as_str() {
                    let (_, version) = action.split_once("@v").unwrap_or_else(|| panic!("{action}"));
                    let numbers: Vec<_> = version.split('.').map(str::parse::<u32>).collect();
                    assert!(
                        numbers.len() == 3 && numbers.iter().all(Result::is_ok),
                        "{action} is not one version"
                    );
                }
                if step["uses"].as_str().is_some_and(|action| action.starts_with("actions/checkout@")) {
                    assert_eq!(step["with"]["persist-credentials"].as_bool(), Some(false), "{path}, {name}");
                }
                // What somebody else names (a branch, a title) reaches a shell as a variable, not as its text.
                let run = step["run"].as_str().unwrap_or_default();
                assert!(!run.contains("${{ github."), "{path}, {name}: {run}");
            }
        }
    }
}

/// Only the release writes, and only what was tested.
#[test]
fn a_release_is_what_was_tested() {
    let pipeline = yaml(&text(".github/workflows/release.yml"));
    assert_eq!(pipeline["on"]["push"]["tags"][0].as_str(), Some("v*"));
    let jobs = jobs(&pipeline);
    let writers: Vec<&Yaml> =
        jobs.iter().filter(|(_, job)| !job["permissions"].is_badvalue()).map(|(_, job)| *job).collect();
    assert_eq!(writers.len(), 1);
    let rights: BTreeSet<&str> =
        writers[0]["permissions"].as_hash().unwrap().keys().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(rights, BTreeSet::from(["attestations", "contents", "id-token"]));
    let runs: Vec<&str> = steps(writers[0]).iter().filter_map(|step| step["run"].as_str()).collect();
    let place =
        |what: &str| runs.iter().position(|run| run.contains(what)).unwrap_or_else(|| panic!("no {what}"));
    assert!(place("./build-all.sh test") < place("./build-all.sh release"));
    assert!(place("./build-all.sh release") < place("./build-all.sh reproduce"));
    assert!(place("./build-all.sh reproduce") < place("./build-all.sh package"));
    assert!(place("./build-all.sh package") < place("gh release create"));
}
