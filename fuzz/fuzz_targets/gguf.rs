//! The reader of GGUF files: whatever it is given becomes a checkpoint that opens, or an error of one line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use salsa_rlhf::checkpoint::Checkpoint;
use salsa_rlhf::gguf::{ConvertOptions, convert};

#[path = "../ceiling.rs"]
mod ceiling;
#[path = "../seeds.rs"]
mod seeds;

fuzz_target!(init: seeds::write(seeds::gguf()), |input: &[u8]| {
    let (file, out) = (ceiling::dir().join("m.gguf"), ceiling::dir().join("out"));
    std::fs::write(&file, input).expect("the temporary folder can be written");
    let _ = std::fs::remove_dir_all(&out);
    let options = ConvertOptions { dtype: None, tokenizer: None, max_shard_bytes: u64::MAX };
    match convert(&file, &out, &options) {
        Ok(done) => {
            let checkpoint = Checkpoint::open(&out).expect("what was written opens");
            assert_eq!(checkpoint.spec.parameters(), done.parameters);
        }
        Err(error) => assert_eq!(format!("{error:#}").lines().count(), 1, "{error:#}"),
    }
});
