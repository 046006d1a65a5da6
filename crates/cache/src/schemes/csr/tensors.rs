//! CSR's codes as tensors: see [`crate::tensor`].

use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, DType, Tensor};
use kvcsr_codec::{CodeLayout, CoefficientFormat, Footprint, index_bits};

use super::coder::Coder;
use super::online;
use crate::CacheError;
use crate::tensor::growing::Growing;
use crate::tensor::packed::{Fields, Packing};
use crate::tensor::pursuit::TensorAtoms;
use crate::tensor::{Stores, TensorPrompt, TensorTokens, Uploads, read_to_host, saturated_half};

/// Bits of an index in the paper's layout.
const PAPER_INDEX_BITS: usize = 16;

/// What makes the stores of one layer's keys or values, where the method's parts have them: rows of different lengths (`+stop`),
/// coefficients by least squares (`+refit`) and in fp8 have none.
pub(super) fn stores(coder: &Arc<Coder>, uploads: &mut Uploads) -> Result<Option<Stores>, CacheError> {
    let layout = match coder.layout {
        CodeLayout::Paper => true,
        CodeLayout::Packed(format) => format != CoefficientFormat::Fp8,
        CodeLayout::Bytes => false,
    };
    if coder.stop.is_some() || coder.refit || !layout {
        return Ok(None);
    }
    let dictionary = coder.encoder.dictionary();
    let atoms = TensorAtoms::new(uploads.table(dictionary.atoms(), dictionary.len(), dictionary.width())?);
    let (coder, fields) = (coder.clone(), uploads.fields()?);
    Ok(Some(Arc::new(move || Ok(Box::new(CsrTensors::new(coder.clone(), atoms.clone(), fields.clone()))))))
}

/// Codes of one sequence, with atoms of its own.
struct CsrTensors {
    coder: Arc<Coder>,
    atoms: TensorAtoms,
    fields: Arc<Fields>,
    /// How a token's indices are packed, over all its chunks.
    packing: Packing,
    /// `(Hkv, tokens, bytes)` u8
    indices: Growing,
    /// `(Hkv, tokens, chunks s)` f16, or bytes of integers.
    coefficients: Growing,
    /// `(Hkv, tokens, chunks)` f16, of integers.
    scales: Growing,
    /// `(n, width)` f16: how many were sampled, and all of them.
    online: Option<(usize, Tensor)>,
}

impl CsrTensors {
    fn new(coder: Arc<Coder>, atoms: TensorAtoms, fields: Arc<Fields>) -> Self {
        let bits = match coder.layout {
            CodeLayout::Paper | CodeLayout::Bytes => PAPER_INDEX_BITS,
            CodeLayout::Packed(_) => index_bits(coder.atoms),
        };
        let packing = Packing { bits, count: coder.chunks * coder.sparsity };
        let (indices, coefficients, scales) = Default::default();
        Self { coder, atoms, fields, packing, indices, coefficients, scales, online: None }
    }

    /// The packing of integer coefficients, and the largest integer.
    fn integers(&self) -> Option<(Packing, f64)> {
        let CodeLayout::Packed(format) = self.coder.layout else { return None };
        (format.scale_bits() > 0).then(|| {
            let bits = format.bits();
            (Packing { bits, ..self.packing }, f64::from((1u32 << (bits - 1)) - 1))
        })
    }

    /// Codes of `tokens`: indices u32 and coefficients f32, both `(Hkv n, chunks s)`.
    fn codes(&self, tokens: Range<usize>) -> Result<(Tensor, Tensor), CacheError> {
        let bytes = self.indices.rows(tokens.clone())?;
        let (heads, n, each) = bytes.dims3()?;
        let rows = |x: &Tensor, width: usize| x.contiguous()?.reshape((heads * n, width));
        let indices = self.packing.unpack(&rows(&bytes, each)?, &self.fields)?.to_dtype(DType::U32)?;
        let stored = self.coefficients.rows(tokens.clone())?;
        let stored = rows(&stored, stored.dim(2)?)?;
        let coefficients = match self.integers() {
            None => stored.to_dtype(DType::F32)?,
            Some((packing, most)) => {
                let (chunks, s) = (self.coder.chunks, self.coder.sparsity);
                let codes = packing.unpack(&stored, &self.fields)?.affine(1.0, -(most + 1.0))?;
                let scales = rows(&self.scales.rows(tokens)?, chunks)?.to_dtype(DType::F32)?.unsqueeze(2)?;
                codes.reshape((heads * n, chunks, s))?.broadcast_mul(&scales)?.reshape((heads * n, chunks * s))?
            }
        };
        Ok((indices, coefficients))
    }

