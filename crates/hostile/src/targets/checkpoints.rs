//! Files of models.

use kvcsr_model::load::pickle::PickleFile;
use kvcsr_model::load::safetensors::SafetensorsFile;
use kvcsr_model::{Checkpoint, Gguf, HfCheckpoint};

use super::Verdict;
use super::text::{folder, rendered, tokenized};
use crate::place::Place;

/// Reads everything that a caller may request from a file: its architecture, tokenizer, template, and each tensor
/// separately.
pub fn gguf(input: &[u8], place: &Place) -> Verdict {
    let Ok(file) = Gguf::open(place.write("m.gguf", input)) else { return Verdict::Refused };
    if let Ok(tokenizer) = file.tokenizer() {
        tokenized(&tokenizer);
    }
    if let Ok(Some(template)) = file.chat_template() {
        rendered(&template);
    }
    let Ok(checkpoint) = file.checkpoint() else { return Verdict::Refused };
    tensors(&checkpoint)
}

/// Reads every tensor.
pub fn safetensors(input: &[u8], place: &Place) -> Verdict {
    match SafetensorsFile::open(place.write("model.safetensors", input)) {
        Ok(file) => tensors(&file),
        Err(_) => Verdict::Refused,
    }
}

/// The input is `config.json`, followed after a zero byte by the index of two correct files of weights. No part may be
/// outside the folder.
pub fn checkpoint_folder(input: &[u8], place: &Place) -> Verdict {
    for (name, bytes) in PARTS {
        if !place.path(name).is_file() {
            place.write(name, bytes);
        }
    }
    folder(input, place, &["config.json", "model.safetensors.index.json"]);
    match HfCheckpoint::open(place.folder()) {
        Ok(file) => tensors(&file),
        Err(_) => Verdict::Refused,
    }
}

/// The files of weights: a norm of 8 numbers, and a matrix of 4 rows.
const PARTS: [(&str, &[u8]); 2] = [
    ("a.safetensors", include_bytes!("../../corpus/safetensors/mixed")),
    ("b.safetensors", include_bytes!("../../corpus/safetensors/wide")),
];

/// Reads every tensor.
pub fn pickle(input: &[u8], place: &Place) -> Verdict {
    match PickleFile::open(place.write("pytorch_model.bin", input)) {
        Ok(file) => tensors(&file),
        Err(_) => Verdict::Refused,
    }
}

/// Checks that each tensor that is read has the shape that was announced before.
fn tensors(checkpoint: &dyn Checkpoint) -> Verdict {
    let mut verdict = Verdict::Taken;
    checkpoint.dtype();
    for name in checkpoint.names() {
        match (checkpoint.shape(&name), checkpoint.tensor(&name)) {
            (Some(shape), Ok(tensor)) => assert_eq!(tensor.dims(), shape),
            // A name that no architecture has, or a tensor that does not fit.
            _ => verdict = Verdict::Refused,
        }
    }
    verdict
}
