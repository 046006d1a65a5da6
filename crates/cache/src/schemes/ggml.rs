//! The cache formats of llama.cpp, `q8_0` and `q4_0`: blocks of 32 channels with one f16 scale each.
//!
//! Blocks have ggml's layout and rounding. `+hadamard` transforms each head vector before coding. This spreads
//! unusually large channels over all channels. The size of the transform is the largest power of two that divides the
//! head size.

use std::ops::Range;
use std::sync::Arc;

use half::f16;
use kvcsr_codec::Footprint;

use super::kivi::check_groups;
use crate::coded::blocks::{BLOCK, BlockFormat};
use crate::coded::hadamard;
use crate::coded::stages::{Hadamard, Staged};
use crate::coded::{Codec, CodedScheme, CodedTokens, HeadTokens, PerHead, drop_front, reserve};
use crate::entry::{CENTRE, Entry, KeysCoded, Parameter, WINDOW};
use crate::family::{Family, Plan, Read};
use crate::name::SchemeName;
use crate::needs::Needs;
use crate::tensor::blocks::TensorBlocks;
use crate::tensor::{Stores, Uploads};
use crate::{CacheError, Geometry};

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
        parameters: &[HADAMARD, WINDOW[0], WINDOW[1], WINDOW[2]],
        prefill_as_decoded: true,
    },
    Entry {
        pattern: "q4_0",
        examples: &["q4_0", "q4_0+hadamard", "q4_0+window(sinks=2,recent=9)"],
        summary: "4-bit integers, an f16 scale per 32 channels, as llama.cpp stores them",
        citation: SOURCE,
        keys_coded: KeysCoded::AfterRope,
        parameters: &[HADAMARD, WINDOW[0], WINDOW[1], WINDOW[2]],
        prefill_as_decoded: true,
    },
    Entry {
        pattern: "q4_0+centre",
        examples: &["q4_0+centre", "q8_0+centre", "q4_0+hadamard+centre+window(sinks=2,recent=9)"],
        summary: "q4_0 or q8_0 of keys without their heads' means; not in llama.cpp",
        citation: "",
        keys_coded: KeysCoded::AfterRope,
        parameters: &[CENTRE, HADAMARD, WINDOW[0], WINDOW[1], WINDOW[2]],
        prefill_as_decoded: false,
    },
];

fn read(name: &SchemeName<'_>) -> Read {
    let Some((_, format)) =
        [("q8_0", BlockFormat::Q8), ("q4_0", BlockFormat::Q4)].into_iter().find(|(known, _)| *known == name.head)
    else {
        return Ok(None);
    };
    name.no_artefacts()?;
    name.arguments.only(&[])?;
    name.only_parts(&["hadamard", "centre"])?;
    let (transformed, centred, window) = (name.flag("hadamard")?, name.centred()?, name.window()?);
    Ok(Some(Plan::new(Needs::nothing(KeysCoded::AfterRope), move |bound| {
        let geometry = bound.geometry();
        check_groups(&bound, BLOCK)?;
        let mut codec = codec(format, geometry);
        if transformed {
            let size = hadamard::size(geometry.head_dim);
            codec = Arc::new(Staged::new(vec![Arc::new(Hadamard { size })], codec));
        }
        let scheme = CodedScheme::new(&bound, window, |_| Ok((codec.clone(), codec.clone())))?;
        Ok(Box::new(scheme.centred(centred)))
    })))
}

/// A codec that stores keys or values as blocks.
pub(crate) fn codec(format: BlockFormat, geometry: Geometry) -> Arc<dyn Codec> {
    Arc::new(Blocks { format, geometry })
}

struct Blocks {
    format: BlockFormat,
    geometry: Geometry,
}

impl Codec for Blocks {
    fn empty(&self) -> Box<dyn CodedTokens> {
        let head_dim = self.geometry.head_dim;
        let format = self.format;
        Box::new(PerHead::new(self.geometry.kv_heads, |_| Head { format, head_dim, bytes: Vec::new() }))
    }

    fn nominal_bits(&self) -> f64 {
        8.0 * self.format.block_bytes() as f64 / BLOCK as f64
    }

    fn tensors(&self, uploads: &mut Uploads) -> Result<Option<Stores>, CacheError> {
        let (format, fields) = (self.format, uploads.fields()?);
        Ok(Some(Arc::new(move || Ok(Box::new(TensorBlocks::new(format, fields.clone()))))))
    }
}

struct Head {
    format: BlockFormat,
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
        for block in rows.chunks_exact(BLOCK) {
            self.format.encode(block, &mut self.bytes);
        }
    }

    fn restore(&self, tokens: Range<usize>, out: &mut [f32]) {
        let bytes = &self.bytes[tokens.start * self.row_bytes()..tokens.end * self.row_bytes()];
        for (bytes, out) in bytes.chunks_exact(self.format.block_bytes()).zip(out.chunks_exact_mut(BLOCK)) {
            self.format.decode(bytes, out);
        }
    }

    fn footprint(&self) -> Footprint {
        // Every block has an f16 scale.
        let scales = self.bytes.capacity() / self.format.block_bytes() * size_of::<f16>();
        Footprint { packed: self.bytes.capacity() - scales, scales, ..Footprint::default() }
    }

    fn drop_first(&mut self, tokens: usize) {
        let row_bytes = self.row_bytes();
        drop_front(&mut self.bytes, tokens * row_bytes);
    }
}
