#![allow(clippy::unwrap_used)]
use super::*;
use serde_json::json;

fn recipe(sparsity: u64, input: &str) -> Recipe {
    let map = |v: Value| v.as_object().unwrap().clone();
    Recipe {
        stage: "train".into(),
        version: 1,
        parameters: map(json!({"sparsity": sparsity, "atoms": 1024})),
        inputs: map(json!({"calibrate": input})),
    }
}

#[test]
fn the_key_names_every_ingredient_and_changes_are_told() {
    let old = recipe(4, "a");
    assert_eq!(old.key(), recipe(4, "a").key());
    assert_ne!(old.key(), recipe(8, "a").key());
    assert_ne!(old.key(), recipe(4, "b").key());
    let changes = recipe(8, "b").changes_since(&old);
    assert_eq!(changes, ["train.sparsity 4 -> 8", "input calibrate changed"]);
}

#[test]
fn a_recipe_extends_one_that_made_a_part_of_it() {
    let made = recipe(1, "x");
    let recipe = |schemes: Value, documents: u64, repeats: u64, scored: u64, train: &str| Recipe {
        parameters:
            json!({"schemes": schemes, "documents": documents, "heldout": {"repeats": repeats, "scored": scored}})
                .as_object()
                .unwrap()
                .clone(),
        inputs: Map::from_iter([("calibrate".to_owned(), train.into())]),
        ..made.clone()
    };
    let grows = ["schemes", "documents", "heldout.repeats"];
    let old = recipe(json!(["a", "b"]), 4, 2, 512, "x");
    let extends = |new: &Recipe| new.extends(&old, &grows);
    assert!(extends(&recipe(json!(["b", "c", "a"]), 16, 16, 512, "x")));
    assert!(!extends(&recipe(json!(["a", "c"]), 4, 2, 512, "x")), "a scheme is gone");
    assert!(!extends(&recipe(json!(["a", "b"]), 2, 2, 512, "x")), "fewer documents");
    assert!(!extends(&recipe(json!(["a", "b"]), 4, 2, 600, "x")), "another measure");
    assert!(!extends(&recipe(json!(["a", "b"]), 4, 2, 512, "y")), "other dictionaries");
    assert!(!recipe(json!(["a", "b"]), 8, 2, 512, "x").extends(&old, &[]));
    let mut peers = recipe(json!(["a", "b", "p"]), 4, 2, 512, "x");
    peers.inputs.insert("calibrate-peers".into(), "z".into());
    assert!(extends(&peers), "an added scheme is built from something else");
    let mut other = recipe(json!(["a", "b", "c"]), 4, 2, 512, "x");
    other.inputs.insert(ATTENTION.into(), "tensor".into());
    assert!(!extends(&other), "another way of attending");
    let mut auto = recipe(json!(["a", "b", "c"]), 4, 2, 512, "x");
    let mut bf16 = old.clone();
    bf16.inputs.insert(DTYPE.into(), "bf16".into());
    assert!(!auto.extends(&bf16, &grows), "another dtype");
    auto.inputs.insert(DTYPE.into(), "bf16".into());
    assert!(auto.extends(&bf16, &grows));
    assert!(is_grown(&json!(0), &json!(0)) && !is_grown(&json!(0), &json!(3)), "0 stands for all");
}

/// Parameters in another order must not make a stage run again.
#[test]
fn published_keys_are_those_of_their_recipes() {
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/results/smol");
    for stage in ["calibrate", "merge", "train", "evaluate", "compare"] {
        let text = std::fs::read_to_string(results.join(format!("{stage}.manifest.json"))).unwrap();
        let manifest: Manifest = serde_json::from_str(&text).unwrap();
        assert_eq!(manifest.key, manifest.recipe.key(), "{stage}");
    }
}

