//! How much memory this process may have, by the limits of the machine, its control groups, its Slurm job, and its address space.

use std::path::{Path, PathBuf};

/// The memory that the tightest limits allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The most bytes that this process can ever have.
    pub most: u64,
    /// The name of the limit that sets `most`.
    pub most_by: &'static str,
    /// Bytes that it can have now.
    pub free: u64,
}

impl Memory {
    /// The tighter of two limits, separately for `most` and for `free`.
    fn and(self, other: Self) -> Self {
        let (most, most_by) =
            if other.most < self.most { (other.most, other.most_by) } else { (self.most, self.most_by) };
        Self { most, most_by, free: self.free.min(other.free) }
    }
}

/// The memory of this process now.
pub fn memory() -> Memory {
    let kind = sysinfo::MemoryRefreshKind::everything();
    let system = sysinfo::System::new_with_specifics(sysinfo::RefreshKind::nothing().with_memory(kind));
    let machine = Memory {
        most: system.total_memory() + system.total_swap(),
        most_by: "this machine",
        free: system.available_memory() + system.free_swap(),
    };
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let groups = control_groups(&read("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"));
    let addresses = addresses(&read("/proc/self/limits"), &read("/proc/self/status"));
    // A cluster may limit the memory of a job without a control group.
    let job = std::env::var("SLURM_MEM_PER_NODE").ok().and_then(|mib| mib.parse::<u64>().ok()).filter(|mib| *mib > 0);
    let job = job.map(|mib| Memory { most: mib << 20, most_by: "its Slurm job", free: mib << 20 });
    groups.into_iter().chain(addresses).chain(job).fold(machine, Memory::and)
}

/// The names that one version of control groups uses: the files of the limit and of the usage, and the key in `memory.stat` of
/// cached files, which the system can drop.
struct Names {
    limit: &'static str,
    used: &'static str,
    cached: &'static str,
}

const FIRST: Names =
    Names { limit: "memory.limit_in_bytes", used: "memory.usage_in_bytes", cached: "total_inactive_file" };
const SECOND: Names = Names { limit: "memory.max", used: "memory.current", cached: "inactive_file" };

/// The limits of the process's control groups and of those above them. `list` is the text of its `/proc/self/cgroup`.
fn control_groups(list: &str, root: &Path) -> Vec<Memory> {
    let mut found = Vec::new();
    for line in list.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (mount, names) = match controllers {
            "" => (root.to_owned(), SECOND),
            controllers if controllers.split(',').any(|name| name == "memory") => (root.join("memory"), FIRST),
            _ => continue,
        };
        let group: PathBuf = mount.join(path.trim_start_matches('/'));
        found.extend(group.ancestors().take_while(|dir| dir.starts_with(&mount)).filter_map(|dir| limit(dir, &names)));
    }
    found
}

fn limit(group: &Path, names: &Names) -> Option<Memory> {
    let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    // Without a limit, the file says `max` or the largest number of pages.
    let most = number(names.limit).filter(|&bytes| bytes < 1 << 60)?;
    let stat = read("memory.stat").unwrap_or_default();
    let cached = stat.lines().find_map(|line| line.strip_prefix(names.cached)?.trim().parse::<u64>().ok());
    let used = number(names.used).unwrap_or(0).saturating_sub(cached.unwrap_or(0));
    Some(Memory {
        most,
        most_by: "its control group (a container's or systemd's limit)",
        free: most.saturating_sub(used),
    })
}

/// The limit on the address space, minus the addresses that the program has mapped and does not hold in memory.
fn addresses(limits: &str, status: &str) -> Option<Memory> {
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?.split_whitespace().next()?;
    let limit: u64 = soft.parse().ok()?;
    let kib = |name: &str| -> Option<u64> {
        status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
    };
    let mapped = kib("VmSize:")?.saturating_sub(kib("VmRSS:")?) * 1024;
    let most = limit.saturating_sub(mapped);
    Some(Memory { most, most_by: "`ulimit -v`", free: most })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn limits_of_both_versions_and_of_groups_above_are_found() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("user/job/memory.max", "max\n");
        write("user/memory.max", "1000\n");
        write("user/memory.current", "700\n");
        write("user/memory.stat", "anon 1\ninactive_file 200\n");
        write("memory/box/memory.limit_in_bytes", "800\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        let list = "5:cpu:/x\n3:memory:/box\n0::/user/job\n";
        let found = control_groups(list, root.path());
        let amounts: Vec<(u64, u64)> = found.iter().map(|memory| (memory.most, memory.free)).collect();
        assert_eq!(amounts, [(800, 800), (1000, 500)]);
        let tightest = found[0].and(found[1]);
        assert_eq!((tightest.most, tightest.free), (800, 500));
    }

    #[test]
    fn a_limit_on_addresses_counts_what_is_mapped() {
        let status = "VmSize:\t  3000 kB\nVmRSS:\t  1000 kB\n";
        let limits = |soft: &str| format!("Max address space         {soft}            unlimited            bytes\n");
        assert_eq!(addresses(&limits("4096000"), status).unwrap().most, 4_096_000 - 2_048_000);
        assert_eq!(addresses(&limits("unlimited"), status), None);
        assert_eq!(addresses("", ""), None);
    }

    #[test]
    fn this_machine_has_memory() {
        let memory = memory();
        assert!(memory.most >= memory.free && memory.free > 0, "{memory:?}");
    }
}
