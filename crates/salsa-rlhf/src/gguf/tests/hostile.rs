//! Damaged and hostile files: one clear line each.

use std::path::Path;

use super::super::{
    ConvertOptions, convert,
    reader::Gguf,
    value::Kind,
    writer::{NewTensor, Pairs, write},
};
use super::{small, vocabulary};
use crate::gguf::block::BlockType;

/// A file by hand: keys, then tensors.
#[derive(Default)]
struct File {
    version: u32,
    tensors: u64,
    pairs: u64,
    body: Vec<u8>,
}

impl File {
    fn new(tensors: u64, pairs: u64) -> File {
        File { version: 3, tensors, pairs, body: Vec::new() }
    }

    fn text(mut self, text: &str) -> File {
        self.body.extend((text.len() as u64).to_le_bytes());
        self.body.extend(text.as_bytes());
        self
    }

    fn u32(mut self, number: u32) -> File {
        self.body.extend(number.to_le_bytes());
        self
    }

    fn u64(mut self, number: u64) -> File {
        self.body.extend(number.to_le_bytes());
        self
    }

    fn whole(self, key: &str, number: u32) -> File {
        self.text(key).u32(Kind::U32 as u32).u32(number)
    }

    fn tensor(self, name: &str, shape: &[u64], kind: u32, at: u64) -> File {
        let file = shape.iter().fold(self.text(name).u32(shape.len() as u32), |file, side| file.u64(*side));
        file.u32(kind).u64(at)
    }

    fn zeros(mut self, count: usize) -> File {
        self.body.resize(self.body.len() + count, 0);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let counts = [self.tensors.to_le_bytes(), self.pairs.to_le_bytes()].concat();
        [b"GGUF".as_slice(), &self.version.to_le_bytes(), &counts, &self.body].concat()
    }
}

fn error(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    let error = format!("{:#}", Gguf::open(&path).unwrap_err());
    assert!(error.lines().count() == 1 && error.len() < 600, "{error}");
    error.replace(&dir.path().display().to_string(), "DIR")
}

#[test]
fn damaged_headers_are_one_clear_line() {
    let huge = 1 << 60;
    let file = File::new;
    let list = |kind: Kind, count: u64| file(0, 1).text("k").u32(Kind::List as u32).u32(kind as u32).u64(count);
    let two = |at: u64| file(2, 0).tensor("a", &[32], 0, 0).tensor("b", &[32], 0, at).zeros(512);
    let aligned = |alignment| file(1, 1).whole("general.alignment", alignment).tensor("a", &[1], 0, 0).zeros(256);
    for (file, what) in [
        (file(huge, 0), "states 1152921504606846976 tensors"),
        (file(0, huge), "states 1152921504606846976 keys"),
        (file(0, 1).u64(huge).zeros(64), "the name of key 0 has 1152921504606846976 bytes"),
        (file(0, 1).text("k").u32(8).u64(huge).zeros(64), "k has 1152921504606846976 bytes"),
        (file(0, 1).text("").zeros(20), "key 0 has no name"),
        (file(0, 1).text("k").u32(13).zeros(20), "k has the unknown type 13"),
        (file(0, 1).text("k").u32(10).u32(1), "ends in the middle of k"),
        (list(Kind::U64, huge).zeros(64), "states 1152921504606846976 values of k"),
        (list(Kind::Text, u64::MAX).zeros(64), "states 18446744073709551615 values of k"),
        (list(Kind::Text, 2).u64(1).zeros(1).u64(huge), "item 1 of k has 1152921504606846976 bytes"),
        (list(Kind::List, 1).zeros(64), "k is a list of lists"),
        (list(Kind::U8, 64).zeros(63), "states 64 values of k"),
        (file(0, 2).whole("k", 1).whole("k", 2), "the key k is there twice"),
        (file(0, 2).whole("k\n\u{7}", 1).whole("k\n\u{7}", 2), "the key \"k\\n\\u{7}\" is there twice"),
        (file(1, 0).tensor("a", &[], 0, 0).zeros(64), "the tensor a has 0 dimensions"),
        (file(1, 0).tensor("a", &[1; 5], 0, 0).zeros(64), "the tensor a has 5 dimensions"),
        (file(1, 0).tensor("a", &[0, 4], 0, 0).zeros(64), "the impossible shape [0, 4]"),
        (file(1, 0).tensor("a", &[huge, huge], 0, 0).zeros(64), "the impossible shape"),
        (file(1, 0).tensor("a", &[huge], 0, 0).zeros(64), "the impossible shape"),
        (file(1, 0).tensor("a", &[1 << 50], 0, 0).zeros(64), "the tensor a ends behind the end of the file"),
        (file(1, 0).tensor("a", &[4], 23, 0).zeros(64), "number type 23 (IQ4_XS), which is not supported"),
        (file(1, 0).tensor("a", &[4], 77, 0).zeros(64), "number type 77, which is not supported"),
        (file(1, 0).tensor("a", &[33], 2, 0).zeros(64), "rows of 33 numbers, and Q4_0 needs a multiple of 32"),
        (file(1, 0).tensor("a", &[4], 0, 1 << 40).zeros(64), "the tensor a ends behind the end of the file"),
        (file(1, 0).tensor("a", &[4], 0, u64::MAX - 31).zeros(64), "the tensor a ends behind the end of the file"),
        (file(1, 0).tensor("a", &[4], 0, 3).zeros(64), "begins at byte 3, no multiple of 32"),
        (file(1, 0).tensor("", &[4], 0, 0).zeros(64), "a tensor has the name \"\""),
        (file(1, 0).tensor("a\nb", &[4], 0, 0).zeros(64), "a tensor has the name \"a\\nb\""),
        (file(1, 0).tensor(&"a".repeat(64), &[4], 0, 0).zeros(64), "the name of a tensor has 64 bytes"),
        (two(0), "the tensors a and b overlap"),
        (two(96), "the tensors a and b overlap"),
        (file(2, 0).tensor("a", &[8], 0, 0).tensor("a", &[8], 0, 32).zeros(96), "the tensor a is there twice"),
        (aligned(0), "general.alignment is 0: expected a power of two"),
        (aligned(48), "general.alignment is 48: expected a power of two"),
        (aligned(1 << 31), "general.alignment is 2147483648: expected a power of two"),
        (File { version: 4, ..file(0, 0) }, "version 4 of GGUF; versions 2 and 3"),
        (File { version: 1, ..file(0, 0) }, "version 1 of GGUF; convert the model again"),
        (File { version: 3 << 24, ..file(0, 0) }, "its numbers are big-endian"),
    ] {
        let error = error(&file.bytes());
        assert!(error.starts_with("DIR/m.gguf: ") && error.contains(what), "{what}: {error}");
    }
    assert!(error(b"GGML....").contains("it is no GGUF file"));
    assert!(error(b"").contains("it is no GGUF file"));
}