    /// Adds integer coefficients `(rows, s)` of `(heads, n)` tokens.
    fn push_integers(
        &mut self,
        c: &Tensor,
        packing: Packing,
        most: f64,
        (heads, n): (usize, usize),
    ) -> Result<(), CacheError> {
        let chunks = self.coder.chunks;
        let scale = saturated_half(&c.abs()?.max_keepdim(D::Minus1)?.affine(1.0 / most, 0.0)?)?;
        let restored = scale.to_dtype(DType::F32)?;
        let inverse = (restored.eq(0f32)?.to_dtype(DType::F32)? + &restored)?.recip()?;
        let codes = c.broadcast_mul(&inverse)?.round()?.clamp(-most as f32, most as f32)?.affine(1.0, most + 1.0)?;
        let bytes = packing.pack(&codes.reshape((heads * n, packing.count))?, &self.fields)?;
        self.coefficients.push(&bytes.reshape((heads, n, packing.bytes()))?)?;
        self.scales.push(&scale.reshape((heads, n, chunks))?)
    }

    /// The vectors of a prompt `(Hkv, T, D)` in token order, `(T Hkv chunks, width)`.
    fn vectors(&self, rows: &Tensor) -> Result<Tensor, CacheError> {
        let (heads, n, _) = rows.dims3()?;
        let (chunks, width) = (self.coder.chunks, self.atoms.width());
        Ok(rows.transpose(0, 1)?.contiguous()?.reshape((n * heads * chunks, width))?)
    }

    /// The directions of `vectors`, a zero vector having none, as atoms are stored.
    fn directions(vectors: &Tensor, which: &[usize]) -> Result<Option<Tensor>, CacheError> {
        let at: Vec<u32> = which.iter().map(|&i| i as u32).collect();
        if at.is_empty() {
            return Ok(None);
        }
        let chosen = vectors.index_select(&Tensor::new(at, vectors.device())?, 0)?;
        let norms = chosen.sqr()?.sum_keepdim(1)?.sqrt()?;
        let lengths = read_to_host(&norms)?;
        let kept: Vec<u32> = (0..lengths.len() as u32).filter(|&i| lengths[i as usize] > 0.0).collect();
        if kept.is_empty() {
            return Ok(None);
        }
        let kept = Tensor::new(kept, vectors.device())?;
        let (chosen, norms) = (chosen.index_select(&kept, 0)?, norms.index_select(&kept, 0)?);
        Ok(Some(chosen.broadcast_div(&norms)?.to_dtype(DType::F16)?))
    }
}

/// `‖x - x̂‖² / ‖x‖²` of each row over `atoms`, 0 of a zero row.
fn residuals(atoms: &TensorAtoms, vectors: &Tensor, sparsity: usize) -> Result<Vec<f64>, CacheError> {
    let (indices, coefficients) = atoms.pursue(vectors, sparsity)?;
    let left = (vectors - atoms.restore(&indices, &coefficients)?)?.sqr()?.sum(1)?;
    let (left, whole) = (read_to_host(&left)?, read_to_host(&vectors.sqr()?.sum(1)?)?);
    let share = |(left, whole): (f32, f32)| if whole > 0.0 { f64::from(left) / f64::from(whole) } else { 0.0 };
    Ok(left.into_iter().zip(whole).map(share).collect())
}

impl TensorTokens for CsrTensors {
    fn see_prompt(&mut self, prompt: &TensorPrompt<'_>) -> Result<(), CacheError> {
        let Some(part) = self.coder.online else { return Ok(()) };
        let rows = prompt.of(self.coder.kind);
        let vectors = self.vectors(rows)?;
        let of_token = self.coder.heads * self.coder.chunks;
        let (offline, sparsity) = (self.atoms.with_online(None), self.coder.sparsity);
        let chosen = online::choose(&part, self.coder.heads, of_token, rows.dim(1)?, |sampled| {
            let atoms = offline.with_online(Self::directions(&vectors, sampled)?);
            residuals(&atoms, &vectors, sparsity)
        })?;
        let sampled = Self::directions(&vectors, &chosen.sampled)?;
        let guard = Self::directions(&vectors, &chosen.guard)?;
        let count = sampled.as_ref().map_or(0, |atoms| atoms.dims()[0]);
        let parts: Vec<Tensor> = [sampled, guard].into_iter().flatten().collect();
        let all = if parts.is_empty() { None } else { Some(Tensor::cat(&parts, 0)?) };
        self.atoms = offline.with_online(all.clone());
        self.online = all.map(|all| (count, all));
        Ok(())
    }

