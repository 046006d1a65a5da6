//! LongBench's stage on records of the test's own: killed and resumed, in parts and merged, malformed records.
//! Needs the downloaded model (`just fetch`).
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{MODEL, is_fetched};

const SET: &str = "longbench.tasks=[\"lcc\",\"trec\"] longbench.schemes=[\"dense\",\"dense-f16\"] resamples=50";
const RECORDS: usize = 4;

fn record(task: &str, at: usize) -> serde_json::Value {
    let classes = (task == "trec").then_some(["Food", "Date"]);
    serde_json::json!({
        "input": "", "context": format!("def sum_{at}(a, b):\n    return"), "answers": [if task == "trec" { "Food" } else { "    return a + b" }],
        "length": 4000 * at, "dataset": task, "language": if task == "trec" { "en" } else { "code" }, "all_classes": classes, "_id": format!("{task}-{at}")
    })
}

/// Writes config and records in LongBench's layout, also those of LongBench-E (`_e`).
fn longbench(folder: &Path) {
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("config/dataset2prompt.json", r#"{"lcc": "{context}{input}", "trec": "{context}{input}"}"#.into());
    write("config/dataset2maxlen.json", r#"{"lcc": 24, "trec": 6}"#.into());
    write("config/model2maxlen.json", "{}".into());
    for task in ["lcc", "trec"] {
        let lines: String = (0..RECORDS).map(|at| format!("{}\n", record(task, at))).collect();
        write(&format!("data/{task}.jsonl"), lines.clone());
        write(&format!("data/{task}_e.jsonl"), lines);
    }
}

fn kvcsr(folder: &Path, data: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvcsr"));
    command
        .args(["longbench", "profile=smoke", &format!("set={SET}")])
        .args(args)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .env("KVCSR_DATA", folder.join(data))
        .env("KVCSR_LONGBENCH", folder.join("longbench"));
    command
}

fn run(folder: &Path, data: &str, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = kvcsr(folder, data, args).output().unwrap();
    assert!(status.success(), "{args:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

fn refused(folder: &Path, data: &str, args: &[&str]) -> String {
    let out = kvcsr(folder, data, args).output().unwrap();
    assert!(!out.status.success(), "{args:?} was accepted");
    String::from_utf8(out.stderr).unwrap()
}

/// Answers by file and record, without their times.
fn answers(stage: &Path) -> BTreeMap<String, Vec<serde_json::Value>> {
    let mut all = BTreeMap::new();
    for scheme in ["dense", "dense-f16"] {
        for task in ["lcc", "trec"] {
            let name = format!("{scheme}/{task}.jsonl");
            let text = fs::read_to_string(stage.join("predictions").join(&name)).unwrap_or_default();
            let timeless = |line: &str| {
                let mut row: serde_json::Value = serde_json::from_str(line).unwrap();
                row.as_object_mut().unwrap().retain(|key, _| !key.ends_with("_ms"));
                row
            };
            all.insert(name, text.lines().map(timeless).collect());
        }
    }
    all
}

#[test]
fn killed_resumed_parted_and_merged_runs_give_the_same_answers() {
    if !is_fetched("killed_resumed_parted_and_merged_runs_give_the_same_answers", &[MODEL]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    longbench(&folder.join("longbench"));

    let mut child = kvcsr(folder, "a", &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let partial = folder.join("a/runs/smoke/longbench.partial");
    let started = Instant::now();
    while answers(&partial)["dense/lcc.jsonl"].len() < 2 {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be killed");
        assert!(started.elapsed() < Duration::from_secs(120), "no answers after two minutes");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // As if the kill had come in the middle of a line.
    let torn = partial.join("predictions/dense/lcc.jsonl");
    let text = fs::read(&torn).unwrap();
    fs::write(&torn, &text[..text.len() - 20]).unwrap();
    assert!(run(folder, "a", &[]).contains("going on where an unfinished run stopped"));
    let whole = answers(&folder.join("a/runs/smoke/longbench"));
    for (name, rows) in &whole {
        let mut ids: Vec<&str> = rows.iter().map(|row| row["_id"].as_str().unwrap()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!((rows.len(), ids.len()), (RECORDS, RECORDS), "{name}");
    }

    assert!(refused(folder, "b", &["--merge", "2"]).contains("part 1/2 is not finished"));
    run(folder, "b", &["--shard", "1/2"]);
    run(folder, "b", &["--shard", "2/2", "longbench.max_prompt_tokens=20"]);
    let mixed = refused(folder, "b", &["--merge", "2"]);
    assert!(mixed.contains("part 2/2 was made by another configuration"), "{mixed}");
    assert!(mixed.contains("longbench.max_prompt_tokens 20 -> 3500"), "{mixed}");
    run(folder, "b", &["set=longbench.shard=2/2"]);
    run(folder, "b", &["--merge", "2"]);
    let merged = folder.join("b/runs/smoke/longbench");
    // The killed run answered some records later than others; in each file the order may differ.
    let sorted = |mut all: BTreeMap<String, Vec<serde_json::Value>>| {
        all.values_mut().for_each(|rows| rows.sort_by_key(|row| row["_id"].to_string()));
        all
    };
    assert_eq!(sorted(answers(&merged)), sorted(whole));
    assert!(run(folder, "b", &[]).contains("up to date"), "a merged run is the run that was never in parts");
    assert!(fs::read_to_string(merged.join("longbench.md")).unwrap().contains("4 of 500"));

    // LongBench-E: records of its own files, scores by length.
    run(folder, "c", &["longbench.e=true", "longbench.limit=3"]);
    let page = fs::read_to_string(folder.join("c/runs/smoke/longbench/longbench.md")).unwrap();
    let row = page.lines().find(|line| line.starts_with("| lcc | dense |")).unwrap();
    assert_eq!(row.split('|').filter(|cell| cell.trim() == "1").count(), 3, "{row}");

    // A malformed record: named by file and line, left out only when told.
    let path = folder.join("longbench/data/lcc.jsonl");
    fs::write(&path, format!("{}\n{{\"input\": 1}}\n{}\n", record("lcc", 0), record("lcc", 1))).unwrap();
    let error = refused(folder, "d", &[]);
    assert!(error.contains("lcc.jsonl:2: ") && error.contains("--keep-going"), "{error}");
    let kept = run(folder, "d", &["--keep-going", "longbench.tasks=[\"lcc\"]"]);
    assert!(kept.contains("left out: ") && kept.contains("lcc.jsonl:2: "), "{kept}");
    assert_eq!(answers(&folder.join("d/runs/smoke/longbench"))["dense/lcc.jsonl"].len(), 2);
}
