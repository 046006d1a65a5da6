//! The tables that the command prints.

use std::fmt::Write as _;

use anyhow::Result;
use kvcsr_codec::Footprint;

use super::formula::Formula;
use super::row;
use super::shapes::{Shape, Sliding};

/// The schemes that break-even lengths are relative to.
const PEERS: [&str; 3] = ["dense-f16", "fp8", "kivi-2"];

/// Two tables: bits at a few lengths with break-even lengths, then bytes by part at the longest length.
pub fn tables(shape: &Shape, schemes: &[(&str, Formula)], lengths: &[usize], batch: usize) -> Result<String> {
    let mut text = String::new();
    let Shape { id, layers, kv_heads, head_dim, atoms, .. } = shape;
    let peers = PEERS.iter().map(|name| Formula::parse(name)).collect::<Result<Vec<_>>>()?;
    let width = schemes.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(8);
    let shown = few(lengths);
    let windows = shape.sliding.map_or_else(String::new, |Sliding { layers, window }| {
        format!(" ({layers} of them with a window of {window} tokens)")
    });
    writeln!(
        text,
        "{id}: {layers} layers{windows}, {kv_heads} key-value heads of {head_dim}, {atoms} atoms per dictionary, batch {batch}\n"
    )?;
    write!(text, "{:<width$} {:>7}  measured bits per channel at", "scheme", "nominal")?;
    let columns = 9 * shown.len();
    writeln!(text, "{:>1$}", "smaller than (from tokens)   with dictionaries", (columns + 49usize).saturating_sub(28))?;
    write!(text, "{:<width$} {:>7} ", "", "bits")?;
    shown.iter().try_for_each(|tokens| write!(text, "{tokens:>9}"))?;
    for _ in 0..2 {
        write!(text, "  ")?;
        PEERS.iter().try_for_each(|name| write!(text, " {:>8}", name.trim_start_matches("dense-")))?;
    }
    writeln!(text)?;
    for (name, scheme) in schemes {
        write!(text, "{name:<width$} {:>7.2} ", scheme.nominal(shape))?;
        for &tokens in &shown {
            write!(text, "{:>9.2}", row(shape, name, scheme, tokens, batch).measured_bits)?;
        }
        for dictionaries in [false, true] {
            write!(text, "  ")?;
            for (peer, peer_name) in peers.iter().zip(PEERS) {
                let from = match *name == peer_name {
                    true => "-".to_owned(),
                    false => scheme
                        .smaller_from(peer, shape, batch, dictionaries)
                        .map_or_else(|| "never".to_owned(), |tokens| tokens.to_string()),
                };
                write!(text, " {from:>8}")?;
            }
        }
        writeln!(text)?;
    }
    let last = lengths.last().copied().unwrap_or(1);
    writeln!(text, "\nmegabytes by part at {last} tokens (dictionaries in f16, shared by all sequences)\n")?;
    let all: Vec<(&str, Footprint, usize)> = schemes
        .iter()
        .map(|(name, scheme)| (*name, scheme.footprint(shape, last, batch), scheme.dictionaries(shape)))
        .collect();
    let used = |part: &str| all.iter().any(|(_, f, _)| f.parts().any(|(p, bytes)| p == part && bytes > 0));
    let parts: Vec<&str> = Footprint::default().parts().map(|(part, _)| part).filter(|part| used(part)).collect();
    write!(text, "{:<width$} {:>10}", "scheme", "total")?;
    parts.iter().try_for_each(|part| write!(text, " {part:>12}"))?;
    writeln!(text, " {:>12}", "dictionaries")?;
    for (name, footprint, dictionaries) in &all {
        write!(text, "{name:<width$} {:>10.2}", footprint.total() as f64 / 1e6)?;
        for (_, bytes) in footprint.parts().filter(|(part, _)| parts.contains(part)) {
            write!(text, " {:>12.2}", bytes as f64 / 1e6)?;
        }
        writeln!(text, " {:>12.2}", *dictionaries as f64 / 1e6)?;
    }
    writeln!(text)?;
    Ok(text)
}

/// At most six of the lengths, with about equal ratios between neighbours. The first and the last are among them.
fn few(lengths: &[usize]) -> Vec<usize> {
    let (Some(&first), Some(&last)) = (lengths.first(), lengths.last()) else { return Vec::new() };
    let mut shown: Vec<usize> = (0..6)
        .map(|i| first as f64 * (last as f64 / first as f64).powf(f64::from(i) / 5.0))
        .filter_map(|wanted| {
            lengths
                .iter()
                .copied()
                .min_by(|a, b| (*a as f64 / wanted).ln().abs().total_cmp(&(*b as f64 / wanted).ln().abs()))
        })
        .collect();
    shown.dedup();
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_lengths_of_equal_ratios() {
        let many: Vec<usize> = (1..=32).map(|thousands| 1000 * thousands).collect();
        assert_eq!(few(&many), [1000, 2000, 4000, 8000, 16000, 32000]);
        assert!(few(&[]).is_empty());
    }
}
