//! The scorers of LongBench v1, one file per family.
//!
//! Every scorer compares one prediction with one answer and returns a value in `[0, 1]`. The arithmetic has the same order as
//! the original Python, so scores agree to the last printed digit.

pub mod classification;
pub mod code_sim;
pub mod number;
pub mod qa_f1;
pub mod retrieval;
pub mod rouge;
pub mod segment;
pub mod text;

use serde::{Deserialize, Serialize};

pub use code_sim::CodeSim;
pub use rouge::Recursion;

use crate::error::Result;

/// Options of LongBench's scores, in addition to the texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MetricOptions {
    /// The string ratio for code similarity.
    pub code_sim: CodeSim,
    /// Whether ROUGE fails at Python's recursion limit.
    pub recursion: Recursion,
}

/// A scorer: those of LongBench's `eval.py`, and one for arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Token F1.
    QaF1,
    /// Token F1 after Chinese segmentation.
    QaF1Zh,
    /// ROUGE-L of the PyPI package `rouge`.
    Rouge,
    /// ROUGE-L after Chinese segmentation.
    RougeZh,
    /// Class names found in the prediction.
    Classification,
    /// Paragraph numbers, "Paragraph 7".
    Retrieval,
    /// Paragraph numbers, "段落7".
    RetrievalZh,
    /// Numbers.
    Count,
    /// First line of code.
    CodeSim,
    /// The last number, as in GSM8K's exact match. Not in LongBench.
    Number,
}

impl Metric {
    /// Every metric.
    pub const ALL: [Self; 10] = [
        Self::QaF1,
        Self::QaF1Zh,
        Self::Rouge,
        Self::RougeZh,
        Self::Classification,
        Self::Retrieval,
        Self::RetrievalZh,
        Self::Count,
        Self::CodeSim,
        Self::Number,
    ];

    /// The name in the task table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::QaF1 => "qa_f1",
            Self::QaF1Zh => "qa_f1_zh",
            Self::Rouge => "rouge",
            Self::RougeZh => "rouge_zh",
            Self::Classification => "classification",
            Self::Retrieval => "retrieval",
            Self::RetrievalZh => "retrieval_zh",
            Self::Count => "count",
            Self::CodeSim => "code_sim",
            Self::Number => "number",
        }
    }

    /// Score of `prediction` against one `answer`, in `[0, 1]`. Only [`Metric::Classification`] uses `classes`.
    ///
    /// # Errors
    /// [`EvalError::Unscorable`](crate::EvalError::Unscorable) if the original would fail: a retrieval answer without a paragraph
    /// number.
    pub fn score(self, prediction: &str, answer: &str, classes: &[String], options: MetricOptions) -> Result<f64> {
        Ok(match self {
            Self::QaF1 => qa_f1::qa_f1(prediction, answer),
            Self::QaF1Zh => qa_f1::qa_f1_zh(prediction, answer),
            Self::Rouge => rouge::rouge(prediction, answer, options.recursion),
            Self::RougeZh => rouge::rouge_zh(prediction, answer, options.recursion),
            Self::Classification => classification::classification(prediction, answer, classes),
            Self::Retrieval => retrieval::retrieval(prediction, answer)?,
            Self::RetrievalZh => retrieval::retrieval_zh(prediction, answer)?,
            Self::Count => retrieval::count(prediction, answer),
            Self::CodeSim => code_sim::code_sim(prediction, answer, options.code_sim),
            Self::Number => number::number(prediction, answer),
        })
    }
}

impl std::fmt::Display for Metric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_data_files() {
        for metric in Metric::ALL {
            assert_eq!(serde_json::to_value(metric).unwrap(), serde_json::Value::from(metric.name()));
        }
    }
}
