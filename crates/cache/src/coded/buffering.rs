//! When tokens leave the exact buffer and are coded.

/// A method's published buffering.
///
/// Tokens are counted from the first token of the sequence. If there is a buffer, tokens are coded after the newest of
/// them has attended. So a token sees only codes that were made before it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buffering {
    /// No buffer: each token is coded when it arrives, and attends to its own restored form.
    None,
    /// Whole blocks. A prompt is coded up to a multiple of `aligned`. After that, tokens collect in the buffer and are
    /// coded `block` at a time. `aligned` is at most `block`.
    Blocks {
        /// Tokens coded at a time while decoding.
        block: usize,
        /// The number of coded tokens of a prompt is a multiple of this.
        aligned: usize,
    },
    /// The `exact` most recent tokens stay exact. When there are more, the oldest `stride` of them are coded. `stride`
    /// is in `1..=exact + 1`.
    Sliding {
        /// Tokens that stay exact.
        exact: usize,
        /// Tokens coded at a time.
        stride: usize,
    },
}

impl Buffering {
    /// How many tokens of a prompt of `held` tokens are coded.
    pub(super) fn of_prompt(self, held: usize) -> usize {
        match self {
            Self::None => held,
            Self::Blocks { aligned, .. } => held / aligned.max(1) * aligned.max(1),
            Self::Sliding { exact, .. } => held.saturating_sub(exact + 1),
        }
    }

    /// How many tokens are coded once `held` are held, if `coded` of them are coded so far. At most one more block is
    /// coded.
    pub(super) fn next(self, coded: usize, held: usize) -> usize {
        let exact_now = held.saturating_sub(coded);
        match self {
            Self::None => coded.max(held),
            Self::Blocks { block, .. } if exact_now >= block.max(1) => coded + block.max(1),
            Self::Sliding { exact, stride } if exact_now > exact => coded + stride.clamp(1, exact + 1),
            Self::Blocks { .. } | Self::Sliding { .. } => coded,
        }
    }

    /// Whether a token is coded before it attends.
    pub(super) fn codes_the_newest(self) -> bool {
        self == Self::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of coded tokens after each of `tokens` decoded tokens, which follow a prompt of `prompt` tokens.
    fn coded(buffering: Buffering, prompt: usize, tokens: usize) -> Vec<usize> {
        let mut coded = buffering.of_prompt(prompt);
        let mut all = Vec::new();
        for held in prompt..=prompt + tokens {
            while buffering.next(coded, held) > coded {
                coded = buffering.next(coded, held);
            }
            all.push(coded);
        }
        all
    }

    #[test]
    fn blocks_saw() {
        let kivi = Buffering::Blocks { block: 4, aligned: 4 };
        assert_eq!(coded(kivi, 0, 9), [0, 0, 0, 0, 4, 4, 4, 4, 8, 8]);
        assert_eq!(coded(kivi, 6, 3), [4, 4, 8, 8]);
        let gear = Buffering::Blocks { block: 3, aligned: 1 };
        assert_eq!(coded(gear, 5, 4), [5, 5, 5, 8, 8]);
    }

    #[test]
    fn the_last_tokens_slide() {
        let kivi = Buffering::Sliding { exact: 3, stride: 1 };
        assert_eq!(coded(kivi, 0, 5), [0, 0, 0, 0, 1, 2]);
        assert_eq!(coded(kivi, 5, 1), [2, 3]);
        let lexico = Buffering::Sliding { exact: 3, stride: 2 };
        assert_eq!(coded(lexico, 7, 3), [5, 5, 7, 7]);
        assert_eq!(coded(Buffering::None, 4, 2), [4, 5, 6]);
    }
}
