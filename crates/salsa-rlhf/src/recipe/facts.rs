//! The text in a stage's box of the pipeline: its few most important results, in readable form.
use serde_json::Value;

use crate::{
    progress::human_time,
    stage::kind::{Kind, Shown},
};

/// Maximum number of lines in a box.
const MOST: usize = 3;
/// Characters in a line.
const WIDTH: usize = 30;

/// At most three short lines: settings, results, duration.
pub(super) fn lines(kind: Option<&Kind>, stage: &Value, results: &Value, seconds: Option<f64>) -> Vec<String> {
    let mut facts = match kind.map(|kind| kind.shown) {
        Some(Shown::Evaluation) => arms(stage),
        _ => results_in_words(results),
    };
    facts.extend(seconds.map(human_time));
    joined(facts)
}

/// The arms of an evaluation, by name.
fn arms(stage: &Value) -> Vec<String> {
    stage["config"]["arms"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
}

/// Results under readable names and units; those not in the table appear in `stage.json` only.
fn results_in_words(results: &Value) -> Vec<String> {
    let number = |path: &str| results.pointer(path).and_then(Value::as_f64);
    let count = |path: &str, unit: &str| number(path).map(|n| format!("{} {unit}", short(n)));
    let value = |path: &str, name: &str| number(path).map(|n| format!("{name} {n:.2}"));
    let share = |path: &str, name: &str| number(path).map(|n| format!("{name} {:.1} %", 100.0 * n));
    let range = |path: &str| {
        let ends = [0, 1].map(|end| number(&format!("{path}/{end}")));
        Some(format!("[{:.1}, {:.1}]", 100.0 * ends[0]?, 100.0 * ends[1]?))
    };
    let text = |path: &str| results.pointer(path).and_then(Value::as_str).map(str::to_owned);
    [
        count("/calls", "judgments"),
        count("/demonstrations", "demonstrations"),
        count("/preferences", "preferences"),
        count("/ingredients", "models"),
        text("/method"),
        count("/parameters", "parameters"),
        count("/training/steps", "steps"),
        count("/updates", "updates"),
        value("/training/train/loss", "loss"),
        share("/eval_accuracy", "accuracy"),
        range("/eval_accuracy_ci95"),
        count("/eval_pairs", "held-out pairs"),
        value("/last/objective~1scores", "score"),
        value("/last/objective~1kl", "KL"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A count in few characters: `431`, `1,713 k`, `0.94 M`.
fn short(number: f64) -> String {
    match number {
        n if n >= 1e9 => format!("{:.2} B", n / 1e9),
        n if n >= 1e5 => format!("{:.2} M", n / 1e6),
        n => format!("{n}"),
    }
}

/// Joins the facts into as few lines as possible; facts that do not fit are left out.
fn joined(facts: Vec<String>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for fact in facts {
        let fits = |line: &&mut String| line.chars().count() + fact.chars().count() + 3 <= WIDTH;
        if let Some(line) = lines.last_mut().filter(fits) {
            *line += &format!(" · {fact}");
        } else if lines.len() < MOST {
            lines.push(fact);
        } else {
            break;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::table::find;
    use serde_json::json;

    #[test]
    fn boxes_say_results_in_words() {
        let sft =
            json!({"training": {"steps": 141, "num_tokens": 390567, "train": {"loss": 0.6591}}, "examples": 1500});
        assert_eq!(lines(find("sft"), &json!({}), &sft, Some(12.0)), ["141 steps · loss 0.66 · 12 s"]);
        let ppo = json!({"updates": 50, "last": {"objective/kl": 3.23496, "objective/scores": 1.35077}});
        assert_eq!(lines(find("ppo"), &json!({}), &ppo, None), ["50 updates · score 1.35", "KL 3.23"]);
        let base = json!({"parameters": 943232, "training": {"steps": 431}});
        assert_eq!(lines(find("pretrain"), &json!({}), &base, None), ["0.94 M parameters · 431 steps"]);
    }

    #[test]
    fn an_evaluation_names_its_arms() {
        let stage =
            json!({"kind": "evaluate", "config": {"arms": {"sft_a": "a", "sft_b": "b", "soup": "s", "ppo": "p"}}});
        assert_eq!(lines(find("evaluate"), &stage, &json!({}), Some(19.0)), ["sft_a · sft_b · soup · ppo", "19 s"]);
        let many: serde_json::Map<String, Value> = (0..40).map(|i| (format!("arm_number_{i}"), json!(0))).collect();
        let lines = lines(find("evaluate"), &json!({"config": {"arms": many}}), &json!({}), None);
        assert!(lines.len() == MOST && lines.iter().all(|line| line.chars().count() <= WIDTH), "{lines:?}");
    }
}
