//! Recognises files that are not what their name says, by their first bytes. So the error can say what to do.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{ModelError, Result};

/// The number of bytes that are examined.
const HEAD: usize = 64;

/// The first bytes of files, what these files are, and what to do about them.
const SIGNS: &[(&[u8], &str, &str)] = &[
    (
        b"version https://git-lfs.github.com/spec",
        "a Git LFS pointer, a text of three lines in place of the file",
        "fetch the file itself with `git lfs pull`, or download it from the hub",
    ),
    (
        b"# xet version",
        "a Xet pointer, a short text in place of the file",
        "fetch the file itself with `git xet` or download it from the hub",
    ),
    (b"<!DOCTYPE", "a web page", "download the file itself: on the hub, from /resolve/ rather than /blob/"),
    (b"<!doctype", "a web page", "download the file itself: on the hub, from /resolve/ rather than /blob/"),
    (b"<html", "a web page", "download the file itself: on the hub, from /resolve/ rather than /blob/"),
    (b"GGUF", "a GGUF file", "give the file itself as the model, not its folder"),
    (b"lmgg", "a GGML file, older than GGUF", "take a GGUF file of the model"),
    (b"fmgg", "a GGML file, older than GGUF", "take a GGUF file of the model"),
    (b"tjgg", "a GGJT file, older than GGUF", "take a GGUF file of the model"),
    (b"algg", "a GGLA adapter, older than GGUF", "take a GGUF file of the whole model"),
    (b"PK\x03\x04", "a zip archive, as PyTorch files are", "give the checkpoint's folder, with its config.json"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it first"),
    (b"\xfd7zXZ", "an xz archive", "unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (b"\x89HDF", "an HDF5 file, as Keras writes", "take the checkpoint in safetensors"),
];

/// What a file is according to its first bytes, and how to fix it. `None` if the bytes are not recognised.
fn recognise(head: &[u8]) -> Option<(&'static str, &'static str)> {
    if head.is_empty() {
        return Some(("an empty file", "download it again"));
    }
    if let Some((_, what, remedy)) = SIGNS.iter().find(|(sign, _, _)| head.starts_with(sign)) {
        return Some((what, remedy));
    }
    // The length of a header, followed by JSON.
    let length = head.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
    if length.is_some_and(|length| length < 1 << 32) && head.get(8) == Some(&b'{') {
        return Some(("a safetensors file", "give the checkpoint's folder, with its config.json"));
    }
    if matches!(head, [b'{', b' ' | b'\r' | b'\n' | b'\t' | b'"' | b'}', ..]) {
        return Some(("a JSON file", "give the checkpoint's folder, or the GGUF file"));
    }
    if head.iter().all(|&byte| byte == 0) {
        return Some(("a file of zero bytes, as a broken download leaves", "download it again"));
    }
    None
}

/// Refuses a file that is recognised as something other than `expected`. `own` are the first bytes that an expected
/// file may have.
///
/// # Errors
/// [`ModelError::WrongFile`]. [`ModelError::Io`] if the file cannot be read.
pub(super) fn check(path: &Path, expected: &'static str, own: &[&[u8]]) -> Result<()> {
    let mut head = Vec::with_capacity(HEAD);
    let file = File::open(path).map_err(ModelError::io(path))?;
    file.take(HEAD as u64).read_to_end(&mut head).map_err(ModelError::io(path))?;
    check_head(path, &head, expected, own)
}

/// The same as [`check`], if the first bytes have already been read.
pub(super) fn check_head(path: &Path, head: &[u8], expected: &'static str, own: &[&[u8]]) -> Result<()> {
    let head = &head[..head.len().min(HEAD)];
    if own.iter().any(|own| head.starts_with(own)) {
        return Ok(());
    }
    match recognise(head) {
        Some((found, remedy)) if found != expected => Err(ModelError::WrongFile {
            path: path.to_owned(),
            expected,
            found: found.to_owned(),
            remedy: remedy.to_owned(),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pointers_pages_and_archives_are_recognised() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n";
        for (head, named) in [
            (&pointer[..], "Git LFS pointer"),
            (b"<!DOCTYPE html>", "a web page"),
            (b"", "an empty file"),
            (b"PK\x03\x04....", "a zip archive"),
            (b"\x10\0\0\0\0\0\0\0{\"a\":", "a safetensors file"),
            (&[0; 64], "zero bytes"),
        ] {
            let error = check_head(Path::new("m.gguf"), head, "a GGUF file", &[b"GGUF"]).unwrap_err().to_string();
            assert!(error.starts_with("m.gguf: expected a GGUF file, found ") && error.contains(named), "{error}");
        }
        assert!(check_head(Path::new("m"), b"GGUF\x03", "a GGUF file", &[b"GGUF"]).is_ok());
        assert!(check_head(Path::new("m"), b"something else", "a GGUF file", &[b"GGUF"]).is_ok());
    }
}
