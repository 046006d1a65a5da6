//! `kvcsr schemes`: what the registry of caches has.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use kvcsr_cache::registry::{self, KeysCoded};
use kvcsr_report::splice::splice_file;

/// How to list.
#[derive(Debug, Args)]
pub struct SchemesArgs {
    /// One JSON array instead of a table: patterns, examples, parameters, sources, bits
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// The README's table of methods; with a file, put it there between the markers `methods`
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
            splice_file(file, "methods", &registry::markdown()?)?;
        }
        Some(None) => print!("{}", registry::markdown()?),
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
