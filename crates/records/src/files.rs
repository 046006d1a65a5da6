//! Files that are whole or not there, and rows as JSON lines.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, BufWriter, Write},
    path::Path,
};

use kvcsr_codec::atomic::AtomicFile;
use serde::{Serialize, de::DeserializeOwned};

use crate::error::RecordsError;

/// Runs `write` on a temporary path beside `path`, makes sure that the file is on disk, and renames it to `path`: a killed run leaves no
/// half-written file under its final name. The temporary path has the extension of `path`, by which some encoders go. The folder is made
/// if it is missing; the temporary file is removed if `write` fails.
///
/// # Errors
/// That of `write`, or [`RecordsError::Io`].
pub fn replace<E: From<RecordsError>>(path: &Path, write: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(RecordsError::io(folder))?;
    let file = AtomicFile::create(path).map_err(RecordsError::io(path))?;
    write(file.temporary())?;
    file.persist().map_err(RecordsError::io(path))?;
    Ok(())
}

/// Writes `text` to `path` through a temporary file.
///
/// # Errors
/// [`RecordsError::Io`] naming the file.
pub fn write_text(path: &Path, text: &str) -> Result<(), RecordsError> {
    replace(path, |unfinished| fs::write(unfinished, text).map_err(RecordsError::io(path)))
}

/// Reads one JSON object per line; blank lines are skipped.
///
/// # Errors
/// [`RecordsError::Io`] naming the file, [`RecordsError::Json`] naming the file and line of what is not a row.
pub fn read_jsonl<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, RecordsError> {
    let file = File::open(path).map_err(RecordsError::io(path))?;
    let mut rows = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(RecordsError::io(path))?;
        if line.trim().is_empty() {
            continue;
        }
        rows.push(serde_json::from_str(&line).map_err(json(path, index))?);
    }
    Ok(rows)
}

/// Writes one JSON object per line, through a temporary file.
///
/// # Errors
/// [`RecordsError::Io`] naming the file, [`RecordsError::Json`] for a row that JSON cannot hold.
pub fn write_jsonl<T: Serialize>(path: &Path, rows: &[T]) -> Result<(), RecordsError> {
    replace(path, |unfinished| {
        let mut out = BufWriter::new(File::create(unfinished).map_err(RecordsError::io(path))?);
        for (index, row) in rows.iter().enumerate() {
            let line = serde_json::to_string(row).map_err(json(path, index))?;
            writeln!(out, "{line}").map_err(RecordsError::io(path))?;
        }
        out.flush().map_err(RecordsError::io(path))
    })
}

fn json(path: &Path, index: usize) -> impl FnOnce(serde_json::Error) -> RecordsError {
    move |source| RecordsError::Json { path: path.to_owned(), line: index + 1, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_failed_write_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/some.txt");
        write_text(&path, "one").unwrap();
        let failed = replace(&path, |unfinished| {
            fs::write(unfinished, "half").unwrap();
            assert_eq!(unfinished.extension(), path.extension());
            Err(RecordsError::io("cause")(std::io::ErrorKind::Other.into()))
        });
        assert!(failed.unwrap_err().to_string().starts_with("cause"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "a temporary file was left behind");
    }
}
