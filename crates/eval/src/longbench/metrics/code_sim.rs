//! Code similarity: `fuzzywuzzy.fuzz.ratio` of the first line of code.
//!
//! Source: `code_sim_score` of LongBench's `metrics.py`. fuzzywuzzy 0.18 uses the ratio of python-Levenshtein if that is
//! installed, otherwise that of `difflib` in the standard library. LongBench's requirements do not list python-Levenshtein, so
//! `difflib` is the default here. The two differ by some points on LCC and RepoBench-P.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// The string ratio that [`code_sim`] uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CodeSim {
    /// `difflib.SequenceMatcher(None, prediction, answer).ratio()`: Ratcliff-Obershelp, which is not symmetric. It uses the
    /// "popular character" heuristic if the answer has 200 characters or more. This is the result with LongBench's requirements.
    #[default]
    Difflib,
    /// `Levenshtein.ratio`: one minus the normalised insertion and deletion distance. This is the result in an environment with
    /// python-Levenshtein.
    Levenshtein,
}

/// Similarity of the first line of code in `prediction` to `answer`, in `[0, 1]`, in steps of 0.01.
///
/// The line is the first one without a backtick, `#` or `//`. It is not stripped. It is empty if there is no such line.
#[must_use]
pub fn code_sim(prediction: &str, answer: &str, backend: CodeSim) -> f64 {
    let line = prediction
        .trim_start_matches('\n')
        .split('\n')
        .find(|line| !line.contains('`') && !line.contains('#') && !line.contains("//"))
        .unwrap_or("");
    fuzz_ratio(line, answer, backend) / 100.0
}

/// `fuzz.ratio`: an integer from 0 to 100.
fn fuzz_ratio(a: &str, b: &str, backend: CodeSim) -> f64 {
    if a == b {
        return 100.0;
    }
    if a.is_empty() || b.is_empty() {
        return 0.0;
    }
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let ratio = match backend {
        CodeSim::Difflib => difflib_ratio(&a, &b),
        CodeSim::Levenshtein => indel_ratio(&a, &b),
    };
    (100.0 * ratio).round_ties_even()
}

/// `SequenceMatcher(None, a, b).ratio()`: twice the number of characters in matching blocks, divided by the total number of
/// characters.
fn difflib_ratio(a: &[char], b: &[char]) -> f64 {
    let positions = positions_without_popular(b);
    let mut matches = 0;
    let mut open = vec![(0, a.len(), 0, b.len())];
    while let Some((a_low, a_high, b_low, b_high)) = open.pop() {
        let block = longest_match(a, b, &positions, (a_low, a_high, b_low, b_high));
        if block.size == 0 {
            continue;
        }
        matches += block.size;
        open.push((a_low, block.a, b_low, block.b));
        open.push((block.a + block.size, a_high, block.b + block.size, b_high));
    }
    2.0 * matches as f64 / (a.len() + b.len()) as f64
}

/// The positions of each character in `b`, in rising order. In a long `b`, characters at more than 1 % of the positions (plus
/// one) are left out (`autojunk`).
fn positions_without_popular(b: &[char]) -> HashMap<char, Vec<usize>> {
    let mut positions: HashMap<char, Vec<usize>> = HashMap::new();
    for (j, &c) in b.iter().enumerate() {
        positions.entry(c).or_default().push(j);
    }
    if b.len() >= 200 {
        let most = b.len() / 100 + 1;
        positions.retain(|_, places| places.len() <= most);
    }
    positions
}

/// `a[a .. a + size] == b[b .. b + size]`.
struct Block {
    a: usize,
    b: usize,
    size: usize,
}

