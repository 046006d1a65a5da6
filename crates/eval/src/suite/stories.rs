//! Questions about one of several plots (NarrativeQA: Kočiský et al., 2018).

use serde::Deserialize;

use super::{Draft, Text, one_line};
use crate::error::Result;

/// Which plots are used, and how many per record.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stories {
    documents: usize,
    least: usize,
    most: usize,
}

#[derive(Deserialize)]
struct Row {
    question: String,
    answer: Vec<String>,
    passage: String,
}

impl Stories {
    /// The plots with a suitable length in the order of the file, `documents` per record. The question is the first question about
    /// one of these plots. This plot is the first, second and so on in turn.
    pub(super) fn drafts(&self, text: Text<'_>) -> Result<Vec<Draft>> {
        let mut plots: Vec<Row> = Vec::new();
        for row in text.json_lines::<Row>()? {
            let fits = (self.least..=self.most).contains(&row.passage.len());
            if fits && plots.iter().all(|other| other.passage != row.passage) {
                plots.push(row);
            }
        }
        let drafts = plots.chunks_exact(self.documents.max(1)).enumerate().map(|(at, plots)| {
            let asked = &plots[at % plots.len()];
            let context: Vec<String> =
                (1..).zip(plots).map(|(n, plot)| format!("Story {n}: {}", one_line(&plot.passage))).collect();
            Draft {
                id: format!("{at:03}"),
                context: context.join("\n\n"),
                input: asked.question.trim().to_owned(),
                answers: asked.answer.iter().map(|answer| answer.trim().to_owned()).collect(),
                classes: None,
            }
        });
        Ok(drafts.collect())
    }
}

/// The distinct passages of the file, each on one line, in the order of the file.
pub(super) fn passages(text: Text<'_>) -> Result<Vec<String>> {
    let mut all: Vec<String> = Vec::new();
    for row in text.json_lines::<Row>()? {
        let passage = one_line(&row.passage);
        if !all.contains(&passage) {
            all.push(passage);
        }
    }
    Ok(all)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_about_each_place_in_turn() {
        let row = |n: usize| serde_json::json!({"question": format!("q{n} "), "answer": [format!("a{n}")], "passage": format!("p{n}\nx")});
        let rows: Vec<String> = (0..7).flat_map(|n| [row(n), row(n)]).map(|row| row.to_string()).collect();
        let text = rows.join("\n");
        let drafts =
            Stories { documents: 2, least: 3, most: 5 }.drafts(Text { id: "narrativeqa", text: &text }).unwrap();
        assert_eq!(drafts.len(), 3, "seven plots make three pairs");
        assert_eq!(drafts[0].context, "Story 1: p0 x\n\nStory 2: p1 x");
        assert_eq!(drafts.iter().map(|d| d.input.as_str()).collect::<Vec<_>>(), ["q0", "q3", "q4"]);
        assert_eq!(drafts[1].answers, ["a3"]);
    }
}
