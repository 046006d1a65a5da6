//! Which tokens a token attends to, and what is added to their scores.

use crate::CacheError;

/// What attention does in addition to plain causality. The default does nothing more.
///
/// A pattern depends only on the distance between two tokens, or hides tokens. So a scheme does not need to know it: it
/// passes the pattern on to [`crate::attention::causal`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pattern<'a> {
    /// How far back a token sees.
    pub reach: Reach,
    /// A bias that is added to the scores, depending on distance.
    pub bias: Bias<'a>,
    /// Tokens at the front of each row that are not part of its text.
    pub padding: Padding<'a>,
}

/// How far back a token sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reach {
    /// It sees all tokens back to the first.
    #[default]
    Full,
    /// It sees itself and the tokens before it, together at most this many (at least 1).
    Sliding(usize),
}

impl Reach {
    /// The first position that the query at `position` sees.
    pub fn first_seen(self, position: usize) -> usize {
        match self {
            Self::Full => 0,
            Self::Sliding(tokens) => (position + 1).saturating_sub(tokens.max(1)),
        }
    }

    /// How many of the `tokens` tokens of a text an uncompressed cache of the layer holds. Bits per channel are
    /// measured against this number.
    pub fn held(self, tokens: usize) -> usize {
        match self {
            Self::Full => tokens,
            Self::Sliding(most) => tokens.min(most.max(1)),
        }
    }
}

/// What is added to a score.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Bias<'a> {
    /// Nothing. The positions are in the rotated keys and queries.
    #[default]
    None,
    /// A penalty that grows with distance.
    Alibi(&'a Alibi),
}

/// Padding of a batch whose texts have different lengths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Padding<'a> {
    /// No padding: every row is text from its first token on.
    #[default]
    None,
    /// For each row, the number of its first tokens that are padding. They count as positions. But no token of the text
    /// sees them, and a scheme does not need to store them. Attention returns finite numbers without meaning for them.
    Left(&'a [usize]),
}

impl Padding<'_> {
    /// The number of padding tokens of a row.
    pub(crate) fn of(self, row: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Left(rows) => rows.get(row).copied().unwrap_or(0),
        }
    }
}

impl Pattern<'_> {
    /// Checks the pattern against the shape of a call: `B` rows and `H` query heads.
    pub(crate) fn check(&self, batch: usize, heads: usize) -> Result<(), CacheError> {
        let refuse = |tensor, expected: String, found| Err(CacheError::Shape { tensor, expected, found });
        match (self.padding, self.bias) {
            (Padding::Left(rows), _) if rows.len() != batch => {
                refuse("padding", format!("[{batch}], one per row"), vec![rows.len()])
            }
            (_, Bias::Alibi(alibi)) if alibi.slopes().len() != heads => {
                refuse("ALiBi slopes", format!("[{heads}], one per query head"), vec![alibi.slopes().len()])
            }
            _ => Ok(()),
        }
    }
}

/// Attention with linear biases (Press et al., ICLR 2022): head `h` adds `-slope_h · distance` to each score.
#[derive(Debug, Clone, PartialEq)]
pub struct Alibi {
    slopes: Vec<f32>,
}

impl Alibi {
    /// The published slopes for `heads` query heads.
    ///
    /// If `heads` is a power of two, they are the geometric sequence `2^(-8/H), 2^(-16/H), .. 2^-8`. Otherwise they are
    /// the sequence of the next lower power of two, followed by every other slope of the next higher power of two.
    pub fn new(heads: usize) -> Self {
        let geometric = |n: usize| (1..=n).map(move |i| (-8.0 * i as f64 / n as f64).exp2() as f32);
        let below = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
        let above = geometric(2 * below).step_by(2);
        Self { slopes: geometric(below).chain(above).take(heads).collect() }
    }

    /// One slope per query head, all positive.
    pub fn slopes(&self) -> &[f32] {
        &self.slopes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_the_published_ones() {
        assert_eq!(Alibi::new(8).slopes(), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
        assert_eq!(Alibi::new(1).slopes(), [0.00390625]);
        let forty = Alibi::new(40);
        assert_eq!(forty.slopes().len(), 40);
        for (head, exponent) in [(0, -0.25), (31, -8.0), (32, -0.125), (33, -0.375), (39, -1.875)] {
            assert!((f64::from(forty.slopes()[head]).log2() - exponent).abs() < 1e-6, "head {head}");
        }
    }

    #[test]
    fn a_window_counts_the_token_itself() {
        let seen = |reach: Reach| [0, 3, 4, 9].map(|position| reach.first_seen(position));
        assert_eq!(seen(Reach::Full), [0; 4]);
        assert_eq!(seen(Reach::Sliding(4)), [0, 0, 1, 6]);
        assert_eq!(seen(Reach::Sliding(1)), [0, 3, 4, 9]);
        assert_eq!(seen(Reach::Sliding(0)), [0, 3, 4, 9]);
    }

    #[test]
    fn patterns_that_do_not_fit_are_refused() {
        let alibi = Alibi::new(4);
        let pattern = Pattern { bias: Bias::Alibi(&alibi), padding: Padding::Left(&[0, 2]), ..Pattern::default() };
        assert!(pattern.check(2, 4).is_ok());
        assert!(pattern.check(3, 4).is_err_and(|e| e.to_string().contains("one per row")));
        assert!(pattern.check(2, 8).is_err_and(|e| e.to_string().contains("one per query head")));
    }
}
