//! Codes of vectors, and statistics about them.

use std::{path::Path, sync::Arc};

use kvcsr_codec::{
    CodecError, Dictionary, DictionaryGroup, DictionarySet, Encoder, Kind, SparseCodes, reconstruction_error,
};

use super::{Outcome, heldout_vectors};
use crate::records::{CoefficientRow, DictionarySource, PatternRow, ReconstructionRow, UsageRow};

/// Codes of the first `tokens` held-out tokens of one layer, all heads, at the given level. Keys have `level` atoms, values
/// `level / chunks` atoms per chunk.
pub struct Coded {
    /// The layer.
    pub layer: usize,
    /// Keys or values.
    pub kind: Kind,
    /// Number of tokens encoded.
    pub tokens: usize,
    /// Key-value heads.
    pub heads: usize,
    /// Chunks per head vector.
    pub chunks: usize,
    /// The codes. Rows are in the order token, head, chunk.
    pub codes: SparseCodes,
    /// The dictionary of the codes.
    pub dictionary: Arc<Dictionary>,
    /// The encoded vectors, `(rows, width)`.
    pub vectors: Vec<f32>,
}

/// Encodes the first `tokens` held-out tokens of one layer and kind.
///
/// # Errors
/// If the set has no dictionary for the layer, or files are missing.
pub fn code(run: &Path, set: &DictionarySet, layer: usize, kind: Kind, level: usize, tokens: usize) -> Outcome<Coded> {
    code_with(run, set, layer, layer, kind, level, tokens)
}

/// Does the same as [`code`], with the vectors of `layer` and the dictionary of layer `dictionary`.
///
/// # Errors
/// The same as [`code`].
pub fn code_with(
    run: &Path,
    set: &DictionarySet,
    dictionary: usize,
    layer: usize,
    kind: Kind,
    level: usize,
    tokens: usize,
) -> Outcome<Coded> {
    let group =
        set.group(dictionary, kind).ok_or_else(|| format!("layer {dictionary} has no dictionary of {kind}s"))?;
    let (vectors, tokens) = heldout_vectors(run, layer, kind, tokens)?;
    let heads = if tokens == 0 { 1 } else { vectors.len() / (tokens * set.head_dim) };
    Ok(Coded::of(group, layer, heads, level, vectors)?)
}

/// Reconstruction errors of held-out vectors of `layers` at CSR `levels`, over the first `tokens` tokens. Keys have `level` atoms,
/// values `level / chunks` in each chunk. These are the rows of [`crate::figures::SparsityError`] and
/// [`crate::figures::LayerError`]. Levels that are not a multiple of `chunks` are skipped.
///
/// # Errors
/// The same as [`code`].
pub fn reconstruction(
    run: &Path,
    set: &DictionarySet,
    source: DictionarySource,
    layers: impl IntoIterator<Item = usize>,
    levels: &[usize],
    tokens: usize,
) -> Outcome<Vec<ReconstructionRow>> {
    let mut rows = Vec::new();
    for layer in layers {
        for kind in Kind::ALL {
            let group = set.group(layer, kind).ok_or_else(|| format!("layer {layer} has no dictionary of {kind}s"))?;
            let (vectors, _) = heldout_vectors(run, layer, kind, tokens)?;
            let encoder = Encoder::new(group.dictionary.clone());
            for &level in levels.iter().filter(|level| level.is_multiple_of(group.chunks) && **level > 0) {
                let sparsity = level / group.chunks;
                let error = reconstruction_error(&encoder, &vectors, sparsity)?;
                rows.push(ReconstructionRow {
                    layer,
                    kind,
                    dictionary: source,
                    sparsity,
                    chunks: group.chunks,
                    relative: error.relative,
                    mse: error.mse,
                    vectors: error.vectors,
                });
            }
        }
    }
    Ok(rows)
}

