//! NSNQuant: vectors are brought to a standard normal distribution, and one codebook serves all models (Son, Choi and Yoo,
//! NeurIPS 2025).
//!
//! Tokens wait in f16 until a chunk of them is there. With `d` channels of a head, keys before position embedding, the
//! chunk is then coded at once:
//!
//! 1. normalise: each vector is divided by `s1 = ‖x‖ / √d`;
//! 2. shift: the mean `o` of the chunk's vectors is subtracted;
//! 3. normalise again: what is left is divided by `s2`, its norm over `√d`, and goes through a Hadamard transform `H`;
//! 4. eight channels at a time are stored as the number of the nearest of 256 [codewords](codebook), learned on normal
//!    variates. At 2 bits the codewords are of absolute values, and each channel keeps its sign.
//!
//! Restored is `x̂ = s1 (s2 Hᵀ q + o)`. `s1` and `o` take 4 bits each, with a scale per chunk; `s2` is f16.

pub mod codebook;
mod tokens;

use std::sync::Arc;

use self::codebook::{Codebook, PIECE};
use self::tokens::Chunks;
use crate::coded::{Buffering, Codec, CodedScheme, CodedTokens, PerHead};
use crate::entry::{Entry, KeysCoded, Parameter, WINDOW};
use crate::family::{Family, Plan, Read};
use crate::name::SchemeName;
use crate::needs::Needs;

/// `nsnquant-1` and `nsnquant-2`.
pub const FAMILY: Family = Family { entries: ENTRIES, read };

const ENTRIES: &[Entry] = &[Entry {
    pattern: "nsnquant-B",
    examples: &["nsnquant-2", "nsnquant-1", "nsnquant-1(chunk=32)", "nsnquant-2(chunk=16)+window(sinks=2,recent=9)"],
    summary: "Vectors normalised, shifted and normalised again, then 8 channels at a time in one codebook for all models",
    citation: "Son, Choi and Yoo, NSNQuant: A Double Normalization Approach for Calibration-Free Low-Bit Vector \
               Quantization of KV Cache, NeurIPS 2025",
    keys_coded: KeysCoded::BeforeRope,
    parameters: &[
        Parameter { name: "B", default: "", meaning: "bits per channel: 1 or 2" },
        Parameter {
            name: "chunk",
            default: "64 at 2 bits, 128 at 1",
            meaning: "tokens that wait in f16 and are coded together; a multiple of 8",
        },
        WINDOW[0],
        WINDOW[1],
        WINDOW[2],
    ],
    prefill_as_decoded: true,
}];

fn read(name: &SchemeName<'_>) -> Read {
    let Some(level) = name.level("nsnquant") else { return Ok(None) };
    let (bits, published) = match level {
        "1" => (1, 128),
        "2" => (2, 64),
        _ => return Err(format!("`{level}` is not 1 or 2 bits")),
    };
    name.no_artefacts()?;
    name.arguments.only(&["chunk"])?;
    name.only_parts(&[])?;
    let (chunk, window) = (name.arguments.tokens("chunk", published)?, name.window()?);
    if chunk == 0 || !chunk.is_multiple_of(8) {
        return Err(format!("chunk: {chunk} is not a multiple of 8"));
    }
    Ok(Some(Plan::new(Needs::nothing(KeysCoded::BeforeRope), move |bound| {
        let geometry = bound.geometry();
        let head_dim = geometry.head_dim;
        if head_dim == 0 || !head_dim.is_multiple_of(PIECE) {
            return Err(bound.unsuitable(format!("pieces of {PIECE} channels do not divide heads of {head_dim}")));
        }
        let codec: Arc<dyn Codec> =
            Arc::new(NsnQuant { shape: Shape { bits, chunk, head_dim }, heads: geometry.kv_heads });
        let scheme = CodedScheme::new(&bound, window, |_| Ok((codec.clone(), codec.clone())))?;
        Ok(Box::new(scheme.with_artefacts("", Codebook::of(bits).bytes())))
    })))
}

/// Bits of a channel, tokens of a chunk, channels of a head.
#[derive(Debug, Clone, Copy)]
struct Shape {
    bits: usize,
    chunk: usize,
    head_dim: usize,
}

struct NsnQuant {
    shape: Shape,
    heads: usize,
}

impl Codec for NsnQuant {
    fn empty(&self) -> Box<dyn CodedTokens> {
        Box::new(PerHead::new(self.heads, |_| Chunks::new(self.shape)))
    }

    fn buffering(&self) -> Buffering {
        Buffering::Blocks { block: self.shape.chunk, aligned: self.shape.chunk }
    }

    fn nominal_bits(&self) -> f64 {
        self.shape.bits as f64
    }

    fn stored_bits(&self) -> f64 {
        let Shape { bits, chunk, head_dim } = self.shape;
        let (chunk, d) = (chunk as f64, head_dim as f64);
        // Per token `s1` and `s2`; per chunk a mean, and two scales of 32 bits.
        bits as f64 + (4.0 + 16.0) / d + (4.0 * d + 2.0 * 32.0) / (chunk * d)
    }
}
