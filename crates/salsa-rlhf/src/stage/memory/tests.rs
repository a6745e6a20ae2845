//! Memory plans compared with numbers computed by hand, refusals, and advice.
use super::{fixture::tiny_llama, *};
use crate::stage::{memory::shape::Backward, models::roles::Roles};

fn trained(knobs: &MemorySettings) -> Need {
    let mut need = one_model(&tiny_llama(), false, knobs);
    need.add(part::ACTIVATIONS, shape::training_pass(&tiny_llama(), knobs, 100 * knobs.pass as u64));
    need
}

fn knobs() -> MemorySettings {
    MemorySettings { pass: 8, ..MemorySettings::on(&Device::default()) }
}

#[test]
fn bytes_follow_from_the_shape() {
    let spec = tiny_llama();
    let (parameters, table) = (1_100_048_384, 32_000 * 2048);
    assert_eq!(shape::weights(&spec, Dtype::F32), 4 * parameters);
    // In bf16 the embedding and 45 norms of 2048 stay in f32.
    assert_eq!(shape::weights(&spec, Dtype::Bf16), 2 * parameters + 2 * (table + 45 * 2048));
    assert_eq!(shape::trained(&spec, Dtype::F32, Sharing::ALONE), 20 * parameters);
    let tied = ModelSpec { tied_embeddings: true, ..spec.clone() };
    // If packing is lossless (f32, or bf16 from bf16), the embedding is the output matrix; otherwise both forms exist.
    assert_eq!(shape::weights(&tied, Dtype::F32), 4 * (parameters - table));
    assert_eq!(shape::weights(&tied, Dtype::Bf16), shape::weights(&spec, Dtype::Bf16));
    assert_eq!(shape::stored(&tied, Dtype::Bf16, false), shape::weights(&spec, Dtype::Bf16));
    assert_eq!(shape::stored(&tied, Dtype::Bf16, true), 2 * (parameters - table) + 2 * 45 * 2048);
    assert_eq!(shape::stored(&spec, Dtype::Bf16, true), shape::weights(&spec, Dtype::Bf16));
    // Input and middle, queries, keys, values and attention, gate and up: for 22 layers, or their inputs alone.
    let layer = 4 * (2 * 2048 + 2 * 36 * 64 + 2 * 5632);
    let kept = |recompute| shape::kept_per_token(&spec, &MemorySettings { recompute, ..knobs() });
    assert_eq!(kept(Recompute::KeepActivations), 22 * layer);
    assert_eq!(kept(Recompute::PerLayer), 22 * 4 * 2048);
    // With two norms, the layer's output, and the product of gate and up.
    assert_eq!(shape::working_per_token(&spec, &knobs(), Backward::No), layer + 4 * (3 * 2048 + 5632));
    assert_eq!(shape::working_per_token(&spec, &knobs(), Backward::Yes), 2 * layer + 4 * (3 * 2048 + 2 * 5632));
    // 10 sequences of 33 tokens: two panels of 32 positions; 4 heads of 64, key and value, in 22 layers; 32000 logits,
    // three times.
    assert_eq!(shape::generation(&spec, Dtype::Bf16, 10, 33), 10 * (64 * 22 * 4 * 64 * 2 * 2 + 3 * 4 * 32_000));
}

#[test]
fn what_does_not_fit_is_refused_with_what_would_help() {
    let (mut said, gib) = (Vec::new(), 1u64 << 30);
    let mut advise = |available: u64, knobs: &MemorySettings| {
        said.push(advice(knobs, Saving::TRAINING, &trained, available));
        said.last().unwrap().clone()
    };
    // All weights: 20.5 GiB, far above 8. An adapter fits.
    let text = advise(8 * gib, &knobs());
    let one = size(trained(&MemorySettings { adapter: Some(LoraSpec::default()), ..knobs() }).total());
    assert!(text.contains(&format!("With use_peft: true: {one}, fits; with ")), "{text}");
    assert!(text.contains("gradient_checkpointing: true: 2") && text.contains("GiB, still too much"), "{text}");
    assert!(text.contains("per_device_train_batch_size: 1: 2") && text.contains("dtype: bf16"), "{text}");
    assert!(!text.contains("all of these"), "one is enough: {text}");
    // 3 GiB: only with all savings together.
    let text = advise(3 * gib, &knobs());
    let all = MemorySettings {
        adapter: Some(LoraSpec::default()),
        recompute: Recompute::PerLayer,
        pass: 1,
        dtype: Dtype::Bf16,
        ..knobs()
    };
    assert!(text.ends_with(&format!("with all of these: {}, fits", size(trained(&all).total()))), "{text}");
    // No saving is left.
    assert!(advise(gib, &all).contains("No key would lower it"), "{:?}", said);
}

#[test]
fn models_that_take_turns_use_the_memory_of_those_before() {
    let (large, small) = (tiny_llama(), ModelSpec { layers: 1, ..tiny_llama() });
    let bytes = |spec: &ModelSpec| shape::weights(spec, Dtype::F32);
    let frozen = |turns: &[&ModelSpec]| {
        let mut roles = Roles::new(Dtype::F32);
        roles.ingredients(&small, 3);
        roles.in_turn(turns, |roles, spec| roles.changing(spec));
        let need = roles.need();
        assert_eq!(need.part(part::INGREDIENTS), 3 * 4 * small.parameters() as u64);
        need.part(part::FROZEN)
    };
    assert_eq!(frozen(&[]), 0);
    assert_eq!(frozen(&[&large, &large, &large]), bytes(&large));
    assert_eq!(frozen(&[&small, &large, &small]), bytes(&large), "the largest one counts");
}

#[test]
fn each_saving_is_offered_once() {
    let tuned = MemorySettings { adapter: Some(LoraSpec::default()), dtype: Dtype::Bf16, ..knobs() };
    let text = advice(&tuned, Saving::TRAINING, &trained, 1);
    assert!(!text.contains("use_peft") && !text.contains("dtype"), "{text}");
    assert!(text.contains("still too much") && !text.contains(", fits"), "{text}");
}

#[test]
fn parts_add_up() {
    let mut need = Need::default();
    need.add(part::FROZEN, 1 << 30);
    need.add(part::ACTIVATIONS, 1 << 20);
    need.add(part::FROZEN, 1 << 30);
    assert_eq!((need.part(part::FROZEN), need.total()), (2 << 30, (2 << 30) + (1 << 20)));
    assert_eq!(need.to_string(), "2.00 GiB (frozen weights 2.00 GiB, activations 1.0 MiB)");
}

#[test]
fn a_tied_embedding_in_training_is_there_once_in_f32_and_apart_from_its_head_in_bf16() {
    let tied = ModelSpec { tied_embeddings: true, ..tiny_llama() };
    let (parameters, table) = (tied.parameters() as u64, (tied.vocab_size * tied.hidden_size) as u64);
    assert_eq!(shape::trained(&tied, Dtype::F32, Sharing::ALONE), (16 + 4) * parameters);
    let vectors = (2 * tied.layers + 1) as u64 * tied.hidden_size as u64;
    let bf16 = 16 * parameters + 2 * (parameters - table - vectors) + 4 * vectors + (2 + 4) * table;
    assert_eq!(shape::trained(&tied, Dtype::Bf16, Sharing::ALONE), bf16);
}
