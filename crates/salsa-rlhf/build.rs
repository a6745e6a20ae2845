//! The commit that `salsa --version` names.
//!
//! In this order: the variable `SALSA_COMMIT`; what `git archive` wrote into commit.txt; git. Development builds name none,
//! so that a commit does not compile them again.
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=commit.txt");
    println!("cargo::rerun-if-env-changed=SALSA_COMMIT");
    let given = env::var("SALSA_COMMIT").ok().filter(|commit| !commit.trim().is_empty());
    let commit = given.or_else(archived).or_else(checked_out);
    println!("cargo::rustc-env=SALSA_COMMIT={}", commit.as_deref().map_or("", str::trim));
    let target = env::var("TARGET").expect("cargo sets it");
    println!("cargo::rustc-env=SALSA_TARGET={target}");
}

/// From a tarball that `git archive` made: it fills in the placeholder of the file, a checkout leaves it.
fn archived() -> Option<String> {
    fs::read_to_string("commit.txt").ok().filter(|text| !text.starts_with('$') && !text.trim().is_empty())
}

/// From the repository of this very workspace, not from another that encloses it.
fn checked_out() -> Option<String> {
    if env::var("PROFILE").as_deref() != Ok("release") {
        return None;
    }
    let workspace = Path::new(&env::var("CARGO_MANIFEST_DIR").ok()?).join("../..").canonicalize().ok()?;
    if PathBuf::from(git(&["rev-parse", "--show-toplevel"])?).canonicalize().ok()? != workspace {
        return None;
    }
    // HEAD names a branch, whose commit is in a file of its own or among the packed ones.
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        let path = git(&["rev-parse", "--git-path", name])?;
        // A file that is absent would make every build run this again.
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["log", "-1", "--format=%h %cs", "--abbrev=10"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let done = Command::new("git").args(arguments).output().ok()?;
    done.status
        .success()
        .then(|| String::from_utf8_lossy(&done.stdout).trim().to_owned())
        .filter(|text| !text.is_empty())
}
