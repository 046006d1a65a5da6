//! The section `[executor]`: where the stages of a plan run, and what their jobs ask for.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// The section `[executor]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub kind: Kind,
    pub slices: usize,
    pub partition: String,
    pub account: String,
    pub gpus: usize,
    pub cpus: usize,
    pub memory_gb: f64,
    pub time: String,
    pub retries: usize,
    pub extra: Vec<String>,
}

/// Where stages run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// In this process, one after another.
    Local,
    /// As jobs of a Slurm cluster.
    Slurm,
}

/// Number of slices of a stage on a cluster, if `slices` is 0.
const SLURM_SLICES: usize = 8;
/// The largest number of retries: more would hide what is wrong.
const MOST_RETRIES: usize = 10;
/// Options of `sbatch` that `extra` may not contain: the executor sets them, or its jobs would not work with them.
const OWN: [&str; 18] = [
    "array",
    "chdir",
    "cpus-per-task",
    "dependency",
    "error",
    "gres",
    "job-name",
    "kill-on-invalid-dep",
    "nodes",
    "no-requeue",
    "ntasks",
    "open-mode",
    "output",
    "parsable",
    "requeue",
    "test-only",
    "wait",
    "wrap",
];

impl Settings {
    /// Checks what can be checked without a cluster. The values become arguments of `sbatch`.
    pub fn check(&self) -> Result<()> {
        for (name, value, more) in
            [("partition", &self.partition, "_.,+-"), ("account", &self.account, "_.,+-@:"), ("time", &self.time, ":-")]
        {
            let plain = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
            if !value.chars().all(plain) || value.starts_with('-') {
                bail!("executor.{name} = {value:?}: letters, digits and {more} are expected");
            }
        }
        if !(self.memory_gb >= 0.0 && self.memory_gb.is_finite()) {
            bail!("executor.memory_gb = {}: a number from 0 is expected", self.memory_gb);
        }
        if self.retries > MOST_RETRIES {
            bail!("executor.retries = {}: at most {MOST_RETRIES} are expected", self.retries);
        }
        self.extra.iter().try_for_each(|option| check_extra(option))
    }

    /// The number of slices that a stage runs in, if it has that many units of work.
    pub fn slices(&self) -> usize {
        match (self.slices, self.kind) {
            (0, Kind::Local) => 1,
            (0, Kind::Slurm) => SLURM_SLICES,
            (slices, _) => slices,
        }
    }
}

/// Checks that a further option looks like an option, and is none of [`OWN`] or an abbreviation of one, which `sbatch` accepts too.
fn check_extra(option: &str) -> Result<()> {
    let name = option.strip_prefix("--").and_then(|rest| rest.split('=').next()).unwrap_or_default();
    if name.is_empty() || option.chars().any(char::is_control) {
        bail!("executor.extra holds {option:?}: an option of sbatch is expected, for example \"--constraint=a100\"");
    }
    if let Some(own) = OWN.iter().find(|own| own.starts_with(name)) {
        bail!("executor.extra holds {option:?}: --{own} is set for every job already");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::tests::smoke;

    #[test]
    fn values_that_would_be_something_else_to_sbatch_are_refused() {
        let settings = smoke().executor;
        settings.check().unwrap();
        let partition = |text: &str| Settings { partition: text.to_owned(), ..settings.clone() };
        let account = |text: &str| Settings { account: text.to_owned(), ..settings.clone() };
        let time = |text: &str| Settings { time: text.to_owned(), ..settings.clone() };
        let extra = |text: &str| Settings { extra: vec![text.to_owned()], ..settings.clone() };
        for good in
            [partition("gpu,gpu-long"), account("lab@site"), time("1-12:00:00"), extra("--constraint=a100&nvme")]
        {
            good.check().unwrap();
        }
        for bad in [
            partition("gpu\nrm -rf x"),
            partition("--wrap=x"),
            partition("a b"),
            account("$(id)"),
            time("1h\n"),
            extra("--comment=a\nb"),
            extra("constraint=a100"),
            extra("-p gpu"),
            extra("--"),
            extra("--array=1-2"),
            extra("--dep=afterok:1"),
            Settings { memory_gb: f64::NAN, ..settings.clone() },
            Settings { retries: 100, ..settings.clone() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn slices_are_one_here_and_some_on_a_cluster() {
        let of = |kind, slices| Settings { kind, slices, ..smoke().executor }.slices();
        assert_eq!((of(Kind::Local, 0), of(Kind::Slurm, 0)), (1, SLURM_SLICES));
        assert_eq!((of(Kind::Local, 3), of(Kind::Slurm, 3)), (3, 3));
    }
}
