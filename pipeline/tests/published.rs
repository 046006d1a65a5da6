//! Checks that README.md and docs/RESULTS.md show what `data/results` holds. The tests only read files and run no stage.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kvcsr_report::claims::{self, ClaimRow};
use kvcsr_report::figures::{
    Frontier, LayerDivergence, LayerError, MemoryLength, PromptScatter, QualityBits, RetrievalGrid, RotaryScatter,
    TimeLength, TrainingLoss,
};
use kvcsr_report::records::{OverallRow, TaskRow};
use kvcsr_report::save::{self, Figure};
use kvcsr_report::{AblationRow, HeldoutRow, SchemeSummary, ablation, aggregate, compare, csv, longbench, tables};
use sha2::{Digest, Sha256};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Folders of published profiles.
fn published() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("data/results")).unwrap();
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
}

/// The text between the markers of each part of a document.
fn parts(document: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(root().join(document)).unwrap();
    let of_part = |rest: &str| {
        let (name, rest) = rest.split_once(" -->").unwrap();
        let (text, _) = rest.split_once(&format!("<!-- END {name} -->")).unwrap_or_else(|| panic!("{name} has no end"));
        (name.to_owned(), text.to_owned())
    };
    text.split("<!-- BEGIN ").skip(1).map(of_part).collect()
}

/// The runs of lines that are tables.
fn markdown_tables(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let runs = lines.chunk_by(|a, b| a.starts_with('|') == b.starts_with('|'));
    runs.filter(|run| run[0].starts_with('|')).map(|run| run.join("\n")).collect()
}

#[test]
fn every_table_of_the_documents_stands_in_a_published_page() {
    let mut pages = String::new();
    for folder in published() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                pages += &fs::read_to_string(path).unwrap();
            }
        }
    }
    let parts = parts("docs/RESULTS.md");
    let names: Vec<&str> = parts.keys().map(String::as_str).collect();
    assert_eq!(names, ["ablation", "at-rest", "compare", "compare-qwen-coder-1.5b", "longbench", "results", "suite"]);
    for (name, text) in &parts {
        let tables = markdown_tables(text);
        assert!(!tables.is_empty(), "docs/RESULTS.md, part `{name}`, has no table");
        for table in tables {
            assert!(
                pages.contains(&table),
                "docs/RESULTS.md, part `{name}`, differs from data/results: run `just report`, edit neither by hand\n{table}"
            );
        }
    }
}

#[test]
fn the_tables_are_those_of_the_committed_rows() {
    let mut compared = 0;
    for folder in published() {
        let rows = folder.join("documents.csv");
        if !rows.is_file() {
            continue;
        }
        let documents: Vec<HeldoutRow> = csv::read(&rows).unwrap();
        let summaries: Vec<SchemeSummary> = csv::read(&folder.join("results.csv")).unwrap();
        for summary in &summaries {
            let own = |row: &&HeldoutRow| (&row.scheme, row.dictionary) == (&summary.scheme, summary.dictionary);
            let n = documents.iter().filter(own).filter(|row| row.domain != "repeat").count();
            assert_eq!(n, summary.n, "{}: results.csv and documents.csv differ", summary.label());
        }
        assert_made_of(&documents, &summaries, &folder);
        let table = tables::results_markdown(&summaries, false).unwrap();
        let report = fs::read_to_string(folder.join("report.md")).unwrap();
        assert!(report.contains(table.trim()), "{}: report.md and results.csv differ", folder.display());
        assert!(parts("docs/RESULTS.md")["results"].contains(table.trim()), "docs/RESULTS.md and results.csv differ");
        compared += 1;
    }
    assert!(compared > 0, "no published profile has rows");
}

#[test]
fn the_comparison_is_that_of_the_committed_documents() {
    let mut compared = 0;
    for folder in published() {
        let rows = folder.join("compare-documents.csv");
        if !rows.is_file() {
            eprintln!("{}: single documents are not published", folder.display());
            continue;
        }
        let summaries: Vec<SchemeSummary> = csv::read(&folder.join("compare.csv")).unwrap();
        assert_made_of(&csv::read::<HeldoutRow>(&rows).unwrap(), &summaries, &folder);
        compared += 1;
    }
    assert!(compared > 0, "no single documents of a comparison are published");
}

/// Checks that published numbers over all documents follow from those of single documents.
fn assert_made_of(documents: &[HeldoutRow], summaries: &[SchemeSummary], folder: &Path) {
    let made = aggregate::overall(documents).unwrap();
    let shown: Vec<&SchemeSummary> = summaries.iter().filter(|row| row.domain == "all").collect();
    assert_eq!(made.len(), shown.len(), "{}", folder.display());
    for summary in shown {
        let same = |row: &&SchemeSummary| row.label() == summary.label() && row.context == summary.context;
        let row = made.iter().find(same).unwrap_or_else(|| panic!("{} has no documents", summary.label()));
        let numbers = |row: &SchemeSummary| [row.measured_bits, row.kl, row.recovery.unwrap_or(-99.0)];
        let (found, shown) = (numbers(row), numbers(summary));
        let near = found.iter().zip(shown).all(|(a, b)| (a - b).abs() <= 1e-9 * b.abs().max(1.0));
        assert!(near && row.n == summary.n, "{}: {found:?}, published {shown:?}", summary.label());
    }
}

