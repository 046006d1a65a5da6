//! Reads long documents as text.

use serde::Deserialize;

/// The form in which a file holds one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextForm {
    /// The whole file is the text.
    Whole,
    /// A paper as S2ORC JSON (Lo et al., 2020): title, abstract, and the paragraphs under `pdf_parse.body_text`.
    S2orc,
}

#[derive(Deserialize)]
struct Paper {
    title: String,
    #[serde(rename = "abstract")]
    summary: Option<String>,
    pdf_parse: Body,
}

#[derive(Deserialize)]
struct Body {
    body_text: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    text: String,
    section: String,
}

impl TextForm {
    /// The text of the document. Blocks are separated by a blank line. A section's name is before its first paragraph.
    ///
    /// # Errors
    /// If the JSON of a paper lacks one of these fields.
    pub fn of(self, file: &str) -> Result<String, serde_json::Error> {
        if self == Self::Whole {
            return Ok(file.to_owned());
        }
        let paper: Paper = serde_json::from_str(file)?;
        let mut blocks = vec![paper.title, paper.summary.unwrap_or_default()];
        let mut section = String::new();
        for paragraph in paper.pdf_parse.body_text {
            if paragraph.section != section {
                section.clone_from(&paragraph.section);
                blocks.push(paragraph.section);
            }
            blocks.push(paragraph.text);
        }
        let shown: Vec<&str> = blocks.iter().map(|block| block.trim()).filter(|block| !block.is_empty()).collect();
        Ok(shown.join("\n\n"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn papers_are_their_blocks_in_order() {
        let file = r#"{"title": "T ", "abstract": null, "venue": "x", "pdf_parse": {"body_text": [
            {"text": "a", "section": "One", "cite_spans": []}, {"text": " b", "section": "One"},
            {"text": "", "section": "Two"}, {"text": "c", "section": "Two"}]}}"#;
        assert_eq!(TextForm::S2orc.of(file).unwrap(), "T\n\nOne\n\na\n\nb\n\nTwo\n\nc");
        assert_eq!(TextForm::Whole.of(file).unwrap(), file);
        assert!(TextForm::S2orc.of("{}").unwrap_err().to_string().contains("title"));
    }
}