    fn append(&mut self, rows: &Tensor, _prompt: bool) -> Result<(), CacheError> {
        let (heads, n, _) = rows.dims3()?;
        let Coder { sparsity, chunks, .. } = *self.coder;
        let rows = rows.reshape((heads * n * chunks, self.atoms.width()))?;
        let (indices, coefficients) = self.atoms.pursue(&rows, sparsity)?;
        let indices = indices.to_dtype(DType::F32)?.reshape((heads * n, self.packing.count))?;
        let bytes = self.packing.pack(&indices, &self.fields)?;
        // The paper's one atom of a dictionary of one atom needs no bits; two bytes are kept all the same.
        self.indices.push(&bytes.reshape((heads, n, self.packing.bytes()))?)?;
        match self.integers() {
            None => self.coefficients.push(&saturated_half(&coefficients)?.reshape((heads, n, self.packing.count))?),
            Some((packing, most)) => self.push_integers(&coefficients, packing, most, (heads, n)),
        }
    }

    fn restore(&self, tokens: Range<usize>) -> Result<Tensor, CacheError> {
        let Coder { sparsity, chunks, heads, .. } = *self.coder;
        let n = tokens.len();
        let (indices, coefficients) = self.codes(tokens)?;
        let rows = (heads * n * chunks, sparsity);
        let restored = self.atoms.restore(&indices.reshape(rows)?, &coefficients.reshape(rows)?)?;
        Ok(restored.reshape((heads, n, chunks * self.atoms.width()))?)
    }

    /// On a CUDA device, for a few queries of whole keys over offline atoms: a key is restored, rotated and scored in one kernel.
    #[cfg(feature = "cuda")]
    fn scores(
        &self,
        queries: &Tensor,
        tokens: Range<usize>,
        rotary: Option<(&crate::Rotary, usize)>,
    ) -> Result<Option<Tensor>, CacheError> {
        /// Queries of a head up to which the kernel's own products are as fast as a matrix product.
        const FEW: usize = 16;
        let Coder { sparsity, chunks, heads, .. } = *self.coder;
        let Some(atoms) = self.atoms.one_table().filter(|_| queries.device().is_cuda() && chunks == 1) else {
            return Ok(None);
        };
        if queries.dim(1)? > FEW || self.atoms.width() > 256 {
            return Ok(None);
        }
        let n = tokens.len();
        let (indices, coefficients) = self.codes(tokens)?;
        let shape = (heads, n, sparsity);
        let (indices, coefficients) = (indices.reshape(shape)?, coefficients.reshape(shape)?);
        let tables = match rotary {
            Some((rotary, first)) => rotary.tables(first, n)?,
            None => None,
        };
        let tables = tables.as_ref().map(|(cos, sin)| (cos, sin));
        Ok(Some(crate::tensor::fused_scores(&indices, &coefficients, atoms, tables, queries)?))
    }

    /// In atom space where that is less work: weights are added up by atom, then atoms are summed.
    fn sum(&self, weights: &Tensor, tokens: Range<usize>) -> Result<Tensor, CacheError> {
        let Coder { sparsity: s, chunks, .. } = *self.coder;
        let (heads, rows, n) = weights.dims3()?;
        let (atoms, width) = (self.atoms.len(), self.atoms.width());
        if rows * (n * s + atoms * width) >= n * width * (s + rows) {
            return Ok(weights.contiguous()?.matmul(&self.restore(tokens)?)?);
        }
        let (indices, coefficients) = self.codes(tokens)?;
        let (indices, coefficients) =
            (indices.reshape((heads, n, chunks, s))?, coefficients.reshape((heads, n, chunks, s))?);
        let mut sums = Vec::with_capacity(chunks);
        for chunk in 0..chunks {
            let of = |x: &Tensor| x.narrow(2, chunk, 1)?.squeeze(2)?.unsqueeze(1)?.broadcast_as((heads, rows, n, s));
            let weighted = weights.unsqueeze(3)?.broadcast_mul(&of(&coefficients)?)?;
            let flat = (heads * rows, n * s);
            let by_atom = Tensor::zeros((heads * rows, atoms), DType::F32, weights.device())?.scatter_add(
                &of(&indices)?.contiguous()?.reshape(flat)?,
                &weighted.contiguous()?.reshape(flat)?,
                1,
            )?;
            sums.push(self.atoms.sums(&by_atom)?.reshape((heads, rows, width))?);
        }
        if chunks == 1 { Ok(sums.swap_remove(0)) } else { Ok(Tensor::cat(&sums, 2)?) }
    }

    fn footprint(&self) -> Footprint {
        let bytes = |atoms: usize| atoms * self.atoms.width() * 2;
        let (sampled, all) = self.online.as_ref().map_or((0, 0), |(sampled, all)| (*sampled, all.dims()[0]));
        Footprint {
            indices: self.indices.bytes(),
            coefficients: self.coefficients.bytes(),
            scales: self.scales.bytes(),
            online_atoms: bytes(sampled),
            guard: bytes(all - sampled),
            tables: size_of::<Self>(),
            ..Footprint::default()
        }
    }

    fn drop_first(&mut self, tokens: usize) -> Result<(), CacheError> {
        self.indices.drop_first(tokens)?;
        self.coefficients.drop_first(tokens)?;
        self.scales.drop_first(tokens)
    }
}
