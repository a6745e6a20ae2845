//! Downloads from the hub into the cache.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use ureq::http::StatusCode;

use super::cache::{self, Repo};
use super::client::{Announced, Client, Entry, Listing};
use super::{Id, Kind, digest};
use crate::atomic;
use crate::progress::Progress;

/// Gives up after this many consecutive connections without any bytes.
const MOST_FAILURES: u32 = 5;

const MEGABYTE: u64 = 1_000_000;

/// Downloads all needed files of a revision into its snapshot.
pub(super) fn all(
    client: &Client<'_>,
    repo: &Repo,
    id: &Id,
    kind: Kind,
    listing: &Listing,
    wanted: &[&Entry],
) -> Result<()> {
    let missing: Vec<&&Entry> =
        wanted.iter().filter(|entry| !repo.snapshot(&listing.commit).join(&entry.name).exists()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let total: u64 = missing.iter().filter_map(|entry| entry.size).sum();
    let progress = Progress::new(&id.to_string(), total.div_ceil(MEGABYTE).max(1), "MB");
    let mut done = 0;
    for entry in missing {
        let mut told = |bytes: u64| progress.set((done + bytes) / MEGABYTE);
        let length = one(client, repo, id, kind, &listing.commit, &entry.name, &mut told)
            .with_context(|| format!("cannot download {} of {id}", entry.name))?;
        done += length;
    }
    progress.set(total.div_ceil(MEGABYTE).max(1));
    Ok(())
}

/// Downloads one file into the cache, checks it, and links it. Returns its length.
fn one(
    client: &Client<'_>,
    repo: &Repo,
    id: &Id,
    kind: Kind,
    commit: &str,
    name: &str,
    told: &mut dyn FnMut(u64),
) -> Result<u64> {
    let announced = with_retries(|| client.announced(id, kind, commit, name))?;
    let blob = repo.blob(&announced.etag);
    let lock = repo.lock(&announced.etag)?;
    // Another process may have downloaded it meanwhile.
    if !blob.exists() {
        cache::create(blob.parent().unwrap_or(&blob))?;
        let partial = repo.blob(&format!("{}.incomplete", announced.etag));
        let fetch = |start: u64| client.bytes(id, kind, commit, name, start);
        fill(&partial, &announced, &fetch, told)?;
        if let Err(wrong) = digest::check(&partial, &announced.etag, announced.length) {
            // The resumed part may have been damaged: start from scratch, once.
            remove(&partial)?;
            fill(&partial, &announced, &fetch, told)?;
            if let Err(again) = digest::check(&partial, &announced.etag, announced.length) {
                remove(&partial)?;
                bail!(
                    "what was sent is not what was announced, twice ({wrong}; {again}): try again later, or use another mirror"
                );
            }
        }
        fs::rename(&partial, &blob).map_err(|e| atomic::explain(&e, &format!("cannot finish {}", blob.display())))?;
    }
    repo.link(commit, name, &announced.etag)?;
    drop(lock);
    Ok(announced.length)
}

type Fetch<'a> = &'a dyn Fn(u64) -> Result<ureq::http::Response<ureq::Body>>;

/// Extends a file to its full length, over as many connections as needed.
fn fill(partial: &Path, announced: &Announced, fetch: Fetch<'_>, told: &mut dyn FnMut(u64)) -> Result<()> {
    let mut failures = 0;
    loop {
        let held = partial.metadata().map_or(0, |meta| meta.len());
        if held > announced.length {
            remove(partial)?;
            continue;
        }
        if held == announced.length && partial.exists() {
            return Ok(());
        }
        match add(partial, held, announced.length, fetch, told) {
            Ok(()) => failures = 0,
            Err(Stop::Disk(error)) => return Err(error),
            Err(Stop::Connection(error)) => {
                let now = partial.metadata().map_or(0, |meta| meta.len());
                failures = if now > held { 0 } else { failures + 1 };
                if failures >= MOST_FAILURES {
                    return Err(error.context(format!(
                        "the connection failed {MOST_FAILURES} times in a row; what came ({now} of {} bytes) is kept: run it again to go on",
                        announced.length
                    )));
                }
                pause(failures);
            }
        }
    }
}

/// Why a connection was abandoned.
enum Stop {
    /// A network failure: worth another connection.
    Connection(anyhow::Error),
    /// A disk failure: final.
    Disk(anyhow::Error),
}

/// Appends the bytes of one connection.
fn add(partial: &Path, held: u64, length: u64, fetch: Fetch<'_>, told: &mut dyn FnMut(u64)) -> Result<(), Stop> {
    let mut answer = fetch(held).map_err(Stop::Connection)?;
    let disk = |e: std::io::Error| Stop::Disk(atomic::explain(&e, &format!("cannot write {}", partial.display())));
    if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE {
        remove(partial).map_err(Stop::Disk)?;
        return Err(Stop::Connection(anyhow!("the hub says that there is nothing from byte {held} on")));
    }
    let continues = answer.status() == StatusCode::PARTIAL_CONTENT;
    if continues && !starts_at(&answer, held) {
        return Err(Stop::Connection(anyhow!("the hub sent another part than was asked for")));
    }
    let mut file =
        File::options().create(true).append(continues).write(true).truncate(!continues).open(partial).map_err(disk)?;
    let mut at = if continues { held } else { 0 };
    let mut body = answer.body_mut().as_reader();
    let mut chunk = vec![0; 1 << 18];
    while at < length {
        let most = usize::try_from(length - at).unwrap_or(usize::MAX).min(chunk.len());
        let n = match body.read(&mut chunk[..most]) {
            Ok(0) => return Err(Stop::Connection(anyhow!("the connection ended after {at} of {length} bytes"))),
            Ok(n) => n,
            Err(e) => return Err(Stop::Connection(anyhow!("the connection broke after {at} of {length} bytes: {e}"))),
        };
        file.write_all(&chunk[..n]).map_err(disk)?;
        at += n as u64;
        told(at);
    }
    file.sync_all().map_err(disk)
}

/// Whether `Content-Range: bytes START-END/LENGTH` starts at the requested byte.
fn starts_at(answer: &ureq::http::Response<ureq::Body>, start: u64) -> bool {
    let range = answer.headers().get("content-range").and_then(|range| range.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
    first == Some(start)
}

/// Retries after connection failures; a refusal is final.
fn with_retries<T>(mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    for failures in 1..MOST_FAILURES {
        match ask() {
            Err(error) if error.chain().any(|cause| cause.is::<ureq::Error>()) => pause(failures),
            done => return done,
        }
    }
    ask()
}

fn pause(failures: u32) {
    std::thread::sleep(Duration::from_millis(100 << failures.min(6)));
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(atomic::explain(&e, &format!("cannot remove {}", path.display())))
        }
        _ => Ok(()),
    }
}
