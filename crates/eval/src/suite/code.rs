//! Tasks that ask for the next line of a Python file.

use serde::Deserialize;

use super::{Draft, Text};

/// How much code is before the line, and how far apart the records are.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Code {
    context: usize,
    step: usize,
}

/// Minimum length in bytes of a line that is asked for. It excludes a bracket or a single word. Comments are excluded separately.
const LEAST: usize = 12;

impl Code {
    /// Whole lines of about `context` bytes and the line after them. Records are at least `step` bytes apart in the file.
    pub(super) fn drafts(&self, text: Text<'_>) -> Vec<Draft> {
        let mut starts: Vec<usize> = vec![0];
        starts.extend(text.text.match_indices('\n').map(|(at, _)| at + 1));
        let mut drafts = Vec::new();
        let mut next = self.context;
        for lines in starts.windows(2) {
            let line = text.text[lines[0]..lines[1]].trim_end();
            let told = line.trim_start();
            if lines[0] < next || told.len() < LEAST || told.starts_with(['#', '"', '\'']) {
                continue;
            }
            let from = starts[starts.partition_point(|&start| start + self.context < lines[0])];
            drafts.push(Draft {
                id: format!("{:06}", lines[0]),
                context: text.text[from..lines[0]].to_owned(),
                input: String::new(),
                answers: vec![line.to_owned()],
                classes: None,
            });
            next = lines[0] + self.step;
        }
        drafts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_lines_come_before_the_line_asked_for() {
        let text = "a = first(1)\nb = second(2)\n# a long comment line\n)\nc = third(30, 40)\nd = fourth(5, 6)\n";
        let found = Code { context: 30, step: 1 }.drafts(Text { id: "code", text });
        assert_eq!(found[0].answers, ["c = third(30, 40)"]);
        assert_eq!(found[0].context, "# a long comment line\n)\n");
        assert_eq!(found[1].answers, ["d = fourth(5, 6)"]);
        assert_eq!(found[1].context, ")\nc = third(30, 40)\n");
        assert_eq!(Code { context: 30, step: 100 }.drafts(Text { id: "code", text }).len(), 1);
    }
}
