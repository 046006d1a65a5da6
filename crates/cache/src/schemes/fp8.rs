//! Eight-bit floating point (e4m3) for keys and values, with a scale of 1. Inference servers offer this as an "fp8
//! cache".

use std::ops::Range;
use std::sync::Arc;

use kvcsr_codec::{Footprint, from_e4m3, to_e4m3};

use crate::Geometry;
use crate::coded::{Codec, CodedScheme, CodedTokens, HeadTokens, PerHead, drop_front, reserve};
use crate::entry::{Entry, KeysCoded, WINDOW};
use crate::family::{Family, Plan, Read};
use crate::name::SchemeName;
use crate::needs::Needs;

/// `fp8`.
pub const FAMILY: Family = Family { entries: ENTRIES, read };

const ENTRIES: &[Entry] = &[Entry {
    pattern: "fp8",
    examples: &["fp8", "fp8+window(sinks=2,recent=9)"],
    summary: "Keys and values in 8-bit floating point (e4m3), saturating at 448",
    citation: "Micikevicius et al., FP8 Formats for Deep Learning, arXiv:2209.05433, 2022",
    keys_coded: KeysCoded::AfterRope,
    parameters: &WINDOW,
    prefill_as_decoded: true,
}];

fn read(name: &SchemeName<'_>) -> Read {
    if name.head != "fp8" {
        return Ok(None);
    }
    name.no_artefacts()?;
    name.arguments.only(&[])?;
    name.only_parts(&[])?;
    let window = name.window()?;
    Ok(Some(Plan::new(Needs::nothing(KeysCoded::AfterRope), move |bound| {
        let codec: Arc<dyn Codec> = Arc::new(Fp8(bound.geometry()));
        Ok(Box::new(CodedScheme::new(&bound, window, |_| Ok((codec.clone(), codec.clone())))?))
    })))
}

struct Fp8(Geometry);

impl Codec for Fp8 {
    fn empty(&self) -> Box<dyn CodedTokens> {
        Box::new(PerHead::new(self.0.kv_heads, |_| Bytes { head_dim: self.0.head_dim, bytes: Vec::new() }))
    }

    fn nominal_bits(&self) -> f64 {
        8.0
    }
}

struct Bytes {
    head_dim: usize,
    /// `(tokens, D)`
    bytes: Vec<u8>,
}

impl HeadTokens for Bytes {
    fn append(&mut self, rows: &[f32], tokens: usize, _prompt: bool) {
        reserve(&mut self.bytes, tokens, self.head_dim);
        self.bytes.extend(rows.iter().map(|&x| to_e4m3(x)));
    }

    fn restore(&self, tokens: Range<usize>, out: &mut [f32]) {
        let d = self.head_dim;
        for (out, &byte) in out.iter_mut().zip(&self.bytes[tokens.start * d..tokens.end * d]) {
            *out = from_e4m3(byte);
        }
    }

    fn footprint(&self) -> Footprint {
        Footprint { packed: self.bytes.capacity(), ..Footprint::default() }
    }

    fn drop_first(&mut self, tokens: usize) {
        drop_front(&mut self.bytes, tokens * self.head_dim);
    }
}