impl Coded {
    /// Encodes `vectors`, `(T, Hkv, D)`, of `layer` with the dictionary of `group`.
    ///
    /// # Errors
    /// If they are not complete vectors, or not finite.
    pub fn of(
        group: &DictionaryGroup,
        layer: usize,
        heads: usize,
        level: usize,
        vectors: Vec<f32>,
    ) -> Result<Self, CodecError> {
        let (dictionary, chunks) = (group.dictionary.clone(), group.chunks);
        let mut codes = SparseCodes::new((level / chunks).max(1));
        codes.encode_append(&Encoder::new(dictionary.clone()), &vectors)?;
        let tokens = codes.rows() / (heads * chunks);
        Ok(Self { layer, kind: group.kind, tokens, heads, chunks, codes, dictionary, vectors })
    }

    /// The row of `codes` and `vectors` for the first chunk of a token's head.
    pub fn row(&self, token: usize, head: usize) -> usize {
        (token * self.heads + head) * self.chunks
    }

    /// The vectors decoded from their codes, `(rows, width)`.
    ///
    /// # Errors
    /// Never for codes of this dictionary.
    pub fn restored(&self) -> Result<Vec<f32>, CodecError> {
        let mut restored = vec![0.0; self.vectors.len()];
        self.codes.decode_into(&self.dictionary, 0..self.codes.rows(), &mut restored)?;
        Ok(restored)
    }

    /// Relative squared error of each head: `sum ||x - x^||² / sum ||x||²` over tokens and chunks.
    ///
    /// # Errors
    /// The same as [`Coded::restored`].
    pub fn head_errors(&self) -> Result<Vec<f64>, CodecError> {
        Ok(self.head_sums()?.into_iter().map(ratio).collect())
    }

    /// Relative squared error of all heads together.
    ///
    /// # Errors
    /// The same as [`Coded::restored`].
    pub fn error(&self) -> Result<f64, CodecError> {
        Ok(ratio(self.head_sums()?.into_iter().fold((0.0, 0.0), |all, head| (all.0 + head.0, all.1 + head.1))))
    }

    /// `sum ||x - x^||²` and `sum ||x||²` of each head.
    fn head_sums(&self) -> Result<Vec<(f64, f64)>, CodecError> {
        let (restored, width) = (self.restored()?, self.dictionary.width());
        let mut sums = vec![(0.0, 0.0); self.heads];
        for (at, (&x, &y)) in self.vectors.iter().zip(&restored).enumerate() {
            let (error, energy) = &mut sums[at / width / self.chunks % self.heads];
            *error += (f64::from(x) - f64::from(y)).powi(2);
            *energy += f64::from(x).powi(2);
        }
        Ok(sums)
    }

