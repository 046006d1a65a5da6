//! Text files: configurations and templates of a checkpoint folder, and files that users write.

use std::path::Path;

use serde_json::Value;

use super::file_kind;
use crate::error::{ModelError, Result};

/// The text of a file, without a byte-order mark. `None` if the file does not exist.
///
/// # Errors
/// [`ModelError::Io`]. [`ModelError::Malformed`] for anything except UTF-8, with the encoding if it is recognised.
/// [`ModelError::WrongFile`] for a file that is recognised as not being text, such as a Git LFS pointer.
pub(crate) fn read(path: &Path) -> Result<Option<String>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ModelError::io(path)(error)),
    };
    if encoding(&bytes).is_none() {
        file_kind::check_head(path, &bytes, "a text file", &[b"{"])?;
    }
    let malformed = |detail| ModelError::Malformed { path: path.to_owned(), format: "text", detail };
    utf8(bytes).map(Some).map_err(malformed)
}

/// UTF-8 bytes as text, without a byte-order mark.
///
/// # Errors
/// A sentence for anything except UTF-8, with the encoding if it is recognised.
pub fn utf8(bytes: Vec<u8>) -> std::result::Result<String, String> {
    if let Some(name) = encoding(&bytes) {
        return Err(format!("it is {name}; save it as UTF-8"));
    }
    let text =
        String::from_utf8(bytes).map_err(|e| format!("it is not UTF-8: {}; save it as UTF-8", e.utf8_error()))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// The encoding of a text, if its first bytes show that it is not UTF-8.
pub fn encoding(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Some("UTF-32"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16"),
        // In UTF-16 without a byte-order mark, ASCII letters are next to zero bytes.
        &[a, b, c, d, ..] if (a == 0) != (b == 0) && (a == 0, b == 0) == (c == 0, d == 0) => Some("UTF-16"),
        _ => None,
    }
}

/// The same as [`read`], for a file that must exist.
///
/// # Errors
/// The errors of [`read`].
pub(crate) fn need(path: &Path) -> Result<String> {
    read(path)?.ok_or_else(|| ModelError::io(path)(std::io::ErrorKind::NotFound.into()))
}

/// The JSON value in a file. `None` if the file does not exist.
///
/// # Errors
/// The errors of [`read`]. [`ModelError::Malformed`] for text that is not JSON.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>> {
    let malformed =
        |e: serde_json::Error| ModelError::Malformed { path: path.to_owned(), format: "JSON", detail: e.to_string() };
    read(path)?.map(|text| serde_json::from_str(&text).map_err(malformed)).transpose()
}
