//! Retrieval by depth and length: a pass key in filler text (Mohtashami and Jaggi, 2023), a fact in real text (Kamradt, 2023), one
//! of several codes, and a variable through its assignments (the last two after RULER, Hsieh et al., 2024).
//!
//! A *needle* is placed at a given depth in a text. The prompt with this text has about a given number of tokens. It ends with
//! the words that precede the answer in the needle, so any model that can copy can answer, even a small one. The fraction of
//! correct answers over n prompts has a standard error of up to `0.5 / sqrt(n)`. Use at least [`PROMPTS`] prompts per cell to
//! distinguish schemes.

use kvcsr_records::RetrievalRow;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::lookup::{code, names};
use super::{Draft, Text, stories};
use crate::error::{EvalError, Result};
use crate::longbench::predictions::PredictionRow;
use crate::longbench::prompt::{Template, Tokens};

/// The lengths and depths of a grid.
#[derive(Debug, Clone, Copy)]
pub struct Grid<'s> {
    /// Approximate number of tokens of the prompt.
    pub lengths: &'s [usize],
    /// Fraction of the text that is before the needle, 0 to 1.
    pub depths: &'s [f64],
    /// Number of prompts per cell. Each has its own key.
    pub repeats: usize,
}

/// The cell of a record.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// Requested number of tokens.
    pub tokens: usize,
    /// Fraction of the text that is before the needle, 0 to 1, to a thousandth.
    pub depth: f64,
}

/// The tasks that are grids.
pub const TASKS: [&str; 4] = ["passkey", "needle", "keys", "variables"];

/// Number of prompts per cell that is enough to distinguish two schemes that differ on a quarter of the prompts.
pub const PROMPTS: usize = 50;

/// Number of codes in a prompt of `keys`. The prompt asks for one of them.
const KEYS: usize = 8;
/// Number of assignments in a chain of `variables`.
const ASSIGNMENTS: usize = 3;

const FILLER: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. The water is cold.";
const NAMES: [&str; 8] =
    ["Mrs Alder", "Mr Birch", "Mrs Cedar", "Mr Elm", "Mrs Hazel", "Mr Oakley", "Mrs Rowan", "Mr Willow"];

