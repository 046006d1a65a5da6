//! Small text files of a checkpoint folder: configurations and templates.

use std::path::Path;

use serde_json::Value;

use super::file_kind;
use crate::error::{ModelError, Result};

/// The text of a file, without a byte-order mark; `None` where there is no such file.
///
/// # Errors
/// [`ModelError::Io`]; [`ModelError::Malformed`] for anything but UTF-8, with the encoding where it can be told;
/// [`ModelError::WrongFile`] for what is recognised as no text, such as a Git LFS pointer.
pub(crate) fn read(path: &Path) -> Result<Option<String>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ModelError::io(path)(error)),
    };
    let malformed = |detail: String| ModelError::Malformed { path: path.to_owned(), format: "text", detail };
    match bytes.as_slice() {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => {
            return Err(malformed("it is UTF-32; save it as UTF-8".to_owned()));
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return Err(malformed("it is UTF-16; save it as UTF-8".to_owned())),
        // ASCII letters in UTF-16 without a mark are next to zero bytes.
        &[a, b, c, d, ..] if (a == 0) != (b == 0) && (a == 0, b == 0) == (c == 0, d == 0) => {
            return Err(malformed("it is UTF-16; save it as UTF-8".to_owned()));
        }
        _ => file_kind::check_head(path, &bytes, "a text file", &[])?,
    }
    let text = String::from_utf8(bytes);
    let text = text.map_err(|e| malformed(format!("it is not UTF-8: {}; save it as UTF-8", e.utf8_error())))?;
    Ok(Some(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)))
}

/// As [`read`] of a file that must be there.
///
/// # Errors
/// As [`read`].
pub(crate) fn need(path: &Path) -> Result<String> {
    read(path)?.ok_or_else(|| ModelError::io(path)(std::io::ErrorKind::NotFound.into()))
}

/// The JSON value in a file; `None` where there is no such file.
///
/// # Errors
/// As [`read`]; [`ModelError::Malformed`] for text that is no JSON.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>> {
    let malformed =
        |e: serde_json::Error| ModelError::Malformed { path: path.to_owned(), format: "JSON", detail: e.to_string() };
    read(path)?.map(|text| serde_json::from_str(&text).map_err(malformed)).transpose()
}
