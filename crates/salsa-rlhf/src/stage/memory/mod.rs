//! Estimates the memory of a stage before any weight is read, and fails if there is too little.
//!
//! ```text
//! open checkpoints (headers) → read the data → plan → print, or refuse with what would help → load weights
//! ```
use std::fmt;

use anyhow::{bail, ensure};
use salsa_engine::{Device, Dtype, LoraSpec, ModelSpec, Recompute};

use super::{StageContext, Until, ranks};

pub(crate) mod available;
#[cfg(test)]
pub(crate) mod fixture;
mod passes;
mod responses;
pub(crate) mod shape;
mod sharing;
#[cfg(test)]
mod tests;

pub(crate) use available::Available;
pub(crate) use passes::{Passed, Passes};
pub(crate) use responses::{Order, Responses};
pub(crate) use sharing::Sharing;

/// The parts of a stage's memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Need {
    parts: Vec<(&'static str, u64)>,
}

impl Need {
    /// Fixed need of a run on a GPU: logits of a pass, and the workspace of products.
    const CARD: u64 = (512 + 32) << 20;

    /// Estimated fixed need of a process, if its resident size is unknown: the program, its threads, texts and tokens.
    pub(crate) const PROGRAM: u64 = 64 << 20;

    /// Adds the need that does not depend on the models: on the CPU, mainly the `resident` bytes of this process; on a
    /// GPU, the fixed need of a run.
    fn with_program(mut self, resident: u64, place: Place) -> Need {
        let bytes = match place {
            Place::Gpu => Need::CARD,
            Place::Cpu => resident + Need::scratch() + self.total() / Need::PAGES,
        };
        self.add(part::PROGRAM, bytes);
        self
    }

    /// Allowance for page rounding: 1/32 of the total.
    const PAGES: u64 = 32;

    /// Scratch memory of the engine's threads.
    fn scratch() -> u64 {
        (2 << 20) * salsa_engine::threads() as u64
    }

    /// Adds to a part.
    pub(crate) fn add(&mut self, part: &'static str, bytes: u64) {
        match self.parts.iter_mut().find(|(known, _)| *known == part) {
            Some((_, sum)) => *sum += bytes,
            None => self.parts.push((part, bytes)),
        }
    }

    /// The bytes of one part.
    #[cfg(test)]
    pub(crate) fn part(&self, part: &str) -> u64 {
        self.parts.iter().find(|(known, _)| *known == part).map_or(0, |(_, bytes)| *bytes)
    }

    /// The sum of all parts.
    pub(crate) fn total(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum::<u64>()
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.parts.iter().map(|(part, bytes)| format!("{part} {}", size(*bytes))).collect();
        write!(f, "{} ({})", size(self.total()), parts.join(", "))
    }
}

/// Names of the parts.
pub(crate) mod part {
    /// Memory of the process before it opens a model.
    pub(crate) const PROGRAM: &str = "program";
    /// Weights that are not trained.
    pub(crate) const FROZEN: &str = "frozen weights";
    /// Whole models in f32, from which others are computed.
    pub(crate) const INGREDIENTS: &str = "ingredients";
    /// Trained weights, with gradients and moments.
    pub(crate) const TRAINED: &str = "weights in training";
    /// Stored activations and working memory of passes.
    pub(crate) const ACTIVATIONS: &str = "activations";
    /// Keys, values and logits of generation, and activations of the passes before and after it.
    pub(crate) const GENERATION: &str = "generation and activations";
}

/// The memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The machine's memory.
    Cpu,
    /// The memory of a GPU.
    Gpu,
}

impl Place {
    /// The memory used by this device.
    pub(crate) fn of(device: &Device) -> Place {
        if device.cuda().is_some() { Place::Gpu } else { Place::Cpu }
    }
}

