//! Writes files whole or not at all. Errors name the file.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kvcsr_codec::atomic;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Writes a file under a temporary name and then renames it, so that it is whole or not there.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    atomic::write(path, bytes).with_context(|| path.display().to_string())
}

/// Like [`write()`], but writes nothing if the file already has these bytes: an up-to-date file may lie on a read-only disk.
pub fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    write(path, bytes)
}

/// Like [`write_if_changed`], with the contents of the file `from`.
pub fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let bytes = std::fs::read(from).with_context(|| from.display().to_string())?;
    write_if_changed(to, &bytes)
}

/// Writes `value` as indented JSON.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    write(path, serde_json::to_string_pretty(value)?.as_bytes())
}

/// Reads what [`write_json`] wrote.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// Removes the temporary files that killed runs left in `dir` and below.
pub fn remove_leftovers(dir: &Path) -> Result<()> {
    atomic::remove_leftovers(dir).with_context(|| dir.display().to_string())
}

/// The temporary files in `dir` and below: those that killed runs left, and those that other processes are writing now.
pub fn leftovers(dir: &Path) -> Result<Vec<PathBuf>> {
    atomic::leftovers(dir).with_context(|| dir.display().to_string())
}

/// Copies a file and syncs the copy to the disk, so that the original may be removed afterwards.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut read = File::open(from).with_context(|| from.display().to_string())?;
    let mut make = || {
        let mut written = atomic::AtomicFile::create(to)?;
        std::io::copy(&mut read, &mut written)?;
        written.persist()
    };
    make().with_context(|| format!("{} from {}", to.display(), from.display()))
}
