//! The ledger by formula: how many bytes a cache will hold, for any shape, without building it.

use half::f16;
use kvcsr_codec::{Codes, Encoder, Footprint};

use super::codec::struct_bytes;
use super::options::CsrOptions;
use crate::coded::{CodedCache, dropped_tokens, window_bytes};
use crate::{Geometry, Reach};

/// The dictionary of one kind of vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KindShape {
    /// Offline atoms, `N`.
    pub atoms: usize,
    /// Chunks of a head vector, the paper's `s_n`.
    pub chunks: usize,
}

/// The shape of a model and its dictionaries, as far as it determines bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CsrShape {
    /// The model.
    pub geometry: Geometry,
    /// The dictionaries of keys.
    pub keys: KindShape,
    /// The dictionaries of values.
    pub values: KindShape,
}

impl CsrShape {
    /// The bytes that the caches of all layers hold after the prefill of `batch` sequences with `tokens` tokens each.
    /// The numbers are exact to the byte, with three conditions. For rows that stop early, they are the largest
    /// possible. For a prompt's online atoms, they assume that no vector is zero. A [`super::Share::Budget`] is counted
    /// as its mean, which is exact if all its atoms are spent and codes are not packed.
    #[must_use]
    pub fn footprint(&self, options: &CsrOptions, tokens: usize, batch: usize) -> Footprint {
        std::iter::repeat_n(self.layer(options, tokens, batch, Reach::Full), self.geometry.layers).sum()
    }

    /// The same as [`CsrShape::footprint`] for one layer, whose tokens see back as far as `reach`.
    #[must_use]
    pub fn layer(&self, options: &CsrOptions, tokens: usize, batch: usize, reach: Reach) -> Footprint {
        let Geometry { kv_heads, head_dim, .. } = self.geometry;
        let (keys, values) = options.levels();
        let window = options.window;
        let mut one = self.kind(options, self.keys, keys, tokens, reach);
        one += self.kind(options, self.values, values, tokens, reach);
        one.window += 2 * window_bytes(window, tokens, kv_heads * head_dim, reach);
        one.tables += 2 * struct_bytes(kv_heads);
        let mut all: Footprint = std::iter::repeat_n(one, batch).sum();
        all.tables += CodedCache::bytes(batch);
        all
    }

    /// The codes and online atoms of one kind in one layer for one sequence.
    fn kind(&self, options: &CsrOptions, shape: KindShape, level: usize, tokens: usize, reach: Reach) -> Footprint {
        let coded = tokens.saturating_sub(options.window.sinks + options.window.recent);
        let dropped = dropped_tokens(options.window, tokens, reach);
        let Geometry { kv_heads, head_dim, .. } = self.geometry;
        let width = head_dim / shape.chunks;
        let vectors = tokens * kv_heads * shape.chunks;
        let (mut sampled, mut guard, mut online) = (0, 0, 0);
        if let Some(part) = options.online {
            sampled = (part.sampled * kv_heads).min(vectors);
            guard = (part.guard * kv_heads).min(vectors - sampled);
            online = (part.sampled + part.guard) * kv_heads;
        }
        let (s, rows) = (level / shape.chunks, (coded - dropped) * shape.chunks);
        let codes = if options.stop.is_some() { Codes::ragged } else { Codes::new };
        let codes = codes(options.layout, s, shape.atoms + online);
        // When the first rows are dropped, the spare capacity is also freed.
        let head = if dropped > 0 { codes.footprint_of_exactly(rows) } else { codes.footprint_of(rows) };
        let mut all: Footprint = std::iter::repeat_n(head, kv_heads).sum();
        all.online_atoms = sampled * width * size_of::<f16>();
        all.guard = guard * width * size_of::<f16>();
        all
    }

    /// Bits per channel as the method counts them. See [`crate::Scheme::nominal_bits`].
    #[must_use]
    pub fn nominal_bits(&self, options: &CsrOptions) -> f64 {
        let (keys, values) = options.levels();
        let online = options.online.map_or(0, |part| (part.sampled + part.guard) * self.geometry.kv_heads);
        let bits = |shape: KindShape, level: usize| {
            let length =
                if options.stop.is_some() { 8.5 * shape.chunks as f64 / self.geometry.head_dim as f64 } else { 0.0 };
            options.layout.bits(level / shape.chunks, shape.chunks, self.geometry.head_dim, shape.atoms + online).0
                + length
        };
        (bits(self.keys, keys) + bits(self.values, values)) / 2.0
    }

    /// Bytes of the offline dictionaries and of the tables for coding, as this project holds them (f32), with one
    /// dictionary per layer and kind. See [`crate::Scheme::shared_bytes`].
    #[must_use]
    pub fn shared_bytes(&self) -> usize {
        let of = |shape: KindShape| {
            let width = self.geometry.head_dim / shape.chunks;
            shape.atoms * width * size_of::<f32>() + Encoder::bytes_of(shape.atoms, width)
        };
        self.geometry.layers * (of(self.keys) + of(self.values))
    }

    /// Bytes of the offline dictionaries alone, in f16, with one dictionary per layer and kind.
    #[must_use]
    pub fn dictionary_bytes(&self) -> usize {
        let of = |shape: KindShape| shape.atoms * (self.geometry.head_dim / shape.chunks) * size_of::<f16>();
        self.geometry.layers * (of(self.keys) + of(self.values))
    }
}
