//! Reports of an update: statistics of its responses, and text samples.
use std::{
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};

use anyhow::{Context, ensure};
use salsa_algo::reward::Ending;
use serde_json::{Value, json};

use crate::{
    atomic, input,
    metrics::{Metrics, names},
    stage::{lifecycle::resume::REMEDY, rollout::Rollouts},
};

/// Scores and KLs of the responses of one update.
#[derive(Clone, Copy)]
pub(super) struct Scored<'a> {
    /// Score of each response, before clip and penalty.
    pub scores: &'a [f64],
    /// KL of each token to the run's reference.
    pub kls: &'a [f64],
    /// Coefficient of the KL penalty in this update.
    pub beta: f64,
}

impl Scored<'_> {
    /// Means over the responses.
    pub(super) fn metrics(&self, rollouts: &Rollouts) -> Metrics {
        let responses = rollouts.len() as f64;
        let kl = mean_kl(self.kls, rollouts);
        let score = self.scores.iter().sum::<f64>() / responses;
        let variance = self.scores.iter().map(|s| (s - score).powi(2)).sum::<f64>() / responses;
        let surprise = -rollouts.logprobs.iter().sum::<f64>() / responses;
        Metrics::new()
            .with(names::KL, kl)
            .with(names::KL_COEF, self.beta)
            .with("objective/entropy", surprise)
            .with("objective/non_score_reward", -self.beta * kl)
            .with("objective/rlhf_reward", score - self.beta * kl)
            .with(names::SCORE, score)
            .with("objective/scores_std", variance.sqrt())
    }
}

/// Adds statistics of response lengths and endings.
pub(super) fn lengths(rollouts: &Rollouts, metrics: &mut Metrics) {
    let responses = rollouts.len() as f64;
    let mut lengths = rollouts.lengths();
    let ended = |ending: &&Ending| **ending == Ending::Eos;
    let stops = rollouts.endings.iter().filter(ended).count() as f64;
    let empty = lengths.iter().zip(&rollouts.endings).filter(|(length, ending)| **length == 1 && ended(ending)).count();
    metrics.set(names::LENGTH, lengths.iter().sum::<usize>() as f64 / responses);
    lengths.sort_unstable();
    for (name, share) in [("p05", 0.05), ("p50", 0.5), ("p95", 0.95)] {
        let at = (share * (lengths.len() - 1) as f64).round() as usize;
        metrics.set(format!("{}_{name}", names::LENGTH), lengths[at] as f64);
    }
    metrics.set(names::EMPTY, empty as f64 / responses);
    metrics.set("val/unfinished_rate", 1.0 - stops / responses);
    metrics.set("val/num_eos_tokens", stops);
}

/// The KL of a response to the run's reference: summed over its tokens, averaged over the responses.
pub(super) fn mean_kl(kls: &[f64], rollouts: &Rollouts) -> f64 {
    kls.iter().sum::<f64>() / rollouts.len() as f64
}

/// The KL of a response to another model (estimator k1, unbiased), averaged over the responses.
pub(super) fn kl_per_response(rollouts: &Rollouts, logprobs: &[f64]) -> f64 {
    let total: f64 = rollouts.logprobs.iter().zip(logprobs).map(|(own, other)| own - other).sum();
    total / rollouts.len() as f64
}

/// The summary shown in the progress bar.
pub(super) fn headline(metrics: &Metrics) -> String {
    let get = |name| metrics.get(name).unwrap_or(f64::NAN);
    let gold = metrics.get(names::GOLD).map(|gold| format!(" gold {gold:.3}")).unwrap_or_default();
    format!("score {:.3}{gold} kl {:.2} length {:.1}", get(names::SCORE), get(names::KL), get(names::LENGTH))
}

/// Guard against divergence: stops the run before it writes anything.
///
/// # Errors
/// If a metric is not finite; the error names the first one.
pub(super) fn ensure_finite(metrics: &Metrics) -> anyhow::Result<()> {
    for (name, value) in metrics.iter() {
        ensure!(value.is_finite(), "{name} is {value}: the run diverged and was stopped; {REMEDY}");
    }
    Ok(())
}

/// Some responses of an update, as text.
#[derive(Debug, Default)]
pub(super) struct Samples(Vec<Value>);

const SAMPLES: &str = "samples.jsonl";

impl Samples {
    /// The number of responses kept per update.
    pub(super) const KEPT: usize = 8;

