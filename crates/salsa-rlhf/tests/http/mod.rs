//! A running server, and an HTTP client that can also misbehave.
#![allow(dead_code, reason = "every test file uses its own part")]
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::tiny::Place;

/// Longer than any request in these tests takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A running `salsa serve`; killed on drop.
pub(crate) struct Server {
    child: Child,
    /// Its address.
    pub(crate) address: SocketAddr,
    /// Its output on stderr so far.
    said: Arc<Mutex<String>>,
}

/// A received response.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The JSON events of a stream; the last one must be `[DONE]`.
    pub(crate) fn events(&self) -> Vec<Value> {
        let text = self.text();
        let mut events: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        assert_eq!(events.pop(), Some("[DONE]"), "{text}");
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

impl Server {
    /// Starts `salsa serve` with these arguments on a free port, and waits until it serves.
    pub(crate) fn start(place: &Place, words: &str) -> Server {
        let words: Vec<&str> = words.split_whitespace().collect();
        let mut command = place.command(&[&["serve", "--port", "0"], &words[..]].concat());
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = Arc::new(Mutex::new(String::new()));
        let address = loop {
            let Some(Ok(line)) = lines.next() else {
                panic!("the server ended: {}", said.lock().unwrap());
            };
            *said.lock().unwrap() += &format!("{line}\n");
            if let Some((_, address)) = line.split_once(" at http://") {
                break address.strip_suffix("/v1").unwrap().parse().unwrap();
            }
        };
        let more = said.clone();
        thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| *more.lock().unwrap() += &format!("{line}\n"))
        });
        Server { child, address, said }
    }

    /// Its output on stderr so far.
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.raw(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes()).unwrap()
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        self.raw(&post(path, "", body.to_string().as_bytes())).unwrap()
    }

    /// Posts a request that must succeed.
    pub(crate) fn ask(&self, path: &str, body: &Value) -> Reply {
        let reply = self.post(path, body);
        assert_eq!(reply.status, 200, "{path} {body}: {}", reply.text());
        reply
    }

    /// Sends these bytes and reads one response; none if the connection is closed without one.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Option<Reply> {
        let mut stream = self.connect();
        // The server may have responded and closed before reading everything.
        let _ = stream.write_all(bytes);
        read_reply(&mut BufReader::new(stream))
    }

    /// The value of a metric.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().unwrap()
    }

    /// Waits until no sequence is running or waiting.
    pub(crate) fn wait_until_idle(&self) {
        let began = Instant::now();
        while self.metric("salsa_sequences_running") + self.metric("salsa_sequences_waiting") > 0.0 {
            assert!(began.elapsed() < PATIENCE, "something goes on: {}", self.get("/metrics").text());
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: it is sent to a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Waits for the end; returns the exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(began.elapsed() < PATIENCE, "the server does not end: {}", self.said());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request with a JSON body; `headers` are whole lines.
pub(crate) fn post(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n{headers}\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Reads a response; none if the connection is closed before one.
pub(crate) fn read_reply(stream: &mut impl BufRead) -> Option<Reply> {
    let line = |stream: &mut dyn BufRead| {
        let mut line = String::new();
        stream.read_line(&mut line).ok().filter(|read| *read > 0)?;
        Some(line.trim_end().to_owned())
    };
    let first = line(stream)?;
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status line: {first}"));
    let mut headers = BTreeMap::new();
    loop {
        let line = line(stream)?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let mut body = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") {
        loop {
            let size = usize::from_str_radix(&line(stream)?, 16).unwrap();
            let mut chunk = vec![0; size];
            stream.read_exact(&mut chunk).ok()?;
            body.extend(chunk);
            line(stream)?;
            if size == 0 {
                break;
            }
        }
    } else {
        let size = headers.get("content-length").map_or(0, |size| size.parse().unwrap());
        body = vec![0; size];
        stream.read_exact(&mut body).ok()?;
    }
    Some(Reply { status, headers, body })
}
