//! One run: answers, calls, missing calls, rows, scores.
use anyhow::ensure;
use serde_json::{Value, json};

use super::{
    JudgeConfig,
    call::{Call, Settings},
    generating::{self, Answering},
    given,
    judging::Judging,
    protocol::{Match, Protocol},
    recorded, results,
    style::Encoding,
};
use crate::stage::{StageContext, Until};

/// Runs the stage.
///
/// # Errors
/// If something is missing or cannot be read, the judge cannot be reached, or more calls than allowed have no reply.
pub(super) fn run(config: &JudgeConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.validate()?;
    if config.only_counts() {
        let results = count_only(config)?;
        if !config.dry_run.0 {
            results::write(config, &results)?;
        }
        return Ok(results);
    }
    let dir = config.output_dir.as_path();
    let questions = given::questions(config)?;
    let answering = answering(config);
    if context.until == Until::Planned {
        config.models.values().try_for_each(|path| generating::check(path, &questions, &answering, context))?;
    }
    if config.dry_run.0 {
        ensure!(
            config.models.is_empty(),
            "dry_run counts prompts, which hold the answers, and those of models are still to be made; give answers"
        );
    } else if context.until == Until::Done {
        let mut models = config.models.iter();
        models.try_for_each(|(name, path)| generating::answer(dir, (name, path), &questions, &answering, context))?;
    }
    let inputs = given::inputs(config, questions)?;
    let matches = inputs.plan()?;
    let settings = settings(config);
    if config.dry_run.0 {
        return Ok(forecast(&matches, &settings));
    }
    let mut judging = Judging::open(config, &inputs, &matches, settings, context)?;
    judging.ask()?;
    judging.results()
}

/// Checks that questions, answers and templates are compatible.
///
/// # Errors
/// If they are not.
pub(super) fn check(config: &JudgeConfig) -> anyhow::Result<()> {
    if config.only_counts() {
        return count_only(config).map(drop);
    }
    let questions = given::questions(config)?;
    if config.models.is_empty() {
        given::inputs(config, questions)?.plan()?;
    }
    Ok(())
}

/// Counts existing judgments only.
fn count_only(config: &JudgeConfig) -> anyhow::Result<Value> {
    let mut rows = recorded::all_rows(config.judgments.iter().map(AsRef::as_ref), config.protocol)?;
    let duplicates = rows.remove_duplicates();
    let mut results = results::scores(config, &rows, None)?;
    results["rows"] = json!(rows.len());
    results["duplicates_left_out"] = json!(duplicates);
    Ok(results)
}

fn answering(config: &JudgeConfig) -> Answering<'_> {
    let of_protocol = match config.protocol {
        Protocol::MtBenchSingle | Protocol::MtBenchPair => 1024,
        _ => 4096,
    };
    Answering {
        protocol: config.protocol,
        max_new_tokens: config.max_new_tokens.unwrap_or(of_protocol),
        temperature: config.answer_temperature,
        seed: config.seed,
        slots: config.batch_size.0,
        chat: &config.chat,
    }
}

fn settings(config: &JudgeConfig) -> Settings {
    Settings {
        temperature: config.temperature.unwrap_or_else(|| config.protocol.temperature()),
        top_logprobs: config.protocol.top_logprobs(),
        max_tokens: config.max_tokens.unwrap_or_else(|| config.protocol.max_tokens()),
    }
}

/// The number of calls and tokens of a run.
fn forecast(matches: &[Match], settings: &Settings) -> Value {
    let calls: Vec<&Call> = matches.iter().flat_map(|found| &found.games).collect();
    let tokens: usize = calls.iter().map(|call| estimated_tokens(call)).sum();
    json!({
        "calls": calls.len(),
        "prompt_tokens": tokens,
        "completion_tokens_at_most": calls.len() * settings.max_tokens,
        "tokens_are_counted_with": "o200k_base",
    })
}

/// Estimated tokens of a prompt: those of its texts by gpt-4o's tokenizer, and a few for each message.
fn estimated_tokens(call: &Call) -> usize {
    call.messages.iter().map(|message| Encoding::O200k.tokens(&message.content) + 4).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::eval::judge::transport::Transport;

    /// With one token, a judge says nothing or is cut off: every call fails, and the stage is not done.
    #[test]
    fn a_local_judge_without_a_whole_judgment_has_failed() {
        let dir = tempfile::tempdir().unwrap();
        let base = crate::stage::fixture::base(dir.path());
        let write = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).unwrap();
            dir.path().join(name)
        };
        let template = json!({"name": "pair-v2", "type": "pairwise", "system_prompt": "", "output_format": "[[A]]",
            "prompt_template": "{question} {answer_a} {answer_b}"});
        let answers = |text: &str| format!("{}\n", json!({"prompt": "the cat", "response": text}));
        let config = JudgeConfig {
            answers: [
                ("a".to_owned(), write("a.jsonl", &answers("sat")).into()),
                ("b".to_owned(), write("b.jsonl", &answers("ran")).into()),
            ]
            .into(),
            baseline: "b".to_owned(),
            templates: Some(write("t.jsonl", &format!("{template}\n")).into()),
            transport: Transport::Local,
            judge_path: Some(base.into()),
            max_tokens: Some(1),
            resamples: 10,
            output_dir: dir.path().join("out"),
            ..JudgeConfig::default()
        };
        std::fs::create_dir_all(&config.output_dir).unwrap();
        let quiet = crate::stage::fixture::quiet();
        let error = format!("{:#}", run(&config, &quiet).unwrap_err());
        assert!(error.contains("2 of 2 calls have no reply: "), "{error}");
        let enough = JudgeConfig { max_failures: 2.into(), ..config.clone() };
        let results = run(&enough, &quiet).unwrap();
        let failures = results["failures"].as_object().unwrap();
        assert!(failures.keys().all(|kind| ["cut_off", "empty"].contains(&kind.as_str())), "{failures:?}");
        assert_eq!(failures.values().filter_map(Value::as_u64).sum::<u64>(), 2);
        assert_eq!(results["models"]["a"]["dropped"], 1);
        let error = format!("{:#}", run(&JudgeConfig { max_tokens: Some(5000), ..config }, &quiet).unwrap_err());
        assert!(error.contains("2 too_long") && error.contains("lower max_tokens"), "{error}");
    }
}
