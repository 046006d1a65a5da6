#![allow(clippy::unwrap_used)]
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use serde_json::{Map, Value};

use super::*;
use crate::paths::Paths;
use crate::stage::lock::lock;

/// A stage that writes two files and can be told to fail between them.
struct Halves {
    level: AtomicU64,
    fail: AtomicBool,
    /// Whether its level changes while it is made.
    changes: AtomicBool,
    made: AtomicUsize,
    parts: AtomicUsize,
}

impl Stage for Halves {
    fn declaration(&self) -> &'static Declaration {
        &Declaration { name: "halves", about: "Halves", grows: &["parts"], ..Declaration::EMPTY }
    }
    fn parameters(&self, _run: &Run) -> Result<Map<String, Value>> {
        let parts: Vec<usize> = (0..self.parts.load(Relaxed)).collect();
        Ok(Map::from_iter([("level".to_owned(), self.level.load(Relaxed).into()), ("parts".to_owned(), parts.into())]))
    }
    fn inputs(&self, _run: &Run) -> Result<Map<String, Value>> {
        Ok(Map::new())
    }
    fn copies(&self, run: &Run) -> Option<PathBuf> {
        Some(run.paths.results.clone())
    }
    fn make(&self, _run: &Run, dir: &Path) -> Result<()> {
        if !dir.join("first").is_file() {
            self.made.fetch_add(1, Relaxed);
            std::thread::sleep(FIRST_HALF);
            std::fs::write(dir.join("first"), self.level.load(Relaxed).to_string())?;
        }
        if self.fail.load(Relaxed) {
            anyhow::bail!("killed");
        }
        std::fs::write(dir.join("second"), "x")?;
        self.level.fetch_add(self.changes.load(Relaxed).into(), Relaxed);
        Ok(())
    }
}

/// Time that the first half takes.
const FIRST_HALF: Duration = Duration::from_millis(30);

fn halves() -> (tempfile::TempDir, Run, Halves) {
    let dir = tempfile::tempdir().unwrap();
    let profiles = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
    let run = Run {
        profile: "smoke".into(),
        arguments: Vec::new(),
        slice: Slice::Whole,
        config: Config::load(&profiles, "smoke", &[]).unwrap(),
        paths: Paths {
            root: dir.path().into(),
            run: dir.path().join("runs/smoke"),
            base: None,
            results: dir.path().join("results"),
            cache: dir.path().join("cache"),
            longbench: None,
        },
        force: false,
        stages: &[],
    };
    (dir, run, Halves { level: 4.into(), fail: false.into(), changes: false.into(), made: 0.into(), parts: 2.into() })
}

#[test]
fn a_stage_runs_once_and_again_when_a_parameter_or_an_output_changed() {
    let (_dir, settings, stage) = halves();
    run(&stage, &settings).unwrap();
    run(&stage, &settings).unwrap();
    assert_eq!(stage.made.load(Relaxed), 1);
    stage.level.store(8, Relaxed);
    run(&stage, &settings).unwrap();
    assert_eq!(stage.made.load(Relaxed), 2);
    let out = settings.stage_dir("halves").join("first");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "8");
    std::fs::write(&out, "tampered").unwrap();
    run(&stage, &settings).unwrap();
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "8");
    assert_eq!(settings.finished("halves").unwrap().outputs.len(), 2);
}

#[test]
fn inputs_that_change_while_a_stage_is_made_are_told_and_nothing_is_kept() {
    let (_dir, settings, stage) = halves();
    stage.changes.store(true, Relaxed);
    let message = format!("{:#}", run(&stage, &settings).unwrap_err());
    assert!(message.contains("level 4 -> 5 while it was made; run `just halves profile=smoke` again"), "{message}");
    assert!(!settings.stage_dir("halves").exists());
    stage.changes.store(false, Relaxed);
    stage.level.store(4, Relaxed);
    run(&stage, &settings).unwrap();
    assert_eq!(stage.made.load(Relaxed), 2, "the first half was read from other inputs");
}

