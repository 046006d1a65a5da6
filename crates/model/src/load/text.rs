//! Small text files of a checkpoint folder: configurations and templates.

use std::path::Path;

use serde_json::Value;

use crate::error::{ModelError, Result};

/// The text of a file, without a byte-order mark; `None` where there is no such file.
///
/// # Errors
/// [`ModelError::Io`]; [`ModelError::Malformed`] for anything but UTF-8, with the encoding where it can be told.
pub(crate) fn read(path: &Path) -> Result<Option<String>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ModelError::io(path)(error)),
    };
    let malformed = |detail: String| ModelError::Malformed { path: path.to_owned(), format: "text", detail };
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(malformed("it is UTF-16; save it as UTF-8".to_owned()));
    }
    let text = String::from_utf8(bytes).map_err(|e| malformed(format!("it is not UTF-8: {}", e.utf8_error())))?;
    Ok(Some(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)))
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
