//! The record of the submitted jobs, which lies beside their scripts.

use std::path::Path;

use anyhow::Result;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::atomic;

/// The record's file.
const FILE: &str = "jobs.json";

/// The jobs that were submitted for a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submitted {
    /// The run: `smol`, or `smol+name`.
    pub run: String,
    pub submitted: Timestamp,
    pub jobs: Vec<Entry>,
}

/// One job or array.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub name: String,
    /// Slurm's number.
    pub id: u64,
    pub tasks: usize,
    /// The folders of the run that its tasks make, one for each task; empty if a task makes several.
    pub makes: Vec<String>,
    /// The names of the jobs that must succeed before it.
    pub after: Vec<String>,
    /// The options that `sbatch` was called with.
    pub options: Vec<String>,
}

impl Submitted {
    /// The record in the folder of scripts, if there is one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        if path.is_file() { atomic::read_json(&path).map(Some) } else { Ok(None) }
    }

    /// Writes the record into that folder.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        atomic::write_json(&folder.join(FILE), self)
    }

    /// Slurm's numbers of all jobs.
    pub fn ids(&self) -> Vec<u64> {
        self.jobs.iter().map(|job| job.id).collect()
    }
}
