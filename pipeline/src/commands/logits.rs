//! logits: writes the logits of a model after every token of a list, for comparison with other implementations.

use std::path::Path;

use anyhow::{Context, Result, bail};
use kvcsr_cache::{LayerCache, SchemeContext, registry};
use kvcsr_codec::atomic::AtomicFile;
use kvcsr_model::Decoder;

use crate::cli::LogitsArgs;
use crate::stages::inputs::PREFILL_CHUNK;
use crate::ui;

/// Writes `logits`, `(T, V)` f32, as safetensors, computed with the uncompressed f32 cache.
pub fn run(args: &LogitsArgs) -> Result<()> {
    let decoder = args.model.open()?.decoder(&args.model.device, &args.model.dtype)?;
    let ids = read_ids(&args.ids, decoder.arch().vocab, decoder.arch().max_positions)?;
    let at = || args.out.display().to_string();
    let mut out = AtomicFile::create(&args.out).with_context(at)?;
    write(&decoder, &ids, &mut out)?;
    out.persist().with_context(at)?;
    ui::line("logits", &format!("({}, {}) in {}", ids.len(), decoder.arch().vocab, args.out.display()));
    Ok(())
}

fn read_ids(path: &Path, vocab: usize, positions: usize) -> Result<Vec<u32>> {
    let json = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let ids: Vec<u32> =
        serde_json::from_str(&json).with_context(|| format!("{}: expected a list of token ids", path.display()))?;
    if ids.is_empty() || ids.len() > positions {
        bail!("{}: expected 1 to {positions} ids, the model's context, found {}", path.display(), ids.len());
    }
    if let Some((at, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= vocab) {
        bail!("{}: id {id} at index {at} is not below {vocab}, the size of the vocabulary", path.display());
    }
    Ok(ids)
}

/// Writes the header of the one tensor, then its rows as they are computed, so that they need not fit into memory all at once.
fn write(decoder: &Decoder, ids: &[u32], out: &mut dyn std::io::Write) -> Result<()> {
    let (tokens, vocab) = (ids.len(), decoder.arch().vocab);
    let end = tokens * vocab * size_of::<f32>();
    let tensor = serde_json::json!({"dtype": "F32", "shape": [tokens, vocab], "data_offsets": [0, end]});
    let mut header = serde_json::json!({ "logits": tensor }).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;

    let dense = registry::build("dense", &SchemeContext::new(decoder.geometry()))?;
    let mut caches =
        (0..decoder.arch().layers).map(|layer| dense.empty(layer)).collect::<Result<Vec<Box<dyn LayerCache>>, _>>()?;
    for piece in ids.chunks(PREFILL_CHUNK) {
        let hidden = decoder.forward_hidden(&decoder.row(piece)?, &mut caches)?;
        for row in decoder.head(&hidden)?.squeeze(0)?.to_vec2::<f32>()? {
            out.write_all(&row.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())?;
        }
    }
    Ok(())
}
