//! `salsa judge` with misbehaving servers, killed at random times, and with checkpoints as judges.
use std::{
    collections::HashMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

mod judge_server;
mod tiny;

use judge_server::{Asked, Does, Server};
use tiny::Place;

const KEY: &str = "sk-test-0123456789";

/// Judge prompts in FastChat's layout.
fn templates() -> String {
    let row = json!({
        "name": "pair-v2", "type": "pairwise", "system_prompt": "You judge.", "output_format": "[[A]]",
        "prompt_template": "Q: {question}\nA: {answer_a}\nB: {answer_b}", "description": "", "category": "general",
    });
    format!("{row}\n")
}

/// A place with two files of answers to these prompts.
fn place(prompts: &[String]) -> Place {
    let place = Place::new();
    place.write("judge_prompts.jsonl", templates());
    for name in ["one", "other"] {
        let row = |prompt: &String| {
            format!("{}\n", json!({"prompt": prompt, "response": format!("{name} answers {prompt}")}))
        };
        place.write(&format!("{name}.jsonl"), prompts.iter().map(row).collect::<String>());
    }
    place
}

fn judge(place: &Place, server: &Server, out: &str, more: &[&str]) -> Command {
    let mut command = place.command(&["judge", "--protocol", "pairwise", "--baseline", "other"]);
    command.args(["--answers", "{one: one.jsonl, other: other.jsonl}", "--templates", "judge_prompts.jsonl"]);
    command.args(["--judge_model", "test-judge", "--base_url", &server.url(), "--output_dir", out]);
    command.args(["--resamples", "100", "--concurrency", "4"]).args(more).env("OPENAI_API_KEY", KEY);
    command
}

/// A verdict that depends on the prompt only.
fn verdict(prompt: &str) -> String {
    let sum: usize = prompt.bytes().map(usize::from).sum();
    format!("I think the better one is {}.", ["[[A]]", "[[B]]", "[[C]]"][sum % 3])
}

fn lines(place: &Place, name: &str) -> Vec<Value> {
    let text = String::from_utf8(place.bytes(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The text after `Q: ` in a prompt.
fn question(prompt: &str) -> &str {
    prompt.lines().next().unwrap().strip_prefix("Q: ").unwrap()
}

fn choice(content: Value, finish_reason: &str) -> Does {
    Does::Choice(
        json!({"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}),
    )
}

/// Failures of the server, chosen by the words of the question; once healed, it answers everything.
fn misbehave(asked: &Asked, healed: bool) -> Does {
    assert_eq!(asked.authorization, format!("Bearer {KEY}"));
    let error = |message: &str, param: &str| {
        let body =
            json!({"error": {"message": message, "type": "invalid_request_error", "param": param, "code": null}});
        Does::Status(400, Vec::new(), body.to_string())
    };
    // A reasoning model accepts neither of these parameters.
    if asked.body.get("max_tokens").is_some() {
        return error(
            "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            "max_tokens",
        );
    }
    if asked.body.get("temperature").is_some() {
        return error(
            "'temperature' does not support 0 with this model. Only the default (1) value is supported.",
            "temperature",
        );
    }
    assert_eq!(asked.body["top_p"], 1.0);
    let busy =
        |headers| Does::Status(429, headers, json!({"error": {"message": "slow down", "code": 429}}).to_string());
    // At most two attempts fail due to the parameters, so the third request with a prompt is a regular one.
    let is_early = asked.before < 3;
    match question(&asked.prompt) {
        "busy" if is_early => busy(vec![("retry-after", "0.2".to_owned())]),
        "busy without a word" if is_early => busy(Vec::new()),
        "broken" if is_early => Does::Status(500, Vec::new(), "oh".to_owned()),
        "late" if is_early => Does::Status(408, Vec::new(), String::new()),
        "dropped" if is_early => Does::Drops(0),
        "torn" if is_early => Does::Drops(60),
        "html" if is_early => Does::Status(200, Vec::new(), "<html>please log in</html>".to_owned()),
        "dripping" if is_early => Does::Drips,
        "empty" if !healed => choice(json!(null), "stop"),
        "long" if !healed => choice(json!("I think that [[A]] is"), "length"),
        "refused" if !healed => Does::Choice(json!({
            "message": {"role": "assistant", "content": null, "refusal": "I can't judge this."}, "finish_reason": "stop",
        })),
        "filtered" if !healed => choice(json!(""), "content_filter"),
        "undecided" => Does::Says("Both are fine.".to_owned()),
        _ => Does::Says(verdict(&asked.prompt)),
    }
}

const CASES: [&str; 14] = [
    "fine",
    "busy",
    "busy without a word",
    "broken",
    "late",
    "dropped",
    "torn",
    "html",
    "dripping",
    "empty",
    "long",
    "refused",
    "filtered",
    "undecided",
];

/// No call is lost or made twice, failures are counted by kind, and the results are those of a run without failures.
#[test]
fn a_hostile_server_costs_time_and_nothing_else() {
    let prompts = CASES.map(str::to_owned);
    let place = place(&prompts);
    let healed = Arc::new(AtomicBool::new(false));
    let is_healed = healed.clone();
    let server = Server::start(move |asked| misbehave(asked, is_healed.load(Ordering::SeqCst)));
    let more = ["--timeout", "2"];

    let output = judge(&place, &server, "out", &more).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let said = "8 of 28 calls have no reply: 2 content_filter, 2 cut_off, 2 empty, 2 refusal (one of them: ";
    assert!(stderr.contains(said), "{stderr}");
    assert!(stderr.contains("max_completion_tokens") && stderr.contains("refuses the temperature"), "{stderr}");
    assert!(!place.path("out/stage.json").exists(), "it is not done");
    let failed = ["empty", "long", "refused", "filtered"];
    let paid = server.paid();
    assert_eq!(paid.len(), 28, "every prompt was answered in some way");
    assert!(paid.values().all(|count| *count == 1), "{paid:?}");

    healed.store(true, Ordering::SeqCst);
    let output = judge(&place, &server, "out", &more).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{stderr}");
    for (prompt, count) in server.paid() {
        let expected = if failed.contains(&question(&prompt)) { 2 } else { 1 };
        assert_eq!(count, expected, "{prompt}: only what had no reply is asked again");
    }
    let results: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&results["calls"], &results["failures"]), (&json!(28), &json!({})));
    assert_eq!(results["models"]["one"]["dropped"], 1, "no verdict is an error by FastChat's rule: {results}");
    assert_eq!(results["judge"]["answered_by"], json!({"test-judge": 28}));
    assert!(results["rule"].as_str().unwrap().contains("FastChat"));

    let requests = server.requests();
    place.done(&mut judge(&place, &server, "out", &more));
    assert_eq!(server.requests(), requests, "what is done is not asked again");

    let friendly = Server::start(|asked| match question(&asked.prompt) {
        "undecided" => Does::Says("Both are fine.".to_owned()),
        _ => Does::Says(verdict(&asked.prompt)),
    });
    place.done(&mut judge(&place, &friendly, "undisturbed", &[]));
    let rows = "model_judgment/test-judge_pair.jsonl";
    assert_eq!(place.bytes(Path::new("out").join(rows)), place.bytes(Path::new("undisturbed").join(rows)));
    let undisturbed: Value = serde_json::from_slice(&place.bytes("undisturbed/judgment.json")).unwrap();
    assert_eq!(
        (&results["models"], &results["position_bias"]),
        (&undisturbed["models"], &undisturbed["position_bias"])
    );
    assert!(friendly.most_at_once() <= 4, "{} at once", friendly.most_at_once());

    for name in ["judgments.jsonl", "judgment.json", "stage.json", rows] {
        let text = String::from_utf8(place.bytes(Path::new("out").join(name))).unwrap();
        assert!(!text.contains(KEY), "{name} holds the key");
    }
    assert!(!stderr.contains(KEY) && !stdout.contains(KEY));
}

/// Killed at twenty random moments without a chance to clean up: answered calls stay answered.
#[test]
#[cfg(unix)]
fn a_killed_run_ends_as_an_undisturbed_one() {
    const KILLS: u64 = 20;
    let prompts: Vec<String> = (0..250).map(|i| format!("question number {i}")).collect();
    let place = place(&prompts);
    let behaviour = |asked: &Asked| {
        thread::sleep(Duration::from_millis(4));
        Does::Says(verdict(&asked.prompt))
    };
    let (server, calm) = (Server::start(behaviour), Server::start(behaviour));
    for kill in 0..KILLS {
        let mut command = judge(&place, &server, "out", &[]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // After a random number of answers and up to 6 ms more, which is longer than a call; every fourth run after up to
        // 40 ms, so that some end before any answer.
        let answered =
            || fs::read(place.path("out/judgments.jsonl")).unwrap_or_default().split(|b| *b == b'\n').count();
        let random = |draw: u64, below: usize| salsa_algo::random::below(1, draw, kill, below);
        let (most, micros) = if kill % 4 == 1 { (0, 40_000) } else { (answered() + 1 + random(0, 24), 6_000) };
        let start = Instant::now();
        while answered() < most {
            assert!(child.try_wait().unwrap().is_none(), "it ended before kill {kill}");
            assert!(start.elapsed() < Duration::from_secs(60), "it makes no progress");
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_micros(random(1, micros) as u64));
        assert!(child.try_wait().unwrap().is_none(), "it ended before kill {kill}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    place.done(&mut judge(&place, &server, "out", &[]));
    let mut replies: HashMap<String, usize> = HashMap::new();
    for line in lines(&place, "out/judgments.jsonl").iter().filter(|line| line.get("reply").is_some()) {
        *replies.entry(line["id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!((replies.len(), replies.values().all(|count| *count == 1)), (500, true));
    let paid: usize = server.paid().values().sum();
    // Four calls in flight, and the one answer that is being written.
    assert!(paid <= 500 + 5 * KILLS as usize, "{paid} for {KILLS} kills: more than what was under way");
    place.done(&mut judge(&place, &calm, "undisturbed", &[]));
    let rows = "model_judgment/test-judge_pair.jsonl";
    assert_eq!(place.bytes(Path::new("out").join(rows)), place.bytes(Path::new("undisturbed").join(rows)));
    assert_eq!(place.bytes("out/judgment.json"), place.bytes("undisturbed/judgment.json"));
}

/// Local servers take any key; one that occurs in the response changes nothing of it.
#[test]
fn a_placeholder_for_a_key_changes_no_reply() {
    let place = place(&["a - b".to_owned(), "c".to_owned()]);
    let server = Server::start(|asked| Does::Says(format!("EMPTY - {}", verdict(&asked.prompt))));
    let rows = |key: &str, out: &str| {
        place.done(judge(&place, &server, out, &[]).env("OPENAI_API_KEY", key));
        place.bytes(Path::new(out).join("model_judgment/test-judge_pair.jsonl"))
    };
    let expected = rows(KEY, "key");
    assert!(String::from_utf8_lossy(&expected).contains("EMPTY - I think"));
    for (number, key) in ["-", "A", "EMPTY", "choices", "assistant"].into_iter().enumerate() {
        assert_eq!(rows(key, &format!("placeholder-{number}")), expected, "{key}");
    }
}

/// An error that affects all calls ends the run after one call; the message has the address but not the key.
#[test]
fn a_wrong_address_or_key_costs_one_call() {
    let prompts: Vec<String> = (0..20).map(|i| format!("question {i}")).collect();
    let place = place(&prompts);
    for (status, body, said) in [
        (404, "{\"detail\": \"Not Found\"}".to_owned(), "no such address or model (404): Not Found"),
        (
            401,
            format!("{{\"error\": {{\"message\": \"Incorrect key {KEY}\"}}}}"),
            "refuses the key (401): Incorrect key ***",
        ),
        (301, String::new(), "redirects"),
        (429, "{\"error\": {\"code\": \"insufficient_quota\", \"message\": \"pay\"}}".to_owned(), "quota is used up"),
    ] {
        let server = Server::start(move |_| Does::Status(status, Vec::new(), body.clone()));
        let output = judge(&place, &server, "out", &[]).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), server.requests()), (Some(1), 1), "{stderr}");
        assert!(stderr.contains(said) && stderr.contains(&server.url()) && !stderr.contains(KEY), "{stderr}");
    }
}

#[test]
fn a_dry_run_counts_and_asks_nothing() {
    let place = place(&["a".to_owned(), "b".to_owned()]);
    let server = Server::start(|_| Does::Drops(0));
    let output = place.done(&mut judge(&place, &server, "out", &["--dry_run", "true"]));
    let forecast: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&forecast["calls"], server.requests()), (&json!(4), 0));
    assert!(forecast["prompt_tokens"].as_u64().unwrap() > 40 && !place.path("out").exists(), "{forecast}");
}

/// The same calls through files: requests are written, answers are read, and failed ones are written again.
#[test]
fn a_batch_goes_out_and_comes_back() {
    let place = place(&["a".to_owned(), "b".to_owned()]);
    let server = Server::start(|_| Does::Drops(0));
    let run = || judge(&place, &server, "out", &["--transport", "batch"]).output().unwrap();
    // Calls that were never asked are no failures, however many of these are allowed.
    let first = judge(&place, &server, "out", &["--transport", "batch", "--max_failures", "4"]).output().unwrap();
    let stderr = String::from_utf8(first.stderr).unwrap();
    assert!(first.status.code() == Some(1) && stderr.contains("4 requests are in requests.jsonl"), "{stderr}");
    let answer = |request: &Value| {
        let text = verdict(request["body"]["messages"][1]["content"].as_str().unwrap());
        let body = json!({"model": "m", "choices": [{"message": {"content": text}, "finish_reason": "stop"}]});
        json!({"custom_id": request["custom_id"], "response": {"status_code": 200, "body": body}, "error": null})
    };
    let write = |answers: Vec<Value>| {
        let text: String = answers.iter().map(|answer| format!("{answer}\n")).collect();
        place.write("out/responses.jsonl", text);
    };
    let requests = lines(&place, "out/requests.jsonl");
    write(requests[1..].iter().rev().map(answer).collect());
    let second = run();
    let stderr = String::from_utf8(second.stderr).unwrap();
    assert!(second.status.code() == Some(1) && stderr.contains("1 requests are in requests.jsonl"), "{stderr}");
    assert_eq!(lines(&place, "out/requests.jsonl"), requests[..1]);
    write(requests.iter().map(answer).collect());
    let third = run();
    assert!(third.status.success(), "{}", String::from_utf8_lossy(&third.stderr));
    assert_eq!(lines(&place, "out/judgments.jsonl").len(), 4);
    assert_eq!(server.requests(), 0);
}

/// Checkpoints answer, and a checkpoint judges by the probability of its first token: offline and reproducibly.
#[test]
fn checkpoints_answer_and_judge() {
    let recipe = format!(
        "{}{}",
        tiny::UP_TO_REWARD,
        r#"
  judged: &judged
    kind: judge
    protocol: alpaca_eval2
    questions: prompts.jsonl
    templates: clf.txt
    models: {sft_a: sft-a, sft_b: sft-b}
    baseline: sft_a
    transport: local
    judge_path: sft-b
    judge_model: sft-b
    max_new_tokens: 8
    resamples: 50
  again: {<<: *judged}
"#
    );
    let place = Place::new();
    place.write("r.yaml", recipe);
    place.write("prompts.jsonl", "{\"instruction\": \"a dip with peas\"}\n{\"instruction\": \"a soup\"}\n");
    place.write("clf.txt", "<|im_start|>user\n{instruction}? m: {output_1} M: {output_2}\n<|im_end|>");
    place.done(&mut place.command(&["run", "r.yaml", "--check"]));
    place.done(&mut place.command(&["run", "r.yaml"]));
    for name in
        ["judgment.json", "judgments.jsonl", "model_judgment/sft_b/annotations.json", "model_answer/sft_a.jsonl"]
    {
        assert_eq!(
            place.bytes(Path::new("out/judged").join(name)),
            place.bytes(Path::new("out/again").join(name)),
            "{name}"
        );
    }
    let results: Value = serde_json::from_slice(&place.bytes("out/judged/judgment.json")).unwrap();
    let model = &results["models"]["sft_b"];
    assert_eq!(model["n_total"], 2, "{results}");
    let rate = model["win_rate"].as_f64().unwrap();
    assert!((0.0..=100.0).contains(&rate) && results["rule"].as_str().unwrap().contains("AlpacaEval"), "{results}");
    let page = String::from_utf8(place.bytes("out/report.html")).unwrap();
    assert!(page.contains("judged"), "the report has the stage");
}
