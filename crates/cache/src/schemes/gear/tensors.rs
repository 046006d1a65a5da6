//! GEAR's blocks as tensors: see [`crate::tensor`].

use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use kvcsr_codec::{Footprint, Kind};

use super::low_rank::{ITERATIONS, start};
use super::{MOST, Setting};
use crate::CacheError;
use crate::coded::affine::Affine;
use crate::tensor::affine::{quantise, restore};
use crate::tensor::packed::{Fields, Packing};
use crate::tensor::{Stores, TensorTokens, Uploads, saturated_half};

/// Makes the stores of one layer's keys or values.
pub(super) fn stores(setting: Setting, uploads: &mut Uploads) -> Result<Option<Stores>, CacheError> {
    let fields = uploads.fields()?;
    Ok(Some(Arc::new(move || Ok(Box::new(Blocks { setting, fields: fields.clone(), blocks: Vec::new() })))))
}

/// The coded tokens of one sequence, block by block.
struct Blocks {
    setting: Setting,
    fields: Arc<Fields>,
    blocks: Vec<Block>,
}

/// A block of tokens that are coded together, over all heads.
struct Block {
    tokens: usize,
    /// `(Hkv, tokens, bytes)` u8
    codes: Tensor,
    /// In f16: for keys `(Hkv, groups, D)`, for values `(tokens, groups)` over the channels of all heads.
    zeros: Tensor,
    steps: Tensor,
    outliers: Option<Outliers>,
    /// `(Hkv, tokens, r)` and `(Hkv, D, r)` f16
    low_rank: Option<(Tensor, Tensor)>,
}

/// The outliers of each vector. For keys, a vector is a channel over the block's tokens. For values, it is a token over
/// the channels of all heads.
struct Outliers {
    /// The index of each outlier in its vector, `(vectors, each)`. An index takes two bytes: `(vectors, 2 each)` u8.
    at: Tensor,
    /// `(vectors, each)` f16
    values: Tensor,
    /// Tokens that were dropped later. The indices for keys still count from the original first token.
    dropped: usize,
}

/// Indices of 16 bits.
fn places(each: usize) -> Packing {
    Packing { bits: 16, count: each }
}

impl Setting {
    /// Converts `(Hkv, n, D)` to the vectors that outliers are taken from.
    fn vectors(&self, x: &Tensor) -> Result<Tensor, CacheError> {
        let (heads, n, d) = x.dims3()?;
        Ok(match self.kind {
            Kind::Key => x.transpose(1, 2)?.contiguous()?.reshape((heads * d, n))?,
            Kind::Value => x.transpose(0, 1)?.contiguous()?.reshape((n, heads * d))?,
        })
    }

    /// Converts these vectors back to `(Hkv, n, D)`.
    fn tokens(&self, x: &Tensor, n: usize) -> Result<Tensor, CacheError> {
        let (heads, d) = (self.heads, self.head_dim);
        Ok(match self.kind {
            Kind::Key => x.reshape((heads, d, n))?.transpose(1, 2)?.contiguous()?,
            Kind::Value => x.reshape((n, heads, d))?.transpose(0, 1)?.contiguous()?,
        })
    }
}

impl Outliers {
    /// Takes the outliers out of `vectors`, and replaces each by the mean of its vector. Returns the outliers and the
    /// new vectors.
    fn take(setting: &Setting, vectors: &Tensor, fields: &Fields) -> Result<(Option<Self>, Tensor), CacheError> {
        let length = vectors.dim(1)?;
        let share = 0.5 * setting.outliers * length as f64;
        let side = if setting.outliers == 0.0 { 0 } else { (share.round() as usize).max(1) }.min(length / 2);
        if side == 0 {
            return Ok((None, vectors.clone()));
        }
        let mean = vectors.mean_keepdim(1)?;
        let reversed: Vec<u32> = (0..length as u32).rev().collect();
        let reversed = vectors.index_select(&Tensor::new(reversed, vectors.device())?, 1)?;
        // First the smallest entries; of equal entries, the first one first. Then the largest; of equal entries, the
        // last one first. This is the host's order.
        let smallest = most(&vectors.neg()?, side)?;
        let largest = most(&reversed, side)?.to_dtype(DType::F32)?.affine(-1.0, length as f64 - 1.0)?;
        let at = Tensor::cat(&[smallest, largest.to_dtype(DType::U32)?], 1)?;
        let values = saturated_half(&vectors.gather(&at, 1)?)?;
        let bulk = vectors.scatter(&at, &mean.broadcast_as(at.shape())?.contiguous()?, 1)?;
        let at = places(2 * side).pack(&at.to_dtype(DType::F32)?, fields)?;
        Ok((Some(Self { at, values, dropped: 0 }), bulk))
    }

