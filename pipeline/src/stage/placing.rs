//! Gives complete outputs their name. The outputs that they replace are kept until then.
//!
//! Replacing one folder by another takes two renames. If the program is killed between them, no folder has the name:
//! [`Places::recover`] completes the replacement.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kvcsr_codec::atomic;

use super::lock::{Lock, lock};
use crate::{interrupt, manifest};

/// The file with the recipe of outputs that are being made. A partial folder that has a record and lacks this file is complete.
pub const RECIPE: &str = "recipe.json";

/// Where the outputs `folder` of a run lie: complete, unfinished, and replaced.
pub struct Places<'a> {
    run: &'a Path,
    folder: &'a str,
    pub dir: PathBuf,
    pub partial: PathBuf,
    old: PathBuf,
}

impl<'a> Places<'a> {
    pub fn new(run: &'a Path, folder: &'a str) -> Self {
        let at = |ending: &str| run.join(format!("{folder}{ending}"));
        Self { run, folder, dir: at(""), partial: at(".partial"), old: at(".old") }
    }

    /// Keeps other processes from making the same outputs.
    pub fn lock(&self) -> Result<Lock> {
        lock(self.run, self.folder)
    }

    /// Gives the complete outputs their name. Their record must be written before.
    pub fn place(&self) -> Result<()> {
        // From here on the folder is complete, see `recover`.
        std::fs::remove_file(self.partial.join(RECIPE)).with_context(|| self.partial.display().to_string())?;
        self.swap()
    }

    fn swap(&self) -> Result<()> {
        if self.dir.exists() {
            remove_dir(&self.old)?;
            rename(&self.dir, &self.old)?;
        }
        rename(&self.partial, &self.dir)?;
        remove_dir(&self.old)
    }

    /// Whether the partial folder holds complete outputs that only lack their name.
    fn is_complete(&self) -> bool {
        self.partial.join(manifest::FILE).is_file() && !self.partial.join(RECIPE).exists()
    }

    /// Completes what a killed program left between two renames: the new outputs get the name if they are complete; else the old
    /// outputs get it back.
    pub fn recover(&self) -> Result<()> {
        let begun = || self.is_complete() || (!self.dir.exists() && self.old.exists());
        if !begun() {
            return self.remove_old();
        }
        let _lock = self.lock()?;
        let _whole = interrupt::replacing();
        // Another process may have completed it meanwhile.
        match (self.is_complete(), begun()) {
            (true, _) => self.swap(),
            (false, true) => rename(&self.old, &self.dir),
            (false, false) => Ok(()),
        }
    }

    /// Removes replaced outputs that a kill left. They stay if the lock cannot be taken, for example because another process is
    /// working.
    fn remove_old(&self) -> Result<()> {
        if !self.old.exists() {
            return Ok(());
        }
        let Ok(_lock) = self.lock() else { return Ok(()) };
        if self.dir.exists() { remove_dir(&self.old) } else { Ok(()) }
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    atomic::rename_folder(from, to).with_context(|| to.display().to_string())
}

/// Removes a file, if it is there.
pub fn remove_file(file: &Path) -> Result<()> {
    match std::fs::remove_file(file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).with_context(|| file.display().to_string()),
        _ => Ok(()),
    }
}

/// Removes a folder, if it is there.
pub fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).with_context(|| dir.display().to_string()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    /// Folders and the files in them.
    type Folders<'a> = &'a [(&'a str, &'a [&'a str])];

    /// A run whose folders hold the files named.
    fn run_with(folders: Folders<'_>) -> tempfile::TempDir {
        let run = tempfile::tempdir().unwrap();
        for (folder, files) in folders {
            let folder = run.path().join(folder);
            fs::create_dir(&folder).unwrap();
            files.iter().for_each(|file| fs::write(folder.join(file), file).unwrap());
        }
        run
    }

    fn files(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_kill_at_any_moment_of_the_replacement_leaves_the_old_or_the_new_outputs() {
        let (new, old) = (["manifest.json", "new"], ["manifest.json", "old"]);
        let unfinished = ["manifest.json", "new", RECIPE];
        // The folders at each moment, and the outputs that must result.
        let moments: [(Folders<'_>, &[&str]); 6] = [
            (&[("train", &old), ("train.partial", &unfinished)], &old),
            (&[("train", &old), ("train.partial", &new)], &new),
            (&[("train", &old), ("train.partial", &new), ("train.old", &["older"])], &new),
            (&[("train.old", &old), ("train.partial", &new)], &new),
            (&[("train.old", &old), ("train.partial", &["half", RECIPE])], &old),
            (&[("train", &new), ("train.old", &old)], &new),
        ];
        for (folders, expected) in moments {
            let run = run_with(folders);
            let places = Places::new(run.path(), "train");
            places.recover().unwrap();
            assert_eq!(files(&places.dir), expected, "{folders:?}");
            places.recover().unwrap();
            assert_eq!(files(&places.dir), expected, "{folders:?}");
            assert!(!places.old.exists(), "{folders:?}");
        }
    }

    #[test]
    fn outputs_take_their_name_and_what_they_replace_is_gone() {
        let run = run_with(&[("train", &["old"]), ("train.partial", &["manifest.json", "new", RECIPE])]);
        let places = Places::new(run.path(), "train");
        places.place().unwrap();
        assert_eq!(files(run.path()), ["train"]);
        assert_eq!(files(&places.dir), ["manifest.json", "new"]);
    }

    #[test]
    fn another_process_at_work_is_left_alone() {
        let run = run_with(&[("train.old", &["old"])]);
        let places = Places::new(run.path(), "train");
        let _held = places.lock().unwrap();
        assert!(places.recover().unwrap_err().to_string().contains("another process"));
        assert!(!places.dir.exists());
    }
}
