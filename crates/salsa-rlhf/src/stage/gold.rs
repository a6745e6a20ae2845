//! Rewards that the program computes without a model: the key `gold`.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Built-in reward functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Gold {
    /// The gold reward of the toy world.
    Kitchen,
    /// Whether the number behind `####` answers the word problem: 1 or 0.
    Arithmetic,
}

impl Gold {
    /// The reward of a response, in [0, 1].
    pub fn reward(self, prompt: &str, response: &str) -> f64 {
        match self {
            Gold::Kitchen => crate::world::gold_reward(prompt, response).total,
            Gold::Arithmetic => crate::arithmetic::reward(prompt, response),
        }
    }
}
