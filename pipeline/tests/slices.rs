//! Stages in slices: whatever happens to the slices, the result is that of a run without slices. Needs the downloaded model and
//! texts (`just fetch`).
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::{MODEL_AND_TEXT, SMALL, is_fetched};

/// What differs from [`SMALL`]: fewer schemes, but three documents, and a task that is a grid.
const MORE: &str = "evaluate.schemes=[\"dense\",\"csr-8@best\"] compare.schemes=[\"dense\",\"lexico-8\"] compare.documents=1 \
     calibrate_peers.methods=[\"svdq\",\"lexico\"] suite.tasks=[\"record_lookup\",\"passkey\"] \
     suite.lengths=[128] suite.depths=[0.0,1.0] suite.max_prompt_tokens=200 \
     compare.task_prompt_tokens=200";
/// The goals of the plan.
const GOALS: [&str; 9] = ["reproduce", "--to", "train-plus", "--to", "evaluate", "--to", "compare", "--to", "suite"];
/// The stages that are made in slices, and how many slices each has if three are asked for.
const SLICED: [(&str, usize); 7] = [
    ("train", 3),
    ("train-best", 3),
    ("train-plus", 3),
    ("calibrate-peers", 3),
    ("evaluate", 3),
    // Two documents and two records.
    ("compare", 2),
    ("suite", 2),
];
/// Stages that are never sliced, and take longer.
const GIVEN: [&str; 3] = ["calibrate", "merge", "allocate"];
/// The evaluation with one scheme. Later it grows by the others.
const FEWER: &str = "evaluate.schemes=[\"dense\"]";

