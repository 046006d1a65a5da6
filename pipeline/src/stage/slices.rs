//! Stages in slices: which units of work a slice makes, where it writes them, and what is checked before slices are joined.
//!
//! Slice `i/n` makes every `n`-th unit of its stage, starting with the `i`-th, so that slices take about equally long. It has its
//! own folder `<stage>-i-of-n`, with its own record and its own lock: other processes may make the other slices, on other
//! machines. Merging copies the outputs of the slices into the folder in which the whole stage is made. The stage then continues
//! from there as after a kill, finds everything made, and ends with the same outputs, recipe and digest as a run without slices.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail};

use super::placing::{Places, remove_dir};
use super::run::{Run, Stage};
use crate::manifest::{Manifest, Recipe};

/// The parameter of a slice's recipe that the whole does not have.
pub const SHARD: &str = "shard";

/// Slice `index` of `count`; `index` starts at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    index: usize,
    count: usize,
}

impl Part {
    /// All slices of a stage.
    pub fn all(count: usize) -> impl Iterator<Item = Self> {
        (1..=count).map(move |index| Self { index, count })
    }

    /// Whether it makes the unit of this number; numbers start at 0.
    pub fn owns(self, unit: usize) -> bool {
        unit % self.count == self.index - 1
    }

    /// The units that it makes.
    pub fn of<T>(self, units: impl IntoIterator<Item = T>) -> Vec<T> {
        units.into_iter().enumerate().filter(|(at, _)| self.owns(*at)).map(|(_, unit)| unit).collect()
    }

    /// The folder of its outputs, beside those of the whole stages.
    pub fn folder(self, stage: &str) -> String {
        format!("{stage}-{}-of-{}", self.index, self.count)
    }
}

impl FromStr for Part {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((index, count)) if (1..=count).contains(&index) => Ok(Self { index, count }),
            _ => bail!("`{text}` is no slice: expected I/N with I from 1 to N, for example 1/4"),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

/// How much of a stage's work a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slice {
    /// All of it.
    Whole,
    /// One slice of it, in a folder of its own.
    One(Part),
    /// All of it, from this many finished slices.
    Merge(usize),
}

impl FromStr for Slice {
    type Err = Error;

    /// Reads `2/4`, `merge/4`, or nothing.
    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix("merge/").map(str::parse) {
            _ if text.is_empty() => Ok(Self::Whole),
            Some(Ok(count)) if count > 0 => Ok(Self::Merge(count)),
            Some(_) => bail!("`{text}`: expected merge/N with N at least 1"),
            None => Ok(Self::One(text.parse()?)),
        }
    }
}

/// A stage that can be made in slices.
pub trait Sliced: Sync {
    /// The largest number of units of work that it can have in this run, by the configuration and the model. Slices beyond the
    /// last unit make nothing.
    fn units(&self, run: &Run) -> Result<usize>;
    /// Makes the units of one slice in `dir`. Anything already in `dir` was left by an unfinished run of the same slice, or comes
    /// from finished outputs of the whole stage that this run extends.
    fn make_part(&self, run: &Run, part: Part, dir: &Path) -> Result<()>;
    /// Copies the outputs of all slices, in their order, into `dir`, where [`Stage::make`] finds them. It may be called again
    /// after a kill.
    fn gather(&self, run: &Run, slices: &[PathBuf], dir: &Path) -> Result<()>;
    /// Lines that are shown after a slice.
    fn part_summary(&self, _run: &Run, _dir: &Path) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// The recipe of a slice of what `whole` makes.
pub fn recipe_of(part: Part, whole: &Recipe) -> Recipe {
    let mut recipe = whole.clone();
    recipe.parameters.insert(SHARD.to_owned(), part.to_string().into());
    recipe
}

/// The recipe of the whole stage that a slice belongs to.
fn whole_of(slice: &Recipe) -> Recipe {
    let mut recipe = slice.clone();
    recipe.parameters.remove(SHARD);
    recipe
}

/// The folders of all `count` slices. Each must be finished, undamaged and of this run's recipe.
///
/// # Errors
/// If a slice is unfinished, damaged or of another recipe; the error names the first such slice and what to do.
pub fn finished(stage: &dyn Stage, run: &Run, whole: &Recipe, count: usize) -> Result<Vec<PathBuf>> {
    let name = stage.name();
    let of = |part: Part| {
        let folder = part.folder(name);
        let places = Places::new(&run.paths.run, &folder);
        places.recover()?;
        let dir = places.dir;
        let command = format!("`{} --shard {part}`", run.command(name));
        let record =
            Manifest::read(&dir).with_context(|| format!("{name}: part {part} is not finished: run {command}"))?;
        let changes = whole.changes_since(&whole_of(&record.recipe));
        if !changes.is_empty() {
            bail!(
                "{name}: part {part} was made by another configuration than this run's: {}. To make it again, run {command}",
                changes.join(", ")
            );
        }
        if let Some(damage) = record.damage(&dir) {
            bail!("{name}: part {part}, {}: {damage}. To make it again, run {command}", dir.display());
        }
        Ok(dir)
    };
    Part::all(count).map(of).collect()
}

/// Removes the slices that the finished whole was joined from: it has all of their outputs. Slices of other configurations stay.
pub fn remove(stage: &dyn Stage, run: &Run, whole: &Recipe, count: usize) -> Result<()> {
    for part in Part::all(count) {
        let dir = run.paths.run.join(part.folder(stage.name()));
        if Manifest::read(&dir).is_some_and(|record| whole_of(&record.recipe) == *whole) {
            remove_dir(&dir)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn parts_are_disjoint_and_complete() {
        let units = ["a", "b", "c", "d", "e"];
        let mut seen: Vec<&str> = Vec::new();
        for part in Part::all(3) {
            let own = part.of(units);
            assert!((1..=2).contains(&own.len()));
            seen.extend(own);
        }
        seen.sort_unstable();
        assert_eq!(seen, units);
        assert_eq!(Part::all(7).map(|part| part.of(units).len()).sum::<usize>(), units.len(), "some have no unit");
        assert_eq!("2/3".parse::<Part>().unwrap().folder("train"), "train-2-of-3");
    }

    #[test]
    fn slices_are_named_and_wrong_names_refused() {
        assert_eq!("".parse::<Slice>().unwrap(), Slice::Whole);
        assert_eq!("merge/3".parse::<Slice>().unwrap(), Slice::Merge(3));
        assert_eq!("2/3".parse::<Slice>().unwrap(), Slice::One(Part { index: 2, count: 3 }));
        for wrong in ["merge/0", "merge/x", "4/3", "0/2", "1/0", "1/2/3", "half"] {
            assert!(wrong.parse::<Slice>().is_err(), "{wrong}");
        }
    }
}
