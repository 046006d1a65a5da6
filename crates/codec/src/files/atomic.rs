//! Files that appear under their name whole or not at all.
//!
//! Everything in this project that writes a file for later readers writes it so: under a temporary name in the same
//! folder, synced, then renamed, and the folder synced. A killed program leaves at most a temporary file, which
//! [`remove_leftovers`] finds. A program that is asked to end calls [`remove_unfinished`] and leaves none.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::NamedTempFile;

/// What temporary names begin with.
const PREFIX: &str = ".tmp-";

/// The temporary files that this process has now.
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn unfinished() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    // The set is whole after every step, so that of a thread that panicked is, too.
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file in the making. Dropped before [`AtomicFile::persist`], it is removed.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    out: BufWriter<NamedTempFile>,
    listed: Listed,
}

/// A temporary file's place in [`UNFINISHED`].
#[derive(Debug)]
struct Listed(PathBuf);

impl Drop for Listed {
    fn drop(&mut self) {
        unfinished().remove(&self.0);
    }
}

impl AtomicFile {
    /// Starts the file that will be `path`; its folder must exist.
    ///
    /// # Errors
    /// If no file can be made in the folder.
    pub fn create(path: &Path) -> io::Result<Self> {
        let suffix = path.extension().map_or_else(String::new, |e| format!(".{}", e.to_string_lossy()));
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX).suffix(&suffix);
        // A temporary file is its owner's alone by default; this one becomes a file like any other.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut names = unfinished();
        let file = builder.tempfile_in(folder(path))?;
        names.insert(file.path().to_owned());
        let listed = Listed(file.path().to_owned());
        Ok(Self { path: path.to_owned(), out: BufWriter::with_capacity(1 << 16, file), listed })
    }

    /// The name that the file has until it is complete, with the extension of the final one: for what reads it by path.
    ///
    /// Nothing may be written by this path: what opens it after [`remove_unfinished`] would make the file again.
    #[must_use]
    pub fn temporary(&self) -> &Path {
        self.out.get_ref().path()
    }

    /// Makes the data durable, then visible under its name.
    ///
    /// # Errors
    /// If the disk refuses; nothing is left then, and what was under the name before is still there.
    pub fn persist(self) -> io::Result<()> {
        let Self { path, out, listed } = self;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        {
            // A file that takes its name now is not one that `remove_unfinished` may remove.
            let _names = unfinished();
            file.persist(&path).map_err(|error| error.error)?;
        }
        drop(listed);
        sync_folder(folder(&path))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes `bytes` as the file `path`.
///
/// # Errors
/// As [`AtomicFile::create`] and [`AtomicFile::persist`].
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)?;
    file.persist()
}

/// Makes the finished file `from` durable, then visible as `to`, which must lie in the same file system: for files that
/// several runs of a program make together, under a temporary name that the next run finds.
///
/// # Errors
/// If the disk refuses.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    File::options().write(true).open(from)?.sync_all()?;
    fs::rename(from, to)?;
    sync_folder(folder(to))
}

/// Gives a folder another name in the same folder, durably. What is in it must have been written durably, as by this module.
///
/// # Errors
/// If the disk refuses, or `to` is there and is not an empty folder.
pub fn rename_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_folder(folder(to))
}

/// Removes the temporary files that killed programs left in `dir` and below. No program may be writing there.
///
/// # Errors
/// If a folder cannot be read or a file not removed.
pub fn remove_leftovers(dir: &Path) -> io::Result<()> {
    leftovers(dir)?.iter().try_for_each(fs::remove_file)
}

/// The temporary files in `dir` and below, of programs that were killed or that are writing.
///
/// # Errors
/// If a folder cannot be read.
pub fn leftovers(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(leftovers(&entry.path())?);
        } else if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Removes the temporary files that this process has now, for a program that is about to end. Files that other threads begin or
/// finish after this call wait for that end: none gets its name any more.
pub fn remove_unfinished() {
    let names = unfinished();
    for name in names.iter() {
        // Best effort: what stays is a leftover like that of a killed program.
        let _ = fs::remove_file(name);
    }
    std::mem::forget(names);
}

/// The folder of a file; that of a bare name is the current one.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes new and renamed entries of a folder durable, where the system lets a folder be opened.
///
/// # Errors
/// If the disk refuses.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        assert_eq!(file.temporary().extension(), path.extension());
        assert_eq!((names(dir.path()).len(), fs::read(&path).unwrap()), (2, b"old".to_vec()));
        drop(file);
        assert_eq!((names(dir.path()), fs::read(&path).unwrap()), (vec!["a.json".to_owned()], b"old".to_vec()));
        write(&path, b"new").unwrap();
        assert_eq!((names(dir.path()), fs::read(&path).unwrap()), (vec!["a.json".to_owned()], b"new".to_vec()));
        fs::write(dir.path().join("begun"), b"newer").unwrap();
        rename(&dir.path().join("begun"), &path).unwrap();
        assert_eq!((names(dir.path()), fs::read(&path).unwrap()), (vec!["a.json".to_owned()], b"newer".to_vec()));
        assert!(write(&dir.path().join("none/a"), b"x").is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_file_has_the_permissions_of_any_other() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("ours"), b"").unwrap();
        fs::write(dir.path().join("any"), b"").unwrap();
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode("ours"), mode("any"));
    }

    #[test]
    fn what_a_killed_program_left_is_found() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        let file = AtomicFile::create(&dir.path().join("sub/a.bin")).unwrap();
        let left = file.temporary().to_owned();
        // As if the program had been killed: nothing removes the file.
        assert!(unfinished().contains(&left));
        file.out.into_inner().unwrap().keep().unwrap();
        drop(file.listed);
        assert!(!unfinished().contains(&left));
        fs::write(dir.path().join("sub/b"), b"").unwrap();
        remove_leftovers(dir.path()).unwrap();
        assert!(!left.exists());
        assert_eq!(names(&dir.path().join("sub")), ["b"]);
    }
}
