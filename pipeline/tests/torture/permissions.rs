//! Folders and files that may not be written or read.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::home::{Home, Undisturbed, can_run, is_root, refused};

/// A command that takes from root the right to write and read files against their modes.
const BOUND: [&str; 3] =
    ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"];

/// The program that starts commands so that modes count: `env` if the test does not run as root. None, and `test` is skipped, if
/// root cannot give up its right.
fn bound(test: &str) -> Option<Vec<&'static str>> {
    if !is_root() {
        return Some(vec!["env"]);
    }
    can_run(test, BOUND[0], &[BOUND[1], BOUND[2], "true"]).then(|| BOUND.to_vec())
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A command that must be refused with the path and the way out.
fn denied(home: &Home, bound: &[&str], stage: &str, more: &[&str], path: &Path) {
    let said = refused(&home.under(bound, stage, more).output().unwrap());
    assert!(said.contains("Permission denied") && said.contains(path.to_str().unwrap()), "{said}");
    assert!(said.contains("change owner or permissions"), "{said}");
}

#[test]
fn what_may_not_be_written_or_read_is_named_and_kept() {
    let test = "what_may_not_be_written_or_read_is_named_and_kept";
    let Some(all) = Undisturbed::run(test) else { return };
    let Some(bound) = bound(test) else { return };
    let home = all.copy();
    let run = home.stage("");
    let made = all.of("train");

    // The run's folder, without its lock files: a stage that is up to date says so, another cannot begin.
    for entry in fs::read_dir(&run).unwrap().flatten() {
        if entry.file_name().to_string_lossy().ends_with(".lock") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    set_mode(&run, 0o555);
    let out = home.under(&bound, made.stage, &[]).output().unwrap();
    assert!(out.status.success(), "{}", crate::home::text(&out));
    denied(&home, &bound, made.stage, &["--force"], &run);
    set_mode(&run, 0o755);
    home.check(made);

    // A record that cannot be read: what it records may be right, so it is not replaced.
    let record = home.stage("train/manifest.json");
    set_mode(&record, 0o000);
    denied(&home, &bound, made.stage, &[], &record);
    denied(&home, &bound, "train-best", &["--force"], &record);
    set_mode(&record, 0o644);
    home.check(made);

    // A file that a later stage reads.
    let shard = home.stage("calibrate/calibration/layer-00-keys.safetensors");
    set_mode(&shard, 0o000);
    denied(&home, &bound, made.stage, &["--force"], &shard);
    set_mode(&shard, 0o644);
    home.run_with(made.stage, &["--force"]);
    home.check(made);

    // No folder for outputs at all.
    let nowhere = tempfile::tempdir().unwrap();
    set_mode(nowhere.path(), 0o555);
    let other = home.at(nowhere.path().join("data"));
    denied(&other, &bound, "calibrate", &[], nowhere.path());
}
