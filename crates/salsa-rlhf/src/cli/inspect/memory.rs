//! Memory estimate of each stage, from a model's shape before anything is loaded, for passes and generation of a
//! typical size. Weights are counted as in the memory plans of stages; activations are an upper bound for the CPU.
use salsa_engine::{Device, Dtype, Head, LoraSpec, ModelSpec, Recompute};

use crate::stage::memory::{
    MemorySettings, Need, Sharing, part,
    shape::{self, TRAINED},
    size,
};

/// Tokens of a pass.
const TOKENS: u64 = 4096;

/// Sequences generated at once, and their length.
const GENERATED: (u64, u64) = (64, 512);

/// Models that a stage keeps: trained whole, trained as adapters, frozen.
struct Stage {
    name: &'static str,
    trained: Vec<ModelSpec>,
    adapters: Vec<ModelSpec>,
    frozen: Vec<ModelSpec>,
    /// Parameters of frozen adapters.
    frozen_adapters: usize,
    /// Number of further models held, of which the first frozen one is a changing mean.
    ingredients: usize,
    generates: bool,
}

/// Returns a table of all stages, for weights from a bfloat16 file or another type, with activations per token of a
/// pass: what each of so many processes needs that train together, in as many gradient units.
pub(super) fn table(spec: &ModelSpec, file_is_bf16: bool, ranks: usize) -> String {
    let (slots, length) = GENERATED;
    let sharing = Sharing { processes: ranks, units: ranks };
    let who = if ranks > 1 { format!(" of each of {ranks} processes, moments sliced") } else { String::new() };
    let trained = match ranks {
        1 => TRAINED.to_string(),
        _ => format!("8 + {}", 8.0 / ranks as f64),
    };
    let mut text = format!(
        "\nmemory{who} (models, with passes of {TOKENS} tokens and {slots} sequences of {length} generated at once; {trained} B per \
         parameter in training, and of all\n  models a packed copy, {} B with dtype f32, {} B with bf16)\n  {:<49} {:>10} {:>10} {:>10} {:>10}\n",
        shape::packed(Dtype::F32),
        shape::packed(Dtype::Bf16),
        "stage",
        "trained",
        "frozen",
        "f32",
        "bf16"
    );
    for stage in stages(spec) {
        let [f32, bf16] = [Dtype::F32, Dtype::Bf16].map(|dtype| stage.need(dtype, file_is_bf16, sharing).total());
        let (trained, frozen) = stage.parameters();
        text += &format!(
            "  {:<49} {:>10} {:>10} {:>10} {:>10}\n",
            stage.name,
            count(trained),
            count(frozen),
            size(f32),
            size(bf16)
        );
    }
    let knobs = MemorySettings::on(&Device::default());
    let kept = |recompute| shape::kept_per_token(spec, &MemorySettings { recompute, ..knobs.clone() });
    let working = shape::working_per_token(spec, &knobs, shape::Backward::Yes);
    text += &format!(
        "activations per token of a training pass: {} B kept, with gradient_checkpointing {} B; {working} B to work with\n  \
         (a pass of {TOKENS} tokens: {} or {})\n",
        kept(Recompute::KeepActivations),
        kept(Recompute::PerLayer),
        size((kept(Recompute::KeepActivations) + working) * TOKENS),
        size((kept(Recompute::PerLayer) + working) * TOKENS)
    );
    text += &format!(
        "key/value cache per token of a sequence being generated: {} B with dtype f32, {} B with bf16\n",
        shape::cache_per_token(spec, Dtype::F32),
        shape::cache_per_token(spec, Dtype::Bf16)
    );
    text
}