    /// The atoms with the largest absolute cosine to a token's vector (its first chunk): pairs of atom and cosine, sorted by
    /// decreasing absolute cosine.
    pub fn nearest(&self, token: usize, head: usize, count: usize) -> Vec<(usize, f64)> {
        let width = self.dictionary.width();
        let at = self.row(token, head) * width;
        let x = &self.vectors[at..at + width];
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let length = dot(x, x).sqrt().max(f64::MIN_POSITIVE);
        let mut all: Vec<(usize, f64)> =
            (0..self.dictionary.len()).map(|atom| (atom, dot(x, self.dictionary.atom(atom)) / length)).collect();
        all.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(&b.0)));
        all.truncate(count);
        all
    }

    /// Coefficients divided by the length of the vector that they encode, by the step of matching pursuit that picked them. These
    /// are the rows of [`crate::figures::CoefficientHistogram`].
    pub fn coefficients(&self) -> Vec<CoefficientRow> {
        const BINS: usize = 40;
        let (sparsity, width) = (self.codes.sparsity(), self.dictionary.width());
        let mut counts = vec![vec![0usize; BINS]; sparsity];
        for row in 0..self.codes.rows() {
            let x = &self.vectors[row * width..(row + 1) * width];
            let length = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            if length == 0.0 {
                continue;
            }
            for (step, coefficient) in self.codes.row(row).1.iter().enumerate() {
                let share = f64::from(coefficient.to_f32()) / length;
                // -1..=1 in bins of equal width. Rounding may put a value just outside.
                let bin = ((share + 1.0) / 2.0 * BINS as f64).floor().clamp(0.0, (BINS - 1) as f64);
                counts[step][bin as usize] += 1;
            }
        }
        let mut rows = Vec::with_capacity(sparsity * BINS);
        for (step, counts) in counts.into_iter().enumerate() {
            let all: usize = counts.iter().sum();
            rows.extend(counts.into_iter().enumerate().map(|(bin, count)| CoefficientRow {
                layer: self.layer,
                kind: self.kind,
                step: step + 1,
                low: 2.0 * bin as f64 / BINS as f64 - 1.0,
                high: 2.0 * (bin + 1) as f64 / BINS as f64 - 1.0,
                share: count as f64 / all.max(1) as f64,
            }));
        }
        rows
    }

    /// Mean fraction of a vector's atoms that another layer's vector of the same token, head and chunk also uses. Both must be
    /// encoded with the same dictionary ([`code_with`]).
    pub fn reuse_of(&self, other: &Self) -> f64 {
        let rows = self.codes.rows().min(other.codes.rows());
        mean_shared((0..rows).map(|row| (self.codes.row(row).0, other.codes.row(row).0)))
    }

    /// Mean fraction of a vector's atoms that a vector of the same token and chunk in another head also uses, over all pairs of
    /// heads.
    pub fn reuse_between_heads(&self) -> f64 {
        let mut pairs = Vec::new();
        for token in 0..self.tokens {
            for (a, b) in (0..self.heads).flat_map(|a| (0..self.heads).map(move |b| (a, b))).filter(|(a, b)| a != b) {
                pairs.extend((0..self.chunks).map(|chunk| (self.row(token, a) + chunk, self.row(token, b) + chunk)));
            }
        }
        mean_shared(pairs.into_iter().map(|(a, b)| (self.codes.row(a).0, self.codes.row(b).0)))
    }

    /// The atoms of one head, token by token. These are the rows of [`crate::figures::SparsityPattern`].
    pub fn pattern(&self, head: usize) -> Vec<PatternRow> {
        let mut rows = Vec::new();
        for token in 0..self.tokens {
            for chunk in 0..self.chunks {
                let (atoms, coefficients) = self.codes.row((token * self.heads + head) * self.chunks + chunk);
                rows.extend(atoms.iter().zip(coefficients).map(|(&atom, coefficient)| PatternRow {
                    layer: self.layer,
                    kind: self.kind,
                    head,
                    token,
                    chunk,
                    atom: usize::from(atom),
                    atoms: self.dictionary.len(),
                    coefficient: coefficient.to_f32(),
                }));
            }
        }
        rows
    }

    /// How often each atom is used, over all heads. These are the rows of [`crate::figures::AtomUsage`].
    pub fn usage(&self) -> Vec<UsageRow> {
        let mut uses = vec![0; self.dictionary.len()];
        for &atom in self.codes.indices() {
            uses[usize::from(atom)] += 1;
        }
        let (layer, kind) = (self.layer, self.kind);
        uses.into_iter().enumerate().map(|(atom, uses)| UsageRow { layer, kind, atom, uses }).collect()
    }

    /// The pairs of atoms that occur most often in the same code: both atoms, and the number of vectors. At most `count` pairs.
    pub fn pairs(&self, count: usize) -> Vec<(usize, usize, usize)> {
        let mut seen = std::collections::BTreeMap::<(u16, u16), usize>::new();
        for row in self.codes.indices().chunks(self.codes.sparsity()) {
            let mut atoms = row.to_vec();
            atoms.sort_unstable();
            atoms.dedup();
            for (i, &a) in atoms.iter().enumerate() {
                for &b in &atoms[i + 1..] {
                    *seen.entry((a, b)).or_default() += 1;
                }
            }
        }
        let mut pairs: Vec<_> = seen.into_iter().map(|((a, b), n)| (usize::from(a), usize::from(b), n)).collect();
        pairs.sort_by(|x, y| y.2.cmp(&x.2).then(x.cmp(y)));
        pairs.truncate(count);
        pairs
    }

    /// Mean fraction of a vector's atoms that the vector `lag` tokens earlier, of the same head and chunk, also uses.
    pub fn reuse(&self, lag: usize) -> f64 {
        let step = lag * self.heads * self.chunks;
        mean_shared((step..self.codes.rows()).map(|row| (self.codes.row(row).0, self.codes.row(row - step).0)))
    }
}