#[test]
fn times_are_no_part_of_a_digest_and_results_are() {
    let digest = |rows: &str| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
        outputs(dir.path(), &[], &["trials.jsonl"]).unwrap().1
    };
    let row = |kl: f64, ms: f64| json!({"kl": kl, "encode_ms": ms, "decode_ms_per_token": ms, "terms": 3}).to_string();
    assert_eq!(digest(&row(0.5, 1.0)), digest(&row(0.5, 2.0)));
    assert_ne!(digest(&row(0.5, 1.0)), digest(&row(0.6, 1.0)));
    assert_ne!(digest("no row"), digest("another"));
    let aside = |rows: &str| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("trials.jsonl"), rows).unwrap();
        let (listed, digest) = outputs(dir.path(), &[], &["trials.jsonl"]).unwrap();
        assert_eq!(listed.len(), 1, "damage to it is still seen");
        digest
    };
    assert_eq!(aside("one"), aside("another"));
    let table = |csv: &str| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("rows.csv"), csv).unwrap();
        outputs(dir.path(), &[], &["trials.jsonl"]).unwrap().1
    };
    assert_eq!(table("a,encode_ms,b\n1,2,3\n"), table("a,encode_ms,b\n1,9,3\n"));
    assert_ne!(table("a,encode_ms,b\n1,2,3\n"), table("a,encode_ms,b\n1,2,4\n"));
    assert_ne!(table("a,encode_ms\n\"1,2\",3\n"), table("a,encode_ms\n\"1,3\",3\n"));
    assert!(is_time("seconds") && is_time("encode_ms_per_1k") && !is_time("terms") && !is_time("mse"));
}

#[test]
fn damage_is_seen_and_a_mere_touch_is_not() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    let file = dir.path().join("sub/a.bin");
    std::fs::write(&file, b"hello").unwrap();
    let (outputs, digest) = outputs(dir.path(), &[], &["trials.jsonl"]).unwrap();
    let manifest = Manifest {
        key: String::new(),
        recipe: recipe(4, "a"),
        outputs,
        digest,
        machine: Machine::default(),
        dtype: "f32".into(),
        seed: 0,
        finished: Timestamp::UNIX_EPOCH,
        wall_seconds: 0.0,
        peak_memory_bytes: None,
        estimate: Estimate::default(),
        seal: String::new(),
    };
    assert_eq!(manifest.damage(dir.path()), None);
    std::fs::write(&file, b"hello").unwrap();
    assert_eq!(manifest.damage(dir.path()), None);
    std::fs::write(&file, b"hullo").unwrap();
    assert_eq!(manifest.damage(dir.path()).unwrap(), "sub/a.bin was changed since it was made");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(manifest.damage(dir.path()).unwrap(), "sub/a.bin is missing");

    // The record itself: as it was written, cut, changed, replaced, gone, and one of an older version.
    manifest.clone().write(dir.path()).unwrap();
    let path = dir.path().join(FILE);
    let whole = std::fs::read_to_string(&path).unwrap();
    assert_eq!(Manifest::open(dir.path()).unwrap().unwrap().outputs, manifest.outputs);
    let blake3 = &manifest.outputs[0].blake3;
    let other = whole.replace(blake3.as_str(), &blake3.replace(|c: char| c.is_ascii_digit(), "a"));
    assert_ne!(other, whole);
    for damaged in [&whole[..whole.len() / 2], &other, "", "{}"] {
        std::fs::write(&path, damaged).unwrap();
        let error = format!("{:#}", Manifest::open(dir.path()).unwrap_err());
        assert!(error.contains("manifest.json") && error.contains(DAMAGED), "{error}");
        assert!(Manifest::read(dir.path()).is_none());
    }
    std::fs::remove_file(&path).unwrap();
    assert!(Manifest::open(dir.path()).unwrap().is_none());
    std::fs::write(&path, serde_json::to_string(&manifest).unwrap()).unwrap();
    assert!(Manifest::open(dir.path()).unwrap().is_some());
}
