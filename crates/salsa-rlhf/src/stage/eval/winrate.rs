//! `salsa eval winrate`: how often one set of answers beats another, by a reward model or the gold reward of the toy
//! world.
use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use salsa_algo::stats::{Estimate, Interval, Resampling, Tally, Verdict, Z95, bootstrap_difference, bootstrap_mean};
use salsa_engine::Head;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    config::paths::{DataPath, ModelPath},
    data::Content,
    stage::{
        StageContext,
        device::Choice as DeviceChoice,
        keys::{ComputeType, check_count, check_range},
        kind::{Produces, Product, Stage},
        models::{
            frozen::{Found, Frozen},
            reading::{ReadingArguments, scores as scores_of},
            score_token::say_where_scores_are_read,
        },
        reads::{ModelUse, Reads, RowUse},
        text::rows::{self, Row, Rows},
    },
    world,
};

/// Configuration of `salsa eval winrate`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct WinrateConfig {
    /// JSON lines with `prompt` (or `messages`) and `response`, in the format of `salsa generate` and `salsa evaluate`:
    /// the side whose wins are counted.
    #[schemars(extend("x-heading" = "Answers"))]
    pub answers: DataPath,
    /// Answers to the same prompts: the side to compare with.
    pub baseline: DataPath,
    /// How the better answer is determined.
    #[schemars(extend("x-heading" = "Judgement"))]
    pub judge: Judge,
    /// The reward model, required by the judge `reward_model`. None: for judge `gold`, which has no model.
    pub reward_model_path: Option<ModelPath>,
    /// Maximum score difference of a tie; in units of score, at least 0.
    pub tie_margin: f64,
    /// Resamples of the bootstrap intervals, at least 1.
    pub resamples: usize,
    /// Seed of the bootstrap intervals.
    pub seed: u64,
    /// How rows are read.
    #[serde(flatten)]
    pub reading: ReadingArguments,
}

impl Default for WinrateConfig {
    fn default() -> WinrateConfig {
        WinrateConfig {
            answers: DataPath::new(),
            baseline: DataPath::new(),
            judge: Judge::RewardModel,
            reward_model_path: None,
            tie_margin: 0.0,
            resamples: Resampling::default().resamples,
            seed: 0,
            reading: ReadingArguments::default(),
        }
    }
}

/// How the better answer is determined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Judge {
    /// The score of a reward model.
    RewardModel,
    /// The gold reward of the toy world, for its prompts.
    Gold,
}

/// Upper limit for bootstrap resamples.
const MOST_RESAMPLES: u64 = 10_000_000;

impl Stage for WinrateConfig {
    const NAME: &'static str = "winrate";
    const ABOUT: &'static str =
        "How often one set of answers beats another, by a reward model or the toy world's gold reward.";
    const EXAMPLE: &'static str = "--answers a.jsonl --baseline b.jsonl --reward_model reward";
    const PRODUCT: Product = Product::Results;
    const PRODUCES: Produces = Produces::Results;
    const NEXT: &'static [(&'static str, &'static str)] = &[];
    const COMMAND: &'static [&'static str] = &["eval", "winrate"];

    fn check(&self) -> anyhow::Result<()> {
        check_range("tie_margin", self.tie_margin, 0.0..=f64::MAX)?;
        check_count("resamples", self.resamples as u64, MOST_RESAMPLES)?;
        self.reading.validate()?;
        match (self.judge, &self.reward_model_path) {
            (Judge::Gold, Some(_)) => bail!("judge is gold, so reward_model_path has no use; leave one of them out"),
            (Judge::RewardModel, None) => bail!("judge is reward_model; say which: reward_model_path: DIR"),
            _ => Ok(()),
        }
    }

    fn reads(&self) -> Reads {
        Reads::with_reader(self.reward_model_path.as_ref().map(AsRef::as_ref), &self.reading.chat)
            .tokenizer_if_any()
            .models("reward_model_path", ModelUse::Reward)
            .rows("answers", &self.answers, RowUse::Answer)
            .rows("baseline", &self.baseline, RowUse::Answer)
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        Some(self.reading.computes())
    }

    fn plans_memory(&self) -> bool {
        false
    }

    fn run(&self, context: &StageContext) -> anyhow::Result<Value> {
        run(self, context)
    }
}

