//! Eight-bit floating point, e4m3, for keys and values: what servers offer as an "fp8 cache", with a scale of 1.

use std::ops::Range;
use std::sync::{Arc, LazyLock};

use kvcsr_codec::{Footprint, from_e4m3, to_e4m3};

use super::coded::{Block, Buffering, Codec, CodedScheme, CodedTokens, reserve};
use crate::name::SchemeName;
use crate::registry::{BuildError, Entry, Family, KeysCoded, SchemeContext, WINDOW};
use crate::{Geometry, Scheme};

/// `fp8`.
pub const FAMILY: Family = Family { entries: ENTRIES, build };

const ENTRIES: &[Entry] = &[Entry {
    pattern: "fp8",
    examples: &["fp8", "fp8+window(sinks=2,recent=9)"],
    summary: "Keys and values in 8-bit floating point (e4m3), saturating at 448",
    citation: "Micikevicius et al., FP8 Formats for Deep Learning, arXiv:2209.05433, 2022",
    keys_coded: KeysCoded::AfterRope,
    parameters: &WINDOW,
    prefill_as_decoded: true,
}];

fn build(name: &SchemeName<'_>, cx: &SchemeContext) -> Result<Option<Box<dyn Scheme>>, BuildError> {
    if name.head != "fp8" {
        return Ok(None);
    }
    name.no_artefacts()?;
    name.arguments.only(&[])?;
    name.only_parts(&[])?;
    let geometry = cx.geometry();
    let codec: Arc<dyn Codec> = Arc::new(Fp8(geometry));
    let scheme = CodedScheme::new(name.base, geometry, KeysCoded::AfterRope, name.window()?, |_| {
        Ok((codec.clone(), codec.clone()))
    })?;
    Ok(Some(Box::new(scheme)))
}

struct Fp8(Geometry);

impl Codec for Fp8 {
    fn empty(&self) -> Box<dyn CodedTokens> {
        Box::new(Bytes { head_dim: self.0.head_dim, heads: self.0.kv_heads, bytes: Vec::new() })
    }

    fn buffering(&self) -> Buffering {
        Buffering::None
    }

    fn nominal_bits(&self) -> f64 {
        8.0
    }

    fn stored_bits(&self) -> f64 {
        8.0
    }
}

struct Bytes {
    head_dim: usize,
    heads: usize,
    /// `(tokens, Hkv, D)`
    bytes: Vec<u8>,
}

impl CodedTokens for Bytes {
    fn append(&mut self, block: &Block<'_>) {
        let d = self.head_dim;
        reserve(&mut self.bytes, block.tokens, self.heads * d);
        for token in 0..block.tokens {
            for head in block.rows.chunks_exact(block.tokens * d) {
                self.bytes.extend(head[token * d..(token + 1) * d].iter().map(|&x| to_e4m3(x)));
            }
        }
    }

    fn restore(&self, head: usize, tokens: Range<usize>, out: &mut [f32]) {
        static VALUES: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|code| from_e4m3(code as u8)));
        let (d, values) = (self.head_dim, &*VALUES);
        for (token, out) in tokens.zip(out.chunks_exact_mut(d)) {
            let at = (token * self.heads + head) * d;
            for (out, &byte) in out.iter_mut().zip(&self.bytes[at..at + d]) {
                *out = values[usize::from(byte)];
            }
        }
    }

    fn footprint(&self) -> Footprint {
        Footprint { packed: self.bytes.capacity(), tables: size_of::<Self>(), ..Footprint::default() }
    }
}
