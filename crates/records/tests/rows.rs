//! The JSON of the rows must stay compatible with existing files.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;

use kvcsr_records::{DictionarySource, EpochRow, HeldoutRow, Kind, ReconstructionRow, RecordsError, csv, files};

const HELDOUT: &str = r#"{"id":"w1","domain":"wiki","scheme":"csr-4","dictionary":"kmeans","context":1024,"windows":1,"scored":512,"nll_sum":1300.5,"kl_sum":20.25,"kl_tail":1.5,"top1_agree":470,"far":40,"far_kl_sum":9.5,"hidden_kl_sum":30.0,"nominal_bits":2.0,"measured_bits":2.6,"shared_bytes":1048576,"stored_bytes":65536,"channels":11520,"encode_ms":12.5,"decode_ms_per_token":null}"#;

#[test]
fn heldout_rows_keep_their_json() {
    let row: HeldoutRow = serde_json::from_str(HELDOUT).unwrap();
    assert_eq!((row.dictionary, row.top1_agree, row.kl_sum), (DictionarySource::KMeans, 470, 20.25));
    assert_eq!(serde_json::to_string(&row).unwrap(), HELDOUT);
    let dense: HeldoutRow = serde_json::from_str(&HELDOUT.replace("kmeans", "")).unwrap();
    assert_eq!(dense.dictionary, DictionarySource::None);
}

#[test]
fn kinds_are_lower_case() {
    let text = r#"{"layer":3,"kind":"value","dictionary":"neuraldict","sparsity":2,"chunks":2,"relative":0.3,"mse":1.5,"vectors":100}"#;
    let row: ReconstructionRow = serde_json::from_str(text).unwrap();
    assert_eq!((row.kind, row.level()), (Kind::Value, 4));
}

#[test]
fn jsonl_round_trips_and_errors_name_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/rows.jsonl");
    let row: HeldoutRow = serde_json::from_str(HELDOUT).unwrap();
    let rows = vec![row.clone(), HeldoutRow { id: "w2".to_owned(), ..row }];
    files::write_jsonl(&path, &rows).unwrap();
    assert_eq!(files::read_jsonl::<HeldoutRow>(&path).unwrap(), rows);

    fs::write(&path, format!("{HELDOUT}\n\n{{\"id\":\"w3\"}}\n")).unwrap();
    match files::read_jsonl::<HeldoutRow>(&path) {
        Err(RecordsError::Json { line, .. }) => assert_eq!(line, 3),
        other => panic!("expected a JSON error, got {other:?}"),
    }
}

#[test]
fn layers_are_read_as_a_list_and_as_a_text() {
    let list = r#"{"group":"key-0","kind":"key","layers":[3,4],"epoch":1,"mse":1.0,"diversity":0.5,"beta":1.0,"train_relative":0.1,"heldout_relative":0.2,"dead_atoms":0,"usage_entropy":6.5,"seconds":2.0}"#;
    let row: EpochRow = serde_json::from_str(list).unwrap();
    assert_eq!(row.layers, [3, 4]);
    let text = serde_json::to_string(&row).unwrap();
    assert_eq!(text, list.replace("[3,4]", "\"3 4\""));
    assert_eq!(serde_json::from_str::<EpochRow>(&text).unwrap(), row);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("epochs.csv");
    csv::write(&path, std::slice::from_ref(&row)).unwrap();
    assert_eq!(csv::read::<EpochRow>(&path).unwrap(), [row]);
    assert!(serde_json::from_str::<EpochRow>(&list.replace("[3,4]", "\"3 x\"")).is_err());
}
