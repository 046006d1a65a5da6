//! Files that appear under their name complete or not at all.
//!
//! All code in this project that writes a file for later readers uses this module. It writes under a temporary name in
//! the same folder, syncs the file, renames it and syncs the folder. A killed program leaves at most a temporary file,
//! which [`remove_leftovers`] finds. A program that is asked to end calls [`remove_unfinished`] and leaves none.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::NamedTempFile;

/// Temporary names start with this prefix.
const PREFIX: &str = ".tmp-";

/// The temporary files that this process has now.
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn unfinished() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    // The set is valid after every step, so it is also valid if a thread panicked.
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An unfinished file. It is removed if it is dropped before [`AtomicFile::persist`].
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    out: BufWriter<NamedTempFile>,
    listed: Listed,
}

/// The entry of a temporary file in [`UNFINISHED`].
#[derive(Debug)]
struct Listed(PathBuf);

impl Drop for Listed {
    fn drop(&mut self) {
        unfinished().remove(&self.0);
    }
}

impl AtomicFile {
    /// Starts the file that will become `path`. Its folder must exist.
    ///
    /// # Errors
    /// If no file can be created in the folder.
    pub fn create(path: &Path) -> io::Result<Self> {
        let suffix = path.extension().map_or_else(String::new, |e| format!(".{}", e.to_string_lossy()));
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX).suffix(&suffix);
        // By default only the owner may read a temporary file. This one becomes an ordinary file.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut names = unfinished();
        let file = builder.tempfile_in(folder(path))?;
        names.insert(file.path().to_owned());
        let listed = Listed(file.path().to_owned());
        Ok(Self { path: path.to_owned(), out: BufWriter::with_capacity(1 << 16, file), listed })
    }

    /// The temporary name that the file has until it is complete. It has the extension of the final name, for programs that
    /// read it by path.
    ///
    /// Do not open this path for writing. After [`remove_unfinished`] that would create the file again.
    #[must_use]
    pub fn temporary(&self) -> &Path {
        self.out.get_ref().path()
    }

    /// Makes the data durable, then makes the file visible under its name.
    ///
    /// # Errors
    /// If the disk refuses. No temporary file is left then. The previous file of that name stays, unless only the final sync
    /// of the folder failed.
    pub fn persist(self) -> io::Result<()> {
        let Self { path, out, listed } = self;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        {
            // A file that gets its final name now is not one that `remove_unfinished` may remove.
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

/// Writes `bytes` to the file `path`.
///
/// # Errors
/// The same as [`AtomicFile::create`] and [`AtomicFile::persist`].
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)?;
    file.persist()
}

/// Makes the finished file `from` durable, then renames it to `to`, which must be in the same file system. This is for
/// files that several runs of a program write together, under a temporary name that the next run finds.
///
/// # Errors
/// If the disk refuses.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    File::options().write(true).open(from)?.sync_all()?;
    fs::rename(from, to)?;
    sync_folder(folder(to))
}

/// Renames a folder within its parent folder, durably. The content of the folder must already be durable, for example
/// written by this module.
///
/// # Errors
/// If the disk refuses, or `to` exists and is not an empty folder.
pub fn rename_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_folder(folder(to))
}

/// Removes the temporary files that killed programs left in `dir` and its subfolders. No program may be writing there.
///
/// # Errors
/// If a folder cannot be read or a file cannot be removed.
pub fn remove_leftovers(dir: &Path) -> io::Result<()> {
    leftovers(dir)?.iter().try_for_each(fs::remove_file)
}

/// Finds the temporary files in `dir` and its subfolders, of killed programs and of programs that are still writing.
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

/// Removes the current temporary files of this process, for a program that is about to end. Other threads that start or
/// finish a file after this call block until the program ends, so no more files get their names.
pub fn remove_unfinished() {
    let names = unfinished();
    for name in names.iter() {
        // Best effort: a file that stays is a leftover like that of a killed program.
        let _ = fs::remove_file(name);
    }
    std::mem::forget(names);
}

/// The folder of a file. The folder of a bare file name is the current one.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes new and renamed entries of a folder durable, on systems where a folder can be opened.
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
        // This acts as if the program had been killed: nothing removes the file.
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
