//! Where downloads are.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::LabError;
use crate::error::Result;

/// The folder of downloads, shared by all clones of a user: `$KVCSR_CACHE`, or `kvcsr` in the user's cache folder if it
/// is not set.
///
/// # Errors
/// [`LabError::NoCache`] if no variable names a folder.
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("KVCSR_CACHE") {
        return Ok(dir.into());
    }
    if let Some(dir) = std::env::var_os("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(dir).join("kvcsr"));
    }
    std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/kvcsr")).ok_or(LabError::NoCache)
}

/// Whether a name from `data/sources.toml`, joined to a folder, stays inside that folder: it is a relative path without
/// `.` and `..`.
pub fn stays_inside(name: &str) -> bool {
    let mut parts = Path::new(name).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// A file of a package in a folder of downloads.
pub fn in_package(cache: &Path, package: &str, version: &str, file: &str) -> PathBuf {
    cache.join("sources").join(format!("{package}-{version}")).join(file)
}

/// A file that was joined from parts of several packages, in a folder of downloads. `id` is its name in
/// `data/sources.toml`.
pub fn joined(cache: &Path, id: &str, file: &str) -> PathBuf {
    cache.join("sources").join(id).join(file)
}

/// The path and the text of `data/sources.toml`, in the project that contains the folder `here`.
///
/// # Errors
/// If there is no project, or the file cannot be read.
pub fn sources(here: &Path) -> Result<(PathBuf, String)> {
    let listed = |root: &Path| root.join("data/sources.toml");
    let root = here.ancestors().find(|root| listed(root).is_file());
    let path = listed(root.ok_or_else(|| LabError::NoProject(here.to_owned()))?);
    let text = std::fs::read_to_string(&path).map_err(|source| LabError::Io { path: path.clone(), source })?;
    Ok((path, text))
}

/// The model called `id` in `data/sources.toml`, as a file in `cache`. The project is searched from `here` upwards.
///
/// # Errors
/// If there is no such entry, or the file was not downloaded.
pub fn model(here: &Path, cache: &Path, id: &str) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Sources {
        source: Vec<Source>,
    }
    #[derive(Deserialize)]
    struct Source {
        id: String,
        kind: String,
        package: Option<String>,
        version: Option<String>,
        file: String,
    }
    let (path, text) = sources(here)?;
    let wrong = |reason| LabError::Sources { path: path.clone(), reason };
    let listed: Sources = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let found = listed.source.iter().find(|source| source.id == id && source.kind == "model");
    let source = found.ok_or_else(|| wrong(format!("no model called `{id}`")))?;
    let names = [&source.id, &source.file].into_iter().chain(&source.package).chain(&source.version);
    if let Some(outside) = names.into_iter().find(|name| !stays_inside(name)) {
        return Err(wrong(format!("model `{id}`: `{outside}` is no path inside the folder of downloads")));
    }
    let file = match (&source.package, &source.version) {
        (Some(package), Some(version)) => in_package(cache, package, version, &source.file),
        _ => joined(cache, id, &source.file),
    };
    if file.is_file() { Ok(file) } else { Err(LabError::NotFetched(file)) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_that_leave_a_folder_are_told() {
        assert!(["a", "a/b.txt", "a..b", "..a/b"].iter().all(|name| stays_inside(name)));
        assert!(["", ".", "..", "/a", "../a", "a/../b", "./a", "a/.."].iter().all(|name| !stays_inside(name)));
    }

    #[test]
    fn the_embedded_model_is_found_where_it_was_fetched() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let cache = tempfile::tempdir().unwrap();
        let Err(LabError::NotFetched(file)) = model(here, cache.path(), crate::model::EMBEDDED) else {
            panic!("nothing was fetched");
        };
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "").unwrap();
        assert_eq!(model(here, cache.path(), crate::model::EMBEDDED).unwrap(), file);
        let joined = match model(here, cache.path(), "qwen2.5-coder-0.5b-instruct") {
            Err(LabError::NotFetched(file)) => file,
            other => panic!("nothing was fetched, but {other:?}"),
        };
        assert!(joined.ends_with("sources/qwen2.5-coder-0.5b-instruct/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"));
        assert!(matches!(model(here, cache.path(), "wiki"), Err(LabError::Sources { .. })), "wiki is a text");
        assert!(matches!(model(Path::new("/"), cache.path(), "wiki"), Err(LabError::NoProject(_))));
    }
}
