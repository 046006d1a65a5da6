//! Renames are durable: a file is synced before it gets its name, and the folder afterwards.

use std::path::PathBuf;

use crate::home::{Undisturbed, can_run, text};
use crate::trace::{self, Call};

#[test]
fn files_are_synced_before_they_get_their_names_and_folders_afterwards() {
    let test = "files_are_synced_before_they_get_their_names_and_folders_afterwards";
    let Some(all) = Undisturbed::run(test) else { return };
    if !can_run(test, "strace", &["-f", "-y", "true"]) {
        return;
    }
    let home = all.copy();
    let log = home.data.join("calls");
    // These stages write whole files, shards, dictionaries with checkpoints, and rows that are appended.
    for stage in ["merge", "calibrate", "train", "evaluate", "suite", "report"] {
        let arguments = trace::arguments(&log);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let out = home.under(&arguments, stage, &["--force"]).output().unwrap();
        assert!(out.status.success(), "{stage}: {}", text(&out));
        let calls = trace::parse(&std::fs::read_to_string(&log).unwrap());
        let inside = |path: &PathBuf| path.starts_with(&home.data);
        let mut renames = 0;
        for (at, call) in calls.iter().enumerate() {
            let Call::Rename(from, to) = call else { continue };
            if !inside(to) {
                continue;
            }
            renames += 1;
            let folder = to.parent().unwrap().to_owned();
            assert!(calls[at..].contains(&Call::Sync(folder)), "{stage}: the folder of {} is not synced", to.display());
            let is_file = from.file_name().unwrap().to_string_lossy().starts_with(".tmp-");
            let synced = calls[..at].contains(&Call::Sync(from.clone()));
            assert!(synced || !is_file, "{stage}: {} gets its name before it is synced", to.display());
        }
        assert!(renames >= 3, "{stage}: {renames} renames");
        // Each output was synced under its own name or under the one that it had before.
        let partial = home.partial(stage);
        let record = home.record(stage).unwrap();
        for output in record["outputs"].as_array().unwrap() {
            let path = partial.join(output["file"].as_str().unwrap());
            let synced = |call: &Call| match call {
                Call::Sync(synced) => *synced == path,
                Call::Rename(_, to) => *to == path,
            };
            assert!(calls.iter().any(synced), "{stage}: {} is not synced", path.display());
        }
    }
}