impl Grid<'_> {
    /// Pass keys in repeated filler text.
    pub(super) fn passkeys(&self, template: &Template, tokens: &dyn Tokens) -> Result<Vec<Draft>> {
        self.drafts(
            template,
            tokens,
            |_| filler(),
            |_, depth, rng| {
                let key = code(rng);
                Hidden {
                    needles: vec![(depth, format!("The pass key is {key}. Remember it. {key} is the pass key."))],
                    input: "What is the pass key? The pass key is".to_owned(),
                    answer: key,
                }
            },
        )
    }

    /// Facts in the plots of `text`. The plots have another order in every repeat.
    pub(super) fn needles(&self, text: Text<'_>, template: &Template, tokens: &dyn Tokens) -> Result<Vec<Draft>> {
        let plots = plots(text)?;
        self.drafts(
            template,
            tokens,
            |repeat| plot_sentences(&plots, repeat),
            |at, depth, rng| {
                let key = code(rng);
                let input = format!("The secret number of {} is", NAMES[at % NAMES.len()]);
                Hidden { needles: vec![(depth, format!("{input} {key}."))], input, answer: key }
            },
        )
    }

    /// Several codes in the plots of `text`. The code that is asked for is at the depth of the cell. The others are spread evenly.
    pub(super) fn keys(&self, text: Text<'_>, template: &Template, tokens: &dyn Tokens) -> Result<Vec<Draft>> {
        let plots = plots(text)?;
        self.drafts(
            template,
            tokens,
            |repeat| plot_sentences(&plots, repeat),
            |_, depth, rng| {
                let answer = code(rng);
                let mut others = names(rng).into_iter();
                let input = format!("The code of the {} is", others.next().expect("there are names"));
                let mut needles = vec![(depth, format!("{input} {answer}."))];
                needles.extend(others.take(KEYS - 1).enumerate().map(|(i, name)| {
                    let depth = (i as f64 + 0.5) / (KEYS - 1) as f64;
                    (depth, format!("The code of the {name} is {}.", code(rng)))
                }));
                Hidden { needles, input, answer }
            },
        )
    }

    /// A variable that is assigned to another one, and that one to a third, in repeated filler text. A second chain is not asked
    /// for. The first assignment is at the depth of the cell. The others are spread evenly over the text after it.
    pub(super) fn variables(&self, template: &Template, tokens: &dyn Tokens) -> Result<Vec<Draft>> {
        self.drafts(
            template,
            tokens,
            |_| filler(),
            |_, depth, rng| {
                let mut letters: Vec<char> = ('A'..='Z').collect();
                let mut letter = || letters.swap_remove(rng.random_range(0..letters.len()));
                let chains: [[char; ASSIGNMENTS]; 2] = std::array::from_fn(|_| std::array::from_fn(|_| letter()));
                let values: [u32; 2] = std::array::from_fn(|_| code(rng));
                let mut needles = Vec::new();
                for (chain, value) in chains.iter().zip(values) {
                    for (i, name) in chain.iter().enumerate() {
                        let assigned = if i == 0 { value.to_string() } else { format!("VAR {}", chain[i - 1]) };
                        let place = depth + (1.0 - depth) * i as f64 / ASSIGNMENTS as f64;
                        needles.push((place, format!("VAR {name} = {assigned}.")));
                    }
                }
                let asked = chains[0][ASSIGNMENTS - 1];
                let input = format!("What is the value of VAR {asked}? The value of VAR {asked} is");
                Hidden { needles, input, answer: values[0] }
            },
        )
    }

    fn drafts(
        &self,
        template: &Template,
        tokens: &dyn Tokens,
        sentences: impl Fn(usize) -> Vec<String>,
        hidden: impl Fn(usize, f64, &mut ChaCha8Rng) -> Hidden,
    ) -> Result<Vec<Draft>> {
        let count = |text: &str| Ok::<_, EvalError>(tokens.encode(text).map_err(EvalError::Tokens)?.len());
        let mut drafts = Vec::new();
        for &length in self.lengths {
            for &depth in self.depths {
                for repeat in 0..self.repeats {
                    let at = drafts.len();
                    let depth = depth.clamp(0.0, 1.0);
                    let Hidden { mut needles, input, answer } =
                        hidden(at, depth, &mut ChaCha8Rng::seed_from_u64(at as u64));
                    let mut taken = count(template.source())? + count(&input)?;
                    for (_, needle) in &needles {
                        taken += count(needle)?;
                    }
                    let hay = fill(&sentences(repeat), length.saturating_sub(taken), count)?;
                    let mut parts: Vec<&str> = hay.iter().map(String::as_str).collect();
                    // Insert from the end, so that no needle moves the position of another.
                    needles.sort_by(|a, b| a.0.total_cmp(&b.0));
                    for (depth, needle) in needles.iter().rev() {
                        parts.insert((hay.len() as f64 * depth).round() as usize, needle);
                    }
                    drafts.push(Draft {
                        id: format!("{length}-{:04}-{repeat}", (depth * 1000.0).round() as usize),
                        context: parts.join(" "),
                        input,
                        answers: vec![answer.to_string()],
                        classes: None,
                    });
                }
            }
        }
        Ok(drafts)
    }
}

/// The needles of a text, and the question.
struct Hidden {
    /// For each needle, the fraction of the text before it, 0 to 1, and the needle.
    needles: Vec<(f64, String)>,
    input: String,
    answer: u32,
}

fn filler() -> Vec<String> {
    FILLER.split_inclusive(". ").map(|s| s.trim().to_owned()).collect()
}

/// The plots of `text`. There must be at least one.
fn plots(text: Text<'_>) -> Result<Vec<String>> {
    let plots = stories::passages(text)?;
    if plots.is_empty() {
        return Err(text.error("no passages".to_owned()));
    }
    Ok(plots)
}

/// The sentences of the plots. There must be at least one plot. Each repeat starts with another plot.
fn plot_sentences(plots: &[String], repeat: usize) -> Vec<String> {
    let from = repeat % plots.len();
    let rotated = plots[from..].iter().chain(&plots[..from]);
    rotated.flat_map(|plot| plot.split_inclusive(". ")).map(|s| s.trim().to_owned()).collect()
}

/// Repeats the sentences until they have about `room` tokens.
fn fill(sentences: &[String], room: usize, count: impl Fn(&str) -> Result<usize>) -> Result<Vec<String>> {
    let mut hay = Vec::new();
    let mut used = 0;
    for sentence in sentences.iter().cycle() {
        // Inside a text, a sentence starts with a space, which belongs to its first token.
        used += count(&format!(" {sentence}"))?.max(1);
        if used > room {
            break;
        }
        hay.push(sentence.clone());
    }
    Ok(hay)
}

