//! An OpenAI-compatible server with configurable misbehaviour.
use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

/// The reaction of the server to a request.
pub(crate) enum Does {
    /// Answers 200 with this text.
    Says(String),
    /// Answers 200 with this choice.
    Choice(Value),
    /// Answers with this status, headers and body.
    Status(u16, Vec<(&'static str, String)>, String),
    /// Closes the connection after this many bytes of a response.
    Drops(usize),
    /// Starts a response and sends a byte now and then, beyond any timeout.
    Drips,
}

/// A request: its prompt, the number of earlier requests with the same prompt, and the body.
pub(crate) struct Asked {
    pub(crate) prompt: String,
    pub(crate) before: usize,
    pub(crate) body: Value,
    pub(crate) authorization: String,
}

#[derive(Default)]
struct Seen {
    asked: HashMap<String, usize>,
    paid: HashMap<String, usize>,
    requests: usize,
    most_at_once: usize,
    at_once: usize,
}

/// A running server.
pub(crate) struct Server {
    port: u16,
    seen: Arc<Mutex<Seen>>,
}

impl Server {
    /// Starts a server with this behaviour.
    pub(crate) fn start(behaviour: impl Fn(&Asked) -> Does + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (shared, behaviour) = (seen.clone(), Arc::new(behaviour));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, behaviour) = (shared.clone(), behaviour.clone());
                thread::spawn(move || {
                    // A killed client closes its connection; there is no one to report to.
                    let _ = serve(stream?, &seen, &*behaviour);
                    std::io::Result::Ok(())
                });
            }
        });
        Server { port, seen }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    /// The number of requests of any kind.
    pub(crate) fn requests(&self) -> usize {
        self.seen.lock().unwrap().requests
    }

    /// The number of complete answers per prompt, which a real server would charge for.
    pub(crate) fn paid(&self) -> HashMap<String, usize> {
        self.seen.lock().unwrap().paid.clone()
    }

    /// The maximum number of concurrent requests.
    pub(crate) fn most_at_once(&self) -> usize {
        self.seen.lock().unwrap().most_at_once
    }
}

fn serve(mut stream: TcpStream, seen: &Mutex<Seen>, behaviour: &dyn Fn(&Asked) -> Does) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let Some((head, body)) = request(&mut stream)? else { return Ok(()) };
    assert!(head.starts_with("POST /v1/chat/completions "), "{head}");
    let header = |name: &str| {
        let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(name));
        line.map_or(String::new(), |line| line[name.len()..].trim().to_owned())
    };
    let body: Value = serde_json::from_slice(&body).unwrap();
    let prompt = body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned();
    let before = {
        let mut seen = seen.lock().unwrap();
        seen.requests += 1;
        seen.at_once += 1;
        seen.most_at_once = seen.most_at_once.max(seen.at_once);
        let count = seen.asked.entry(prompt.clone()).or_default();
        *count += 1;
        *count - 1
    };
    let asked = Asked { prompt, before, body, authorization: header("authorization:") };
    let does = behaviour(&asked);
    let is_paid = matches!(does, Does::Says(_) | Does::Choice(_));
    let sent = act(&mut stream, does);
    let mut seen = seen.lock().unwrap();
    seen.at_once -= 1;
    if is_paid {
        *seen.paid.entry(asked.prompt).or_default() += 1;
    }
    sent
}

fn act(stream: &mut TcpStream, does: Does) -> std::io::Result<()> {
    let usage = json!({"prompt_tokens": 40, "completion_tokens": 10});
    let whole = |choice: Value| json!({"model": "test-judge", "choices": [choice], "usage": usage}).to_string();
    match does {
        Does::Says(text) => {
            let choice =
                json!({"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"});
            answer(stream, 200, &[], &whole(choice))
        }
        Does::Choice(choice) => answer(stream, 200, &[], &whole(choice)),
        Does::Status(status, headers, body) => answer(stream, status, &headers, &body),
        Does::Drops(bytes) => {
            let text = "HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{\"choices\": [";
            stream.write_all(&text.as_bytes()[..bytes.min(text.len())])
        }
        Does::Drips => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n")?;
            for _ in 0..100 {
                stream.write_all(b"{")?;
                thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        }
    }
}

fn answer(stream: &mut TcpStream, status: u16, headers: &[(&str, String)], body: &str) -> std::io::Result<()> {
    let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    write!(stream, "HTTP/1.1 {status} X\r\n{more}content-length: {length}\r\nconnection: close\r\n\r\n{body}")
}

/// Head and body of a request; none if the client disconnected.
fn request(stream: &mut TcpStream) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
            });
            let length = length.expect("requests say their length");
            let mut body = bytes.split_off(end + 4);
            while body.len() < length {
                match stream.read(&mut part)? {
                    0 => return Ok(None),
                    count => body.extend_from_slice(&part[..count]),
                }
            }
            return Ok(Some((head, body)));
        }
        match stream.read(&mut part)? {
            0 => return Ok(None),
            count => bytes.extend_from_slice(&part[..count]),
        }
    }
}
