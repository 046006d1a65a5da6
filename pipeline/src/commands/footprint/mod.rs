//! footprint: computes the size of a cache for any published shape, by formula, without weights.
//!
//! CSR's formula is the one that the cache itself uses; a test compares it with the allocated bytes. A layer with a sliding
//! window counts with the tokens that it holds. Bits per channel are relative to the channels that an uncompressed cache would
//! hold.

mod formula;
mod shapes;
mod tables;

use anyhow::{Context, Result, bail};
use kvcsr_codec::measured_bits;
use kvcsr_report::figures::FootprintLength;
use kvcsr_report::{FootprintRow, save};

use self::formula::Formula;
use self::shapes::{Shape, chosen};
use self::tables::tables;
use crate::cli::FootprintArgs;

/// Prints the tables and writes the figure with its data.
pub fn run(args: &FootprintArgs) -> Result<()> {
    let shapes = chosen(args)?;
    let names: Vec<&str> = args.schemes.split_whitespace().collect();
    let schemes = names.iter().map(|name| Ok((*name, Formula::parse(name)?))).collect::<Result<Vec<_>>>()?;
    if schemes.is_empty() || args.batch == 0 {
        bail!("--schemes and --batch: at least one scheme and one sequence are expected");
    }
    let lengths = lengths(&args.tokens)?;
    let mut rows = Vec::new();
    for shape in &shapes {
        print!("{}", tables(shape, &schemes, &lengths, args.batch)?);
        for (name, scheme) in &schemes {
            rows.extend(lengths.iter().map(|&tokens| row(shape, name, scheme, tokens, args.batch)));
        }
    }
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let saved = save::figure::<FootprintLength>(&args.out, &rows)?;
    println!("figure {} (and .png), data {}", saved.svg.display(), saved.csv.display());
    Ok(())
}

fn row(shape: &Shape, name: &str, scheme: &Formula, tokens: usize, batch: usize) -> FootprintRow {
    let footprint = scheme.footprint(shape, tokens, batch);
    let bits = measured_bits(footprint.total(), shape.channels(tokens, batch));
    FootprintRow {
        tokens,
        batch,
        nominal_bits: scheme.nominal(shape),
        measured_bits: bits.0,
        dictionaries: scheme.dictionaries(shape),
        ..FootprintRow::of(&shape.id, name, &footprint)
    }
}

/// `1000..32000` in steps of its start, `100..5000:100` in steps of 100, or a list `1000,2000`.
fn lengths(text: &str) -> Result<Vec<usize>> {
    let number = |text: &str| -> Result<usize> {
        match text.trim().parse() {
            Ok(n) if (1..=1 << 24).contains(&n) => Ok(n),
            _ => bail!("--tokens: `{text}` is not a length of 1 to {}", 1 << 24),
        }
    };
    let lengths: Vec<usize> = match text.split_once("..") {
        None => text.split(',').map(number).collect::<Result<_>>()?,
        Some((first, rest)) => {
            let (last, step) = match rest.split_once(':') {
                Some((last, step)) => (number(last)?, number(step)?),
                None => (number(rest)?, number(first)?),
            };
            (number(first)?..=last).step_by(step).collect()
        }
    };
    if lengths.is_empty() || lengths.len() > 10_000 || !lengths.is_sorted() {
        bail!(
            "--tokens: `{text}` is not a rising list of 1 to 10000 lengths, for example 1000..32000 or 100..5000:100"
        );
    }
    Ok(lengths)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lengths_are_read_and_wrong_ones_refused() {
        assert_eq!(lengths("1000..3500").unwrap(), [1000, 2000, 3000]);
        assert_eq!(lengths("100..300:50").unwrap(), [100, 150, 200, 250, 300]);
        assert_eq!(lengths("7,9").unwrap(), [7, 9]);
        for wrong in ["", "0..5", "5..1", "a", "9,7", "1..999999999", "1..20000"] {
            assert!(lengths(wrong).is_err(), "{wrong}");
        }
    }
}
