//! A folder with a run of every stage, the commands that run in it, and the checks after each fault.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{SMALL, is_fetched};
use crate::model;

/// What differs from [`SMALL`]: a model of three layers, whose tokens are short.
const MORE: &str = "compare.tasks=[\"record_lookup\"] compare.task_prompt_tokens=512 suite.max_prompt_tokens=512 \
     ablate.layers=[1] ablate.option_layers=[1]";

/// The stages in their order.
pub const STAGES: [&str; 14] = [
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
    REPORT,
];
/// The report shows times, so its bytes differ every time. Only whether it is finished is checked.
const REPORT: &str = "report";

/// What the stages read, beside the model.
const TEXTS: [&str; 2] = ["wiki", "plays/"];

/// A number from the environment.
pub fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |n| n.parse().unwrap())
}

/// The program under test: the one that was built with the tests, or `$KVCSR_PROGRAM`.
pub fn program() -> PathBuf {
    std::env::var_os("KVCSR_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_kvcsr").into(), PathBuf::from)
}

/// Whether the long form was asked for.
pub fn is_long() -> bool {
    number("KVCSR_KILLS", 0) > 0
}

/// What an undisturbed run made of a stage.
#[derive(Clone)]
pub struct Made {
    pub stage: &'static str,
    pub digest: String,
    pub time: Duration,
}

/// The undisturbed run, which the cases copy. It is removed with the last of them.
pub struct Undisturbed {
    folder: tempfile::TempDir,
    pub made: Vec<Made>,
}

static SHARED: Mutex<Weak<Undisturbed>> = Mutex::new(Weak::new());

impl Undisturbed {
    /// Runs every stage once, or returns the run of another case. If the texts were not fetched, returns none, and `test` is
    /// skipped.
    pub fn run(test: &str) -> Option<Arc<Self>> {
        if !is_fetched(test, &TEXTS) {
            return None;
        }
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(there) = shared.upgrade() {
            return Some(there);
        }
        let folder = tempfile::tempdir().unwrap();
        model::write(&folder.path().join("model"));
        let home = Home { data: folder.path().join("data"), model: folder.path().join("model"), _folder: None };
        let make = |stage: &&'static str| {
            let started = Instant::now();
            home.run(stage);
            let digest = home.digest(stage).unwrap_or_else(|| panic!("{stage} has no record"));
            Made { stage, digest, time: started.elapsed() }
        };
        let made: Vec<Made> = STAGES.iter().map(make).collect();
        let all = Arc::new(Self { folder, made });
        *shared = Arc::downgrade(&all);
        Some(all)
    }

    /// A copy of it, with the times of its files.
    pub fn copy(&self) -> Home {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        self.copy_to(&data);
        Home { data, model: self.folder.path().join("model"), _folder: Some(folder) }
    }

    /// A copy of it in an existing folder.
    pub fn copy_in(&self, folder: &Path) -> Home {
        let data = folder.join("data");
        self.copy_to(&data);
        Home { data, model: self.folder.path().join("model"), _folder: None }
    }

    fn copy_to(&self, data: &Path) {
        let copied = Command::new("cp").arg("-a").arg(self.folder.path().join("data")).arg(data).status().unwrap();
        assert!(copied.success(), "{}", data.display());
    }

    pub fn of(&self, stage: &str) -> &Made {
        self.made.iter().find(|made| made.stage == stage).unwrap()
    }
}

/// The outputs of a run.
pub struct Home {
    pub data: PathBuf,
    model: PathBuf,
    _folder: Option<tempfile::TempDir>,
}

