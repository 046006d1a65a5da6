//! The numbers that the paper printed in its Tables 1 and 2.

use std::sync::LazyLock;

use serde::Deserialize;

const PUBLISHED: &str = include_str!("../../data/longbench-published.json");

/// The numbers that a paper printed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// The paper.
    pub source: String,
    /// Inconsistencies in the paper's numbers.
    pub note: String,
    /// The tasks, in the order of the columns.
    pub tasks: Vec<String>,
    /// One entry per model.
    pub tables: Vec<PublishedTable>,
}

/// The rows of one model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedTable {
    /// The number of the paper's table.
    pub table: usize,
    /// The model, as the paper calls it.
    pub model: String,
    /// One row per method, in the paper's order.
    pub rows: Vec<PublishedRow>,
}

/// One method on one model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedRow {
    /// The paper's name of the method.
    pub method: String,
    /// Our scheme for this method. The paper's uncompressed FP16 is compared with `dense`.
    pub scheme: String,
    /// The scores, one per task.
    pub scores: Vec<f64>,
    /// The mean of the scores, as printed.
    pub average: f64,
}

/// The paper's tables.
pub fn published() -> &'static Published {
    static PARSED: LazyLock<Published> =
        LazyLock::new(|| serde_json::from_str(PUBLISHED).expect("the published numbers in this crate are valid"));
    &PARSED
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wrong digit changes the mean, so that it differs from the printed one.
    #[test]
    fn published_rows_have_their_printed_averages() {
        let published = published();
        assert_eq!(published.tasks.len(), 11);
        let rows: Vec<(&str, usize)> = published.tables.iter().map(|t| (t.model.as_str(), t.rows.len())).collect();
        assert_eq!(rows, [("Llama2-7B-chat", 8), ("Llama3-8B-Instruct", 5), ("Baichuan2-7B-chat", 5)]);
        for row in published.tables.iter().flat_map(|table| &table.rows) {
            assert_eq!(row.scores.len(), published.tasks.len(), "{}", row.method);
            let mean = row.scores.iter().sum::<f64>() / row.scores.len() as f64;
            // In these two rows the printed average is not that of the printed scores: see the note in the data.
            let printed = match row.average {
                36.93 => 36.84,
                41.51 => 41.53,
                average => average,
            };
            assert!((mean - printed).abs() < 0.0101, "{}: {mean} instead of {printed}", row.method);
        }
    }
}
