//! `salsa serve` with malformed, slow, disconnecting and numerous clients; its keys, queue and shutdown.
use std::{
    io::{BufReader, Read, Write},
    thread,
    time::{Duration, Instant},
};

use salsa_engine::random::Random;
use serde_json::{Value, json};

mod http;
mod tiny;

use http::{PATIENCE, Reply, Server, post, read_reply};
use tiny::{Place, UP_TO_REWARD};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// Language models only.
fn place() -> Place {
    let reward = UP_TO_REWARD.find("  reward:\n").expect("the recipe has a reward model");
    Place::with(&UP_TO_REWARD[..reward])
}

const MODEL: &str = "m=out/sft-a --dtype f32";

fn text(new_tokens: usize) -> Value {
    json!({"prompt": "Hello", "max_tokens": new_tokens, "temperature": 0, "ignore_eos": true})
}

/// Whether the client has finished sending.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// It has: the server need not wait for the rest of a broken head.
    All,
    /// It has not, as clients that wait for a response.
    SoFar,
}

/// Bytes that start as a request, most of them with an error somewhere.
fn malformed(random: &mut Random) -> (Vec<u8>, Sent) {
    let bodies = [
        json!({"model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2, "temperature": 0}),
        json!({"prompt": ["Hello", "you"], "max_tokens": 2, "n": 2, "logprobs": 2, "echo": true, "stop": ["a"]}),
        json!({"input": [{"tokens": [1, 2, 3]}, {"prompt": "a", "response": "b"}, {"text": "c"}]}),
    ];
    let paths = [CHAT, TEXT, "/logprobs", "/score", "/v1/models", "/"];
    let at = random.below(3);
    let mut body = bodies[at].to_string().into_bytes();
    match random.below(5) {
        0 => {
            // A value of another type somewhere.
            let values =
                ["null", "[]", "{}", "-1", "1e999", "\"\\ud800\"", "18446744073709551616", "true", "\"x\"", "0.5"];
            let mut value = bodies[at].clone();
            let fields = value.as_object_mut().unwrap();
            let name = fields.keys().nth(random.below(fields.len())).unwrap().clone();
            fields.insert(name, json!("\u{0}here"));
            let text = value.to_string().replace("\"\\u0000here\"", values[random.below(values.len())]);
            body = text.into_bytes();
        }
        1 => {
            for _ in 0..1 + random.below(4) {
                let place = random.below(body.len());
                body[place] = random.below(256) as u8;
            }
        }
        2 => body.truncate(random.below(body.len())),
        3 => {
            let depth = random.below(100_000);
            body = [&b"{\"messages\":"[..], &b"[".repeat(depth)].concat();
        }
        _ => {}
    }
    let mut request = post(paths[if random.below(4) == 0 { random.below(6) } else { at }], "", &body);
    match random.below(8) {
        0 => {
            // An error in the head.
            let head = request.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
            for _ in 0..1 + random.below(3) {
                let place = random.below(head);
                request[place] = random.below(256) as u8;
            }
            return (request, Sent::All);
        }
        1 => {
            let headers: String = (0..random.below(200)).map(|i| format!("X-{i}: y\r\n")).collect();
            request = post(CHAT, &headers, &body);
        }
        2 => request = post(CHAT, &format!("X: {}\r\n", "y".repeat(random.below(100_000))), &body),
        3 => return ((0..random.below(300)).map(|_| random.below(256) as u8).collect(), Sent::All),
        _ => {}
    }
    (request, Sent::SoFar)
}

/// No request crashes the server or causes an internal error; valid ones in between are served.
#[test]
fn ten_thousand_malformed_requests() {
    const REQUESTS: u64 = 10_000;
    const SEED: u64 = 20;
    println!("seed {SEED}");
    let place = place();
    let server = Server::start(&place, &format!("{MODEL} --client-timeout 1"));
    let good = server.ask(TEXT, &text(3)).json()["choices"].clone();
    let statuses: Vec<u16> = thread::scope(|scope| {
        let clients = (0..8).map(|client| {
            let (server, good) = (&server, &good);
            scope.spawn(move || {
                let mut statuses = Vec::new();
                for number in (client..REQUESTS).step_by(8) {
                    let (request, sent) = malformed(&mut Random::new(SEED, number));
                    let mut stream = server.connect();
                    // The server may respond and close before reading everything.
                    let _ = stream.write_all(&request);
                    if sent == Sent::All {
                        let _ = stream.shutdown(std::net::Shutdown::Write);
                    }
                    let status = read_reply(&mut BufReader::new(stream)).map_or(0, |reply| {
                        let is_json = reply.headers.get("content-type").is_some_and(|kind| kind == "application/json");
                        if is_json && reply.status >= 400 {
                            assert!(reply.json()["error"]["message"].is_string(), "request {number}: {}", reply.text());
                        }
                        reply.status
                    });
                    statuses.push(status);
                    if number % 500 < 8 {
                        assert_eq!(server.ask(TEXT, &text(3)).json()["choices"], *good, "after request {number}");
                    }
                }
                statuses
            })
        });
        let clients: Vec<_> = clients.collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let count = |status: u16| statuses.iter().filter(|found| **found == status).count();
    let known = [0, 200, 400, 404, 405, 408, 413, 414, 415, 431, 505];
    let other: Vec<u16> = statuses.iter().copied().filter(|status| !known.contains(status)).collect();
    assert!(other.is_empty(), "{other:?}");
    for status in [200, 400, 404, 405, 431] {
        assert!(count(status) > 20, "status {status} came {} times", count(status));
    }
    assert!(count(0) < statuses.len() / 5, "{} requests were not answered at all", count(0));
    assert!(!server.said().contains("panicked"), "{}", server.said());
    server.wait_until_idle();
}

/// A client that does not send its request or does not read its response is disconnected; others are served meanwhile.
#[test]
fn slow_clients_are_cut_off() {
    let place = place();
    let server = Server::start(&place, &format!("{MODEL} --client-timeout 1 --max-connections 200"));
    let began = Instant::now();
    let partial = post(TEXT, "", text(3).to_string().as_bytes());
    let mut slow: Vec<_> = (0..100)
        .map(|client| {
            let mut stream = server.connect();
            // Nothing, half a head, and a head without its body.
            stream.write_all(&partial[..[0, 30, partial.len() - 5][client % 3]]).unwrap();
            stream
        })
        .collect();
    assert_eq!(server.ask(TEXT, &text(3)).status, 200, "others are served");
    for (client, stream) in slow.iter_mut().enumerate() {
        let mut answer = Vec::new();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let end = stream.read_to_end(&mut answer);
        let is_kept = end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!is_kept, "client {client} is not cut off");
        let late = String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 408");
        assert!(answer.is_empty() || late, "client {client}: {}", String::from_utf8_lossy(&answer));
        assert!(late || client % 3 != 2, "a body that does not come is told so");
    }
    assert!(began.elapsed() < Duration::from_secs(30), "they were cut off after {:?}", began.elapsed());

    // A response of tens of megabytes that is not read: the server closes the connection while the client is still
    // connected.
    let much =
        json!({"prompt": "Hello", "max_tokens": 180, "n": 64, "logprobs": 20, "ignore_eos": true, "stream": true});
    let mut held = server.connect();
    held.write_all(&post(TEXT, "", much.to_string().as_bytes())).unwrap();
    let began = Instant::now();
    while server.metric("salsa_generated_tokens_total") < 100.0 || server.metric("salsa_connections") > 1.0 {
        assert!(began.elapsed() < PATIENCE, "the connection is kept: {}", server.get("/metrics").text());
        thread::sleep(Duration::from_millis(50));
    }
    let mut taken = Vec::new();
    let end = held.read_to_end(&mut taken);
    assert!(end.is_err() || !taken.ends_with(b"0\r\n\r\n"), "all {} bytes were taken", taken.len());

    // An idle connection after a served request is closed too.
    let mut idle = server.connect();
    idle.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut idle = BufReader::new(idle);
    assert_eq!(read_reply(&mut idle).unwrap().status, 200);
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    server.wait_until_idle();
}

/// A request without a key or with a wrong one is rejected; only the health of the server is public.
#[test]
fn keys_are_asked_for() {
    let place = place();
    place.write("keys", "# people\nsecret-1\nsecret-2\n");
    let server = Server::start(&place, &format!("{MODEL} --api-key-file keys"));
    let body = text(2).to_string();
    let status = |header: &str| server.raw(&post(TEXT, header, body.as_bytes())).unwrap();
    for header in ["", "Authorization: Bearer secret-3\r\n", "Authorization: secret-1\r\n"] {
        let reply = status(header);
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (401, &json!("invalid_api_key")), "{header}");
    }
    for header in ["Authorization: Bearer secret-1\r\n", "authorization: bearer secret-2\r\n"] {
        assert_eq!(status(header).status, 200, "{header}");
    }
    assert_eq!(server.get("/health").status, 200);
    for path in ["/v1/models", "/metrics", "/v1/models/m", "/nowhere"] {
        assert_eq!(server.get(path).status, 401, "{path}");
    }
}

/// Sequences beyond the queue are rejected with a retry time; waiting ones are served.
#[test]
fn a_full_queue_says_when_to_come_back() {
    let place = place();
    let server = Server::start(&place, &format!("{MODEL} --max-num-seqs 1 --max-queue 2"));
    let replies: Vec<Reply> = thread::scope(|scope| {
        let clients: Vec<_> = (0..24).map(|_| scope.spawn(|| server.post(TEXT, &text(150)))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let served: Vec<&Reply> = replies.iter().filter(|reply| reply.status == 200).collect();
    let busy: Vec<&Reply> = replies.iter().filter(|reply| reply.status == 429).collect();
    assert_eq!(served.len() + busy.len(), replies.len());
    // All may come before the first one leaves the queue: its two places are what is certain.
    assert!(served.len() >= 2 && !busy.is_empty(), "{} served, {} not", served.len(), busy.len());
    assert!(served.iter().all(|reply| reply.json()["choices"] == served[0].json()["choices"]));
    for reply in busy {
        assert_eq!(
            (reply.headers["retry-after"].as_str(), &reply.json()["error"]["code"]),
            ("1", &json!("rate_limit_exceeded"))
        );
    }
}

/// SIGTERM lets running requests finish and admits no new ones; a time limit ends it nevertheless.
#[test]
fn the_end_waits_for_what_runs() {
    let place = place();
    let mut server = Server::start(&place, &format!("{MODEL} --shutdown-timeout 100"));
    let long =
        json!({"prompt": "Hello", "max_tokens": 180, "n": 40, "logprobs": 5, "stream": true, "ignore_eos": true});
    let mut stream = server.connect();
    stream.write_all(&post(TEXT, "", long.to_string().as_bytes())).unwrap();
    let mut stream = BufReader::new(stream);
    // The head of the response: the request is running.
    let mut first = [0; 12];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    server.signal(libc::SIGTERM);
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest.matches("\"finish_reason\":\"length\"").count(), 40);
    assert!(rest.contains("data: [DONE]"), "the end is missing");
    assert_eq!(server.wait(), Some(0), "{}", server.said());

    let mut server = Server::start(&place, &format!("{MODEL} --shutdown-timeout 0"));
    let many = json!({"prompt": vec!["Hello"; 200], "max_tokens": 180, "n": 5, "ignore_eos": true});
    let mut stream = server.connect();
    stream.write_all(&post(TEXT, "", many.to_string().as_bytes())).unwrap();
    let began = Instant::now();
    while server.metric("salsa_sequences_running") == 0.0 {
        assert!(began.elapsed() < PATIENCE);
    }
    server.signal(libc::SIGINT);
    assert_eq!(server.wait(), Some(0), "{}", server.said());
}

/// Clients that disconnect at random leave nothing behind, and the others get their replies.
#[test]
fn clients_that_leave() {
    const CLIENTS: u64 = 64;
    let place = place();
    let server = Server::start(&place, &format!("{MODEL} --max-num-seqs 8"));
    let body = |stream: bool| {
        let mut body = json!({"prompt": "Hello", "max_tokens": 60, "n": 2, "seed": 4, "ignore_eos": true});
        body["stream"] = json!(stream);
        body
    };
    let expected = server.ask(TEXT, &body(false)).json()["choices"].clone();
    let ends: Vec<String> = {
        let choice = |choice: &Value| choice["text"].as_str().unwrap().to_owned();
        expected.as_array().unwrap().iter().map(choice).collect()
    };
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (server, ends, body) = (&server, &ends, &body);
            scope.spawn(move || {
                let mut random = Random::new(2, client);
                for _ in 0..6 {
                    let is_stream = random.below(2) == 0;
                    let request = post(TEXT, "", body(is_stream).to_string().as_bytes());
                    let mut stream = server.connect();
                    stream.write_all(&request).unwrap();
                    if random.below(2) == 0 {
                        // Disconnected at once, or in the middle of the response.
                        let _ = stream.read(&mut vec![0; random.below(3000)]);
                        continue;
                    }
                    let reply = read_reply(&mut BufReader::new(stream)).expect("an answer");
                    assert_eq!(reply.status, 200, "{}", reply.text());
                    let texts: Vec<String> = (0..2)
                        .map(|choice| match is_stream {
                            false => reply.json()["choices"][choice]["text"].as_str().unwrap().to_owned(),
                            true => {
                                let events = reply.events();
                                let own = events.iter().map(|event| &event["choices"][0]);
                                own.filter(|own| own["index"] == choice)
                                    .map(|own| own["text"].as_str().unwrap())
                                    .collect()
                            }
                        })
                        .collect();
                    assert_eq!(&texts, ends);
                }
            });
        }
    });
    server.wait_until_idle();

    // Unneeded replies are not generated.
    let drawn = || server.metric("salsa_generated_tokens_total");
    let before = drawn();
    let many = json!({"prompt": "Hello", "max_tokens": 180, "n": 128, "ignore_eos": true});
    let mut stream = server.connect();
    stream.write_all(&post(TEXT, "", many.to_string().as_bytes())).unwrap();
    while drawn() == before {
        thread::sleep(Duration::from_millis(2));
    }
    drop(stream);
    server.wait_until_idle();
    let made = drawn() - before;
    assert!(made < 0.5 * 180.0 * 128.0, "{made} tokens were drawn for a client that had left");
    assert!(!server.said().contains("panicked"), "{}", server.said());
}

/// Models that cannot be served are rejected before any weight is read.
#[test]
fn wrong_usage() {
    let place = place();
    let fails = |words: &str, code: i32, part: &str| {
        let words: Vec<&str> = words.split_whitespace().collect();
        let output = place.command(&words).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(code) && said.contains(part), "{words:?}: {:?} {said}", output.status);
    };
    fails("serve", 2, "MODEL");
    fails("serve out/sft-a --adapter out/sft-b", 2, "NAME=PATH");
    fails("serve out/sft-a --port 0 --max-num-seqs 0", 2, "--max-num-seqs is 0");
    fails("serve out/sft-a --port 0 --max-body lots", 2, "--max-body");
    fails("serve out/nothing --port 0", 1, "out/nothing");
    fails("serve out/sft-a out/sft-a/ --port 0", 1, "two models are called");
    fails("serve out/sft-a --port 0 --max-model-len 5000", 1, "--max-model-len");
    fails("serve out/sft-a --port 0 --api-key-file nowhere", 1, "nowhere");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    fails(&format!("serve out/sft-a --port {}", taken.local_addr().unwrap().port()), 1, "cannot listen at");
    let output = place.command(&["serve", "out/sft-a", "--port", "0"]).env("SALSA_MEMORY", "1MB").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("--max-num-seqs: 1"), "{said}");
}
