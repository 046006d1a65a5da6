//! The sparse codes of one sequence as tensors: [`kvcsr_codec::Codes`] for rows of equal length.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, DType, Tensor};
use kvcsr_codec::{CodeLayout, CoefficientFormat, Footprint, index_bits};

use super::e4m3::E4m3;
use super::growing::Growing;
use super::packed::{Fields, Packing};
use super::pursuit::TensorAtoms;
use super::{Uploads, saturated_half};
use crate::CacheError;

/// Bits of an index that is not packed.
const INDEX_BITS: usize = 16;

/// How rows of codes are stored. It is the same for all sequences.
#[derive(Clone)]
pub(crate) struct CodeShape {
    layout: CodeLayout,
    /// The number of codes per token and head.
    chunks: usize,
    /// The number of atoms per code.
    sparsity: usize,
    /// How the indices of a token are packed, over all its chunks.
    packing: Packing,
    fields: Arc<Fields>,
    e4m3: Option<Arc<E4m3>>,
}

impl CodeShape {
    /// A shape with `chunks` codes per token, of `sparsity` atoms each. Indices refer to one of `atoms` atoms.
    pub(crate) fn new(
        layout: CodeLayout,
        chunks: usize,
        sparsity: usize,
        atoms: usize,
        uploads: &mut Uploads,
    ) -> Result<Self, CacheError> {
        let bits = match layout {
            CodeLayout::Paper | CodeLayout::Bytes => INDEX_BITS,
            CodeLayout::Packed(_) => index_bits(atoms),
        };
        let eight = matches!(layout, CodeLayout::Bytes | CodeLayout::Packed(CoefficientFormat::Fp8));
        let e4m3 = if eight { Some(uploads.e4m3()?) } else { None };
        let packing = Packing { bits, count: chunks * sparsity };
        Ok(Self { layout, chunks, sparsity, packing, fields: uploads.fields()?, e4m3 })
    }

    /// The packing of integer coefficients, and the largest integer. `None` if coefficients are not integers.
    fn integers(&self) -> Option<(Packing, f64)> {
        let CodeLayout::Packed(format) = self.layout else { return None };
        (format.scale_bits() > 0).then(|| {
            let bits = format.bits();
            (Packing { bits, ..self.packing }, f64::from((1u32 << (bits - 1)) - 1))
        })
    }
}

/// The codes of one sequence's keys or values, over all heads.
pub(crate) struct TensorCodes {
    shape: CodeShape,
    /// `(Hkv, tokens, bytes)` u8. Zero bytes per token for packed codes over a dictionary of one atom.
    indices: Growing,
    /// `(Hkv, tokens, chunks s)` in f16, or as bytes.
    coefficients: Growing,
    /// `(Hkv, tokens, chunks)` f16, only for integer coefficients.
    scales: Growing,
}

impl TensorCodes {
    pub(crate) fn new(shape: CodeShape) -> Self {
        let (indices, coefficients, scales) = Default::default();
        Self { shape, indices, coefficients, scales }
    }

    /// Adds the codes of `(heads, n)` tokens: indices u32 and coefficients f32, `(heads n chunks, s)` each.
    pub(crate) fn push(
        &mut self,
        indices: &Tensor,
        coefficients: &Tensor,
        (heads, n): (usize, usize),
    ) -> Result<(), CacheError> {
        let CodeShape { packing, chunks, fields, e4m3, .. } = &self.shape;
        let indices = indices.to_dtype(DType::F32)?.reshape((heads * n, packing.count))?;
        self.indices.push(&packing.pack(&indices, fields)?.reshape((heads, n, packing.bytes()))?)?;
        let of_tokens = (heads, n, packing.count);
        if let Some(e4m3) = e4m3 {
            return self.coefficients.push(&e4m3.encode(coefficients)?.reshape(of_tokens)?);
        }
        let Some((packing, most)) = self.shape.integers() else {
            return self.coefficients.push(&saturated_half(coefficients)?.reshape(of_tokens)?);
        };
        let scale = saturated_half(&coefficients.abs()?.max_keepdim(D::Minus1)?.affine(1.0 / most, 0.0)?)?;
        let restored = scale.to_dtype(DType::F32)?;
        let inverse = (restored.eq(0f32)?.to_dtype(DType::F32)? + &restored)?.recip()?;
        let codes = coefficients.broadcast_mul(&inverse)?.round()?.clamp(-most as f32, most as f32)?;
        let bytes = packing.pack(&codes.affine(1.0, most + 1.0)?.reshape((heads * n, packing.count))?, fields)?;
        self.coefficients.push(&bytes.reshape((heads, n, packing.bytes()))?)?;
        self.scales.push(&scale.reshape((heads, n, *chunks))?)
    }

