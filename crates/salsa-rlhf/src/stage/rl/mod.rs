//! Reinforcement learning: rollouts of a policy, their rewards, the reference of the KL penalty, the updates.
//!
//! May import `models`, `text`, `memory`, `lifecycle`, the training arguments and modules directly in `stage`.
pub(crate) mod arguments;
pub(crate) mod ppo;
mod reference;
