//! Where things lie: the project, its runs, its committed results and the download cache.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use kvcsr_lab::places;

/// The folders of one run.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The folder that holds `justfile` and `data/`.
    pub root: PathBuf,
    /// `data/runs/<profile>`: git-ignored, one folder per stage.
    pub run: PathBuf,
    /// The run of the profile itself, if this is a named run beside it (`data/runs/<profile>+<name>`).
    pub base: Option<PathBuf>,
    /// `data/results/<profile>`: small and committed.
    pub results: PathBuf,
    /// Downloads, shared by all clones of a user: `$KVCSR_CACHE`, else `kvcsr` in the user's cache folder.
    pub cache: PathBuf,
    /// LongBench's own material: `$KVCSR_LONGBENCH`.
    pub longbench: Option<PathBuf>,
}

impl Paths {
    /// Searches for the project in the current folder and the folders above it.
    pub fn find(profile: &str) -> Result<Self> {
        let here = std::env::current_dir()?;
        let Some(root) = here.ancestors().find(|p| p.join("data/sources.toml").is_file()) else {
            bail!("no data/sources.toml in {} or above: run this inside a clone of the project", here.display());
        };
        let data = std::env::var_os("KVCSR_DATA").map_or_else(|| root.join("data"), PathBuf::from);
        Ok(Self {
            root: root.to_owned(),
            run: data.join("runs").join(profile),
            base: None,
            results: data.join("results").join(profile),
            cache: places::cache_dir()?,
            longbench: std::env::var_os("KVCSR_LONGBENCH").filter(|folder| !folder.is_empty()).map(PathBuf::from),
        })
    }

    /// The run `name` beside that of `profile`. What differs is made there; everything else is used from the profile's run.
    pub fn find_run(profile: &str, name: &str) -> Result<Self> {
        let own = Self::find(&format!("{profile}+{name}"))?;
        let base = Self::find(profile)?;
        Ok(Self { base: Some(base.run), ..own })
    }

    /// The profile whose run this is.
    pub fn profile(&self) -> String {
        let label = self.run.file_name().unwrap_or_default().to_string_lossy();
        label.split('+').next().unwrap_or_default().to_owned()
    }

    /// `data/plans/<profile>`: plans of csr+ that people write, committed.
    pub fn plans(&self, profile: &str) -> PathBuf {
        self.root.join("data/plans").join(profile)
    }

    /// A path as people type it: relative to the project if it lies inside the project.
    pub fn show<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }
}
