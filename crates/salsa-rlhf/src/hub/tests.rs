//! Tests against a local server with the hub's interface, including every failure that can occur in transit.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::*;
use crate::atomic::hex;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A repository on a server, and the log of requests.
#[derive(Default)]
struct Served {
    files: Vec<(String, Vec<u8>)>,
    /// Another host for the files, as for large ones: `resolve` redirects there.
    elsewhere: Option<String>,
    /// The token required for access.
    token: Option<String>,
    /// `GET` connections still to be cut, each after this many bytes.
    cuts: Vec<usize>,
    /// How many more times wrong bytes are sent.
    lies: usize,
    /// Method, path, and the headers `range` and `authorization` if present.
    asked: Vec<(String, String, Option<String>, Option<String>)>,
}

/// A server on its own port until the process ends.
struct Server {
    endpoint: String,
    state: Arc<Mutex<Served>>,
}

impl Server {
    fn new(served: Served) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(served));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || answer(stream, &shared));
            }
        });
        Server { endpoint, state }
    }

    /// Number of requests with this method for paths that contain `part`.
    fn count(&self, method: &str, part: &str) -> usize {
        self.state.lock().unwrap().asked.iter().filter(|(m, path, ..)| m == method && path.contains(part)).count()
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn git_sha1(bytes: &[u8]) -> String {
    let mut hash = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

fn answer(mut stream: TcpStream, state: &Mutex<Served>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let headers: HashMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let (range, authorization) = (headers.get("range").cloned(), headers.get("authorization").cloned());
    let mut served = state.lock().unwrap();
    served.asked.push((method.clone(), path.clone(), range.clone(), authorization.clone()));
    let allowed = served.token.as_ref().is_none_or(|token| authorization == Some(format!("Bearer {token}")));
    let send = |stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]| {
        let length = if headers.to_lowercase().contains("content-length") {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", body.len())
        };
        let _ = stream.write_all(format!("HTTP/1.1 {status}\r\n{length}{headers}Connection: close\r\n\r\n").as_bytes());
        if method == "GET" {
            let _ = stream.write_all(body);
        }
    };
    if !allowed {
        return send(&mut stream, "401 Unauthorized", "", b"{}");
    }
    if path.starts_with("/api/") {
        if !(path.starts_with("/api/models/org/name/revision/main?")
            || path.starts_with(&format!("/api/datasets/org/set/revision/{COMMIT}?")))
        {
            return send(&mut stream, "404 Not Found", "", b"{}");
        }
        let siblings: Vec<serde_json::Value> = served
            .files
            .iter()
            .map(|(name, bytes)| serde_json::json!({"rfilename": name, "size": bytes.len()}))
            .collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return send(&mut stream, "200 OK", "", body.as_bytes());
    }
    let name =
        path.split_once(&format!("/resolve/{COMMIT}/")).or_else(|| path.split_once("/store/")).map(|(_, name)| name);
    let file = name.and_then(|name| served.files.iter().find(|(known, _)| known == name)).cloned();
    let Some((name, mut bytes)) = file else { return send(&mut stream, "404 Not Found", "", b"") };
    let is_large = name.ends_with(".safetensors");
    if let Some(other) = served.elsewhere.clone().filter(|_| is_large) {
        let headers = format!(
            "Location: {other}/store/{name}\r\nX-Linked-Etag: \"{}\"\r\nX-Linked-Size: {}\r\n",
            sha256(&bytes),
            bytes.len()
        );
        return send(&mut stream, "302 Found", &headers, b"elsewhere");
    }
    let etag = if is_large { sha256(&bytes) } else { git_sha1(&bytes) };
    if method == "GET" && served.lies > 0 && is_large {
        served.lies -= 1;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }
    let start = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let length = bytes.len();
    let (status, mut headers) = match start {
        Some(start) if start < length => {
            ("206 Partial Content", format!("Content-Range: bytes {start}-{}/{length}\r\n", length - 1))
        }
        Some(_) => return send(&mut stream, "416 Range Not Satisfiable", "", b""),
        None => ("200 OK", String::new()),
    };
    let part = &bytes[start.unwrap_or(0)..];
    headers += &format!("ETag: \"{etag}\"\r\nContent-Length: {}\r\n", part.len());
    let cut = if method == "GET" && is_large && !served.cuts.is_empty() { served.cuts.remove(0) } else { part.len() };
    drop(served);
    send(&mut stream, status, &headers, &part[..cut.min(part.len())]);
}

fn weights() -> Vec<u8> {
    (0..300_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn model() -> Served {
    let file = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.to_vec());
    Served {
        files: vec![
            file("README.md", b"not needed"),
            file("config.json", b"{\"model_type\": \"llama\"}"),
            file("model.safetensors", &weights()),
            file("pytorch_model.bin", b"not needed"),
            file("tokenizer.json", b"{}"),
            file("onnx/model.safetensors", b"not needed"),
        ],
        ..Served::default()
    }
}

fn hub(server: &Server, cache: &Path) -> Hub {
    Hub { endpoint: server.endpoint.clone(), cache: cache.to_owned(), token: None, network: Network::Online }
}

fn id(text: &str) -> Id {
    Id::parse(text).unwrap()
}

fn refusal(hub: &Hub, text: &str, kind: Kind) -> String {
    format!("{:#}", hub.fetch(&id(text), kind).unwrap_err())
}

#[test]
fn a_model_comes_into_the_layout_of_huggingface_hub() {
    let (server, cache) = (Server::new(model()), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    let folder = hub.fetch(&id("org/name"), Kind::Model).unwrap();
    let repo = cache.path().join("models--org--name");
    assert_eq!(folder, repo.join("snapshots").join(COMMIT));
    let mut names: Vec<String> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let blob = repo.join("blobs").join(sha256(&weights()));
    assert_eq!(fs::canonicalize(folder.join("model.safetensors")).unwrap(), fs::canonicalize(blob).unwrap());
    assert!(repo.join("blobs").join(git_sha1(b"{}")).exists());
    #[cfg(unix)]
    assert_eq!(fs::read_link(folder.join("tokenizer.json")).unwrap(), Path::new("../../blobs").join(git_sha1(b"{}")));
    // Again: the listing is requested, but no file.
    let before = server.count("GET", "/resolve/");
    hub.fetch(&id("org/name"), Kind::Model).unwrap();
    assert_eq!((server.count("GET", "/resolve/"), server.count("GET", "/api/")), (before, 2));
    // A commit never changes, so nothing is requested.
    assert_eq!(hub.fetch(&id(&format!("org/name@{COMMIT}")), Kind::Model).unwrap(), folder);
    assert_eq!(server.count("GET", "/api/"), 2);
}

#[test]
fn a_data_set_comes_with_its_folders() {
    let file = |name: &str| (name.to_owned(), b"{\"text\":\"a\"}\n".to_vec());
    let files = ["README.md", "dataset_infos.json", "en/data/train.jsonl", "en/data/test.jsonl", "de/data/train.jsonl"];
    let server = Server::new(Served { files: files.map(file).to_vec(), ..Served::default() });
    let cache = tempfile::tempdir().unwrap();
    let hub = hub(&server, cache.path());
    let folder = hub.fetch(&id(&format!("org/set@{COMMIT}:en")), Kind::Dataset).unwrap();
    assert_eq!(folder, cache.path().join(format!("datasets--org--set/snapshots/{COMMIT}/en")));
    assert_eq!(crate::data::splits(&folder).unwrap(), ["test", "train"]);
    assert_eq!(
        crate::data::load_split(&folder, crate::data::Which::Named("train"), crate::data::Reading::default())
            .unwrap()
            .examples
            .len(),
        1
    );
    assert_eq!(server.count("GET", "/datasets/org/set/resolve/"), 1, "both files have the same bytes");
    let error = refusal(&hub, &format!("org/set@{COMMIT}:fr"), Kind::Dataset);
    assert!(error.contains("has no data files there") && error.contains("@refs/convert/parquet"), "{error}");
}

#[test]
fn a_cut_connection_goes_on_where_it_was_cut() {
    let (server, cache) =
        (Server::new(Served { cuts: vec![100_000, 500_000, 7], ..model() }), tempfile::tempdir().unwrap());
    let folder = hub(&server, cache.path()).fetch(&id("org/name"), Kind::Model).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    let asked = server.state.lock().unwrap();
    let ranges: Vec<String> = asked.asked.iter().filter_map(|(_, _, range, _)| range.clone()).collect();
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    let starts: Vec<usize> = ranges.iter().map(|r| r["bytes=".len()..r.len() - 1].parse().unwrap()).collect();
    assert!(starts[0] > 0 && starts.is_sorted() && starts[2] <= 600_007, "{starts:?}");
}

#[test]
fn a_download_of_an_earlier_process_goes_on() {
    let (server, cache) = (Server::new(model()), tempfile::tempdir().unwrap());
    let blobs = cache.path().join("models--org--name/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let partial = blobs.join(format!("{}.incomplete", sha256(&weights())));
    fs::write(&partial, &weights()[..1_000_000]).unwrap();
    let folder = hub(&server, cache.path()).fetch(&id("org/name"), Kind::Model).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    assert!(!partial.exists());
    let asked = &server.state.lock().unwrap().asked;
    assert!(asked.iter().any(|(_, _, range, _)| range.as_deref() == Some("bytes=1000000-")));
    assert!(
        !asked.iter().any(|(method, path, range, _)| method == "GET" && path.contains("model.safe") && range.is_none())
    );
}

#[test]
fn what_was_kept_and_is_damaged_is_fetched_anew() {
    let (server, cache) = (Server::new(model()), tempfile::tempdir().unwrap());
    let blobs = cache.path().join("models--org--name/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{}.incomplete", sha256(&weights()))), vec![7; 1_000_000]).unwrap();
    let folder = hub(&server, cache.path()).fetch(&id("org/name"), Kind::Model).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn wrong_bytes_are_never_taken() {
    let (server, cache) = (Server::new(Served { lies: 1, ..model() }), tempfile::tempdir().unwrap());
    let folder = hub(&server, cache.path()).fetch(&id("org/name"), Kind::Model).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights(), "the second time it was right");

    let (server, cache) = (Server::new(Served { lies: 9, ..model() }), tempfile::tempdir().unwrap());
    let error = refusal(&hub(&server, cache.path()), "org/name", Kind::Model);
    for part in ["cannot download model.safetensors of org/name", "not what was announced, twice", "its digest is"] {
        assert!(error.contains(part), "{error}");
    }
    let repo = cache.path().join("models--org--name");
    assert!(!repo.join("blobs").join(sha256(&weights())).exists() && !repo.join("refs/main").exists());
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let store = Server::new(model());
    let served = Served { elsewhere: Some(store.endpoint.clone()), token: Some("secret".into()), ..model() };
    let (server, cache) = (Server::new(served), tempfile::tempdir().unwrap());
    let mut hub = hub(&server, cache.path());
    let error = refusal(&hub, "org/name", Kind::Model);
    assert!(error.contains("refuses the model org/name (401") && error.contains("set HF_TOKEN"), "{error}");
    hub.token = Some("wrong".into());
    assert!(refusal(&hub, "org/name", Kind::Model).contains("the token that was sent (HF_TOKEN) gives no access"));
    hub.token = Some("secret".into());
    let folder = hub.fetch(&id("org/name"), Kind::Model).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    assert_eq!(store.count("GET", "/store/model.safetensors"), 1);
    assert!(store.state.lock().unwrap().asked.iter().all(|(_, _, _, authorization)| authorization.is_none()));
}

#[test]
fn refusals_name_what_and_what_to_do() {
    let (server, cache) = (Server::new(model()), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    let error = refusal(&hub, "org/other", Kind::Model);
    assert!(error.contains("has no model org/other (404)"), "{error}");
    let error = refusal(&Hub { network: Network::Offline, ..hub.clone() }, "org/name", Kind::Model);
    assert!(error.contains("HF_HUB_OFFLINE is set") && error.contains("the cache has no org/name"), "{error}");
    let nobody = Hub { endpoint: "http://127.0.0.1:9".into(), ..hub.clone() };
    let error = refusal(&nobody, "org/name", Kind::Model);
    assert!(error.contains("cannot reach http://127.0.0.1:9") && error.contains("not in the cache"), "{error}");
    // The cache is used if the hub cannot be reached.
    let folder = hub.fetch(&id("org/name"), Kind::Model).unwrap();
    assert_eq!(nobody.fetch(&id("org/name"), Kind::Model).unwrap(), folder);
    assert_eq!(Hub { network: Network::Offline, ..hub.clone() }.fetch(&id("org/name"), Kind::Model).unwrap(), folder);
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    let error = refusal(&Hub { network: Network::Offline, ..hub }, "org/name", Kind::Model);
    assert!(error.contains("only a part of org/name"), "{error}");
    let pickled = Served {
        files: model().files.into_iter().filter(|(name, _)| name != "model.safetensors").collect(),
        ..Served::default()
    };
    let server = Server::new(pickled);
    let error = refusal(&super::Hub { endpoint: server.endpoint.clone(), ..nobody.clone() }, "org/name", Kind::Model);
    assert!(
        error.contains("no safetensors weights, only pickle files") && error.contains("save_pretrained"),
        "{error}"
    );
}

#[test]
fn two_at_once_do_not_disturb_each_other() {
    let (server, cache) = (Server::new(model()), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    let folders: Vec<PathBuf> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| hub.fetch(&id("org/name"), Kind::Model).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(folders.iter().all(|folder| fs::read(folder.join("model.safetensors")).unwrap() == weights()));
    assert_eq!(server.count("GET", "/resolve/0123456789abcdef0123456789abcdef01234567/model.safetensors"), 1);
}

#[test]
fn a_path_that_exists_wins_and_what_is_neither_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    assert_eq!(resolve(path, Kind::Model).unwrap(), dir.path());
    let error = resolve("/no/such/model", Kind::Model).unwrap_err().to_string();
    assert!(error.contains("there is no model at /no/such/model") && error.contains("org/name@revision"), "{error}");
}

#[test]
fn a_snapshot_has_the_id_it_was_fetched_by() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { endpoint: String::new(), cache: cache.path().to_owned(), token: None, network: Network::Offline };
    let repo = cache.path().join("models--org--my--model");
    let snapshot = repo.join("snapshots").join(COMMIT);
    fs::create_dir_all(snapshot.join("inner")).unwrap();
    let id = |folder: &Path| hub.id_of_snapshot(folder).map(|id| id.to_string());
    assert_eq!(id(&snapshot), Some(format!("org/my--model@{COMMIT}")), "main is not known");
    fs::create_dir(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), COMMIT).unwrap();
    assert_eq!(id(&snapshot).as_deref(), Some("org/my--model"));
    fs::write(repo.join("refs/main"), COMMIT.replace('0', "f")).unwrap();
    assert_eq!(id(&snapshot), Some(format!("org/my--model@{COMMIT}")), "main is another");
    let elsewhere = tempfile::tempdir().unwrap();
    let alike = elsewhere.path().join("models--org--name/snapshots").join(COMMIT);
    fs::create_dir_all(&alike).unwrap();
    let data = cache.path().join("datasets--org--name/snapshots").join(COMMIT);
    fs::create_dir_all(&data).unwrap();
    for other in [snapshot.join("inner"), repo, alike, data, cache.path().join("nowhere")] {
        assert_eq!(id(&other), None, "{}", other.display());
    }
}
