//! Compares what stages were expected to need with what they took.

use serde_json::Value;

use crate::common::{MODEL_AND_TEXT, is_fetched};
use crate::home::{Home, STAGES, Undisturbed, is_long, text};

/// An estimate of memory must be at least the first and at most the second of these multiples of what was taken.
const MEMORY: [f64; 2] = [0.6, 2.0];
/// The same for the disk, as multiples of the outputs' size. An estimate also counts files that are written on the way, such as
/// those of single layers.
const DISK: [f64; 2] = [0.9, 4.0];
/// Outputs below this size say nothing about a formula.
const SMALL: f64 = 100e3;
/// Stages that are not estimated.
const UNESTIMATED: [&str; 2] = ["merge", "report"];
/// Stages for which the size of the outputs is estimated.
const SIZED: [&str; 6] = ["calibrate", "train", "train-best", "train-rope", "train-plus", "calibrate-peers"];

fn check(home: &Home, stage: &str, model: &str) {
    let record = home.record(stage).unwrap();
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let (memory, peak) = (number(&record["estimate"]["memory_bytes"]), number(&record["peak_memory_bytes"]));
    let outputs: f64 = record["outputs"].as_array().unwrap().iter().map(|output| number(&output["bytes"])).sum();
    let disk = number(&record["estimate"]["disk_bytes"]);
    println!(
        "{stage}, {model}: memory {:.0} MB for {:.0} MB, disk {:.2} MB for {:.2} MB",
        memory / 1e6,
        peak / 1e6,
        disk / 1e6,
        outputs / 1e6
    );
    if !UNESTIMATED.contains(&stage) {
        let share = memory / peak;
        assert!((MEMORY[0]..=MEMORY[1]).contains(&share), "{stage}, {model}: {memory} bytes of memory for {peak}");
    }
    if SIZED.contains(&stage) && outputs > SMALL {
        let share = disk / outputs;
        assert!((DISK[0]..=DISK[1]).contains(&share), "{stage}, {model}: {disk} bytes of disk for {outputs}");
    }
}

#[test]
fn estimates_are_near_what_the_stages_of_a_small_model_take() {
    let Some(all) = Undisturbed::run("estimates_are_near_what_the_stages_of_a_small_model_take") else { return };
    let home = all.copy();
    STAGES.iter().for_each(|stage| check(&home, stage, "three layers"));
}

#[test]
fn estimates_are_near_what_the_stages_of_the_embedded_model_take() {
    let test = "estimates_are_near_what_the_stages_of_the_embedded_model_take";
    if !is_fetched(test, &MODEL_AND_TEXT) {
        return;
    }
    let Some(all) = Undisturbed::run(test) else { return };
    let folder = tempfile::tempdir().unwrap();
    let home = all.copy().at(folder.path().join("data"));
    let stages: &[&str] = if is_long() { &STAGES } else { &STAGES[..3] };
    for stage in stages {
        let out = home.command(stage, &["set=model=smollm2-135m-instruct"]).output().unwrap();
        assert!(out.status.success(), "{stage}: {}", text(&out));
        check(&home, stage, "smollm2-135m-instruct");
    }
}