#[test]
fn the_ablation_is_that_of_the_committed_rows() {
    let shown = &parts("docs/RESULTS.md")["ablation"];
    for folder in published() {
        let rows = folder.join("ablation.csv");
        if !rows.is_file() {
            eprintln!("{}: no ablation is published", folder.display());
            continue;
        }
        let rows: Vec<AblationRow> = csv::read(&rows).unwrap();
        let report = fs::read_to_string(folder.join("report.md")).unwrap();
        for (what, text, in_results) in [
            ("Table 3", ablation::table3_markdown(&rows), false),
            ("its coverage", ablation::coverage(&rows), false),
            ("trainers", ablation::options_markdown(&rows), true),
            ("peers", ablation::peers_markdown(&rows), true),
            ("merged layers", ablation::merged_markdown(&rows), false),
            ("the verdict on merging", ablation::merged_verdict(&rows), true),
        ] {
            assert!(report.contains(text.trim()), "{}: report.md and ablation.csv differ in {what}", folder.display());
            assert!(!in_results || shown.contains(text.trim()), "docs/RESULTS.md and ablation.csv differ in {what}");
        }
    }
}

#[test]
fn the_claims_are_judged_on_the_committed_rows() {
    let parts = parts("docs/CLAIMS.md");
    assert!(!parts.is_empty());
    for (profile, text) in parts {
        let folder = root().join("data/results").join(&profile);
        let rows: Vec<ClaimRow> = csv::read(&folder.join("claims.csv")).unwrap();
        let compared: Vec<SchemeSummary> = csv::read(&folder.join("compare.csv")).unwrap();
        assert!(
            text.contains(claims::markdown(&rows, &compared).trim()),
            "docs/CLAIMS.md, part `{profile}`: run `just report`"
        );
    }
}

#[test]
fn prompts_as_files_are_those_of_the_committed_rows() {
    for folder in published().into_iter().filter(|folder| folder.join("at-rest.csv").is_file()) {
        let rows: Vec<SchemeSummary> = csv::read(&folder.join("at-rest.csv")).unwrap();
        let report = fs::read_to_string(folder.join("report.md")).unwrap();
        let mut contexts: Vec<usize> = rows.iter().map(|row| row.context).collect();
        contexts.dedup();
        for context in contexts {
            let own: Vec<SchemeSummary> = rows.iter().filter(|row| row.context == context).cloned().collect();
            assert!(own.iter().any(|row| row.scheme.starts_with("evict(")), "deletion is in every table");
            assert!(report.contains(compare::markdown(&own).trim()), "{}: {context} tokens", folder.display());
            assert!(report.contains(compare::memory_markdown(&own).trim()), "{}: shared bytes", folder.display());
        }
    }
}

#[test]
fn the_comparison_is_that_of_the_committed_rows() {
    let folders: Vec<PathBuf> = published().into_iter().filter(|folder| folder.join("compare.csv").is_file()).collect();
    assert!(!folders.is_empty(), "no comparison is published");
    for folder in folders {
        let rows: Vec<SchemeSummary> = csv::read(&folder.join("compare.csv")).unwrap();
        let mut contexts: Vec<usize> = rows.iter().map(|row| row.context).collect();
        contexts.dedup();
        let report = fs::read_to_string(folder.join("report.md")).unwrap();
        let at = |context: usize| -> Vec<SchemeSummary> {
            rows.iter().filter(|row| row.context == context).cloned().collect()
        };
        for &context in &contexts {
            let table = compare::markdown(&at(context));
            assert!(report.contains(table.trim()), "{}: report.md differs at {context} tokens", folder.display());
            let memory = compare::memory_markdown(&at(context));
            assert!(report.contains(memory.trim()), "{}: shared bytes differ at {context} tokens", folder.display());
            // Deletion is in every comparison, at more than one size.
            let controls =
                at(context).iter().filter(|row| row.domain == "all" && row.scheme.starts_with("evict(")).count();
            assert!(controls > 1, "{}: {controls} rows of deletion at {context} tokens", folder.display());
        }
        let shown = at(contexts[contexts.len() / 2]);
        // A profile has a part of its own, or the part without the name of a profile.
        let profile = folder.file_name().unwrap().to_str().unwrap();
        let part = |document: &str, name: &str| {
            let parts = parts(document);
            parts.get(&format!("{name}-{profile}")).unwrap_or_else(|| &parts[name]).clone()
        };
        let results = part("docs/RESULTS.md", "compare");
        assert!(results.contains(compare::markdown(&shown).trim()), "docs/RESULTS.md and compare.csv differ");
        let headline = part("README.md", "headline");
        let table = compare::headline_markdown(&shown);
        assert!(headline.contains(table.trim()), "README.md and compare.csv differ\n{table}");
    }
}

