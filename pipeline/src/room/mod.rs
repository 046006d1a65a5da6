//! Checks before a stage starts whether it fits: compares the memory and disk that it will need with what is free.
//!
//! A stage that surely does not fit is refused, with the parameters to lower. A stage that comes close starts with a warning. The
//! stage's record keeps the estimates beside the memory that it took.

mod limits;

use std::path::Path;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use self::limits::Memory;
use crate::ui;

/// Outputs that take more than this share of the free disk cause a warning.
const CLOSE: f64 = 0.8;

/// The memory and disk that a stage needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// The most memory that the program takes at once: an estimate, which is too low rather than too high.
    pub memory: Amount,
    /// The most that the written files take together, at the end or at some time before.
    pub disk: Amount,
}

/// An amount, and the parameters that reduce it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    pub bytes: u64,
    /// The parameters to lower: `calibrate.tokens`.
    pub lower: &'static str,
}

/// What a stage was expected to need, as its record keeps it; 0 if there was no estimate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    pub memory_bytes: u64,
    pub disk_bytes: u64,
}

impl Room {
    /// The estimates, for the record.
    pub fn estimate(&self) -> Estimate {
        Estimate { memory_bytes: self.memory.bytes, disk_bytes: self.disk.bytes }
    }

    /// Compares the needs of `stage` with what is free, for outputs in `folder`. The files in `begun` are on the disk already.
    ///
    /// # Errors
    /// If the disk has less than is needed, or this process can never have so much memory.
    pub fn check(&self, stage: &str, folder: &Path, begun: &Path) -> Result<()> {
        self.disk.check_disk(stage, folder, size_of(begun))?;
        if self.memory.bytes > 0 {
            self.memory.check_memory(stage, &limits::memory())?;
        }
        Ok(())
    }
}

impl Amount {
    /// Compares the amount with the free bytes on the disk of `folder`. `there` bytes of the amount are written already.
    ///
    /// # Errors
    /// If too few bytes are free.
    pub fn check_disk(&self, stage: &str, folder: &Path, there: u64) -> Result<()> {
        let needed = self.bytes.saturating_sub(there);
        let Some(free) = free_disk(folder).filter(|_| needed > 0) else { return Ok(()) };
        let (amount, left) = (ui::bytes(needed), ui::bytes(free));
        if needed > free {
            let variable = if stage == "fetch" { "KVCSR_CACHE" } else { "KVCSR_DATA" };
            bail!(
                "{stage} needs {amount} on the disk of {}, and {left} are free: free some space, lower {}, or set {variable} to a \
                 folder on another disk",
                folder.display(),
                self.lower
            );
        }
        if needed as f64 > free as f64 * CLOSE {
            let text = format!("warning: {amount} will be written to {}, where {left} are free", folder.display());
            ui::line(stage, &text);
        }
        Ok(())
    }

    fn check_memory(&self, stage: &str, memory: &Memory) -> Result<()> {
        let amount = ui::bytes(self.bytes);
        if self.bytes > memory.most {
            bail!(
                "{stage} needs about {amount} of memory, and {} allows {}: lower {}, or give it more",
                memory.most_by,
                ui::bytes(memory.most),
                self.lower
            );
        }
        if self.bytes > memory.free {
            let free = ui::bytes(memory.free);
            let text = format!(
                "warning: about {amount} of memory will be needed, and {free} are free now: end other programs or lower {}",
                self.lower
            );
            ui::line(stage, &text);
        }
        Ok(())
    }
}

/// The most memory that this process can have, in bytes: the machine's, or that of a tighter limit.
pub fn most_memory() -> u64 {
    limits::memory().most
}

/// Bytes that this user may still write on the disk of a folder, which need not exist yet; none if the system does not tell.
fn free_disk(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|folder| folder.exists())?;
    let disk = rustix::fs::statvfs(there).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Bytes of the files in a folder and below; 0 if the folder does not exist.
fn size_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => size_of(&entry.path()),
        _ => entry.metadata().map_or(0, |about| about.len()),
    };
    entries.map(size).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn too_little_disk_is_refused_with_what_is_needed_free_and_to_be_lowered() {
        let home = tempfile::tempdir().unwrap();
        let need = |bytes| Amount { bytes, lower: "calibrate.tokens" };
        let folder = home.path().join("not/there/yet");
        let error = need(u64::MAX).check_disk("calibrate", &folder, 1).unwrap_err().to_string();
        for part in ["calibrate needs", "are free", "calibrate.tokens", "KVCSR_DATA", "not/there/yet"] {
            assert!(error.contains(part), "{error}");
        }
        need(u64::MAX).check_disk("calibrate", &folder, u64::MAX).unwrap();
        need(1).check_disk("calibrate", &folder, 0).unwrap();
    }

    #[test]
    fn memory_that_the_process_can_never_have_is_refused() {
        let memory = Memory { most: 4 << 30, most_by: "`ulimit -v`", free: 1 << 30 };
        let need = |bytes| Amount { bytes, lower: "train.batch" };
        let error = need(5 << 30).check_memory("train", &memory).unwrap_err().to_string();
        for part in ["train needs about 5.4 GB", "`ulimit -v` allows 4.3 GB", "lower train.batch"] {
            assert!(error.contains(part), "{error}");
        }
        // Between free and most: a warning.
        need(2 << 30).check_memory("train", &memory).unwrap();
    }

    #[test]
    fn what_a_folder_holds_is_counted_with_what_is_below() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("sub")).unwrap();
        std::fs::write(home.path().join("a"), [0; 10]).unwrap();
        std::fs::write(home.path().join("sub/b"), [0; 7]).unwrap();
        assert_eq!((size_of(home.path()), size_of(&home.path().join("none"))), (17, 0));
    }
}