impl Place {
    /// Reads the cell from the id of a record of [`Grid`], for example `passkey-1024-0500-0`.
    #[must_use]
    pub fn of(id: &str) -> Option<Self> {
        let mut parts = id.rsplit('-').skip(1);
        let depth: usize = parts.next()?.parse().ok()?;
        let tokens = parts.next()?.parse().ok()?;
        Some(Self { tokens, depth: depth as f64 / 1000.0 })
    }
}

/// The cells of the grids in `rows`, in the order of first appearance. Rows of other tasks are ignored.
#[must_use]
pub fn cells(rows: &[PredictionRow]) -> Vec<RetrievalRow> {
    let mut cells: Vec<RetrievalRow> = Vec::new();
    for row in rows.iter().filter(|row| TASKS.contains(&row.task.as_str())) {
        let Some(Place { tokens, depth }) = Place::of(&row.id) else { continue };
        let label = row.label();
        let here = |c: &RetrievalRow| c.task == row.task && c.scheme == label && (c.tokens, c.depth) == (tokens, depth);
        let at = cells.iter().position(here);
        let cell = match at {
            Some(at) => &mut cells[at],
            None => {
                cells.push(RetrievalRow { task: row.task.clone(), scheme: label, tokens, depth, n: 0, score: 0.0 });
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
        let text = two_plots();
        let grid = Grid { lengths: &[60], depths: &[0.25], repeats: 2 };
        let template = Template::parse("{context} {input}").unwrap();
        let found = grid.needles(Text { id: "n", text: &text }, &template, &Words).unwrap();
        assert!(found[0].context.starts_with("Plot 0") && found[1].context.starts_with("Plot 1"));
        assert!(found[0].context.contains(&format!("{} {}.", found[0].input, found[0].answers[0])));
    }

    fn two_plots() -> String {
        let row = |n: usize| {
            let passage = (0..40).map(|i| format!("Plot {n} goes on {i} times. ")).collect::<String>();
            serde_json::json!({"question": "q", "answer": ["a"], "passage": passage}).to_string()
        };
        [row(0), row(1)].join("\n")
    }

    #[test]
    fn one_of_several_codes_is_asked_for_and_stands_at_its_depth() {
        let grid = Grid { lengths: &[300], depths: &[0.0, 0.5, 1.0], repeats: PROMPTS };
        let template = Template::parse("{context} {input}").unwrap();
        let text = two_plots();
        let make = || grid.keys(Text { id: "n", text: &text }, &template, &Words).unwrap();
        let found = make();
        assert_eq!(found, make(), "the seed decides");
        assert_eq!(found.len(), 3 * PROMPTS);
        for draft in &found {
            assert_eq!(draft.context.matches("The code of the ").count(), KEYS);
            let asked = format!("{} {}.", draft.input, draft.answers[0]);
            let place = Place::of(&format!("keys-{}", draft.id)).unwrap();
            let at = draft.context.find(&asked).unwrap() as f64 / draft.context.len() as f64;
            assert!((at - place.depth).abs() < 0.15, "{at} instead of {}", place.depth);
            assert_eq!(draft.context.matches(&draft.input).count(), 1);
        }
    }

    #[test]
    fn a_variable_has_its_value_through_assignments_in_order() {
        let grid = Grid { lengths: &[300], depths: &[0.0, 1.0], repeats: 20 };
        let template = Template::parse("{context} {input}").unwrap();
        for draft in grid.variables(&template, &Words).unwrap() {
            // Runs the assignments in the order of the text.
            let mut values = std::collections::BTreeMap::new();
            for (at, _) in
                draft.context.match_indices("VAR ").filter(|(at, _)| draft.context[at + 5..].starts_with(" = "))
            {
                let name = &draft.context[at + 4..at + 5];
                let assigned = draft.context[at + 8..].split('.').next().unwrap();
                let value = match assigned.strip_prefix("VAR ") {
                    Some(other) => values[other],
                    None => assigned.parse::<u32>().unwrap(),
                };
                assert_eq!(values.insert(name.to_owned(), value), None);
            }
            assert_eq!(values.len(), 2 * ASSIGNMENTS);
            let asked = &draft.input[draft.input.len() - 4..draft.input.len() - 3];
            assert_eq!(values[asked].to_string(), draft.answers[0], "{}", draft.context);
            assert_eq!(draft.context.matches(&draft.answers[0]).count(), 1, "only the first assignment names it");
        }
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
        assert_eq!((found[1].task.as_str(), found[1].tokens, found[1].depth), ("needle", 512, 0.5));
        assert_eq!(Place::of("gsm8k"), None);
    }
}
