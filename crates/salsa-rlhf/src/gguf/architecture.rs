//! The table of architectures: how llama.cpp names what Hugging Face names otherwise. A new one is a line of [`TABLE`].

use std::collections::BTreeMap;

use salsa_engine::ModelSpec;

/// An architecture of llama.cpp.
pub(super) struct Architecture {
    /// `general.architecture`, which is also the prefix of its keys.
    pub(super) name: &'static str,
    /// The `model_type`s that are written as it; a file is read as the first.
    pub(super) model_types: &'static [&'static str],
    /// Its names of the parts of a block.
    parts: &'static [(&'static str, &'static str)],
    /// The stored rows of query and key: in the order of rotated pairs, or as Hugging Face has them.
    rotation: Rotation,
    /// What is added to the weights of norms when they are stored.
    pub(super) norm_shift: f32,
    /// How its SentencePiece vocabularies become merges.
    pub(super) pieces: Pieces,
    /// Keys that only it has.
    pub(super) extra: &'static [Extra],
}

/// The order of the rows of query and key projections.
#[derive(Clone, Copy, PartialEq)]
enum Rotation {
    /// Rows `i` and `i + head_dim / 2` of a head are neighbours.
    Pairs,
    /// As in Hugging Face's models.
    Halves,
}

/// What a SentencePiece vocabulary means.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Pieces {
    /// Merges by score; spaces are prefixed.
    Llama,
    /// Merges by place in the vocabulary; spaces are tokens of their own.
    Gemma,
}

/// A key of llama.cpp, below the architecture's name, with its name in `config.json`.
pub(super) struct Extra {
    pub(super) key: &'static str,
    pub(super) config: &'static str,
}

const PARTS: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Blocks with norms after attention and feed-forward part too.
const PARTS_WITH_POST_NORMS: &[(&str, &str)] = &[
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

const LLAMA: Architecture = Architecture {
    name: "llama",
    model_types: &["llama", "mistral"],
    parts: PARTS,
    rotation: Rotation::Pairs,
    norm_shift: 0.0,
    pieces: Pieces::Llama,
    extra: &[],
};
const QWEN2: Architecture =
    Architecture { name: "qwen2", model_types: &["qwen2"], rotation: Rotation::Halves, ..LLAMA };
const GEMMA: Architecture =
    Architecture { name: "gemma", model_types: &["gemma"], norm_shift: 1.0, pieces: Pieces::Gemma, ..QWEN2 };
const WINDOW: Extra = Extra { key: "attention.sliding_window", config: "sliding_window" };

/// All architectures. What reads or writes a model of one of them is `checkpoint::Family`, which may support fewer.
const TABLE: &[Architecture] = &[
    LLAMA,
    QWEN2,
    Architecture { name: "qwen3", model_types: &["qwen3"], ..QWEN2 },
    GEMMA,
    Architecture {
        name: "gemma2",
        model_types: &["gemma2"],
        parts: PARTS_WITH_POST_NORMS,
        extra: &[
            WINDOW,
            Extra { key: "attn_logit_softcapping", config: "attn_logit_softcapping" },
            Extra { key: "final_logit_softcapping", config: "final_logit_softcapping" },
        ],
        ..GEMMA
    },
    Architecture {
        name: "gemma3",
        model_types: &["gemma3_text"],
        parts: PARTS_WITH_POST_NORMS,
        extra: &[WINDOW],
        ..GEMMA
    },
];

/// The names that files may have.
pub(super) fn names() -> String {
    TABLE.iter().map(|one| one.name).collect::<Vec<_>>().join(", ")
}

impl Architecture {
    /// By `general.architecture`.
    pub(super) fn named(name: &str) -> Option<&'static Architecture> {
        TABLE.iter().find(|one| one.name == name)
    }

    /// By the `model_type` of a checkpoint.
    pub(super) fn of_model_type(model_type: &str) -> Option<&'static Architecture> {
        TABLE.iter().find(|one| one.model_types.contains(&model_type))
    }

    /// The tensors of a model, in the order of [`ModelSpec::tensors`].
    pub(super) fn tensors(&self, spec: &ModelSpec) -> Vec<Stored> {
        let parts: BTreeMap<&str, &str> = self.parts.iter().copied().collect();
        let stored = |name: &str| {
            let (base, ending) = name.rsplit_once('.')?;
            let base = match base {
                "model.embed_tokens" => "token_embd".to_owned(),
                "model.norm" => "output_norm".to_owned(),
                "lm_head" => "output".to_owned(),
                _ => {
                    let (layer, part) = base.strip_prefix("model.layers.")?.split_once('.')?;
                    format!("blk.{layer}.{}", parts.get(part)?)
                }
            };
            Some(format!("{base}.{ending}"))
        };
        let tensors = spec.tensors().into_iter();
        let one = |view: salsa_engine::TensorView| {
            let rotated = self.rotation == Rotation::Pairs
                && [".self_attn.q_proj.", ".self_attn.k_proj."].iter().any(|part| view.name.contains(part));
            Stored {
                stored: stored(&view.name),
                paired_heads: rotated.then_some(spec.head_dim),
                shift: if view.name.ends_with("norm.weight") { self.norm_shift } else { 0.0 },
                name: view.name,
                shape: view.shape,
            }
        };
        tensors.map(one).collect()
    }
}

/// A tensor of a model and how a GGUF file stores it.
#[derive(Debug)]
pub(super) struct Stored {
    /// Hugging Face's name.
    pub(super) name: String,
    /// The name in the file; `None` if the architecture has no such part.
    pub(super) stored: Option<String>,
    pub(super) shape: Vec<usize>,
    /// The head dimension, if rows are stored in the order of rotated pairs.
    paired_heads: Option<usize>,
    /// What is added to its numbers in the file.
    pub(super) shift: f32,
}

impl Stored {
    /// Numbers of a row; a vector is one row.
    pub(super) fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.shape.iter().product::<usize>() / self.columns()
    }

    /// The place in the file of a row of Hugging Face's tensor.
    pub(super) fn row_in_file(&self, row: usize) -> usize {
        let Some(dim) = self.paired_heads else { return row };
        let (head, within) = (row / dim, row % dim);
        head * dim + within % (dim / 2) * 2 + within / (dim / 2)
    }

    /// The row of Hugging Face's tensor at a place in the file.
    pub(super) fn row_in_model(&self, row: usize) -> usize {
        let Some(dim) = self.paired_heads else { return row };
        let (head, within) = (row / dim, row % dim);
        head * dim + within % 2 * (dim / 2) + within / 2
    }
}