/// The error divided by the energy, or 0 if the energy is 0.
fn ratio((error, energy): (f64, f64)) -> f64 {
    if energy > 0.0 { error / energy } else { 0.0 }
}

/// Mean over pairs of the fraction of the first's atoms that are also in the second. 0 without pairs.
fn mean_shared<'c>(pairs: impl Iterator<Item = (&'c [u16], &'c [u16])>) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for (these, those) in pairs {
        sum += these.iter().filter(|atom| those.contains(atom)).count() as f64 / these.len() as f64;
        count += 1;
    }
    if count == 0 { 0.0 } else { sum / f64::from(count) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const H: f32 = std::f32::consts::FRAC_1_SQRT_2;

    /// Codes of `vectors` with two coefficients over the atoms (1, 0), (0, 1), (1, 1) / sqrt 2 and (1, -1) / sqrt 2.
    fn coded(indices: &[u16], coefficients: &[f32], heads: usize, vectors: Vec<f32>) -> Coded {
        let mut codes = SparseCodes::new(2);
        codes.append(indices, coefficients);
        let dictionary = Arc::new(Dictionary::normalised(2, vec![1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, -1.0]).unwrap());
        let tokens = codes.rows() / heads;
        Coded { layer: 3, kind: Kind::Key, tokens, heads, chunks: 1, codes, dictionary, vectors }
    }

    #[test]
    fn patterns_usage_pairs_and_reuse_by_hand() {
        // Two tokens with two heads. Head 0 has the atoms {0, 1}, then {1, 2}. Head 1 has {3, 3}, then {0, 1}.
        let coded = coded(&[0, 1, 3, 3, 1, 2, 0, 1], &[1.0, -2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 2, vec![1.0; 8]);
        let head: Vec<(usize, usize, f32)> =
            coded.pattern(0).iter().map(|r| (r.token, r.atom, r.coefficient)).collect();
        assert_eq!(head, [(0, 0, 1.0), (0, 1, -2.0), (1, 1, 5.0), (1, 2, 6.0)]);
        let uses: Vec<usize> = coded.usage().iter().map(|r| r.uses).collect();
        assert_eq!(uses, [2, 3, 1, 2]);
        assert_eq!(coded.pairs(5), [(0, 1, 2), (1, 2, 1)]);
        // Head 0 shares one of two atoms with the previous token, head 1 shares none.
        assert_eq!(coded.reuse(1), 0.25);
        assert_eq!(coded.reuse(9), 0.0);
        // Token 0: head 0 has {0, 1} and head 1 has {3, 3}, so nothing is shared. Token 1: {1, 2} and {0, 1} share one of two
        // atoms, in both directions.
        assert_eq!(coded.reuse_between_heads(), 0.25);
        assert_eq!(coded.reuse_of(&coded), 1.0);
    }

    #[test]
    fn errors_neighbours_and_coefficients_by_hand() {
        // One token with two heads: (3, 4) is decoded to (3, 0), and (0, 2) is decoded exactly.
        let coded = coded(&[0, 0, 1, 1], &[3.0, 0.0, 1.5, 0.5], 2, vec![3.0, 4.0, 0.0, 2.0]);
        assert_eq!(coded.head_errors().unwrap(), [16.0 / 25.0, 0.0]);
        assert!((coded.error().unwrap() - 16.0 / 29.0).abs() < 1e-12);
        let near = coded.nearest(0, 0, 2);
        assert_eq!((near[0].0, near[1].0), (2, 1));
        assert!((near[0].1 - f64::from(7.0 * H / 5.0)).abs() < 1e-6 && (near[1].1 - 0.8).abs() < 1e-6);
        let rows = coded.coefficients();
        // The first picks are 3 / 5 and 1.5 / 2. The second picks are 0 and 0.25.
        let of = |step, share| {
            let row = rows.iter().find(|r| r.step == step && r.low <= share && share < r.high).unwrap();
            row.share
        };
        assert_eq!((of(1, 0.61), of(1, 0.76), of(2, 0.01), of(2, 0.26)), (0.5, 0.5, 0.5, 0.5));
        let all: f64 = rows.iter().filter(|r| r.step == 1).map(|r| r.share).sum();
        assert!((all - 1.0).abs() < 1e-12);
    }
}
