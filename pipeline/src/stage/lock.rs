//! Locks: only one process at a time makes a stage's outputs.

use std::fs::{File, TryLockError};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::ui;

/// A lock on a file, held until it is dropped. The system releases the lock of a killed process.
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
    let file = file.with_context(|| format!("lock file {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => {
            bail!("another process is making {}: wait until it is done, or stop it", dir.join(folder).display())
        }
        Err(TryLockError::Error(error)) => {
            ui::line(folder, &without_locks(&path, &error));
            Ok(Lock(file))
        }
    }
}

/// The warning for a file system without locks. The program then continues as if it were alone.
pub fn without_locks(path: &Path, error: &std::io::Error) -> String {
    format!(
        "warning: {} cannot be locked ({error}): nothing keeps a second run from making the same files; start none until this one has ended",
        path.display()
    )
}
