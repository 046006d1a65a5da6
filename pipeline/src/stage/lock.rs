//! One process at a time makes a stage's outputs.

use std::fs::{File, TryLockError};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// A lock on a file until it is dropped; the system drops that of a killed process.
pub struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing would not be enough: a child that another thread is just starting holds the file open for a moment.
        let _ = self.0.unlock();
    }
}

/// Keeps other processes from making the same outputs.
pub fn lock(dir: &Path, folder: &str) -> Result<Lock> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let path = dir.join(format!(".{folder}.lock"));
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| path.display().to_string())?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => {
            bail!("another process is making {}: wait until it is done, or stop it", dir.join(folder).display())
        }
        // A file system without locks: go on as if alone.
        Err(TryLockError::Error(_)) => Ok(Lock(file)),
    }
}
