//! True-or-false questions about the terms of a contract, with examples (Consumer Contracts QA: Kolt, 2022).

use serde::Deserialize;

use super::{Draft, Text, one_line};
use crate::error::Result;

/// Which terms are used, and how many examples.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contract {
    examples: usize,
    least: usize,
    most: usize,
}

#[derive(Deserialize)]
struct Row {
    contract: String,
    question: String,
    answer: String,
}

const TRUE: &str = "True";
const FALSE: &str = "False";

impl Contract {
    /// Rows with a suitable length. True and false rows alternate, as long as there are both, so a constant answer scores half. The
    /// last `examples` rows are the examples of all records.
    pub(super) fn drafts(&self, text: Text<'_>) -> Result<Vec<Draft>> {
        let (mut right, mut wrong) = (Vec::new(), Vec::new());
        for row in text.json_lines::<Row>()? {
            let (contract, question) = (one_line(&row.contract), one_line(&row.question));
            let side = match row.answer.trim() {
                TRUE => &mut right,
                FALSE => &mut wrong,
                other => return Err(text.error(format!("answer {other:?}, expected True or False"))),
            };
            if (self.least..=self.most).contains(&contract.len()) {
                side.push(format!("{contract}\nQuestion: {question}"));
            }
        }
        let mut rows: Vec<(String, &str)> =
            right.into_iter().zip(wrong).flat_map(|(right, wrong)| [(right, TRUE), (wrong, FALSE)]).collect();
        let examples = rows.split_off(rows.len().saturating_sub(self.examples));
        let shown: String =
            examples.iter().map(|(terms, answer)| format!("Terms: {terms}\nAnswer: {answer}\n\n")).collect();
        let drafts = rows.into_iter().enumerate().map(|(at, (terms, answer))| Draft {
            id: format!("{at:03}"),
            context: shown.trim_end().to_owned(),
            input: terms,
            answers: vec![answer.to_owned()],
            classes: Some(vec![TRUE.to_owned(), FALSE.to_owned()]),
        });
        Ok(drafts.collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn true_and_false_take_turns() {
        let row = |n: usize, answer: &str| {
            serde_json::json!({"contract": format!("terms {n}"), "question": "is it?", "answer": answer}).to_string()
        };
        let text = [row(0, "True"), row(1, "True"), row(2, "False"), row(3, "False"), row(4, "True")].join("\n");
        let build = Contract { examples: 1, least: 1, most: 99 };
        let found = build.drafts(Text { id: "c", text: &text }).unwrap();
        assert_eq!(found.iter().map(|d| d.answers[0].as_str()).collect::<Vec<_>>(), ["True", "False", "True"]);
        assert_eq!(found[1].input, "terms 2\nQuestion: is it?");
        assert_eq!(found[0].context, "Terms: terms 3\nQuestion: is it?\nAnswer: False");
        assert!(build.drafts(Text { id: "c", text: &row(0, "Maybe") }).is_err());
    }
}
