//! Which launcher started this process, and how many processes it started.

use super::peers::host;
use super::{Comm, Peers, Settings, Solo, mpi};
use std::fmt;
use std::sync::Arc;

/// Why a process could not join the others of its run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LaunchError(pub String);

/// A process that has joined the others of its run.
#[derive(Clone, Debug)]
pub struct Joined {
    /// How it exchanges bytes with them.
    pub comm: Arc<dyn Comm>,
    /// What carries the bytes, such as `Open MPI 5.0.11, libmpi.so.40`; `none` for one process.
    pub transport: String,
    /// Who they are.
    pub peers: Peers,
}

/// The variable that chooses how processes exchange bytes.
const VARIABLE: &str = "SALSA_COMM";

/// Joins the processes that the launcher of this one has started: by MPI, which is loaded then. A process that was
/// started alone is [`Solo`] at no cost, and so is each one where `SALSA_COMM` is `none`. The last owner of the result
/// takes leave of the others when it is dropped, and waits for them.
///
/// # Errors
///
/// If variables contradict each other, no library fits the launcher, or the library does not know the others.
pub fn from_environment() -> Result<Joined, LaunchError> {
    let variable = |name: &str| std::env::var(name).ok();
    match variable(VARIABLE).as_deref() {
        None | Some("" | "auto" | "mpi") => {}
        Some("none") => return Ok(solo()),
        Some(other) => return Err(LaunchError(format!("{VARIABLE}={other}: unknown; one of auto, mpi, none"))),
    }
    match launched(variable)?.filter(|launched| launched.size > 1) {
        None => Ok(solo()),
        Some(Launched { launcher: Launcher::Torchrun, rank, size }) => Err(LaunchError(format!(
            "torchrun started this process as rank {rank} of {size}, but it brings no way to exchange bytes between \
             CPUs: start it as mpirun -n {size} salsa …, with Open MPI, MPICH or Intel MPI"
        ))),
        Some(launched) => mpi::join(launched, Settings::of(variable)?),
    }
}

fn solo() -> Joined {
    let peers = Peers { hosts: vec![host()], local_rank: 0, local_size: 1, sharing: 1 };
    Joined { comm: Arc::new(Solo), transport: "none".to_owned(), peers }
}

/// A program that starts the processes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// PyTorch's `torchrun`.
    Torchrun,
    /// Open MPI's `mpirun`.
    OpenMpi,
    /// `mpiexec` of MPICH, Intel MPI, MVAPICH or Cray: those that speak PMI.
    Hydra,
    /// Slurm's `srun`.
    Slurm,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Launcher::Torchrun => "torchrun",
            Launcher::OpenMpi => "Open MPI's mpirun",
            Launcher::Hydra => "mpiexec",
            Launcher::Slurm => "srun",
        })
    }
}

/// What the environment says of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launched {
    /// Who started it.
    pub launcher: Launcher,
    /// Its number, counted from 0.
    pub rank: usize,
    /// The number of processes.
    pub size: usize,
}

/// The variables of a launcher: one that only it sets, and those of rank and size.
struct Variables {
    launcher: Launcher,
    mark: &'static str,
    rank: &'static str,
    size: &'static str,
}

/// In order of precedence. `torchrun` is first: on several machines `srun` or `mpirun` starts one `torchrun` on each,
/// and both leave their variables. `mpirun` inside a Slurm job starts its helpers by `srun`, whose variables remain too.
/// Of Slurm the step counts, as the shell of `salloc` and the script of `sbatch` see the numbers of the whole job.
const LAUNCHERS: [Variables; 4] = [
    Variables { launcher: Launcher::Torchrun, mark: "MASTER_ADDR", rank: "RANK", size: "WORLD_SIZE" },
    Variables {
        launcher: Launcher::OpenMpi,
        mark: "OMPI_COMM_WORLD_RANK",
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
    },
    Variables { launcher: Launcher::Hydra, mark: "PMI_RANK", rank: "PMI_RANK", size: "PMI_SIZE" },
    Variables { launcher: Launcher::Slurm, mark: "SLURM_STEP_ID", rank: "SLURM_PROCID", size: "SLURM_STEP_NUM_TASKS" },
];

/// Which launcher started this process; `None` if it was started alone.
///
/// # Errors
///
/// If variables of a launcher contradict each other.
pub fn launched(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Launched>, LaunchError> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let is_set = |found: &&Variables| [found.mark, found.rank, found.size].iter().all(|name| variable(name).is_some());
    let found = LAUNCHERS.iter().filter(is_set).map(|found| found.read(variable));
    let found = found.collect::<Result<Vec<Launched>, LaunchError>>()?;
    let Some(first) = found.first() else { return Ok(None) };
    // Scripts for PyTorch set its variables to those of mpirun, which then is the launcher.
    let same = |other: &&Launched| (other.rank, other.size) == (first.rank, first.size);
    Ok(found.iter().skip(1).find(same).or(Some(first)).copied())
}

