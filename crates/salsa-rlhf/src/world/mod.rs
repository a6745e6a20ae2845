//! World.
mod cook;
mod dataset;
mod gold;
mod pantry;
mod prose;
mod reading;
mod request;
mod slips;
mod split;
#[cfg(test)]
mod tests;
mod wording;
pub use cook::{demonstration, perfect};
pub use dataset::{LABEL_TEMPERATURE, Label, Preference, Sizes, label, preference, write};
pub use gold::{Gold, Parts, WEIGHTS, gold_reward};
pub use pantry::{Act, Family, Ingredient, Tone};
pub use prose::pretrain_text;
pub use request::{Request, Wish};
pub use split::{Split, prompts};
