//! Tells the program which commit it was built from, as far as that can be known.
//!
//! `AGORA_RTM_BRIDGE_COMMIT` says it where there is no repository (an image, a package). Else git
//! is asked, but only for a release build: a development build that named its commit would be
//! compiled anew after each one.

use std::env;
use std::path::Path;
use std::process::Command;

const GIVEN: &str = "AGORA_RTM_BRIDGE_COMMIT";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={GIVEN}");
    let given = env::var(GIVEN).ok().filter(|commit| !commit.is_empty());
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let found = || if is_release { commit_of_repository() } else { None };
    let commit = given.or_else(found).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=AGORA_RTM_BRIDGE_BUILT_FROM={commit}");
}

/// The commit that is checked out. `None` without git, and where these sources lie in somebody
/// else's repository (unpacked by a packager).
fn commit_of_repository() -> Option<String> {
    let root = env::var_os("CARGO_MANIFEST_DIR")?;
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != Path::new(&root).canonicalize().ok()? {
        return None;
    }
    // A path that is not there would run this script at every build.
    let head = git(&["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "packed-refs"].into_iter().chain(head.as_deref()) {
        let file = git(&["rev-parse", "--git-path", name])?;
        if Path::new(&file).exists() {
            println!("cargo::rerun-if-changed={file}");
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

/// One line that git answers.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let line = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !line.is_empty()).then_some(line)
}
