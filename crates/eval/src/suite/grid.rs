//! Retrieval over depth and length: a pass key in filler (Mohtashami and Jaggi, 2023), a fact in real text (Kamradt, 2023).
//!
//! A *needle* is put at a depth of a text whose prompt has about a given number of tokens; the prompt ends with the words that
//! come before the answer in the needle, so that a model which can copy answers, however small it is.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::lookup::code;
use super::{Draft, Text, stories};
use crate::error::{EvalError, Result};
use crate::longbench::predictions::PredictionRow;
use crate::longbench::prompt::{Template, Tokens};

/// Lengths and depths.
#[derive(Debug, Clone, Copy)]
pub struct Grid<'s> {
    /// Tokens of the prompt, about.
    pub lengths: &'s [usize],
    /// Share of the text before the needle, 0 to 1.
    pub depths: &'s [f64],
    /// Prompts per cell, each with its own key.
    pub repeats: usize,
}

/// Where in the grid a record stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// Tokens asked for.
    pub tokens: usize,
    /// Share of the text before the needle, 0 to 1, to a thousandth.
    pub depth: f64,
}

/// One scheme in one cell.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// `passkey` or `needle`.
    pub task: String,
    /// The scheme's label.
    pub scheme: String,
    /// The cell.
    pub place: Place,
    /// Prompts answered.
    pub n: usize,
    /// Mean score, 0 to 1.
    pub score: f64,
}

const FILLER: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. The water is cold.";
const NAMES: [&str; 8] =
    ["Mrs Alder", "Mr Birch", "Mrs Cedar", "Mr Elm", "Mrs Hazel", "Mr Oakley", "Mrs Rowan", "Mr Willow"];

impl Grid<'_> {
    /// Pass keys in repeated filler.
    pub(super) fn passkeys(&self, template: &Template, tokens: &dyn Tokens) -> Result<Vec<Draft>> {
        let sentences: Vec<String> = FILLER.split_inclusive(". ").map(|s| s.trim().to_owned()).collect();
        self.drafts(
            template,
            tokens,
            |_| sentences.clone(),
            |_, key| {
                let needle = format!("The pass key is {key}. Remember it. {key} is the pass key.");
                (needle, "What is the pass key? The pass key is".to_owned())
            },
        )
    }

    /// Facts in the plots of `text`, another order of plots for every repeat.
    pub(super) fn needles(&self, text: Text<'_>, template: &Template, tokens: &dyn Tokens) -> Result<Vec<Draft>> {
        let plots = stories::passages(text)?;
        if plots.is_empty() {
            return Err(text.error("no passages".to_owned()));
        }
        let sentences = |repeat: usize| {
            let from = repeat % plots.len();
            let rotated = plots[from..].iter().chain(&plots[..from]);
            rotated.flat_map(|plot| plot.split_inclusive(". ")).map(|s| s.trim().to_owned()).collect()
        };
        self.drafts(template, tokens, sentences, |at, key| {
            let name = NAMES[at % NAMES.len()];
            let fact = format!("The secret number of {name} is");
            (format!("{fact} {key}."), fact)
        })
    }

    fn drafts(
        &self,
        template: &Template,
        tokens: &dyn Tokens,
        sentences: impl Fn(usize) -> Vec<String>,
        needle: impl Fn(usize, u32) -> (String, String),
    ) -> Result<Vec<Draft>> {
        let count = |text: &str| Ok::<_, EvalError>(tokens.encode(text).map_err(EvalError::Tokens)?.len());
        let mut drafts = Vec::new();
        for &length in self.lengths {
            for &depth in self.depths {
                for repeat in 0..self.repeats {
                    let at = drafts.len();
                    let key = code(&mut ChaCha8Rng::seed_from_u64(at as u64));
                    let (needle, input) = needle(at, key);
                    let room = length.saturating_sub(count(template.source())? + count(&needle)? + count(&input)?);
                    let hay = fill(&sentences(repeat), room, count)?;
                    let before = (hay.len() as f64 * depth.clamp(0.0, 1.0)).round() as usize;
                    let mut parts: Vec<&str> = hay.iter().map(String::as_str).collect();
                    parts.insert(before, &needle);
                    drafts.push(Draft {
                        id: format!("{length}-{:04}-{repeat}", (depth * 1000.0).round() as usize),
                        context: parts.join(" "),
                        input,
                        answers: vec![key.to_string()],
                        classes: None,
                    });
                }
            }
        }
        Ok(drafts)
    }
}