    /// The codes of `tokens`: indices u32 and coefficients f32, `(Hkv n, chunks s)` each.
    pub(crate) fn rows(&self, tokens: Range<usize>) -> Result<(Tensor, Tensor), CacheError> {
        let CodeShape { packing, chunks, sparsity, fields, e4m3, .. } = &self.shape;
        let stored = self.coefficients.rows(tokens.clone())?;
        let (heads, n, each) = stored.dims3()?;
        let flat = |x: &Tensor, width: usize| x.contiguous()?.reshape((heads * n, width));
        let indices = if packing.bytes() == 0 {
            Tensor::zeros((heads * n, packing.count), DType::U32, stored.device())?
        } else {
            let bytes = self.indices.rows(tokens.clone())?;
            packing.unpack(&flat(&bytes, packing.bytes())?, fields)?.to_dtype(DType::U32)?
        };
        let stored = flat(&stored, each)?;
        if let Some(e4m3) = e4m3 {
            return Ok((indices, e4m3.decode(&stored)?));
        }
        let Some((packing, most)) = self.shape.integers() else { return Ok((indices, stored.to_dtype(DType::F32)?)) };
        let codes = packing.unpack(&stored, fields)?.affine(1.0, -(most + 1.0))?;
        let scales = flat(&self.scales.rows(tokens)?, *chunks)?.to_dtype(DType::F32)?.unsqueeze(2)?;
        let coefficients = codes.reshape((heads * n, *chunks, *sparsity))?.broadcast_mul(&scales)?;
        Ok((indices, coefficients.reshape((heads * n, packing.count))?))
    }

    /// The vectors that the codes of `tokens` restore to, `(Hkv, n, D)`.
    pub(crate) fn restore(&self, atoms: &TensorAtoms, tokens: Range<usize>) -> Result<Tensor, CacheError> {
        let CodeShape { chunks, sparsity, .. } = self.shape;
        let n = tokens.len();
        let (indices, coefficients) = self.rows(tokens)?;
        let heads = indices.dim(0)? / n;
        let rows = (heads * n * chunks, sparsity);
        let restored = atoms.restore(&indices.reshape(rows)?, &coefficients.reshape(rows)?)?;
        Ok(restored.reshape((heads, n, chunks * atoms.width()))?)
    }

    /// Products of a few `queries` with the keys of `tokens`. One kernel restores, rotates and scores a key. It works
    /// on a CUDA device, for whole keys over offline atoms.
    #[cfg(feature = "cuda")]
    pub(crate) fn scores(
        &self,
        atoms: &TensorAtoms,
        queries: &Tensor,
        tokens: Range<usize>,
        rotary: Option<(&crate::Rotary, usize)>,
    ) -> Result<Option<Tensor>, CacheError> {
        /// Up to this number of queries per head, the kernel's own products are as fast as a matrix product.
        const FEW: usize = 16;
        /// The largest number of channels that the kernel supports.
        const WIDEST: usize = 256;
        let CodeShape { chunks, sparsity, .. } = self.shape;
        let Some(table) = atoms.one_table().filter(|_| queries.device().is_cuda() && chunks == 1) else {
            return Ok(None);
        };
        if queries.dim(1)? > FEW || atoms.width() > WIDEST {
            return Ok(None);
        }
        let n = tokens.len();
        let (indices, coefficients) = self.rows(tokens)?;
        let shape = (indices.dim(0)? / n, n, sparsity);
        let (indices, coefficients) = (indices.reshape(shape)?, coefficients.reshape(shape)?);
        let tables = match rotary {
            Some((rotary, first)) => rotary.tables(first, n)?,
            None => None,
        };
        let tables = tables.as_ref().map(|(cos, sin)| (cos, sin));
        Ok(Some(super::fused::scores(&indices, &coefficients, table, tables, queries)?))
    }

    pub(crate) fn footprint(&self) -> Footprint {
        Footprint {
            indices: self.indices.bytes(),
            coefficients: self.coefficients.bytes(),
            scales: self.scales.bytes(),
            ..Footprint::default()
        }
    }

    pub(crate) fn drop_first(&mut self, tokens: usize) -> Result<(), CacheError> {
        self.indices.drop_first(tokens)?;
        self.coefficients.drop_first(tokens)?;
        self.scales.drop_first(tokens)
    }
}
