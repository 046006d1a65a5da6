//! A wrapper that sums how much attention each token gets. These sums are weights for the codebooks of calibrated
//! methods.

use std::sync::{Arc, Mutex};

use candle_core::Tensor;
use kvcsr_codec::Footprint;

use crate::attention::Tile;
use crate::{AttendCx, CacheError, LayerCache, Rotary};

/// Queries scored at a time.
const QUERY_TILE: usize = 128;

/// How much attention the tokens of a text got in one layer, summed over all queries and over the query heads of a
/// group. Each is `(Hkv, T)`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Mass {
    /// Sum of the attention weights.
    pub linear: Vec<f32>,
    /// Sum of their squares.
    pub squared: Vec<f32>,
}

/// Any cache, and the attention that each token gets, with the sliding window and the biases of the layer. It records one text,
/// which must be read in one call and have no padding.
pub struct AttentionMass<C> {
    inner: C,
    mass: Arc<Mutex<Mass>>,
}

impl<C: LayerCache> AttentionMass<C> {
    /// Wraps `inner`, and records the attention in the calls to it. The record is available after the call.
    pub fn new(inner: C) -> (Self, Arc<Mutex<Mass>>) {
        let mass = Arc::new(Mutex::new(Mass::default()));
        (Self { inner, mass: mass.clone() }, mass)
    }

    fn record(&self, q: &Tensor, k: &Tensor, cx: &AttendCx<'_>) -> Result<Mass, CacheError> {
        let (b, h, t, d) = q.dims4()?;
        let heads = k.dim(1)?;
        if b != 1 || cx.start != 0 || cx.pattern.padding.of(0) > 0 {
            let expected = "(1, H, T, D), one whole text without padding".to_owned();
            return Err(CacheError::Shape { tensor: "queries", expected, found: q.dims().to_vec() });
        }
        cx.pattern.check(b, h)?;
        let q = (cx.rotary.apply(q, 0)? * cx.scale)?.reshape((heads, h / heads, t, d))?;
        let k = cx.rotary.apply(k, 0)?.squeeze(0)?.contiguous()?;
        let (mut linear, mut squared) = (vec![0f32; heads * t], vec![0f32; heads * t]);
        for first in (0..t).step_by(QUERY_TILE) {
            let rows = QUERY_TILE.min(t - first);
            let tile = Tile { rows, end: first + rows, batch: b };
            let from = tile.first_key(cx.pattern.reach);
            let keys = tile.end - from;
            let queries = q.narrow(2, first, rows)?.contiguous()?.reshape((heads, h / heads * rows, d))?;
            let mut scores = queries.matmul(&k.narrow(1, from, keys)?.t()?)?.reshape((b, h, rows, keys))?;
            if let Some(added) = tile.added(from, &cx.pattern, q.device())? {
                scores = scores.broadcast_add(&added)?;
            }
            let weights = candle_nn::ops::softmax_last_dim(&scores)?.reshape((heads, h / heads, rows, keys))?;
            for (sums, weights) in [(&mut linear, weights.clone()), (&mut squared, weights.sqr()?)] {
                let part = weights.sum(2)?.sum(1)?.to_vec2::<f32>()?;
                for (sums, part) in sums.chunks_exact_mut(t).zip(part) {
                    sums[from..tile.end].iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
                }
            }
        }
        Ok(Mass { linear, squared })
    }
}

