//! Settings that two stages should share although each gives its own: a difference is no error, but rarely meant.
use serde_json::Value;

use super::StageCheck;
use crate::{
    config::paths::PathKind,
    recipe::{Recipe, Step},
};

/// A key, the kinds of stages whose value is compared with that of the models they read, and the consequence.
const SHARED: [(&str, &[&str], &str); 2] = [
    (
        "text_prompts",
        &[
            "sft",
            "reward",
            "dpo",
            "kto",
            "orpo",
            "cpo",
            "ppo",
            "grpo",
            "online_dpo",
            "evaluate",
            "generate",
            "score",
            "logprobs",
        ],
        "prompts of text would reach the model in another form than in training",
    ),
    ("temperature", &["evaluate"], "answers would be sampled at another temperature than in training"),
];

impl StageCheck<'_> {
    /// Notes settings that differ from those of an earlier stage whose model this stage reads.
    pub(super) fn compare_with_earlier(&mut self) {
        let step = self.step;
        let read: Vec<&Step> = models_of(self.recipe, step);
        for (key, kinds, consequence) in SHARED {
            let Some(own) = step.planned.config.get(key).filter(|_| kinds.contains(&step.kind.name)) else { continue };
            let differs = |earlier: &&&Step| earlier.planned.config.get(key).is_some_and(|theirs| theirs != own);
            let others: Vec<String> = read
                .iter()
                .filter(differs)
                .map(|earlier| format!("{} in {}", shown(&earlier.planned.config[key]), earlier.name))
                .collect();
            if !others.is_empty() {
                self.facts.push(format!(
                    "note: {key} is {} here, but {}: {consequence}",
                    shown(own),
                    others.join(", ")
                ));
            }
        }
    }
}

/// The stages whose models a stage reads.
fn models_of<'a>(recipe: &'a Recipe, step: &Step) -> Vec<&'a Step> {
    let paths = super::paths(&step.planned, PathKind::Model);
    let earlier = recipe.steps.iter().take_while(|other| other.name != step.name);
    earlier.filter(|other| paths.iter().any(|(_, path)| path.starts_with(&other.dir))).collect()
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