    /// Writes the outliers with an index in `within` to `vectors`. The first element of `vectors` belongs to the first
    /// of these indices.
    fn put(&self, vectors: &Tensor, within: Range<usize>, fields: &Fields) -> Result<Tensor, CacheError> {
        let (rows, n) = vectors.dims2()?;
        let each = self.values.dim(1)?;
        let at = places(each).unpack(&self.at, fields)?.affine(1.0, -(within.start as f64))?;
        // Outliers with another index are written to one additional element, which is removed at the end.
        let inside = (at.ge(0f32)?.to_dtype(DType::F32)? * at.lt(n as f32)?.to_dtype(DType::F32)?)?;
        let outside = inside.affine(-(n as f64), n as f64)?;
        let at = ((at * inside)? + outside)?.to_dtype(DType::U32)?;
        let room = Tensor::cat(&[vectors.clone(), Tensor::zeros((rows, 1), DType::F32, vectors.device())?], 1)?;
        Ok(room.scatter(&at, &self.values.to_dtype(DType::F32)?, 1)?.narrow(1, 0, n)?.contiguous()?)
    }
}

impl Block {
    /// Codes `rows` `(Hkv, n, D)`.
    fn new(setting: &Setting, rows: &Tensor, rank: usize, fields: &Fields) -> Result<Self, CacheError> {
        let (heads, n, d) = rows.dims3()?;
        let (outliers, bulk) = Outliers::take(setting, &setting.vectors(rows)?, fields)?;
        let group = setting.group(n);
        let affine = Affine::plain(setting.bits);
        let (zeros, steps, codes) = match setting.kind {
            Kind::Key => {
                let bulk = setting.tokens(&bulk, n)?.reshape((heads, n / group, group, d))?;
                let (zero, step, codes) = quantise(affine, &bulk, 2)?;
                (zero.squeeze(2)?, step.squeeze(2)?, codes.reshape((heads * n, d))?)
            }
            Kind::Value => {
                let (zero, step, codes) = quantise(affine, &bulk.reshape((n, heads * d / group, group))?, 2)?;
                let codes = setting.tokens(&codes.reshape((n, heads * d))?, n)?.reshape((heads * n, d))?;
                (zero.squeeze(2)?, step.squeeze(2)?, codes)
            }
        };
        let packing = Packing { bits: setting.bits, count: d };
        let codes = packing.pack(&codes, fields)?.reshape((heads, n, packing.bytes()))?;
        let mut block = Self { tokens: n, codes, zeros, steps, outliers, low_rank: None };
        let residual = (rows - block.bulk(setting, 0..n, fields)?)?;
        block.low_rank = low_rank(&residual, rank)?;
        Ok(block)
    }

    /// Restores the quantised bulk and the outliers of `tokens`, `(Hkv, n, D)`.
    fn bulk(&self, setting: &Setting, tokens: Range<usize>, fields: &Fields) -> Result<Tensor, CacheError> {
        let (heads, d, n) = (setting.heads, setting.head_dim, tokens.len());
        let packing = Packing { bits: setting.bits, count: d };
        let group = setting.group(self.tokens);
        let restored = match setting.kind {
            Kind::Key => {
                // Whole groups are restored. Then the requested tokens are cut out.
                let groups = tokens.start / group..tokens.end.div_ceil(group);
                let whole = groups.len() * group;
                let codes = self.codes.narrow(1, groups.start * group, whole)?.contiguous()?;
                let codes = packing.unpack(&codes.reshape((heads * whole, packing.bytes()))?, fields)?;
                let codes = codes.reshape((heads, groups.len(), group, d))?;
                let scale = |x: &Tensor| x.narrow(1, groups.start, groups.len())?.contiguous()?.unsqueeze(2);
                let all = restore(&codes, &scale(&self.zeros)?, &scale(&self.steps)?)?.reshape((heads, whole, d))?;
                all.narrow(1, tokens.start - groups.start * group, n)?.contiguous()?
            }
            Kind::Value => {
                let codes = self.codes.narrow(1, tokens.start, n)?.contiguous()?;
                let codes = packing.unpack(&codes.reshape((heads * n, packing.bytes()))?, fields)?;
                let codes = setting.vectors(&codes.reshape((heads, n, d))?)?.reshape((n, heads * d / group, group))?;
                let scale = |x: &Tensor| x.narrow(0, tokens.start, n)?.contiguous()?.unsqueeze(2);
                let all = restore(&codes, &scale(&self.zeros)?, &scale(&self.steps)?)?;
                setting.tokens(&all.reshape((n, heads * d))?, n)?
            }
        };
        let Some(outliers) = &self.outliers else { return Ok(restored) };
        let vectors = setting.vectors(&restored)?;
        let put = match setting.kind {
            Kind::Key => {
                let within = tokens.start + outliers.dropped..tokens.end + outliers.dropped;
                outliers.put(&vectors, within, fields)?
            }
            Kind::Value => {
                let rows = |x: &Tensor| x.narrow(0, tokens.start, n)?.contiguous();
                let own = Outliers { at: rows(&outliers.at)?, values: rows(&outliers.values)?, dropped: 0 };
                own.put(&vectors, 0..heads * d, fields)?
            }
        };
        setting.tokens(&put, n)
    }