impl Variables {
    fn read(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Launched, LaunchError> {
        let number = |name: &str| {
            let value = variable(name).unwrap_or_default();
            value.parse::<usize>().map_err(|_| LaunchError(format!("{name}={value}: not a number; {ALONE}")))
        };
        let (rank, size) = (number(self.rank)?, number(self.size)?);
        if rank >= size {
            return Err(LaunchError(format!("{}={rank} is not below {}={size}; {ALONE}", self.rank, self.size)));
        }
        Ok(Launched { launcher: self.launcher, rank, size })
    }
}

/// What to do if the variables are left over from something else.
const ALONE: &str = "SALSA_COMM=none ignores the launcher's variables";

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<(Launcher, usize, usize)>, String> {
        let variables: std::collections::HashMap<_, _> = variables.iter().copied().collect();
        let found = launched(|name| variables.get(name).map(|&value| value.to_owned()));
        found.map(|found| found.map(|f| (f.launcher, f.rank, f.size))).map_err(|error| error.to_string())
    }

    #[test]
    fn each_launcher_is_known_by_its_variables() {
        assert_eq!(of(&[]), Ok(None));
        let open_mpi = [("OMPI_COMM_WORLD_RANK", "3"), ("OMPI_COMM_WORLD_SIZE", "8"), ("PMIX_RANK", "3")];
        assert_eq!(of(&open_mpi), Ok(Some((Launcher::OpenMpi, 3, 8))));
        assert_eq!(of(&[("PMI_RANK", "1"), ("PMI_SIZE", "2")]), Ok(Some((Launcher::Hydra, 1, 2))));
        let step =
            [("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "5"), ("SLURM_STEP_NUM_TASKS", "6"), ("SLURM_NTASKS", "9")];
        assert_eq!(of(&step), Ok(Some((Launcher::Slurm, 5, 6))));
        let torchrun = [("RANK", "1"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "29500")];
        assert_eq!(of(&torchrun), Ok(Some((Launcher::Torchrun, 1, 4))));
    }

    /// `srun torchrun` and `mpirun torchrun` start one `torchrun` on each machine; `mpirun` starts its helpers by `srun`.
    #[test]
    fn the_innermost_launcher_counts() {
        let slurm = [("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2")];
        let torchrun = [("RANK", "9"), ("WORLD_SIZE", "16"), ("MASTER_ADDR", "a")];
        let open_mpi = [("OMPI_COMM_WORLD_RANK", "3"), ("OMPI_COMM_WORLD_SIZE", "8")];
        assert_eq!(of(&[slurm, torchrun].concat()), Ok(Some((Launcher::Torchrun, 9, 16))));
        assert_eq!(of(&[&slurm[..], &open_mpi].concat()), Ok(Some((Launcher::OpenMpi, 3, 8))));
        assert_eq!(of(&[&torchrun[..], &open_mpi].concat()), Ok(Some((Launcher::Torchrun, 9, 16))));
        let copied = [("RANK", "3"), ("WORLD_SIZE", "8"), ("MASTER_ADDR", "a")];
        assert_eq!(of(&[&copied[..], &open_mpi].concat()), Ok(Some((Launcher::OpenMpi, 3, 8))));
    }

    /// The shell of `salloc` and the script of `sbatch` are one process each, whatever the job has; `RANK` alone may be
    /// anybody's.
    #[test]
    fn an_allocation_without_a_step_is_one_process() {
        assert_eq!(of(&[("SLURM_NTASKS", "8"), ("SLURM_JOB_ID", "7")]), Ok(None));
        assert_eq!(of(&[("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0"), ("SLURM_JOB_ID", "7")]), Ok(None));
        let shell = [("SLURM_STEP_ID", "4294967290"), ("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1")];
        assert_eq!(of(&[&shell[..], &[("SLURM_NTASKS", "8")]].concat()), Ok(Some((Launcher::Slurm, 0, 1))));
        assert_eq!(of(&[("RANK", "captain"), ("WORLD_SIZE", "4")]), Ok(None));
    }

    #[test]
    fn contradictions_are_errors_that_name_the_variables() {
        let error = of(&[("PMI_RANK", "2"), ("PMI_SIZE", "2")]).unwrap_err();
        assert!(error.contains("PMI_RANK=2 is not below PMI_SIZE=2") && error.contains("SALSA_COMM=none"), "{error}");
        let error = of(&[("PMI_RANK", "x"), ("PMI_SIZE", "2")]).unwrap_err();
        assert!(error.contains("PMI_RANK=x: not a number"), "{error}");
    }
}
