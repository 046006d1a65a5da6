//! CSR's codes as tensors: see [`crate::tensor`].

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use kvcsr_codec::Footprint;

use super::coder::Coder;
use super::online;
use crate::CacheError;
use crate::tensor::codes::{CodeShape, TensorCodes};
use crate::tensor::pursuit::TensorAtoms;
use crate::tensor::{Stores, TensorPrompt, TensorTokens, Uploads, read_to_host};

/// Makes the stores of one layer's keys or values. `None` for rows of different lengths (`+stop`).
pub(super) fn stores(coder: &Arc<Coder>, uploads: &mut Uploads) -> Result<Option<Stores>, CacheError> {
    if coder.stop.is_some() {
        return Ok(None);
    }
    let dictionary = coder.encoder.dictionary();
    let atoms = TensorAtoms::new(uploads.table(dictionary.atoms(), dictionary.len(), dictionary.width())?);
    let shape = CodeShape::new(coder.layout, coder.chunks, coder.sparsity, coder.atoms, uploads)?;
    let coder = coder.clone();
    Ok(Some(Arc::new(move || {
        let codes = TensorCodes::new(shape.clone());
        Ok(Box::new(CsrTensors { coder: coder.clone(), atoms: atoms.clone(), codes, online: None }))
    })))
}

/// The codes of one sequence, with its own atoms.
struct CsrTensors {
    coder: Arc<Coder>,
    atoms: TensorAtoms,
    codes: TensorCodes,
    /// The number of sampled atoms, and all online atoms `(n, width)` in f16.
    online: Option<(usize, Tensor)>,
}

/// Codes `rows` `(n, width)` over `atoms`.
fn encode(coder: &Coder, atoms: &TensorAtoms, rows: &Tensor) -> Result<(Tensor, Tensor), CacheError> {
    let (indices, coefficients) = atoms.pursue(rows, coder.sparsity)?;
    if !coder.refit {
        return Ok((indices, coefficients));
    }
    let coefficients = atoms.refit(rows, &indices, &coefficients)?;
    Ok((indices, coefficients))
}

/// `‖x - x̂‖² / ‖x‖²` of each row over `atoms`. It is 0 for a zero row.
fn residuals(coder: &Coder, atoms: &TensorAtoms, vectors: &Tensor) -> Result<Vec<f64>, CacheError> {
    let (indices, coefficients) = encode(coder, atoms, vectors)?;
    let left = (vectors - atoms.restore(&indices, &coefficients)?)?.sqr()?.sum(1)?;
    let (left, whole) = (read_to_host(&left)?, read_to_host(&vectors.sqr()?.sum(1)?)?);
    let share = |(left, whole): (f32, f32)| if whole > 0.0 { f64::from(left) / f64::from(whole) } else { 0.0 };
    Ok(left.into_iter().zip(whole).map(share).collect())
}

/// The directions of the vectors `which`, in the form in which atoms are stored. A zero vector has no direction and is
/// left out.
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

impl CsrTensors {
    /// The vectors of a prompt `(Hkv, T, D)`, in token order: `(T Hkv chunks, width)`.
    fn vectors(&self, rows: &Tensor) -> Result<Tensor, CacheError> {
        let (heads, n, _) = rows.dims3()?;
        let (chunks, width) = (self.coder.chunks, self.atoms.width());
        Ok(rows.transpose(0, 1)?.contiguous()?.reshape((n * heads * chunks, width))?)
    }
}

impl TensorTokens for CsrTensors {
    fn see_prompt(&mut self, prompt: &TensorPrompt<'_>) -> Result<(), CacheError> {
        let Some(part) = self.coder.online else { return Ok(()) };
        let rows = prompt.of(self.coder.kind);
        let vectors = self.vectors(rows)?;
        let (coder, offline) = (&self.coder, self.atoms.with_online(None));
        let chosen = online::choose(&part, coder.heads, coder.heads * coder.chunks, rows.dim(1)?, |sampled| {
            residuals(coder, &offline.with_online(directions(&vectors, sampled)?), &vectors)
        })?;
        let sampled = directions(&vectors, &chosen.sampled)?;
        let guard = directions(&vectors, &chosen.guard)?;
        let count = sampled.as_ref().map_or(0, |atoms| atoms.dims()[0]);
        let parts: Vec<Tensor> = [sampled, guard].into_iter().flatten().collect();
        let all = if parts.is_empty() { None } else { Some(Tensor::cat(&parts, 0)?) };
        self.atoms = offline.with_online(all.clone());
        self.online = all.map(|all| (count, all));
        Ok(())
    }

    fn append(&mut self, rows: &Tensor, _prompt: bool) -> Result<(), CacheError> {
        let (heads, n, _) = rows.dims3()?;
        let rows = rows.reshape((heads * n * self.coder.chunks, self.atoms.width()))?;
        let (indices, coefficients) = encode(&self.coder, &self.atoms, &rows)?;
        self.codes.push(&indices, &coefficients, (heads, n))
    }

    fn restore(&self, tokens: Range<usize>) -> Result<Tensor, CacheError> {
        self.codes.restore(&self.atoms, tokens)
    }

    #[cfg(feature = "cuda")]
    fn scores(
        &self,
        queries: &Tensor,
        tokens: Range<usize>,
        rotary: Option<(&crate::Rotary, usize)>,
    ) -> Result<Option<Tensor>, CacheError> {
        self.codes.scores(&self.atoms, queries, tokens, rotary)
    }

    /// Sums in atom space if this is less work: it adds up weights by atom, and then sums the atoms. It does not do so
    /// on a GPU. There, candle's scatter adds the tokens of a row one after the other on one thread, while restoring
    /// uses the whole GPU.
    fn sum(&self, weights: &Tensor, tokens: Range<usize>) -> Result<Tensor, CacheError> {
        let Coder { sparsity: s, chunks, .. } = *self.coder;
        let (heads, rows, n) = weights.dims3()?;
        let (atoms, width) = (self.atoms.len(), self.atoms.width());
        let in_atom_space = rows * (n * s + atoms * width) < n * width * (s + rows);
        if !in_atom_space || !weights.device().is_cpu() {
            return Ok(weights.contiguous()?.matmul(&self.restore(tokens)?)?);
        }
        let (indices, coefficients) = self.codes.rows(tokens)?;
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
        let bytes = |atoms: usize| atoms * self.atoms.width() * DType::F16.size_in_bytes();
        let (sampled, all) = self.online.as_ref().map_or((0, 0), |(sampled, all)| (*sampled, all.dims()[0]));
        self.codes.footprint()
            + Footprint {
                online_atoms: bytes(sampled),
                guard: bytes(all - sampled),
                tables: size_of::<Self>(),
                ..Footprint::default()
            }
    }

    fn drop_first(&mut self, tokens: usize) -> Result<(), CacheError> {
        self.codes.drop_first(tokens)
    }
}
