//! Stages that are killed, starved and tampered with: whatever happens, the next run ends with the bytes of an undisturbed one.
//!
//! A short form runs with the other tests. `just torture` runs the long one; it prints what it did. Needs the downloaded model and
//! texts (`just fetch`).
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use common::{MODEL_AND_TEXT, SMALL, is_fetched};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The stages in their order. The report shows times and so has other bytes every time; it is checked to be finished.
const STAGES: [&str; 13] = [
    "calibrate",
    "merge",
    "train",
    "train-best",
    "train-rope",
    "allocate",
    "train-plus",
    "calibrate-peers",
    "ablate",
    "evaluate",
    "compare",
    "at-rest",
    "suite",
];
const REPORT: &str = "report";

fn kvcsr(data: &Path, stage: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvcsr"));
    command
        .args([stage, "profile=smoke", &format!("set={SMALL}")])
        .args(more)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .env("KVCSR_DATA", data)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn text(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

fn run(data: &Path, stage: &str) -> String {
    let out = kvcsr(data, stage, &[]).output().unwrap();
    assert!(out.status.success(), "{stage}: {}", text(&out));
    text(&out)
}

/// What an undisturbed run made of a stage.
struct Made {
    stage: &'static str,
    digest: String,
    time: Duration,
}

/// The digest in a stage's record, which leaves measured times out.
fn digest(data: &Path, stage: &str) -> Option<String> {
    let path = data.join("runs/smoke").join(stage).join("manifest.json");
    let record: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
    Some(record["digest"].as_str()?.to_owned())
}

fn undisturbed(data: &Path) -> Vec<Made> {
    let stages = STAGES.into_iter().chain([REPORT]);
    let make = |stage| {
        let started = Instant::now();
        run(data, stage);
        let digest = digest(data, stage).unwrap_or_else(|| panic!("{stage} has no record"));
        Made { stage, digest, time: started.elapsed() }
    };
    stages.map(make).collect()
}

/// After whatever happened: one run ends it, a second one has nothing left to do, and the bytes are those of the undisturbed run.
fn check(data: &Path, made: &Made) -> String {
    let said = run(data, made.stage);
    assert!(run(data, made.stage).contains("up to date"), "{}: not finished after a run", made.stage);
    if made.stage != REPORT {
        assert_eq!(digest(data, made.stage).as_ref(), Some(&made.digest), "{}: other bytes\n{said}", made.stage);
    }
    let leftovers: Vec<PathBuf> = fs::read_dir(data.join("runs/smoke"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "partial" || ending == "old"))
        .collect();
    assert!(leftovers.is_empty(), "{}: left over {leftovers:?}", made.stage);
    said
}

fn forget(data: &Path, stage: &str) {
    fs::remove_dir_all(data.join("runs/smoke").join(stage)).unwrap();
}

/// Starts a stage and kills it after a random part of the time that it takes; whether it was still running.
fn kill(data: &Path, made: &Made, more: &[&str], rng: &mut ChaCha8Rng) -> bool {
    let mut child = kvcsr(data, made.stage, more).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
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
    tampered: usize,
}

/// A finished stage is removed or made again by force, killed, up to three times in a row, and must end as it should.
fn killed(data: &Path, made: &Made, replace: bool, rng: &mut ChaCha8Rng, counts: &mut Counts) {
    if !replace {
        forget(data, made.stage);
    }
    for _ in 0..rng.random_range(1..=3) {
        let more: &[&str] = if replace { &["--force"] } else { &[] };
        if kill(data, made, more, rng) { counts.kills += 1 } else { counts.ended_before += 1 }
    }
    if replace {
        // What was being replaced is still there, or already replaced: nothing has to be made from the beginning.
        let said = run(data, made.stage);
        assert!(said.contains("up to date"), "{}: a finished stage was lost\n{said}", made.stage);
        counts.old_outputs_kept += 1;
        // The half-made folder belongs to the same recipe; a forced run ends it.
        let out = kvcsr(data, made.stage, &["--force"]).output().unwrap();
        assert!(out.status.success(), "{}: {}", made.stage, text(&out));
    }
    check(data, made);
}

/// A random output is cut, changed or swapped for another; the next run sees it and makes it again.
fn tampered(data: &Path, made: &Made, rng: &mut ChaCha8Rng, counts: &mut Counts) {
    let stage = data.join("runs/smoke").join(made.stage);
    let record: serde_json::Value = serde_json::from_slice(&fs::read(stage.join("manifest.json")).unwrap()).unwrap();
    let files: Vec<PathBuf> =
        record["outputs"].as_array().unwrap().iter().map(|o| stage.join(o["file"].as_str().unwrap())).collect();
    let victim = &files[rng.random_range(0..files.len())];
    let whole = fs::read(victim).unwrap();
    let mut bytes = whole.clone();
    match rng.random_range(0..4) {
        0 => bytes.truncate(bytes.len() / 2),
        1 if !bytes.is_empty() => {
            let at = rng.random_range(0..bytes.len());
            bytes[at] ^= 1;
        }
        2 => bytes = fs::read(&files[rng.random_range(0..files.len())]).unwrap(),
        _ => {
            fs::remove_file(victim).unwrap();
            let said = check(data, made);
            assert!(said.contains("is missing"), "{}: {} was not missed\n{said}", made.stage, victim.display());
            counts.tampered += 1;
            return;
        }
    }
    if bytes == whole {
        // Swapped for itself or its equal: nothing was done.
        return;
    }
    fs::write(victim, bytes).unwrap();
    let said = check(data, made);
    assert!(said.contains("was changed since"), "{}: {} was taken as it is\n{said}", made.stage, victim.display());
    counts.tampered += 1;
}

/// Whether a signal ended a program, and which.
fn signal(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

#[test]
fn killed_and_tampered_stages_end_with_the_same_bytes() {
    if !is_fetched("killed_and_tampered_stages_end_with_the_same_bytes", &MODEL_AND_TEXT) {
        return;
    }
    let number = |name: &str, otherwise: u64| std::env::var(name).map_or(otherwise, |n| n.parse().unwrap());
    let (wanted, seed) = (number("KVCSR_KILLS", 8) as usize, number("KVCSR_SEED", 20));
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let made = undisturbed(data);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut counts = Counts::default();
    let started = Instant::now();
    let mut turn = 0;
    while counts.kills < wanted {
        // Stages in turn, in an order that also visits each of them with and without finished outputs.
        let stage = &made[(turn * 5 + 2) % made.len()];
        killed(data, stage, (turn / made.len() + turn).is_multiple_of(2), &mut rng, &mut counts);
        if turn.is_multiple_of(3) {
            tampered(data, &made[rng.random_range(0..made.len())], &mut rng, &mut counts);
        }
        turn += 1;
        if wanted > 20 {
            eprintln!("{} of {wanted} kills, {:.0} s", counts.kills, started.elapsed().as_secs_f64());
        }
    }
    println!("seed {seed}, {} stages: {counts:?}, {:.0} s", made.len(), started.elapsed().as_secs_f64());

    // Ctrl-C and a polite end: the status tells which, and the next run goes on.
    for (name, number) in [("INT", 2), ("TERM", 15)] {
        let stage = &made[2];
        forget(data, stage.stage);
        let mut child = kvcsr(data, stage.stage, &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(stage.time / 2);
        let sent = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status().unwrap();
        let status = child.wait().unwrap();
        assert!(sent.success());
        assert!(signal(status) == Some(number) || status.success(), "{status}");
        check(data, stage);
    }

    // A program without room to write says so, and goes on once there is some. The limit is on the size of a file.
    let stage = &made[2];
    forget(data, stage.stage);
    let limited = |blocks: u32| {
        let mut command = Command::new("sh");
        let inner = kvcsr(data, stage.stage, &[]);
        // SIGXFSZ is ignored, so that writing fails as on a full disk instead of ending the program.
        command.args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\""), "sh"]);
        command.arg(inner.get_program()).args(inner.get_args());
        command.current_dir(inner.get_current_dir().unwrap()).env("KVCSR_DATA", data).output().unwrap()
    };
    let out = limited(8);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
    let said = text(&out);
    assert!(said.contains("error:") && said.contains("train"), "{said}");
    check(data, stage);
}
