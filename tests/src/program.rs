//! The programs under test.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// The path of one of the workspace's programs, built first with this test's own profile.
///
/// Cargo builds a program for the tests of its own package only, so these tests ask for it themselves. When all
/// is built already that takes a fraction of a second, once for each test binary.
pub fn program(name: &'static str) -> PathBuf {
    static BUILT: Mutex<BTreeMap<&str, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    built.entry(name).or_insert_with(|| build(name)).clone()
}

fn build(name: &str) -> PathBuf {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Of the whole workspace, so that it is the build that `cargo build` makes, with the same features.
    cargo.args(["build", "--quiet", "--message-format=json-render-diagnostics", "--workspace", "--bin", name]);
    as_this_test(&mut cargo);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let built = cargo.current_dir(root).stderr(Stdio::inherit()).output().expect("cargo runs");
    assert!(built.status.success(), "cargo could not build {name}");
    // One message a line; the one about the program says where it is.
    let messages = String::from_utf8_lossy(&built.stdout);
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let found = messages.filter(|message| message["target"]["name"] == name);
    let path = found.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).next_back();
    path.unwrap_or_else(|| panic!("cargo built {name} and did not say where"))
}

/// The profile, target and target folder that this test was built with, as its path shows them:
/// `target/[triple/]profile/deps/test`.
fn as_this_test(cargo: &mut Command) {
    let own = std::env::current_exe().expect("the test's own path");
    let Some(folder) = own.ancestors().nth(2) else { return };
    let name = |folder: &Path| folder.file_name().unwrap_or_default().to_owned();
    let profile = name(folder);
    cargo.arg("--profile").arg(if profile == "debug" { "dev".into() } else { profile });
    let is_target = |folder: &Path| folder.join("CACHEDIR.TAG").is_file();
    match (folder.ancestors().nth(1), folder.ancestors().nth(2)) {
        (Some(target), _) if is_target(target) => cargo.arg("--target-dir").arg(target),
        (Some(triple), Some(target)) if is_target(target) => {
            cargo.arg("--target-dir").arg(target).arg("--target").arg(name(triple))
        }
        _ => cargo,
    };
}
