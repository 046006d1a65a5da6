//! CSR: sparse codes over offline dictionaries (Zhang et al., AAAI 2025).
//!
//! Each head vector is cut into `chunks` (the paper's `s_n`) equal pieces. Each piece is coded by matching pursuit with
//! `sparsity` atoms of its layer group's dictionary. Keys are coded before position embedding, which is applied to the
//! restored keys (section "Inference"). Written as (sparsity, chunks), CSR-`s` is `(s, 1)` for keys and `(s / 2, 2)`
//! for values, so both take the same number of bits.
//!
//! [`CsrOptions`] adds the paper's online part, packed codes, exact tokens, a least-squares refit, rows that stop
//! early, levels by layer and kind, and keys coded after position embedding.

mod codec;
mod coder;
mod entry;
mod ledger;
mod online;
mod options;
mod tensors;

use std::sync::Arc;

use half::f16;
use kvcsr_codec::{Kind, MAX_ATOMS};

pub(crate) use self::codec::CsrCodec;
use self::coder::Coder;
pub use self::entry::{BEST_DICTIONARIES, DEFAULT_DICTIONARIES, FAMILY, ROPE_DICTIONARIES};
pub use self::ledger::{CsrShape, KindShape};
pub use self::options::{AttentionPath, CsrOptions, OnlinePart, Prefill, Sampler, Share};
use crate::coded::{Codec, CodedScheme};
use crate::{Binding, CacheError};

/// The scheme that `bound` names, with `options`, over the dictionaries that it needs. There is one encoder per
/// dictionary group, shared by the layers of the group. Values use half the sparsity in each of two chunks, or
/// `sparsity / chunks` for a set that was trained with another number of chunks.
///
/// # Errors
/// [`CacheError::Dictionary`] if a layer has no dictionary, or if its width does not fit, or if it leaves too few of
/// the 65536 indices for the online part. [`CacheError::Budget`] if the level has no budget or one that does not fit
/// the model.
pub fn bind(bound: &Binding<'_>, options: &CsrOptions) -> Result<CodedScheme, CacheError> {
    let (geometry, budget) = (bound.geometry(), bound.budget()?);
    let (dictionaries, set, encoders) = bound.dictionaries()?;
    let online = options.online.map_or(0, |part| (part.sampled + part.guard) * geometry.kv_heads);
    let codec = |layer: usize, kind: Kind| -> Result<Arc<dyn Codec>, CacheError> {
        let refuse = |reason: String| CacheError::Dictionary { scheme: bound.scheme.to_owned(), layer, kind, reason };
        let (index, group) = set
            .groups
            .iter()
            .enumerate()
            .find(|(_, g)| g.kind == kind && g.layers.contains(&layer))
            .ok_or_else(|| refuse("the dictionary set has no dictionary for it".into()))?;
        let (width, chunks) = (group.dictionary.width(), group.chunks);
        if width * chunks != geometry.head_dim {
            return Err(refuse(format!(
                "expected {chunks} chunks of a head of {} channels, found a dictionary of width {width}",
                geometry.head_dim
            )));
        }
        let sparsity = match (budget, kind) {
            (Some(budget), _) => budget.level(layer, kind).unwrap_or(0),
            (None, Kind::Key) => options.levels().0,
            (None, Kind::Value) => options.levels().1,
        };
        if sparsity == 0 || !sparsity.is_multiple_of(chunks) {
            return Err(refuse(format!("sparsity {sparsity} cannot be shared by {chunks} chunks")));
        }
        let level = sparsity / chunks;
        if level > group.dictionary.len() || level > 255 {
            return Err(refuse(format!(
                "sparsity {level} is beyond 255 or the dictionary's {} atoms",
                group.dictionary.len()
            )));
        }
        let atoms = group.dictionary.len() + online;
        if atoms > MAX_ATOMS {
            return Err(refuse(format!(
                "{} offline and {online} online atoms are more than the {MAX_ATOMS} that an index can name",
                group.dictionary.len()
            )));
        }
        Ok(Arc::new(CsrCodec(Arc::new(Coder {
            kind,
            heads: geometry.kv_heads,
            encoder: encoders[index].clone(),
            sparsity: level,
            chunks,
            layout: options.layout,
            refit: options.refit,
            stop: options.stop,
            online: options.online,
            atoms,
        }))))
    };
    let scheme =
        CodedScheme::new(bound, options.window, |layer| Ok((codec(layer, Kind::Key)?, codec(layer, Kind::Value)?)))?;
    let bytes = encoders.iter().map(|e| e.bytes() + e.dictionary().bytes()).sum();
    let atoms: usize = encoders.iter().map(|e| e.dictionary().atoms().len()).sum();
    let scheme = scheme.with_artefacts(dictionaries, bytes).stored_as(atoms * size_of::<f16>());
    Ok(match options.attention {
        AttentionPath::Codes => scheme,
        AttentionPath::Restored => scheme.restoring(),
    })
}
