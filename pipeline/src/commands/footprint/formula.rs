//! The sizes of caches by formula.

use anyhow::{Result, bail};
use kvcsr_cache::{CsrOptions, Reach, coded::TILE};
use kvcsr_codec::Footprint;

use super::shapes::Shape;

/// The longest sequence for which a break-even length is searched.
const LONGEST: usize = 131_072;

/// KIVI's published setting: groups of 32, a window of 128 (Liu et al., ICML 2024).
const KIVI_GROUP: usize = 32;
const KIVI_WINDOW: usize = 128;

/// A scheme whose size a formula gives.
pub enum Formula {
    /// This many bits per channel and nothing else.
    Plain(usize),
    /// KIVI with this many bits.
    Kivi(usize),
    Csr(CsrOptions),
}

impl Formula {
    pub fn parse(name: &str) -> Result<Self> {
        Ok(match name {
            "dense-f16" => Self::Plain(16),
            "fp8" => Self::Plain(8),
            "kivi-2" => Self::Kivi(2),
            "kivi-4" => Self::Kivi(4),
            _ if !name.starts_with("csr-") => bail!(
                "scheme `{name}` has no formula here: dense-f16, fp8, kivi-2, kivi-4 and csr-S with its parts have"
            ),
            _ => {
                let options = CsrOptions::parse(name).map_err(|e| anyhow::anyhow!("scheme `{name}`: {e}"))?;
                let (_, values) = options.levels();
                if values < 2 || !values.is_multiple_of(2) {
                    bail!("scheme `{name}`: a value's two chunks share its level, an even number is expected");
                }
                Self::Csr(options)
            }
        })
    }

    pub fn footprint(&self, shape: &Shape, tokens: usize, batch: usize) -> Footprint {
        let of = |(layers, reach): (usize, Reach)| -> Footprint {
            std::iter::repeat_n(self.layer(shape, tokens, batch, reach), layers).sum()
        };
        shape.kinds().into_iter().map(of).sum()
    }

    /// The footprint of one layer.
    fn layer(&self, shape: &Shape, tokens: usize, batch: usize, reach: Reach) -> Footprint {
        let (streams, d) = (batch * shape.kv_heads, shape.head_dim);
        match self {
            Self::Plain(bits) => {
                Footprint { dense: 2 * streams * reach.held(tokens) * d * bits / 8, ..Footprint::default() }
            }
            Self::Kivi(bits) => {
                // Keys are quantised a whole window at a time, values one by one as they leave the last window. Tokens
                // that no later token sees are dropped a tile at a time.
                let dropped = reach.first_seen(tokens) / TILE * TILE;
                let held = |coded: usize| coded.saturating_sub(dropped);
                let (keys, values) = (held(tokens - tokens % KIVI_WINDOW), held(tokens.saturating_sub(KIVI_WINDOW)));
                let tokens = tokens - dropped;
                Footprint {
                    packed: streams * (keys + values) * d * bits / 8,
                    // Scale and minimum in f16: for keys per channel and 32 tokens, for values per token and 32 channels.
                    scales: streams * (keys * d / KIVI_GROUP + values * (d / KIVI_GROUP)) * 4,
                    window: streams * (2 * tokens - keys - values) * d * 2,
                    ..Footprint::default()
                }
            }
            Self::Csr(options) => shape.csr().layer(options, tokens, batch, reach),
        }
    }

    /// Bytes of the dictionaries in f16, which all sequences share.
    pub fn dictionaries(&self, shape: &Shape) -> usize {
        match self {
            Self::Csr(_) => shape.csr().dictionary_bytes(),
            _ => 0,
        }
    }

    pub fn nominal(&self, shape: &Shape) -> f64 {
        match self {
            Self::Plain(bits) | Self::Kivi(bits) => *bits as f64,
            Self::Csr(options) => shape.csr().nominal_bits(options),
        }
    }

    fn bytes(&self, shape: &Shape, tokens: usize, batch: usize, dictionaries: bool) -> usize {
        let shared = if dictionaries { self.dictionaries(shape) } else { 0 };
        self.footprint(shape, tokens, batch).total() + shared
    }

