//! The GPU's kernels on the CPU: their source is compiled with a C++ compiler and compared with references in f64, see
//! `tests/kernels/emulate.h`.
//!
//! Without a compiler, or where it has no `ucontext` (Windows, macOS), the tests print a line and pass. `CXX` names the
//! compiler.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Condvar, Mutex, OnceLock};

/// Options of the compiler. With `_FORTIFY_SOURCE`, which some systems enable, jumps between stacks would be errors.
const OPTIONS: [&str; 4] = ["-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas"];

/// A program that needs the same system features as the tests.
const PROBE: &str = "#include <ucontext.h>
#include <vector>
static void nothing() {}
int main() {
    ucontext_t context;
    getcontext(&context);
    makecontext(&context, nothing, 0);
}
";

/// The folder of the test's build outputs.
fn built(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kernels-{name}"))
}

/// Returns a compiler that makes programs for this system, or why there is none.
fn compiler() -> Result<&'static str, &'static str> {
    static FOUND: OnceLock<Result<String, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        if !cfg!(target_os = "linux") {
            return Err("kernels run on the processor on Linux only".into());
        }
        let named = std::env::var("CXX").ok().filter(|name| !name.trim().is_empty());
        let names = named.map_or(vec!["c++".into(), "g++".into(), "clang++".into()], |name| vec![name]);
        let source = built("probe.cpp");
        std::fs::write(&source, PROBE).unwrap();
        let works = |name: &String| {
            let probed = compile(name).arg(&source).arg("-o").arg(built("probe")).output();
            probed.is_ok_and(|probed| probed.status.success())
        };
        let tried = names.join(", ");
        names.into_iter().find(works).ok_or(format!("no C++17 compiler with ucontext ({tried})"))
    });
    found.as_deref().map_err(String::as_str)
}

/// `CXX` may have arguments, as in `ccache g++`.
fn compile(compiler: &str) -> Command {
    let mut words = compiler.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("c++"));
    command.args(words).args(OPTIONS);
    command
}

/// Runs `work`, at most two at a time.
fn with_a_place<T>(work: impl FnOnce() -> T) -> T {
    static SLOW_YIELD: Mutex<usize> = Mutex::new(0);
    static FREED: Condvar = Condvar::new();
    struct Place;
    impl Drop for Place {
        fn drop(&mut self) {
            *SLOW_YIELD.lock().unwrap() -= 1;
            FREED.notify_one();
        }
    }
    *FREED.wait_while(SLOW_YIELD.lock().unwrap(), |taken| *taken >= 2).unwrap() += 1;
    let _place = Place;
    work()
}

/// Compiles a file of `tests/kernels`, for a size of heads if it has one, unless a program from the same sources
/// exists, and runs it.
fn run(compiler: &str, file: &str, head_dim: Option<usize>) -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let name = head_dim.map_or(file.to_string(), |size| format!("{file}-{size}"));
    let program = built(&name);
    let mut command = compile(compiler);
    command.arg("-I").arg(root.join("src/backend/cuda/kernels"));
    command.args(head_dim.map(|size| format!("-DHEAD_DIM={size}")));
    command.arg(root.join("tests/kernels").join(format!("{file}.cpp"))).arg("-o").arg(&program);
    let (sources, kept) = (format!("{command:?}\n{}", sources(root)), program.with_extension("sources"));
    if !program.exists() || std::fs::read_to_string(&kept).ok().as_ref() != Some(&sources) {
        succeed(&name, &mut command)?;
        std::fs::write(&kept, sources).unwrap();
    }
    println!("{name}\n{}", succeed(&name, &mut Command::new(&program))?);
    Ok(())
}

/// All sources of a program, to detect changes: compiling takes longer than running.
fn sources(root: &Path) -> String {
    let list = |folder: &str| std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = list("src/backend/cuda/kernels").chain(list("tests/kernels")).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
}

/// Runs a command and returns its output; as an error, with its status, if it failed.
fn succeed(name: &str, command: &mut Command) -> Result<String, String> {
    let done = command.output().map_err(|error| format!("{name}: {command:?}: {error}"))?;
    let text = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if done.status.success() { Ok(text) } else { Err(format!("{name}: {command:?}: {}\n{text}", done.status)) }
}

fn check(file: &str, head_dims: &[Option<usize>]) {
    let compiler = match compiler() {
        Ok(compiler) => compiler,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let failed: Vec<String> = std::thread::scope(|scope| {
        let start = |&size| scope.spawn(move || with_a_place(|| run(compiler, file, size)));
        let running: Vec<_> = head_dims.iter().map(start).collect();
        running.into_iter().filter_map(|thread| thread.join().unwrap().err()).collect()
    });
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Head sizes that use half tiles, full tiles, and no tensor cores.
const HEAD_DIMS: [Option<usize>; 3] = [Some(256), Some(64), Some(24)];

#[test]
fn rows_and_conversions() {
    check("rows", &[None]);
}

#[test]
fn log_probs_and_draws() {
    check("head", &[None]);
}

#[test]
fn optimizer() {
    check("adamw", &[None]);
}

#[test]
fn attention_inside_sequences() {
    check("attention", &HEAD_DIMS);
}

#[test]
fn attention_to_a_cache() {
    check("cache", &HEAD_DIMS);
}
