//! Data-set readers: the first byte says how the rest is called, the rest is the file.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use salsa_rlhf::data::{load, split_by_prompt};

#[path = "../ceiling.rs"]
mod ceiling;
#[path = "../seeds.rs"]
mod seeds;

const NAMES: [&str; 5] = ["x.jsonl", "x.json", "x.jsonl.gz", "x.parquet", "x.txt"];

fuzz_target!(init: seeds::write(seeds::data()), |input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    let dir = ceiling::dir();
    let path = dir.join(NAMES[*kind as usize % NAMES.len()]);
    std::fs::write(&path, bytes).expect("the temporary folder can be written");
    if let Ok(set) = load(Path::new(&path)) {
        assert!(!set.examples.is_empty() && set.examples.len() == set.buckets.len());
        assert!(set.examples.iter().all(|example| example.layout() == set.layout));
        let split = split_by_prompt(&set);
        let parts = [&split.train, &split.validation, &split.test].map(|part| part.examples.len());
        assert_eq!(parts.iter().sum::<usize>(), set.examples.len());
        for example in &set.examples {
            let _ = example.prompt();
        }
    }
});
