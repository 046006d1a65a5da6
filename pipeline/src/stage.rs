//! Running a stage: is it up to date, why not, resume or start over, record and rename.

use std::fs::{File, TryLockError};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use crate::config::Config;
use crate::machine::{Machine, peak_memory};
use crate::manifest::{self, Manifest, Recipe};
use crate::models::Opened;
use crate::paths::Paths;
use crate::ui;

/// What every stage is given.
pub struct Run {
    pub profile: String,
    pub config: Config,
    pub paths: Paths,
    /// Run stages even where they are up to date.
    pub force: bool,
}

impl Run {
    /// The folder of a finished stage: the run's own, or, where a named run has none, that of the run it branched from.
    pub fn stage_dir(&self, stage: &str) -> PathBuf {
        let own = self.paths.run.join(stage);
        match &self.paths.base {
            Some(base) if !own.join(manifest::FILE).is_file() => base.join(stage),
            _ => own,
        }
    }

    /// `smol`, or `smol+name` for a named run: the folder of its outputs.
    pub fn label(&self) -> String {
        self.paths.run.file_name().map_or_else(|| self.profile.clone(), |name| name.to_string_lossy().into_owned())
    }

    /// The recipe that runs a stage of this run: `just train profile=smol`.
    pub fn command(&self, stage: &str) -> String {
        let profile = &self.profile;
        match self.label().strip_prefix(&format!("{profile}+")) {
            Some(name) if self.paths.base.is_some() => format!("just {stage} profile={profile} run={name}"),
            _ => format!("just {stage} profile={profile}"),
        }
    }

    /// The record of a finished earlier stage.
    pub fn finished(&self, stage: &str) -> Result<Manifest> {
        Manifest::read(&self.stage_dir(stage)).with_context(|| {
            format!("stage `{stage}` has not been run for profile `{}`: run `{}`", self.profile, self.command(stage))
        })
    }
}

/// One stage of the pipeline.
pub trait Stage {
    /// Its name, folder and recipe in the justfile.
    fn name(&self) -> &'static str;
    /// Its folder, where that is not its name: a part of a stage that is run in parts.
    fn folder(&self, _run: &Run) -> String {
        self.name().to_owned()
    }
    /// Raised when the code changes what the stage makes.
    fn version(&self) -> u32;
    /// Named parameters.
    fn parameters(&self, run: &Run) -> Result<Map<String, Value>>;
    /// Inputs by name: digests of files and of earlier stages.
    fn inputs(&self, run: &Run) -> Result<Map<String, Value>>;
    /// Makes the outputs in `dir`. Anything already in `dir` was left by an unfinished run of the
    /// very same recipe, and may be built upon.
    fn make(&self, run: &Run, dir: &Path) -> Result<()>;
    /// Follows [`Stage::make`], and an up-to-date check, on the finished outputs: puts copies where
    /// others look for them. Does nothing where they are there already.
    fn finish(&self, _run: &Run, _dir: &Path) -> Result<()> {
        Ok(())
    }
    /// Shown after the stage, also when it was up to date.
    fn summary(&self, _run: &Run, _dir: &Path) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// Runs `stage` unless its outputs are what this recipe makes.
///
/// Outputs are made in `<stage>.partial`, which also holds the recipe they belong to, and renamed
/// once complete: a killed run leaves nothing that a later run would take for finished.
pub fn run(stage: &dyn Stage, run: &Run) -> Result<()> {
    let folder = stage.folder(run);
    let dir = run.paths.run.join(&folder);
    let recipe = Recipe {
        stage: stage.name().into(),
        version: stage.version(),
        parameters: stage.parameters(run)?,
        inputs: stage.inputs(run)?,
    };
    let key = recipe.key();
    if !run.force && Manifest::read(&dir).is_none() && shared(stage, run, &key)? {
        return Ok(());
    }
    let reason = match Manifest::read(&dir) {
        _ if run.force => "asked to run again".to_owned(),
        None => "not made yet".to_owned(),
        Some(old) if old.key != key => recipe.changes_since(&old.recipe).join(", "),
        Some(old) => match old.damage(&dir) {
            Some(damage) => damage,
            None => {
                ui::line(stage.name(), "up to date");
                stage.finish(run, &dir)?;
                for text in stage.summary(run, &dir)? {
                    ui::line(stage.name(), &text);
                }
                return Ok(());
            }
        },
    };
    let _lock = lock(&run.paths.run, &folder)?;
    let partial = run.paths.run.join(format!("{folder}.partial"));
    let resuming = prepare(&partial, &key, &recipe, &run.config)?;
    ui::line(
        stage.name(),
        &format!("{reason}{}", if resuming { "; going on where an unfinished run stopped" } else { "" }),
    );
    let started = Instant::now();
    stage.make(run, &partial).with_context(|| format!("stage `{}`", stage.name()))?;
    std::fs::remove_file(partial.join(RECIPE))?;
    let (outputs, digest) = manifest::outputs(&partial)?;
    let manifest = Manifest {
        key,
        recipe,
        outputs,
        digest,
        machine: Machine::read(&device(&run.config)),
        dtype: Opened::of(run)
            .and_then(|model| model.dtype(&run.config.dtype))
            .unwrap_or_else(|_| run.config.dtype.clone()),
        seed: run.config.seed,
        finished: utc_now(),
        wall_seconds: started.elapsed().as_secs_f64(),
        peak_memory_bytes: peak_memory(),
    };
    write_atomically(&partial.join(manifest::FILE), serde_json::to_string_pretty(&manifest)?.as_bytes())?;
    if dir.exists() {
        let old = run.paths.run.join(format!("{folder}.old"));
        remove_dir(&old)?;
        std::fs::rename(&dir, &old)?;
        std::fs::rename(&partial, &dir)?;
        remove_dir(&old)?;
    } else {
        std::fs::rename(&partial, &dir)?;
    }
    stage.finish(run, &dir)?;
    for text in stage.summary(run, &dir)? {
        ui::line(stage.name(), &text);
    }
    ui::line(stage.name(), &format!("done in {}", ui::duration(started.elapsed())));
    Ok(())
}

/// Whether the run that this one branched from has made the very same thing, which is then used where it lies.
fn shared(stage: &dyn Stage, run: &Run, key: &str) -> Result<bool> {
    let Some(dir) = run.paths.base.as_ref().map(|base| base.join(stage.folder(run))) else { return Ok(false) };
    if !Manifest::read(&dir).is_some_and(|made| made.key == key && made.damage(&dir).is_none()) {
        return Ok(false);
    }
    ui::line(stage.name(), &format!("the same as in profile `{}`, used from there", run.profile));
    for text in stage.summary(run, &dir)? {
        ui::line(stage.name(), &text);
    }
    Ok(true)
}

/// What training runs on, as libtorch names it: `cpu` or `cuda(0)`.
fn device(config: &Config) -> String {
    match kvcsr_neuraldict::resolve_device(&config.device) {
        Ok(device) => format!("{device:?}").to_lowercase(),
        Err(_) => config.device.clone(),
    }
}

const RECIPE: &str = "recipe.json";

/// A lock on a file until it is dropped; the system drops that of a killed process.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing would not be enough: a child that another thread is just starting holds the file open for a moment.
        let _ = self.0.unlock();
    }
}

