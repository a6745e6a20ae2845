//! The key `device`, and the device it selects on this machine.
use std::{
    borrow::Cow,
    env, fmt,
    panic::{self, AssertUnwindSafe},
    str::FromStr,
    sync::{Mutex, PoisonError},
};

use anyhow::anyhow;
use salsa_engine::{
    Cpu, Device, Dtype,
    backend::cuda::{self, CardInfo, Cuda, DeviceError},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{keys::ComputeType, memory};
use crate::config::Usage;

/// The environment variable that overrides `auto`.
pub(crate) const VARIABLE: &str = "SALSA_DEVICE";

/// Values of the key `device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The GPU with the most free memory, or the CPU if no GPU is usable.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU with this index; `None`: the one with the most free memory.
    Cuda(Option<usize>),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Choice, String> {
        let numbered = || text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
        match text {
            "auto" => Ok(Choice::Auto),
            "cpu" => Ok(Choice::Cpu),
            "cuda" => Ok(Choice::Cuda(None)),
            _ => numbered()
                .map(|number| Choice::Cuda(Some(number)))
                .ok_or_else(|| format!("there is no device {text}; say auto, cpu, cuda or cuda:N")),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Auto => f.write_str("auto"),
            Choice::Cpu => f.write_str("cpu"),
            Choice::Cuda(None) => f.write_str("cuda"),
            Choice::Cuda(Some(number)) => write!(f, "cuda:{number}"),
        }
    }
}

impl Serialize for Choice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Choice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Choice, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Choice {
    fn schema_name() -> Cow<'static, str> {
        "Device".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"oneOf": [
            {"const": "auto", "description": "The GPU with the most free memory if one can be used, else the processor."},
            {"const": "cpu", "description": "The processor, even where there is a GPU."},
            {"const": "cuda", "description": "The GPU with the most free memory."},
            {"type": "string", "pattern": "^cuda:[0-9]+$", "title": "cuda:N"}
        ]})
    }
}

impl Choice {
    /// The value of [`VARIABLE`], if it is set.
    ///
    /// # Errors
    /// If it names no device.
    pub fn forced() -> Result<Option<Choice>, Usage> {
        match env::var(VARIABLE) {
            Ok(text) => text.parse().map(Some).map_err(|message| Usage(format!("{VARIABLE}: {message}"))),
            Err(env::VarError::NotPresent) => Ok(None),
            Err(env::VarError::NotUnicode(_)) => Err(Usage(format!("{VARIABLE} is not text"))),
        }
    }

    /// Opens the device with this number type for matrix products.
    ///
    /// # Errors
    /// If the requested GPU cannot be used.
    pub fn open(self, dtype: ComputeType) -> anyhow::Result<Opened> {
        match self {
            Choice::Auto => automatic(dtype),
            Choice::Cpu => Ok(Opened::processor(dtype, "")),
            Choice::Cuda(number) => {
                let card = pick(&cuda::available()?, number)?.clone();
                Opened::card(&card, dtype, "")
            }
        }
    }
}

/// A device and why it was chosen.
pub struct Opened {
    /// The device.
    pub device: Device,
    /// One line for the user: device, number type, reason.
    pub line: String,
}

impl Opened {
    fn processor(dtype: ComputeType, why: &str) -> Opened {
        let cpu = Cpu { dtype: dtype.resolve() };
        Opened { line: format!("device: processor ({}), {}{why}", cpu.isa(), cpu.dtype.name()), device: cpu.into() }
    }

    fn card(card: &CardInfo, dtype: ComputeType, why: &str) -> anyhow::Result<Opened> {
        let dtype = gpu_dtype(dtype);
        let free = memory::size(card.free as u64);
        let line = format!("device: {} (cuda:{}), {}, {free} free{why}", card.name, card.index, dtype.name());
        Ok(Opened { device: Device::Cuda(open(card.index, dtype)?), line })
    }
}

/// Tests of the library use the CPU on every machine.
fn automatic(dtype: ComputeType) -> anyhow::Result<Opened> {
    if cfg!(test) {
        return Ok(Opened::processor(dtype, ""));
    }
    if let Some(forced) = Choice::forced()?.filter(|choice| *choice != Choice::Auto) {
        let mut opened = forced.open(dtype)?;
        opened.line.push_str(&format!("; {VARIABLE}={forced}"));
        return Ok(opened);
    }
    match cuda::available() {
        // Without NVIDIA's driver there is nothing to explain; with it, the missing part is reported.
        Err(DeviceError::Library { library, .. }) if library.starts_with("libcuda.") => {
            Ok(Opened::processor(dtype, ""))
        }
        Err(error) => Ok(Opened::processor(dtype, &format!("; no GPU can be used: {error}"))),
        Ok(cards) => match most_free(&cards) {
            None => Ok(Opened::processor(dtype, "; there is no GPU")),
            Some(card) => Opened::card(card, dtype, "; the GPU with the most free memory"),
        },
    }
}

/// On a GPU, `auto` means bfloat16.
fn gpu_dtype(dtype: ComputeType) -> Dtype {
    match dtype {
        ComputeType::Float32 => Dtype::F32,
        ComputeType::Auto | ComputeType::BFloat16 => Dtype::Bf16,
    }
}

