//! Pieces of a made-up vocabulary, enough of them for real text to be cut into runs of two to four letters.

/// The letters of pieces, the frequent ones first. A piece begins with a space or a letter, and continues with letters.
const LETTERS: &str = "etaoinshrdlucmfwypvbgkjqxz";

/// Pieces of one letter, then of two, three and four. A longer piece is a shorter one of the same list and one more letter.
pub fn runs(space: char) -> impl Iterator<Item = String> {
    let first: Vec<String> = std::iter::once(space).chain(LETTERS.chars()).map(String::from).collect();
    let longer = |runs: &Vec<String>| -> Option<Vec<String>> {
        let with_letter = |run: &String| LETTERS.chars().map(|letter| format!("{run}{letter}")).collect::<Vec<_>>();
        (runs[0].chars().count() < 4).then(|| runs.iter().flat_map(with_letter).collect())
    };
    std::iter::successors(Some(first), longer).flatten()
}

/// Single characters that real texts have besides the letters of [`runs`].
pub fn characters() -> impl Iterator<Item = String> {
    (' '..='~').filter(|c| !LETTERS.contains(*c) && *c != ' ').chain('\u{a1}'..='\u{ff}').map(String::from)
}
