//! Changes of bytes and of text that do not depend on the format.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::LONGEST;

/// A number near a limit, or near `usual`.
pub(super) fn number(usual: u64, rng: &mut ChaCha8Rng) -> u64 {
    let near = |limit: u64, rng: &mut ChaCha8Rng| limit.wrapping_add(rng.random_range(0..3)).wrapping_sub(1);
    match rng.random_range(0..8) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => near(usual, rng),
        4 => near(1 << rng.random_range(0..64), rng),
        5 => usual.wrapping_mul(rng.random_range(2..9)),
        6 => usual << rng.random_range(1..32),
        _ => rng.random_range(0..300),
    }
}

/// A part of `0..length`. Short parts are more frequent.
pub(super) fn part(length: usize, rng: &mut ChaCha8Rng) -> std::ops::Range<usize> {
    if length == 0 {
        return 0..0;
    }
    let start = rng.random_range(0..length);
    let most = 1 << rng.random_range(0..10);
    start..(start + rng.random_range(1..=most)).min(length)
}

/// One change that does not depend on the format.
pub(super) fn blind(out: &mut Vec<u8>, other: &[u8], rng: &mut ChaCha8Rng) {
    if out.is_empty() {
        out.push(rng.random());
        return;
    }
    let at = rng.random_range(0..out.len());
    match rng.random_range(0..11) {
        0 => out[at] ^= 1 << rng.random_range(0..8),
        1 => out[at] = rng.random(),
        2 => out[at] = [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)],
        3..=5 => {
            let width = [1, 2, 4, 8][rng.random_range(0..4)];
            let end = (at + width).min(out.len());
            let usual = out[at..end].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
            let usual = if rng.random_bool(0.2) { out.len() as u64 } else { usual };
            let put = number(usual, rng).to_le_bytes();
            let length = end - at;
            out[at..end].copy_from_slice(&put[..length]);
        }
        6 => drop(out.drain(part(out.len(), rng))),
        7 => out.truncate(at),
        8 => {
            let piece = out[part(out.len(), rng)].to_vec();
            let times = if rng.random_bool(0.1) { 200 } else { rng.random_range(1..5) };
            repeat(out, at, &piece, times);
        }
        9 => {
            let piece: Vec<u8> = other[part(other.len(), rng)].to_vec();
            repeat(out, at, &piece, 1);
        }
        _ => {
            let piece = &other[part(other.len(), rng)];
            let end = (at + piece.len()).min(out.len());
            let length = end - at;
            out[at..end].copy_from_slice(&piece[..length]);
        }
    }
}

fn repeat(out: &mut Vec<u8>, at: usize, piece: &[u8], times: usize) {
    let room = LONGEST.saturating_sub(out.len()) / piece.len().max(1);
    let put = piece.repeat(times.min(room));
    out.splice(at..at, put);
}

/// One change of a text: of its words, numbers, lines or brackets.
pub(super) fn text(out: &mut Vec<u8>, words: &[&str], other: &[u8], rng: &mut ChaCha8Rng) {
    let at = boundary(out, rng);
    match rng.random_range(0..9) {
        0 | 1 => {
            let word = words[rng.random_range(0..words.len())].as_bytes();
            repeat(out, at, word, if rng.random_bool(0.03) { 300 } else { 1 });
        }
        2 => {
            let word = words[rng.random_range(0..words.len())].as_bytes();
            let end = (at + part(out.len(), rng).len()).min(out.len());
            let end = (end..out.len()).find(|&end| is_boundary(out, end)).unwrap_or(out.len());
            out.splice(at..end, word.iter().copied());
        }
        3 | 4 => digits(out, at, rng),
        5 => {
            let lines: Vec<&[u8]> = other.split_inclusive(|&byte| byte == b'\n').collect();
            let line = lines.get(rng.random_range(0..lines.len().max(1))).copied().unwrap_or_default().to_vec();
            repeat(out, at, &line, 1);
        }
        6 => {
            // A line or a word is removed.
            let marks: &[u8] = if rng.random_bool(0.5) { b"\n" } else { b" ,\n" };
            let end = out[at..].iter().position(|byte| marks.contains(byte)).map_or(out.len(), |end| at + end + 1);
            out.drain(at..end);
        }
        7 => {
            let (open, close) = [("[", "]"), ("{", "}"), ("(", ")"), ("{\"a\":", "}")][rng.random_range(0..4)];
            let deep = [1, 2, 60, 130, 600][rng.random_range(0..5)];
            repeat(out, at, close.as_bytes(), deep);
            repeat(out, at, open.as_bytes(), deep);
        }
        _ => blind(out, other, rng),
    }
}

fn is_boundary(out: &[u8], at: usize) -> bool {
    out.get(at).is_none_or(|byte| byte & 0xc0 != 0x80)
}

fn boundary(out: &[u8], rng: &mut ChaCha8Rng) -> usize {
    let at = rng.random_range(0..=out.len());
    (at..out.len()).find(|&at| is_boundary(out, at)).unwrap_or(out.len())
}

/// Replaces the next number by another one.
fn digits(out: &mut Vec<u8>, at: usize, rng: &mut ChaCha8Rng) {
    let Some(start) = (at..out.len()).find(|&at| out[at].is_ascii_digit()) else { return };
    let end = (start..out.len()).find(|&at| !out[at].is_ascii_digit()).unwrap_or(out.len());
    let usual = std::str::from_utf8(&out[start..end]).ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    let put = match rng.random_range(0..8) {
        0 => "1e999".to_owned(),
        1 => "0.5".to_owned(),
        2 => format!("-{usual}"),
        _ => number(usual, rng).to_string(),
    };
    out.splice(start..end, put.into_bytes());
}
