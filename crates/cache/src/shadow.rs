//! Two caches side by side: the first decides what the model sees, and the second is only measured.

use candle_core::Tensor;
use kvcsr_codec::Footprint;

use crate::{AttendCx, CacheError, LayerCache, Padding, Rotary};

/// Feeds the same tokens to two caches. Returns the outputs of the first, and sums the errors of the second.
///
/// If the first cache is exact and the second one is compressed, every layer gets the inputs of the exact model. So
/// each layer's error contains no error of an earlier layer.
pub struct Shadow<A, B> {
    shown: A,
    watched: B,
    error: f64,
    energy: f64,
}

impl<A: LayerCache, B: LayerCache> Shadow<A, B> {
    /// A pair of caches. Both must hold the same tokens, or none.
    pub fn new(shown: A, watched: B) -> Self {
        Self { shown, watched, error: 0.0, energy: 0.0 }
    }

    /// The attention-output error so far, `sum ||a - b||² / sum ||a||²` over tokens and heads. It is 0 before the first
    /// token.
    pub fn relative_error(&self) -> f64 {
        if self.energy > 0.0 { self.error / self.energy } else { 0.0 }
    }

    /// The cache whose outputs are not returned.
    pub fn watched(&self) -> &B {
        &self.watched
    }
}

impl LayerCache for Box<dyn LayerCache> {
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        self.as_mut().attend(q, k, v, cx)
    }

    fn absorb(&mut self, k: &Tensor, v: &Tensor, rotary: &Rotary) -> Result<(), CacheError> {
        self.as_mut().absorb(k, v, rotary)
    }

    fn absorb_padded(
        &mut self,
        k: &Tensor,
        v: &Tensor,
        rotary: &Rotary,
        padding: Padding<'_>,
    ) -> Result<(), CacheError> {
        self.as_mut().absorb_padded(k, v, rotary, padding)
    }

    fn len(&self) -> usize {
        self.as_ref().len()
    }

    fn scored_keys(&self, rotary: &Rotary) -> Result<Option<Tensor>, CacheError> {
        self.as_ref().scored_keys(rotary)
    }

    fn footprint(&self) -> Footprint {
        self.as_ref().footprint()
    }

    fn clear(&mut self) {
        self.as_mut().clear();
    }
}

impl<A: LayerCache, B: LayerCache> LayerCache for Shadow<A, B> {
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        let shown = self.shown.attend(q, k, v, cx)?;
        let watched = self.watched.attend(q, k, v, cx)?;
        let sum = |x: &Tensor| -> Result<f64, CacheError> {
            Ok(x.to_dtype(candle_core::DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?)
        };
        self.error += sum(&(&shown - &watched)?)?;
        self.energy += sum(&shown)?;
        Ok(shown)
    }

    fn absorb(&mut self, k: &Tensor, v: &Tensor, rotary: &Rotary) -> Result<(), CacheError> {
        self.shown.absorb(k, v, rotary)?;
        self.watched.absorb(k, v, rotary)
    }

    fn len(&self) -> usize {
        self.shown.len()
    }

    /// The bytes of both caches.
    fn footprint(&self) -> Footprint {
        [self.shown.footprint(), self.watched.footprint()].into_iter().sum()
    }

    fn clear(&mut self) {
        self.shown.clear();
        self.watched.clear();
        (self.error, self.energy) = (0.0, 0.0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use candle_core::{DType, Device};

    use super::*;
    use crate::conformance::{Inputs, Setting};
    use crate::{DenseCache, Pattern};

    #[test]
    fn the_first_cache_answers_and_the_second_is_measured() {
        let setting = Setting { batch: 1, heads: 2, kv_heads: 1, head_dim: 16 };
        let x = Inputs::random(setting, 9).unwrap();
        let rotary = Rotary::new(16, 1e4, 16, &Device::Cpu).unwrap();
        let feed = |cache: &mut dyn LayerCache| x.feed(cache, &rotary, Pattern::default(), 0..9).unwrap();
        let (exact, rounded) = (feed(&mut DenseCache::new(DType::F32)), feed(&mut DenseCache::new(DType::BF16)));
        let mut both = Shadow::new(DenseCache::new(DType::F32), DenseCache::new(DType::BF16));
        assert_eq!(both.relative_error(), 0.0);
        let out = feed(&mut both);
        let sum = |x: &Tensor| f64::from(x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        assert_eq!(sum(&(&out - &exact).unwrap()), 0.0);
        let expected = sum(&(&exact - &rounded).unwrap()) / sum(&exact);
        let off = (both.relative_error() / expected - 1.0).abs();
        assert!(expected > 0.0 && off < 1e-4, "{} {expected}", both.relative_error());
        both.clear();
        assert_eq!((both.len(), both.watched().len(), both.relative_error()), (0, 0, 0.0));
    }
}
