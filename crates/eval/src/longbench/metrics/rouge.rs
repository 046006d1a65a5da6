//! ROUGE-L as the PyPI package `rouge` 1.0.1 computes it. This is not the ROUGE-L of `rouge-score`.
//!
//! Source: `rouge_score` and `rouge_zh_score` of LongBench's `metrics.py`, which use `["rouge-l"]["f"]`. The package splits at
//! full stops. Its summary-level ROUGE-L, with the default `exclusive=True`, uses *sets* of words:
//! `recall = |U| / |words of the reference|`, `precision = |U| / |words of the hypothesis|`. `U` is the union, over all pairs of
//! sentences, of the words of their longest common subsequence.

use std::collections::{HashMap, HashSet};

use super::segment;
use super::text::collapse_whitespace;

/// How to treat Python's limit of 1000 nested calls.
///
/// The package traces a longest common subsequence back by recursion, with one call per step. Beyond the limit Python raises an
/// error, and LongBench turns every error into the score 0. This needs a text of almost 1000 words without a full stop. It
/// therefore happens in Chinese, whose full stop does not split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recursion {
    /// The score is 0 if LongBench's `eval.py` exceeds the stack under CPython 3.11 with its default limit.
    #[default]
    AsPython,
    /// No limit: the score of the formula.
    Unlimited,
}

/// Number of steps of the back-trace that fit under `eval.py` -> `scorer` -> `rouge_score` -> the package.
const STEPS_ENGLISH: usize = 990;

/// `rouge_zh_score` calls `rouge_score`, so one call less is available.
const STEPS_CHINESE: usize = STEPS_ENGLISH - 1;

/// ROUGE-L F of `prediction` against `answer`, in `[0, 1)`. It is 0 if one of them consists only of full stops.
#[must_use]
pub fn rouge(prediction: &str, answer: &str, recursion: Recursion) -> f64 {
    rouge_within(prediction, answer, limit(recursion, STEPS_ENGLISH))
}

/// [`rouge`] after Chinese word segmentation of both texts.
#[must_use]
pub fn rouge_zh(prediction: &str, answer: &str, recursion: Recursion) -> f64 {
    let prediction = segment::cut(prediction).join(" ");
    let answer = segment::cut(answer).join(" ");
    rouge_within(&prediction, &answer, limit(recursion, STEPS_CHINESE))
}

fn limit(recursion: Recursion, steps: usize) -> usize {
    match recursion {
        Recursion::AsPython => steps,
        Recursion::Unlimited => usize::MAX,
    }
}

fn rouge_within(prediction: &str, answer: &str, steps: usize) -> f64 {
    let hypothesis = sentences(prediction);
    let reference = sentences(answer);
    if hypothesis.is_empty() || reference.is_empty() {
        return 0.0;
    }
    let mut ids = HashMap::new();
    let hypothesis = word_ids(&hypothesis, &mut ids);
    let reference = word_ids(&reference, &mut ids);

    let mut union = HashSet::new();
    for reference_sentence in &reference {
        for hypothesis_sentence in &hypothesis {
            match lcs_words(reference_sentence, hypothesis_sentence, steps) {
                Some(words) => union.extend(words),
                None => return 0.0,
            }
        }
    }
    let overlap = union.len() as f64;
    let recall = overlap / distinct(&reference) as f64;
    let precision = overlap / distinct(&hypothesis) as f64;
    2.0 * ((precision * recall) / (precision + recall + 1e-8))
}

/// The pieces between full stops, with white space collapsed. A piece of white space only becomes an empty sentence.
fn sentences(text: &str) -> Vec<String> {
    text.split('.').filter(|piece| !piece.is_empty()).map(collapse_whitespace).collect()
}

/// Words as numbers. An empty sentence has one word, the empty one, like `"".split(" ")`.
fn word_ids<'a>(sentences: &'a [String], ids: &mut HashMap<&'a str, u32>) -> Vec<Vec<u32>> {
    sentences
        .iter()
        .map(|sentence| {
            sentence
                .split(' ')
                .map(|word| {
                    let next = ids.len() as u32;
                    *ids.entry(word).or_insert(next)
                })
                .collect()
        })
        .collect()
}

