//! The caches of llama.cpp: blocks of 32 channels with an f16 scale each, `q8_0` and `q4_0`.
//!
//! Blocks have ggml's layout and are rounded as ggml rounds them. `+hadamard` transforms each head vector before
//! coding, which spreads channels that stick out over all of them; the largest power of two that divides the head size
//! is the transform's size.

use std::ops::Range;
use std::sync::Arc;

use half::f16;
use kvcsr_codec::Footprint;

use super::coded::hadamard;
use super::coded::{Buffering, Codec, CodedScheme, CodedTokens, HeadTokens, PerHead, reserve};
use super::kivi::check_groups;
use crate::Geometry;
use crate::entry::{Entry, KeysCoded, Parameter, WINDOW};
use crate::family::{Family, Plan, Read};
use crate::name::SchemeName;
use crate::needs::Needs;

/// `q8_0` and `q4_0`.
pub const FAMILY: Family = Family { entries: ENTRIES, read };

const HADAMARD: Parameter =
    Parameter { name: "+hadamard", default: "", meaning: "rotate head vectors by a Hadamard matrix before coding" };
const SOURCE: &str = "Gerganov et al., llama.cpp";

const ENTRIES: &[Entry] = &[
    Entry {
        pattern: "q8_0",
        examples: &["q8_0", "q8_0+hadamard"],
        summary: "8-bit integers, an f16 scale per 32 channels, as llama.cpp stores them",
        citation: SOURCE,
        keys_coded: KeysCoded::AfterRope,
        parameters: &[HADAMARD, WINDOW[0], WINDOW[1]],
        prefill_as_decoded: true,
    },
    Entry {
        pattern: "q4_0",
        examples: &["q4_0", "q4_0+hadamard", "q4_0+window(sinks=2,recent=9)"],
        summary: "4-bit integers, an f16 scale per 32 channels, as llama.cpp stores them",
        citation: SOURCE,
        keys_coded: KeysCoded::AfterRope,
        parameters: &[HADAMARD, WINDOW[0], WINDOW[1]],
        prefill_as_decoded: true,
    },
];

/// Channels of a block.
const BLOCK: usize = 32;

fn read(name: &SchemeName<'_>) -> Read {
    let Some(format) = [Format::Q8, Format::Q4].into_iter().find(|format| format.name() == name.head) else {
        return Ok(None);
    };
    name.no_artefacts()?;
    name.arguments.only(&[])?;
    name.only_parts(&["hadamard"])?;
    let (transformed, window) = (name.flag("hadamard")?, name.window()?);
    Ok(Some(Plan::new(Needs::nothing(KeysCoded::AfterRope), move |bound| {
        let geometry = bound.geometry();
        check_groups(&bound, BLOCK)?;
        let size = if transformed { hadamard::size(geometry.head_dim) } else { 1 };
        let codec: Arc<dyn Codec> = Arc::new(Blocks { format, size, geometry });
        Ok(Box::new(CodedScheme::new(&bound, window, |_| Ok((codec.clone(), codec.clone())))?))
    })))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Q8,
    Q4,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Q8 => "q8_0",
            Self::Q4 => "q4_0",
        }
    }

    /// Bytes of a block, its scale first.
    fn block_bytes(self) -> usize {
        match self {
            Self::Q8 => 2 + BLOCK,
            Self::Q4 => 2 + BLOCK / 2,
        }
    }

    fn encode(self, x: &[f32], out: &mut Vec<u8>) {
        let top = x.iter().copied().fold(0.0f32, |top, x| if x.abs() > top.abs() { x } else { top });
        let step = match self {
            Self::Q8 => top.abs() / 127.0,
            Self::Q4 => top / -8.0,
        };
        let inverse = if step == 0.0 { 0.0 } else { 1.0 / step };
        let stored = f16::from_f32(step.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()));
        out.extend_from_slice(&stored.to_le_bytes());
        match self {
            Self::Q8 => out.extend(x.iter().map(|x| (x * inverse).round() as i8 as u8)),
            Self::Q4 => {
                let code = |x: f32| (x * inverse + 8.5).min(15.0) as u8;
                let (front, back) = x.split_at(BLOCK / 2);
                out.extend(front.iter().zip(back).map(|(&a, &b)| code(a) | code(b) << 4));
            }
        }
    }

    fn decode(self, bytes: &[u8], out: &mut [f32]) {
        let step = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
        match self {
            Self::Q8 => {
                for (out, &code) in out.iter_mut().zip(&bytes[2..]) {
                    *out = f32::from(code as i8) * step;
                }
            }
            Self::Q4 => {
                let (front, back) = out.split_at_mut(BLOCK / 2);
                for ((front, back), &codes) in front.iter_mut().zip(back).zip(&bytes[2..]) {
                    *front = f32::from((codes & 15) as i8 - 8) * step;
                    *back = f32::from((codes >> 4) as i8 - 8) * step;
                }
            }
        }
    }
}