/// A model that converts: its tensors, and a change to them.
fn model(change: &dyn Fn(&mut Pairs, &mut Vec<NewTensor>), number: f32, dir: &Path) -> String {
    let (mut pairs, mut tensors) = (Pairs::default(), Vec::new());
    small(&mut pairs, &mut tensors);
    change(&mut pairs, &mut tensors);
    let path = dir.join("m.gguf");
    write(&path, &pairs, &tensors, |i, out| {
        let numbers = tensors[i].shape.iter().product::<usize>();
        Ok((0..numbers).try_for_each(|_| out.write_all(&number.to_le_bytes()))?)
    })
    .unwrap();
    let options = ConvertOptions { dtype: None, tokenizer: None, max_shard_bytes: u64::MAX };
    match convert(&path, &dir.join("out"), &options) {
        Ok(_) => String::new(),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn models_that_do_not_fit_their_metadata_are_named() {
    let resized = |name: &'static str, shape: &'static [usize]| {
        move |_: &mut Pairs, tensors: &mut Vec<NewTensor>| {
            tensors.iter_mut().find(|tensor| tensor.name == name).unwrap().shape = shape.to_vec();
        }
    };
    type Change = Box<dyn Fn(&mut Pairs, &mut Vec<NewTensor>)>;
    let cases: Vec<(Change, &str)> = vec![
        (Box::new(|_, tensors| drop(tensors.remove(3))), "the tensor blk.0.attn_k.weight is missing"),
        (Box::new(resized("blk.0.attn_q.weight", &[8, 9])), "has shape [8, 9], and its metadata describe [8, 8]"),
        (Box::new(resized("token_embd.weight", &[3, 8])), "it has 5 tokens and embeddings for 3"),
        (
            Box::new(|_, tensors| {
                tensors.push(NewTensor {
                    name: "blk.0.attn_sinks.weight".into(),
                    shape: vec![8],
                    kind: BlockType::F32,
                });
            }),
            "the tensor blk.0.attn_sinks.weight belongs to no part of the model",
        ),
        (Box::new(|pairs, _| pairs.whole("llama.expert_count", 8)), "mixtures of experts are not supported"),
        (Box::new(|pairs, _| pairs.text("llama.rope.scaling.type", "yarn")), "supported are none and linear"),
        (Box::new(|pairs, _| pairs.whole("tokenizer.ggml.eot_token_id", 99)), "eot_token_id is 99, and there are 5"),
    ];
    for (change, what) in cases {
        let dir = tempfile::tempdir().unwrap();
        let error = model(&change, 0.5, dir.path());
        assert!(error.contains(what), "{what}: {error}");
        assert!(!dir.path().join("out").exists(), "{what}: nothing is written");
    }
    for number in [f32::NAN, f32::INFINITY] {
        let dir = tempfile::tempdir().unwrap();
        let error = model(&|_, _| {}, number, dir.path());
        assert!(error.contains("so the file is damaged") && error.contains("number 0 of"), "{error}");
        assert!(!dir.path().join("out/config.json").exists() && !dir.path().join("out/model.safetensors").exists());
    }
    assert_eq!(model(&|_, _| {}, 0.5, tempfile::tempdir().unwrap().path()), "");
}

#[test]
fn vocabularies_that_contradict_themselves_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for (what, expected) in [
        ("twice", "tokenizer.ggml.tokens has one token twice, as 0 and 4"),
        ("merge", "merge 0 of tokenizer.ggml.merges joins or makes pieces that are no tokens"),
        ("pre", "tokenizer.ggml.pre is \"unheard-of\"; supported are gpt-2, "),
        ("model", "tokenizer.ggml.model is \"bert\": supported are gpt2 and llama"),
        ("kinds", "tokenizer.ggml.token_type has 2 values for 5 tokens"),
    ] {
        let (mut pairs, mut tensors) = (Pairs::default(), Vec::new());
        small(&mut Pairs::default(), &mut tensors);
        super::shape(&mut pairs);
        vocabulary(&mut pairs, what);
        let path = dir.path().join(what);
        write(&path, &pairs, &tensors, |i, out| Ok(out.write_all(&vec![0; tensors[i].bytes() as usize])?)).unwrap();
        let options = ConvertOptions { dtype: None, tokenizer: None, max_shard_bytes: u64::MAX };
        let error = format!("{:#}", convert(&path, &dir.path().join("out"), &options).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
}

/// Cut off anywhere, or with changed bytes: an error or a checkpoint, never a panic. `SALSA_MUTATIONS` sets their number.
#[test]
fn thousands_of_changed_files_bring_nothing_down() {
    let dir = tempfile::tempdir().unwrap();
    let (mut pairs, mut tensors) = (Pairs::default(), Vec::new());
    small(&mut pairs, &mut tensors);
    let path = dir.path().join("m.gguf");
    write(&path, &pairs, &tensors, |i, out| Ok(out.write_all(&vec![1; tensors[i].bytes() as usize])?)).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let header = whole.len() - tensors.iter().map(|tensor| tensor.bytes().next_multiple_of(32)).sum::<u64>() as usize;
    for length in 0..whole.len() - 32 {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = Gguf::open(&path).map(drop).unwrap_err();
        assert!(format!("{error:#}").lines().count() == 1, "{length}: {error:#}");
    }
    let out = dir.path().join("out");
    let options = ConvertOptions { dtype: None, tokenizer: None, max_shard_bytes: u64::MAX };
    let count = std::env::var("SALSA_MUTATIONS").map_or(3000, |count| count.parse::<u64>().unwrap());
    let mut random = count;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    let (mut converted, mut refused) = (0, 0);
    for _ in 0..count {
        let mut bytes = whole.clone();
        for _ in 0..=next(3) {
            let at = next(header);
            let value = [0, 1, 0x7F, 0x80, 0xFF, next(256) as u8][next(6)];
            match next(4) {
                0 => bytes[at] = value,
                1 => bytes[at..(at + 8).min(header)].fill(value),
                2 => drop(bytes.drain(at..at + next(9).min(header - at))),
                _ => drop(bytes.splice(at..at, vec![value; next(9)])),
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        match convert(&path, &out, &options) {
            Ok(_) => {
                converted += 1;
                std::fs::remove_dir_all(&out).unwrap();
            }
            Err(error) => {
                refused += 1;
                let error = format!("{error:#}");
                assert!(error.lines().count() == 1 && !error.contains('\u{7}'), "{error:?}");
                let _ = std::fs::remove_dir_all(&out);
            }
        }
    }
    assert!(converted > 100 && refused > 1000, "{converted} converted, {refused} refused");
}
