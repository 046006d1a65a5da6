//! Small folders and GGUF files for the rows of the table.

use std::collections::BTreeMap;
use std::fs;

use candle_core::quantized::QTensor;
use candle_core::quantized::gguf_file::{self, Value};
use kvcsr_model::{Gguf, Tokenizer};
use tempfile::{NamedTempFile, TempDir};

/// Letters, one merge, and the special tokens `<s>`, `</s>` and `<|im_end|>` with ids 4, 5 and 6.
pub const VOCABULARY: &str = r#""model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, " ": 3, "<s>": 4, "</s>": 5,
    "<|im_end|>": 6}, "merges": ["a b"]}"#;
const SPECIAL: &str = r#""single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true"#;

/// A `tokenizer.json` with [`VOCABULARY`]. `settings` are placed before the model.
pub fn tokenizer_json(settings: &str) -> String {
    let added = [(4, "<s>"), (5, "</s>"), (6, "<|im_end|>")]
        .map(|(id, token)| format!(r#"{{"id": {id}, "content": "{token}", {SPECIAL}}}"#));
    format!(
        r#"{{"version": "1.0", {settings} "added_tokens": [{}], "normalizer": null, "pre_tokenizer": null,
            "decoder": {{"type": "Fuse"}}, {VOCABULARY}}}"#,
        added.join(", ")
    )
}

/// A folder with these files.
pub fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// The tokenizer of a folder with a plain `tokenizer.json` and these files.
pub fn tokenizer(files: &[(&str, &str)]) -> Result<Tokenizer, String> {
    let json = tokenizer_json("");
    let all: Vec<(&str, &str)> = [("tokenizer.json", json.as_str())].into_iter().chain(files.iter().copied()).collect();
    Tokenizer::from_hf_folder(folder(&all).path()).map_err(|e| e.to_string())
}

/// The tokenizer of a folder with SentencePiece's `tokenizer.model` of 420 pieces and these files.
pub fn pieces(files: &[(&str, &str)]) -> Result<Tokenizer, String> {
    let folder = folder(files);
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/llama-bpe.model");
    fs::copy(model, folder.path().join("tokenizer.model")).unwrap();
    Tokenizer::from_hf_folder(folder.path()).map_err(|e| e.to_string())
}

/// GGUF metadata of a tokenizer.
pub type Metadata = BTreeMap<&'static str, Value>;

pub fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

pub fn texts(texts: &[&str]) -> Value {
    Value::Array(texts.iter().copied().map(text).collect())
}

/// Byte-level BPE with the vocabulary above. The last three tokens are special.
pub fn byte_level(pre: &str) -> Metadata {
    let types = [1, 1, 1, 1, 3, 3, 3].map(Value::I32).to_vec();
    BTreeMap::from([
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text(pre)),
        ("tokenizer.ggml.tokens", texts(&["a", "b", "ab", "Ġ", "<s>", "<e>", "<x>"])),
        ("tokenizer.ggml.token_type", Value::Array(types)),
        ("tokenizer.ggml.merges", texts(&["a b"])),
        ("tokenizer.ggml.bos_token_id", Value::U32(4)),
        ("tokenizer.ggml.eos_token_id", Value::U32(5)),
    ])
}

/// SentencePiece BPE with the same letters, after Llama's three special tokens.
pub fn sentencepiece() -> Metadata {
    BTreeMap::from([
        ("tokenizer.ggml.model", text("llama")),
        ("tokenizer.ggml.tokens", texts(&["<unk>", "<s>", "</s>", "a", "b", "ab", "▁"])),
        ("tokenizer.ggml.token_type", Value::Array([2, 3, 3, 1, 1, 1, 1].map(Value::I32).to_vec())),
        ("tokenizer.ggml.scores", Value::Array([0., 0., 0., -9., -9., -1., -9.].map(Value::F32).to_vec())),
    ])
}

/// A GGUF file with this metadata, and the temporary file that contains it.
pub fn gguf(metadata: &Metadata) -> (NamedTempFile, Gguf) {
    let file = NamedTempFile::new().unwrap();
    let entries: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let none: [(&str, &QTensor); 0] = [];
    gguf_file::write(&mut fs::File::create(file.path()).unwrap(), &entries, &none).unwrap();
    let gguf = Gguf::open(file.path()).unwrap();
    (file, gguf)
}

/// The tokenizer of the metadata after `change`.
pub fn of_gguf(mut metadata: Metadata, change: impl Fn(&mut Metadata)) -> Result<Tokenizer, String> {
    change(&mut metadata);
    gguf(&metadata).1.tokenizer().map_err(|e| e.to_string())
}
