//! Reinforcement learning: rollouts of a policy, their rewards, the reference of the KL penalty, the updates.
//!
//! [`environment`] has what every method shares (prompts, reward model, reference, anchors), [`training`] the loop over
//! updates; a method is its configuration and its step.
//!
//! May import `models`, `text`, `memory`, `lifecycle`, the training arguments and modules directly in `stage`.
pub(crate) mod arguments;
mod environment;
#[cfg(test)]
mod fixture;
pub(crate) mod grpo;
mod measure;
pub(crate) mod online_dpo;
mod order;
mod plan;
mod policy;
pub(crate) mod ppo;
mod reference;
mod training;