#[test]
fn what_a_kill_left_beside_finished_outputs_goes() {
    let (_dir, settings, stage) = halves();
    run(&stage, &settings).unwrap();
    let left = settings.stage_dir("halves").join(".tmp-left.md");
    std::fs::write(&left, "half").unwrap();
    let held = lock(&settings.paths.run, "halves").unwrap();
    run(&stage, &settings).unwrap();
    assert!(left.exists(), "another process may be writing it");
    drop(held);
    run(&stage, &settings).unwrap();
    assert!(!left.exists());
    let beside = settings.paths.results.join(".tmp-left.csv");
    std::fs::create_dir_all(&settings.paths.results).unwrap();
    std::fs::write(&beside, "half").unwrap();
    run(&stage, &settings).unwrap();
    assert!(!beside.exists());
}

#[test]
fn two_processes_do_not_make_the_same_outputs() {
    let (_dir, settings, stage) = halves();
    let held = lock(&settings.paths.run, "halves").unwrap();
    let message = format!("{:#}", run(&stage, &settings).unwrap_err());
    assert!(message.contains("another process is making") && message.contains("halves"), "{message}");
    assert_eq!(stage.made.load(Relaxed), 0);
    lock(&settings.paths.run, "other").unwrap();
    drop(held);
    run(&stage, &settings).unwrap();
}

#[test]
fn a_named_run_uses_what_its_base_made_and_keeps_its_own_apart() {
    let (dir, base, stage) = halves();
    run(&stage, &base).unwrap();
    let paths =
        Paths { run: dir.path().join("runs/smoke+eight"), base: Some(base.paths.run.clone()), ..base.paths.clone() };
    let named = Run { paths, ..base.clone() };
    run(&stage, &named).unwrap();
    assert_eq!((stage.made.load(Relaxed), named.stage_dir("halves")), (1, base.stage_dir("halves")));
    stage.level.store(8, Relaxed);
    run(&stage, &named).unwrap();
    assert_eq!(stage.made.load(Relaxed), 2);
    let level = |run: &Run| std::fs::read_to_string(run.stage_dir("halves").join("first")).unwrap();
    assert_eq!((level(&base), level(&named)), ("4".to_owned(), "8".to_owned()));
    assert_eq!(named.command("halves"), "just halves profile=smoke run=eight");
}

#[test]
fn an_unfinished_run_is_built_upon_by_the_same_recipe_only() {
    let (_dir, settings, stage) = halves();
    stage.fail.store(true, Relaxed);
    assert!(run(&stage, &settings).is_err());
    assert!(!settings.stage_dir("halves").exists());
    assert!(settings.finished("halves").unwrap_err().to_string().contains("just halves profile=smoke"));
    stage.fail.store(false, Relaxed);
    run(&stage, &settings).unwrap();
    assert_eq!(stage.made.load(Relaxed), 1, "the first half was kept");

    stage.level.store(5, Relaxed);
    stage.fail.store(true, Relaxed);
    assert!(run(&stage, &settings).is_err());
    stage.level.store(6, Relaxed);
    stage.fail.store(false, Relaxed);
    run(&stage, &settings).unwrap();
    assert_eq!(std::fs::read_to_string(settings.stage_dir("halves").join("first")).unwrap(), "6");
}

#[test]
fn a_stage_that_grew_keeps_what_it_has_made() {
    let (_dir, settings, stage) = halves();
    run(&stage, &settings).unwrap();
    stage.parts.store(3, Relaxed);
    stage.fail.store(true, Relaxed);
    assert!(run(&stage, &settings).is_err());
    assert_eq!(stage.made.load(Relaxed), 1, "the first half was taken over");
    assert_eq!(settings.finished("halves").unwrap().recipe.parameters["parts"].as_array().unwrap().len(), 2);
    // Growing once more while the run is unfinished keeps it too; shrinking starts over, and so does --force.
    stage.parts.store(4, Relaxed);
    stage.fail.store(false, Relaxed);
    run(&stage, &settings).unwrap();
    assert_eq!(stage.made.load(Relaxed), 1);
    let seconds = settings.finished("halves").unwrap().wall_seconds;
    assert!(seconds >= FIRST_HALF.as_secs_f64(), "{seconds}: the time of what was kept counts");
    stage.parts.store(1, Relaxed);
    run(&stage, &settings).unwrap();
    assert_eq!(stage.made.load(Relaxed), 2);
    stage.parts.store(5, Relaxed);
    run(&stage, &Run { force: true, ..settings }).unwrap();
    assert_eq!(stage.made.load(Relaxed), 3);
}
