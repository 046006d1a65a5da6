//! Windows of long documents, and passages that are repeated.
//!
//! Scored text is never joined from several documents: a window lies within one document, and so does a repeated passage. All
//! windows of a document are one unit of the statistics.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::HeldoutText;

/// The block that most methods fill before they encode it. After a context of a multiple of this length, all buffers are empty.
const BLOCK: usize = 128;

/// A text to score, and its document.
#[derive(Debug, Clone)]
pub struct Window {
    /// The unit: the name of the document.
    pub document: String,
    /// Number of the window in the document, from 0.
    pub index: usize,
    /// Context and continuation.
    pub text: HeldoutText,
    /// Number of positions after the context that are not scored.
    pub skip: usize,
}

/// How documents are cut into windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Maximum number of tokens of a context. Contexts are drawn from the 128 lengths up to it, and are never a multiple of 128.
    pub context: usize,
    /// Number of positions after the context that are not scored. It must exceed the recent window of every scheme. No scheme
    /// then keeps recent tokens of the prefill uncompressed at a scored position.
    pub skip: usize,
    /// Number of positions scored after the skipped ones.
    pub scored: usize,
    /// Maximum number of windows per document.
    pub windows: usize,
    /// Seed for the lengths of the contexts.
    pub seed: u64,
}

impl Cut {
    /// Number of tokens of the longest window.
    #[must_use]
    pub fn most_tokens(&self) -> usize {
        self.context + self.follows()
    }

    /// Number of tokens after a context. The last one is scored, but not read.
    fn follows(&self) -> usize {
        self.skip + self.scored + 1
    }

    /// The windows of a document with the tokens `ids`. They follow each other without overlap. A document that is too short has
    /// none.
    #[must_use]
    pub fn windows(&self, document: &str, ids: &[u32]) -> Vec<Window> {
        let mut rng = generator(self.seed, document);
        let mut windows = Vec::new();
        let mut from = 0;
        while windows.len() < self.windows {
            let context = drawn_length(self.context, &mut rng);
            let Some(ids) = ids.get(from..from + context + self.follows()) else { break };
            from += ids.len();
            let text = HeldoutText { ids: ids.to_vec(), context };
            windows.push(Window { document: document.to_owned(), index: windows.len(), text, skip: self.skip });
        }
        windows
    }
}

/// A passage, other text, and the passage again. All scored positions are far by construction. To count every position, use a
/// threshold of `f64::NEG_INFINITY` in [`super::Prepared::new`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeat {
    /// Number of tokens of the passage.
    pub passage: usize,
    /// Maximum number of tokens of other text between the two passages. The number is drawn in the same way as contexts of [`Cut`].
    pub between: usize,
    /// Number of tokens from the start of the passage that are at the end of the context. The rest of the passage is scored.
    pub cue: usize,
    /// Seed of the lengths.
    pub seed: u64,
}

impl Repeat {
    /// Number of tokens of the longest text.
    #[must_use]
    pub fn most_tokens(&self) -> usize {
        2 * self.passage + self.between
    }

    /// The start of `ids`, then the start of `other`, then the start of `ids` again. None if a document is too short, or if nothing
    /// is left to score.
    #[must_use]
    pub fn window(&self, document: &str, ids: &[u32], other: &[u32]) -> Option<Window> {
        let passage = ids.get(..self.passage)?;
        if self.cue == 0 || self.cue + 2 > self.passage {
            return None;
        }
        let around = self.passage + self.cue;
        let context = drawn_length(around + self.between, &mut generator(self.seed, document));
        let other = other.get(..context.checked_sub(around)?)?;
        let text = HeldoutText { ids: [passage, other, passage].concat(), context };
        Some(Window { document: document.to_owned(), index: 0, text, skip: 0 })
    }
}

/// A length in the range from `most - BLOCK + 1` to `most` that is not a multiple of the block.
fn drawn_length(most: usize, rng: &mut ChaCha8Rng) -> usize {
    loop {
        let length = most.saturating_sub(rng.random_range(0..BLOCK));
        if most <= BLOCK || !length.is_multiple_of(BLOCK) {
            return length.max(1);
        }
    }
}

/// A generator that depends only on the seed and the document's name, so that it is independent of other documents (FNV-1a).
fn generator(seed: u64, document: &str) -> ChaCha8Rng {
    let mixed = document
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    ChaCha8Rng::seed_from_u64(mixed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const CUT: Cut = Cut { context: 1024, skip: 256, scored: 512, windows: 3, seed: 5 };

    #[test]
    fn windows_lie_in_one_document_and_do_not_overlap() {
        let ids: Vec<u32> = (0..10_000).collect();
        let windows = CUT.windows("a", &ids);
        assert_eq!(windows.iter().map(|w| w.index).collect::<Vec<_>>(), [0, 1, 2]);
        let mut next = 0;
        for window in &windows {
            assert_eq!(window.text.ids[0], next, "nothing is skipped or repeated");
            next = window.text.ids.last().unwrap() + 1;
            assert_eq!(window.text.ids.len() - window.text.context, 256 + 512 + 1);
            assert_eq!((window.skip, window.document.as_str()), (256, "a"));
        }
        assert!(CUT.windows("a", &ids[..CUT.most_tokens() - BLOCK]).is_empty());
        assert_eq!(CUT.windows("a", &ids[..CUT.most_tokens()]).len(), 1);
    }

    #[test]
    fn contexts_leave_no_buffer_empty_and_follow_the_seed_and_the_name() {
        let ids: Vec<u32> = (0..4000).collect();
        let lengths = |seed| -> Vec<usize> {
            (0..200).map(|i| Cut { seed, ..CUT }.windows(&i.to_string(), &ids)[0].text.context).collect()
        };
        let found = lengths(1);
        assert!(found.iter().all(|n| (897..1024).contains(n) && n % BLOCK != 0), "{found:?}");
        let distinct: std::collections::BTreeSet<_> = found.iter().collect();
        assert!(distinct.len() > 60, "{}", distinct.len());
        assert_eq!(found, lengths(1));
        assert_ne!(found, lengths(2));
    }

    #[test]
    fn a_repeated_passage_is_scored_after_its_cue() {
        let repeat = Repeat { passage: 600, between: 2000, cue: 32, seed: 9 };
        let (ids, other): (Vec<u32>, Vec<u32>) = ((0..700).collect(), (10_000..13_000).collect());
        let window = repeat.window("a", &ids, &other).unwrap();
        let (context, rest) = window.text.ids.split_at(window.text.context);
        assert_eq!(rest, &ids[32..600], "the passage after the cue");
        assert_eq!(&context[context.len() - 32..], &ids[..32]);
        assert_eq!(&context[..600], &ids[..600]);
        let between = &context[600..context.len() - 32];
        assert!(between.iter().all(|&id| id >= 10_000) && between.len() > 1800);
        assert_ne!(context.len() % BLOCK, 0);
        assert!(window.text.ids.len() <= repeat.most_tokens());
        assert!(repeat.window("a", &ids[..500], &other).is_none());
        assert!(repeat.window("a", &ids, &other[..1000]).is_none());
        assert!(Repeat { cue: 599, ..repeat }.window("a", &ids, &other).is_none());
    }
}