/// Keeps other processes from making the same outputs.
fn lock(dir: &Path, folder: &str) -> Result<Lock> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let path = dir.join(format!(".{folder}.lock"));
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| path.display().to_string())?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => {
            bail!("another process is making {}: wait until it is done, or stop it", dir.join(folder).display())
        }
        // A file system without locks: go on as if alone.
        Err(TryLockError::Error(_)) => Ok(Lock(file)),
    }
}

/// Makes `partial` ready; true if it holds an unfinished run of the same recipe.
fn prepare(partial: &Path, key: &str, recipe: &Recipe, config: &Config) -> Result<bool> {
    let stamp = serde_json::json!({ "key": key, "recipe": recipe, "config": config });
    if let Ok(text) = std::fs::read_to_string(partial.join(RECIPE))
        && let Ok(old) = serde_json::from_str::<Value>(&text)
        && old["key"] == *key
    {
        return Ok(true);
    }
    remove_dir(partial)?;
    std::fs::create_dir_all(partial).with_context(|| partial.display().to_string())?;
    write_atomically(&partial.join(RECIPE), serde_json::to_string_pretty(&stamp)?.as_bytes())?;
    Ok(false)
}

fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).with_context(|| dir.display().to_string()),
        _ => Ok(()),
    }
}

/// Writes to a temporary name and renames.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole(path, |out| Ok(out.write_all(bytes)?))
}

/// Writes a file under another name first, so that it is whole or not there.
pub fn write_whole(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let temporary = PathBuf::from(name);
    let finish = || -> Result<()> {
        let mut file = BufWriter::new(File::create(&temporary)?);
        write(&mut file)?;
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
        Ok(std::fs::rename(&temporary, path)?)
    };
    finish().inspect_err(|_| drop(std::fs::remove_file(&temporary))).with_context(|| path.display().to_string())
}

