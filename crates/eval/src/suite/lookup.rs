//! Tasks that ask for one of many records: "The code of the amber falcon is 48213."

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use super::Draft;

/// The number of records in a prompt.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lookup {
    lines: usize,
}

const COLOURS: [&str; 16] = [
    "amber", "black", "blue", "brown", "copper", "golden", "green", "grey", "orange", "pink", "purple", "red",
    "silver", "violet", "white", "yellow",
];
const ANIMALS: [&str; 16] = [
    "badger", "camel", "dolphin", "eagle", "falcon", "goat", "horse", "lion", "monkey", "otter", "panda", "rabbit",
    "spider", "tiger", "whale", "wolf",
];

/// All pairs of a colour and an animal, in random order.
pub(super) fn names(rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut names: Vec<String> =
        COLOURS.iter().flat_map(|colour| ANIMALS.iter().map(move |animal| format!("{colour} {animal}"))).collect();
    for i in (1..names.len()).rev() {
        names.swap(i, rng.random_range(0..=i));
    }
    names
}

/// A random code of five digits.
pub(super) fn code(rng: &mut ChaCha8Rng) -> u32 {
    rng.random_range(10_000..100_000)
}

impl Lookup {
    /// `count` prompts with `lines` records in random order, at most one record per name. The position of the record that is asked
    /// for moves evenly through the prompt.
    pub(super) fn drafts(&self, count: usize) -> Vec<Draft> {
        let lines = self.lines.clamp(1, COLOURS.len() * ANIMALS.len());
        (0..count)
            .map(|at| {
                let mut rng = ChaCha8Rng::seed_from_u64(at as u64);
                let records: Vec<(String, u32)> =
                    names(&mut rng).into_iter().take(lines).map(|name| (name, code(&mut rng))).collect();
                // Multiples of the golden ratio are spread evenly for any number of prompts.
                let asked = ((at as f64 * 0.618_033_988_749_895 + 0.5).fract() * lines as f64) as usize;
                let (name, answer) = &records[asked];
                let context: Vec<String> =
                    records.iter().map(|(name, code)| format!("The code of the {name} is {code}.")).collect();
                Draft {
                    id: format!("{at:03}"),
                    context: context.join("\n"),
                    input: format!("The code of the {name} is"),
                    answers: vec![answer.to_string()],
                    classes: None,
                }
            })
            .collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_stands_once_in_the_prompt_and_moves() {
        let found = Lookup { lines: 40 }.drafts(20);
        let mut places = Vec::new();
        for draft in &found {
            let line = format!("{} {}.", draft.input, draft.answers[0]);
            assert_eq!(draft.context.lines().count(), 40);
            assert_eq!(draft.context.lines().filter(|l| l.starts_with(&draft.input)).count(), 1);
            places.push(draft.context.lines().position(|l| l == line).unwrap());
        }
        places.sort_unstable();
        assert!(places[0] < 5 && places[19] >= 35, "{places:?}");
        assert_eq!(found[..3], Lookup { lines: 40 }.drafts(3)[..], "more prompts do not change the first ones");
        assert_ne!(found[0].context, found[1].context);
    }
}
