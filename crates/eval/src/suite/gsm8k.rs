//! Arithmetic in words (GSM8K: Cobbe et al., 2021), with our own worked examples before each problem. The last number counts.

use serde::Deserialize;

use super::{Draft, Text, one_line};
use crate::error::Result;

#[derive(Deserialize)]
struct Row {
    prompt: String,
    expected: String,
}

/// The problems of the file, in its order.
pub(super) fn drafts(text: Text<'_>) -> Result<Vec<Draft>> {
    let drafts = text.json_lines::<Row>()?.into_iter().enumerate().map(|(at, row)| Draft {
        id: format!("{at:03}"),
        input: one_line(&row.prompt),
        answers: vec![row.expected],
        ..Draft::default()
    });
    Ok(drafts.collect())
}