/// Compares a page of a published folder with its rows of tasks and of schemes, and with the part of docs/RESULTS.md about it.
/// False if the folder has no such rows.
fn scores_of(page: &Path, stem: &str, part: &str) -> bool {
    let folder = page.parent().unwrap();
    let (tasks, schemes) = (folder.join(format!("{stem}.csv")), folder.join(format!("{stem}-schemes.csv")));
    if !schemes.is_file() {
        return false;
    }
    let tasks: Vec<TaskRow> = csv::read(&tasks).unwrap();
    let schemes: Vec<OverallRow> = csv::read(&schemes).unwrap();
    let mut names: Vec<String> = tasks.iter().map(|row| row.task.clone()).collect();
    names.dedup();
    for scheme in &schemes {
        let n: usize = tasks.iter().filter(|row| row.scheme == scheme.scheme).map(|row| row.n).sum();
        assert_eq!(n, scheme.n, "{}: {stem}.csv and {stem}-schemes.csv differ in {}", folder.display(), scheme.scheme);
    }
    // Deletion is in every table of scores.
    assert!(schemes.iter().any(|row| row.scheme.starts_with("evict(")), "{}: {stem} has no control", folder.display());
    let text = fs::read_to_string(page).unwrap();
    let all = longbench::run_markdown(&names, &tasks, &schemes);
    assert!(text.contains(all.trim()), "{} and {stem}.csv differ", page.display());
    let table = longbench::schemes_markdown(&schemes);
    assert!(text.contains(table.trim()), "{} and {stem}-schemes.csv differ", page.display());
    assert!(parts("docs/RESULTS.md")[part].contains(table.trim()), "docs/RESULTS.md and {stem}-schemes.csv differ");
    true
}

#[test]
fn scores_are_those_of_the_committed_rows() {
    let all =
        |page: &str, stem: &str| published().iter().filter(|folder| scores_of(&folder.join(page), stem, stem)).count();
    assert_eq!(all("longbench.md", "longbench"), 1, "folders with LongBench's rows");
    assert_eq!(all("report.md", "suite"), 1, "folders with the suite's rows");
}

/// Checks that the figure of the rows in a published CSV is the SVG that was published.
fn check<F: Figure>(folder: &Path, stem: &str, rows: &[F::Row]) {
    let drawn = save::svg::<F>(rows).unwrap();
    let committed = fs::read_to_string(folder.join(format!("{stem}.svg"))).unwrap();
    assert!(drawn == committed, "{stem}.svg is not what its rows give");
}

#[test]
fn the_figures_are_those_of_the_committed_rows() {
    let folder = root().join("data/results/smol");
    let read = |name: &str| folder.join(format!("{name}.csv"));
    check::<LayerDivergence>(&folder, LayerDivergence::NAME, &csv::read(&read("divergence")).unwrap());
    check::<LayerError>(&folder, LayerError::NAME, &csv::read(&read("reconstruction")).unwrap());
    check::<MemoryLength>(&folder, MemoryLength::NAME, &csv::read(&read("memory")).unwrap());
    check::<QualityBits>(&folder, QualityBits::NAME, &csv::read(&read("documents")).unwrap());
    check::<TrainingLoss>(&folder, TrainingLoss::NAME, &csv::read(&read("training")).unwrap());
    check::<PromptScatter>(&folder, PromptScatter::NAME, &csv::read(&read(PromptScatter::NAME)).unwrap());
    check::<RotaryScatter>(&folder, RotaryScatter::NAME, &csv::read(&read(RotaryScatter::NAME)).unwrap());
    // The grids of a suite, with pass keys and needles over depth and length.
    for folder in published().iter().filter(|folder| folder.join(format!("{}.csv", RetrievalGrid::NAME)).is_file()) {
        let rows = csv::read(&folder.join(format!("{}.csv", RetrievalGrid::NAME))).unwrap();
        check::<RetrievalGrid>(folder, RetrievalGrid::NAME, &rows);
    }
    let rows: Vec<SchemeSummary> = csv::read(&read("compare")).unwrap();
    let all: Vec<SchemeSummary> = rows.into_iter().filter(|row| row.domain == "all").collect();
    check::<TimeLength>(&folder, TimeLength::NAME, &all);
    for of_context in all.chunk_by(|a, b| a.context == b.context) {
        check::<Frontier>(&folder, &format!("{}-{}", Frontier::NAME, of_context[0].context), of_context);
    }
}

#[test]
fn each_thing_is_published_once() {
    let mut seen: BTreeMap<Vec<u8>, PathBuf> = BTreeMap::new();
    for folder in published() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let hash = Sha256::digest(fs::read(&path).unwrap()).to_vec();
            if let Some(other) = seen.insert(hash, path.clone()) {
                panic!("{} and {} are equal", other.display(), path.display());
            }
        }
    }
}
