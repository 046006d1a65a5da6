//! GSM8K-style exact match: the last number of the prediction against the answer.
//!
//! Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021, end each solution with its answer; a chain of thought
//! is right when its last number is that answer. Thousands separators, a currency sign and a closing point do not count.

use std::sync::LazyLock;

use regex::Regex;

/// 1 if the last number in `prediction` equals `answer`, else 0; 0 without any.
#[must_use]
pub fn number(prediction: &str, answer: &str) -> f64 {
    static NUMBER: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"-?[0-9][0-9,]*(?:\.[0-9]+)?").expect("the pattern is valid"));
    let value = |text: &str| text.replace(',', "").parse::<f64>().ok();
    let last = NUMBER.find_iter(prediction).last().and_then(|found| value(found.as_str()));
    let right = last.is_some() && last == value(answer.trim());
    f64::from(u8::from(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_decides() {
        for (prediction, answer, score) in [
            ("3 * 6 = 18. The answer is 18.", "18", 1.0),
            ("The answer is 18 of 20", "18", 0.0),
            ("It costs $1,450.00.", "1450", 1.0),
            ("-3", "-3", 1.0),
            ("0.5", ".5", 1.0),
            ("none", "5", 0.0),
            ("", "", 0.0),
        ] {
            assert_eq!(number(prediction, answer), score, "{prediction:?} {answer:?}");
        }
    }
}
