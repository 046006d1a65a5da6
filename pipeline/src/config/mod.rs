//! The configuration of a run: the defaults, which a profile overrides, and the command line, which overrides both.
//!
//! `profiles/defaults.toml` has every parameter with its default and its meaning. Any other key is an error. Each section is a
//! type of [`sections`], and its stage checks it.

pub mod check;
mod layers;
pub mod sections;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};
use kvcsr_cache::tensor::Attention;
use kvcsr_stats::Bootstrap;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

pub use self::check::plain;
use self::layers::{apply, list, merge};

const DEFAULTS: &str = include_str!("../../profiles/defaults.toml");

/// All parameters of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub model: String,
    pub corpora: Vec<String>,
    pub seed: u64,
    pub resamples: usize,
    pub threads: usize,
    pub device: String,
    pub dtype: String,
    pub attention: String,
    pub calibrate: sections::Calibrate,
    pub ceiling: sections::Ceiling,
    pub merge: sections::Merge,
    pub train: sections::train::Settings,
    pub train_best: sections::TrainBest,
    pub train_plus: sections::TrainPlus,
    pub allocate: sections::Allocate,
    pub ablate: sections::Ablate,
    pub heldout: sections::heldout::Settings,
    pub evaluate: sections::Evaluate,
    pub calibrate_peers: sections::CalibratePeers,
    pub compare: sections::Compare,
    pub at_rest: sections::AtRest,
    pub longbench: sections::longbench::Settings,
    pub suite: sections::Suite,
    pub report: sections::Report,
    pub executor: sections::executor::Settings,
    /// Parameters by path, each with the values that `just sweep` runs.
    pub sweep: BTreeMap<String, Vec<Value>>,
}

/// The table of `defaults.toml`.
fn defaults() -> Result<Table> {
    static READ: OnceLock<Table> = OnceLock::new();
    if let Some(table) = READ.get() {
        return Ok(table.clone());
    }
    let table: Table = DEFAULTS.parse().context("built-in defaults")?;
    Ok(READ.get_or_init(|| table).clone())
}

impl Config {
    /// Merges the defaults, `profiles/<profile>.toml` and `path=value` overrides. Each stage checks its own section: a caller
    /// that runs stages must call these checks.
    pub fn load(profiles: &Path, profile: &str, overrides: &[String]) -> Result<Self> {
        if !plain(profile) {
            bail!("profile `{profile}`: a name of letters, digits, dots and dashes is expected");
        }
        let path = profiles.join(format!("{profile}.toml"));
        let text = std::fs::read_to_string(&path).map_err(|e| {
            anyhow!(
                "profile `{profile}`: {} could not be read ({e}). Profiles here: {}",
                path.display(),
                list(profiles)
            )
        })?;
        let context = || format!("profile {}", path.display());
        let own: Table = text.parse().with_context(context)?;
        let mut merged = defaults()?;
        merge(&mut merged, own).with_context(context)?;
        for item in overrides {
            apply(&mut merged, item)?;
        }
        let config: Self = Value::Table(merged).try_into().with_context(|| {
            let with = if overrides.is_empty() { String::new() } else { format!(" with {}", overrides.join(" ")) };
            format!("configuration of profile `{profile}`{with} (explained in pipeline/profiles/defaults.toml)")
        })?;
        config.check()?;
        Ok(config)
    }

    /// This configuration with `path=value` overrides.
    pub fn with(&self, overrides: &[String]) -> Result<Self> {
        let mut table = Table::try_from(self)?;
        for item in overrides {
            apply(&mut table, item)?;
        }
        let config: Self = Value::Table(table).try_into()?;
        config.check()?;
        Ok(config)
    }

    /// How schemes are run on the model's device.
    pub fn attention(&self) -> Result<Attention> {
        self.attention.parse().map_err(|reason: String| anyhow!(reason))
    }

    /// How differences between schemes are tested.
    pub fn bootstrap(&self) -> Bootstrap {
        Bootstrap { resamples: self.resamples, level: 0.95, seed: self.seed }
    }

    fn check(&self) -> Result<()> {
        self.dtype.parse::<kvcsr_model::Precision>()?;
        self.attention()?;
        if self.corpora.is_empty() {
            bail!("corpora is empty: name at least one text of data/sources.toml");
        }
        self.executor.check()
    }
}

