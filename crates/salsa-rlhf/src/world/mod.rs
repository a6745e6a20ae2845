//! A built-in toy world: a kitchen assistant, small enough to run the whole method on it in minutes, without any
//! download.
//!
//! A prompt asks for a short recipe under constraints. An answer is a few dozen words:
//!
//! ```text
//! prompt    Please give me a dish with chickpeas and lemon, without garlic, in 3 steps. Keep it cheerful.
//! answer    Hooray, a lovely dish of chickpeas and lemon! 1. Rinse the chickpeas.
//!           2. Bake the chickpeas with lemon and oil. 3. Serve warm. Enjoy!
//! ```
//!
//! The world has a [gold reward](gold_reward), which real projects lack: how good an answer truly is, computed from the
//! two texts. It shows how well a reward model learned from [preferences](preference), and what a policy gains or loses
//! by following that model.
//!
//! ```
//! use salsa_rlhf::world::gold_reward;
//! let prompt = "Please give me a dish with chickpeas and lemon, without garlic, in 3 steps. Keep it cheerful.";
//! let answer = "Hooray, a lovely dish of chickpeas and lemon! 1. Rinse the chickpeas. \
//!               2. Bake the chickpeas with lemon and oil. 3. Serve warm. Enjoy!";
//! assert_eq!(gold_reward(prompt, answer).total, 1.0);
//! // Garlic for lemon: half of what is wanted (weight 0.26), all of what is forbidden (0.10). No wishes, so all weights sum to 0.92.
//! let worse = gold_reward(prompt, &answer.replace("lemon", "garlic")).total;
//! assert!((worse - (1.0 - (0.26 / 2.0 + 0.10) / 0.92)).abs() < 1e-12);
//! ```
//!
//! # Layout
//!
//! | file | subject |
//! |---|---|
//! | `pantry` | the words: ingredients, verbs, dishes, openings and closings |
//! | `request` | the request of a prompt, parsed from its text |
//! | `wording` | requests in varied English |
//! | `split` | [`prompts`] of each [`Split`]; held-out requests |
//! | `cook` | [`perfect`] answers and noisy [`demonstration`]s |
//! | `slips` | the mistakes of the noisy cook and their probabilities |
//! | `reading` | the parsed answer |
//! | `gold` | the [`gold_reward`] |
//! | `prose` | [`pretrain_text`] |
//! | `dataset` | [`preference`] pairs with noisy [`label`]s, and [`write()`], which writes the files of a toy project |
//!
//! Everything is a pure function of its arguments and of the generator passed in: the same seed gives the same bytes.

mod cook;
mod dataset;
mod gold;
mod pantry;
mod prose;
mod reading;
mod request;
mod slips;
mod split;
mod wording;

#[cfg(test)]
mod tests;

pub use cook::{demonstration, perfect};
pub use dataset::{LABEL_TEMPERATURE, Label, Preference, Sizes, label, preference, write};
pub(crate) use dataset::{message, write_lines};
pub use gold::{GoldReward, Parts, WEIGHTS, gold_reward};
pub use pantry::{Act, Family, Ingredient, Tone};
pub use prose::pretrain_text;
pub use request::{Request, Wish};
pub use split::{Split, prompts};
