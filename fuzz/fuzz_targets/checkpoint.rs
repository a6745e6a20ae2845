//! The checkpoint reader: `config.json`, `model.safetensors.index.json` and a weight file, with `\n---\n` between them.
//! Without an index the weight file is the only one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use salsa_rlhf::checkpoint::Checkpoint;

#[path = "../ceiling.rs"]
mod ceiling;
#[path = "../seeds.rs"]
mod seeds;

fuzz_target!(init: seeds::write(seeds::checkpoints()), |input: &[u8]| {
    let Some((config, rest)) = ceiling::cut(input) else { return };
    let Some((index, weights)) = ceiling::cut(rest) else { return };
    let dir = ceiling::dir();
    let (index_file, single) = (dir.join("model.safetensors.index.json"), dir.join("model.safetensors"));
    let _ = std::fs::remove_file(if index.is_empty() { &index_file } else { &single });
    let weight_file = if index.is_empty() { single } else { dir.join("model-00001-of-00001.safetensors") };
    let mut files = vec![(dir.join("config.json"), config), (weight_file, weights)];
    if !index.is_empty() {
        files.push((index_file, index));
    }
    for (path, bytes) in files {
        std::fs::write(path, bytes).expect("the temporary folder can be written");
    }
    if let Ok(checkpoint) = Checkpoint::open(dir) {
        if let Ok(weights) = checkpoint.read_weights() {
            assert_eq!(weights.len(), checkpoint.spec.parameters());
            assert!(weights.iter().all(|weight| weight.is_finite()));
        }
    }
});