struct Blocks {
    format: Format,
    size: usize,
    geometry: Geometry,
}

impl Codec for Blocks {
    fn empty(&self) -> Box<dyn CodedTokens> {
        let head_dim = self.geometry.head_dim;
        let (format, size) = (self.format, self.size);
        Box::new(PerHead::new(self.geometry.kv_heads, |_| Head { format, size, head_dim, bytes: Vec::new() }))
    }

    fn buffering(&self) -> Buffering {
        Buffering::None
    }

    fn nominal_bits(&self) -> f64 {
        8.0 * self.format.block_bytes() as f64 / BLOCK as f64
    }

    fn stored_bits(&self) -> f64 {
        self.nominal_bits()
    }
}

struct Head {
    format: Format,
    size: usize,
    head_dim: usize,
    /// `(tokens, D / 32)` blocks
    bytes: Vec<u8>,
}

impl Head {
    fn row_bytes(&self) -> usize {
        self.head_dim / BLOCK * self.format.block_bytes()
    }
}

impl HeadTokens for Head {
    fn append(&mut self, rows: &[f32], tokens: usize, _prompt: bool) {
        let row_bytes = self.row_bytes();
        reserve(&mut self.bytes, tokens, row_bytes);
        let mut turned = vec![0.0; self.head_dim];
        for row in rows.chunks_exact(self.head_dim) {
            turned.copy_from_slice(row);
            if self.size > 1 {
                hadamard::transform(&mut turned, self.size);
            }
            for block in turned.chunks_exact(BLOCK) {
                self.format.encode(block, &mut self.bytes);
            }
        }
    }

    fn restore(&self, tokens: Range<usize>, out: &mut [f32]) {
        let bytes = &self.bytes[tokens.start * self.row_bytes()..tokens.end * self.row_bytes()];
        for (bytes, out) in bytes.chunks_exact(self.format.block_bytes()).zip(out.chunks_exact_mut(BLOCK)) {
            self.format.decode(bytes, out);
        }
        if self.size > 1 {
            hadamard::transform(&mut out[..tokens.len() * self.head_dim], self.size);
        }
    }

    fn footprint(&self) -> Footprint {
        // An f16 scale in every block.
        let scales = self.bytes.capacity() / self.format.block_bytes() * size_of::<f16>();
        Footprint { packed: self.bytes.capacity() - scales, scales, ..Footprint::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_round_as_ggml_rounds() {
        let mut x = [0.0f32; BLOCK];
        (x[0], x[1], x[16], x[17]) = (-4.0, 3.9, 0.26, -0.24);
        let mut bytes = Vec::new();
        Format::Q4.encode(&x, &mut bytes);
        // -4 / -8 = 0.5 is the step; 3.9 / 0.5 + 8.5 = 16.3 is cut to 15, 0.26 / 0.5 + 8.5 = 9.02 to 9.
        assert_eq!(bytes.len(), 18);
        assert_eq!(bytes[..4], [0x00, 0x38, 0x90, 0x8f]);
        let mut back = [0.0; BLOCK];
        Format::Q4.decode(&bytes, &mut back);
        assert_eq!((back[0], back[1], back[16], back[17]), (-4.0, 3.5, 0.5, 0.0));
        bytes.clear();
        Format::Q8.encode(&x, &mut bytes);
        assert_eq!((bytes.len(), bytes[2] as i8, bytes[3] as i8, bytes[2 + 16] as i8), (34, -127, 124, 8));
    }

    #[test]
    fn a_block_of_zeros_stays_zero() {
        for format in [Format::Q8, Format::Q4] {
            let mut bytes = Vec::new();
            format.encode(&[0.0; BLOCK], &mut bytes);
            let mut back = [1.0; BLOCK];
            format.decode(&bytes, &mut back);
            assert_eq!(back, [0.0; BLOCK]);
        }
    }
}
