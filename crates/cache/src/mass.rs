//! A wrapper that sums how much attention each token gets. These sums are weights for the codebooks of calibrated
//! methods.

use std::sync::{Arc, Mutex};

use candle_core::Tensor;
use kvcsr_codec::Footprint;

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

/// Any cache, and the attention that each token gets. It records one text, which must be read in one call.
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
        if b != 1 || cx.start != 0 {
            let expected = "(1, H, T, D), one whole text".to_owned();
            return Err(CacheError::Shape { tensor: "queries", expected, found: q.dims().to_vec() });
        }
        let q = (cx.rotary.apply(q, 0)? * cx.scale)?.reshape((heads, h / heads, t, d))?;
        let k = cx.rotary.apply(k, 0)?.squeeze(0)?.contiguous()?;
        let (mut linear, mut squared) = (vec![0f32; heads * t], vec![0f32; heads * t]);
        for first in (0..t).step_by(QUERY_TILE) {
            let rows = QUERY_TILE.min(t - first);
            let seen = first + rows;
            let tile = q.narrow(2, first, rows)?.contiguous()?.reshape((heads, h / heads * rows, d))?;
            let scores = tile.matmul(&k.narrow(1, 0, seen)?.t()?)?.reshape((heads, h / heads, rows, seen))?;
            let hidden: Vec<f32> = (first..seen)
                .flat_map(|i| (0..seen).map(move |j| if j > i { f32::NEG_INFINITY } else { 0.0 }))
                .collect();
            let mask = Tensor::from_vec(hidden, (1, 1, rows, seen), q.device())?;
            let weights = candle_nn::ops::softmax_last_dim(&scores.broadcast_add(&mask)?)?;
            for (sums, weights) in [(&mut linear, weights.clone()), (&mut squared, weights.sqr()?)] {
                let part = weights.sum(2)?.sum(1)?.to_vec2::<f32>()?;
                for (sums, part) in sums.chunks_exact_mut(t).zip(part) {
                    sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
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
    use crate::{DenseCache, Pattern};

    #[test]
    fn weights_add_up_to_one_per_query() {
        let (mut cache, mass) = AttentionMass::new(DenseCache::new(DType::F32));
        let (heads, t, d) = (2, 150, 4);
        let noise = |n: usize, salt: usize| (0..n).map(|i| ((i * 7919 + salt) % 101) as f32 / 50.0 - 1.0).collect();
        let q = Tensor::from_vec(noise(4 * t * d, 3), (1, 4, t, d), &Device::Cpu).unwrap();
        let k = Tensor::from_vec(noise(heads * t * d, 5), (1, heads, t, d), &Device::Cpu).unwrap();
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
    }
}
