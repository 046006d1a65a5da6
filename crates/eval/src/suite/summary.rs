//! Summaries of documents, with or without worked examples before them (XSum: Narayan et al., 2018; Multi-LexSum: Shen et al.,
//! 2022).

use serde::Deserialize;
use serde_json::Value;

use super::{Draft, Text, one_line};
use crate::error::Result;

/// Which documents are used, and how many examples.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    document: String,
    summary: String,
    examples: usize,
    least: usize,
    most: usize,
}

impl Summary {
    /// Documents with a suitable length, in the order of the file. The last `examples` of them are the examples of all records. The
    /// examples are in `context`, with the document and the summary on one line each, and the document is in `input`. Without
    /// examples the document is the context.
    pub(super) fn drafts(&self, text: Text<'_>) -> Result<Vec<Draft>> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for (at, row) in text.json_lines::<Value>()?.into_iter().enumerate() {
            let field = |name: &str| {
                row[name].as_str().map(one_line).ok_or_else(|| text.error(format!("row {}: no text {name:?}", at + 1)))
            };
            let (document, summary) = (field(&self.document)?, field(&self.summary)?);
            if (self.least..=self.most).contains(&document.len()) && !summary.is_empty() {
                pairs.push((document, summary));
            }
        }
        let examples = pairs.split_off(pairs.len().saturating_sub(self.examples));
        let shown: String =
            examples.iter().map(|(document, summary)| format!("Article: {document}\nSummary: {summary}\n\n")).collect();
        let drafts = pairs.into_iter().enumerate().map(|(at, (document, summary))| {
            let (context, input) =
                if self.examples == 0 { (document, String::new()) } else { (shown.trim_end().to_owned(), document) };
            Draft { id: format!("{at:03}"), context, input, answers: vec![summary], classes: None }
        });
        Ok(drafts.collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn drafts(examples: usize) -> Vec<Draft> {
        let rows = [("long enough", "s0"), ("no", "s1"), ("also long\nenough", "s2"), ("third one here", "s3")];
        let text: Vec<String> =
            rows.iter().map(|(d, s)| serde_json::json!({"document": d, "summary": s}).to_string()).collect();
        let build = Summary { document: "document".into(), summary: "summary".into(), examples, least: 5, most: 20 };
        build.drafts(Text { id: "xsum", text: &text.join("\n") }).unwrap()
    }

    #[test]
    fn examples_are_no_records() {
        let found = drafts(1);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].context, "Article: third one here\nSummary: s3");
        assert_eq!((found[1].input.as_str(), found[1].answers[0].as_str()), ("also long enough", "s2"));
        let found = drafts(0);
        assert_eq!((found.len(), found[0].context.as_str(), found[0].input.as_str()), (3, "long enough", ""));
    }
}