/// Compares the two files: wins, ties and losses, the win rate with ties counted half, and the difference of scores,
/// with 95 % intervals (Wilson and paired bootstrap).
///
/// # Errors
/// If the files answer different prompts, or a line (which is named) or the reward model cannot be used.
pub(crate) fn run(config: &WinrateConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.check()?;
    let (ours, theirs) = (Rows::read(&config.answers)?, Rows::read(&config.baseline)?);
    let pairs = pairs(&ours, &theirs)?;
    let (our_scores, their_scores) = scores(config, &ours, &theirs, context)?;
    let scored = pairs.iter().filter_map(|&(ours, theirs)| our_scores[ours].zip(their_scores[theirs]));
    let (ours, theirs): (Vec<f64>, Vec<f64>) = scored.unzip();
    ensure!(!ours.is_empty(), "of every pair one answer is too long for the reward model; none is left");
    let how = Resampling { resamples: config.resamples, seed: config.seed, ..Resampling::default() };
    let mut results = comparison(&ours, &theirs, config.tie_margin, &how);
    results["left_out"] = json!(pairs.len() - ours.len());
    Ok(results)
}

/// The statistics of two lists of scores for the same prompts, as JSON.
///
/// # Panics
/// If the lists differ in length.
pub(crate) fn comparison(ours: &[f64], theirs: &[f64], tie_margin: f64, how: &Resampling) -> Value {
    assert_eq!(ours.len(), theirs.len(), "one score of each side per prompt");
    let verdict = |(&ours, &theirs): (&f64, &f64)| match (ours - theirs).abs() <= tie_margin {
        true => Verdict::Tie,
        false => Verdict::from_scores(ours, theirs),
    };
    let verdicts: Vec<Verdict> = ours.iter().zip(theirs).map(verdict).collect();
    let tally: Tally = verdicts.iter().copied().collect();
    let points: Vec<f64> = verdicts.iter().map(|verdict| points(*verdict)).collect();
    let wilson = tally.win_rate().map(|mean| Estimate { mean, interval: tally.interval(Z95) });
    json!({
        "rows": tally.rows(),
        "wins": tally.wins,
        "ties": tally.ties,
        "losses": tally.losses,
        "win_rate": wilson.map(estimate),
        "win_rate_bootstrap": bootstrap_mean(&points, how).map(estimate),
        "score": bootstrap_mean(ours, how).map(estimate),
        "baseline_score": bootstrap_mean(theirs, how).map(estimate),
        "score_difference": bootstrap_difference(ours, theirs, how).map(estimate),
    })
}

/// `{"mean": m, "ci95": [low, high]}`.
pub(crate) fn estimate(estimate: Estimate) -> Value {
    let Interval { low, high } = estimate.interval;
    json!({"mean": estimate.mean, "ci95": [low, high]})
}

fn points(verdict: Verdict) -> f64 {
    match verdict {
        Verdict::Win => 1.0,
        Verdict::Tie => 0.5,
        Verdict::Loss => 0.0,
    }
}

/// Pairs of rows that answer the same prompt: line by line if all prompts match, otherwise by prompt.
fn pairs(ours: &Rows, theirs: &Rows) -> anyhow::Result<Vec<(usize, usize)>> {
    let (our_keys, their_keys) = (ours.try_map(key)?, theirs.try_map(key)?);
    if our_keys == their_keys {
        return Ok((0..our_keys.len()).map(|row| (row, row)).collect());
    }
    let mut places = BTreeMap::new();
    for (row, key) in their_keys.iter().enumerate() {
        if places.insert(key, row).is_some() {
            bail!("{} answers a prompt twice and not line by line as {}: {key}", theirs.name(), ours.name());
        }
    }
    ensure!(
        our_keys.len() == their_keys.len(),
        "{} has {} answers, {} has {}; they must answer the same prompts",
        ours.name(),
        our_keys.len(),
        theirs.name(),
        their_keys.len()
    );
    our_keys
        .iter()
        .enumerate()
        .map(|(row, key)| {
            let place =
                places.remove(key).with_context(|| format!("{} does not answer (once more) {key}", theirs.name()))?;
            Ok((row, place))
        })
        .collect()
}