impl Home {
    /// A command of `kvcsr`, whose output is kept.
    pub fn command(&self, stage: &str, more: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args([stage, "profile=smoke", &format!("set=model={} {SMALL} {MORE}", self.model.display())])
            .args(more)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .env("KVCSR_DATA", &self.data)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// The same under another program, which starts it: `strace`, `setpriv`, a shell with limits.
    pub fn under(&self, program: &[&str], stage: &str, more: &[&str]) -> Command {
        let inner = self.command(stage, more);
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg(inner.get_program()).args(inner.get_args());
        for (name, value) in inner.get_envs() {
            command.env(name, value.unwrap());
        }
        command.current_dir(inner.get_current_dir().unwrap()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a stage, which must succeed. Returns what it prints.
    pub fn run(&self, stage: &str) -> String {
        self.run_with(stage, &[])
    }

    pub fn run_with(&self, stage: &str, more: &[&str]) -> String {
        let out = self.command(stage, more).output().unwrap();
        assert!(out.status.success(), "{stage}: {}", text(&out));
        text(&out)
    }

    /// The same run with its outputs under another path.
    pub fn at(&self, data: PathBuf) -> Self {
        Self { data, model: self.model.clone(), _folder: None }
    }

    pub fn stage(&self, stage: &str) -> PathBuf {
        self.data.join("runs/smoke").join(stage)
    }

    /// The folder of a stage's unfinished outputs.
    pub fn partial(&self, stage: &str) -> PathBuf {
        self.stage(&format!("{stage}.partial"))
    }

    /// A stage's record.
    pub fn record(&self, stage: &str) -> Option<Value> {
        serde_json::from_str(&fs::read_to_string(self.stage(stage).join("manifest.json")).ok()?).ok()
    }

    /// The digest in it, which leaves measured times out.
    pub fn digest(&self, stage: &str) -> Option<String> {
        Some(self.record(stage)?["digest"].as_str()?.to_owned())
    }

    pub fn forget(&self, stage: &str) {
        fs::remove_dir_all(self.stage(stage)).unwrap();
    }

    /// Checks a stage after a fault: one run finishes it, a second run has nothing left to do, and the bytes are those of the
    /// undisturbed run. Returns what the first run prints.
    pub fn check(&self, made: &Made) -> String {
        let said = self.run(made.stage);
        self.check_finished(made, &said);
        said
    }

    /// As [`Home::check`], if the first run has ended already and has printed `said`.
    pub fn check_finished(&self, made: &Made, said: &str) {
        assert!(self.run(made.stage).contains("up to date"), "{}: not finished after a run", made.stage);
        if made.stage != REPORT {
            assert_eq!(self.digest(made.stage).as_ref(), Some(&made.digest), "{}: other bytes\n{said}", made.stage);
        }
        let left = leftovers(&self.data);
        assert!(left.is_empty(), "{}: left over {left:?}", made.stage);
    }

    /// Checks that outputs that were being replaced are there, the old or the new ones. Then a forced run must complete the
    /// replacement.
    pub fn check_replaced(&self, made: &Made) {
        let said = self.run(made.stage);
        assert!(said.contains("up to date"), "{}: a finished stage was lost\n{said}", made.stage);
        self.run_with(made.stage, &["--force"]);
        self.check(made);
    }
}

/// Files and folders in `folder` and below that no finished run has.
pub fn leftovers(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        let left = name.ends_with(".partial") || name.ends_with(".old");
        if left || name.starts_with(".tmp-") || name == ".download" || name.starts_with(".download-") {
            found.push(path);
        } else if path.is_dir() {
            found.extend(leftovers(&path));
        }
    }
    found
}

/// Everything that a program printed.
pub fn text(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

/// What a program printed, which must have failed with an error of ours.
pub fn refused(out: &Output) -> String {
    let said = text(out);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("error: ") && !said.contains("panicked"), "{said}");
    said
}

/// The signal that ended a program, if one did.
pub fn signal(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

/// Waits until `some` is true or the program has ended. Returns whether `some` came first.
pub fn wait_until(child: &mut std::process::Child, some: impl Fn() -> bool) -> bool {
    while !some() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// Whether the test runs as root.
pub fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}

/// Whether a program can be started with `arguments`; if not, `test` is skipped.
pub fn can_run(test: &str, program: &str, arguments: &[&str]) -> bool {
    let quiet = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let can = quiet.is_ok_and(|status| status.success());
    if !can {
        kvcsr_fixtures::skip(test, &format!("`{program} {}` does not run here", arguments.join(" ")));
    }
    can
}
