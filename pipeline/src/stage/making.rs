//! Makes a stage's outputs: checks whether they are up to date and why not, resumes or starts over, writes the record, and renames.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;

use super::declaration::Declaration;
use super::lock::Lock;
use super::needs::declared_inputs;
use super::placing::{Places, RECIPE};
use super::run::{Run, Stage};
use super::slices::{self, Part, Slice, Sliced};
use super::start::{Start, prepare};
use crate::config::Config;
use crate::machine::{Machine, peak_memory};
use crate::manifest::{self, Manifest, Recipe};
use crate::models::Opened;
use crate::room::Room;
use crate::{atomic, interrupt, ui};

/// What determines the outputs of `stage` in this run.
pub fn recipe(stage: &dyn Stage, run: &Run) -> Result<Recipe> {
    let Declaration { name, version, .. } = *stage.declaration();
    let parameters = stage.parameters(run)?;
    let mut inputs = stage.inputs(run)?;
    inputs.extend(declared_inputs(stage.declaration(), run)?);
    Ok(Recipe { stage: name.to_owned(), version, parameters, inputs })
}

/// Runs `stage`, or the slice of it that the run asks for, unless its outputs are up to date.
///
/// Outputs are made in the folder `<stage>.partial`, which also holds their recipe. The folder is renamed once it is complete, so a
/// killed run leaves nothing that a later run would take for finished.
pub fn run(stage: &dyn Stage, run: &Run) -> Result<()> {
    match (stage.slice(run)?, stage.declaration().sliced) {
        (Slice::Whole, _) => whole(stage, run, None),
        (Slice::Merge(count), Some(sliced)) => whole(stage, run, Some((sliced, count))),
        (Slice::One(part), Some(sliced)) => one(stage, sliced, run, part),
        (_, None) => bail!("stage `{}` cannot be run in slices", stage.name()),
    }
}

/// Whether the outputs of `stage` exist, undamaged and of this run's recipe. Its inputs must exist.
pub fn is_made(stage: &dyn Stage, run: &Run) -> Result<bool> {
    Places::new(&run.paths.run, stage.name()).recover()?;
    let key = recipe(stage, run)?.key();
    Ok(!run.force && is_made_in(&run.stage_dir(stage.name()), &key))
}

fn is_made_in(dir: &Path, key: &str) -> bool {
    Manifest::read(dir).is_some_and(|made| made.key == key && made.damage(dir).is_none())
}

/// Makes the whole stage. With `slices`, it is made from this many finished slices.
fn whole(stage: &dyn Stage, run: &Run, slices: Option<(&dyn Sliced, usize)>) -> Result<()> {
    let places = Places::new(&run.paths.run, stage.name());
    places.recover()?;
    let Places { dir, partial, .. } = &places;
    let recipe = recipe(stage, run)?;
    if !run.force && !dir.join(manifest::FILE).exists() && shared(stage, run, &recipe.key())? {
        return Ok(());
    }
    let up_to_date = || {
        ui::line(stage.name(), "up to date");
        if let Some((_, count)) = slices {
            slices::remove(stage, run, &recipe, count)?;
        }
        sweep(stage, run, &places)?;
        end(stage, run, dir)
    };
    if outdated(dir, &recipe, run.force)?.is_none() {
        return up_to_date();
    }
    // Slices that do not belong together are refused before anything is changed.
    let parts = match slices {
        Some((sliced, count)) => Some((sliced, slices::finished(stage, run, &recipe, count)?)),
        None => None,
    };
    let Some(begun) = begin(stage, run, &places, &recipe, (dir, &recipe))? else { return up_to_date() };
    let Begun { room, start, .. } = &begun;
    ui::line(stage.name(), &begun.words());
    let started = Instant::now();
    let make = || {
        if let Some((sliced, parts)) = &parts {
            ui::line(stage.name(), &format!("from {} slices", parts.len()));
            sliced.gather(run, parts, partial)?;
        }
        stage.make(run, partial)
    };
    make().with_context(|| start.title(stage.name(), partial))?;
    ensure_same(stage, run, &recipe, partial)?;
    // If this run extends finished outputs, their time counts too.
    let before = match Manifest::open(dir) {
        Ok(Some(old))
            if !run.force && recipe.extends(&old.recipe, stage.declaration().grows) && old.damage(dir).is_none() =>
        {
            old.wall_seconds
        }
        _ => 0.0,
    };
    record((stage, run), &places, recipe.clone(), room, before + started.elapsed().as_secs_f64())?;
    if let Some((_, parts)) = parts {
        slices::remove(stage, run, &recipe, parts.len())?;
    }
    end(stage, run, dir)?;
    ui::line(stage.name(), &format!("done in {}", ui::duration(started.elapsed())));
    Ok(())
}

