//! Affine quantisers of groups on tensors: [`crate::coded::affine`] in tensor operations.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use kvcsr_codec::Footprint;

use super::growing::Growing;
use super::packed::{Fields, Packing};
use super::{TensorTokens, round_ties_even, saturated_half};
use crate::CacheError;
use crate::coded::affine::Affine;

/// Quantises groups along `dim`; the dimension before it is the index of the group. Returns zero points and steps as
/// they are stored, in f16 with size 1 in `dim`, and codes, which are whole numbers as f32.
pub(crate) fn quantise(affine: Affine, groups: &Tensor, dim: usize) -> Result<(Tensor, Tensor, Tensor), CacheError> {
    let levels = f64::from((1u32 << affine.bits) - 1);
    let (low, high) = (groups.min_keepdim(dim)?, groups.max_keepdim(dim)?);
    let step = saturated_half(&(high - &low)?.affine(1.0 / levels, 0.0)?)?;
    let zero = saturated_half(&low)?;
    let (zero_f32, step_f32) = (zero.to_dtype(DType::F32)?, step.to_dtype(DType::F32)?);
    // A constant group is divided by infinity, so all its codes are 0.
    let flat = step_f32.eq(0f32)?;
    let divisor = flat.where_cond(&step_f32.ones_like()?.affine(f64::INFINITY, 0.0)?, &step_f32)?;
    let places = groups.broadcast_sub(&zero_f32)?.broadcast_div(&divisor)?.clamp(0f32, levels as f32)?;
    let codes = round_ties_even(&places)?;
    if affine.pull == 0.0 {
        return Ok((zero, step, codes));
    }
    let pull = f64::from(affine.pull);
    let pulled = (zero_f32 + step_f32.affine(pull * levels, 0.0)?)?.to_dtype(DType::F16)?;
    Ok((pulled, step_f32.affine(1.0 - 2.0 * pull, 0.0)?.to_dtype(DType::F16)?, codes))
}

/// Restores codes. Zero points and steps are f16, and are broadcast.
pub(crate) fn restore(codes: &Tensor, zero: &Tensor, step: &Tensor) -> Result<Tensor, CacheError> {
    let (zero, step) = (zero.to_dtype(DType::F32)?, step.to_dtype(DType::F32)?);
    Ok(codes.broadcast_mul(&step)?.broadcast_add(&zero)?)
}

/// Which numbers share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Along {
    /// A channel of this many consecutive tokens. A block consists of whole groups.
    Tokens(usize),
    /// This many consecutive channels of a token.
    Channels(usize),
}

/// Quantised keys or values of one sequence, over all heads.
pub(crate) struct TensorGroups {
    affine: Affine,
    along: Along,
    fields: Arc<Fields>,
    /// `(Hkv, tokens, bytes)` u8, packed along channels.
    codes: Growing,
    /// `(Hkv, groups, D)` or `(Hkv, tokens, D / group)`, f16.
    zeros: Growing,
    steps: Growing,
}

impl TensorGroups {
    pub(crate) fn new(affine: Affine, along: Along, fields: Arc<Fields>) -> Self {
        let (codes, zeros, steps) = Default::default();
        Self { affine, along, fields, codes, zeros, steps }
    }

    fn packing(&self, d: usize) -> Packing {
        Packing { bits: self.affine.bits, count: d }
    }
}

impl TensorTokens for TensorGroups {
    fn append(&mut self, rows: &Tensor, _prompt: bool) -> Result<(), CacheError> {
        let (heads, n, d) = rows.dims3()?;
        let (zero, step, codes) = match self.along {
            Along::Tokens(group) => quantise(self.affine, &rows.reshape((heads, n / group, group, d))?, 2)?,
            Along::Channels(group) => quantise(self.affine, &rows.reshape((heads, n, d / group, group))?, 3)?,
        };
        let scales = match self.along {
            Along::Tokens(group) => (heads, n / group, d),
            Along::Channels(group) => (heads, n, d / group),
        };
        let packing = self.packing(d);
        let bytes = packing.pack(&codes.reshape((heads * n, d))?, &self.fields)?;
        self.codes.push(&bytes.reshape((heads, n, packing.bytes()))?)?;
        self.zeros.push(&zero.reshape(scales)?)?;
        self.steps.push(&step.reshape(scales)?)
    }

    fn restore(&self, tokens: Range<usize>) -> Result<Tensor, CacheError> {
        // Whole groups are restored. Then the requested tokens are cut out.
        let groups = match self.along {
            Along::Tokens(group) => tokens.start / group..tokens.end.div_ceil(group),
            Along::Channels(_) => tokens.clone(),
        };
        let whole = match self.along {
            Along::Tokens(group) => groups.start * group..groups.end * group,
            Along::Channels(_) => tokens.clone(),
        };
        let bytes = self.codes.rows(whole.clone())?;
        let (heads, n, each) = bytes.dims3()?;
        let (zeros, steps) =
            (self.zeros.rows(groups.clone())?.contiguous()?, self.steps.rows(groups.clone())?.contiguous()?);
        let scales = zeros.dim(2)?;
        let (d, shape, grouped) = match self.along {
            Along::Tokens(group) => (scales, (heads, groups.len(), 1, scales), (heads, groups.len(), group, scales)),
            Along::Channels(group) => (scales * group, (heads, n, scales, 1), (heads, n, scales, group)),
        };
        let codes = self.packing(d).unpack(&bytes.contiguous()?.reshape((heads * n, each))?, &self.fields)?;
        let all = restore(&codes.reshape(grouped)?, &zeros.reshape(shape)?, &steps.reshape(shape)?)?;
        let all = all.reshape((heads, n, d))?;
        Ok(all.narrow(1, tokens.start - whole.start, tokens.len())?.contiguous()?)
    }

    fn footprint(&self) -> Footprint {
        Footprint {
            packed: self.codes.bytes(),
            scales: self.zeros.bytes() + self.steps.bytes(),
            tables: size_of::<Self>(),
            ..Footprint::default()
        }
    }

    fn drop_step(&self) -> usize {
        match self.along {
            Along::Tokens(group) => group,
            Along::Channels(_) => 1,
        }
    }

    fn drop_first(&mut self, tokens: usize) -> Result<(), CacheError> {
        let scales = tokens / self.drop_step();
        self.codes.drop_first(tokens)?;
        self.zeros.drop_first(scales)?;
        self.steps.drop_first(scales)
    }
}
