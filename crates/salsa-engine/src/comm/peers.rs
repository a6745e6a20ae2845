//! What processes tell each other when they meet: host, machine, cores.

use super::{Comm, CommError};

/// The processes of a run, by rank.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// Host names.
    pub hosts: Vec<String>,
    /// This process among those of its machine.
    pub local_rank: usize,
    /// Processes of its machine.
    pub local_size: usize,
    /// Those of them that may use the same cores as this one, itself included.
    pub sharing: usize,
}

/// What is known of one process. Containers of one machine have different host names but the same boot.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Introduction {
    host: String,
    machine: String,
    cores: Vec<u8>,
}

impl Peers {
    /// Tells all processes of this one, and learns of them.
    ///
    /// # Errors
    ///
    /// If the exchange fails.
    pub(super) fn meet(comm: &dyn Comm) -> Result<Peers, CommError> {
        let me = Introduction::of_this_process();
        let fields = [me.host.as_bytes(), me.machine.as_bytes(), &me.cores].map(|field| comm.gather_all(field));
        let [hosts, machines, cores] = fields;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let all = hosts?.into_iter().zip(machines?).zip(cores?);
        let all = all.map(|((host, machine), cores)| Introduction { host: text(host), machine: text(machine), cores });
        Ok(Peers::of(comm.rank(), &all.collect::<Vec<_>>()))
    }

    fn of(rank: usize, all: &[Introduction]) -> Peers {
        let me = &all[rank];
        let local = || all.iter().filter(|other| other.machine == me.machine);
        Peers {
            hosts: all.iter().map(|one| one.host.clone()).collect(),
            local_rank: all[..rank].iter().filter(|other| other.machine == me.machine).count(),
            local_size: local().count(),
            sharing: local().filter(|other| other.cores == me.cores).count(),
        }
    }
}

impl Introduction {
    fn of_this_process() -> Introduction {
        let host = host();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_else(|_| host.clone());
        Introduction { machine: boot.trim().to_owned(), host, cores: cores() }
    }
}

/// The name of this machine.
pub fn host() -> String {
    let mut name = [0u8; 256];
    // SAFETY: the pointer and the length are those of a local, whose last byte is left 0.
    unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    String::from_utf8_lossy(name.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

/// The cores that this process may use, as a bit each; empty where the system does not tell.
fn cores() -> Vec<u8> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: a set of cores is bits, for which zero is a value; the call fills the local.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            if libc::sched_getaffinity(0, size_of_val(&set), &mut set) == 0 {
                let bytes = std::slice::from_raw_parts((&raw const set).cast::<u8>(), size_of_val(&set));
                return bytes.to_vec();
            }
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(host: &str, machine: &str, cores: u8) -> Introduction {
        Introduction { host: host.into(), machine: machine.into(), cores: vec![cores] }
    }

    #[test]
    fn processes_of_a_machine_count_and_those_on_the_same_cores_share() {
        let all = [
            process("a", "1", 0b1111),
            process("b", "2", 0b0011),
            process("a", "1", 0b1111),
            process("b", "2", 0b1100),
            process("c", "2", 0b0011),
        ];
        let of = |rank| {
            let peers = Peers::of(rank, &all);
            (peers.local_rank, peers.local_size, peers.sharing)
        };
        assert_eq!([0, 1, 2, 3, 4].map(of), [(0, 2, 2), (0, 3, 2), (1, 2, 2), (1, 3, 1), (2, 3, 2)]);
        assert_eq!(Peers::of(0, &all).hosts, ["a", "b", "a", "b", "c"]);
    }

    #[test]
    fn all_learn_of_all() {
        let threads =
            super::super::in_process(3).into_iter().map(|comm| std::thread::spawn(move || Peers::meet(&comm)));
        for (rank, thread) in threads.collect::<Vec<_>>().into_iter().enumerate() {
            let peers = thread.join().unwrap().unwrap();
            assert_eq!((peers.local_rank, peers.local_size, peers.sharing), (rank, 3, 3));
            assert_eq!(peers.hosts, [host(), host(), host()]);
        }
    }
}
