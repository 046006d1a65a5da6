//! keep: keeps a run under another name, before its profile runs again with other parameters.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, bail};
use kvcsr_codec::atomic;

use crate::config;
use crate::manifest::{self, Manifest};
use crate::paths::Paths;
use crate::stage::{lock, remove_dir};

/// Links every finished stage of `profile`'s run into `data/runs/<profile>+<name>`.
pub fn run(profile: &str, name: &str) -> Result<()> {
    if !config::plain(name) {
        bail!("run `{name}`: a name of letters, digits, dots and dashes is expected");
    }
    let from = Paths::find(profile)?;
    let to = Paths::find_run(profile, name)?.run;
    if to.exists() {
        bail!("{} is there already: choose another name, or remove it", from.show(&to));
    }
    let stages = finished(&from.run)?;
    if stages.is_empty() {
        bail!("{} has no finished stage to keep", from.show(&from.run));
    }
    let (runs, label) = (to.parent().context("a run has a folder")?, to.file_name().context("a run has a name")?);
    let partial = runs.join(format!(".keeping-{}", label.to_string_lossy()));
    // Two at once would write into each other's links, and so into the outputs themselves.
    let _keeping = lock(runs, &format!("keeping-{}", label.to_string_lossy()))?;
    // After one that was killed, the same would happen.
    remove_dir(&partial)?;
    for stage in &stages {
        let _made = lock(&from.run, stage)?;
        link_tree(&from.run.join(stage), &partial.join(stage))?;
    }
    atomic::rename_folder(&partial, &to).with_context(|| to.display().to_string())?;
    println!("kept {} of profile `{profile}` in {}", stages.join(", "), from.show(&to));
    Ok(())
}

/// The finished stages of a run, in name order.
pub fn finished(run: &Path) -> Result<Vec<String>> {
    let mut stages: Vec<String> = match std::fs::read_dir(run) {
        Ok(entries) => entries
            .flatten()
            .filter(|e| Manifest::read(&e.path()).is_some())
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|name| !name.ends_with(".old") && !name.ends_with(".partial"))
            .collect(),
        Err(_) => Vec::new(),
    };
    stages.sort();
    Ok(stages)
}

/// Links a folder. Finished outputs are replaced and never changed in place, so a link is as good as a copy. The record is copied.
fn link_tree(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let path = entry?.path();
        let Some(name) = path.file_name() else { continue };
        let target = to.join(name);
        if path.is_dir() {
            link_tree(&path, &target)?;
        } else if name == manifest::FILE || !linked(&path, &target)? {
            let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
            atomic::write(&target, &bytes).with_context(|| target.display().to_string())?;
        }
    }
    atomic::sync_folder(to).with_context(|| to.display().to_string())
}

/// Makes a hard link; false if the file system has none. An existing target is an error: it may be a link to the same file.
fn linked(from: &Path, to: &Path) -> Result<bool> {
    match std::fs::hard_link(from, to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(error).with_context(|| to.display().to_string()),
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_kept_file_stays_when_the_first_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::create_dir_all(from.join("sub")).unwrap();
        std::fs::write(from.join("sub/x"), "old").unwrap();
        link_tree(&from, &to).unwrap();
        crate::atomic::write(&from.join("sub/x"), b"new").unwrap();
        assert_eq!(std::fs::read_to_string(to.join("sub/x")).unwrap(), "old");
    }

    #[test]
    fn a_link_that_is_there_is_not_written_into() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::create_dir(&from).unwrap();
        std::fs::write(from.join("x"), "whole").unwrap();
        link_tree(&from, &to).unwrap();
        assert!(link_tree(&from, &to).unwrap_err().to_string().contains("b/x"));
        assert_eq!(std::fs::read_to_string(from.join("x")).unwrap(), "whole");
    }
}