/// A key that is equal for answers to the same prompt.
fn key(row: &Row) -> anyhow::Result<String> {
    Ok(match row.prompt()? {
        Content::Text(text) => format!("{text:?}"),
        Content::Messages(messages) => format!("{messages:?}"),
    })
}

/// The judge's scores of both sides; `None` for omitted answers.
fn scores(
    config: &WinrateConfig,
    ours: &Rows,
    theirs: &Rows,
    context: &StageContext,
) -> anyhow::Result<(Scores, Scores)> {
    let Some(path) = &config.reward_model_path else {
        let gold = |row: &Row| gold(row).map(Some);
        return Ok((ours.try_map(gold)?, theirs.try_map(gold)?));
    };
    let (judge, reading) = (Found::open(path, Head::Scalar)?.with_chat(&config.reading.chat), &config.reading);
    let budget = *reading.max_tokens_per_batch;
    say_where_scores_are_read(&judge.checkpoint, judge.encoder.as_ref(), context);
    let spec = judge.spec();
    [ours, theirs].into_iter().for_each(|rows| rows.report_reading(judge.encoder.as_ref(), context));
    let sequences = |rows: &Rows| -> anyhow::Result<(Vec<bool>, Vec<Vec<u32>>)> {
        let read = reading.on_overlong.map(rows, context, |row| row.answer(judge.encoder.as_ref(), &spec))?;
        Ok((read.iter().map(Option::is_some).collect(), read.into_iter().flatten().collect()))
    };
    let ((our_rows, our_sequences), (their_rows, their_sequences)) = (sequences(ours)?, sequences(theirs)?);
    judge.check_memory_of_passes("winrate", &[&our_sequences, &their_sequences], budget, context)?;
    let Frozen { model, .. } = judge.load(&context.device)?;
    let scores = |title: &str, rows: &Rows, kept: &[bool], sequences: &[Vec<u32>]| -> anyhow::Result<Scores> {
        let mut scores = scores_of(title, &model, sequences, budget, context)?.into_iter();
        let of_row = |(row, kept): (&Row, &bool)| -> anyhow::Result<Option<f64>> {
            let Some(score) = kept.then(|| scores.next()).flatten() else { return Ok(None) };
            rows::check_finite("score", &[score]).with_context(|| rows.place(row))?;
            Ok(Some(f64::from(score)))
        };
        rows.rows.iter().zip(kept).map(of_row).collect()
    };
    let ours = scores("answers", ours, &our_rows, &our_sequences)?;
    Ok((ours, scores("baseline", theirs, &their_rows, &their_sequences)?))
}

/// A score for each row that is not omitted.
type Scores = Vec<Option<f64>>;

