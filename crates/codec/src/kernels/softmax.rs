//! The streaming softmax, which processes scores as they arrive (Milakov and Gimelshein 2018).

use super::Isa;

/// The state of one query: the sum of its weights `e^(score - reference)` so far.
///
/// The caller keeps sums weighted by these weights, and multiplies them by the factors that the methods return. The
/// reference may be lower than the largest score by at most `slack`. Sums that are expensive to rescale are then rescaled
/// rarely. This does not change the relative rounding error.
///
/// ```
/// use kvcsr_codec::kernels::{Isa, Softmax};
///
/// let (mut softmax, mut weighted) = (Softmax::default(), 0.0);
/// for (mut scores, values) in [([0.0, 1.0], [10.0, 20.0]), ([3.0, 2.0], [30.0, 40.0])] {
///     weighted *= softmax.weigh(Isa::detect(), &mut scores);
///     weighted += scores[0] * values[0] + scores[1] * values[1];
/// }
/// let weights = [0.0f32, 1.0, 3.0, 2.0].map(f32::exp);
/// let expected = (10.0 * weights[0] + 20.0 * weights[1] + 30.0 * weights[2] + 40.0 * weights[3])
///     / weights.iter().sum::<f32>();
/// softmax.normalise(std::slice::from_mut(&mut weighted));
/// assert!((weighted - expected).abs() < 1e-4);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softmax {
    reference: f32,
    sum: f32,
}

impl Default for Softmax {
    fn default() -> Self {
        Self { reference: f32::NEG_INFINITY, sum: 0.0 }
    }
}

impl Softmax {
    /// The number that is subtracted from scores. It is minus infinity before the first score.
    #[must_use]
    pub fn reference(&self) -> f32 {
        self.reference
    }

    /// True before any weight was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sum == 0.0
    }

    /// Turns scores into weights and adds them to the sum. Multiply earlier weighted sums by the result.
    pub fn weigh(&mut self, isa: Isa, scores: &mut [f32]) -> f32 {
        let factor = self.raise(isa.max(scores), 0.0);
        self.sum += isa.exponentials(scores, self.reference);
        factor
    }

    /// Raises the reference to `largest` if `largest` is more than `slack` above it. Multiply earlier weighted sums by the
    /// result. The caller turns scores into weights and adds them with [`Softmax::add`].
    pub fn raise(&mut self, largest: f32, slack: f32) -> f32 {
        if largest <= self.reference + slack || largest.is_nan() {
            return 1.0;
        }
        let factor = (self.reference - largest).exp();
        self.reference = largest;
        self.sum *= factor;
        factor
    }

    /// Adds one weight to the sum.
    pub fn add(&mut self, weight: f32) {
        self.sum += weight;
    }

    /// Joins the parts of one set of scores. Multiply the weighted sums of each part by its [`Softmax::share`] before you add
    /// them up.
    pub fn joined<'a>(parts: impl Iterator<Item = &'a Self> + Clone) -> Self {
        let reference = parts.clone().map(|part| part.reference).fold(f32::NEG_INFINITY, f32::max);
        let mut all = Self { reference, sum: 0.0 };
        for part in parts.filter(|part| !part.is_empty()) {
            all.sum += part.sum * part.share(&all);
        }
        all
    }

    /// The factor that converts the weighted sums of this part to the scale of `whole`.
    #[must_use]
    pub fn share(&self, whole: &Self) -> f32 {
        if self.is_empty() { 0.0 } else { (self.reference - whole.reference).exp() }
    }

    /// Divides weighted sums by the sum of the weights. Without weights the result is zero.
    pub fn normalise(&self, weighted: &mut [f32]) {
        if self.is_empty() {
            weighted.fill(0.0);
        } else {
            weighted.iter_mut().for_each(|x| *x /= self.sum);
        }
    }
}
