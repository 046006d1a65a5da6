//! The online part: atoms taken from the prompt itself (paper section 4).

use kvcsr_codec::{Atoms, CodecError, OnlineAtoms, relative_residuals};

use super::coder::Coder;
use super::options::{OnlinePart, Sampler};

/// The vectors of one sequence, stored as `(Hkv, T, chunks, width)`, and numbered in token order `(T, Hkv, chunks)`.
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

    /// The row of vector `i`.
    fn row(&self, i: usize) -> usize {
        let (token, rest) = (i / (self.heads * self.chunks), i % (self.heads * self.chunks));
        (rest / self.chunks * self.tokens + token) * self.chunks + rest % self.chunks
    }

    fn vector(&self, i: usize) -> &'a [f32] {
        &self.rows[self.row(i) * self.width..][..self.width]
    }

    /// `||x - x^||² / ||x||²` of each vector, over the offline atoms and `online`.
    fn residuals(&self, coder: &Coder, online: &OnlineAtoms) -> Result<Vec<f64>, CodecError> {
        let atoms = Atoms::new(coder.encoder.dictionary(), online)?;
        let (mut indices, mut coefficients) =
            (vec![0; self.len() * coder.sparsity], vec![0.0; self.len() * coder.sparsity]);
        coder.encode(atoms, self.rows, &mut indices, &mut coefficients)?;
        let by_row = relative_residuals(atoms, self.rows, &indices, &coefficients)?;
        Ok((0..self.len()).map(|i| by_row[self.row(i)]).collect())
    }
}

/// The vectors of a prompt that become online atoms, by number in token order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) sampled: Vec<usize>,
    pub(super) guard: Vec<usize>,
}

/// Chooses among the vectors of a prompt with `tokens` tokens and `of_token` vectors per token. The sampled vectors are
/// chosen first. Then the Guard takes the vectors with the largest relative residual over all atoms so far; of equal
/// ones, the earliest. `residuals` computes the residual of each vector over the offline atoms and the atoms made of
/// the vectors that it is given. If the prompt has fewer vectors than the part has space for, all of them are chosen,
/// each once.
pub(super) fn choose<E>(
    part: &OnlinePart,
    heads: usize,
    of_token: usize,
    tokens: usize,
    mut residuals: impl FnMut(&[usize]) -> Result<Vec<f64>, E>,
) -> Result<Chosen, E> {
    let count = tokens * of_token;
    let wanted = (part.sampled * heads).min(count);
    let sampled: Vec<usize> = match part.sampler {
        Sampler::Reverse => (0..tokens).rev().flat_map(|t| t * of_token..(t + 1) * of_token).take(wanted).collect(),
        Sampler::Strided => (0..wanted).map(|i| i * count / wanted).collect(),
        Sampler::Uniform => {
            let mut order: Vec<usize> = (0..count).collect();
            order.sort_by_cached_key(|&i| (scrambled(i as u64), i));
            order.truncate(wanted);
            order
        }
        Sampler::Worst if wanted > 0 => worst(&residuals(&[])?, wanted, &[]),
        Sampler::Worst => Vec::new(),
    };
    let guard = if part.guard > 0 && sampled.len() < count {
        worst(&residuals(&sampled)?, part.guard * heads, &sampled)
    } else {
        Vec::new()
    };
    Ok(Chosen { sampled, guard })
}

/// The online atoms of one sequence. `rows` are the vectors of its prompt, `(Hkv, T, D)`. See [`choose`].
pub(super) fn fill(coder: &Coder, part: &OnlinePart, rows: &[f32], heads: usize) -> Result<OnlineAtoms, CodecError> {
    let width = coder.encoder.dictionary().width();
    let tokens = rows.len() / (heads * coder.chunks * width).max(1);
    let prompt = Prompt { rows, heads, tokens, chunks: coder.chunks, width };
    let sample = |which: &[usize]| {
        let mut online = OnlineAtoms::new(width);
        online.sample(which.iter().map(|&i| prompt.vector(i)));
        online
    };
    let chosen =
        choose(part, heads, heads * coder.chunks, tokens, |sampled| prompt.residuals(coder, &sample(sampled)))?;
    let mut online = sample(&chosen.sampled);
    online.guard(chosen.guard.iter().map(|&i| prompt.vector(i)));
    Ok(online)
}

