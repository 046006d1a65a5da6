//! Writing so that a killed run leaves no half-written file under its final name.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::error::ReportError;

/// `dir/name.ext` -> `dir/.name.tmp.ext`: same folder (so that the rename is atomic), same extension (so that encoders which go by it agree).
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = match path.extension() {
        Some(extension) => format!(".{stem}.tmp.{}", extension.to_string_lossy()),
        None => format!(".{stem}.tmp"),
    };
    path.with_file_name(name)
}

/// Runs `write` on a temporary path beside `path` and renames the result to `path`. The folder is made if it is missing;
/// the temporary file is removed if `write` fails.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&Path) -> Result<(), ReportError>) -> Result<(), ReportError> {
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(ReportError::io(folder))?;
    }
    let unfinished = temporary(path);
    let written = write(&unfinished);
    if let Err(error) = written {
        // The first error is the one to report; a file that was never made cannot be removed.
        let _ = fs::remove_file(&unfinished);
        return Err(error);
    }
    fs::rename(&unfinished, path).map_err(ReportError::io(path))
}

/// Writes `text` to `path` through a temporary file.
pub fn write_text(path: &Path, text: &str) -> Result<(), ReportError> {
    replace(path, |unfinished| fs::write(unfinished, text).map_err(ReportError::io(unfinished)))
}

/// Reads one JSON object per line; blank lines are skipped. The error names the file and line.
pub fn read_jsonl<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, ReportError> {
    let file = File::open(path).map_err(ReportError::io(path))?;
    let mut rows = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(ReportError::io(path))?;
        if line.trim().is_empty() {
            continue;
        }
        rows.push(serde_json::from_str(&line).map_err(|source| ReportError::Json {
            path: path.to_path_buf(),
            line: index + 1,
            source,
        })?);
    }
    Ok(rows)
}

/// Writes one JSON object per line, through a temporary file.
pub fn write_jsonl<T: Serialize>(path: &Path, rows: &[T]) -> Result<(), ReportError> {
    replace(path, |unfinished| {
        let mut out = BufWriter::new(File::create(unfinished).map_err(ReportError::io(unfinished))?);
        for (index, row) in rows.iter().enumerate() {
            let line = serde_json::to_string(row).map_err(|source| ReportError::Json {
                path: path.to_path_buf(),
                line: index + 1,
                source,
            })?;
            writeln!(out, "{line}").map_err(ReportError::io(unfinished))?;
        }
        out.flush().map_err(ReportError::io(unfinished))
    })
}
