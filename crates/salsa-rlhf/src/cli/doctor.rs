//! `salsa doctor`
use std::{
    env,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use salsa_engine::{
    Device, Dtype,
    backend::cuda::{self, CardInfo},
};

use super::{print, version};
use crate::stage::memory::{self, Available, available::VARIABLE};

/// No arguments.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  salsa doctor")]
pub(super) struct Arguments {}

/// Prints one fact per line.
pub(super) fn main(_: &Arguments) -> anyhow::Result<()> {
    let mut facts = vec![
        ("version", version::short()),
        ("system", format!("{} {}", env::consts::OS, env::consts::ARCH)),
        ("cpu", cpu_model().unwrap_or_else(|| "unknown".to_owned())),
        ("cpu features", cpu_features()),
        ("kernels", kernels()),
        ("threads", threads()),
        ("memory", memory().unwrap_or_else(|| "unknown (no /proc/meminfo)".to_owned())),
    ];
    facts.extend(gpus().into_iter().map(|fact| ("gpu", fact)));
    facts.extend(places().into_iter().map(|(name, path)| (name, writable(&path))));
    let lines: String = facts.iter().map(|(name, fact)| format!("{name:<14} {fact}\n")).collect();
    print(&lines)
}

fn kernels() -> String {
    let forced = env::var("SALSA_ISA").map_or(String::new(), |isa| format!(" (forced by SALSA_ISA={isa})"));
    let numbers = match Dtype::fastest() {
        Dtype::Bf16 => "bf16, which this processor multiplies faster than f32",
        Dtype::F32 => "f32, bf16 being no faster on this processor",
    };
    format!("{}{forced}; dtype auto is {numbers}", salsa_engine::isa())
}

/// One line per GPU, or the reason why none can be used.
fn gpus() -> Vec<String> {
    match cuda::available() {
        Err(error) => vec![format!("none can be used: {error}")],
        Ok(cards) if cards.is_empty() => vec!["none".to_owned()],
        Ok(cards) => cards.iter().map(card).collect(),
    }
}

fn card(card: &CardInfo) -> String {
    let size = |bytes: usize| memory::size(bytes as u64);
    format!(
        "cuda:{} {}, {}, {} free, compute capability {}.{}, {} multiprocessors, driver for CUDA {}.{}; libraries {}",
        card.index,
        card.name,
        size(card.total),
        size(card.free),
        card.capability.0,
        card.capability.1,
        card.multiprocessors,
        card.driver.0,
        card.driver.1,
        card.libraries.join(", ")
    )
}

fn threads() -> String {
    let cores = std::thread::available_parallelism().map_or("unknown".to_owned(), |cores| cores.to_string());
    let forced = env::var("RAYON_NUM_THREADS").map_or(String::new(), |n| format!(" (RAYON_NUM_THREADS={n})"));
    format!("{}{forced}, {cores} cores usable", salsa_engine::threads())
}

fn cpu_model() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> String {
    let known = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("f16c", std::arch::is_x86_feature_detected!("f16c")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512bw", std::arch::is_x86_feature_detected!("avx512bw")),
        ("avx512vl", std::arch::is_x86_feature_detected!("avx512vl")),
        ("avx512vnni", std::arch::is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
        ("avx512fp16", std::arch::is_x86_feature_detected!("avx512fp16")),
    ];
    let mut present: Vec<&str> = known.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
    // The standard library cannot detect AMX yet.
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = flags.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    present.extend(["amx_tile", "amx_bf16"].iter().filter(|name| flags.split_whitespace().any(|flag| flag == **name)));
    if present.is_empty() { "none beyond the baseline".to_owned() } else { present.join(" ") }
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> String {
    "baseline of the architecture".to_owned()
}

/// Memory of the machine, and the amount that stages plan with.
fn memory() -> Option<String> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let gib = |name: &str| -> Option<f64> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / (1024.0 * 1024.0))
    };
    let planned = match Available::now(&Device::default()) {
        Ok(Available::Free(bytes)) => format!("stages plan with {}", memory::size(bytes)),
        Ok(Available::Stated(bytes)) => format!("stages plan with {} ({VARIABLE})", memory::size(bytes)),
        Ok(Available::Unknown) => "stages cannot plan".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    Some(format!("{:.1} GiB, {:.1} GiB free for use; {planned}", gib("MemTotal:")?, gib("MemAvailable:")?))
}

fn places() -> Vec<(&'static str, PathBuf)> {
    vec![("current dir", PathBuf::from(".")), ("temporary dir", env::temp_dir())]
}

/// Tests by writing: detects permissions, full disks and read-only mounts.
fn writable(dir: &Path) -> String {
    let shown = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let probe = dir.join(format!(".salsa-doctor-{}", std::process::id()));
    let result =
        File::create_new(&probe).and_then(|mut file| file.write_all(b"probe")).and_then(|()| fs::remove_file(&probe));
    match result {
        Ok(()) => format!("{} (writable)", shown.display()),
        Err(error) => format!("{} (NOT writable: {error})", shown.display()),
    }
}
