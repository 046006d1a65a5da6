//! Folders that are not checkpoint folders: what they are, and what to do.

use std::path::Path;

use super::text;
use crate::error::{ModelError, Result};

/// The number of file names of a folder that an error shows.
const SHOWN: usize = 6;

/// Refuses folders if their files say that the weights are not the whole model, or cannot be used unchanged.
///
/// # Errors
/// [`ModelError::WrongFile`] for an adapter, a hub cache folder, or a folder without `config.json`.
/// [`ModelError::Unsupported`] for weights that are quantised according to another file of the folder.
pub(super) fn check(directory: &Path) -> Result<()> {
    let wrong = |found: String, remedy: String| {
        Err(ModelError::WrongFile { path: directory.to_owned(), expected: "a checkpoint folder", found, remedy })
    };
    let holds = |name: &str| directory.join(name).is_file();
    if holds("adapter_config.json") {
        let base = text::read_json(&directory.join("adapter_config.json"))?.unwrap_or_default();
        let base = base.get("base_model_name_or_path").and_then(|base| base.as_str());
        let base = base.map_or_else(|| "its base model".to_owned(), |base| format!("its base model {base}"));
        return wrong(
            "an adapter (adapter_config.json)".to_owned(),
            format!(
                "merge it into {base} with peft's `merge_and_unload`, save the result, and give that folder; if these \
                 weights are whole, move adapter_config.json away"
            ),
        );
    }
    for name in ["quantize_config.json", "hf_quant_config.json", "quant_config.json"] {
        if holds(name) {
            return Err(ModelError::Unsupported {
                path: directory.join(name),
                what: "quantisation",
                found: name.to_owned(),
                supported: "none in checkpoint folders; take the unquantised checkpoint or a GGUF".to_owned(),
            });
        }
    }
    if holds("config.json") {
        return Ok(());
    }
    if !directory.is_dir() {
        return Ok(());
    }
    if directory.join("snapshots").is_dir() {
        return wrong(
            "a repository of the hub's cache".to_owned(),
            "give the folder snapshots/COMMIT in it".to_owned(),
        );
    }
    let files = files(directory);
    if let Some((gguf, listed)) = ggufs(&files) {
        let remedy = format!("give the file itself, such as {}", directory.join(gguf).display());
        return wrong(format!("GGUF files ({listed}) and no config.json"), remedy);
    }
    if holds("params.json") {
        let remedy = "take the checkpoint converted for transformers, which has a config.json".to_owned();
        return wrong("the original weights of the model's makers (params.json)".to_owned(), remedy);
    }
    if holds("model_index.json") {
        return wrong("a diffusion pipeline (model_index.json)".to_owned(), "give a language model".to_owned());
    }
    let listed = some(&files).unwrap_or_else(|| "no files".to_owned());
    let remedy = "give the folder that holds config.json, weights and tokenizer files, or a GGUF file".to_owned();
    wrong(format!("no config.json in it (it holds {listed})"), remedy)
}

/// The error for a folder with a configuration but without readable weights. `names` are the file names that were
/// searched.
pub(super) fn no_weights(directory: &Path, names: &[&str]) -> ModelError {
    let files = files(directory);
    let ends = |end: &str| files.iter().filter(|name| name.ends_with(end)).cloned().collect::<Vec<_>>();
    let found = if let Some((gguf, listed)) = ggufs(&files) {
        format!("a folder without weights but GGUF files ({listed}): give {} itself", directory.join(gguf).display())
    } else if let Some(list) = some(&[ends(".safetensors"), ends(".bin")].concat()) {
        format!("a folder without weights under these names: it holds {list}")
    } else if let Some(list) = some(&[ends(".pth"), ends(".pt"), ends(".h5"), ends(".msgpack"), ends(".onnx")].concat())
    {
        format!("a folder without weights but {list}")
    } else {
        "a folder without weights".to_owned()
    };
    ModelError::Unsupported {
        path: directory.to_owned(),
        what: "checkpoint",
        found,
        supported: format!("{}; shards need their index", names.join(", ")),
    }
}

/// The first model among the GGUF files, and some of their names.
fn ggufs(files: &[String]) -> Option<(&str, String)> {
    let ggufs: Vec<String> = files.iter().filter(|name| name.ends_with(".gguf")).cloned().collect();
    let model = files.iter().find(|name| name.ends_with(".gguf") && !name.starts_with("mmproj"))?;
    Some((model.as_str(), some(&ggufs)?))
}

/// The names of a folder's files, sorted.
fn files(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.path().is_file());
    let mut names: Vec<String> = files.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn some(names: &[String]) -> Option<String> {
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => None,
        all if all > SHOWN => Some(format!("{shown} and {} more", all - SHOWN)),
        _ => Some(shown),
    }
}
