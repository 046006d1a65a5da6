//! The command as a user meets it: help, lists and errors with a way out.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn kvcsr(args: &[&str]) -> Output {
    let data = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_kvcsr"))
        .args(args)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .env("KVCSR_DATA", data.path())
        .output()
        .unwrap()
}

fn refused(args: &[&str]) -> String {
    let out = kvcsr(args);
    assert!(!out.status.success(), "{args:?} was accepted");
    assert!(out.stdout.is_empty(), "{args:?} printed {}", String::from_utf8_lossy(&out.stdout));
    String::from_utf8(out.stderr).unwrap()
}

#[test]
fn help_names_every_stage_and_teaches_overrides() {
    let help = String::from_utf8(kvcsr(&["--help"]).stdout).unwrap();
    for word in ["fetch", "calibrate", "train", "ablate", "evaluate", "report", "reproduce", "set=\"train.atoms=2048\""]
    {
        assert!(help.contains(word), "{word} is missing in\n{help}");
    }
}

#[test]
fn schemes_are_listed_for_people_and_programs() {
    let text = String::from_utf8(kvcsr(&["schemes"]).stdout).unwrap();
    assert!(text.contains("csr-S") && text.contains("AAAI 2025"));
    let json: serde_json::Value = serde_json::from_slice(&kvcsr(&["schemes", "--json"]).stdout).unwrap();
    assert!(json.as_array().unwrap().iter().any(|e| e["pattern"] == "dense" && e["keys_coded"] == "after-rope"));
}

#[test]
fn errors_say_what_to_do() {
    assert!(refused(&["train", "profile=none"]).contains("Profiles here: longbench-smol, smoke, smol"));
    assert!(refused(&["train", "profile=smoke", "set=train.atom=1"]).contains("Known here: atoms"));
    assert!(refused(&["train", "profile=smoke"]).contains("just calibrate profile=smoke"));
    assert!(refused(&["evaluate", "profile=smoke"]).contains("run `just calibrate profile=smoke`"));
    assert!(refused(&["calibrate", "profile=smoke", "set=model=gpt"]).contains("it has smollm2-135m-instruct"));
    assert!(refused(&["train", "profile=../smoke"]).contains("a name of letters"));
    assert!(refused(&["ablate", "profile=smoke"]).contains("just calibrate profile=smoke"));
    let weighted = ["train", "profile=smoke", "set=train.weighting=attention calibrate.importance=false"];
    assert!(refused(&weighted).contains("calibrate.importance = true"));
}

#[test]
fn score_prints_one_object_and_names_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lcc.jsonl");
    let line = |pred: &str| {
        format!("{}\n", serde_json::json!({"pred": pred, "answers": ["diet"], "all_classes": null, "length": 1}))
    };
    std::fs::write(&path, line("diet") + &line("tide")).unwrap();
    let file = path.to_str().unwrap();
    let score = |ratio: &[&str]| -> serde_json::Value {
        let out = kvcsr(&[&["score", "--task", "lcc", "--predictions", file][..], ratio].concat());
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let expected = |score: f64| serde_json::json!({"task": "lcc", "n": 2, "score": score});
    // difflib.SequenceMatcher(None, "tide", "diet").ratio() is 0.25, Levenshtein.ratio("tide", "diet") 0.5.
    assert_eq!(score(&[]), expected(62.5));
    assert_eq!(score(&["--code-sim", "levenshtein"]), expected(75.0));

    std::fs::write(&path, line("tide") + "{\"pred\": 1}\n").unwrap();
    assert!(refused(&["score", "--task", "lcc", "--predictions", file]).contains("lcc.jsonl:2: "));
    assert!(refused(&["score", "--task", "lccc", "--predictions", file]).contains("LongBench v1 has"));
    assert!(refused(&["score", "--task", "lcc", "--predictions", "none.jsonl"]).contains("none.jsonl: cannot read"));
}

#[test]
fn longbench_says_what_it_needs() {
    let absent = refused(&["longbench", "profile=smoke", "set=longbench.folder=none"]);
    assert!(absent.contains("none does not exist") && absent.contains("KVCSR_LONGBENCH"), "{absent}");
    let empty = tempfile::tempdir().unwrap();
    let folder = format!("longbench.folder={}", empty.path().display());
    let absent = refused(&["longbench", "profile=smoke", &folder]);
    assert!(absent.contains("config/dataset2prompt.json does not exist"), "{absent}");
    for (set, message) in [
        ("longbench.tasks=[\"csr12\"]", "groups are all, csr11"),
        ("longbench.schemes=[\"csr-8\"]", "must contain `dense`"),
        ("longbench.chat=alpaca", "unknown variant"),
        ("longbench.dictionaries=../smol", "the name of a profile"),
    ] {
        let error = refused(&["longbench", "profile=smoke", &folder, set]);
        assert!(error.contains(message), "{set}: {error}");
    }
}