/// The settings of a stage that determine its memory.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MemorySettings {
    /// The trained adapter; `None`: all weights are trained.
    pub adapter: Option<LoraSpec>,
    /// Which activations a training pass recomputes.
    pub recompute: Recompute,
    /// Examples per training pass.
    pub pass: usize,
    /// Examples per evaluation pass.
    pub eval_pass: usize,
    /// Sequences decoded at once.
    pub slots: usize,
    /// Number type of products.
    pub dtype: Dtype,
    /// The memory in use.
    pub place: Place,
    /// How training is shared.
    pub sharing: Sharing,
}

impl MemorySettings {
    /// Settings of a stage without training: one sequence at a time, on this device.
    pub(crate) fn on(device: &Device) -> MemorySettings {
        MemorySettings {
            adapter: None,
            recompute: Recompute::KeepActivations,
            pass: 1,
            eval_pass: 1,
            slots: 1,
            dtype: device.dtype(),
            place: Place::of(device),
            sharing: Sharing::ALONE,
        }
    }
}

/// A change of a stage's configuration that may save memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Saving {
    /// `use_peft: true`
    Adapter,
    /// `gradient_checkpointing: true`
    Recompute,
    /// A smaller number of examples (or tokens) per pass under this key: at most the given one.
    Pass(&'static str, usize),
    /// The same for evaluation passes: 1.
    Evaluation(&'static str),
    /// A smaller number of sequences decoded at once under this key.
    Slots(&'static str),
    /// `dtype: bf16`
    Dtype,
}

impl Saving {
    /// The savings available to training stages.
    pub(crate) const TRAINING: &[Saving] = &[
        Saving::Adapter,
        Saving::Recompute,
        Saving::Pass("per_device_train_batch_size", 1),
        Saving::Evaluation("per_device_eval_batch_size"),
        Saving::Dtype,
    ];

    /// All savings of any stage, in the syntax of the configuration.
    pub(crate) fn every() -> Vec<String> {
        let (pass, eval_pass, slots) = (usize::MAX, usize::MAX, usize::MAX);
        let most = MemorySettings { pass, eval_pass, slots, ..MemorySettings::on(&Device::default()) };
        let slots = Saving::Slots("decode_slots");
        Saving::TRAINING.iter().chain([&slots]).filter_map(|saving| Some(saving.applied(&most)?.1)).collect()
    }

    /// The settings with this saving, and its syntax; `None` if it is in effect already.
    fn applied(self, knobs: &MemorySettings) -> Option<(MemorySettings, String)> {
        let mut changed = knobs.clone();
        let text = match self {
            Saving::Adapter => {
                changed.adapter = changed.adapter.or_else(|| Some(LoraSpec::default()));
                "use_peft: true".to_owned()
            }
            Saving::Recompute => {
                changed.recompute = Recompute::PerLayer;
                "gradient_checkpointing: true".to_owned()
            }
            Saving::Pass(key, least) => {
                changed.pass = changed.pass.min(least);
                format!("{key}: {}", changed.pass)
            }
            Saving::Evaluation(key) => {
                changed.eval_pass = changed.eval_pass.min(1);
                format!("{key}: {}", changed.eval_pass)
            }
            Saving::Slots(key) => {
                changed.slots = changed.slots.min(1);
                format!("{key}: {}", changed.slots)
            }
            Saving::Dtype => {
                changed.dtype = Dtype::Bf16;
                let price = if Dtype::fastest() == Dtype::F32 { " (slower on this machine)" } else { "" };
                format!("dtype: bf16{price}")
            }
        };
        (changed != *knobs).then_some((changed, text))
    }
}

/// The error that ends a rehearsal: the memory that the stage would need.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct PlanOnly(pub Need);

/// Reports the memory that a stage needs, and fails if that is more than available.
///
/// # Errors
/// If memory does not suffice: states the need, what is available, and the keys that would lower the need, each with
/// the result. [`PlanOnly`] in a rehearsal.
pub(crate) fn check(
    stage: &str,
    knobs: &MemorySettings,
    savings: &[Saving],
    need: &dyn Fn(&MemorySettings) -> Need,
    context: &StageContext,
) -> anyhow::Result<()> {
    // What an earlier stage of this process has freed is there for this one.
    salsa_engine::release_memory();
    ensure!(
        knobs.sharing == Sharing::ALONE || knobs.place == Place::Cpu,
        "gradient_units is {}: more than one is for the CPU; say gradient_units: 1, or device: cpu",
        knobs.sharing.units
    );
    let (ranks, peers) = (&*context.ranks, context.ranks.local_size());
    // All look before any of them takes something.
    ranks.barrier()?;
    let resident = available::resident_bytes().unwrap_or(Need::PROGRAM);
    let need = &|knobs: &MemorySettings| need(knobs).with_program(resident, knobs.place);
    let (now, available) =
        (need(knobs), Available::now(&context.device)?.shared_by(peers).and_used(resident, knobs.place));
    let place = match context.device.cuda() {
        Some(cuda) => format!(" on {}", cuda.name()),
        None if peers > 1 => format!(" in each of {peers} processes of this machine"),
        None => String::new(),
    };
    match available.bytes() {
        None => context.say(&format!("memory{place}: {now}; how much there is, this system does not say")),
        Some(bytes) => context.say(&format!("memory{place}: {now}, {} available", size(bytes))),
    }
    let short = available.bytes().filter(|bytes| *bytes < now.total());
    let others = ranks::any(ranks, short.is_some())?;
    let Some(bytes) = short else {
        ensure!(!others, "{stage}: another process has not enough memory; it says how much is missing");
        return match context.until {
            Until::Done => Ok(()),
            Until::Planned => Err(PlanOnly(now).into()),
        };
    };
    bail!(
        "{stage} needs {now} of memory{place}, and {} {}. {}. If you know better, say how much to plan with: {}={}GB",
        size(bytes),
        if matches!(available, Available::Stated(_)) { "are stated" } else { "are available" },
        advice(knobs, savings, need, bytes),
        available::VARIABLE,
        now.total().div_ceil(1_000_000_000)
    );
}

/// Every saving with its result, and all of them together if none suffices alone.
fn advice(
    knobs: &MemorySettings,
    savings: &[Saving],
    need: &dyn Fn(&MemorySettings) -> Need,
    available: u64,
) -> String {
    let total = need(knobs).total();
    let verdict = |bytes: u64| if bytes <= available { "fits" } else { "still too much" };
    let (mut all, mut names, mut lines, mut enough) = (knobs.clone(), Vec::new(), Vec::new(), false);
    for saving in savings {
        let Some((changed, text)) = saving.applied(knobs) else { continue };
        let bytes = need(&changed).total();
        if bytes >= total {
            continue;
        }
        enough |= bytes <= available;
        lines.push(format!("{text}: {}, {}", size(bytes), verdict(bytes)));
        all = saving.applied(&all).map_or(all, |(changed, _)| changed);
        names.push(text);
    }
    if lines.is_empty() {
        return "No key would lower it; take a smaller model or a larger machine".to_owned();
    }
    if !enough && names.len() > 1 {
        let bytes = need(&all).total();
        lines.push(format!("all of these: {}, {}", size(bytes), verdict(bytes)));
    }
    format!("With {}", lines.join("; with "))
}

/// The need of one trained model, apart from passes.
pub(crate) fn one_model(spec: &ModelSpec, file_is_bf16: bool, knobs: &MemorySettings) -> Need {
    let mut need = Need::default();
    match &knobs.adapter {
        None => need.add(part::TRAINED, shape::trained(spec, knobs.dtype, knobs.sharing)),
        Some(lora) => {
            need.add(part::FROZEN, shape::stored(spec, knobs.dtype, file_is_bf16));
            need.add(part::TRAINED, shape::trained_adapter(spec, lora, knobs.dtype, knobs.sharing));
        }
    }
    need
}

/// Formats bytes as `1.25 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    let mib = bytes as f64 / (1024.0 * 1024.0);
    if mib >= 1024.0 { format!("{:.2} GiB", mib / 1024.0) } else { format!("{mib:.1} MiB") }
}