/// The toy world's reward of the row's response.
fn gold(row: &Row) -> anyhow::Result<f64> {
    let prompt = match row.prompt()? {
        Content::Text(text) => text,
        Content::Messages(messages) => {
            let asked = messages.messages.into_iter().rfind(|message| message.role == "user");
            asked.context("no message is the user's")?.content
        }
    };
    let response = row.response().and_then(Value::as_str).context("no \"response\" text")?;
    Ok(world::gold_reward(&prompt, response).total)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::stage::{
        fixture,
        lines::{
            generate::{self, GenerateConfig},
            score::{self, ScoreConfig},
        },
    };

    fn rows(dir: &Path, name: &str, answers: &[(&str, &str)]) -> std::path::PathBuf {
        let path = dir.join(name);
        let line = |(prompt, response): &(&str, &str)| json!({"prompt": prompt, "response": response});
        fixture::write_lines(&path, &answers.iter().map(line).collect::<Vec<_>>());
        path
    }

    const PEAS: &str = "Please give me a dip with peas and lemon, in 3 steps.";
    const GOOD: &str = "1. Rinse the peas. 2. Mash the peas with lemon. 3. Serve cold. Done.";

    #[test]
    fn ties_count_half_and_intervals_are_by_hand() {
        let result = comparison(&[1.0, 1.0, 0.5, 0.0], &[0.0, 0.95, 0.5, 1.0], 0.1, &Resampling::default());
        assert_eq!((&result["wins"], &result["ties"], &result["losses"]), (&json!(1), &json!(2), &json!(1)));
        assert_eq!(result["win_rate"]["mean"], 0.5);
        // Wilson for 2 of 4: 0.5 ± z / sqrt(n + z^2) / 2 = 0.5 ± 0.34996
        let low = result["win_rate"]["ci95"][0].as_f64().unwrap();
        assert!((low - 0.150_04).abs() < 1e-4, "{low}");
        assert!((result["score_difference"]["mean"].as_f64().unwrap() - 0.0125).abs() < 1e-12);
    }

    #[test]
    fn gold_judges_by_prompt_whatever_the_order() {
        let dir = tempfile::tempdir().unwrap();
        let answers = rows(dir.path(), "a", &[(PEAS, GOOD), ("A soup, please.", "")]);
        let baseline = rows(dir.path(), "b", &[("A soup, please.", ""), (PEAS, "")]);
        let config = WinrateConfig {
            answers: answers.into(),
            baseline: baseline.into(),
            judge: Judge::Gold,
            resamples: 100,
            ..WinrateConfig::default()
        };
        let result = run(&config, &fixture::quiet()).unwrap();
        assert_eq!((&result["wins"], &result["ties"], &result["losses"]), (&json!(1), &json!(1), &json!(0)));
        assert_eq!(result["win_rate"]["mean"], 0.75);
        assert_eq!(result["score"]["mean"], 0.5);
    }

    #[test]
    fn sampled_answers_are_scored_as_they_were_sampled() {
        let dir = tempfile::tempdir().unwrap();
        let base = fixture::base(dir.path());
        let reward = fixture::reward_model(&base);
        let path = |name: &str| dir.path().join(name);
        fixture::write_lines(&path("prompts"), &fixture::SENTENCES.map(|text| json!({"prompt": text})));
        let sampled = GenerateConfig {
            model: base.into(),
            input: path("prompts").into(),
            output: path("sampled"),
            max_new_tokens: 3,
            ..GenerateConfig::default()
        };
        generate::run(&sampled, &fixture::quiet()).unwrap();
        let mut rows = fixture::read_lines(&sampled.output);
        assert!(rows.iter().any(|row| row["finish_reason"] == "length"), "{rows:?}");
        let scored = |name: &str| {
            let config = ScoreConfig {
                model: reward.clone().into(),
                input: path(name).into(),
                output: path("out"),
                ..ScoreConfig::default()
            };
            score::run(&config, &fixture::quiet()).unwrap()["mean_score"].clone()
        };
        let judged = |name: &str| {
            let config = WinrateConfig {
                answers: path(name).into(),
                baseline: path(name).into(),
                reward_model_path: Some(reward.clone().into()),
                resamples: 10,
                ..WinrateConfig::default()
            };
            run(&config, &fixture::quiet()).unwrap()["score"]["mean"].clone()
        };
        assert_eq!(judged("sampled"), scored("sampled"));
        // Text alone, and tokens of another tokenizer than the judge's.
        rows.iter_mut().for_each(|row| row["tokens"] = json!([5, 5, 5]));
        fixture::write_lines(&path("foreign"), &rows);
        rows.iter_mut().for_each(|row| drop(row.as_object_mut().unwrap().remove("tokens")));
        fixture::write_lines(&path("texts"), &rows);
        assert_eq!((judged("texts"), judged("foreign")), (scored("texts"), scored("texts")));
        rows.iter_mut().for_each(|row| row["finish_reason"] = json!("stop"));
        fixture::write_lines(&path("ended"), &rows);
        assert_ne!(judged("ended"), judged("texts"), "an end token more");
    }

    #[test]
    fn different_prompts_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let answers = rows(dir.path(), "a", &[(PEAS, GOOD), ("x", "")]);
        for (other, complaint) in [
            (vec![(PEAS, "")], "has 2 answers"),
            (vec![(PEAS, ""), ("y", "")], "does not answer (once more) \"x\""),
            (vec![("x", ""), ("x", "")], "answers a prompt twice"),
        ] {
            let baseline = rows(dir.path(), "b", &other);
            let config = WinrateConfig {
                answers: answers.clone().into(),
                baseline: baseline.into(),
                judge: Judge::Gold,
                ..WinrateConfig::default()
            };
            let error = format!("{:#}", run(&config, &fixture::quiet()).unwrap_err());
            assert!(error.contains(complaint), "{error}");
        }
    }
}
