//! Checks for the library that reads `tokenizer.json`, which trusts its input too much.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::error::{ModelError, Result};

/// Runs a call of the library. The library indexes and unwraps values that can be anything in a file: a decoder that is
/// not an object, a post-processor that names a token that it does not list, or pieces of length 0. With a damaged file
/// this would be a panic. Here it becomes an error.
pub(super) fn guarded<T>(call: impl FnOnce() -> std::result::Result<T, tokenizers::Error>) -> Result<T> {
    caught(call).map_err(|detail| ModelError::Tokenizer { detail })
}

/// The same as [`guarded`], with the error as text.
pub(super) fn caught<T>(
    call: impl FnOnce() -> std::result::Result<T, tokenizers::Error>,
) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => {
            Err("its file is damaged: a part of it is of the wrong kind, empty, or names what is not there".to_owned())
        }
    }
}

/// The fields of `tokenizer.json` that are checked.
#[derive(Deserialize)]
struct File {
    model: Option<Model>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    continuing_subword_prefix: Option<String>,
}

#[derive(Deserialize)]
struct Merged {
    model: MergedModel,
}

#[derive(Deserialize)]
struct MergedModel {
    #[serde(default)]
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(IgnoredAny, String),
    Text(String),
}

/// Checks the merges against `continuing_subword_prefix`, the prefix of pieces inside words. From the right side of
/// each merge, the library removes as many bytes as the prefix has, without checking which bytes they are. It then uses
/// the rest as text without a check. Half a character would be undefined behaviour.
///
/// # Errors
/// A sentence that names the merge. The library itself refuses files that are not a `tokenizer.json`.
pub(super) fn check(json: &str) -> std::result::Result<(), String> {
    let Ok(File { model: Some(model) }) = serde_json::from_str::<File>(json) else { return Ok(()) };
    let prefix = model.continuing_subword_prefix.filter(|prefix| !prefix.is_empty());
    let is_bpe = model.kind.is_none_or(|kind| kind == "BPE");
    let (Some(prefix), true) = (prefix, is_bpe) else { return Ok(()) };
    let Ok(Merged { model }) = serde_json::from_str::<Merged>(json) else { return Ok(()) };
    for (at, merge) in model.merges.iter().enumerate() {
        let right = match merge {
            Merge::Pair(_, right) => right.as_str(),
            Merge::Text(text) => text.split_once(' ').map_or("", |(_, right)| right),
        };
        if !right.starts_with(&prefix) {
            return Err(format!(
                "model.merges[{at}]: expected a right side that begins with continuing_subword_prefix `{prefix}`, found `{right}`"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_of_another_prefix_are_refused() {
        let file = |prefix: &str, merges: &str| {
            format!(
                r#"{{"model":{{"type":"BPE","continuing_subword_prefix":{prefix},"vocab":{{}},"merges":{merges}}}}}"#
            )
        };
        assert_eq!(check(&file(r#""@@""#, r#"[["a","@@b"],["a","@@bc"]]"#)), Ok(()));
        assert_eq!(check(&file(r#""@@""#, r#"["a @@b"]"#)), Ok(()));
        assert_eq!(check(&file("null", r#"[["a","b"]]"#)), Ok(()));
        for merges in [r#"[["a","b"]]"#, r#"["a b"]"#, r#"[["a","é"]]"#, r#"["ab"]"#] {
            assert!(check(&file(r#""@@""#, merges)).is_err_and(|error| error.contains("model.merges[0]")), "{merges}");
        }
    }
}
