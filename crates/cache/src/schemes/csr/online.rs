//! The online part: atoms from the prompt itself (paper section 4).

use kvcsr_codec::{Atoms, CodecError, OnlineAtoms, relative_residuals};

use super::codec::Coder;
use super::options::{OnlinePart, Sampler};

/// Vectors of one sequence, `(Hkv, T, chunks, width)`, by number in token order
/// `(T, Hkv, chunks)`.
struct Prompt<'a> {
    rows: &'a [f32],
    heads: usize,
    tokens: usize,
    chunks: usize,
    width: usize,
}

impl<'a> Prompt<'a> {
    fn len(&self) -> usize {
        self.heads * self.tokens * self.chunks
    }

    /// Row of vector `i`.
    fn row(&self, i: usize) -> usize {
        let (token, rest) = (i / (self.heads * self.chunks), i % (self.heads * self.chunks));
        (rest / self.chunks * self.tokens + token) * self.chunks + rest % self.chunks
    }

    fn vector(&self, i: usize) -> &'a [f32] {
        &self.rows[self.row(i) * self.width..][..self.width]
    }

    /// `||x - x^||² / ||x||²` by vector, over offline atoms and `online`.
    fn residuals(&self, coder: &Coder, online: &OnlineAtoms) -> Result<Vec<f64>, CodecError> {
        let atoms = Atoms::new(coder.encoder.dictionary(), online)?;
        let (mut indices, mut coefficients) =
            (vec![0; self.len() * coder.sparsity], vec![0.0; self.len() * coder.sparsity]);
        coder.encode(atoms, self.rows, &mut indices, &mut coefficients)?;
        let by_row = relative_residuals(atoms, self.rows, &indices, &coefficients)?;
        Ok((0..self.len()).map(|i| by_row[self.row(i)]).collect())
    }
}

/// The online atoms of one sequence: `rows` are its prompt's vectors, `(Hkv, T, D)`. Sampled atoms
/// first; then the Guard, the vectors with the largest relative residual over all atoms before it,
/// the earliest among equals. A prompt with fewer vectors than the part has room for gives them
/// all, each once.
pub(super) fn fill(coder: &Coder, part: &OnlinePart, rows: &[f32], heads: usize) -> Result<OnlineAtoms, CodecError> {
    let width = coder.encoder.dictionary().width();
    let tokens = rows.len() / (heads * coder.chunks * width).max(1);
    let prompt = Prompt { rows, heads, tokens, chunks: coder.chunks, width };
    let mut online = OnlineAtoms::new(width);
    let count = prompt.len();
    let wanted = (part.sampled * heads).min(count);
    let sampled: Vec<usize> = match part.sampler {
        Sampler::Reverse => {
            let vectors_per_token = heads * coder.chunks;
            (0..tokens).rev().flat_map(|t| t * vectors_per_token..(t + 1) * vectors_per_token).take(wanted).collect()
        }
        Sampler::Strided => (0..wanted).map(|i| i * count / wanted).collect(),
        Sampler::Uniform => {
            let mut order: Vec<usize> = (0..count).collect();
            order.sort_by_cached_key(|&i| (scrambled(i as u64), i));
            order.truncate(wanted);
            order
        }
        Sampler::Worst if wanted > 0 => worst(&prompt.residuals(coder, &online)?, wanted, &[]),
        Sampler::Worst => Vec::new(),
    };
    online.sample(sampled.iter().map(|&i| prompt.vector(i)));
    if part.guard > 0 && sampled.len() < count {
        let residuals = prompt.residuals(coder, &online)?;
        let guard = worst(&residuals, part.guard * heads, &sampled);
        online.guard(guard.iter().map(|&i| prompt.vector(i)));
    }
    Ok(online)
}

/// The `wanted` vectors with the largest residuals that are not in `taken`, the largest first.
fn worst(residuals: &[f64], wanted: usize, taken: &[usize]) -> Vec<usize> {
    let mut free = vec![true; residuals.len()];
    taken.iter().for_each(|&i| free[i] = false);
    let mut order: Vec<usize> = (0..residuals.len()).filter(|&i| free[i]).collect();
    order.sort_by(|&a, &b| residuals[b].total_cmp(&residuals[a]).then(a.cmp(&b)));
    order.truncate(wanted);
    order
}

/// The finaliser of SplitMix64: sorting by it is a fixed pseudo-random order.
fn scrambled(i: u64) -> u64 {
    let mut z = i.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
