//! The trained policy of a run.
use anyhow::ensure;
use salsa_engine::{AdamW, Head, Recompute, Trainable};

use crate::stage::models::{
    adapters, bases::Bases, frozen::open_language_model, lora::LoraArguments, model_source::ModelSource,
};

/// What can be done with a trained policy.
pub(super) const NEXT: &[(&str, &str)] = &[
    ("talk to it", "salsa chat --model OUT"),
    ("answer prompts", "salsa generate --model OUT --input PROMPTS --output FILE"),
    ("compare models", "salsa evaluate --config FILE --output_dir DIR"),
];

/// Opens the policy: all weights of the configured model, or the configured adapter or a new one on it.
///
/// # Errors
/// If weights cannot be read, do not fit or are not finite.
pub(super) fn open(
    source: &ModelSource,
    lora: &LoraArguments,
    seed: u64,
    recompute: Recompute,
    bases: &mut Bases,
) -> anyhow::Result<Trainable> {
    if lora.use_peft {
        return adapted(source, lora, Head::LanguageModel, seed, recompute, bases);
    }
    let (spec, weights) = source.read()?;
    Ok(Trainable::new(spec, weights, bases.device().clone(), recompute)?)
}

/// The configured adapter, or a new one.
///
/// # Errors
/// If weights cannot be read or do not fit, or the source is a soup of whole models.
pub(super) fn adapted(
    source: &ModelSource,
    lora: &LoraArguments,
    head: Head,
    seed: u64,
    recompute: Recompute,
    bases: &mut Bases,
) -> anyhow::Result<Trainable> {
    match source {
        ModelSource::Path(path) => bases.adapted(&open_language_model(path)?, head, lora, seed, recompute),
        ModelSource::Soup(soup) => {
            let (weights, models) = (soup.checked_weights()?, soup.open()?);
            ensure!(
                adapters::share_a_base(&models),
                "model_name_or_path is a soup of whole models, which no adapter could name as its base; write the soup \
                 first (salsa soup) and start from it"
            );
            bases.adapter_soup(&models, &weights)?.adapted(head, seed, recompute)
        }
    }
}

/// Takes an optimizer step; a learning rate of 0 leaves the model unchanged.
///
/// # Errors
/// If the gradient is not finite.
pub(super) fn advance(model: &mut Trainable, adamw: &AdamW, rate: f64) -> anyhow::Result<()> {
    if rate == 0.0 {
        model.zero_gradients();
    } else {
        model.adamw_step(adamw, rate)?;
    }
    Ok(())
}
