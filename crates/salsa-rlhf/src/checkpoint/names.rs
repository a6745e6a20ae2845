//! Names of tensors and heads in the conventions of other trainers.

use salsa_engine::Head;
use serde_json::Value;

/// Components that wrappers insert into tensor names: torch.compile, FSDP, activation checkpointing.
const WRAPPERS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// The prefix that DistributedDataParallel adds.
const DISTRIBUTED: &str = "module.";

/// A tensor's name without the components of wrappers.
pub(super) fn plain(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
    let mut plain = parts.join(".");
    while let Some(rest) = plain.strip_prefix(DISTRIBUTED) {
        plain = rest.to_owned();
    }
    plain
}

/// The head according to a config's `architectures`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// No `architectures` given.
    None,
    /// A language model.
    LanguageModel,
    /// A reward model.
    Reward,
}

impl Named {
    /// The head of a model whose tensors are not known.
    pub(super) fn head(self) -> Head {
        match self {
            Named::None | Named::LanguageModel => Head::LanguageModel,
            Named::Reward => Head::Scalar,
        }
    }
}

/// The alternative names of the tensor that is `score.weight` in transformers, in the order of lookup: the one that
/// OpenRLHF's config names, and that of its first versions.
pub(super) fn of_score(config: &Value) -> Vec<String> {
    let prefix = config["value_head_prefix"].as_str().filter(|prefix| !prefix.is_empty());
    ["score"].into_iter().chain(prefix).chain(["value_head"]).map(|prefix| format!("{prefix}.weight")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_leave_no_trace_in_names() {
        let name = "model.layers.0.mlp.up_proj.weight";
        for wrapped in [
            "_orig_mod.model.layers.0.mlp.up_proj.weight",
            "module.model.layers.0.mlp.up_proj.weight",
            "module._orig_mod.model.layers.0.mlp.up_proj.weight",
            "_orig_mod.module.module.model.layers.0.mlp.up_proj.weight",
            "model.layers.0._orig_mod.mlp.up_proj.weight",
            "_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.mlp.up_proj.weight",
            name,
        ] {
            assert_eq!(plain(wrapped), name, "{wrapped}");
        }
        for other in ["score.module.weight", "modules.score.weight", "module"] {
            assert_eq!(plain(other), other);
        }
    }
}
