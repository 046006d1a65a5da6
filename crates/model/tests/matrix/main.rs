//! Which keys are read from which file of a model. Every row is checked here with files that the test writes. The table
//! in docs/MODELS.md is made from the same rows: `KVCSR_WRITE_DOCS=1 cargo test -p kvcsr-model --test matrix` writes
//! it.

#![allow(clippy::unwrap_used)]

mod files;
mod folder;
mod gguf;
mod model;

use std::panic::catch_unwind;
use std::path::Path;

use kvcsr_model::Tokenizer;

/// One key of one kind of file, and its effect.
pub struct Row {
    /// The file, such as `tokenizer_config.json` or `GGUF`.
    pub file: &'static str,
    /// The key or keys, as the file spells them.
    pub key: &'static str,
    /// What the program does with it, as text for the table.
    pub behaviour: &'static str,
    /// Panics if the program does something else.
    pub check: fn(),
}

/// The rows of the table, in order.
const ROWS: &[&[Row]] =
    &[folder::TOKENIZER, folder::ENDS, folder::CHAT, gguf::TOKENIZER, gguf::ENDS, model::CONFIG, model::GGUF];

fn rows() -> impl Iterator<Item = &'static Row> {
    ROWS.iter().copied().flatten()
}

#[test]
fn every_row_holds() {
    let failed: Vec<String> = rows()
        .filter(|row| catch_unwind(row.check).is_err())
        .map(|row| format!("{}: {}: {}", row.file, row.key, row.behaviour))
        .collect();
    assert!(failed.is_empty(), "these rows do not hold:\n{}", failed.join("\n"));
}

#[test]
fn the_tables_in_the_docs_are_made_of_these_rows() {
    let mut table = "| file | key | what it does |\n|---|---|---|\n".to_owned();
    for row in rows() {
        table.push_str(&format!("| {} | {} | {} |\n", row.file, row.key, row.behaviour));
    }
    let quoted = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let names: String = Tokenizer::pre_tokenizers().map(|names| format!("- {}\n", quoted(names))).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/MODELS.md");
    let mut page = std::fs::read_to_string(&path).unwrap();
    for (part, text) in [("matrix", table), ("pre-tokenizers", names)] {
        let (begin, end) = (format!("<!-- BEGIN {part} -->\n"), format!("<!-- END {part} -->"));
        let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("docs/MODELS.md lacks {begin}"));
        let (found, after) = rest.split_once(&end).unwrap_or_else(|| panic!("docs/MODELS.md lacks {end}"));
        if std::env::var_os("KVCSR_WRITE_DOCS").is_none() {
            assert_eq!(found, text, "run `KVCSR_WRITE_DOCS=1 cargo test -p kvcsr-model --test matrix`");
        }
        page = format!("{before}{begin}{text}{end}{after}");
    }
    if std::env::var_os("KVCSR_WRITE_DOCS").is_some() {
        std::fs::write(&path, page).unwrap();
    }
}