/// As many sentences, over and over, as have about `room` tokens.
fn fill(sentences: &[String], room: usize, count: impl Fn(&str) -> Result<usize>) -> Result<Vec<String>> {
    let mut hay = Vec::new();
    let mut used = 0;
    for sentence in sentences.iter().cycle() {
        // A sentence in a text begins with a blank, which belongs to its first token.
        used += count(&format!(" {sentence}"))?.max(1);
        if used > room {
            break;
        }
        hay.push(sentence.clone());
    }
    Ok(hay)
}

impl Place {
    /// Reads the id of a record of [`Grid`], for example `passkey-1024-0500-0`.
    #[must_use]
    pub fn of(id: &str) -> Option<Self> {
        let mut parts = id.rsplit('-').skip(1);
        let depth: usize = parts.next()?.parse().ok()?;
        let tokens = parts.next()?.parse().ok()?;
        Some(Self { tokens, depth: depth as f64 / 1000.0 })
    }
}

/// The cells of the grids in `rows`, in the order of first appearance; other tasks' rows are left out.
#[must_use]
pub fn cells(rows: &[PredictionRow]) -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    for row in rows.iter().filter(|row| ["passkey", "needle"].contains(&row.task.as_str())) {
        let Some(place) = Place::of(&row.id) else { continue };
        let label = row.label();
        let at = cells.iter().position(|c| c.task == row.task && c.scheme == label && c.place == place);
        let cell = match at {
            Some(at) => &mut cells[at],
            None => {
                cells.push(Cell { task: row.task.clone(), scheme: label, place, n: 0, score: 0.0 });
                cells.last_mut().expect("one was pushed")
            }
        };
        cell.n += 1;
        cell.score += (row.score - cell.score) / cell.n as f64;
    }
    cells
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::TokensError;
    use crate::longbench::predictions::tests::row;

    /// One token per word.
    struct Words;

    impl Tokens for Words {
        fn encode(&self, text: &str) -> Result<Vec<u32>, TokensError> {
            Ok(text.split_whitespace().map(|_| 0).collect())
        }

        fn decode(&self, _: &[u32]) -> Result<String, TokensError> {
            Ok(String::new())
        }
    }

    #[test]
    fn keys_stand_at_their_depth_in_texts_of_their_length() {
        let grid = Grid { lengths: &[100, 300], depths: &[0.0, 0.5, 1.0], repeats: 2 };
        let template = Template::parse("{context} {input}").unwrap();
        let found = grid.passkeys(&template, &Words).unwrap();
        assert_eq!(found.len(), 12);
        for draft in &found {
            let place = Place::of(&format!("passkey-{}", draft.id)).unwrap();
            let words = draft.context.split_whitespace().count() + draft.input.split_whitespace().count();
            assert!(words <= place.tokens && words + 10 > place.tokens, "{words} of {}", place.tokens);
            let at = draft.context.find("The pass key is").unwrap() as f64 / draft.context.len() as f64;
            assert!((at - place.depth).abs() < 0.18, "{at} instead of {}", place.depth);
            assert_eq!(draft.context.matches(&draft.answers[0]).count(), 2);
        }
        assert_ne!(found[0].answers, found[1].answers, "repeats have keys of their own");
    }

    #[test]
    fn needles_lie_in_real_text() {
        let row = |n: usize| {
            let passage = (0..40).map(|i| format!("Plot {n} goes on {i} times. ")).collect::<String>();
            serde_json::json!({"question": "q", "answer": ["a"], "passage": passage}).to_string()
        };
        let text = [row(0), row(1)].join("\n");
        let grid = Grid { lengths: &[60], depths: &[0.25], repeats: 2 };
        let template = Template::parse("{context} {input}").unwrap();
        let found = grid.needles(Text { id: "n", text: &text }, &template, &Words).unwrap();
        assert!(found[0].context.starts_with("Plot 0") && found[1].context.starts_with("Plot 1"));
        assert!(found[0].context.contains(&format!("{} {}.", found[0].input, found[0].answers[0])));
    }

    #[test]
    fn cells_are_means_over_repeats() {
        let rows = [
            row("passkey", "passkey-512-0500-0", "dense", 1.0),
            row("passkey", "passkey-512-0500-1", "dense", 0.0),
            row("needle", "needle-512-0500-0", "dense", 1.0),
            row("gsm8k", "gsm8k-000", "dense", 1.0),
        ];
        let found = cells(&rows);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].n, found[0].score), (2, 0.5));
        assert_eq!(found[1].place, Place { tokens: 512, depth: 0.5 });
        assert_eq!(Place::of("gsm8k"), None);
    }
}