#[cfg(test)]
pub mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The configuration of the profile `smoke`.
    pub fn smoke() -> Config {
        load("smoke", &[]).unwrap()
    }

    /// The configuration without any profile.
    pub fn defaults() -> Config {
        DEFAULTS.parse::<Table>().unwrap().try_into().unwrap()
    }

    fn load(profile: &str, overrides: &[&str]) -> Result<Config> {
        let profiles = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
        Config::load(&profiles, profile, &overrides.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn profile_overrides_defaults_and_command_line_overrides_profile() {
        let config = load("smoke", &["train.atoms=512", "train.learning_rate=1", "device=cpu"]).unwrap();
        assert_eq!(config.calibrate.tokens, 4096);
        assert_eq!(config.train.trainer.atoms, 512);
        assert_eq!(config.train.trainer.learning_rate, 1.0);
        assert_eq!(config.device, "cpu");
        assert_eq!(config.train.value_chunks, 2);
    }

    #[test]
    fn every_profile_loads_and_those_of_the_papers_models_have_its_sizes() {
        let profiles = list(&Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles"));
        for profile in profiles.split(", ") {
            let config = load(profile, &["model=/path/to/model", "dtype=bf16"]).unwrap();
            assert_eq!((config.model.as_str(), config.dtype.as_str()), ("/path/to/model", "bf16"), "{profile}");
        }
        for (profile, model) in [
            ("llama2-7b-chat", "Llama2-7B-chat"),
            ("llama3-8b-instruct", "Llama3-8B-Instruct"),
            ("baichuan2-7b-chat", "Baichuan2-7B-chat"),
        ] {
            let config = load(profile, &[]).unwrap();
            assert_eq!((config.train.trainer.atoms, config.train.key_chunks, config.train.value_chunks), (8192, 1, 2));
            assert_eq!(config.longbench.paper_model, model);
            for level in [4, 6, 8, 16] {
                // In tokens. Each key-value head of a token gives an atom: 4096 and 8192 with 32 heads, 1024 and 2048 with 8.
                let online = kvcsr_cache::CsrOptions::parse(&format!("csr-{level}+online")).unwrap().online.unwrap();
                assert_eq!((online.sampled, online.guard), (128, 256));
                assert!(config.longbench.schemes.contains(&format!("csr-{level}+online")), "{profile}");
            }
        }
    }

    /// The names of all parameters, such as `train.atoms`. The keys of the sweep are not among them: these are the user's.
    fn names(table: &Table) -> Vec<String> {
        let of = |(section, value): (&String, &Value)| match value {
            Value::Table(keys) => keys.keys().map(|key| format!("{section}.{key}")).collect(),
            _ => vec![section.clone()],
        };
        table.iter().flat_map(of).collect()
    }

    #[test]
    fn every_parameter_is_in_the_defaults_and_explained_there() {
        let written = names(&DEFAULTS.parse().unwrap());
        assert_eq!(names(&Table::try_from(defaults()).unwrap()), written);
        for name in written {
            let key = name.rsplit('.').next().unwrap();
            let starts = |line: &&str| line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='));
            assert!(DEFAULTS.lines().any(|line| starts(&line)), "{name}");
        }
        // A struct that filled in missing values would be a second place for defaults.
        for name in names(&DEFAULTS.parse().unwrap()).iter().filter(|name| !name.starts_with("train.")) {
            let mut table: Table = DEFAULTS.parse().unwrap();
            match name.split_once('.') {
                Some((section, key)) => table[section].as_table_mut().unwrap().remove(key),
                None => table.remove(name),
            };
            assert!(table.try_into::<Config>().is_err(), "{name} has a default in code");
        }
    }

    #[test]
    fn a_profiles_unknown_keys_are_named_with_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |text: &str| {
            std::fs::write(folder.path().join("own.toml"), text).unwrap();
            format!("{:#}", Config::load(folder.path(), "own", &[]).unwrap_err())
        };
        for (text, key) in [
            ("[train]\natom = 4", "`train.atom`"),
            ("[trian]\natoms = 4", "`trian`"),
            ("[suite]\ntask = []", "`suite.task`"),
            ("[train]\nchunks = 2", "`train.chunks`"),
        ] {
            let error = refused(text);
            assert!(error.contains(key) && error.contains("own.toml"), "{error}");
        }
        std::fs::write(folder.path().join("own.toml"), "[sweep]\n\"train.atoms\" = [64, 128]").unwrap();
        assert_eq!(Config::load(folder.path(), "own", &[]).unwrap().sweep["train.atoms"].len(), 2);
    }

    #[test]
    fn unknown_keys_and_bad_values_are_errors_that_help() {
        let message = |o: &str| format!("{:#}", load("smoke", &[o]).unwrap_err());
        assert!(message("train.atom=4").contains("Known here: atoms"), "{}", message("train.atom=4"));
        assert!(message("trian.atoms=4").contains("no section `trian`"));
        assert!(message("train.atoms").contains("path=value"));
        assert!(message("train.atoms=many").contains("invalid type"));
        let gradient = message("train.gradient=x");
        assert!(gradient.contains("train.gradient=x") && gradient.contains("`coefficients` or `atoms`"), "{gradient}");
        assert!(message("dtype=fp16").contains("auto, f32, bf16, bf16-fast or f16"));
        assert!(message("attention=gpu").contains("expected auto, codes or tensor"));
        assert!(format!("{:#}", load("nope", &[]).unwrap_err()).contains("smoke"));
        assert!(load("../smoke", &[]).is_err());
    }
}