    /// The length from which on this scheme is always smaller than `peer`, up to [`LONGEST`]; none if it is not smaller there.
    pub fn smaller_from(&self, peer: &Self, shape: &Shape, batch: usize, dictionaries: bool) -> Option<usize> {
        let larger = |&tokens: &usize| {
            self.bytes(shape, tokens, batch, dictionaries) >= peer.bytes(shape, tokens, batch, dictionaries)
        };
        match (1..=LONGEST).rev().find(larger) {
            Some(LONGEST) => None,
            last => Some(last.map_or(1, |tokens| tokens + 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::row;
    use super::super::shapes::{Sliding, llama2};
    use super::*;

    fn bits(name: &str, tokens: usize) -> f64 {
        row(&llama2(), name, &Formula::parse(name).unwrap(), tokens, 1).measured_bits
    }

    #[test]
    fn llama2_at_4096_tokens_matches_hand_computation() {
        let shape = llama2();
        let bytes = |name: &str| Formula::parse(name).unwrap().footprint(&shape, 4096, 1);
        assert_eq!(bytes("dense-f16").total(), 2_147_483_648);
        // 32 layers x 32 heads x 4096 tokens x (4 x 4 key + 2 x 2 x 4 value) bytes: the paper's 1 bit.
        let csr = bytes("csr-4");
        assert_eq!(csr.indices + csr.coefficients, 134_217_728);
        // 32 layers x 12288 atoms x (128 + 64) x 2 bytes.
        let online = bytes("csr-4+online");
        assert_eq!(online.online_atoms + online.guard, 150_994_944);
        assert_eq!(Formula::parse("csr-4").unwrap().dictionaries(&shape), 100_663_296);
        assert!((bits("csr-4", 4096) - 1.0).abs() < 0.01 && (bits("csr-4+online", 4096) - 2.125).abs() < 0.01);
    }

    /// With metadata, 3 and 5 bits; at 4096 tokens and a half full window of keys, 3.30 and 5.26 bits.
    #[test]
    fn kivi_takes_what_is_published() {
        assert!((bits("kivi-2", 1 << 20) - 3.0).abs() < 0.01);
        let half_full = |name: &str| bits(name, 4096 + 64);
        assert!((half_full("kivi-2") - 3.30).abs() < 0.02, "{}", half_full("kivi-2"));
        assert!((half_full("kivi-4") - 5.26).abs() < 0.02, "{}", half_full("kivi-4"));
    }

    /// Compares the formulas with and without layers that have a window.
    #[test]
    fn layers_with_a_window_are_counted_with_what_they_hold() {
        let windowed = |layers| Shape { sliding: Some(Sliding { layers, window: 512 }), ..llama2() };
        for tokens in [100, 512, 4096] {
            for name in ["dense-f16", "fp8", "kivi-2", "csr-4", "csr-4+online+window"] {
                let scheme = Formula::parse(name).unwrap();
                let bytes = |layers| match layers {
                    0 => scheme.footprint(&llama2(), tokens, 2).total(),
                    _ => scheme.footprint(&windowed(layers), tokens, 2).total(),
                };
                // Each layer with a window saves the same number of bytes.
                assert_eq!(bytes(0) - bytes(8), 8 * (bytes(0) - bytes(32)) / 32, "{name} at {tokens}");
                assert_eq!(bytes(8) == bytes(0), tokens <= 512, "{name} at {tokens}");
            }
            for (name, bits) in [("dense-f16", 16.0), ("fp8", 8.0)] {
                let scheme = Formula::parse(name).unwrap();
                assert_eq!(row(&windowed(8), name, &scheme, tokens, 2).measured_bits, bits, "{name} at {tokens}");
            }
        }
    }

    #[test]
    fn the_formula_of_kivi_within_a_window_is_what_its_cache_holds() {
        use kvcsr_cache::{Rotary, SchemeContext, registry};
        let (window, kv_heads, head_dim) = (200, 2, 64);
        let shape = Shape { layers: 1, kv_heads, head_dim, sliding: Some(Sliding { layers: 1, window }), ..llama2() };
        let scheme = registry::build("kivi-2", &SchemeContext::new(shape.geometry())).unwrap();
        let device = candle_core::Device::Cpu;
        let rotary = Rotary::new(head_dim, 1e4, 2048, &device).unwrap().with_reach(Reach::Sliding(window));
        for tokens in [150, 777, 1024] {
            let x = candle_core::Tensor::rand(-1f32, 1.0, (1, kv_heads, tokens, head_dim), &device).unwrap();
            let held = scheme.after_prefill(0, &x, &x, &rotary).unwrap().footprint();
            let formula = Formula::Kivi(2).footprint(&shape, tokens, 1);
            assert_eq!((formula.packed, formula.scales), (held.packed, held.scales), "{tokens}");
            // The cache's buffers have room for a few more tokens.
            let room = held.window - formula.window;
            assert!(room <= 2 * 4 * kv_heads * head_dim * 2, "{tokens}: {held:?}, {formula:?}");
        }
    }

    #[test]
    fn break_even_is_where_the_sizes_cross() {
        let shape = llama2();
        let (csr, f16) = (Formula::parse("csr-4+online").unwrap(), Formula::parse("dense-f16").unwrap());
        for dictionaries in [false, true] {
            let from = csr.smaller_from(&f16, &shape, 1, dictionaries).unwrap();
            let smaller = |n| csr.bytes(&shape, n, 1, dictionaries) < f16.bytes(&shape, n, 1, dictionaries);
            assert!(smaller(from) && !smaller(from - 1), "{from}");
        }
        assert_eq!(Formula::parse("csr-128").unwrap().smaller_from(&f16, &shape, 1, false), None);
    }
}
