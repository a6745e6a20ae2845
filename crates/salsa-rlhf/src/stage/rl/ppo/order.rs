//! The prompts of an update, and the responses of a minibatch: determined before the run starts.
use std::ops::Range;

use salsa_engine::random::Random;

use super::config::PpoConfig;

/// Random streams of prompts and minibatches ("PROMPT" and "MINI" in ASCII, then room for a counter).
const PROMPT_STREAM: u64 = 0x5052_4f4d_5000_0000;
const MINIBATCH_STREAM: u64 = 0x4d49_4e49_0000_0000;

/// The prompts of these responses of the run: every pass visits each prompt once, in a new order.
pub(super) fn visit(prompts: usize, seed: u64, responses: Range<u64>) -> Vec<usize> {
    let count = prompts as u64;
    let mut chosen = Vec::new();
    for pass in responses.start / count..=(responses.end - 1) / count {
        let mut order: Vec<usize> = (0..prompts).collect();
        Random::new(seed, PROMPT_STREAM + pass).shuffle(&mut order);
        let from = responses.start.max(pass * count) - pass * count;
        let to = responses.end.min((pass + 1) * count) - pass * count;
        chosen.extend_from_slice(&order[from as usize..to as usize]);
    }
    chosen
}

/// The minibatches of an epoch of an update with this many responses, in a new order each time.
pub(super) fn minibatches(config: &PpoConfig, responses: usize, update: u64, epoch: u64) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..responses).collect();
    Random::new(config.run.seed, MINIBATCH_STREAM + update * config.num_ppo_epochs as u64 + epoch).shuffle(&mut order);
    let bound = |part: usize| part * order.len() / config.num_mini_batches;
    (0..config.num_mini_batches).map(|part| order[bound(part)..bound(part + 1)].to_vec()).collect()
}
