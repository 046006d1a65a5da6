//! CSR: sparse codes over offline dictionaries (Zhang et al., AAAI 2025).
//!
//! Each head vector is cut into `chunks` (the paper's `s_n`) equal pieces, and each piece is coded
//! by matching pursuit with `sparsity` atoms of its layer group's dictionary. Keys are coded before
//! position embedding; it is applied to the restored keys (section "Inference").
//! CSR-`s` is keys `(s, 1)` and values `(s / 2, 2)`, so both take the same number of bits.
//!
//! [`CsrOptions`] adds to that the paper's online part, packed codes, exact tokens, a least-squares
//! refit, rows that stop early, levels by layer and kind, and keys coded after position embedding.

mod attend;
mod cache;
mod entry;
mod exact;
mod ledger;
mod online;
mod options;
mod streams;

use kvcsr_codec::{BitsPerChannel, Kind, MAX_ATOMS};

pub use self::cache::CsrCache;
pub use self::entry::{BEST_DICTIONARIES, DEFAULT_DICTIONARIES, FAMILY, ROPE_DICTIONARIES};
pub use self::ledger::{CsrShape, KindShape};
pub use self::options::{AttentionPath, CsrOptions, OnlinePart, Prefill, Sampler, Share};
use self::streams::Coder;
use crate::{Binding, CacheError, LayerCache, Scheme};

/// CSR-`s` bound to a model: one encoder per dictionary group, shared by the group's layers.
pub struct CsrScheme {
    name: String,
    options: CsrOptions,
    dictionaries: String,
    bits: BitsPerChannel,
    shared_bytes: usize,
    /// Per layer: keys, values.
    layers: Vec<(Coder, Coder)>,
}

impl CsrScheme {
    /// The scheme that `bound` names, with `options`, over the dictionaries that it needs. Values take half the sparsity in
    /// each of two chunks, or `sparsity / chunks` for a set trained with other chunks.
    ///
    /// # Errors
    /// [`CacheError::Dictionary`] if a layer has no dictionary, one whose width does not fit, or one
    /// that leaves too few of the 65536 indices for the online part; [`CacheError::Budget`] if the
    /// level has no budget or one that does not fit the model.
    pub fn new(bound: &Binding<'_>, options: CsrOptions) -> Result<Self, CacheError> {
        let (name, geometry) = (bound.scheme.to_owned(), bound.geometry());
        let ((dictionaries, set, encoders), budget) = (bound.dictionaries()?, bound.budget()?);
        let online = options.online.map_or(0, |part| (part.sampled + part.guard) * geometry.kv_heads);
        let coder = |layer: usize, kind: Kind| -> Result<Coder, CacheError> {
            let refuse = |reason: String| CacheError::Dictionary { scheme: name.clone(), layer, kind, reason };
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
            let sparsity = match (options.share, budget) {
                (Share::Split { keys, .. }, _) if kind == Kind::Key => keys,
                (Share::Split { values, .. }, _) => values,
                (_, Some(budget)) => budget.level(layer, kind).unwrap_or(0),
                _ => options.sparsity,
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
            Ok(Coder {
                kind,
                encoder: encoders[index].clone(),
                sparsity: level,
                chunks,
                layout: options.layout,
                refit: options.refit,
                stop: options.stop,
                atoms,
            })
        };
        let layers = (0..geometry.layers)
            .map(|layer| Ok((coder(layer, Kind::Key)?, coder(layer, Kind::Value)?)))
            .collect::<Result<Vec<_>, CacheError>>()?;
        let bits =
            layers.iter().flat_map(|(k, v)| [k, v]).map(|c| c.bits()).sum::<f64>() / (2 * geometry.layers) as f64;
        let shared_bytes = encoders.iter().map(|e| e.bytes() + e.dictionary().bytes()).sum();
        Ok(Self {
            name,
            options,
            dictionaries: dictionaries.to_owned(),
            bits: BitsPerChannel(bits),
            shared_bytes,
            layers,
        })
    }
}

impl Scheme for CsrScheme {
    fn name(&self) -> &str {
        &self.name
    }

    fn dictionaries(&self) -> &str {
        &self.dictionaries
    }

    fn empty(&self, layer: usize) -> Result<Box<dyn LayerCache>, CacheError> {
        let (keys, values) = self.layers.get(layer).ok_or_else(|| CacheError::Dictionary {
            scheme: self.name.clone(),
            layer,
            kind: Kind::Key,
            reason: format!("the model it was built for has {} layers", self.layers.len()),
        })?;
        Ok(Box::new(CsrCache::new(layer, keys.clone(), values.clone(), &self.options)))
    }

    fn nominal_bits(&self) -> BitsPerChannel {
        self.bits
    }

    fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }
}