fn distinct(sentences: &[Vec<u32>]) -> usize {
    sentences.iter().flatten().collect::<HashSet<_>>().len()
}

/// The words on the back-trace of the longest common subsequence of `x` and `y`, in reverse order. `None` if the back-trace takes
/// more than `steps` steps.
///
/// Equal words go diagonally, even if another path is as long. Otherwise the trace goes up (drops a word from `x`) if that is
/// strictly better, else left.
fn lcs_words(x: &[u32], y: &[u32], steps: usize) -> Option<Vec<u32>> {
    // Every step drops at least one word, so there are at least as many steps as words in the shorter text.
    if x.len().min(y.len()) > steps {
        return None;
    }
    let columns = y.len() + 1;
    let mut table = vec![0_u32; (x.len() + 1) * columns];
    for (i, a) in x.iter().enumerate() {
        for (j, b) in y.iter().enumerate() {
            table[(i + 1) * columns + j + 1] = if a == b {
                table[i * columns + j] + 1
            } else {
                table[i * columns + j + 1].max(table[(i + 1) * columns + j])
            };
        }
    }
    let mut words = Vec::new();
    let (mut i, mut j) = (x.len(), y.len());
    let mut taken = 0;
    while i > 0 && j > 0 {
        taken += 1;
        if taken > steps {
            return None;
        }
        if x[i - 1] == y[j - 1] {
            words.push(x[i - 1]);
            i -= 1;
            j -= 1;
        } else if table[(i - 1) * columns + j] > table[i * columns + j - 1] {
            i -= 1;
        } else {
            j -= 1;
        }
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rl(prediction: &str, answer: &str) -> f64 {
        rouge(prediction, answer, Recursion::AsPython)
    }

    #[test]
    fn words_are_sets() {
        assert_eq!(rl("a a a a", "a"), 0.999999995);
        assert_eq!(rl("hello world", "hello world"), 0.999999995);
    }

    #[test]
    fn a_trailing_space_makes_an_empty_word() {
        // The hypothesis has three words: "hello", "world" and "".
        assert_eq!(rl("hello world. ", "hello world"), 0.7999999952000001);
        assert_eq!(rl("hello world.", "hello world"), 0.999999995);
        assert_eq!(rl(" ", " "), 0.999999995);
    }

    #[test]
    fn nothing_but_full_stops_scores_zero() {
        assert_eq!(rl("", "a"), 0.0);
        assert_eq!(rl("...", "a"), 0.0);
        assert_eq!(rl("a", "."), 0.0);
    }

    #[test]
    fn the_union_carries_over_the_reference_sentences() {
        // "a b" is in both reference sentences but counts once: 2 of 4 and 2 of 3 words.
        assert_eq!(rl("a b x", "a b c. a b d"), 0.5714285665306124);
    }

    #[test]
    fn ties_go_left() {
        // "x y" and "y x" have two longest common subsequences. The back-trace takes the one to which the left step leads. With the
        // second sentence, the union shows which one it was.
        assert_eq!(rl("y x. q x", "x y"), 0.7999999952000001);
    }

    #[test]
    fn back_traces_too_deep_for_python_score_zero() {
        let words = |n: usize| (0..n).map(|i| format!("w{i}")).collect::<Vec<_>>().join(" ");
        assert_eq!(rl(&words(990), &words(990)), 0.999999995);
        assert_eq!(rl(&words(991), &words(991)), 0.0);
        // One row of "zz", then left to w0 and up: n + 1 steps.
        assert!(rl(&words(989), "w0 zz") > 0.0);
        assert_eq!(rl(&words(990), "w0 zz"), 0.0);
        assert!(rouge(&words(990), "w0 zz", Recursion::Unlimited) > 0.0);
    }

    #[test]
    fn chinese_is_segmented_and_its_full_stop_does_not_split() {
        assert_eq!(rouge_zh("我爱北京。", "我爱北京。", Recursion::AsPython), 0.999999995);
        let zh = rouge_zh("我爱北京。", "我爱上海。", Recursion::AsPython);
        assert_eq!(zh, 0.749999995);
    }
}
