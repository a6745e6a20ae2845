//! `salsa serve` through its sockets: replies compared with the commands, under load, and with hostile clients.
use std::{
    io::Write,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use salsa_engine::random::Random;
use serde_json::{Value, json};

mod http;
mod tiny;

use http::{Reply, Server, post};
use tiny::{Place, UP_TO_REWARD};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// A base with two adapters and a reward adapter on it.
fn place() -> Place {
    const ADAPTER: &str = "\n    use_peft: true\n    lora_r: 4\n    lora_alpha: 8\n";
    let recipe = UP_TO_REWARD
        .replace("    kind: sft\n", &format!("    kind: sft{ADAPTER}"))
        .replace("    kind: reward\n", &format!("    kind: reward{ADAPTER}"));
    Place::with(&recipe)
}

/// The base, its adapters and the reward model, in f32.
const ALL: &str = "base=out/base reward=out/reward --adapter a=out/sft-a --adapter b=out/sft-b --dtype f32";

fn message(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

/// The rows that a command writes for these input rows.
fn rows(place: &Place, command: &str, rows: &[Value]) -> Vec<Value> {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    place.write("in.jsonl", text);
    place.salsa(&format!("{command} --input in.jsonl --output out.jsonl --dtype f32 --device cpu"));
    let text = String::from_utf8(place.bytes("out.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The content of a reply without its id and time.
fn content(reply: &Reply) -> String {
    fn strip(value: &mut Value) {
        let fields = value.as_object_mut().unwrap();
        fields.remove("id").unwrap();
        fields.remove("created").unwrap();
    }
    if reply.headers["content-type"] == "text/event-stream" {
        let mut events = reply.events();
        events.iter_mut().for_each(strip);
        return events.iter().map(|event| format!("{event}\n")).collect();
    }
    let mut value = reply.json();
    strip(&mut value);
    value.to_string()
}

#[test]
fn replies_are_what_the_commands_write() {
    let place = place();
    let server = Server::start(&place, ALL);
    let prompts = ["What can I cook with eggs?", "Please help me: rice and beans", "x"];
    for (model, dir) in [("base", "out/base"), ("a", "out/sft-a"), ("b", "out/sft-b")] {
        for (index, prompt) in prompts.iter().enumerate() {
            // A message row equals a chat request; its random stream has id 0, as the first row of a file.
            let asked = [json!({"messages": message(prompt)}), json!({"prompt": prompt})];
            for (row, path) in asked.iter().zip([CHAT, TEXT]) {
                if path == CHAT && model == "base" {
                    continue;
                }
                for (temperature, extra) in [("0", json!({})), ("0.8", json!({"top_p": 0.9, "top_k": 40}))] {
                    let cut = if temperature == "0" { "" } else { "--top-p 0.9 --top-k 40" };
                    let command = format!(
                        "generate --model {dir} --max-new-tokens 12 --temperature {temperature} --seed 7 \
                         --num-return-sequences 3 {cut}"
                    );
                    let expected = rows(&place, &command, std::slice::from_ref(row));
                    let mut body = json!({"model": model, "max_tokens": 12, "n": 3, "seed": 7, "logprobs": 2});
                    body["temperature"] = temperature.parse::<f64>().unwrap().into();
                    for (name, value) in row.as_object().unwrap().iter().chain(extra.as_object().unwrap()) {
                        body[name] = value.clone();
                    }
                    if path == CHAT {
                        (body["logprobs"], body["top_logprobs"]) = (json!(true), json!(2));
                    }
                    let reply = server.ask(path, &body).json();
                    let context = format!("{model} {index} {path} {temperature}: {reply}");
                    same_as_generated(&reply, &expected, &context);
                    if temperature == "0" {
                        // For sampled replies, the command's lines have log-probs at the sampling temperature.
                        same_logprobs(&reply, &expected, &context);
                    }
                    body["stream"] = json!(true);
                    body["stream_options"] = json!({"include_usage": true});
                    same_when_streamed(&server.ask(path, &body), &reply, &context);
                }
            }
        }
    }
}

/// Compares texts, finish reasons and token counts with the lines of `salsa generate`.
fn same_as_generated(reply: &Value, expected: &[Value], context: &str) {
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices.len(), expected.len(), "{context}");
    let mut drawn = 0;
    for (choice, row) in choices.iter().zip(expected) {
        let text = if choice["text"].is_null() { &choice["message"]["content"] } else { &choice["text"] };
        assert_eq!(text, &row["response"], "{context}");
        assert_eq!(choice["finish_reason"], row["finish_reason"], "{context}");
        drawn += row["logprobs"].as_array().unwrap().len();
    }
    assert_eq!(reply["usage"]["completion_tokens"], drawn, "{context}");
    let prompt = expected[0]["tokens"].as_array().unwrap().len() - expected[0]["logprobs"].as_array().unwrap().len();
    assert_eq!(reply["usage"]["prompt_tokens"], prompt, "{context}");
}

fn same_logprobs(reply: &Value, expected: &[Value], context: &str) {
    for (choice, row) in reply["choices"].as_array().unwrap().iter().zip(expected) {
        let told: Vec<Value> = match choice["logprobs"]["content"].as_array() {
            Some(entries) => entries.iter().map(|entry| entry["logprob"].clone()).collect(),
            None => choice["logprobs"]["token_logprobs"].as_array().unwrap().clone(),
        };
        assert_eq!(&told, row["logprobs"].as_array().unwrap(), "{context}");
    }
}

/// Compares the concatenated pieces of a stream with the whole reply.
fn same_when_streamed(stream: &Reply, whole: &Value, context: &str) {
    let events = stream.events();
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!((&last["usage"], &last["choices"]), (&whole["usage"], &json!([])), "{context}");
    for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let own = || chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|chunk| chunk["index"] == index);
        let said = |chunk: &Value| {
            let text = if chunk["text"].is_null() { &chunk["delta"]["content"] } else { &chunk["text"] };
            text.as_str().unwrap_or_default().to_owned()
        };
        let text = if choice["text"].is_null() { &choice["message"]["content"] } else { &choice["text"] };
        assert_eq!(own().map(said).collect::<String>(), text.as_str().unwrap(), "{context}");
        let reasons: Vec<&Value> =
            own().map(|chunk| &chunk["finish_reason"]).filter(|reason| !reason.is_null()).collect();
        assert_eq!(reasons, [&choice["finish_reason"]], "{context}");
        for list in ["content", "tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let Some(expected) = choice["logprobs"][list].as_array() else { continue };
            let found: Vec<Value> =
                own().flat_map(|chunk| chunk["logprobs"][list].as_array().cloned().unwrap_or_default()).collect();
            assert_eq!(&found, expected, "{context}");
        }
        if whole["object"] == "chat.completion" {
            assert_eq!(own().next().unwrap()["delta"]["role"], "assistant", "{context}");
        }
    }
}

#[test]
fn logprobs_and_scores_are_what_the_commands_write() {
    let place = place();
    let server = Server::start(&place, ALL);
    let asked = [
        json!({"prompt": "What can I cook?", "response": "Rice with beans."}),
        json!({"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Eggs."}]}),
        json!({"text": "Once upon a time"}),
        json!({"tokens": [9, 8, 7, 6, 5]}),
        json!({"prompt": "What can I cook?", "response": "Rice wi", "finish_reason": "length"}),
    ];
    let told = rows(&place, "logprobs --model out/sft-a", &asked);
    let found = server.ask("/logprobs", &json!({"model": "a", "input": asked})).json();
    for (index, (row, entry)) in told.iter().zip(found["data"].as_array().unwrap()).enumerate() {
        assert_eq!((&row["tokens"], &row["logprobs"], index), (&entry["tokens"], &entry["logprobs"], index), "{entry}");
    }
    let scored = rows(&place, "score --model out/reward", &asked);
    let found = server.ask("/score", &json!({"input": asked})).json();
    for (row, entry) in scored.iter().zip(found["data"].as_array().unwrap()) {
        assert_eq!((&row["score"], &row["score_normalized"]), (&entry["score"], &entry["score_normalized"]), "{entry}");
    }

    // OpenRLHF sends texts as rendered by the template, with padding; the end token is added.
    let template = "<|user|>\nHello<|end|>\n<|assistant|>\nEggs.";
    for query in [template.to_owned(), format!("<|pad|><|pad|>{template}<|end|><|pad|>")] {
        let body = json!({"query": [query, template], "prompts": ["a", "b"], "labels": [null, null]});
        for path in ["/score", "/get_reward"] {
            let found = server.ask(path, &body).json();
            assert_eq!(found["rewards"], json!([scored[1]["score"], scored[1]["score"]]), "{found}");
            assert_eq!(found["scores"], found["rewards"]);
        }
    }

    // The echoed prompt with its log-probs, as used by evaluation harnesses: equal to `salsa logprobs`, plus the
    // likeliest.
    let tokens: Vec<Value> = told.iter().map(|row| row["tokens"].clone()).collect();
    let body = json!({
        "model": "a", "prompt": tokens, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": true, "seed": 1234,
    });
    let echoed = server.ask(TEXT, &body).json();
    for (row, choice) in told.iter().zip(echoed["choices"].as_array().unwrap()) {
        let logprobs = &choice["logprobs"];
        let found = logprobs["token_logprobs"].as_array().unwrap();
        let expected = row["logprobs"].as_array().unwrap();
        assert!(found[0].is_null() && logprobs["top_logprobs"][0].is_null());
        assert_eq!(&found[1..=expected.len()], &expected[..], "{choice}");
        assert_eq!(found.len(), expected.len() + 2, "one token was drawn");
        for (own, top) in found[1..].iter().zip(&logprobs["top_logprobs"].as_array().unwrap()[1..]) {
            let top = top.as_object().unwrap();
            let most = top.values().map(|logprob| logprob.as_f64().unwrap()).fold(f64::MIN, f64::max);
            assert!(most >= own.as_f64().unwrap() && (1..=2).contains(&top.len()), "{choice}");
        }
        let drawn = found.last().unwrap().as_f64().unwrap();
        let top = logprobs["top_logprobs"].as_array().unwrap().last().unwrap().as_object().unwrap();
        assert!(top.values().all(|logprob| logprob.as_f64().unwrap() <= drawn), "greedy takes the likeliest");
    }
    let alone = json!({"model": "a", "prompt": tokens[0], "max_tokens": 0, "logprobs": 0, "echo": true});
    let alone = server.ask(TEXT, &alone).json();
    assert_eq!(
        alone["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap()[1..],
        told[0]["logprobs"].as_array().unwrap()[..]
    );
    assert_eq!(
        (&alone["usage"]["completion_tokens"], &alone["choices"][0]["finish_reason"]),
        (&json!(0), &json!("length"))
    );
}

/// Requests of all kinds, for comparison.
fn mixed() -> Vec<(&'static str, Value)> {
    let ids: Vec<u32> = (5..25).collect();
    vec![
        (CHAT, json!({"model": "a", "messages": message("Hello"), "max_tokens": 20, "temperature": 0})),
        (
            CHAT,
            json!({"model": "b", "messages": message("Hello"), "max_tokens": 20, "seed": -3, "n": 4, "stream": true}),
        ),
        (
            CHAT,
            json!({"model": "a", "messages": message("Eggs and rice"), "max_tokens": 30, "seed": 1, "n": 3,
            "logprobs": true, "top_logprobs": 3, "stream": true, "stream_options": {"include_usage": true}}),
        ),
        (TEXT, json!({"model": "base", "prompt": ["Once", "upon", "a time"], "n": 2, "seed": 5, "logprobs": 4})),
        (
            TEXT,
            json!({"model": "base", "prompt": ids, "seed": 5, "max_tokens": 60, "stop": ["e", "an"], "echo": true,
            "stream": true, "n": 3, "logprobs": 1}),
        ),
        (
            CHAT,
            json!({"model": "b", "messages": message("Hi"), "max_completion_tokens": 25, "seed": 9, "top_k": 5,
            "top_p": 0.7, "temperature": 1.3, "stop": "the"}),
        ),
    ]
}

#[test]
fn a_reply_depends_on_its_request_alone() {
    let place = place();
    // Few slots, so that concurrent requests determine who waits.
    let server = Server::start(&place, &format!("{ALL} --max-num-seqs 3 --max-num-batched-tokens 40"));
    let alone: Vec<String> = mixed().iter().map(|(path, body)| content(&server.ask(path, body))).collect();
    /// Counts a finished client, in any case: the others must not wait for it.
    struct Ended<'a>(&'a AtomicUsize);
    impl Drop for Ended<'_> {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        for client in 0..6 {
            let (server, done) = (&server, &done);
            scope.spawn(move || {
                let mut random = Random::new(11, client);
                while done.load(Ordering::Relaxed) < 4 {
                    let (path, mut body) = mixed().swap_remove(random.below(6));
                    body["seed"] = json!(random.below(1000));
                    if random.below(3) == 0 {
                        // A client that disconnects.
                        let mut stream = server.connect();
                        stream.write_all(&post(path, "", body.to_string().as_bytes())).unwrap();
                        thread::sleep(Duration::from_millis(random.below(20) as u64));
                    } else {
                        server.ask(path, &body);
                    }
                }
            });
        }
        for client in 0..4 {
            let (server, alone, done) = (&server, &alone, &done);
            scope.spawn(move || {
                let _ended = Ended(done);
                for round in 0..5 {
                    for (at, (path, body)) in mixed().iter().enumerate().cycle().skip(client + round).take(6) {
                        assert_eq!(content(&server.ask(path, body)), alone[at], "{path} {body}");
                    }
                }
            });
        }
    });
    server.wait_until_idle();
}

