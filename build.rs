//! Composes the text of `--version`: version, commit, target.
//!
//! The commit comes from the variable `REPLICATOR_COMMIT`, from the record that cargo puts into a
//! crate archive, or from git. Without any of them the build succeeds, and the text has no commit.
//! The text depends on nothing else, so a build is reproducible. A debug build does not run git: it
//! would be compiled again after each commit.

#![allow(clippy::print_stdout, reason = "a build script speaks to cargo on standard output")]

use std::env::var;
use std::fs;
use std::path::Path;
use std::process::Command;

fn main() {
    let version = var("CARGO_PKG_VERSION").unwrap_or_default();
    let target = var("TARGET").unwrap_or_default();
    let commit = given().or_else(of_archive).or_else(of_git);
    let commit = commit.map_or_else(String::new, |commit| format!("{commit}, "));
    println!("cargo::rustc-env=REPLICATOR_BUILD={version} ({commit}{target})");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=REPLICATOR_COMMIT");
}

fn given() -> Option<String> {
    var("REPLICATOR_COMMIT").ok().and_then(|text| short(&text))
}

fn of_archive() -> Option<String> {
    let record = fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, rest) = record.split_once("\"sha1\"")?;
    short(rest.trim_start_matches([':', ' ', '"']))
}

fn of_git() -> Option<String> {
    if var("PROFILE").as_deref() != Ok("release") {
        return None;
    }
    // A copy of the sources inside another repository must not take that one's commit.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    let here = fs::canonicalize(var("CARGO_MANIFEST_DIR").ok()?).ok()?;
    if fs::canonicalize(top).ok()? != here {
        return None;
    }
    // Changes with each commit and checkout.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    let sources = ["src", "migrations", "Cargo.toml", "Cargo.lock"];
    for path in sources.into_iter().chain([log.as_str()]).filter(|path| Path::new(path).exists()) {
        println!("cargo::rerun-if-changed={path}");
    }
    let commit = short(&git(&["rev-parse", "HEAD"])?)?;
    let changed = git(&[&["status", "--porcelain", "--"], sources.as_slice()].concat())?;
    Some(if changed.is_empty() { commit } else { format!("{commit}-modified") })
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("--no-optional-locks").args(args).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8(output.stdout).ok())?
        .map(|text| text.trim().to_owned())
}

/// The first 12 digits of a commit id.
fn short(commit: &str) -> Option<String> {
    let digits = commit.get(..12)?;
    digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| digits.to_owned())
}