/// The first GPU with the most free memory.
fn most_free(cards: &[CardInfo]) -> Option<&CardInfo> {
    cards.iter().rev().max_by_key(|card| card.free)
}

fn pick(cards: &[CardInfo], number: Option<usize>) -> anyhow::Result<&CardInfo> {
    let found = match number {
        None => most_free(cards),
        Some(number) => cards.iter().find(|card| card.index == number),
    };
    found.ok_or_else(|| match number {
        Some(number) if !cards.is_empty() => anyhow!("there is no GPU {number}; `salsa doctor` lists those there are"),
        _ => anyhow!("there is no GPU; say device: cpu"),
    })
}

/// An open GPU and its key: index and number type of products.
type OpenGpu = ((usize, Dtype), Cuda);

/// Opens a GPU, or returns it if the process has it open already.
fn open(index: usize, dtype: Dtype) -> anyhow::Result<Cuda> {
    static OPEN: Mutex<Vec<OpenGpu>> = Mutex::new(Vec::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, cuda)) = open.iter().find(|(key, _)| *key == (index, dtype)) {
        return Ok(cuda.clone());
    }
    let cuda = Cuda::open(index, dtype)?;
    open.push(((index, dtype), cuda.clone()));
    Ok(cuda)
}

/// Runs `work` and converts a GPU failure, which operations report by a panic, into an error.
///
/// # Errors
/// The errors of `work`, and GPU failures.
pub(crate) fn caught<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| match payload.downcast::<DeviceError>() {
        Ok(error) => Err(explained(*error)),
        Err(other) => panic::resume_unwind(other),
    })
}

/// Suppresses the panic message of GPU failures, which [`caught`] turns into errors.
pub(crate) fn silence_failures() {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !info.payload().is::<DeviceError>() {
            hook(info);
        }
    }));
}

/// Adds to an out-of-memory error the keys that lower what a stage needs.
fn explained(error: DeviceError) -> anyhow::Error {
    let full = matches!(error, DeviceError::OutOfMemory { .. });
    let error = anyhow::Error::new(error);
    if !full {
        return error.context("the GPU failed");
    }
    error.context(format!("the GPU's memory does not suffice; what lowers it: {}", memory::Saving::every().join(", ")))
}

/// The device's name in metrics and reports: `cpu`, or the name of the GPU.
pub(crate) fn label(device: &Device) -> String {
    device.cuda().map_or_else(|| "cpu".to_owned(), |cuda| cuda.name().to_owned())
}

/// Peak memory of arrays on the GPU, in MiB; `None` on the CPU.
pub(crate) fn peak_mib(device: &Device) -> Option<f64> {
    Some(device.cuda()?.memory().peak as f64 / (1024.0 * 1024.0))
}

/// Free bytes on this GPU, if the driver reports them.
pub(crate) fn free_on_card(card: &Cuda) -> Option<u64> {
    let (memory, index) = (card.memory(), card.index());
    let card = cuda::available().ok()?.into_iter().find(|card| card.index == index)?;
    Some((card.free + memory.reserved.saturating_sub(memory.in_use)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(index: usize, free: usize) -> CardInfo {
        CardInfo {
            index,
            name: "A card".to_owned(),
            total: 100,
            free,
            capability: (9, 0),
            multiprocessors: 1,
            driver: (13, 0),
            libraries: Vec::new(),
        }
    }

    #[test]
    fn a_choice_is_written_as_it_is_read() {
        for text in ["auto", "cpu", "cuda", "cuda:0", "cuda:12"] {
            assert_eq!(text.parse::<Choice>().unwrap().to_string(), text);
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CUDA"] {
            assert!(text.parse::<Choice>().unwrap_err().contains("auto, cpu, cuda or cuda:N"), "{text}");
        }
    }

    #[test]
    fn the_freest_card_is_taken_or_the_one_named() {
        let cards = [card(0, 5), card(1, 9), card(2, 9)];
        assert_eq!(pick(&cards, None).unwrap().index, 1);
        assert_eq!(pick(&cards, Some(2)).unwrap().index, 2);
        assert!(pick(&cards, Some(3)).unwrap_err().to_string().contains("there is no GPU 3"));
        assert!(pick(&[], None).unwrap_err().to_string().contains("device: cpu"));
    }

    #[test]
    fn a_failure_of_the_card_is_an_error_and_other_panics_go_on() {
        let full = DeviceError::OutOfMemory { asked: 3 << 20, in_use: 5 << 20, total: 7 << 20 };
        let error = caught::<()>(|| panic::panic_any(full)).unwrap_err();
        let text = format!("{error:#}");
        for part in ["3.0 MiB", "5.0 MiB", "7.0 MiB", "gradient_checkpointing: true", "use_peft: true"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(caught(|| Ok(3)).unwrap(), 3);
        assert!(panic::catch_unwind(|| caught::<()>(|| panic!("another"))).is_err());
    }

    #[test]
    fn auto_is_bf16_on_a_card_and_f32_stays() {
        assert_eq!(gpu_dtype(ComputeType::Auto), Dtype::Bf16);
        assert_eq!(gpu_dtype(ComputeType::Float32), Dtype::F32);
    }
}