#[test]
fn mistakes_are_named() {
    let place = place();
    let server = Server::start(&place, &format!("{ALL} --max-queue 8"));
    let many = Server::start(&place, "out/sft-a --max-queue 2048");
    let chat = |extra: Value| {
        let mut body = json!({"model": "a", "messages": message("Hello")});
        extra.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        (CHAT, body)
    };
    let text = |extra: Value| {
        let mut body = json!({"model": "a", "prompt": "Hello"});
        extra.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        (TEXT, body)
    };
    let long = vec![7; 200];
    let table: Vec<((&str, Value), u16, &str)> = vec![
        (chat(json!({"frequency_penalty": 0.5})), 400, "frequency_penalty"),
        (chat(json!({"tools": [{"type": "function"}]})), 400, "tools"),
        (chat(json!({"response_format": {"type": "json_object"}})), 400, "response_format"),
        (chat(json!({"wibble": 1})), 400, "wibble"),
        (chat(json!({"prompt": "x"})), 400, "prompt"),
        (chat(json!({"temperature": -1})), 400, "temperature"),
        (chat(json!({"temperature": 1e-30})), 400, "temperature"),
        (chat(json!({"temperature": "hot"})), 400, "temperature"),
        (chat(json!({"top_p": 0})), 400, "top_p"),
        (chat(json!({"top_k": -2})), 400, "top_k"),
        (chat(json!({"n": 0})), 400, "n"),
        (chat(json!({"n": 9})), 400, "n"),
        (chat(json!({"n": 2, "best_of": 3})), 400, "best_of"),
        (chat(json!({"max_tokens": 0})), 400, "max_tokens"),
        (chat(json!({"max_tokens": 1000})), 400, "messages"),
        (chat(json!({"seed": 1.5})), 400, "seed"),
        (chat(json!({"stop": ["a", 3]})), 400, "stop[1]"),
        (chat(json!({"stop": [""]})), 400, "stop[0]"),
        (chat(json!({"stop_token_ids": [100_000]})), 400, "stop_token_ids[0]"),
        (chat(json!({"top_logprobs": 3})), 400, "top_logprobs"),
        (chat(json!({"logprobs": true, "top_logprobs": 21})), 400, "top_logprobs"),
        (chat(json!({"stream_options": {}})), 400, "stream_options"),
        (chat(json!({"stream": true, "stream_options": {"x": 1}})), 400, "stream_options.x"),
        (chat(json!({"messages": []})), 400, "messages"),
        (chat(json!({"messages": "Hello"})), 400, "messages"),
        (chat(json!({"messages": [{"role": "user"}]})), 400, "messages[0].content"),
        (chat(json!({"messages": [{"content": "x"}]})), 400, "messages[0].role"),
        (
            chat(json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})),
            400,
            "messages[0].content[0]",
        ),
        (
            chat(json!({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]})),
            400,
            "messages[0].tool_calls",
        ),
        (chat(json!({"chat_template_kwargs": {"messages": 1}})), 400, "chat_template_kwargs"),
        (chat(json!({"model": "nobody"})), 404, "model"),
        (chat(json!({"model": "reward"})), 400, "model"),
        (chat(json!({"model": null})), 400, "model"),
        (chat(json!({"model": 3})), 400, "model"),
        (text(json!({"prompt": null})), 400, "prompt"),
        (text(json!({"prompt": []})), 400, "prompt"),
        (text(json!({"prompt": [[]]})), 400, "prompt"),
        (text(json!({"prompt": [1, "x"]})), 400, "prompt[1]"),
        (text(json!({"prompt": ["x", 1]})), 400, "prompt[1]"),
        (text(json!({"prompt": [-1]})), 400, "prompt[0]"),
        (text(json!({"prompt": [100_000]})), 400, "prompt"),
        (text(json!({"prompt": long})), 400, "prompt"),
        (text(json!({"prompt": [[5], long]})), 400, "prompt[1]"),
        (text(json!({"prompt": vec!["x"; 9]})), 400, "prompt"),
        (text(json!({"suffix": "x"})), 400, "suffix"),
        (text(json!({"messages": []})), 400, "messages"),
        (text(json!({"logprobs": true})), 400, "logprobs"),
        (("/score", json!({"input": []})), 400, "input"),
        (("/score", json!({"input": [{"nothing": 1}]})), 400, "input[0]"),
        (("/score", json!({"query": [""]})), 400, "query[0]"),
        (("/score", json!({"model": "a", "query": ["x"]})), 400, "model"),
        (("/score", json!({"query": vec!["x"; 9]})), 400, "query"),
        (("/logprobs", json!({"model": "a", "input": [{"tokens": [1, 100_000]}]})), 400, "input[0]"),
        (("/logprobs", json!({"model": "a", "input": [3]})), 400, "input[0]"),
    ];
    for ((path, body), status, param) in table {
        let reply = server.post(path, &body);
        let found = reply.json();
        assert_eq!((reply.status, &found["error"]["param"]), (status, &json!(param)), "{path} {body}: {found}");
        let message = found["error"]["message"].as_str().unwrap();
        assert!(message.len() > 10 && found["error"]["type"] == "invalid_request_error", "{path} {body}: {found}");
    }
    // More log-probs than a reply may hold; a stream never holds them all at once.
    let mut body = json!({"prompt": vec!["Hello"; 16], "n": 30, "max_tokens": 150, "logprobs": 20});
    let reply = many.post(TEXT, &body);
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("logprobs")), "{}", reply.text());
    body["max_tokens"] = json!(3);
    many.ask(TEXT, &body);
    // Parameters with neutral values are accepted.
    let neutral = json!({
        "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": [], "tool_choice": "none", "user": "me",
        "response_format": {"type": "text"}, "min_p": 0, "repetition_penalty": 1, "best_of": 1, "n": 1, "stop": null,
        "max_tokens": 3, "top_k": -1, "metadata": {"a": "b"}, "parallel_tool_calls": true, "store": false,
    });
    let (path, body) = chat(neutral);
    server.ask(path, &body);
    // Other paths, methods and formats.
    let head = "HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
    for (request, status) in [
        (format!("GET {CHAT} {head}\r\n"), 405),
        (format!("POST /v1/models {head}Content-Length: 0\r\n\r\n"), 405),
        (format!("GET /nowhere {head}\r\n"), 404),
        (format!("GET /v1/models/nobody {head}\r\n"), 404),
        (format!("GET /v1/models/%61 {head}\r\n"), 200),
        (format!("GET /health {head}\r\n"), 200),
        (format!("POST {CHAT} {head}Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{{}}"), 415),
        (format!("POST {CHAT} {head}Content-Length: 2\r\n\r\n{{}}"), 415),
        (
            format!("POST {CHAT} {head}Content-Type: application/json; charset=utf-8\r\nContent-Length: 2\r\n\r\n{{}}"),
            400,
        ),
        (format!("POST {CHAT} {head}Content-Type: application/json\r\nContent-Length: 5000001\r\n\r\n"), 413),
    ] {
        let reply = server.raw(request.as_bytes()).unwrap();
        assert_eq!(reply.status, status, "{request}: {}", reply.text());
    }
    let models = server.get("/v1/models").json();
    let names: Vec<&str> =
        models["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["base", "reward", "a", "b"]);
}
