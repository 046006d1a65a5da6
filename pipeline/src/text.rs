//! Documents of a text file, their split into calibration and held-out parts, and token sequences.

use anyhow::{Result, bail};
use kvcsr_model::Tokenizer;

use crate::sources::Documents;

/// Which side of the split a document falls on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Calibration,
    Heldout,
}

/// Cuts a text into documents; blank ones are dropped.
pub fn documents<'a>(text: &'a str, rule: &Documents) -> Vec<&'a str> {
    let starts: Vec<usize> = match rule {
        Documents::Lines => line_starts(text).collect(),
        Documents::StartsWith(mark) => line_starts(text).filter(|&at| text[at..].starts_with(mark.as_str())).collect(),
        Documents::BlocksOf(bytes) => {
            let mut last = 0;
            line_starts(text)
                .filter(|&at| {
                    let cut = at - last >= *bytes && text[..at].ends_with("\n\n");
                    if cut {
                        last = at;
                    }
                    cut
                })
                .collect()
        }
    };
    let mut bounds = vec![0];
    bounds.extend(starts.into_iter().filter(|&at| at > 0));
    bounds.push(text.len());
    bounds.windows(2).map(|w| text[w[0]..w[1]].trim()).filter(|d| !d.is_empty()).collect()
}

fn line_starts(text: &str) -> impl Iterator<Item = usize> + '_ {
    std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1))
}

/// The side of a document. Only its own text and the seed decide it, so adding or removing
/// other documents does not change it.
pub fn side(document: &str, seed: u64, heldout_fraction: f64) -> Side {
    if fraction(b"part", document, seed) < heldout_fraction { Side::Heldout } else { Side::Calibration }
}

/// A number in 0..1 drawn from a purpose, a document and the seed.
fn fraction(purpose: &[u8], document: &str, seed: u64) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(purpose).update(&seed.to_le_bytes()).update(document.as_bytes());
    let bytes: [u8; 8] = hasher.finalize().as_bytes()[..8].try_into().expect("a hash has 32 bytes");
    u64::from_le_bytes(bytes) as f64 / (u64::MAX as f64 + 1.0)
}

/// The documents of one side in an order drawn from the seed.
pub fn shuffled<'a>(all: &[&'a str], side: Side, seed: u64, heldout_fraction: f64) -> Vec<&'a str> {
    let mut picked: Vec<&str> = all.iter().copied().filter(|d| self::side(d, seed, heldout_fraction) == side).collect();
    picked.sort_by(|a, b| fraction(b"order", a, seed).total_cmp(&fraction(b"order", b, seed)));
    picked
}

/// `count` sequences of exactly `length` tokens: documents one after another, with a blank line between
/// them, cut where a sequence is full. A sequence continues with a second document only if the
/// first is too short to fill it.
pub fn sequences(
    name: &str,
    documents: &[&str],
    tokenizer: &Tokenizer,
    length: usize,
    count: usize,
) -> Result<Vec<Vec<u32>>> {
    let mut sequences = Vec::with_capacity(count);
    let mut current: Vec<u32> = Vec::with_capacity(length);
    for document in documents {
        if sequences.len() == count {
            break;
        }
        let lead = if current.is_empty() { "" } else { "\n\n" };
        let ids = tokenizer.encode(&format!("{lead}{document}"), false)?;
        let room = length - current.len();
        current.extend_from_slice(&ids[..ids.len().min(room)]);
        if current.len() == length {
            sequences.push(std::mem::replace(&mut current, Vec::with_capacity(length)));
        }
    }
    // Long documents were cut: their later parts give the sequences that are still missing.
    for start in 1.. {
        if sequences.len() == count {
            break;
        }
        let mut found = false;
        for document in documents {
            let ids = tokenizer.encode(document, false)?;
            if let Some(part) = ids.get(start * length..(start + 1) * length) {
                found = true;
                sequences.push(part.to_vec());
                if sequences.len() == count {
                    break;
                }
            }
        }
        if !found {
            bail!(
                "corpus `{name}`: {} tokens in {count} sequences were asked for, but its documents give only {} sequences of {length}",
                count * length,
                sequences.len()
            );
        }
    }
    Ok(sequences)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn documents_by_lines_marks_and_blocks() {
        assert_eq!(documents("one\n\ntwo\n", &Documents::Lines), ["one", "two"]);
        let marked = "head\n<doc 1>\na\n<doc 2>\nb <doc inside\n";
        assert_eq!(
            documents(marked, &Documents::StartsWith("<doc ".into())),
            ["head", "<doc 1>\na", "<doc 2>\nb <doc inside"]
        );
        assert_eq!(documents("aaaa\n\nbb\ncccc\n\ndddd", &Documents::BlocksOf(5)), ["aaaa", "bb\ncccc", "dddd"]);
    }

    #[test]
    fn the_split_is_seeded_complete_and_near_the_fraction() {
        let texts: Vec<String> = (0..2000).map(|i| format!("document {i}")).collect();
        let all: Vec<&str> = texts.iter().map(String::as_str).collect();
        let held = shuffled(&all, Side::Heldout, 7, 0.25);
        let rest = shuffled(&all, Side::Calibration, 7, 0.25);
        assert_eq!(held.len() + rest.len(), all.len());
        assert!((400..600).contains(&held.len()), "{}", held.len());
        assert!(held.iter().all(|d| !rest.contains(d)));
        assert_ne!(held, shuffled(&all, Side::Heldout, 8, 0.25));
        assert_ne!(held, {
            let mut sorted = held.clone();
            sorted.sort_unstable();
            sorted
        });
    }
}
