//! Blocks of 32 channels with one scale each, in the format of [`BlockFormat`], on tensors.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, DType, Tensor};
use kvcsr_codec::Footprint;

use super::growing::Growing;
use super::packed::{Fields, Packing};
use super::{TensorTokens, saturated_half};
use crate::CacheError;
use crate::coded::blocks::{BLOCK, BlockFormat};

/// Keys or values of one sequence, coded as blocks.
pub(crate) struct TensorBlocks {
    format: BlockFormat,
    fields: Arc<Fields>,
    /// `(Hkv, tokens, bytes)` u8
    codes: Growing,
    /// `(Hkv, tokens, D / 32)` f16
    steps: Growing,
}

impl TensorBlocks {
    pub(crate) fn new(format: BlockFormat, fields: Arc<Fields>) -> Self {
        Self { format, fields, codes: Growing::default(), steps: Growing::default() }
    }

    /// The same store, but it reserves memory for `page` tokens at a time.
    pub(crate) fn in_pages_of(self, page: usize) -> Self {
        Self { codes: Growing::in_pages_of(page), steps: Growing::in_pages_of(page), ..self }
    }

    fn bits(&self) -> usize {
        match self.format {
            BlockFormat::Q8 => 8,
            BlockFormat::Q4 => 4,
        }
    }

    /// The number of tokens held.
    pub(crate) fn len(&self) -> usize {
        self.codes.len()
    }
}

impl TensorTokens for TensorBlocks {
    fn append(&mut self, rows: &Tensor, _prompt: bool) -> Result<(), CacheError> {
        let (heads, n, d) = rows.dims3()?;
        let (blocks, bits) = (heads * n * d / BLOCK, self.bits());
        let x = rows.reshape((blocks, BLOCK))?;
        // The first element with the largest absolute value, with its sign.
        let at = x.abs()?.argmax_keepdim(D::Minus1)?;
        let top = x.gather(&at, 1)?;
        let step = match self.format {
            BlockFormat::Q8 => top.abs()?.affine(1.0 / 127.0, 0.0)?,
            BlockFormat::Q4 => top.affine(-0.125, 0.0)?,
        };
        // A block of zeros is divided by 1.
        let inverse = (step.eq(0f32)?.to_dtype(DType::F32)? + &step)?.recip()?;
        let scaled = x.broadcast_mul(&inverse)?;
        let codes = match self.format {
            BlockFormat::Q8 => scaled.round()?.affine(1.0, 128.0)?,
            BlockFormat::Q4 => scaled.affine(1.0, 8.5)?.minimum(15f32)?.floor()?,
        };
        let packing = Packing { bits, count: d };
        let bytes = packing.pack(&codes.reshape((heads * n, d))?, &self.fields)?;
        self.codes.push(&bytes.reshape((heads, n, packing.bytes()))?)?;
        self.steps.push(&saturated_half(&step)?.reshape((heads, n, d / BLOCK))?)
    }

    fn restore(&self, tokens: Range<usize>) -> Result<Tensor, CacheError> {
        let (bytes, steps) = (self.codes.rows(tokens.clone())?, self.steps.rows(tokens)?);
        let (heads, n, each) = bytes.dims3()?;
        let (bits, blocks) = (self.bits(), steps.dim(2)?);
        let packing = Packing { bits, count: blocks * BLOCK };
        let codes = packing.unpack(&bytes.contiguous()?.reshape((heads * n, each))?, &self.fields)?;
        let zero = -(f64::from(1u32 << (bits - 1)));
        let codes = codes.affine(1.0, zero)?.reshape((heads, n, blocks, BLOCK))?;
        let steps = steps.contiguous()?.to_dtype(DType::F32)?.unsqueeze(3)?;
        Ok(codes.broadcast_mul(&steps)?.reshape((heads, n, blocks * BLOCK))?)
    }

    fn footprint(&self) -> Footprint {
        Footprint {
            packed: self.codes.bytes(),
            scales: self.steps.bytes(),
            tables: size_of::<Self>(),
            ..Footprint::default()
        }
    }

    fn drop_first(&mut self, tokens: usize) -> Result<(), CacheError> {
        self.codes.drop_first(tokens)?;
        self.steps.drop_first(tokens)
    }
}
