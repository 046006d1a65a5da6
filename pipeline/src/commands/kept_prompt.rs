//! Prompts kept as files: `generate --save-cache` and `--load-cache`.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use kvcsr_cache::schemes::csr_plus::TABLES;
use kvcsr_cache::schemes::csr_plus::rest::{PromptFile, RestCodec};
use kvcsr_cache::{LayerCache, PrefillSnapshot, Scheme, SchemeContext};
use kvcsr_codec::CodebookSet;
use kvcsr_model::{Decoder, Logits};

use crate::models::Opened;
use crate::paths::Paths;
use crate::stages::inputs::PREFILL_CHUNK;

/// A scheme that needs the same tables as these files, so that the tables are loaded.
pub const SCHEME: &str = "csr+@1";

/// Writes the keys and values of all tokens of the prompt except the last. The file holds no logits, so the last token runs again
/// when the file is read. Returns a line for people.
pub fn save(
    path: &Path,
    bits: f64,
    prompt: &[u32],
    prefilled: &PrefillSnapshot,
    (model, profile): (&Opened, &str),
    cx: &SchemeContext,
) -> Result<String> {
    ensure!(prompt.len() > 1, "--save-cache: a prompt of at least 2 tokens is expected, found {}", prompt.len());
    let tables = tables(cx)?;
    let codec = RestCodec::new(tables, cx.geometry(), bits).context("--cache-bits")?;
    let first = |tensors: &[Tensor]| tensors.iter().map(|x| x.narrow(2, 0, prompt.len() - 1)).collect::<Result<_, _>>();
    let first = PrefillSnapshot {
        keys: first(&prefilled.keys)?,
        values: first(&prefilled.values)?,
        queries: Vec::new(),
        last_logits: prefilled.last_logits.clone(),
    };
    let bytes = PromptFile::write(path, &codec, &name(model, profile)?, prompt, &first)?;
    let channels = cx.geometry().channels_per_token() * first.len();
    Ok(format!(
        "{}: {} tokens in {bytes} bytes, {:.2} bits per channel, {:.1} % of f16",
        path.display(),
        prompt.len(),
        8.0 * bytes as f64 / channels as f64,
        100.0 * bytes as f64 / (2 * channels) as f64
    ))
}

/// The logits after the last token of `prompt`, and the caches that hold `prompt`. It begins with the tokens of the file: these are
/// restored into `scheme`. Then the model runs over the other tokens.
pub fn continued(
    file: &PromptFile,
    prompt: &[u32],
    (model, profile): (&Opened, &str),
    decoder: &Decoder,
    scheme: &dyn Scheme,
    cx: &SchemeContext,
) -> Result<(Tensor, Vec<Box<dyn LayerCache>>)> {
    file.expect_model(&name(model, profile)?)?;
    let restored = file.restore(tables(cx)?, decoder.geometry())?;
    let held = restored.len();
    ensure!(
        held < prompt.len(),
        "--load-cache: the file holds all {held} tokens of its prompt, so give a --prompt to follow them"
    );
    let mut caches = restored.fork(scheme, decoder.rotary())?;
    drop(restored);
    // In pieces, like any other prompt.
    let rest = &prompt[held..];
    let (before, last) = rest.split_at((rest.len() - 1) / PREFILL_CHUNK * PREFILL_CHUNK);
    for piece in before.chunks(PREFILL_CHUNK) {
        decoder.forward(&decoder.row(piece)?, &mut caches, Logits::None)?;
    }
    let logits = decoder.forward(&decoder.row(last)?, &mut caches, Logits::Last)?;
    Ok((logits, caches))
}

fn tables(cx: &SchemeContext) -> Result<&CodebookSet> {
    Ok(cx.codebooks(TABLES, "a prompt kept as a file")?)
}

/// The name of this model in a file.
fn name(model: &Opened, profile: &str) -> Result<String> {
    model.content(&Paths::find(profile)?)
}
