//! A text and its exact prefill.

use std::fmt::Write as _;

use kvcsr_cache::{Geometry, SchemeContext, registry};
use kvcsr_codec::{DictionarySet, Kind};
use kvcsr_eval::heldout::{HeldoutText, Reference};
use kvcsr_report::notebook::{Coded, Markdown, Shown};

use crate::error::Result;
use crate::{LabError, Model};

/// Tokens per call of the prefill.
const CHUNK: usize = 512;

/// A context with its exact prefill, and the tokens after it.
pub struct Prompt {
    /// The exact prefill, and the uncompressed model's distributions after it.
    pub reference: Reference,
    /// The context's tokens as text, one string per token.
    pub pieces: Vec<String>,
    /// The text after the context.
    pub follows: String,
    geometry: Geometry,
    /// How many numbers an uncompressed cache holds.
    channels: usize,
}

impl Prompt {
    pub(crate) fn new(model: &Model, text: &str, follows: usize) -> Result<Self> {
        let ids = model.tokenizer.encode(text, true)?;
        let Some(context) = ids.len().checked_sub(follows).filter(|&context| context > 0) else {
            return Err(LabError::TooShort { found: ids.len(), follows });
        };
        let piece = |&id: &u32| Ok(model.tokenizer.decode(&[id], false)?);
        let pieces = ids[..context].iter().map(piece).collect::<Result<Vec<_>>>()?;
        let after = model.tokenizer.decode(&ids[context..], true)?;
        let geometry = model.decoder.geometry();
        let dense = registry::build("dense", &SchemeContext::new(geometry))?;
        let reference = Reference::new(&model.decoder, &HeldoutText { ids, context }, CHUNK, dense.as_ref())?;
        Ok(Self { reference, pieces, follows: after, geometry, channels: model.decoder.channels(context) })
    }

    /// The number of tokens of the context.
    pub fn tokens(&self) -> usize {
        self.pieces.len()
    }

    /// The vectors of the context in one layer, token by token: `(T, Hkv, D)`. Keys are before position embedding.
    ///
    /// # Errors
    /// If the layer does not exist.
    pub fn vectors(&self, layer: usize, kind: Kind) -> Result<Vec<f32>> {
        let snapshot = self.reference.snapshot();
        let all = if kind == Kind::Key { &snapshot.keys } else { &snapshot.values };
        let one = all.get(layer).ok_or(LabError::NoLayer { layer, layers: all.len() })?;
        // (1, Hkv, T, D) -> (T, Hkv, D)
        Ok(one.squeeze(0)?.transpose(0, 1)?.flatten_all()?.to_vec1::<f32>()?)
    }

    /// The codes of one layer's vectors at a level, as CSR makes them.
    ///
    /// # Errors
    /// If the set has no dictionary for the layer.
    pub fn code(&self, set: &DictionarySet, layer: usize, kind: Kind, level: usize) -> Result<Coded> {
        let group = set.group(layer, kind).ok_or(LabError::NoDictionary { layer, kind })?;
        Ok(Coded::of(group, layer, self.geometry.kv_heads, level, self.vectors(layer, kind)?)?)
    }
}

/// The prompt's cache as a table of numbers.
impl Shown for Prompt {
    fn html(&self) -> String {
        let Geometry { layers, kv_heads, head_dim } = self.geometry;
        let (tokens, per_token) = (self.tokens(), self.geometry.channels_per_token());
        let mut text = String::from("| the cache of this prompt | |\n|---|--:|\n");
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| tokens | {tokens} |");
        let _ = writeln!(text, "| layers × KV heads × channels | {layers} × {kv_heads} × {head_dim} |");
        let _ = writeln!(text, "| numbers per token, keys and values | {per_token} |");
        let _ = writeln!(text, "| bytes in f16 | {} |", 2 * self.channels);
        let _ = writeln!(text, "| tokens that follow, to score | {} |", self.reference.continuation().len());
        Markdown::of(&text).html()
    }
}