/// The longest block within the bounds. Among equals it is the earliest in `a`, then the earliest in `b`. A block cannot start
/// with a popular character, but popular characters can extend it on both sides.
fn longest_match(
    a: &[char],
    b: &[char],
    positions: &HashMap<char, Vec<usize>>,
    (a_low, a_high, b_low, b_high): (usize, usize, usize, usize),
) -> Block {
    let mut best = Block { a: a_low, b: b_low, size: 0 };
    // Length of the match that ends at a[i - 1], b[j - 1]. The key is j, shifted by one so that it stays unsigned.
    let mut ending: HashMap<usize, usize> = HashMap::new();
    for (i, c) in a.iter().enumerate().take(a_high).skip(a_low) {
        let mut ending_here = HashMap::new();
        for &j in positions.get(c).map_or(&[][..], Vec::as_slice) {
            if j < b_low {
                continue;
            }
            if j >= b_high {
                break;
            }
            let size = ending.get(&j).copied().unwrap_or(0) + 1;
            ending_here.insert(j + 1, size);
            if size > best.size {
                best = Block { a: i + 1 - size, b: j + 1 - size, size };
            }
        }
        ending = ending_here;
    }
    while best.a > a_low && best.b > b_low && a[best.a - 1] == b[best.b - 1] {
        best.a -= 1;
        best.b -= 1;
        best.size += 1;
    }
    while best.a + best.size < a_high && best.b + best.size < b_high && a[best.a + best.size] == b[best.b + best.size] {
        best.size += 1;
    }
    best
}

/// `Levenshtein.ratio(a, b)`: `1 - (|a| + |b| - 2 LCS) / (|a| + |b|)`, subtracted in that order.
fn indel_ratio(a: &[char], b: &[char]) -> f64 {
    let total = a.len() + b.len();
    let distance = total - 2 * lcs_len(a, b);
    1.0 - distance as f64 / total as f64
}

fn lcs_len(a: &[char], b: &[char]) -> usize {
    let mut above = vec![0_usize; b.len() + 1];
    let mut row = above.clone();
    for x in a {
        for (j, y) in b.iter().enumerate() {
            row[j + 1] = if x == y { above[j] + 1 } else { above[j + 1].max(row[j]) };
        }
        std::mem::swap(&mut above, &mut row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difflib_depends_on_the_order() {
        assert_eq!(code_sim("tide", "diet", CodeSim::Difflib), 0.25);
        assert_eq!(code_sim("diet", "tide", CodeSim::Difflib), 0.5);
        assert_eq!(code_sim("tide", "diet", CodeSim::Levenshtein), code_sim("diet", "tide", CodeSim::Levenshtein));
    }

    #[test]
    fn equal_strings_score_one_even_if_empty() {
        assert_eq!(code_sim("", "", CodeSim::Difflib), 1.0);
        assert_eq!(code_sim("# only a comment", "", CodeSim::Difflib), 1.0);
        assert_eq!(code_sim("x", "", CodeSim::Difflib), 0.0);
        assert_eq!(code_sim("", "x", CodeSim::Levenshtein), 0.0);
    }

    #[test]
    fn the_first_line_of_code_is_taken_unstripped() {
        let prediction = "\n\n```rust\n# note\n// note\n  x = 1\ny = 2";
        assert_eq!(code_sim(prediction, "  x = 1", CodeSim::Difflib), 1.0);
        assert!(code_sim(prediction, "x = 1", CodeSim::Difflib) < 1.0);
        // Only newlines are stripped on the left, so a blank line counts as a line of code.
        assert_eq!(code_sim(" \nx", "x", CodeSim::Difflib), 0.0);
    }

    #[test]
    fn half_points_round_to_even() {
        // 2 * 1 / 16 = 0.125: 12.5 is rounded to 12. 2 * 3 / 16 = 0.375: 37.5 is rounded to 38.
        assert_eq!(code_sim("a1234567", "axyzuvwt", CodeSim::Difflib), 0.12);
        assert_eq!(code_sim("abc12345", "abcxyzuv", CodeSim::Difflib), 0.38);
    }

    #[test]
    fn popular_characters_are_dropped_from_200_on() {
        // "ab" repeated: with 198 characters all of them match, with 200 both characters are popular.
        let short = "ab".repeat(99);
        let long = "ab".repeat(100);
        let with_prefix = |s: &str| format!("x{s}");
        assert_eq!(code_sim(&with_prefix(&short), &short, CodeSim::Difflib), 1.0);
        assert_eq!(code_sim(&with_prefix(&long), &long, CodeSim::Difflib), 0.0);
        // Only the length of the answer matters.
        assert!(code_sim(&long, &short, CodeSim::Difflib) > 0.98);
    }
}
