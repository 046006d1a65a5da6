//! The section `[heldout]`: the long documents that schemes are scored on.

use anyhow::{Result, bail};
use kvcsr_eval::heldout::far;
use serde::{Deserialize, Serialize};

use crate::config::check;

/// The section `[heldout]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub domains: Vec<String>,
    /// Number of documents of each domain that are left out: those on which choices were made.
    pub skip: usize,
    pub windows: usize,
    pub scored: usize,
    pub repeats: usize,
    pub far_share: f64,
    pub training_noise: f64,
}

impl Settings {
    /// Checks the section, and the contexts and documents of `stage` that are scored by it.
    pub fn check(&self, stage: &str, contexts: &[usize], documents: usize) -> Result<()> {
        let Self { domains, windows, scored, far_share, training_noise, .. } = self;
        check::positive("heldout", &[("windows", *windows), ("scored", *scored), ("domains", domains.len())])?;
        check::positive(stage, &[("documents", documents), ("contexts", contexts.len())])?;
        if let Some(context) = contexts.iter().find(|&&tokens| tokens <= far::RECENT) {
            bail!(
                "{stage}.contexts holds {context}: the last {} tokens are never far, so a context must be longer",
                far::RECENT
            );
        }
        for (name, share) in [("far_share", far_share), ("training_noise", training_noise)] {
            if !(0.0..=1.0).contains(share) {
                bail!("heldout.{name} = {share}: a share between 0 and 1 is expected");
            }
        }
        Ok(())
    }
}
