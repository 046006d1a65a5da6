//! Passage retrieval and passage count: the fraction of the numbers in the prediction that is right.
//!
//! Source: `retrieval_score`, `retrieval_zh_score` and `count_score` of LongBench's `metrics.py`.

use std::sync::LazyLock;

use regex::Regex;

use super::text::digit_runs;
use crate::error::{EvalError, Result};

/// Fraction of the digit runs in `prediction` that equal the paragraph number in `answer`, for example "Paragraph 7".
///
/// # Errors
/// [`EvalError::Unscorable`] if `answer` does not name a paragraph.
pub fn retrieval(prediction: &str, answer: &str) -> Result<f64> {
    static ID: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"Paragraph (\d+)").expect("the pattern is valid"));
    Ok(count(prediction, paragraph("retrieval", &ID, answer)?))
}

/// [`retrieval`] for answers of the form "段落7".
///
/// # Errors
/// [`EvalError::Unscorable`] if `answer` does not name a paragraph.
pub fn retrieval_zh(prediction: &str, answer: &str) -> Result<f64> {
    static ID: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"段落(\d+)").expect("the pattern is valid"));
    Ok(count(prediction, paragraph("retrieval_zh", &ID, answer)?))
}

/// Fraction of the digit runs in `prediction` that equal `answer` as text, or 0 if there are none.
#[must_use]
pub fn count(prediction: &str, answer: &str) -> f64 {
    let mut numbers = 0_usize;
    let mut right = 0_usize;
    for number in digit_runs(prediction) {
        numbers += 1;
        right += usize::from(number == answer);
    }
    if numbers == 0 {
        return 0.0;
    }
    right as f64 / numbers as f64
}

fn paragraph<'a>(metric: &'static str, id: &Regex, answer: &'a str) -> Result<&'a str> {
    id.captures(answer).and_then(|found| found.get(1)).map(|number| number.as_str()).ok_or_else(|| {
        EvalError::Unscorable { metric, reason: format!("answer {answer:?} has no match for {:?}", id.as_str()) }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn share_of_right_numbers() {
        assert_eq!(retrieval("Paragraph 7, or 12 or 7", "Paragraph 7").unwrap(), 2.0 / 3.0);
        assert_eq!(retrieval("none", "Paragraph 7").unwrap(), 0.0);
        assert_eq!(retrieval_zh("答案是段落12", "段落12").unwrap(), 1.0);
    }

    #[test]
    fn numbers_are_compared_as_text() {
        assert_eq!(count("07 7", "7"), 0.5);
        // Full-width digits are digits, but not the same text.
        assert_eq!(count("７ 7", "7"), 0.5);
        assert_eq!(count("７", "７"), 1.0);
    }

    #[test]
    fn an_answer_without_a_number_is_an_error() {
        let error = retrieval("1", "paragraph 1").unwrap_err().to_string();
        assert!(error.contains("paragraph 1"), "{error}");
        assert!(retrieval_zh("1", "Paragraph 1").is_err());
    }
}