    /// Restores `tokens`, `(Hkv, n, D)`.
    fn restore(&self, setting: &Setting, tokens: Range<usize>, fields: &Fields) -> Result<Tensor, CacheError> {
        let bulk = self.bulk(setting, tokens.clone(), fields)?;
        let Some((a, b)) = &self.low_rank else { return Ok(bulk) };
        let a = a.narrow(1, tokens.start, tokens.len())?.contiguous()?.to_dtype(DType::F32)?;
        Ok((bulk + a.matmul(&b.to_dtype(DType::F32)?.transpose(1, 2)?.contiguous()?)?)?)
    }

    /// Drops the first `dropped` tokens. They are whole groups, and fewer than all tokens. The memory of dropped key
    /// outliers is not freed.
    fn drop_first(&mut self, setting: &Setting, dropped: usize) -> Result<(), CacheError> {
        let (left, group) = (self.tokens - dropped, setting.group(self.tokens));
        self.codes = self.codes.narrow(1, dropped, left)?.copy()?;
        match setting.kind {
            // If a group is the whole block, its scales stay.
            Kind::Key if setting.group.is_none() => {}
            Kind::Key => {
                let (from, groups) = (dropped / group, left / group);
                self.zeros = self.zeros.narrow(1, from, groups)?.copy()?;
                self.steps = self.steps.narrow(1, from, groups)?.copy()?;
            }
            Kind::Value => {
                self.zeros = self.zeros.narrow(0, dropped, left)?.copy()?;
                self.steps = self.steps.narrow(0, dropped, left)?.copy()?;
            }
        }
        if let Some(outliers) = &mut self.outliers {
            match setting.kind {
                Kind::Key => outliers.dropped += dropped,
                Kind::Value => {
                    outliers.at = outliers.at.narrow(0, dropped, left)?.copy()?;
                    outliers.values = outliers.values.narrow(0, dropped, left)?.copy()?;
                }
            }
        }
        if let Some((a, _)) = &mut self.low_rank {
            *a = a.narrow(1, dropped, left)?.copy()?;
        }
        self.tokens = left;
        Ok(())
    }

    fn footprint(&self) -> Footprint {
        let bytes = |x: &Tensor| x.elem_count() * x.dtype().size_in_bytes();
        Footprint {
            packed: bytes(&self.codes),
            scales: bytes(&self.zeros) + bytes(&self.steps),
            outliers: self.outliers.as_ref().map_or(0, |o| bytes(&o.at) + bytes(&o.values)),
            low_rank: self.low_rank.as_ref().map_or(0, |(a, b)| bytes(a) + bytes(b)),
            ..Footprint::default()
        }
    }
}

/// The indices of the `count` largest elements of each row of `x`, `(rows, count)` u32. Each step takes the largest of
/// the remaining elements and hides it.
fn most(x: &Tensor, count: usize) -> Result<Tensor, CacheError> {
    let mut left = x.clone();
    let hidden = Tensor::full(f32::MIN, (x.dim(0)?, 1), x.device())?;
    let mut found = Vec::with_capacity(count);
    for _ in 0..count {
        let index = left.argmax_keepdim(D::Minus1)?;
        left = left.scatter(&index, &hidden, 1)?;
        found.push(index);
    }
    Ok(Tensor::cat(&found, 1)?)
}

