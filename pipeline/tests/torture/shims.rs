//! A file system without locks, and a clock that goes backwards, simulated by replaced calls of the C library.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::home::{Home, Undisturbed, can_run, text};

/// Builds the library with one of its behaviours. Without a C compiler, returns none, and `test` is skipped.
fn shim(test: &str, folder: &Path, behaviour: &str) -> Option<PathBuf> {
    if !can_run(test, "cc", &["--version"]) {
        return None;
    }
    let library = folder.join(format!("{behaviour}.so"));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/torture/shim.c");
    let flags = ["-shared", "-fPIC", "-O1", &format!("-D{behaviour}"), source, "-o"];
    let status = Command::new("cc").args(flags).arg(&library).status().unwrap();
    assert!(status.success(), "{source}");
    Some(library)
}

fn run_with(home: &Home, library: &Path, stage: &str, more: &[&str]) -> String {
    let out = home.command(stage, more).env("LD_PRELOAD", library).output().unwrap();
    assert!(out.status.success(), "{stage}: {}", text(&out));
    text(&out)
}

#[test]
fn without_locks_a_stage_is_made_with_a_warning() {
    let test = "without_locks_a_stage_is_made_with_a_warning";
    let Some(all) = Undisturbed::run(test) else { return };
    let home = all.copy();
    let Some(library) = shim(test, home.data.parent().unwrap(), "LOCKS") else { return };
    let made = all.of("train");
    home.forget(made.stage);
    let said = run_with(&home, &library, made.stage, &[]);
    assert!(said.contains("warning: ") && said.contains(".train.lock cannot be locked"), "{said}");
    assert!(said.contains("start none until this one has ended"), "{said}");
    home.check_finished(made, &said);
}

#[test]
fn a_clock_that_goes_backwards_changes_nothing() {
    let test = "a_clock_that_goes_backwards_changes_nothing";
    let Some(all) = Undisturbed::run(test) else { return };
    let home = all.copy();
    let Some(library) = shim(test, home.data.parent().unwrap(), "CLOCK") else { return };
    // Earlier outputs are up to date whatever the time is, and changes are seen.
    for made in &all.made {
        let said = run_with(&home, &library, made.stage, &[]);
        assert!(said.contains("up to date"), "{}: {said}", made.stage);
    }
    for stage in ["merge", "train", "evaluate", "report"] {
        let made = all.of(stage);
        run_with(&home, &library, stage, &["--force"]);
        assert!(run_with(&home, &library, stage, &[]).contains("up to date"), "{stage}");
        home.check(made);
    }
    let rows = home.stage("evaluate/heldout.jsonl");
    let mut bytes = std::fs::read(&rows).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&rows, bytes).unwrap();
    assert!(run_with(&home, &library, "evaluate", &[]).contains("was changed since"));
    home.check(all.of("evaluate"));
}
