//! Studies: one recipe, run for many seeds, settings and arms.
//!
//! ```yaml
//! recipe: quickstart.yaml
//! factors:
//!   world_seed: {values: [1, 2, 3, 4, 5], set: {seed: "${world_seed}", vars.seed_a: "${world_seed}1"}}
//!   rl_seed: {values: [1, 2], set: {arm.seed: "${rl_seed}"}}
//!   kl_coef: [0.05, 0.1, 0.2]                # a key of the arms' stages
//! arms:
//!   ppo: {}                                  # the stage of this name, unchanged
//!   salsa: {}
//!   mkl: {stage: ppo, reference: {kind: multi, models: [sft-a, sft-b]}}
//! select: {key: kl_coef, by: gold_reward, on: validation}
//! compare: [[salsa, ppo]]
//! ```
//!
//! A *cell* is one arm at one value of every factor; it is an ordinary run directory. Its stages are in `OUT/stages`,
//! each named by a digest of its configuration and its inputs, so that a stage on which a factor has no effect runs
//! only once, and an existing one is never run again.
//!
//! ```text
//! OUT/
//!   study.yaml               as given
//!   stages/KIND-DIGEST/      each stage once
//!   cells/ARM/SETTING/       a run directory: recipe.yaml, resolved.json, report.html, links to its stages
//!   study.json               the numbers, without timings
//!   study.html               the report
//! ```
//!
//! May import: `recipe`, `stage` (runner, records, kinds), `config`, `report`. Nothing imports it but the command line.
mod analysis;
mod cells;
mod check;
mod claims;
mod config;
mod factors;
mod gather;
mod links;
mod plan;
mod results;
mod run;
#[cfg(test)]
mod tests;
mod worker;

pub use config::{Measure, Select, StudyConfig};
pub use factors::Only;
pub use plan::{Cell, Node, Study};
pub use worker::work as work_for_a_study;