fn kvcsr(data: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvcsr"));
    command
        .arg(words[0])
        .args(["profile=smoke", &format!("set={SMALL} {MORE}")])
        .args(&words[1..])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .env("KVCSR_DATA", data)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn text(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

fn run(data: &Path, words: &[&str]) -> String {
    let out = kvcsr(data, words).output().unwrap();
    assert!(out.status.success(), "{words:?}: {}", text(&out));
    text(&out)
}

fn refused(data: &Path, words: &[&str]) -> String {
    let out = kvcsr(data, words).output().unwrap();
    assert!(!out.status.success(), "{words:?} was accepted: {}", text(&out));
    text(&out)
}

fn stage(data: &Path, folder: &str) -> PathBuf {
    data.join("runs/smoke").join(folder)
}

fn record(data: &Path, folder: &str) -> serde_json::Value {
    let path = stage(data, folder).join("manifest.json");
    serde_json::from_slice(&fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

/// Checks that the outputs are the same, and the recipes in their records too.
fn same(a: &Path, b: &Path, stages: &[&str]) {
    for stage in stages {
        let (a, b) = (record(a, stage), record(b, stage));
        assert_eq!(a["key"], b["key"], "{stage}: another recipe");
        assert_eq!(a["digest"], b["digest"], "{stage}: other bytes");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// The folders of slices that are left in a run.
fn slices(data: &Path) -> Vec<String> {
    let names = fs::read_dir(data.join("runs/smoke")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with('.') && (name.contains("-of-") || name.ends_with(".partial"))).collect()
}

#[test]
fn sliced_stages_are_those_that_were_never_sliced() {
    if !is_fetched("sliced_stages_are_those_that_were_never_sliced", &MODEL_AND_TEXT) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (&folder.path().join("a"), &folder.path().join("b"));
    run(a, &GOALS);
    // Stages that are never sliced are copied from the first run.
    GIVEN.iter().for_each(|given| copy(&stage(a, given), &stage(b, given)));
    let said = run(b, &[&GOALS[..], &["--to", "train-best", "executor.slices=3", FEWER]].concat());
    for (stage, slices) in SLICED {
        let told = format!("from {slices} slices");
        assert!(said.lines().any(|line| line.starts_with(stage) && line.ends_with(&told)), "{stage}: {said}");
    }
    assert_eq!(said.matches("up to date").count(), GIVEN.len(), "{said}");
    let stages: Vec<&str> = SLICED.iter().map(|(stage, _)| *stage).filter(|stage| *stage != "evaluate").collect();
    same(a, b, &stages);
    assert!(slices(b).is_empty(), "{:?}", slices(b));
    assert!(run(b, &["train", "--shard", "1/2"]).contains("the whole is up to date"));

    bad_slices_are_refused(a, b);
    what_was_made_before_is_kept(a, b);
    without_a_cluster(b);
}

/// Slices that are missing, changed, or of another configuration are not joined. A slice that was killed continues.
fn bad_slices_are_refused(a: &Path, b: &Path) {
    fs::remove_dir_all(stage(b, "train")).unwrap();
    let merge = ["train", "--merge", "2"];
    let mut child = kvcsr(b, &["train", "--shard", "1/2"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(250));
    child.kill().unwrap();
    child.wait().unwrap();
    run(b, &["train", "--shard", "1/2"]);
    let said = refused(b, &merge);
    assert!(
        said.contains("part 2/2 is not finished") && said.contains("just train profile=smoke --shard 2/2"),
        "{said}"
    );
    run(b, &["train", "--shard", "2/2", "train.epochs=1"]);
    let said = refused(b, &merge);
    assert!(
        said.contains("part 2/2 was made by another configuration") && said.contains("train.epochs 1 -> 2"),
        "{said}"
    );
    run(b, &["train", "--shard", "2/2"]);

    let made = record(b, "train-2-of-2");
    let file = stage(b, "train-2-of-2").join(made["outputs"][0]["file"].as_str().unwrap());
    let whole = fs::read(&file).unwrap();
    let mut bytes = whole.clone();
    bytes[whole.len() / 2] ^= 1;
    fs::write(&file, bytes).unwrap();
    let said = refused(b, &merge);
    assert!(said.contains("part 2/2") && said.contains("was changed since it was made"), "{said}");
    assert!(!stage(b, "train.partial").exists(), "a refused merge begins nothing");
    run(b, &["train", "--shard", "2/2"]);
    run(b, &merge);
    same(a, b, &["train"]);
    assert!(slices(b).is_empty(), "{:?}", slices(b));
}

/// An evaluation that grows by a scheme of other dictionaries makes only what it lacks, in slices as well.
fn what_was_made_before_is_kept(a: &Path, b: &Path) {
    for slice in ["1/2", "2/2"] {
        let said = run(b, &["evaluate", "--shard", slice]);
        assert!(said.contains("what was made before is kept"), "{said}");
    }
    let rows = fs::read_to_string(stage(b, "evaluate-1-of-2").join("heldout.jsonl")).unwrap();
    assert_eq!(rows.lines().count(), 3 + 2, "all that there were, and the new scheme's of two documents");
    run(b, &["evaluate", "--merge", "2"]);
    same(a, b, &["evaluate"]);
    // The second time nothing is left to do, in slices or not.
    let said = run(b, &[&GOALS[..], &["executor.slices=2"]].concat());
    assert_eq!(said.matches("up to date").count(), SLICED.len() + GIVEN.len(), "{said}");
}

/// Without Slurm's commands the error says so, and the state of the run is that of its stages.
fn without_a_cluster(b: &Path) {
    let out = kvcsr(b, &["reproduce", "executor=slurm"]).env("PATH", "").output().unwrap();
    assert!(!out.status.success() && text(&out).contains("executor=slurm needs Slurm's commands"), "{}", text(&out));
    let said = run(b, &["status"]);
    assert!(said.contains("nothing was submitted") && said.lines().any(|line| line.starts_with("train ")), "{said}");
    assert!(refused(b, &["train", "executor=slurm"]).contains("a single command runs here"));
    assert!(refused(b, &["reproduce", "executor=cloud"]).contains("`local` or `slurm`"));
}
