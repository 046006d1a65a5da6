//! The committed inputs: files that the project's own writers make, and every input that was a find.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The folder with the files of a target.
#[must_use]
pub fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// The names and bytes of a target's files, sorted by name.
///
/// # Errors
/// If the folder cannot be read.
pub fn load(target: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder(target))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push((name, fs::read(path)?));
    }
    files.sort();
    Ok(files)
}
