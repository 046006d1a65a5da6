//! Vectors stored without coding, in f16.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;
use kvcsr_codec::Footprint;

use crate::coded::{Codec, CodedTokens, HeadTokens, PerHead, drop_front, reserve};

/// Keys or values in f16, for methods that code only the other kind.
pub(super) struct Halves {
    pub(super) heads: usize,
    pub(super) head_dim: usize,
}

impl Codec for Halves {
    fn empty(&self) -> Box<dyn CodedTokens> {
        Box::new(PerHead::new(self.heads, |_| HalfTokens { head_dim: self.head_dim, rows: Vec::new() }))
    }

    fn nominal_bits(&self) -> f64 {
        16.0
    }
}

struct HalfTokens {
    head_dim: usize,
    /// `(tokens, D)`
    rows: Vec<f16>,
}

impl HeadTokens for HalfTokens {
    fn append(&mut self, rows: &[f32], tokens: usize, _prompt: bool) {
        reserve(&mut self.rows, tokens, self.head_dim);
        let at = self.rows.len();
        self.rows.resize(at + rows.len(), f16::ZERO);
        self.rows[at..].convert_from_f32_slice(rows);
    }

    fn restore(&self, tokens: Range<usize>, out: &mut [f32]) {
        let d = self.head_dim;
        self.rows[tokens.start * d..tokens.end * d].convert_to_f32_slice(&mut out[..tokens.len() * d]);
    }

    fn footprint(&self) -> Footprint {
        Footprint { dense: self.rows.capacity() * size_of::<f16>(), ..Footprint::default() }
    }

    fn drop_first(&mut self, tokens: usize) {
        drop_front(&mut self.rows, tokens * self.head_dim);
    }
}