/// Makes one slice of a stage, in a folder of its own, unless the whole is there already.
fn one(stage: &dyn Stage, sliced: &dyn Sliced, run: &Run, part: Part) -> Result<()> {
    let name = stage.name();
    let whole = recipe(stage, run)?;
    if is_made(stage, run)? {
        ui::line(name, &format!("slice {part} is not needed: the whole is up to date"));
        return Ok(());
    }
    let folder = part.folder(name);
    let places = Places::new(&run.paths.run, &folder);
    places.recover()?;
    let recipe = slices::recipe_of(part, &whole);
    let up_to_date = || {
        ui::line(name, &format!("slice {part} is up to date"));
        Ok(())
    };
    if outdated(&places.dir, &recipe, run.force)?.is_none() {
        return up_to_date();
    }
    let finished = (run.paths.run.join(name), &whole);
    let Some(begun) = begin(stage, run, &places, &recipe, (&finished.0, finished.1))? else { return up_to_date() };
    let Begun { room, start, .. } = &begun;
    ui::line(name, &format!("slice {part}: {}", begun.words()));
    let started = Instant::now();
    let title = || start.title(&format!("{name}`, slice `{part}"), &places.partial);
    sliced.make_part(run, part, &places.partial).with_context(title)?;
    ensure_same(stage, run, &whole, &places.partial)?;
    record((stage, run), &places, recipe, room, started.elapsed().as_secs_f64())?;
    for text in sliced.part_summary(run, &places.dir)? {
        ui::line(name, &text);
    }
    ui::line(name, &format!("slice {part} done in {}", ui::duration(started.elapsed())));
    Ok(())
}

/// Outputs that this process is going to make. Their lock is held until this is dropped.
struct Begun {
    _lock: Lock,
    /// Why they are made.
    reason: String,
    room: Room,
    start: Start,
}

impl Begun {
    fn words(&self) -> String {
        format!("{}{}", self.reason, self.start.words())
    }
}

/// Takes the lock, checks memory and disk, and prepares the folder. None if another process made the outputs just before the lock
/// was taken. `finished` is the folder where the whole stage's outputs may be, with the recipe of the whole. A slice is estimated
/// like the whole stage: it takes as much memory, and less disk.
fn begin(
    stage: &dyn Stage,
    run: &Run,
    places: &Places<'_>,
    recipe: &Recipe,
    finished: (&Path, &Recipe),
) -> Result<Option<Begun>> {
    let lock = places.lock()?;
    let Some(reason) = outdated(&places.dir, recipe, run.force)? else { return Ok(None) };
    let room = stage.needs_room(run)?;
    room.check(stage.name(), &run.paths.run, &places.partial)?;
    let grows = if run.force { &[] } else { stage.declaration().grows };
    let start = prepare(&places.partial, recipe, finished, &run.config, grows)?;
    Ok(Some(Begun { _lock: lock, reason, room, start }))
}

/// Why the outputs in `dir` are not those of `recipe`, in words; none if they are up to date.
///
/// # Errors
/// If their record exists and cannot be read: the outputs may be up to date.
fn outdated(dir: &Path, recipe: &Recipe, force: bool) -> Result<Option<String>> {
    let old = match Manifest::open(dir) {
        _ if force => return Ok(Some("asked to run again".to_owned())),
        Ok(None) => return Ok(Some("not made yet".to_owned())),
        Ok(Some(old)) => old,
        Err(error) if error.chain().any(|cause| cause.is::<std::io::Error>()) => return Err(error),
        Err(_) => return Ok(Some(format!("{}: {}", manifest::FILE, manifest::DAMAGED))),
    };
    if old.recipe.stage != recipe.stage {
        return Ok(Some(format!("{}: the record of stage `{}`", manifest::FILE, old.recipe.stage)));
    }
    Ok(if old.key == recipe.key() { old.damage(dir) } else { Some(recipe.changes_since(&old.recipe).join(", ")) })
}

