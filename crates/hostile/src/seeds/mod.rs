//! The files of the corpus that writers make: the project's own writers, and those of the formats' authors.
//!
//! Texts (JSON, TOML, templates, names of schemes) are written by hand. They are in the corpus beside these files.

mod archives;
mod checkpoints;
mod codec;

use std::fs;

use anyhow::{Context, Result};
use kvcsr_cache::registry;
use kvcsr_codec::atomic;

use crate::corpus;
use crate::place::Place;
use crate::targets::ALL;

/// The name and bytes of a file, as its writer makes it.
type Made = (&'static str, Vec<u8>);

/// A file's name and its bytes.
pub type Seed = (String, Vec<u8>);

/// A SentencePiece model of a few pieces.
#[must_use]
pub fn pieces() -> Vec<u8> {
    checkpoints::pieces().swap_remove(0).1
}

/// Every example of the registry, as a file.
fn schemes() -> Vec<Made> {
    registry::entries().flat_map(|entry| entry.examples).map(|name| (*name, name.as_bytes().to_vec())).collect()
}

/// The generated files of a target. There are none for texts.
///
/// # Errors
/// If a writer fails. None is expected to fail.
pub fn of(target: &str, place: &Place) -> Result<Vec<Seed>> {
    let made: Vec<Made> = match target {
        "dictionary" => codec::dictionaries(place)?,
        "codebook" => codec::codebooks(place)?,
        "shard" => codec::shards(place)?,
        "codes" => codec::codes(),
        "prompt" => codec::prompts(place),
        "gguf" => checkpoints::ggufs()?,
        "safetensors" => checkpoints::safetensors(place)?,
        "pickle" => archives::pickles()?,
        "tokenizer_model" => checkpoints::pieces(),
        "wheel" => archives::wheels()?,
        "scheme" => schemes(),
        _ => Vec::new(),
    };
    Ok(made.into_iter().map(|(name, bytes)| (name.replace('/', "_"), bytes)).collect())
}

/// Writes all of them into the corpus.
///
/// # Errors
/// If a file cannot be written.
pub fn write() -> Result<()> {
    for target in ALL {
        let folder = corpus::folder(target.name);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        for (name, bytes) in of(target.name, &Place::new()?)? {
            let path = folder.join(name);
            atomic::write(&path, &bytes).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}