/// `2026-01-31T12:00:00Z`.
fn utc_now() -> String {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days since 1970-01-01 (Howard Hinnant's algorithm).
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// The members of a serialisable section as named parameters.
pub fn parameters_of(section: &impl serde::Serialize) -> Result<Map<String, Value>> {
    match serde_json::to_value(section)? {
        Value::Object(map) => Ok(map),
        other => bail!("parameters must be named, found {other}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::Cell;

    use super::*;

    /// Writes a file in two halves; can be told to fail between them.
    struct Halves {
        level: Cell<u64>,
        fail: Cell<bool>,
        made: Cell<usize>,
    }

    impl Stage for Halves {
        fn name(&self) -> &'static str {
            "halves"
        }
        fn version(&self) -> u32 {
            1
        }
        fn parameters(&self, _run: &Run) -> Result<Map<String, Value>> {
            Ok(Map::from_iter([("level".to_owned(), self.level.get().into())]))
        }
        fn inputs(&self, _run: &Run) -> Result<Map<String, Value>> {
            Ok(Map::new())
        }
        fn make(&self, _run: &Run, dir: &Path) -> Result<()> {
            if !dir.join("first").is_file() {
                self.made.set(self.made.get() + 1);
                std::fs::write(dir.join("first"), self.level.get().to_string())?;
            }
            if self.fail.get() {
                anyhow::bail!("killed");
            }
            std::fs::write(dir.join("second"), "x")?;
            Ok(())
        }
    }

    fn halves() -> (tempfile::TempDir, Run, Halves) {
        let dir = tempfile::tempdir().unwrap();
        let profiles = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
        let run = Run {
            profile: "smoke".into(),
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
        };
        (dir, run, Halves { level: Cell::new(4), fail: Cell::new(false), made: Cell::new(0) })
    }

    #[test]
    fn a_stage_runs_once_and_again_when_a_parameter_or_an_output_changed() {
        let (_dir, settings, stage) = halves();
        run(&stage, &settings).unwrap();
        run(&stage, &settings).unwrap();
        assert_eq!(stage.made.get(), 1);
        stage.level.set(8);
        run(&stage, &settings).unwrap();
        assert_eq!(stage.made.get(), 2);
        let out = settings.stage_dir("halves").join("first");
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "8");
        std::fs::write(&out, "tampered").unwrap();
        run(&stage, &settings).unwrap();
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "8");
        assert_eq!(settings.finished("halves").unwrap().outputs.len(), 2);
    }

    #[test]
    fn two_processes_do_not_make_the_same_outputs() {
        let (_dir, settings, stage) = halves();
        let held = lock(&settings.paths.run, "halves").unwrap();
        let message = format!("{:#}", run(&stage, &settings).unwrap_err());
        assert!(message.contains("another process is making") && message.contains("halves"), "{message}");
        assert_eq!(stage.made.get(), 0);
        lock(&settings.paths.run, "other").unwrap();
        drop(held);
        run(&stage, &settings).unwrap();
    }

    #[test]
    fn a_named_run_uses_what_its_base_made_and_keeps_its_own_apart() {
        let (dir, base, stage) = halves();
        run(&stage, &base).unwrap();
        let named = Run {
            profile: base.profile.clone(),
            config: base.config.clone(),
            paths: Paths {
                run: dir.path().join("runs/smoke+eight"),
                base: Some(base.paths.run.clone()),
                ..base.paths.clone()
            },
            force: false,
        };
        run(&stage, &named).unwrap();
        assert_eq!((stage.made.get(), named.stage_dir("halves")), (1, base.stage_dir("halves")));
        stage.level.set(8);
        run(&stage, &named).unwrap();
        assert_eq!(stage.made.get(), 2);
        let level = |run: &Run| std::fs::read_to_string(run.stage_dir("halves").join("first")).unwrap();
        assert_eq!((level(&base), level(&named)), ("4".to_owned(), "8".to_owned()));
        assert_eq!(named.command("halves"), "just halves profile=smoke run=eight");
    }

    #[test]
    fn an_unfinished_run_is_built_upon_by_the_same_recipe_only() {
        let (_dir, settings, stage) = halves();
        stage.fail.set(true);
        assert!(run(&stage, &settings).is_err());
        assert!(!settings.stage_dir("halves").exists());
        assert!(settings.finished("halves").unwrap_err().to_string().contains("just halves profile=smoke"));
        stage.fail.set(false);
        run(&stage, &settings).unwrap();
        assert_eq!(stage.made.get(), 1, "the first half was kept");

        stage.level.set(5);
        stage.fail.set(true);
        assert!(run(&stage, &settings).is_err());
        stage.level.set(6);
        stage.fail.set(false);
        run(&stage, &settings).unwrap();
        assert_eq!(std::fs::read_to_string(settings.stage_dir("halves").join("first")).unwrap(), "6");
    }
}
