//! The memory that a stage may plan with.
use std::{env, fs, path::Path};

use anyhow::{Context, bail};
use salsa_engine::Device;
use serde::Deserialize;
use serde_json::json;

use super::Place;
use crate::stage::{device, keys::ByteSize};

/// The environment variable that overrides it.
pub(crate) const VARIABLE: &str = "SALSA_MEMORY";

/// Memory to plan with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Available {
    /// Bytes reported by the system.
    Free(u64),
    /// Bytes stated in [`VARIABLE`].
    Stated(u64),
    /// The system reports nothing.
    Unknown,
}

impl Available {
    /// The value of [`VARIABLE`], or else the free memory of the device: for a GPU its own memory, for the CPU the
    /// system's estimate, reduced by the limit of a control group.
    ///
    /// # Errors
    /// If the variable is no size.
    pub(crate) fn now(device: &Device) -> anyhow::Result<Available> {
        if let Ok(text) = env::var(VARIABLE) {
            let size = ByteSize::deserialize(json!(text)).with_context(|| VARIABLE.to_owned())?;
            if size.0 == 0 {
                bail!("{VARIABLE} is 0; give the bytes to plan with, such as 16GB");
            }
            return Ok(Available::Stated(size.0));
        }
        Ok(match device.cuda() {
            Some(card) => device::free_on_card(card).map_or(Available::Unknown, Available::Free),
            None => Available::of_system(),
        })
    }

    /// Free memory of the machine for data, regardless of the device: as [`Available::now`], reduced by the limit of
    /// the process's address space (`ulimit -v`).
    pub(crate) fn of_machine() -> Available {
        let (status, limits) = (read("/proc/self/status"), read("/proc/self/limits"));
        match (Available::of_system(), addresses_left(&status, &limits)) {
            (Available::Free(free), Some(left)) => Available::Free(free.min(left)),
            (_, Some(left)) => Available::Free(left),
            (system, None) => system,
        }
    }

    fn of_system() -> Available {
        let free = fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_available(&text));
        let group = cgroup_room(Path::new("/sys/fs/cgroup"), &read("/proc/self/cgroup"));
        match (free, group) {
            (Some(free), group) => Available::Free(free.min(group.unwrap_or(u64::MAX))),
            (None, Some(group)) => Available::Free(group),
            (None, None) => Available::Unknown,
        }
    }

    /// The share of one of so many processes of this machine.
    pub(crate) fn shared_by(self, processes: usize) -> Available {
        match self {
            Available::Free(bytes) => Available::Free(bytes / processes as u64),
            Available::Stated(bytes) => Available::Stated(bytes / processes as u64),
            Available::Unknown => Available::Unknown,
        }
    }

    /// Adds the bytes that this process uses already: its total.
    pub(crate) fn and_used(self, resident: u64, place: Place) -> Available {
        match self {
            Available::Free(bytes) if place == Place::Cpu => Available::Free(bytes + resident),
            other => other,
        }
    }

    /// The bytes, if they are known.
    pub(crate) fn bytes(self) -> Option<u64> {
        match self {
            Available::Free(bytes) | Available::Stated(bytes) => Some(bytes),
            Available::Unknown => None,
        }
    }
}

/// Peak resident size of this process, in MiB, if the system reports it.
pub(crate) fn peak_mib() -> Option<f64> {
    status_kib("VmHWM:").map(|kib| kib as f64 / 1024.0)
}

/// Resident size of this process, in bytes, if the system reports it.
pub(crate) fn resident_bytes() -> Option<u64> {
    status_kib("VmRSS:").map(|kib| kib * 1024)
}

fn status_kib(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Bytes of address space that a process may still allocate, if limited; from its `status` and `limits`.
fn addresses_left(status: &str, limits: &str) -> Option<u64> {
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = limit.split_whitespace().next()?.parse().ok()?;
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"))?;
    let size: u64 = size.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(size * 1024))
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// The smallest remaining allowance of the control groups of this process: limit minus usage, not counting reclaimable
/// page cache. `membership` is `/proc/self/cgroup`. `None` without a limit.
fn cgroup_room(root: &Path, membership: &str) -> Option<u64> {
    let second = membership.lines().find_map(|line| line.strip_prefix("0::"));
    let first = membership.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|name| name == "memory").then_some(path)
    });
    let names = |path: Option<&str>, base: &Path, [limit, used]: [&str; 2], files: [&str; 2]| -> Option<u64> {
        let inside = base.join(path?.trim_start_matches('/'));
        let room = |dir: &Path| {
            let number = |name: &str| read(dir.join(name)).trim().parse::<u64>().ok();
            let stat = read(dir.join("memory.stat"));
            let cached = stat.lines().filter_map(|line| line.split_once(' '));
            let cached = cached.filter(|(name, _)| files.contains(name)).filter_map(|(_, n)| n.parse::<u64>().ok());
            Some(number(limit)?.saturating_sub(number(used)?.saturating_sub(cached.sum::<u64>())))
        };
        inside.ancestors().take_while(|dir| dir.starts_with(base)).filter_map(room).min()
    };
    let second = names(second, root, ["memory.max", "memory.current"], ["active_file", "inactive_file"]);
    let first = names(
        first,
        &root.join("memory"),
        ["memory.limit_in_bytes", "memory.usage_in_bytes"],
        ["total_active_file", "total_inactive_file"],
    );
    second.into_iter().chain(first).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_is_read_in_bytes() {
        let text = "MemTotal:       24576000 kB\nMemFree:  1 kB\nMemAvailable:   20000000 kB\n";
        assert_eq!(mem_available(text), Some(20_480_000_000));
        assert_eq!(mem_available("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn a_limit_of_addresses_counts_less_those_in_use() {
        let limits = |limit: &str| {
            format!("Limit   Soft Limit  Hard Limit  Units\nMax address space   {limit}   unlimited   bytes\n")
        };
        let status = "Name:\tsalsa\nVmPeak:\t  99 kB\nVmSize:\t    1000 kB\n";
        assert_eq!(addresses_left(status, &limits("5000000")), Some(5_000_000 - 1_024_000));
        assert_eq!(addresses_left(status, &limits("5000")), Some(0));
        assert_eq!(addresses_left(status, &limits("unlimited")), None);
    }

    #[test]
    fn the_narrowest_group_counts_and_files_are_no_use_of_memory() {
        let dir = tempfile::tempdir().unwrap();
        let write = |at: &str, files: &[(&str, &str)]| {
            let at = dir.path().join(at);
            fs::create_dir_all(&at).unwrap();
            files.iter().for_each(|(name, text)| fs::write(at.join(name), text).unwrap());
        };
        let room = |membership: &str| cgroup_room(dir.path(), membership);
        assert_eq!(room("0::/a/b\n"), None);
        write("a/b", &[("memory.max", "max\n"), ("memory.current", "50\n")]);
        assert_eq!(room("0::/a/b\n"), None, "max is no limit");
        let stat = "anon 10\nactive_file 30\ninactive_file 20\n";
        write("a", &[("memory.max", "1000\n"), ("memory.current", "250\n"), ("memory.stat", stat)]);
        assert_eq!(room("0::/a/b\n"), Some(1000 - 200));
        write("a/b", &[("memory.max", "300\n")]);
        assert_eq!(room("0::/a/b\n"), Some(250));
        assert_eq!(room("0::/\n"), None, "the group above has no limit");
        write("memory/c", &[("memory.limit_in_bytes", "90\n"), ("memory.usage_in_bytes", "100\n")]);
        assert_eq!(room("7:cpu:/x\n5:hugetlb,memory:/c\n"), Some(0));
    }
}