    /// Adds a response.
    pub(super) fn push(&mut self, prompt: &str, response: &str, score: f64, gold: Option<f64>) {
        let mut sample = json!({"prompt": prompt, "response": response, "score": score});
        if let Some(gold) = gold {
            sample["gold"] = gold.into();
        }
        self.0.push(sample);
    }

    /// Appends the samples of an update to `samples.jsonl`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn append(self, dir: &Path, update: u64) -> anyhow::Result<()> {
        let path = dir.join(SAMPLES);
        let mut file = atomic::open_to_continue(&path)?;
        file.seek(SeekFrom::End(0)).with_context(|| format!("cannot write {}", path.display()))?;
        for sample in self.0 {
            let mut line = json!({"step": update});
            if let (Value::Object(line), Value::Object(sample)) = (&mut line, sample) {
                line.extend(sample);
            }
            writeln!(file, "{line}").with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Removes samples of updates after `done`, which a resumed run will repeat.
///
/// # Errors
/// If the file cannot be read or written.
pub(super) fn truncate_samples(dir: &Path, done: u64) -> anyhow::Result<()> {
    let path = dir.join(SAMPLES);
    let Some(mut file) = input::open_if_any(&path)? else { return Ok(()) };
    let mut text = String::new();
    file.read_to_string(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
    let is_kept = |line: &&str| {
        let step = serde_json::from_str::<Value>(line).ok().and_then(|line| line["step"].as_u64());
        step.is_some_and(|step| step <= done)
    };
    let kept: String = text.lines().filter(is_kept).flat_map(|line| [line, "\n"]).collect();
    atomic::write(&path, kept.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use salsa_engine::{Finish, Response};

    use super::*;

    fn rollouts() -> Rollouts {
        let response = |tokens: &[u32], logprobs: &[f32], finish| Response {
            tokens: tokens.into(),
            logprobs: logprobs.into(),
            finish,
        };
        let responses = vec![
            response(&[2], &[-0.5], Finish::Stop),
            response(&[5, 6, 2], &[-1.0, -0.5, -0.25], Finish::Stop),
            response(&[5, 6, 7, 8], &[-0.5; 4], Finish::Length),
        ];
        Rollouts::new(&[&[1], &[1, 1], &[1]], responses, 1.0)
    }

    #[test]
    fn means_are_over_real_responses() {
        let scored = Scored { scores: &[1.0, 2.0, 6.0], kls: &[0.3; 8], beta: 0.5 };
        let mut metrics = scored.metrics(&rollouts());
        lengths(&rollouts(), &mut metrics);
        let near = |name: &str, expected: f64| {
            let found = metrics.get(name).unwrap_or(f64::NAN);
            assert!((found - expected).abs() < 1e-12, "{name} is {found}, not {expected}");
        };
        near("objective/scores", 3.0);
        near("objective/kl", 0.8);
        near("objective/non_score_reward", -0.4);
        near("objective/rlhf_reward", 2.6);
        near("objective/entropy", 4.25 / 3.0);
        near("val/response_length", 8.0 / 3.0);
        near("val/response_length_p50", 3.0);
        near("val/empty_rate", 1.0 / 3.0);
        near("val/unfinished_rate", 1.0 / 3.0);
        near("val/num_eos_tokens", 2.0);
    }

    #[test]
    fn kl_to_an_anchor_sums_over_tokens_and_averages_over_responses() {
        let rollouts = rollouts();
        let other: Vec<f64> = rollouts.logprobs.iter().map(|logprob| logprob - 0.25).collect();
        assert!((kl_per_response(&rollouts, &other) - 0.25 * 8.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn the_guard_names_what_is_not_finite() {
        let error = ensure_finite(&Metrics::new().with("a", 1.0).with("loss/policy_avg", f64::NAN)).unwrap_err();
        assert!(error.to_string().starts_with("loss/policy_avg is NaN"), "{error}");
        ensure_finite(&Metrics::new().with("a", 1.0).with("loss/policy_avg", -2.0)).unwrap();
    }

    #[test]
    fn samples_of_updates_to_come_are_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        for update in [1, 5, 9] {
            let mut samples = Samples::default();
            samples.push("p", "r", 0.5, Some(0.25));
            samples.append(dir.path(), update).unwrap();
        }
        truncate_samples(dir.path(), 5).unwrap();
        let text = fs::read_to_string(dir.path().join(SAMPLES)).unwrap();
        let line = |step: u64| {
            format!("{{\"step\":{step},\"prompt\":\"p\",\"response\":\"r\",\"score\":0.5,\"gold\":0.25}}\n")
        };
        assert_eq!(text, line(1) + &line(5));
    }
}
