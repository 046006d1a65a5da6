//! Notes of conversations between doctors and patients (ACI-Bench: Yim et al., 2023; MTS-Dialog: Ben Abacha et al., 2023).

use serde::Deserialize;

use super::table::rows;
use super::{Draft, Text, one_line};
use crate::error::Result;

/// One long conversation, and one section of its note.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Visit {
    section: String,
    least: usize,
    most: usize,
}

#[derive(Deserialize)]
struct Encounter {
    src: String,
    tgt: String,
}

impl Visit {
    /// Conversations with a suitable length whose note has the section, in the order of the file.
    pub(super) fn drafts(&self, text: Text<'_>) -> Result<Vec<Draft>> {
        let all: Vec<Encounter> = serde_json::from_str(text.text).map_err(|error| text.error(error.to_string()))?;
        let fits = all.iter().filter(|visit| (self.least..=self.most).contains(&visit.src.len()));
        let noted = fits.filter_map(|visit| Some((visit.src.trim(), self.of(&visit.tgt)?)));
        let drafts = noted.enumerate().map(|(at, (conversation, note))| Draft {
            id: format!("{at:03}"),
            context: conversation.to_owned(),
            input: String::new(),
            answers: vec![note],
            classes: None,
        });
        Ok(drafts.collect())
    }

    /// The section's text on one line: from its heading to the next heading. A heading is a line of capital letters.
    fn of(&self, note: &str) -> Option<String> {
        let heading = |line: &&str| {
            let line = line.trim();
            line.chars().any(char::is_uppercase) && !line.chars().any(char::is_lowercase)
        };
        let mut lines = note.lines().skip_while(|line| line.trim() != self.section);
        lines.next()?;
        let text = one_line(&lines.take_while(|line| !heading(line)).collect::<Vec<_>>().join(" "));
        (!text.is_empty()).then_some(text)
    }
}

/// Short conversations with notes as examples, and one more conversation.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consultation {
    examples: usize,
    least: usize,
    most: usize,
}

impl Consultation {
    /// Conversations with a suitable length, in the order of the file. The last `examples` are the examples of all records.
    pub(super) fn drafts(&self, text: Text<'_>) -> Result<Vec<Draft>> {
        let (header, body) = rows(text.text).split_first().map(|(h, b)| (h.clone(), b.to_vec())).unwrap_or_default();
        let column =
            |name: &str| header.iter().position(|h| h == name).ok_or_else(|| text.error(format!("no column {name:?}")));
        let (dialogue, note) = (column("dialogue")?, column("section_text")?);
        let mut pairs: Vec<(String, String)> = body
            .iter()
            .filter_map(|row| Some((one_line(row.get(dialogue)?), one_line(row.get(note)?))))
            .filter(|(dialogue, note)| (self.least..=self.most).contains(&dialogue.len()) && !note.is_empty())
            .collect();
        let examples = pairs.split_off(pairs.len().saturating_sub(self.examples));
        let shown: String =
            examples.iter().map(|(dialogue, note)| format!("Conversation: {dialogue}\nNote: {note}\n\n")).collect();
        let drafts = pairs.into_iter().enumerate().map(|(at, (dialogue, note))| Draft {
            id: format!("{at:03}"),
            context: shown.trim_end().to_owned(),
            input: dialogue,
            answers: vec![note],
            classes: None,
        });
        Ok(drafts.collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_section_ends_at_the_next_heading() {
        let visit = Visit { section: "HISTORY".into(), least: 1, most: 99 };
        let note = "COMPLAINT\n\nCough.\n\nHISTORY\n\nShe coughs.\nFor MRI see below.\n\nEXAM & LABS\n\nNone.";
        let text = serde_json::json!([
            {"src": "[doctor] hi", "tgt": note, "file": "a"}, {"src": "[doctor] oh", "tgt": "EXAM\nx", "file": "b"}
        ])
        .to_string();
        let found = visit.drafts(Text { id: "aci-bench", text: &text }).unwrap();
        assert_eq!(found.len(), 1, "a note without the section makes no record");
        assert_eq!(found[0].answers, ["She coughs. For MRI see below."]);
        assert!(visit.drafts(Text { id: "aci-bench", text: "{}" }).is_err());
    }

    #[test]
    fn examples_come_from_the_end_of_the_file() {
        let text = "ID,section_text,dialogue\n0,n0,\"Doctor: a, b\nPatient: c\"\n1,n1,Doctor: dd\n2,n2,Doctor: ee\n";
        let build = Consultation { examples: 1, least: 3, most: 99 };
        let found = build.drafts(Text { id: "mts-dialog", text }).unwrap();
        assert_eq!(found[0].input, "Doctor: a, b Patient: c");
        assert_eq!((found.len(), found[1].context.as_str()), (2, "Conversation: Doctor: ee\nNote: n2"));
        let error = build.drafts(Text { id: "mts-dialog", text: "a,b\n" }).unwrap_err().to_string();
        assert!(error.contains("dialogue"), "{error}");
    }
}
