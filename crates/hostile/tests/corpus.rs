//! The committed inputs and changes of them. They run in the program of `just fuzz`, so that a crash is a failed test.

#![allow(clippy::unwrap_used)]

use std::process::Command;

use kvcsr_hostile::campaign::State;
use kvcsr_hostile::place::Place;
use kvcsr_hostile::{ALL, corpus, seeds, table};

/// The number of changed inputs of each target.
const CHANGED: u64 = 4000;
/// The largest size in bytes of a file of the corpus, and of all its files.
const MOST: [usize; 2] = [4096, 1 << 20];

/// Runs the program. It must find nothing.
fn sound(words: &[String]) {
    let ran = Command::new(env!("CARGO_BIN_EXE_kvcsr-hostile")).args(words).output().unwrap();
    let said = [ran.stdout, ran.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(ran.status.success(), "{:?} {}: {said}", words.first(), ran.status);
}

#[test]
fn no_file_of_the_corpus_breaks_a_promise() {
    for target in ALL {
        let files = corpus::load(target.name).unwrap();
        let paths = files.iter().map(|(name, _)| corpus::folder(target.name).join(name).display().to_string());
        sound(&["replay".to_owned(), target.name.to_owned()].into_iter().chain(paths).collect::<Vec<_>>());
    }
}

#[test]
fn no_change_of_the_corpus_breaks_a_promise() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    sound(&[format!("executions={CHANGED}"), format!("out={}", out.display()), "seed=7".to_owned()]);
    let state = State::load(&out.join("state.json")).unwrap();
    for target in ALL {
        let counts = &state.targets[target.name];
        assert_eq!(counts.executions, CHANGED, "{}", target.name);
        assert!(counts.taken > 0 && counts.taken < CHANGED, "{}: {} taken", target.name, counts.taken);
    }
}

#[test]
fn the_corpus_is_small_and_as_its_writers_make_it() {
    let mut all = 0;
    for target in ALL {
        let files = corpus::load(target.name).unwrap();
        assert!(!files.is_empty(), "{} has no files", target.name);
        for (name, bytes) in &files {
            assert!(bytes.len() <= MOST[0], "{}/{name} has {} bytes", target.name, bytes.len());
            all += bytes.len();
        }
        for (name, bytes) in seeds::of(target.name, &Place::new().unwrap()).unwrap() {
            let kept = files.iter().find(|(kept, _)| *kept == name).map(|(_, bytes)| bytes);
            assert!(kept == Some(&bytes), "{}/{name} is another: `just fuzz corpus` writes it", target.name);
        }
    }
    assert!(all <= MOST[1], "{all} bytes");
}

#[test]
fn the_table_of_the_document_is_that_of_the_committed_counts() {
    let state = State::load(&table::committed()).unwrap();
    let (path, marker) = table::document();
    let text = std::fs::read_to_string(path).unwrap();
    let (_, after) = text.split_once(&format!("<!-- BEGIN {marker} -->\n")).unwrap();
    let (found, _) = after.split_once(&format!("\n<!-- END {marker} -->")).unwrap();
    assert_eq!(found, table::markdown(&state).trim_end(), "`just fuzz publish` writes it");
}
