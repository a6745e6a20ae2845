//! `salsa --version`: identifies the build and the kernels used on this machine.
use salsa_engine::backend::cpu::isa::Isa;

/// The version of the package.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Commit and date, empty if unknown at build time (`build.rs`).
const COMMIT: &str = env!("SALSA_COMMIT");

/// `0.1.0 (COMMIT DATE)`
pub(super) fn short() -> String {
    let kind = if cfg!(debug_assertions) { "development build" } else { "no commit known" };
    format!("{VERSION} ({})", if COMMIT.is_empty() { kind } else { COMMIT })
}

/// The lines of `--version`.
pub(super) fn text() -> String {
    let sets = Isa::ALL.into_iter().filter(|isa| isa.is_compiled());
    let sets: Vec<&str> = sets.map(Isa::name).collect();
    let used = match salsa_engine::check_isa() {
        Ok(()) => salsa_engine::isa().to_owned(),
        Err(message) => message,
    };
    format!(
        "salsa {}\ntarget: {}\nkernels: {}; on this machine: {used}\ngpu: CUDA, loaded when a GPU is used\n",
        short(),
        env!("SALSA_TARGET"),
        sets.join(", ")
    )
}
