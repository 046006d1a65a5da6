//! What a stage starts from: nothing, an unfinished run, or finished outputs that it extends.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::placing::{RECIPE, remove_dir, remove_file};
use crate::atomic;
use crate::config::Config;
use crate::manifest::{self, Manifest, Recipe};

/// What a stage starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    Nothing,
    /// An unfinished run of the same recipe, or of one that this one extends.
    Unfinished,
    /// The finished outputs of a recipe that this one extends.
    Finished,
}

impl Start {
    /// The title of an error while the stage is made. Files that an unfinished run left are not hashed, so they may be the cause.
    pub(super) fn title(self, stage: &str, partial: &Path) -> String {
        match self {
            Self::Unfinished => format!(
                "stage `{stage}`, going on where an unfinished run stopped (to start anew, remove {})",
                partial.display()
            ),
            Self::Nothing | Self::Finished => format!("stage `{stage}`"),
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Unfinished => "; going on where an unfinished run stopped",
            Self::Finished => "; what was made before is kept",
        }
    }
}

/// Prepares `partial`, and keeps those outputs of an earlier run that `recipe` makes too. `finished` is the folder of the whole
/// stage's outputs; `whole` is this run's recipe of the whole stage.
pub(super) fn prepare(
    partial: &Path,
    recipe: &Recipe,
    (finished, whole): (&Path, &Recipe),
    config: &Config,
    grows: &[&str],
) -> Result<Start> {
    let stamp = serde_json::json!({ "key": recipe.key(), "recipe": recipe, "config": config });
    let old: Option<Value> =
        std::fs::read_to_string(partial.join(RECIPE)).ok().and_then(|text| serde_json::from_str(&text).ok());
    if let Some(old) = old {
        let made: Option<Recipe> = serde_json::from_value(old["recipe"].clone()).ok();
        if old["key"] == recipe.key() || made.is_some_and(|made| recipe.extends(&made, grows)) {
            // Temporary files of a killed run would be taken for outputs.
            atomic::remove_leftovers(partial)?;
            atomic::write_json(&partial.join(RECIPE), &stamp)?;
            return Ok(Start::Unfinished);
        }
    }
    // The record is removed first: a folder that has a record and no recipe is taken for complete.
    remove_file(&partial.join(manifest::FILE))?;
    remove_dir(partial)?;
    std::fs::create_dir_all(partial).with_context(|| partial.display().to_string())?;
    let mut start = Start::Nothing;
    if let Some(made) = Manifest::read(finished)
        && whole.extends(&made.recipe, grows)
        && made.damage(finished).is_none()
    {
        for output in &made.outputs {
            let to = partial.join(&output.file);
            if let Some(folder) = to.parent() {
                std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            }
            atomic::copy(&finished.join(&output.file), &to)?;
        }
        start = Start::Finished;
    }
    // Written last: if a kill leaves the folder without it, the next run makes the folder anew.
    atomic::write_json(&partial.join(RECIPE), &stamp)?;
    Ok(start)
}
