//! What the README shows is what `data/results` holds: a test of files, which runs no stage.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use kvcsr_report::compare::{self, CompareRow};
use kvcsr_report::{AblationRow, HeldoutRow, ablation, aggregate, csv, splice, tables};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Published profiles, each with the parts that it put into the README: marker and text.
fn published() -> Vec<(PathBuf, Vec<(String, String)>)> {
    let folders = fs::read_dir(root().join("data/results")).unwrap().map(|entry| entry.unwrap().path());
    let parts = |folder: &Path| {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter_map(|path| {
                let name = path.file_name()?.to_str()?;
                let marker = name.strip_prefix("readme-")?.strip_suffix(".md")?.to_owned();
                Some((marker, fs::read_to_string(&path).unwrap()))
            })
            .collect()
    };
    folders.filter(|folder| folder.is_dir()).map(|folder| (folder.clone(), parts(&folder))).collect()
}

#[test]
fn the_readme_shows_the_committed_parts_and_no_others() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let mut markers = Vec::new();
    for (folder, parts) in published() {
        for (marker, text) in parts {
            let spliced = splice::splice(&readme, &marker, &text).unwrap();
            assert!(
                spliced == readme,
                "README.md, part `{marker}`, differs from {}/readme-{marker}.md: run `just report`, do not edit either by hand",
                folder.display()
            );
            markers.push(marker);
        }
    }
    markers.sort();
    // The table of methods is the registry's, and compared with it there. A part between whose markers nothing stands
    // has not been published yet.
    let mut shown: Vec<&str> = readme
        .split("<!-- BEGIN ")
        .skip(1)
        .filter(|rest| !rest.split_once("-->").unwrap().1.trim_start().starts_with("<!-- END"))
        .map(|rest| rest.split(" -->").next().unwrap())
        .filter(|marker| *marker != "methods")
        .collect();
    shown.sort_unstable();
    assert_eq!(markers, shown, "parts that are published, and parts that the README shows");
}

#[test]
fn the_tables_are_those_of_the_committed_rows() {
    let mut compared = 0;
    for (folder, parts) in published() {
        let rows = folder.join("documents.csv");
        if !rows.is_file() {
            continue;
        }
        let rows: Vec<HeldoutRow> = csv::read(&rows).unwrap();
        let table = tables::results_markdown(&aggregate::overall(&rows).unwrap(), false).unwrap();
        let report = fs::read_to_string(folder.join("report.md")).unwrap();
        assert!(report.contains(table.trim()), "{}: report.md and documents.csv differ", folder.display());
        for (_, text) in parts.iter().filter(|(marker, _)| marker == "results") {
            assert!(text.contains(table.trim()), "{}: readme-results.md and documents.csv differ", folder.display());
        }
        compared += 1;
    }
    assert!(compared > 0, "no published profile has rows");
}

#[test]
fn the_ablation_is_that_of_the_committed_rows() {
    for (folder, parts) in published() {
        let rows = folder.join("ablation.csv");
        if !rows.is_file() {
            eprintln!("{}: no ablation is published", folder.display());
            continue;
        }
        let rows: Vec<AblationRow> = csv::read(&rows).unwrap();
        let report = fs::read_to_string(folder.join("report.md")).unwrap();
        let (_, readme) =
            parts.iter().find(|(marker, _)| marker == "ablation").expect("rows without their README part");
        for (what, text, in_readme) in [
            ("Table 3", ablation::table3_markdown(&rows), false),
            ("its coverage", ablation::coverage(&rows), false),
            ("trainers", ablation::options_markdown(&rows), true),
            ("peers", ablation::peers_markdown(&rows), true),
            ("merged layers", ablation::merged_markdown(&rows), false),
            ("the verdict on merging", ablation::merged_verdict(&rows), true),
        ] {
            assert!(report.contains(text.trim()), "{}: report.md and ablation.csv differ in {what}", folder.display());
            assert!(
                !in_readme || readme.contains(text.trim()),
                "{}: readme-ablation.md and ablation.csv differ in {what}",
                folder.display()
            );
        }
        for figure in ["prompt-scatter", "rotary-scatter"] {
            for extension in ["svg", "png", "csv"] {
                assert!(folder.join(format!("{figure}.{extension}")).is_file(), "{figure}.{extension} is missing");
            }
        }
    }
}

#[test]
fn the_comparison_is_that_of_the_committed_rows() {
    let shared = root().join("data/results/compare.csv");
    let folders: Vec<_> = published().into_iter().filter(|(folder, _)| folder.join("compare.csv").is_file()).collect();
    assert_eq!(shared.is_file(), !folders.is_empty(), "data/results/compare.csv and a profile's come together");
    for (folder, parts) in &folders {
        let path = folder.join("compare.csv");
        assert_eq!(
            fs::read(&path).unwrap(),
            fs::read(&shared).unwrap(),
            "{} and the shared one differ",
            path.display()
        );
        let rows: Vec<CompareRow> = csv::read(&path).unwrap();
        let mut contexts: Vec<usize> = rows.iter().map(|row| row.context).collect();
        contexts.dedup();
        let report = fs::read_to_string(folder.join("report.md")).unwrap();
        let tables = contexts.iter().map(|&context| {
            let of_context = |row: &&CompareRow| row.context == context && row.domain == "all";
            compare::markdown(&rows.iter().filter(of_context).cloned().collect::<Vec<_>>())
        });
        let tables: Vec<String> = tables.collect();
        for (table, context) in tables.iter().zip(&contexts) {
            assert!(report.contains(table.trim()), "{}: report.md differs at {context} tokens", folder.display());
        }
        let (_, part) = parts.iter().find(|(marker, _)| marker == "compare").unwrap();
        assert!(part.contains(tables[tables.len() / 2].trim()), "{}: readme-compare.md differs", folder.display());
    }
}