fn stages(spec: &ModelSpec) -> Vec<Stage> {
    let model = || spec.with_head(Head::LanguageModel);
    let scalar = || spec.with_head(Head::Scalar);
    let lora = LoraSpec::default();
    let stage = |name, trained, adapters, frozen| Stage {
        name,
        trained,
        adapters,
        frozen,
        frozen_adapters: 0,
        ingredients: 0,
        generates: false,
    };
    vec![
        Stage { generates: true, ..stage("generate", vec![], vec![], vec![model()]) },
        stage("logprobs", vec![], vec![], vec![model()]),
        stage("score, eval winrate", vec![], vec![], vec![scalar()]),
        stage("sft", vec![model()], vec![], vec![]),
        stage("reward", vec![scalar()], vec![], vec![]),
        stage("dpo, kto (policy, reference)", vec![model()], vec![], vec![model()]),
        stage("orpo, cpo (no reference)", vec![model()], vec![], vec![]),
        Stage {
            generates: true,
            ..stage(
                "ppo (policy, critic, reference, reward model)",
                vec![model(), scalar()],
                vec![],
                vec![model(), scalar()],
            )
        },
        Stage {
            generates: true,
            ..stage(
                "grpo, online_dpo (policy, reference, reward model)",
                vec![model()],
                vec![],
                vec![model(), scalar()],
            )
        },
        Stage {
            generates: true,
            ..stage("evaluate (an arm after the other, reward model)", vec![], vec![], vec![model(), scalar()])
        },
        Stage {
            ingredients: 2,
            generates: true,
            ..stage("landscape (two models, their mean, reward model)", vec![], vec![], vec![model(), scalar()])
        },
        stage("sft with use_peft (rank 16)", vec![], vec![model()], vec![model()]),
        stage("reward with use_peft (rank 16)", vec![], vec![scalar()], vec![scalar()]),
        stage("dpo, kto with use_peft (rank 16; reference: its base)", vec![], vec![model()], vec![model()]),
        stage("orpo, cpo with use_peft (rank 16)", vec![], vec![model()], vec![model()]),
        // One base; the reference is a soup of two adapters with twice the rank; plus the reward model.
        Stage {
            frozen_adapters: 2 * lora.parameters(&model()) + lora.parameters(&scalar()),
            generates: true,
            ..stage("ppo with use_peft (rank 16, one base)", vec![], vec![model(), scalar()], vec![model()])
        },
        Stage {
            frozen_adapters: 2 * lora.parameters(&model()) + lora.parameters(&scalar()),
            generates: true,
            ..stage("grpo, online_dpo with use_peft (rank 16, one base)", vec![], vec![model()], vec![model()])
        },
    ]
}

impl Stage {
    /// The need as the stage itself would plan it.
    fn need(&self, dtype: Dtype, file_is_bf16: bool, sharing: Sharing) -> Need {
        let (lora, knobs) = (LoraSpec::default(), MemorySettings { dtype, ..MemorySettings::on(&Device::default()) });
        let mut need = Need::default();
        need.add(part::PROGRAM, Need::PROGRAM);
        self.trained.iter().for_each(|spec| need.add(part::TRAINED, shape::trained(spec, dtype, sharing)));
        let adapter = |spec| shape::trained_adapter(spec, &lora, dtype, sharing);
        self.adapters.iter().for_each(|spec| need.add(part::TRAINED, adapter(spec)));
        self.frozen.iter().for_each(|spec| need.add(part::FROZEN, shape::stored(spec, dtype, file_is_bf16)));
        need.add(part::FROZEN, self.frozen_adapters as u64 * shape::packed(dtype));
        if self.ingredients > 0 {
            let more = shape::weights(&self.frozen[0], dtype) - shape::stored(&self.frozen[0], dtype, file_is_bf16);
            need.add(part::FROZEN, more);
            need.add(part::INGREDIENTS, shape::flat(&self.frozen[0], self.ingredients + 1));
        }
        let in_training: Vec<&ModelSpec> = self.trained.iter().chain(&self.adapters).collect();
        match in_training.as_slice() {
            [] => need.add(part::ACTIVATIONS, shape::forward_pass(&self.frozen[0], &knobs, TOKENS)),
            [first, others @ ..] => {
                let kept = |spec: &&ModelSpec| TOKENS * shape::kept_per_token(spec, &knobs);
                let others: u64 = others.iter().map(kept).sum();
                need.add(part::ACTIVATIONS, shape::training_pass(first, &knobs, TOKENS) + others);
            }
        }
        if self.generates {
            need.add(part::GENERATION, shape::generation(&self.frozen[0], dtype, GENERATED.0, GENERATED.1));
        }
        need
    }

