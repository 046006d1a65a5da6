//! Pieces of a made-up vocabulary, enough of them for real text to be cut into runs of two to four letters.

/// What a piece may begin with, and what it goes on with: a space and the letters, the frequent ones first.
const LETTERS: &str = "etaoinshrdlucmfwypvbgkjqxz";

/// Pieces of one letter, then of two, three and four. Each but the first is one of the same list and a letter.
pub fn runs(space: char) -> impl Iterator<Item = String> {
    let first: Vec<String> = std::iter::once(space).chain(LETTERS.chars()).map(String::from).collect();
    let longer = |runs: &Vec<String>| -> Option<Vec<String>> {
        let with_letter = |run: &String| LETTERS.chars().map(|letter| format!("{run}{letter}")).collect::<Vec<_>>();
        (runs[0].chars().count() < 4).then(|| runs.iter().flat_map(with_letter).collect())
    };
    std::iter::successors(Some(first), longer).flatten()
}

/// Single characters that real texts have beside letters of [`runs`].
pub fn characters() -> impl Iterator<Item = String> {
    (' '..='~').filter(|c| !LETTERS.contains(*c) && *c != ' ').chain('\u{a1}'..='\u{ff}').map(String::from)
}
