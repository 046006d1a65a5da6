//! SIGKILL: at random moments of every stage, and at every rename and removal of a replacement.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::home::{Home, Made, Undisturbed, can_run, is_long, number, program, signal, text};

/// Starts a stage and kills it after a random part of the time that it takes. Returns whether it was still running.
fn kill(home: &Home, made: &Made, more: &[&str], rng: &mut ChaCha8Rng) -> bool {
    let mut child = home.command(made.stage, more).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(made.time.mul_f64(rng.random_range(0.0..1.1)));
    // SIGKILL on Unix: no handler runs.
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    running
}

#[derive(Default, Debug)]
struct Counts {
    kills: usize,
    ended_before: usize,
    old_outputs_kept: usize,
}

/// Removes a finished stage, or makes it again by force, and kills it up to three times in a row. Then it must end correctly.
fn killed(home: &Home, made: &Made, replace: bool, rng: &mut ChaCha8Rng, counts: &mut Counts) {
    if !replace {
        home.forget(made.stage);
    }
    for _ in 0..rng.random_range(1..=3) {
        let more: &[&str] = if replace { &["--force"] } else { &[] };
        if kill(home, made, more, rng) { counts.kills += 1 } else { counts.ended_before += 1 }
    }
    if replace {
        home.check_replaced(made);
        counts.old_outputs_kept += 1;
    } else {
        home.check(made);
    }
}

#[test]
fn stages_killed_at_random_moments_end_with_the_same_bytes() {
    let Some(all) = Undisturbed::run("stages_killed_at_random_moments_end_with_the_same_bytes") else { return };
    let (wanted, seed) = (number("KVCSR_KILLS", 16) as usize, number("KVCSR_SEED", 20));
    let home = all.copy();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut counts = Counts::default();
    let started = Instant::now();
    let mut turn = 0;
    while counts.kills < wanted {
        // Stages take turns, in an order in which each of them comes with and without finished outputs.
        let made = &all.made[(turn * 5 + 2) % all.made.len()];
        killed(&home, made, (turn / all.made.len() + turn).is_multiple_of(2), &mut rng, &mut counts);
        turn += 1;
        if is_long() && turn.is_multiple_of(10) {
            eprintln!("{} of {wanted} kills, {:.0} s", counts.kills, started.elapsed().as_secs_f64());
        }
    }
    println!("seed {seed}, {} stages: {counts:?}, {:.0} s", all.made.len(), started.elapsed().as_secs_f64());
}

/// The system calls of a replacement. A kill before each of them leaves another state on the disk.
const STEPS: [&str; 6] = ["rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir"];

#[test]
fn a_replacement_killed_at_any_rename_or_removal_keeps_the_old_outputs_or_has_the_new() {
    let test = "a_replacement_killed_at_any_rename_or_removal_keeps_the_old_outputs_or_has_the_new";
    let Some(all) = Undisturbed::run(test) else { return };
    if !can_run(test, "strace", &["-e", "inject=rename:signal=KILL:when=99", "true"]) {
        return;
    }
    let home = all.copy();
    let stages: &[&str] = if is_long() { &["merge", "calibrate", "train", "evaluate", "ablate"] } else { &["merge"] };
    for stage in stages {
        let made = all.of(stage);
        let kills: usize = STEPS.iter().map(|step| kill_at_each(&home, stage, step)).sum();
        home.check(made);
        assert!(kills >= 6, "{stage}: killed {kills} times");
        println!("{stage}: killed at each of {kills} renames and removals of its replacement");
    }
}

/// Kills a replacement before each call of `step` by its main thread. Returns the number of kills.
fn kill_at_each(home: &Home, stage: &str, step: &str) -> usize {
    let mut kills = 0;
    loop {
        let trace = format!("trace={step}");
        let inject = format!("inject={step}:signal=KILL:when={}", kills + 1);
        let strace = ["strace", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        let out = home.under(&strace, stage, &["--force"]).output().unwrap();
        if out.status.success() {
            return kills;
        }
        assert!(signal(out.status) == Some(9) || out.status.code() == Some(137), "{stage}: {}", text(&out));
        kills += 1;
        let said = home.run(stage);
        assert!(said.contains("up to date"), "{stage}, {step} {kills}: finished outputs were lost\n{said}");
        // Starts from the beginning, so that the next kill comes one step later.
        let _ = fs::remove_dir_all(home.partial(stage));
        assert!(kills < 1000, "{stage} does not end");
    }
}

#[test]
fn what_was_joined_before_a_kill_is_not_made_again() {
    let Some(all) = Undisturbed::run("what_was_joined_before_a_kill_is_not_made_again") else { return };
    let home = all.copy();
    for (stage, file) in [
        ("train", "dictionaries.safetensors"),
        ("train-rope", "dictionaries.safetensors"),
        ("train-plus", "csr-plus.safetensors"),
        ("calibrate", "calibration/layer-00-keys.safetensors"),
    ] {
        let made = all.of(stage);
        // As if it was killed before the record was written: then recipe.json says what the outputs belong to.
        let record = home.record(stage).unwrap();
        let recipe = serde_json::json!({ "key": record["key"], "recipe": record["recipe"], "config": {} });
        fs::rename(home.stage(stage), home.partial(stage)).unwrap();
        fs::write(home.partial(stage).join("recipe.json"), recipe.to_string()).unwrap();
        fs::remove_file(home.partial(stage).join("manifest.json")).unwrap();
        let file = |folder: PathBuf| {
            let about = fs::metadata(folder.join(file)).unwrap();
            (about.ino(), about.modified().unwrap())
        };
        let before = file(home.partial(stage));
        home.check(made);
        assert_eq!(file(home.stage(stage)), before, "{stage}: made again");
    }
}

#[test]
fn keeping_a_run_again_or_twice_at_once_leaves_the_outputs_as_they_are() {
    let Some(all) = Undisturbed::run("keeping_a_run_again_or_twice_at_once_leaves_the_outputs_as_they_are") else {
        return;
    };
    let home = all.copy();
    let made = all.of("merge");
    // As if it was killed in the middle: outputs are linked, not copied.
    let half = home.stage("../.keeping-smoke+before/merge");
    fs::create_dir_all(&half).unwrap();
    fs::hard_link(home.stage("merge/groups.json"), half.join("groups.json")).unwrap();
    let keep = |name: &str| {
        let mut keep = Command::new(program());
        keep.args(["keep", "smoke", name]).env("KVCSR_DATA", &home.data);
        keep.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        keep.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let out = keep("before").wait_with_output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    assert!(home.run("merge").contains("up to date"), "keeping a run has changed it");
    assert!(home.stage("../smoke+before/merge/groups.json").is_file() && !half.exists());
    // Several at once, under the same name and under others that differ after a dot.
    let several = ["v1.1", "v1.1", "v1.2"].map(&keep).map(|child| child.wait_with_output().unwrap());
    assert!(several.iter().any(|out| out.status.success()), "{}", text(&several[0]));
    assert!(home.run("merge").contains("up to date"), "keeping a run twice has changed it");
    home.check(made);
}
