//! Finds LongBench's files.

#![allow(dead_code)]

use std::path::PathBuf;

/// The folder with `config`, `data` and `golden`. With `None` the test is skipped.
pub fn longbench_folder(test: &str) -> Option<PathBuf> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    match std::env::var_os("KVCSR_LONGBENCH").map(|folder| PathBuf::from(root).join(folder)) {
        Some(folder) => {
            assert!(folder.is_dir(), "{test}: KVCSR_LONGBENCH names {}, which is no folder", folder.display());
            Some(folder)
        }
        None => kvcsr_fixtures::shared(test, "longbench"),
    }
}

/// The answers of the uncompressed model by another implementation. With `None` the test is skipped.
pub fn golden_answers(test: &str) -> Option<PathBuf> {
    kvcsr_fixtures::shared(test, "golden/longbench-smollm2-dense.jsonl")
}
