//! A language model as the reward of a run: servers that misbehave, runs that stop, replies that are asked for once.
use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};

#[allow(dead_code, reason = "every test file uses its own part")]
mod judge_server;
mod tiny;

use judge_server::{Asked, Does, Server};
use tiny::{Place, UP_TO_REWARD};

const KEY: &str = "sk-test-0123456789";

/// A group method whose only reward is a judge; `more` are further keys of the reward.
fn recipe(server: &Server, more: &str) -> String {
    let stage = format!(
        r#"
  policy:
    kind: grpo
    model: sft-a
    rewards:
      - kind: judge
        name: quality
        judge_model: test-judge
        system_prompt: You grade.
        template: "Q: {{prompt}} A: {{response}} [{{source}}]"
        base_url: {}
        max_retries: 3
        {more}
    reference: {{kind: sft, model: sft-a}}
    dataset: prompts.jsonl
    total_episodes: 24
    batch_size: 8
    num_generations: 2
    response_length: 6
    temperature: 1.0
    learning_rate: 3.0e-3
    save_steps: 1
"#,
        server.url()
    );
    UP_TO_REWARD.to_owned() + &stage
}

/// A place with prompts that have a column for the judge.
fn place(recipe: &str) -> Place {
    let place = Place::new();
    let line = |i: usize| format!("{}\n", json!({"prompt": format!("Cook number {i}"), "source": format!("s{i}")}));
    place.write("prompts.jsonl", (0..12).map(line).collect::<String>());
    place.write("r.yaml", recipe);
    place
}

/// A grade that depends on the prompt only.
fn graded(prompt: &str) -> Does {
    let sum: usize = prompt.bytes().map(usize::from).sum();
    Does::Says(format!("<think>[[1]]?</think>It could be [[3]], but I say [[{}.5]].", sum % 9 + 1))
}

fn run(place: &Place) -> std::process::Output {
    place.command(&["run", "r.yaml"]).env("OPENAI_API_KEY", KEY).output().unwrap()
}

