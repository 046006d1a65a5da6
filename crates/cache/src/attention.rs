//! Exact causal attention over dense keys and values, in tiles of queries. The whole score matrix is never in memory.

mod blocks;

use candle_core::{Device, Tensor};

use crate::{Bias, CacheError, Padding, Pattern, Reach};

/// Queries in one tile. It limits the score tile to `H · QUERY_TILE · S` numbers. The keys that causality or a sliding
/// window hides are skipped tile by tile.
const QUERY_TILE: usize = 128;

/// Computes `softmax(q kᵀ · scale + bias + mask) v`. The mask is causal, and `pattern` adds to it.
///
/// `q` is `(B, H, T, D)` in f32, `k` and `v` are `(B·Hkv, S, D)` in f32, f16 or bf16, all after position embedding. The
/// `T` queries belong to the last `T` of the `S` tokens. `H` is a multiple of `Hkv`, and the query heads `g·H/Hkv ..`
/// share key-value head `g`. `k` and `v` may be the front part of larger buffers (`narrow`). They are not copied.
/// Returns `(B, H, T, D)`.
///
/// # Errors
/// If the shapes or the pattern do not fit each other, or if a tensor operation fails.
pub fn causal(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, pattern: &Pattern<'_>) -> Result<Tensor, CacheError> {
    let (b, h, _, _) = q.dims4()?;
    check_shapes(q, k, v)?;
    pattern.check(b, h)?;
    let q = q.contiguous()?;
    if blocks::fits(&q, k, v) {
        blocks::attend(&q, k, v, scale, pattern)
    } else {
        by_operations(&q, &k.to_dtype(q.dtype())?, &v.to_dtype(q.dtype())?, scale, pattern)
    }
}

