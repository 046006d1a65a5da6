//! Scores on tasks, LongBench's and the suite's.

use serde::{Deserialize, Serialize};

/// One scheme on one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRow {
    /// The task.
    pub task: String,
    /// The scheme's label.
    pub scheme: String,
    /// Records scored.
    pub n: usize,
    /// Records of the full task. Where `n` is smaller, the score is not comparable with published ones.
    pub samples: usize,
    /// The score, 0 to 100, two decimals.
    pub score: f64,
    /// Difference to the uncompressed run over the same records, in points; none for that run itself, without it, and for fewer than two
    /// records in common.
    pub difference: Option<f64>,
    /// Lower end of its paired interval.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// Bits per channel as the scheme's paper counts them.
    pub nominal_bits: f64,
    /// Measured bits per channel, mean over the records.
    pub measured_bits: f64,
    /// Mean tokens of a prompt, which the measured bits are over.
    pub tokens: f64,
    /// Mean time to compress a prompt, in milliseconds.
    pub encode_ms: f64,
    /// Mean time per generated token, in milliseconds.
    pub decode_ms_per_token: f64,
    /// Whether the scheme compresses and no other compressing scheme is better on this task beyond doubt; false where records are too
    /// few to tell.
    pub best: bool,
}

/// One scheme over all tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OverallRow {
    /// The scheme's label.
    pub scheme: String,
    /// Tasks scored.
    pub tasks: usize,
    /// Records scored, all tasks.
    pub n: usize,
    /// Mean over the task scores, as papers report it.
    pub task_mean: f64,
    /// Mean over the category means, as LongBench reports it.
    pub category_mean: f64,
    /// Difference of the task means to the uncompressed run, in points, over the tasks and records that both answered.
    pub difference: Option<f64>,
    /// Lower end of its paired interval.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// Place among the schemes, from 1: one more than the schemes that are better by an interval above zero. None where records are too
    /// few to tell.
    pub rank: Option<usize>,
    /// Whether another scheme has the same place.
    pub tied: bool,
    /// Bits per channel as the scheme's paper counts them.
    pub nominal_bits: f64,
    /// Measured bits per channel, mean over all records.
    pub measured_bits: f64,
    /// Mean tokens of a prompt.
    pub tokens: f64,
    /// Mean time to compress 1000 tokens, in milliseconds.
    pub encode_ms_per_1k: f64,
    /// Mean time per generated token, in milliseconds.
    pub decode_ms_per_token: f64,
    /// Answers that ended because the model had no position left.
    pub cut: usize,
    /// As [`TaskRow::best`], over all tasks.
    pub best: bool,
}

/// One scheme on one task of LongBench-E, by sample length. JSON alone holds it: the buckets are a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LengthRow {
    /// The task.
    pub task: String,
    /// The scheme's label.
    pub scheme: String,
    /// `0-4k`, `4-8k` and `8k+` words or characters.
    pub buckets: [Bucket; 3],
}

/// The score of a task in one bucket of LongBench-E's lengths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// Samples in the bucket.
    pub n: usize,
    /// Mean over them, 0 to 100, two decimals; none for an empty bucket.
    pub score: Option<f64>,
}

/// One scheme in one cell of a retrieval grid: a fact at a depth of a text of a length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RetrievalRow {
    /// What is retrieved from what, for example `passkey`.
    pub task: String,
    /// The scheme's label.
    pub scheme: String,
    /// Tokens of the prompt, about.
    pub tokens: usize,
    /// Share of the text before the fact, 0 to 1.
    pub depth: f64,
    /// Prompts answered.
    pub n: usize,
    /// Mean score, 0 to 1.
    pub score: f64,
}