/// The best factors of rank at most `rank` for each head's `residual` `(Hkv, n, D)`. The iteration starts with the same
/// random numbers as on the host.
fn low_rank(residual: &Tensor, rank: usize) -> Result<Option<(Tensor, Tensor)>, CacheError> {
    let (heads, n, d) = residual.dims3()?;
    let rank = rank.min(n).min(d);
    if rank == 0 {
        return Ok(None);
    }
    let mut b = starts(heads, d, rank, residual.device())?;
    let (mut a, transposed) = (b.clone(), residual.transpose(1, 2)?.contiguous()?);
    for iteration in 0..ITERATIONS {
        let last = iteration + 1 == ITERATIONS;
        if last {
            b = orthonormal(&b)?;
        }
        a = residual.matmul(&b)?;
        if last {
            a = orthonormal(&a)?;
        }
        b = transposed.matmul(&a)?;
    }
    Ok(Some((saturated_half(&a)?, saturated_half(&b)?)))
}

fn starts(heads: usize, d: usize, rank: usize, device: &Device) -> Result<Tensor, CacheError> {
    let numbers: Vec<f32> = (0..heads as u64).flat_map(|head| start(d * rank, head)).collect();
    Ok(Tensor::from_vec(numbers, (heads, d, rank), device)?)
}

/// Gram-Schmidt on the columns of `x` `(Hkv, n, rank)`. Columns that depend on earlier columns become zero.
fn orthonormal(x: &Tensor) -> Result<Tensor, CacheError> {
    let rank = x.dim(2)?;
    let mut done: Vec<Tensor> = Vec::with_capacity(rank);
    for c in 0..rank {
        let column = x.narrow(2, c, 1)?.contiguous()?;
        let before = column.sqr()?.sum_keepdim(1)?.sqrt()?;
        let mut v = column;
        for _ in 0..2 {
            for u in &done {
                let along = (&v * u)?.sum_keepdim(1)?;
                v = (v - u.broadcast_mul(&along)?)?;
            }
        }
        let norm = v.sqr()?.sum_keepdim(1)?.sqrt()?;
        // In f32, about 1e-7 of a dependent column remains.
        let kept = norm.gt(&before.affine(1e-5, 0.0)?)?.to_dtype(DType::F32)?;
        let factor = (kept / norm.maximum(f32::MIN_POSITIVE)?)?;
        done.push(v.broadcast_mul(&factor)?);
    }
    Ok(Tensor::cat(&done, 2)?)
}

impl TensorTokens for Blocks {
    fn append(&mut self, rows: &Tensor, prompt: bool) -> Result<(), CacheError> {
        let n = rows.dim(1)?;
        let rank = if prompt { self.setting.prompt_rank } else { self.setting.decode_rank };
        for first in (0..n).step_by(MOST) {
            let rows = rows.narrow(1, first, MOST.min(n - first))?.contiguous()?;
            self.blocks.push(Block::new(&self.setting, &rows, rank, &self.fields)?);
        }
        Ok(())
    }

    fn restore(&self, tokens: Range<usize>) -> Result<Tensor, CacheError> {
        let (mut start, mut parts) = (0, Vec::new());
        for block in &self.blocks {
            let own = tokens.start.max(start)..tokens.end.min(start + block.tokens);
            if !own.is_empty() {
                parts.push(block.restore(&self.setting, own.start - start..own.end - start, &self.fields)?);
            }
            start += block.tokens;
        }
        if parts.len() == 1 { Ok(parts.swap_remove(0)) } else { Ok(Tensor::cat(&parts, 1)?.contiguous()?) }
    }

    fn footprint(&self) -> Footprint {
        let tables = size_of::<Self>() + self.blocks.capacity() * size_of::<Block>();
        self.blocks.iter().map(Block::footprint).sum::<Footprint>() + Footprint { tables, ..Footprint::default() }
    }

    fn keeps_blocks(&self) -> bool {
        true
    }

    fn drop_step(&self) -> usize {
        self.setting.group.unwrap_or(1)
    }

    fn drop_first(&mut self, mut tokens: usize) -> Result<(), CacheError> {
        while let Some(block) = self.blocks.first_mut().filter(|_| tokens > 0) {
            if block.tokens <= tokens {
                tokens -= block.tokens;
                self.blocks.remove(0);
            } else {
                block.drop_first(&self.setting, tokens)?;
                tokens = 0;
            }
        }
        Ok(())
    }
}
