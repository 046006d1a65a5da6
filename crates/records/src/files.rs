//! Writes files completely or not at all, and rows as JSON lines.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::Path,
};

use kvcsr_codec::atomic::AtomicFile;
use serde::{Serialize, de::DeserializeOwned};

use crate::error::RecordsError;

/// Runs `write` on a temporary file in the folder of `path`, syncs the file to disk, and renames it to `path`. A killed run
/// therefore leaves no incomplete file under the final name. The folder is created if it is missing. The temporary file is
/// removed if `write` fails.
///
/// # Errors
/// The error of `write`, or [`RecordsError::Io`].
pub fn replace<E: From<RecordsError>>(
    path: &Path,
    write: impl FnOnce(&mut AtomicFile) -> Result<(), E>,
) -> Result<(), E> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(RecordsError::io(folder))?;
    let mut file = AtomicFile::create(path).map_err(RecordsError::io(path))?;
    write(&mut file)?;
    file.persist().map_err(RecordsError::io(path))?;
    Ok(())
}

/// Writes `text` to `path` through a temporary file.
///
/// # Errors
/// [`RecordsError::Io`] with the file.
pub fn write_text(path: &Path, text: &str) -> Result<(), RecordsError> {
    replace(path, |file| file.write_all(text.as_bytes()).map_err(RecordsError::io(path)))
}

/// Reads one JSON object per line and skips blank lines.
///
/// # Errors
/// [`RecordsError::Io`] with the file; [`RecordsError::Json`] with the file and the line that is not a row.
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
/// [`RecordsError::Io`] with the file; [`RecordsError::Json`] for a row that JSON cannot represent.
pub fn write_jsonl<T: Serialize>(path: &Path, rows: &[T]) -> Result<(), RecordsError> {
    replace(path, |file| {
        for (index, row) in rows.iter().enumerate() {
            let line = serde_json::to_string(row).map_err(json(path, index))?;
            writeln!(file, "{line}").map_err(RecordsError::io(path))?;
        }
        Ok(())
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
        let failed = replace(&path, |file| {
            file.write_all(b"half").unwrap();
            Err(RecordsError::io("cause")(std::io::ErrorKind::Other.into()))
        });
        assert!(failed.unwrap_err().to_string().starts_with("cause"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "a temporary file was left behind");
    }
}
