//! Granite 3: Llama with factors of embeddings, attention scores, residuals and logits.
use anyhow::{Result, ensure};
use serde_json::Value;

use super::{super::config::number, super::save_config::shortest, Description, llama};

const KEYS: [&str; 4] = ["embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"];

pub(super) const DESCRIPTION: Description = Description {
    model_type: "granite",
    class_prefix: "Granite",
    read: |config, spec| {
        let [embedding, attention, residual, logits] = KEYS.map(|key| factor(config, key));
        spec.embedding_scale = embedding?;
        spec.options.attention_scale = Some(attention?);
        spec.options.residual_scale = residual?;
        spec.options.logit_divisor = logits?;
        Ok(())
    },
    write: |spec, config| {
        (llama::DESCRIPTION.write)(spec, config);
        let attention = spec.options.attention_scale.unwrap_or(1.0 / (spec.head_dim as f32).sqrt());
        let factors = [spec.embedding_scale, attention, spec.options.residual_scale, spec.options.logit_divisor];
        config.extend(KEYS.map(str::to_owned).into_iter().zip(factors.map(shortest)));
    },
    ..llama::DESCRIPTION
};

fn factor(config: &Value, key: &str) -> Result<f32> {
    let factor = number(config, key)?.unwrap_or(1.0);
    ensure!(factor > 0.0, "{key} is {factor}: expected a positive number");
    Ok(factor as f32)
}
