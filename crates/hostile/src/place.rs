//! A folder for the files that readers get. It is in memory if the system has such a file system.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A separate folder. It is removed when this value is dropped.
pub struct Place(TempDir);

impl Place {
    /// Makes the folder, inside `$KVCSR_HOSTILE_PLACE` if this variable is set.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn new() -> io::Result<Self> {
        let memory = env::var_os("KVCSR_HOSTILE_PLACE").map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from);
        let builder = || tempfile::Builder::new().prefix("kvcsr-hostile-").to_owned();
        let folder = builder().tempdir_in(memory).or_else(|_| builder().tempdir())?;
        Ok(Self(folder))
    }

    /// The path of a file in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, replacing an earlier one, and returns its path.
    ///
    /// # Panics
    /// If the file cannot be written: then no test is possible.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// The names of the entries of `folder`, sorted.
    pub fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}
