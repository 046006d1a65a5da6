//! The trained sets and budgets by the names that schemes call them: the stages that make them, and loading them checked.

use std::path::PathBuf;

use anyhow::Result;
use kvcsr_cache::{SchemeContext, registry};
use kvcsr_codec::DictionarySet;

use crate::manifest;
use crate::stages::allocate;
use crate::stages::provenance::Owner;
use crate::stages::train::{DICTIONARIES, KMEANS};

/// A set: its name in schemes, the stage that makes it, and its file there.
pub struct Source {
    pub name: &'static str,
    pub stage: &'static str,
    pub file: &'static str,
}

/// Every set.
pub const SETS: [Source; 4] = [
    Source { name: registry::DEFAULT_DICTIONARIES, stage: "train", file: DICTIONARIES },
    Source { name: "kmeans", stage: "train", file: KMEANS },
    Source { name: registry::BEST_DICTIONARIES, stage: "train-best", file: DICTIONARIES },
    Source { name: registry::ROPE_DICTIONARIES, stage: "train-rope", file: DICTIONARIES },
];

/// Stages that are run only where a scheme's name has a part that needs them.
const OPTIONAL: [(&str, &str); 3] = [("@best", "train-best"), ("+rope", "train-rope"), (allocate::PART, "allocate")];

/// The optional stages that the scheme called `name` needs.
pub fn optional(name: &str) -> impl Iterator<Item = &'static str> {
    OPTIONAL.into_iter().filter(move |(part, _)| name.contains(part)).map(|(_, stage)| stage)
}

/// The sets that are there, checked to be the model's; `folder` is where a stage's outputs lie. Sets of unfinished stages
/// are not.
///
/// # Errors
/// A set does not load, does not cover the model, or was trained for another one.
pub fn load(folder: impl Fn(&str) -> PathBuf, owner: &Owner) -> Result<Vec<(&'static str, DictionarySet)>> {
    let mut sets = Vec::new();
    for Source { name, stage, file } in SETS {
        let folder = folder(stage);
        if folder.join(manifest::FILE).is_file() && folder.join(file).is_file() {
            sets.push((name, owner.load(&folder.join(file))?));
        }
    }
    Ok(sets)
}

/// The context with those sets and the budgets.
pub fn add_to(
    mut context: SchemeContext,
    folder: impl Fn(&str) -> PathBuf,
    sets: Vec<(&'static str, DictionarySet)>,
) -> Result<SchemeContext> {
    for (name, set) in sets {
        context = context.with_dictionaries(name, set);
    }
    Ok(context.with_budgets(allocate::read(&folder("allocate"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_name_asks_for_its_stage() {
        let needed = |name| optional(name).collect::<Vec<_>>();
        assert!(needed("dense").is_empty());
        assert_eq!(needed("csr-8+refit@best"), ["train-best"]);
        assert_eq!(needed("csr-8+budget"), ["allocate"]);
    }
}
