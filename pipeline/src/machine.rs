//! The machine that results were measured on.

use std::process::Command;

use serde::{Deserialize, Serialize};

/// The machine and build of a run, kept in every manifest.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Machine {
    pub git: String,
    pub rustc: String,
    pub cpu: String,
    pub cores: usize,
    pub memory_gb: f64,
    pub device: String,
    pub threads: usize,
}

impl Machine {
    /// Reads the properties of this machine. `device` is the device of training.
    pub fn read(device: &str) -> Self {
        let system = sysinfo::System::new_with_specifics(
            sysinfo::RefreshKind::nothing()
                .with_cpu(sysinfo::CpuRefreshKind::nothing())
                .with_memory(sysinfo::MemoryRefreshKind::nothing().with_ram()),
        );
        Self {
            git: git_revision().unwrap_or_else(|| "unknown".into()),
            rustc: env!("KVCSR_RUSTC").to_owned(),
            cpu: system.cpus().first().map_or_else(String::new, |c| c.brand().trim().to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gb: (system.total_memory() as f64 / (1u64 << 30) as f64 * 10.0).round() / 10.0,
            device: device.to_owned(),
            threads: rayon::current_num_threads(),
        }
    }
}

/// Short revision, with `-dirty` if tracked files other than generated results have changed.
fn git_revision() -> Option<String> {
    let git = |args: &[&str]| {
        // Without the lock that `git status` takes to refresh its index: a kill would leave the lock behind.
        let out = Command::new("git").arg("--no-optional-locks").args(args).output().ok()?;
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let revision = git(&["rev-parse", "--short=10", "HEAD"])?;
    let generated =
        [":!/data/results", ":!/README.md", ":!/docs/RESULTS.md", ":!/docs/CLAIMS.md", ":!/docs/PERFORMANCE.md"];
    let status = ["status", "--porcelain", "--untracked-files=no", "--", ":/"];
    let changed = git(&[&status[..], &generated[..]].concat())?;
    Some(if changed.is_empty() { revision } else { format!("{revision}-dirty") })
}

/// Peak resident memory of this process in bytes, if the system tells it.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
