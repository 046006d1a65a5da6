//! `kvcsr schemes`: lists the schemes of the registry.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use kvcsr_cache::registry::{self, Listed};
use kvcsr_cache::{Entry, KeysCoded};
use kvcsr_report::splice::splice_file;

/// How to list.
#[derive(Debug, Args)]
pub struct SchemesArgs {
    /// Print one JSON array instead of a table: patterns, examples, parameters, sources, bits
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print the table of docs/SCHEMES.md; with FILE, write it there between the markers `methods`
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    markdown: Option<Option<PathBuf>>,
}

/// Lists every scheme.
pub fn run(args: &SchemesArgs) -> Result<()> {
    if args.json {
        println!("{}", serde_json::to_string_pretty(&registry::listing()?)?);
        return Ok(());
    }
    match &args.markdown {
        Some(Some(file)) => {
            splice_file(file, "methods", &markdown()?)?;
        }
        Some(None) => print!("{}", markdown()?),
        None => table()?,
    }
    Ok(())
}

fn table() -> Result<()> {
    for listed in registry::listing()? {
        let entry = listed.entry;
        let keys = match entry.keys_coded {
            KeysCoded::BeforeRope => "before",
            KeysCoded::AfterRope => "after",
        };
        println!("{:<16} {}", entry.pattern, entry.summary);
        println!(
            "{:<16} {:.2} bits per channel nominal, {:.2} stored, at head size {}; keys {keys} position embedding",
            "", listed.nominal_bits, listed.stored_bits, listed.head_dim
        );
        for parameter in entry.parameters {
            let default = match parameter.default {
                "" => String::new(),
                default => format!(" ({default})"),
            };
            println!("{:<16}   {} = {}{default}", "", parameter.name, parameter.meaning);
        }
        println!("{:<16} for example {}", "", entry.examples.join(", "));
        if !entry.citation.is_empty() {
            println!("{:<16} {}", "", entry.citation);
        }
    }
    Ok(())
}

/// The table of docs/SCHEMES.md.
fn markdown() -> Result<String> {
    let mut table = String::from(
        "| scheme | what | keys coded | nominal bits | stored bits | source |\n|---|---|---|--:|--:|---|\n",
    );
    for Listed { entry, nominal_bits, stored_bits, .. } in registry::listing()? {
        let keys = match entry.keys_coded {
            KeysCoded::BeforeRope => "before RoPE",
            KeysCoded::AfterRope => "after RoPE",
        };
        let Entry { pattern, examples, summary, citation, .. } = entry;
        let example = if examples[0] == pattern { String::new() } else { format!(", as `{}`", examples[0]) };
        let (nominal, stored) = (shortest(nominal_bits), shortest(stored_bits));
        writeln!(table, "| `{pattern}`{example} | {summary} | {keys} | {nominal} | {stored} | {citation} |")?;
    }
    Ok(table)
}

/// With three decimals at most.
fn shortest(bits: f64) -> String {
    let text = format!("{bits:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_page_of_schemes_lists_every_one() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/SCHEMES.md")).unwrap();
        let (_, rest) = page.split_once("<!-- BEGIN methods -->\n").unwrap();
        let (table, _) = rest.split_once("<!-- END methods -->").unwrap();
        let expected = markdown().unwrap();
        assert!(
            table.trim() == expected.trim(),
            "docs/SCHEMES.md differs from the registry; `just kvcsr schemes --markdown docs/SCHEMES.md` writes:\n{expected}"
        );
    }
}
