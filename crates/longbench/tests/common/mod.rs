//! Where LongBench's own material lies, which is not part of this repository.

use std::path::PathBuf;

/// The folder with `config`, `data` and `golden`, or `None`, loudly, where it is absent.
pub fn longbench_folder(test: &str) -> Option<PathBuf> {
    let shared = std::env::var_os("KVCSR_SHARED")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let folder = shared.join("longbench");
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("SKIPPED: {test}: no LongBench material at {} (set KVCSR_SHARED)", folder.display());
    None
}
