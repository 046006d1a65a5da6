//! Exact match as in GSM8K: compares the last number of the prediction with the answer.
//!
//! In Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021, each solution ends with its answer. A chain of
//! thought is right if its last number is that answer. Thousands separators, a currency sign and a final full stop are ignored.

use std::sync::LazyLock;

use regex::Regex;

/// 1 if the last number in `prediction` equals `answer`, otherwise 0. It is 0 if there is no number.
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
