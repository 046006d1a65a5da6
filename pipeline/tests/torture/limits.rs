//! Memory that runs out: by `ulimit -v`, and by a control group.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::home::{Home, Undisturbed, is_long, refused, signal, text};

/// Sizes in MB from too little for the program to enough for every stage.
fn sizes() -> Vec<u64> {
    if is_long() { (1..=30).map(|step| 100 * step).collect() } else { vec![200, 400, 700, 1000, 1500, 3000] }
}

/// Checks a stage that had too little memory: it ended with our own error, or the system ended it. Returns whether the error was
/// ours.
fn starved(out: &Output) -> bool {
    let said = text(out);
    assert!(!out.status.success());
    let own = out.status.code() == Some(1) && said.contains("error: ");
    let ended = signal(out.status).is_some() || out.status.code().is_some_and(|code| code >= 126);
    assert!(own || ended, "{:?}: {said}", out.status);
    own
}

/// Runs a stage by force with each size as its limit, and checks that it is correct afterwards. Returns how often our own estimate
/// refused it.
fn starve(home: &Home, all: &Undisturbed, stage: &str, shell: impl Fn(u64) -> String) -> usize {
    let made = all.of(stage);
    let (mut failed, mut refusals) = (0, 0);
    for megabytes in sizes() {
        let script = shell(megabytes);
        let out = home.under(&["sh", "-c", &script, "sh"], stage, &["--force"]).output().unwrap();
        if out.status.success() {
            continue;
        }
        failed += 1;
        starved(&out);
        refusals += usize::from(text(&out).contains("of memory, and"));
        assert!(home.run(stage).contains("up to date"), "{stage} at {megabytes} MB: finished outputs were lost");
    }
    home.run_with(stage, &["--force"]);
    home.check(made);
    assert!(failed > 0, "{stage}: the smallest limit was enough");
    refusals
}

#[test]
fn a_limit_on_addresses_ends_a_stage_and_the_next_run_goes_on() {
    let Some(all) = Undisturbed::run("a_limit_on_addresses_ends_a_stage_and_the_next_run_goes_on") else { return };
    let home = all.copy();
    let stages: &[&str] = if is_long() { &["calibrate", "train", "evaluate", "suite"] } else { &["train"] };
    for stage in stages {
        starve(&home, &all, stage, |megabytes| format!("ulimit -v {}; exec \"$@\"", megabytes * 1024));
    }
}

#[test]
fn a_stage_that_can_never_have_its_memory_is_refused_with_what_to_lower() {
    let Some(all) = Undisturbed::run("a_stage_that_can_never_have_its_memory_is_refused_with_what_to_lower") else {
        return;
    };
    let home = all.copy();
    // Two terabytes of vectors: no machine has them.
    let more = [
        "train.batch=1000000",
        "train.sparsity=64",
        "train.atoms=64",
        "train.kmeans_sample=2000000000",
        "train.memory_gb=100000",
    ];
    let said = refused(&home.command("train", &more).output().unwrap());
    for part in ["train needs about", "of memory, and", "allows", "lower train.memory_gb"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    home.check(all.of("train"));
}

/// A control group with a limit on memory, until it is dropped.
struct Group(PathBuf);

impl Group {
    /// Makes a group of either version. If that is not possible, returns none, and `test` is skipped.
    fn new(test: &str) -> Option<Self> {
        let name = format!("kvcsr-torture-{}", std::process::id());
        for root in ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"] {
            let group = Self(Path::new(root).join(&name));
            if fs::create_dir(&group.0).is_ok() && group.limit_file().exists() {
                return Some(group);
            }
        }
        kvcsr_fixtures::skip(test, "no control group with a limit on memory can be made here (root is needed)");
        None
    }

    fn limit_file(&self) -> PathBuf {
        let second = self.0.join("memory.max");
        if second.exists() { second } else { self.0.join("memory.limit_in_bytes") }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_control_group_that_is_too_small_ends_a_stage_and_the_next_run_goes_on() {
    let test = "a_control_group_that_is_too_small_ends_a_stage_and_the_next_run_goes_on";
    let Some(all) = Undisturbed::run(test) else { return };
    let Some(group) = Group::new(test) else { return };
    let home = all.copy();
    let (limit, procs) = (group.limit_file(), group.0.join("cgroup.procs"));
    let enter =
        |bytes: u64| format!("echo {bytes} > {} && echo $$ > {} && exec \"$@\"", limit.display(), procs.display());
    let stages: &[&str] = if is_long() { &["calibrate", "train", "evaluate", "suite"] } else { &["train"] };
    let made: usize = stages.iter().map(|stage| starve(&home, &all, stage, |megabytes| enter(megabytes << 19))).sum();
    assert!(made > 0, "no estimate refused a stage in a group of 100 MB");
}