fn check_shapes(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(), CacheError> {
    let (b, h, t, d) = q.dims4()?;
    let (heads, s, _) = k.dims3()?;
    if b == 0 || heads == 0 || heads % b != 0 || h % (heads / b) != 0 {
        let expected = format!("({b}, a multiple of key heads, T, D), with {heads} key heads over the batch");
        return Err(CacheError::Shape { tensor: "q", expected, found: q.dims().to_vec() });
    }
    if k.dims() != [heads, s, d] || s < t {
        let expected = format!("(B·Hkv, at least {t}, {d}), as q");
        return Err(CacheError::Shape { tensor: "k", expected, found: k.dims().to_vec() });
    }
    if v.dims() != k.dims() {
        return Err(CacheError::Shape {
            tensor: "v",
            expected: format!("{:?}, as k", k.dims()),
            found: v.dims().to_vec(),
        });
    }
    Ok(())
}

/// Attention by tensor operations, for the devices and dtypes that [`blocks`] does not support.
fn by_operations(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, pattern: &Pattern<'_>) -> Result<Tensor, CacheError> {
    let (b, h, t, d) = q.dims4()?;
    let (heads, s, _) = k.dims3()?;
    let group = b * h / heads;
    let start = s - t;
    let q = (q * scale)?.reshape((heads, group, t, d))?;
    let mut tiles = Vec::with_capacity(t.div_ceil(QUERY_TILE));
    for first in (0..t).step_by(QUERY_TILE) {
        let rows = QUERY_TILE.min(t - first);
        let tile = Tile { rows, end: start + first + rows, batch: b };
        let from = tile.first_key(pattern.reach);
        let keys = tile.end - from;
        let q_tile = q.narrow(2, first, rows)?.contiguous()?.reshape((heads, group * rows, d))?;
        let mut scores = q_tile.matmul(&k.narrow(1, from, keys)?.t()?)?;
        if let Some(added) = tile.added(from, pattern, q.device())? {
            scores = scores.reshape((b, h, rows, keys))?.broadcast_add(&added.to_dtype(scores.dtype())?)?.reshape((
                heads,
                group * rows,
                keys,
            ))?;
        }
        let weights = candle_nn::ops::softmax_last_dim(&scores)?;
        let out = weights.matmul(&v.narrow(1, from, keys)?)?;
        tiles.push(out.reshape((heads, group, rows, d))?);
    }
    let out = if tiles.len() == 1 { tiles.swap_remove(0) } else { Tensor::cat(&tiles, 2)? };
    Ok(out.reshape((b, h, t, d))?)
}

/// The queries of the tokens `end - rows .. end`, for all rows of a batch.
pub(crate) struct Tile {
    pub(crate) rows: usize,
    pub(crate) end: usize,
    pub(crate) batch: usize,
}

impl Tile {
    /// The first key that any query of the tile sees.
    pub(crate) fn first_key(&self, reach: Reach) -> usize {
        reach.first_seen(self.end - self.rows)
    }

    /// What is added to the scores of the keys `from .. end`, as a tensor that broadcasts to `(B, H, rows, keys)`.
    /// `None` if nothing is added.
    pub(crate) fn added(
        &self,
        from: usize,
        pattern: &Pattern<'_>,
        device: &Device,
    ) -> Result<Option<Tensor>, CacheError> {
        let hides = self.rows > 1 || (0..self.batch).any(|row| pattern.padding.of(row) > from);
        let mask = if hides { Some(self.mask(from, pattern, device)?) } else { None };
        let Bias::Alibi(alibi) = pattern.bias else { return Ok(mask) };
        let queries = self.end - self.rows..self.end;
        let distances: Vec<f32> = queries.flat_map(|i| (from..self.end).map(move |j| j as f32 - i as f32)).collect();
        let distances = Tensor::from_vec(distances, (self.rows, self.end - from), device)?;
        let bias = Tensor::new(alibi.slopes(), device)?.reshape(((), 1, 1))?.broadcast_mul(&distances)?;
        Ok(Some(match mask {
            Some(mask) => mask.broadcast_add(&bias)?,
            None => bias,
        }))
    }

    /// The mask: 0 where a query sees a key, else -inf. Its shape is `(rows, keys)`, or `(B, 1, rows, keys)` if the
    /// batch is padded.
    ///
    /// Every token sees itself, also a padding token. A row with only -inf would give NaN, and a NaN value would also
    /// spoil the results of queries that do not see it.
    fn mask(&self, from: usize, pattern: &Pattern<'_>, device: &Device) -> Result<Tensor, CacheError> {
        let keys = self.end - from;
        let reach = match pattern.reach {
            Reach::Full => usize::MAX,
            Reach::Sliding(tokens) => tokens.max(1),
        };
        let padded = pattern.padding != Padding::None;
        let planes = if padded { self.batch } else { 1 };
        let mut mask = vec![f32::NEG_INFINITY; planes * self.rows * keys];
        for (row, plane) in mask.chunks_exact_mut(self.rows * keys).enumerate() {
            let text = pattern.padding.of(row);
            for (query, seen) in (self.end - self.rows..self.end).zip(plane.chunks_exact_mut(keys)) {
                let first = text.max((query + 1).saturating_sub(reach)).clamp(from, query);
                seen[first - from..=query - from].fill(0.0);
            }
        }
        Ok(if padded {
            Tensor::from_vec(mask, (planes, 1, self.rows, keys), device)?
        } else {
            Tensor::from_vec(mask, (self.rows, keys), device)?
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Alibi;

    /// Attention computed directly from the definition in f64, one number at a time.
    fn by_definition(
        q: &[f32],
        k: &[f32],
        v: &[f32],
        shape: [usize; 6],
        scale: f64,
        pattern: &Pattern<'_>,
    ) -> Vec<f32> {
        let [b, h, h_kv, t, s, d] = shape;
        let mut out = vec![0f32; b * h * t * d];
        for bi in 0..b {
            for hi in 0..h {
                let kv = (bi * h_kv + hi / (h / h_kv)) * s * d;
                for ti in 0..t {
                    let at = ((bi * h + hi) * t + ti) * d;
                    let visible = s - t + ti + 1;
                    let scores: Vec<f64> = (0..visible)
                        .map(|j| {
                            let far = matches!(pattern.reach, Reach::Sliding(w) if visible - j > w);
                            if far || (j < pattern.padding.of(bi) && j + 1 < visible) {
                                return 0.0;
                            }
                            let bias = match pattern.bias {
                                Bias::None => 0.0,
                                Bias::Alibi(alibi) => f64::from(alibi.slopes()[hi]) * (visible - 1 - j) as f64,
                            };
                            let dot: f64 = (0..d).map(|c| f64::from(q[at + c]) * f64::from(k[kv + j * d + c])).sum();
                            (dot * scale - bias).exp()
                        })
                        .collect();
                    let sum: f64 = scores.iter().sum();
                    for c in 0..d {
                        out[at + c] =
                            (0..visible).map(|j| scores[j] / sum * f64::from(v[kv + j * d + c])).sum::<f64>() as f32;
                    }
                }
            }
        }
        out
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        let fits = [&[2usize, 6, 3, 8][..], &[4, 5, 8], &[4, 5, 8]];
        let wrong: [(&str, usize, &[usize]); 7] = [
            ("q", 0, &[2, 5, 3, 8]),
            ("q", 0, &[3, 6, 3, 8]),
            ("k", 0, &[2, 6, 3, 4]),
            ("k", 0, &[2, 6, 6, 8]),
            ("k", 1, &[4, 5, 4]),
            ("v", 2, &[2, 5, 8]),
            ("v", 2, &[4, 4, 8]),
        ];
        let causal = |[q, k, v]: [&[usize]; 3]| causal(&zeros(q), &zeros(k), &zeros(v), 1.0, &Pattern::default());
        assert!(causal(fits).is_ok());
        for (named, at, shape) in wrong {
            let mut shapes = fits;
            shapes[at] = shape;
            match causal(shapes) {
                Err(CacheError::Shape { tensor, found, .. }) => {
                    assert_eq!(
                        (tensor, &found[..]),
                        (named, shapes[["q", "k", "v"].iter().position(|x| *x == named).unwrap()])
                    );
                }
                other => panic!("{shapes:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn equals_the_definition_for_tiles_groups_and_batches() {
        for (b, h, h_kv, t, s, d) in [
            (1, 1, 1, 1, 1, 4),
            (2, 6, 2, 5, 9, 8),
            (1, 3, 1, 300, 300, 4),
            (2, 4, 4, 130, 200, 4),
            (2, 6, 2, 1, 700, 4),
        ] {
            let tensor = |heads: usize, tokens: usize, salt: usize| {
                let n = b * heads * tokens * d;
                let x: Vec<f32> = (0..n).map(|i| (((i * 7919 + salt * 104_729) % 1000) as f32 / 500.0) - 1.0).collect();
                (Tensor::from_vec(x.clone(), (b, heads, tokens, d), &Device::Cpu).unwrap(), x)
            };
            let ((q, qv), (k, kv), (v, vv)) = (tensor(h, t, 1), tensor(h_kv, s, 2), tensor(h_kv, s, 3));
            let (k, v) = (k.flatten(0, 1).unwrap(), v.flatten(0, 1).unwrap());
            let (alibi, padding) = (Alibi::new(h), [s / 3, 0]);
            let plain = Pattern::default();
            let sliding = |tokens| Pattern { reach: Reach::Sliding(tokens), ..plain };
            let left = Pattern { padding: Padding::Left(&padding[..b]), ..plain };
            let linear = Pattern { bias: Bias::Alibi(&alibi), ..plain };
            let all = Pattern { reach: Reach::Sliding(7), bias: linear.bias, padding: left.padding };
            for pattern in [plain, sliding(1), sliding(6), sliding(150), left, linear, all] {
                let want = by_definition(&qv, &kv, &vv, [b, h, h_kv, t, s, d], 0.7, &pattern);
                assert!(blocks::fits(&q, &k, &v));
                for path in [causal, by_operations] {
                    let got = path(&q, &k, &v, 0.7, &pattern).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                    assert!(worst < 2e-6, "{:?} {pattern:?}: {worst}", (b, h, h_kv, t, s, d));
                }
            }
        }
    }

    #[test]
    fn keys_and_values_of_16_bits_are_attended_as_what_they_are() {
        let noise = |shape: (usize, usize, usize)| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
        for dtype in [candle_core::DType::F16, candle_core::DType::BF16] {
            let [k, v] = [noise((2, 700, 8)), noise((2, 700, 8))].map(|x| x.to_dtype(dtype).unwrap());
            for tokens in [1, 300] {
                let q = noise((4, tokens, 8)).unsqueeze(0).unwrap();
                assert!(blocks::fits(&q, &k, &v));
                let wide = |x: &Tensor| x.to_dtype(q.dtype()).unwrap();
                let stored = causal(&q, &k, &v, 0.3, &Pattern::default()).unwrap();
                let expected = causal(&q, &wide(&k), &wide(&v), 0.3, &Pattern::default()).unwrap();
                let numbers = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(numbers(stored), numbers(expected));
            }
        }
    }

    #[test]
    fn the_front_of_a_larger_buffer_is_attended_as_a_copy_of_it() {
        let noise = |shape: (usize, usize, usize)| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
        let (k, v) = (noise((2, 900, 8)), noise((2, 900, 8)));
        for tokens in [1, 3, 600] {
            let q = noise((4, tokens, 8)).unsqueeze(0).unwrap();
            let (k, v) = (k.narrow(1, 0, 650).unwrap(), v.narrow(1, 0, 650).unwrap());
            let front = causal(&q, &k, &v, 0.3, &Pattern::default()).unwrap();
            let (k, v) = (k.contiguous().unwrap(), v.contiguous().unwrap());
            let copy = causal(&q, &k, &v, 0.3, &Pattern::default()).unwrap();
            let numbers = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(numbers(front), numbers(copy));
        }
    }
}