impl<C: LayerCache> LayerCache for AttentionMass<C> {
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        let mass = self.record(q, k, cx)?;
        let out = self.inner.attend(q, k, v, cx)?;
        *self.mass.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = mass;
        Ok(out)
    }

    fn absorb(&mut self, k: &Tensor, v: &Tensor, rotary: &Rotary) -> Result<(), CacheError> {
        self.inner.absorb(k, v, rotary)
    }

    fn len(&self) -> usize {
        self.inner.len()
    }

    fn footprint(&self) -> Footprint {
        self.inner.footprint()
    }

    fn clear(&mut self) {
        self.inner.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{DType, Device};

    use super::*;
    use crate::{Alibi, Bias, DenseCache, Padding, Pattern, Reach};

    /// `(1, heads, T, D)` with its numbers.
    fn noise(shape: (usize, usize, usize, usize), salt: usize) -> (Tensor, Vec<f32>) {
        let (b, heads, t, d) = shape;
        let numbers: Vec<f32> = (0..b * heads * t * d).map(|i| ((i * 7919 + salt) % 101) as f32 / 50.0 - 1.0).collect();
        (Tensor::from_vec(numbers.clone(), shape, &Device::Cpu).unwrap(), numbers)
    }

    #[test]
    fn weights_add_up_to_one_per_query() {
        let (mut cache, mass) = AttentionMass::new(DenseCache::new(DType::F32));
        let (heads, t, d) = (2, 150, 4);
        let ((q, _), (k, _)) = (noise((1, 4, t, d), 3), noise((1, heads, t, d), 5));
        let rotary = Rotary::new(d, 100.0, 200, &Device::Cpu).unwrap();
        let cx = AttendCx { start: 0, rotary: &rotary, scale: 0.5, pattern: Pattern::default() };
        cache.attend(&q, &k, &k, &cx).unwrap();
        let mass = mass.lock().unwrap().clone();
        for head in 0..heads {
            let sum: f32 = mass.linear[head * t..(head + 1) * t].iter().sum();
            assert!((sum - 2.0 * t as f32).abs() < 1e-2, "{sum}");
        }
        assert!(mass.squared.iter().zip(&mass.linear).all(|(s, l)| s <= l));
        // Only the last query sees the last token, in both query heads of the group.
        assert!(mass.linear[t - 1] < 2.0 && mass.linear[t - 1] > 0.0);
        assert!(cache.attend(&q, &k, &k, &cx).is_err(), "a second text");
        let padded = Pattern { padding: Padding::Left(&[1]), ..Pattern::default() };
        let (mut cache, _) = AttentionMass::new(DenseCache::new(DType::F32));
        assert!(cache.attend(&q, &k, &k, &AttendCx { pattern: padded, ..cx }).is_err(), "padding");
    }

    #[test]
    fn windows_and_linear_biases_count_as_attention_has_them() {
        let (heads, kv_heads, t, d) = (4, 2, 150, 4);
        let ((q, queries), (k, keys)) = (noise((1, heads, t, d), 3), noise((1, kv_heads, t, d), 5));
        let (rotary, alibi) = (Rotary::identity(t), Alibi::new(heads));
        for (reach, bias) in [
            (Reach::Full, Bias::None),
            (Reach::Sliding(1), Bias::None),
            (Reach::Sliding(40), Bias::None),
            (Reach::Full, Bias::Alibi(&alibi)),
            (Reach::Sliding(40), Bias::Alibi(&alibi)),
        ] {
            let (mut cache, mass) = AttentionMass::new(DenseCache::new(DType::F32));
            let pattern = Pattern { reach, bias, ..Pattern::default() };
            cache.attend(&q, &k, &k, &AttendCx { start: 0, rotary: &rotary, scale: 0.5, pattern }).unwrap();
            let mut expected = [vec![0f64; kv_heads * t], vec![0f64; kv_heads * t]];
            for head in 0..heads {
                let at = head * kv_heads / heads * t;
                let slope = if bias == Bias::None { 0.0 } else { f64::from(alibi.slopes()[head]) };
                for query in 0..t {
                    let seen = reach.first_seen(query)..query + 1;
                    let score = |key: usize| {
                        let channels = (0..d).map(|c| {
                            f64::from(queries[(head * t + query) * d + c]) * f64::from(keys[(at + key) * d + c])
                        });
                        (0.5 * channels.sum::<f64>() - slope * (query - key) as f64).exp()
                    };
                    let total: f64 = seen.clone().map(score).sum();
                    for key in seen {
                        let weight = score(key) / total;
                        expected[0][at + key] += weight;
                        expected[1][at + key] += weight * weight;
                    }
                }
            }
            let mass = mass.lock().unwrap();
            for (found, expected) in [&mass.linear, &mass.squared].into_iter().zip(&expected) {
                assert_eq!(found.len(), expected.len());
                let close =
                    |(found, expected): (&f32, &f64)| (f64::from(*found) - expected).abs() < 1e-4 * (1.0 + expected);
                assert!(found.iter().zip(expected).all(close), "{pattern:?}");
            }
        }
    }
}