/// The `wanted` vectors with the largest residuals that are not in `taken`, in order of falling residual.
fn worst(residuals: &[f64], wanted: usize, taken: &[usize]) -> Vec<usize> {
    let mut free = vec![true; residuals.len()];
    taken.iter().for_each(|&i| free[i] = false);
    let mut order: Vec<usize> = (0..residuals.len()).filter(|&i| free[i]).collect();
    order.sort_by(|&a, &b| residuals[b].total_cmp(&residuals[a]).then(a.cmp(&b)));
    order.truncate(wanted);
    order
}

/// The finaliser of SplitMix64. Sorting by it gives a fixed pseudo-random order.
fn scrambled(i: u64) -> u64 {
    let mut z = i.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use kvcsr_codec::{CodeLayout, Dictionary, Encoder, Kind};

    use super::super::options::Prefill;
    use super::*;

    const WIDTH: usize = 16;

    /// One atom per vector, over a dictionary of two atoms: the first two channels.
    fn coder() -> Coder {
        let atoms: Vec<f32> = (0..2 * WIDTH).map(|i| if i % (WIDTH + 1) == 0 { 1.0 } else { 0.0 }).collect();
        Coder {
            kind: Kind::Key,
            heads: 2,
            encoder: Arc::new(Encoder::new(Arc::new(Dictionary::new(WIDTH, atoms).unwrap()))),
            sparsity: 1,
            chunks: 1,
            layout: CodeLayout::Paper,
            refit: false,
            stop: None,
            online: None,
            atoms: 64,
        }
    }

    fn part(sampled: usize, guard: usize) -> OnlinePart {
        OnlinePart { sampled, guard, sampler: Sampler::Reverse, prefill: Prefill::Exact }
    }

    /// Rows `(Hkv, T, WIDTH)` of `heads` heads. `vector` fills in the vector of a head and token.
    fn rows(heads: usize, tokens: usize, vector: impl Fn(usize, usize, &mut [f32])) -> Vec<f32> {
        let mut rows = vec![0f32; heads * tokens * WIDTH];
        for (i, row) in rows.chunks_exact_mut(WIDTH).enumerate() {
            vector(i / tokens, i % tokens, row);
        }
        rows
    }

    fn atom(online: &OnlineAtoms, i: usize) -> Vec<f32> {
        online.atom(i).iter().map(|x| x.to_f32()).collect()
    }

    #[test]
    fn the_reverse_sampler_takes_the_last_tokens_the_last_first() {
        // Token t of head 0 points along channel t + 2, and of head 1 along channel t + 9. So every vector has its own
        // channel.
        let rows = rows(2, 7, |head, t, row| row[2 + 7 * head + t] = 3.0);
        let online = fill(&coder(), &part(2, 0), &rows, 2).unwrap();
        // The vectors of two tokens: tokens 6 and 5, each with its heads in order.
        let channels: Vec<usize> =
            (0..online.len()).map(|i| atom(&online, i).iter().position(|&x| x == 1.0).unwrap()).collect();
        assert_eq!(channels, [8, 15, 7, 14]);
    }

    #[test]
    fn the_guard_takes_the_largest_relative_residuals() {
        // The relative residual over the offline atoms grows with a vector's share along channel 5 + its number. Its
        // length has no effect.
        let shares = [0.1f32, 0.9, 0.3, 0.95, 0.2, 0.0];
        let rows = rows(1, 6, |_, t, row| {
            let length = [1.0, 1.0, 100.0, 1.0, 1.0, 1.0][t];
            row[0] = length * (1.0 - shares[t] * shares[t]).sqrt();
            row[5 + t] = length * shares[t];
        });
        // The last token has no residual, and is sampled. Of the others, the Guard takes the two worst, the worst
        // first.
        let online = fill(&coder(), &part(1, 2), &rows, 1).unwrap();
        assert_eq!(online.len(), 3);
        assert_eq!(atom(&online, 0)[0], 1.0);
        for (i, t) in [(1, 3), (2, 1)] {
            assert!((atom(&online, i)[5 + t] - shares[t]).abs() < 1e-3, "guard atom {i} is not token {t}");
        }
    }
}