/// Refuses outputs whose inputs were replaced while they were made: their record would name other inputs than those that were read.
fn ensure_same(stage: &dyn Stage, run: &Run, made_from: &Recipe, partial: &Path) -> Result<()> {
    let now = recipe(stage, run)?;
    if now.key() == made_from.key() {
        return Ok(());
    }
    // Without this file, the next run makes the folder anew.
    std::fs::remove_file(partial.join(RECIPE)).with_context(|| partial.display().to_string())?;
    bail!(
        "stage `{}`: {} while it was made; run `{}` again",
        stage.name(),
        now.changes_since(made_from).join(", "),
        run.command(stage.name())
    )
}

/// Writes the record of complete outputs and gives them their name.
fn record(
    (stage, run): (&dyn Stage, &Run),
    places: &Places<'_>,
    recipe: Recipe,
    room: &Room,
    wall_seconds: f64,
) -> Result<()> {
    let (outputs, digest) = manifest::outputs(&places.partial, &[RECIPE], stage.declaration().aside)?;
    let manifest = Manifest {
        key: recipe.key(),
        recipe,
        outputs,
        digest,
        machine: Machine::read(&device(&run.config)),
        dtype: Opened::of(&run.config.model, &run.paths)
            .and_then(|model| model.dtype(&run.config.dtype))
            .unwrap_or_else(|_| run.config.dtype.clone()),
        seed: run.config.seed,
        finished: manifest::to_the_second(Timestamp::now()),
        wall_seconds,
        peak_memory_bytes: peak_memory(),
        estimate: room.estimate(),
        seal: String::new(),
    };
    manifest.write(&places.partial)?;
    let _whole = interrupt::replacing();
    places.place()
}

/// Removes temporary files that a kill left beside finished outputs and beside their copies. They stay if a lock cannot be taken,
/// for example because another process is working there.
fn sweep(stage: &dyn Stage, run: &Run, places: &Places<'_>) -> Result<()> {
    let copies = stage.copies(run).filter(|folder| folder.is_dir());
    let folders: Vec<PathBuf> = [places.dir.clone()].into_iter().chain(copies).collect();
    let mut left = false;
    for folder in &folders {
        left |= !atomic::leftovers(folder)?.is_empty();
    }
    if !left {
        return Ok(());
    }
    // Other stages write their copies into the same folder.
    let others = run.stages.iter().filter(|other| other.name() != stage.name() && other.copies(run).is_some());
    let locked = others.map(|other| Places::new(&run.paths.run, other.name()).lock()).collect::<Result<Vec<_>>>();
    let Ok(_others) = locked else { return Ok(()) };
    match places.lock() {
        Ok(_lock) => folders.iter().try_for_each(|folder| atomic::remove_leftovers(folder)),
        Err(_) => Ok(()),
    }
}

/// Completes a stage whose outputs are finished, and prints its summary.
fn end(stage: &dyn Stage, run: &Run, dir: &Path) -> Result<()> {
    stage.finish(run, dir)?;
    show(stage, run, dir)
}

fn show(stage: &dyn Stage, run: &Run, dir: &Path) -> Result<()> {
    for text in stage.summary(run, dir)? {
        ui::line(stage.name(), &text);
    }
    Ok(())
}

/// Whether the run that this one branched from has made the same outputs. They are then used where they lie.
fn shared(stage: &dyn Stage, run: &Run, key: &str) -> Result<bool> {
    let Some(dir) = run.paths.base.as_ref().map(|base| base.join(stage.name())) else { return Ok(false) };
    if !is_made_in(&dir, key) {
        return Ok(false);
    }
    ui::line(stage.name(), &format!("the same as in profile `{}`, used from there", run.profile));
    show(stage, run, &dir)?;
    Ok(true)
}

/// The device of training, as libtorch names it: `cpu` or `cuda(0)`.
fn device(config: &Config) -> String {
    match kvcsr_neuraldict::resolve_device(&config.device) {
        Ok(device) => format!("{device:?}").to_lowercase(),
        Err(_) => config.device.clone(),
    }
}

#[cfg(test)]
mod tests;
