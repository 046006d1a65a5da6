//! String functions with Python's behaviour: `str.split`, `str.lower`, `string.punctuation`, `\d`, `\w` and `round`.
//!
//! The differences to Rust's own methods are small, but all of them change scores. Python treats the separators U+001C to
//! U+001F as white space. Its word characters are letters and numbers only (no combining marks). Its `string.punctuation` is
//! the 32 ASCII characters.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::LazyLock;

use regex::Regex;

/// Python's `str.isspace` for one character: Unicode `White_Space` plus U+001C to U+001F.
#[must_use]
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Python's `str.split()`: the non-empty pieces between runs of white space.
pub fn split_whitespace(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|piece| !piece.is_empty())
}

/// Python's `" ".join(text.split())`.
#[must_use]
pub fn collapse_whitespace(text: &str) -> String {
    let mut collapsed = String::with_capacity(text.len());
    for piece in split_whitespace(text) {
        if !collapsed.is_empty() {
            collapsed.push(' ');
        }
        collapsed.push_str(piece);
    }
    collapsed
}

/// Python's `str.lower()`. Rust's full lower-casing is the same mapping, including the final sigma. The two differ only in
/// letters that the Unicode version of one of them does not have yet.
#[must_use]
pub fn lower(text: &str) -> String {
    text.to_lowercase()
}

/// Whether a character is in Python's `string.punctuation`, which is ASCII only.
#[must_use]
pub fn is_ascii_punctuation(c: char) -> bool {
    c.is_ascii_punctuation()
}

/// The first line of a prediction: `text.lstrip('\n').split('\n')[0]`.
#[must_use]
pub fn first_line(text: &str) -> &str {
    let text = text.trim_start_matches('\n');
    text.split_once('\n').map_or(text, |(line, _)| line)
}

/// Python's `re.findall(r"\d+", text)`; `\d` is any Unicode decimal digit.
pub fn digit_runs(text: &str) -> impl Iterator<Item = &str> {
    static DIGITS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\d+").expect("the pattern is valid"));
    DIGITS.find_iter(text).map(|digits| digits.as_str())
}

/// Python's `re.sub(r"\b(a|an|the)\b", " ", text)`.
///
/// A word made of one alternative between two boundaries is a maximal run of word characters. Python's word characters are
/// `str.isalnum` and the underscore. These are the general categories L and N, and the underscore.
#[must_use]
pub fn blank_articles(text: &str) -> String {
    static WORDS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[\p{L}\p{N}_]+").expect("the pattern is valid"));
    WORDS
        .replace_all(text, |word: &regex::Captures<'_>| match &word[0] {
            "a" | "an" | "the" => " ".to_owned(),
            other => other.to_owned(),
        })
        .into_owned()
}

/// Python's `round(value, 2)` for a `float`: the nearest two-decimal number of the exact binary value, ties to even.
#[must_use]
pub fn round2(value: f64) -> f64 {
    if !value.is_finite() {
        return value;
    }
    // Rust prints the exact binary value correctly rounded, like Python's `round`.
    format!("{value:.2}").parse().unwrap_or(value)
}

/// `numpy.round(value, 2)`. It scales, rounds half to even and scales back, so it can differ from [`round2`] in the last digit.
#[must_use]
pub fn numpy_round2(value: f64) -> f64 {
    (value * 100.0).round_ties_even() / 100.0
}

/// How often each item occurs: Python's `Counter`.
pub fn counts<T: Eq + Hash>(items: impl IntoIterator<Item = T>) -> HashMap<T, usize> {
    let mut counts = HashMap::new();
    for item in items {
        *counts.entry(item).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_also_breaks_at_the_information_separators() {
        let text = "a\u{1c}b\u{1f}c\u{a0}d\u{3000}e\u{200b}f\n";
        assert_eq!(split_whitespace(text).collect::<Vec<_>>(), ["a", "b", "c", "d", "e\u{200b}f"]);
        assert_eq!(collapse_whitespace(" a \t\u{1d} b\n"), "a b");
        assert_eq!(collapse_whitespace(" \n "), "");
    }

    #[test]
    fn punctuation_is_the_ascii_thirty_two() {
        let listed = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";
        assert_eq!(listed.len(), 32);
        assert!(listed.chars().all(is_ascii_punctuation));
        let found = (0..=u32::from(char::MAX)).filter_map(char::from_u32).filter(|&c| is_ascii_punctuation(c));
        assert_eq!(found.count(), 32);
    }

    #[test]
    fn lower_follows_the_unicode_special_cases() {
        assert_eq!(lower("ΟΔΟΣ ΣΑΣ"), "οδος σας");
        assert_eq!(lower("İ"), "i\u{307}");
        assert_eq!(lower("ẞ"), "ß");
    }

    #[test]
    fn first_line_skips_leading_newlines_only() {
        assert_eq!(first_line("\n\n one\ntwo"), " one");
        assert_eq!(first_line(" \none"), " ");
        assert_eq!(first_line("\n\n"), "");
        assert_eq!(first_line("one\rtwo"), "one\rtwo");
    }

    #[test]
    fn digits_are_unicode_decimals() {
        assert_eq!(digit_runs("a12, ٣٤ x² ５").collect::<Vec<_>>(), ["12", "٣٤", "５"]);
    }

    #[test]
    fn articles_are_whole_words() {
        assert_eq!(blank_articles("the an a"), "    ".to_owned() + " ");
        assert_eq!(blank_articles("athe a1 théa a²"), "athe a1 théa a²");
        // For Python a combining mark is not a word character, so the letter before it is an article.
        assert_eq!(blank_articles("a\u{300}b"), " \u{300}b");
        assert_eq!(blank_articles("the\u{203f}x"), " \u{203f}x");
    }

    #[test]
    fn round2_is_exact_and_even() {
        // Python: round(x, 2)
        for (value, expected) in
            [(0.125, 0.12), (0.375, 0.38), (0.625, 0.62), (2.675, 2.67), (1.005, 1.0), (58.645, 58.65), (100.0, 100.0)]
        {
            assert_eq!(round2(value), expected, "{value}");
        }
        assert!(round2(f64::NAN).is_nan());
    }

    #[test]
    fn numpy_rounds_the_scaled_value() {
        // numpy: round(numpy.float64(2.675), 2) is 2.68, while Python's float gives 2.67.
        assert_eq!(numpy_round2(2.675), 2.68);
        assert_eq!(numpy_round2(0.125), 0.12);
    }
}