fn done(place: &Place) {
    let output = run(place);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn failed(place: &Place) -> String {
    let output = run(place);
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

fn judgments(place: &Place) -> Vec<Value> {
    let text = String::from_utf8(place.bytes("out/policy/judgments-quality.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_hostile_judge_costs_time_and_changes_no_bit() {
    let kind = Server::start(|asked: &Asked| {
        thread::sleep(Duration::from_millis(20));
        graded(&asked.prompt)
    });
    let undisturbed = place(&recipe(&kind, ""));
    done(&undisturbed);
    let hostile = Server::start(|asked: &Asked| {
        assert_eq!(asked.authorization, format!("Bearer {KEY}"));
        let messages = asked.body["messages"].as_array().unwrap();
        assert_eq!((&messages[0]["role"], &messages[0]["content"]), (&json!("system"), &json!("You grade.")));
        assert_eq!((&asked.body["temperature"], &asked.body["max_tokens"]), (&json!(0.0), &json!(1024)));
        let sum: usize = asked.prompt.bytes().map(usize::from).sum();
        match (asked.before, sum % 8) {
            (0, 0) => Does::Status(429, vec![("retry-after", "0.1".to_owned())], "{}".to_owned()),
            (0, 1) => Does::Status(500, Vec::new(), "oh".to_owned()),
            (0, 2) => Does::Drops(30),
            (0, 3) => Does::Status(200, Vec::new(), "<html>please log in</html>".to_owned()),
            (0, 4) => Does::Says("That is hard to say.".to_owned()),
            (0, 5) => Does::Says("[[11]]".to_owned()),
            (0, 6) => Does::Says("[[seven]]".to_owned()),
            _ => graded(&asked.prompt),
        }
    });
    let disturbed = place(&recipe(&hostile, ""));
    done(&disturbed);
    for file in ["model.safetensors", "metrics.jsonl", "samples.jsonl"] {
        let path = format!("out/policy/{file}");
        assert!(undisturbed.bytes(&path) == disturbed.bytes(&path), "{path}");
    }
    let metrics = undisturbed.metrics("out/policy");
    assert!(metrics.iter().all(|line| (1.0..=10.0).contains(&line["rewards/quality/mean"].as_f64().unwrap())));
    let judgments = judgments(&disturbed);
    assert!(
        judgments.iter().any(|line| line["grade"].is_null()) && judgments.iter().any(|line| line["grade"].is_f64())
    );
    let line = judgments.iter().find(|line| line["grade"].is_f64()).unwrap();
    assert!(line["prompt"].as_str().unwrap().starts_with("Cook number "), "{line}");
    // A template with the prompt, the response and the column.
    let asked = kind.paid();
    assert!(asked.keys().all(|prompt| prompt.starts_with("Q: Cook number ") && prompt.contains(" [s")), "{asked:?}");
    assert!(asked.values().all(|count| *count == 1), "equal responses are graded once: {asked:?}");
    assert!(kind.most_at_once() > 1, "calls are concurrent");
    for path in ["out/policy/judgments-quality.jsonl", "out/policy/stage.json", "out/resolved.json"] {
        assert!(!String::from_utf8_lossy(&disturbed.bytes(path)).contains(KEY), "{path}");
    }
}

#[test]
fn a_run_without_its_judge_stops_with_a_checkpoint_and_asks_for_no_grade_twice() {
    // The server fails in the second update, after three of its answers.
    let allowed = Arc::new(AtomicUsize::new(11));
    let left = allowed.clone();
    let server = Server::start(move |asked: &Asked| {
        let may = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if may { graded(&asked.prompt) } else { Does::Status(503, Vec::new(), "overloaded".to_owned()) }
    });
    let place = place(&recipe(&server, "concurrency: 1").replace("max_retries: 3", "max_retries: 0"));
    let error = failed(&place);
    assert!(error.contains("update 2 of 3; ") && error.contains("step-1"), "{error}");
    assert!(error.contains("reward quality: the judge test-judge gave no reply (server_error): overloaded"), "{error}");
    assert!(error.contains("(prompt \"Cook number "), "{error}");
    // A line that a killed process left unfinished is dropped.
    let path = place.path("out/policy/judgments-quality.jsonl");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], b"{\"id\": \"4"].concat()).unwrap();
    allowed.store(usize::MAX, Ordering::SeqCst);
    done(&place);
    let paid = server.paid();
    assert!(paid.values().all(|count| *count == 1), "{paid:?}");
    assert!(fs::read(&path).unwrap().starts_with(&whole), "lines are never rewritten");
    let kind = Server::start(|asked: &Asked| graded(&asked.prompt));
    let undisturbed = self::place(&recipe(&kind, ""));
    done(&undisturbed);
    for file in ["model.safetensors", "metrics.jsonl", "samples.jsonl"] {
        let path = format!("out/policy/{file}");
        assert!(undisturbed.bytes(&path) == place.bytes(&path), "{path}");
    }
}

#[test]
fn what_has_no_grade_stops_the_run_or_gets_the_fallback() {
    // One prompt in three is never graded.
    let is_hard = |prompt: &str| prompt.bytes().map(usize::from).sum::<usize>() % 3 == 0;
    let server = Server::start(move |asked: &Asked| match is_hard(&asked.prompt) {
        true => Does::Says("No.".to_owned()),
        false => graded(&asked.prompt),
    });
    let strict = place(&recipe(&server, ""));
    let error = failed(&strict);
    assert!(
        error.contains("reward quality: the judge test-judge replied without a grade: \"No.\" (prompt \""),
        "{error}"
    );
    let lenient = place(&recipe(&server, "fallback: -1"));
    done(&lenient);
    let metrics = lenient.metrics("out/policy");
    let failed: Vec<f64> = metrics.iter().map(|line| line["rewards/quality/failed"].as_f64().unwrap_or(0.0)).collect();
    assert!(failed.iter().any(|share| *share > 0.0) && failed.iter().all(|share| *share < 1.0), "{failed:?}");
    let evaluated = "\n  eval:\n    kind: evaluate\n    arms: {a: sft-a, policy: policy}\n    baseline: a\n    datasets: [{name: test, dataset: prompts.jsonl}]\n    rewards: [{kind: judge, judge_model: test-judge, base_url: URL, fallback: 0}]\n    max_new_tokens: 6\n";
    lenient.write("r.yaml", recipe(&server, "fallback: -1") + &evaluated.replace("URL", &server.url()));
    done(&lenient);
    assert!(!lenient.bytes("out/eval/judgments-judge.jsonl").is_empty());
}

#[test]
fn a_judge_that_cannot_be_used_is_named_before_it_is_paid() {
    let server = Server::start(|_: &Asked| Does::Status(401, Vec::new(), format!("no such key: {KEY}")));
    let place = place(&recipe(&server, ""));
    let error = failed(&place);
    assert!(error.contains("reward quality: the judge test-judge cannot be asked: "), "{error}");
    assert!(error.contains("it refuses the key (401): no such key: ***") && !error.contains(KEY), "{error}");
    assert_eq!(server.requests(), 1, "one call tells it");
    for (keys, expected) in [
        ("pattern: 'x'", "pattern \"x\" has no group for the grade"),
        ("lowest: 10", "lowest is 10 and highest 10"),
        ("temperature: -1", "temperature is -1"),
        ("concurrency: 0", "concurrency is 0"),
        ("timeout: 0", "timeout is 0"),
    ] {
        place.write("r.yaml", recipe(&server, keys));
        let error = failed(&place);
        assert!(error.contains("rewards[0]: ") && error.contains(expected), "{expected}: {error}");
    }
    let without = recipe(&server, "").replace("{response}", "");
    place.write("r.yaml", without);
    assert!(failed(&place).contains("template has no {response}"));
    fs::remove_dir_all(place.path("out/policy")).unwrap();
    place.write("r.yaml", recipe(&server, "").replace("[{source}]", "[{origin}]"));
    let error = failed(&place);
    assert!(error.contains("reads the column \"origin\", which a record of the data lacks"), "{error}");
}
