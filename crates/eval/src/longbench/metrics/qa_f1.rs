//! Token-overlap F1 for question answering, English and Chinese.
//!
//! Source: `qa_f1_score`, `qa_f1_zh_score` and `f1_score` of LongBench's `metrics.py`.

use super::segment;
use super::text::{blank_articles, counts, is_ascii_punctuation, is_space, lower, split_whitespace};

/// The non-ASCII punctuation that the Chinese normalisation deletes, as listed in `normalize_zh_answer`.
const CHINESE_PUNCTUATION: &str = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏.";

/// F1 over the normalised words of `prediction` and `answer`, in `[0, 1]`.
#[must_use]
pub fn qa_f1(prediction: &str, answer: &str) -> f64 {
    let prediction = normalise(prediction);
    let answer = normalise(answer);
    let prediction: Vec<&str> = split_whitespace(&prediction).collect();
    let answer: Vec<&str> = split_whitespace(&answer).collect();
    f1(&prediction, &answer)
}

/// F1 over the normalised words of `prediction` and `answer`, in `[0, 1]`. The raw text is segmented by the Chinese segmenter.
#[must_use]
pub fn qa_f1_zh(prediction: &str, answer: &str) -> f64 {
    f1(&words_zh(prediction), &words_zh(answer))
}

/// Converts to lower case, then removes punctuation, then articles. White space stays for the split.
fn normalise(text: &str) -> String {
    let mut text = lower(text);
    text.retain(|c| !is_ascii_punctuation(c));
    blank_articles(&text)
}

fn words_zh(text: &str) -> Vec<String> {
    segment::cut(text).into_iter().map(normalise_zh).filter(|word| !word.is_empty()).collect()
}

fn normalise_zh(word: &str) -> String {
    let mut word = lower(word);
    word.retain(|c| !is_ascii_punctuation(c) && !CHINESE_PUNCTUATION.contains(c) && !is_space(c));
    word
}

/// F1 of the multiset overlap, or 0 if there is no overlap.
fn f1<T: AsRef<str>>(prediction: &[T], answer: &[T]) -> f64 {
    let in_answer = counts(answer.iter().map(AsRef::as_ref));
    let same: usize = counts(prediction.iter().map(AsRef::as_ref))
        .into_iter()
        .map(|(word, n)| n.min(in_answer.get(word).copied().unwrap_or(0)))
        .sum();
    if same == 0 {
        return 0.0;
    }
    let precision = same as f64 / prediction.len() as f64;
    let recall = same as f64 / answer.len() as f64;
    (2.0 * precision * recall) / (precision + recall)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn punctuation_goes_before_articles() {
        // "a-b" becomes "ab", not an article and "b". "(the)" is an article.
        assert_eq!(qa_f1("a-b", "ab"), 1.0);
        assert_eq!(qa_f1("(the) cat", "Cat!"), 1.0);
        assert_eq!(qa_f1("the", "a"), 0.0);
    }

    #[test]
    fn typographic_punctuation_stays_in_english() {
        assert_eq!(qa_f1("“yes”", "yes"), 0.0);
    }

    #[test]
    fn overlap_counts_repeats() {
        // One of the two predicted "x" matches: p = 1/2, r = 1.
        assert_eq!(qa_f1("x x", "x"), 2.0 * 0.5 * 1.0 / 1.5);
        assert_eq!(qa_f1("", ""), 0.0);
    }

    #[test]
    fn information_separators_split_words() {
        assert_eq!(qa_f1("red\u{1f}green", "red green"), 1.0);
    }

    #[test]
    fn chinese_ignores_its_punctuation_and_spaces() {
        assert_eq!(qa_f1_zh("北京。", "北京"), 1.0);
        assert_eq!(qa_f1_zh("《北京》", "北京"), 2.0 * 0.5 * 1.0 / 1.5);
        assert_eq!(qa_f1_zh("。，", "。"), 0.0);
    }
}