    /// Trained and frozen parameters.
    fn parameters(&self) -> (u64, u64) {
        let lora = LoraSpec::default();
        let whole = |specs: &[ModelSpec]| specs.iter().map(ModelSpec::parameters).sum::<usize>();
        let adapters: usize = self.adapters.iter().map(|spec| lora.parameters(spec)).sum();
        let ingredients = self.ingredients * self.frozen.first().map_or(0, ModelSpec::parameters);
        let frozen = whole(&self.frozen) + self.frozen_adapters + ingredients;
        ((whole(&self.trained) + adapters) as u64, frozen as u64)
    }
}

/// `8.4 M`, or `-` for none.
fn count(number: u64) -> String {
    match number as f64 {
        0.0 => "-".to_owned(),
        n if n >= 1e9 => format!("{:.2} B", n / 1e9),
        n if n >= 1e6 => format!("{:.1} M", n / 1e6),
        n => format!("{:.1} k", n / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::memory::fixture::tiny_llama;

    #[test]
    fn models_are_those_of_the_stages() {
        let stages = stages(&tiny_llama());
        let language = 1_100_048_384;
        let scalar = language - 32_000 * 2048 + 2048;
        let found: Vec<(u64, u64)> = stages[..9].iter().map(Stage::parameters).collect();
        let both = language + scalar;
        let lines = [(0, language), (0, language), (0, scalar)];
        let trained = [(language, 0), (scalar, 0), (language, language), (language, 0), (both, both), (language, both)];
        assert_eq!(found, [&lines[..], &trained[..]].concat());
        assert_eq!(stages[10].parameters(), (0, 3 * language + scalar), "two, their mean, and the reward model");
        // Rank 16, 22 layers: q and o 2 * 4096, k and v 2 * (2048 + 256), three MLP matrices 2048 + 5632.
        let adapter = 22 * 16 * (2 * 4096 + 2 * 2304 + 3 * 7680);
        assert_eq!(stages[11].parameters(), (adapter, language));
        assert_eq!(stages[15].parameters(), (2 * adapter + 2048, language + 3 * adapter + 2048));
        assert_eq!(stages[16].parameters(), (adapter, language + 3 * adapter + 2048));
    }

    #[test]
    fn the_table_has_what_stages_plan_with() {
        let table = table(&tiny_llama(), true, 1);
        let each = super::table(&tiny_llama(), true, 4);
        assert!(each.starts_with("\nmemory of each of 4 processes, moments sliced") && each.contains("8 + 2 B per"));
        let row = |stage: &str| table.lines().find(|line| line.trim_start().starts_with(stage)).unwrap().to_owned();
        // logprobs: 4 B * 1.1e9 = 4.1 GiB; 2 B and 2 B more for the embedding 2.2 GiB. A pass of 4096 tokens takes
        // 4 * (2 * 2048 + 2 * 36 * 64 + 2 * 5632) + 4 * (3 * 2048 + 5632) B each: 0.5 GiB; the program 0.06.
        assert!(row("logprobs").ends_with("1.10 B   4.64 GiB   2.72 GiB"), "{table}");
        assert!(row("sft ").contains("1.10 B          -"), "{table}");
        // 22 layers * 4 heads of 64 * key and value * 4 B.
        assert!(table.contains("generated: 45056 B with dtype f32, 22528 B with bf16"), "{table}");
        assert_eq!((count(0), count(1500), count(2_500_000)), ("-".to_owned(), "1.5 k".to_owned(), "2.5 M".to_owned()));
    }
}
