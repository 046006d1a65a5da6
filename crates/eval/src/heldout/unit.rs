//! The windows of one document under one scheme. They are one unit of the statistics.

use kvcsr_cache::{Geometry, Scheme};
use kvcsr_codec::BitsPerChannel;
use kvcsr_model::Decoder;

use super::far::{FarScore, FarTokens, tail};
use super::{HeldoutText, Measurement, Reference, Window};
use crate::error::{EvalError, Result};

/// Tokens per call when a continuation is read. It is not a multiple or a divisor of any block, so the bits are read at several
/// fill levels of the buffers.
pub const PIECE: usize = 193;

/// A window that was prefilled once, with the distributions of the uncompressed model and its far tokens.
pub struct Prepared {
    window: Window,
    reference: Reference,
    far: FarTokens,
}

impl Prepared {
    /// Prefills a window, `chunk` tokens at a time. Then reads it with the scheme `hidden`, which hides the far context (see
    /// [`super::far`]). Positions whose distribution changes by more than `threshold` nats are far.
    ///
    /// # Errors
    /// The same as [`Reference::new`] and [`Reference::measure`]. [`EvalError::TooShort`] if the window has no scored position.
    pub fn new(
        decoder: &Decoder,
        window: Window,
        chunk: usize,
        dense: &dyn Scheme,
        hidden: &dyn Scheme,
        threshold: f64,
    ) -> Result<Self> {
        let HeldoutText { ids, context } = &window.text;
        if ids.len() < context + window.skip + 2 {
            return Err(EvalError::TooShort { found: ids.len(), needed: context + window.skip + 2 });
        }
        let reference = Reference::new(decoder, &window.text, chunk, dense)?;
        let hidden = reference.measure(decoder, hidden, PIECE)?;
        let far = FarTokens::new(hidden.kl().split_off(window.skip), threshold);
        Ok(Self { window, reference, far })
    }

    /// The window.
    #[must_use]
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// The uncompressed prefill.
    #[must_use]
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The score of `scheme` on the window. If `decode` is not 0, that many more tokens are decoded one at a time to measure the
    /// time.
    ///
    /// # Errors
    /// The same as [`Reference::measure_and_decode`].
    pub fn score(&self, decoder: &Decoder, scheme: &dyn Scheme, decode: usize) -> Result<UnitScore> {
        let measured = self.reference.measure_and_decode(decoder, scheme, PIECE, decode)?;
        Ok(UnitScore::of(&self.window, &self.far, &measured))
    }
}

/// The score of one scheme on one unit. The windows of one document are added up with [`UnitScore::add`].
#[derive(Debug, Clone, PartialEq)]
pub struct UnitScore {
    /// The unit: the name of the document.
    pub document: String,
    /// Number of windows of the document.
    pub windows: usize,
    /// Sum over positions of `-ln q(next token)`.
    pub nll_sum: f64,
    /// KL to the uncompressed model at every scored position, in nats.
    pub kl: Vec<f64>,
    /// Number of positions at which both have the same most likely token.
    pub top1_agree: usize,
    /// The scores over far tokens, the main result in every table.
    pub far: FarScore,
    /// Sum over windows of the bytes allocated per token.
    bytes_per_token: f64,
    /// Time to compress the contexts, summed over the windows, in milliseconds.
    pub encode_ms: f64,
    /// Time per token of decoding one token at a time, in the first window, in milliseconds. None if it was not requested.
    pub decode_ms_per_token: Option<f64>,
}

impl UnitScore {
    fn of(window: &Window, far: &FarTokens, measured: &Measurement) -> Self {
        let scored = &measured.positions[window.skip..];
        let kl: Vec<f64> = scored.iter().map(|position| position.kl).collect();
        Self {
            document: window.document.clone(),
            windows: 1,
            nll_sum: scored.iter().map(|position| position.nll).sum(),
            top1_agree: scored.iter().filter(|position| position.agree).count(),
            far: far.score(&kl),
            kl,
            bytes_per_token: measured.bytes_per_token,
            encode_ms: measured.encode_ms,
            decode_ms_per_token: measured.decode_ms_per_token,
        }
    }

    /// Adds another window of the same document.
    pub fn add(&mut self, other: Self) {
        self.windows += other.windows;
        self.nll_sum += other.nll_sum;
        self.kl.extend(other.kl);
        self.top1_agree += other.top1_agree;
        self.far += other.far;
        self.bytes_per_token += other.bytes_per_token;
        self.encode_ms += other.encode_ms;
    }

    /// Number of distributions compared.
    #[must_use]
    pub fn scored(&self) -> usize {
        self.kl.len()
    }

    /// Mean KL over all scored positions, in nats per token.
    #[must_use]
    pub fn mean_kl(&self) -> f64 {
        self.kl.iter().sum::<f64>() / self.kl.len() as f64
    }

    /// The 99.9th percentile of KL over the scored positions.
    #[must_use]
    pub fn tail_kl(&self) -> f64 {
        tail(&self.kl)
    }

    /// Bits per channel from every allocated byte, averaged over the continuations.
    #[must_use]
    pub fn measured_bits(&self, geometry: Geometry) -> BitsPerChannel {
        let bytes = self.bytes_per_token / self.windows as f64;
        BitsPerChannel(8.0 * bytes / geometry.channels_per_token() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heldout::Position;

    fn window(skip: usize) -> Window {
        let text = HeldoutText { ids: vec![0; 20], context: 10 };
        Window { document: "a".to_owned(), index: 0, text, skip }
    }

    fn measured(kl: &[f64], bytes_per_token: f64) -> Measurement {
        let position = |&kl: &f64| Position { nll: 1.0, kl, agree: kl < 1.0 };
        Measurement {
            positions: kl.iter().map(position).collect(),
            bytes_per_token,
            encode_ms: 1.0,
            decode_ms_per_token: None,
        }
    }

    #[test]
    fn skipped_positions_do_not_count_and_windows_add_up() {
        let far = FarTokens::new(vec![2.0, 0.0], 0.5);
        let mut unit = UnitScore::of(&window(2), &far, &measured(&[9.0, 9.0, 0.5, 0.25], 100.0));
        assert_eq!((unit.scored(), unit.nll_sum, unit.top1_agree), (2, 2.0, 2));
        assert_eq!((unit.mean_kl(), unit.far.recovery()), (0.375, 0.75));
        unit.add(UnitScore::of(&window(2), &far, &measured(&[9.0, 9.0, 1.5, 0.0], 300.0)));
        assert_eq!((unit.windows, unit.scored(), unit.far.far), (2, 4, 2));
        assert_eq!((unit.far.recovery(), unit.top1_agree), (0.5, 3));
        let geometry = Geometry { layers: 2, kv_heads: 1, head_dim: 100 };
        assert_eq!(unit.measured_bits(geometry).0, 8.0 * 200.0 / 400.0);
    }
}
