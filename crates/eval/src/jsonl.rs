//! Reads JSON Lines files line by line. Errors name the file and the line.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{EvalError, Result};

/// A value and its line number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<T> {
    /// Line number, from 1.
    pub number: usize,
    /// The value of the line.
    pub value: T,
}

/// Reads every line of `path` as a `T` and skips blank lines.
///
/// # Errors
/// [`EvalError::Read`] if the file cannot be read, [`EvalError::Line`] if a line is not a `T`.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<Line<T>>> {
    read_each(path)?.into_iter().collect()
}

/// Does the same as [`read`], but a line that is not a `T` only gives an error for that line. The other lines are still read.
///
/// # Errors
/// [`EvalError::Read`] if the file cannot be read, [`EvalError::Line`] if its first line shows that it is not UTF-8.
pub fn read_each<T: DeserializeOwned>(path: &Path) -> Result<Vec<Result<Line<T>>>> {
    let read_error = |source| EvalError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read_error)?;
    let mut lines = Vec::new();
    for (index, bytes) in BufReader::new(file).split(b'\n').enumerate() {
        let mut bytes = bytes.map_err(read_error)?;
        if index == 0 {
            if let Some(encoding) = kvcsr_model::load::text::encoding(&bytes) {
                return Err(line_error(path, 1, format!("it is {encoding}; save it as UTF-8")));
            }
            if bytes.starts_with(b"\xef\xbb\xbf") {
                bytes.drain(..3);
            }
        }
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let number = index + 1;
        lines.push(match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Line { number, value }),
            Err(error) => Err(line_error(path, number, json_message(&error))),
        });
    }
    Ok(lines)
}

/// An error about line `number` of `path`.
pub(crate) fn line_error(path: &Path, number: usize, message: String) -> EvalError {
    EvalError::Line { path: path.to_owned(), line: number, message }
}

/// The message of an error, without serde_json's own line number, which is always 1 here.
fn json_message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&position) {
        Some(message) => format!("{message} (column {})", error.column()),
        None => text,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read_text(text: &[u8]) -> Result<Vec<Line<Vec<u32>>>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some.jsonl");
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_line_and_other_encodings_are_named() {
        let lines = read_text(b"\xef\xbb\xbf[1]\r\n[2]").unwrap();
        assert_eq!((lines[0].value.as_slice(), lines[1].value.as_slice()), (&[1][..], &[2][..]));
        for text in [&b"\xff\xfe[\x001\0]\0\n\0"[..], b"[\x001\0]\0\n\0"] {
            let error = read_text(text).unwrap_err().to_string();
            assert!(error.contains("some.jsonl:1: it is UTF-16; save it as UTF-8"), "{error}");
        }
    }

    #[test]
    fn blank_lines_count_but_hold_nothing() {
        let lines = read_text(b"[1]\n\n  \r\n[2,3]\r\n").unwrap();
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[1].number, &lines[1].value[..]), (4, &[2, 3][..]));
    }

    #[test]
    fn a_bad_line_is_named() {
        for bad in [&b"[1]\n[x]\n"[..], b"[1]\n[-1]", b"[1]\n[\xff]", b"[1]\n["] {
            let error = read_text(bad).unwrap_err().to_string();
            assert!(error.contains("some.jsonl:2: "), "{error}");
            assert!(!error.contains("line 1"), "{error}");
        }
    }
}
