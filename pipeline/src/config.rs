//! The configuration of a run: defaults, overridden by a profile, overridden by the command line.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use kvcsr_eval::longbench::metrics::CodeSim;
use kvcsr_eval::longbench::prompt::Chat;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

const DEFAULTS: &str = include_str!("../profiles/defaults.toml");

/// Everything a run can be told. Documented, with defaults, in `profiles/defaults.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub model: String,
    pub corpora: Vec<String>,
    pub seed: u64,
    pub threads: usize,
    pub device: String,
    pub dtype: String,
    pub calibrate: Calibrate,
    pub merge: Merge,
    pub train: Train,
    pub train_best: TrainBest,
    pub allocate: Allocate,
    pub ablate: Ablate,
    pub evaluate: Evaluate,
    pub calibrate_peers: CalibratePeers,
    pub compare: Compare,
    pub longbench: LongBench,
    pub suite: Suite,
    pub report: Report,
    /// Parameters by path, each with the values that `just sweep` runs.
    pub sweep: BTreeMap<String, Vec<Value>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibrate {
    pub tokens: usize,
    pub heldout_tokens: usize,
    pub heldout_fraction: f64,
    pub sequence: usize,
    pub importance: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    pub sample: usize,
    pub bins: usize,
    pub key_delta_1: f64,
    pub key_delta_2: f64,
    pub value_delta_1: f64,
    pub value_delta_2: f64,
    pub key_groups: usize,
    pub value_groups: usize,
    pub target: Target,
}

/// Which threshold a target number of groups is met by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The largest divergence of any pair in a group.
    Delta1,
    /// The largest sum of the divergences of neighbours in a group: groups of more even length.
    Delta2,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    pub atoms: usize,
    pub sparsity: usize,
    pub key_chunks: usize,
    pub value_chunks: usize,
    pub epochs: usize,
    pub batch: usize,
    pub learning_rate: f64,
    pub schedule: String,
    pub gradient: String,
    pub selection: String,
    pub kmeans_iterations: usize,
    pub kmeans_sample: usize,
    pub trainer: String,
    pub pursuit: String,
    pub start: String,
    pub diversity: String,
    pub dead_atoms: String,
    pub curriculum: f64,
    pub weighting: Weighting,
    pub patience: usize,
    pub vectors: usize,
    pub checkpoint_seconds: f64,
    pub memory_gb: f64,
}

/// The set `best`: `[train]` with options by name for keys and for values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainBest {
    pub keys: String,
    pub values: String,
    pub epochs: usize,
}

/// How much each vector counts in the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weighting {
    /// All alike, as in the paper.
    None,
    /// By what calibrate recorded of the attention it gets.
    Attention,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ablate {
    pub layers: Vec<usize>,
    pub vectors: usize,
    pub epochs: usize,
    pub table_atoms: Vec<usize>,
    pub table_sparsity: Vec<usize>,
    pub table_chunks: Vec<usize>,
    pub options: Vec<String>,
    pub options_atoms: usize,
    pub option_layers: Vec<usize>,
    pub merged_atoms: usize,
    pub merged_vectors: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allocate {
    pub documents: usize,
    pub context: usize,
    pub continuation: usize,
    pub check_documents: usize,
    pub design: [usize; 2],
    pub levels: Vec<usize>,
    pub budgets: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    pub schemes: Vec<String>,
    pub context: usize,
    pub continuation: usize,
    pub documents: usize,
    pub reconstruction: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibratePeers {
    pub tokens: usize,
    pub cq: Vec<String>,
    pub cq_iterations: usize,
    pub cq_tolerance: f64,
    pub commvq_vectors: usize,
    pub commvq_iterations: usize,
    pub lexico_atoms: usize,
    pub lexico_sparsity: usize,
    pub lexico_tokens: usize,
    pub lexico_epochs: usize,
    pub rope_positions: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compare {
    pub schemes: Vec<String>,
    pub contexts: Vec<usize>,
    pub documents: Vec<usize>,
    pub continuation: usize,
    pub decode: usize,
    pub tasks: Vec<String>,
    pub task_limit: usize,
    pub task_lengths: Vec<usize>,
    pub task_prompt_tokens: usize,
    pub resamples: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LongBench {
    pub folder: String,
    pub tasks: Vec<String>,
    pub limit: usize,
    pub max_prompt_tokens: usize,
    pub chat: Chat,
    pub schemes: Vec<String>,
    pub dictionaries: String,
    pub code_sim: CodeSim,
    pub e: bool,
    pub shard: String,
    pub keep_going: bool,
    pub paper_model: String,
    pub resamples: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    pub tasks: Vec<String>,
    pub limit: usize,
    pub lengths: Vec<usize>,
    pub depths: Vec<f64>,
    pub repeats: usize,
    pub max_prompt_tokens: usize,
    pub schemes: Vec<String>,
    pub dictionaries: String,
    pub resamples: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    pub memory_tokens: usize,
    pub publish: bool,
}

impl Config {
    /// Merges defaults, `profiles/<profile>.toml` and `path=value` overrides.
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
        let own: Table = text.parse().with_context(|| format!("profile {}", path.display()))?;
        let mut merged: Table = DEFAULTS.parse().context("built-in defaults")?;
        merge(&mut merged, own);
        for item in overrides {
            apply(&mut merged, item)?;
        }
        let config: Self = Value::Table(merged).try_into().with_context(|| {
            format!("configuration of profile `{profile}` (known keys: pipeline/profiles/defaults.toml)")
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

    fn check(&self) -> Result<()> {
        self.dtype.parse::<kvcsr_model::Precision>()?;
        let positive = [
            ("calibrate.tokens", self.calibrate.tokens),
            ("calibrate.heldout_tokens", self.calibrate.heldout_tokens),
            ("calibrate.sequence", self.calibrate.sequence),
            ("merge.sample", self.merge.sample),
            ("merge.bins", self.merge.bins),
            ("train.atoms", self.train.atoms),
            ("train.sparsity", self.train.sparsity),
            ("train.key_chunks", self.train.key_chunks),
            ("train.value_chunks", self.train.value_chunks),
            ("train.batch", self.train.batch),
            ("allocate.context", self.allocate.context),
            ("allocate.documents", self.allocate.documents),
            ("allocate.check_documents", self.allocate.check_documents),
            ("ablate.vectors", self.ablate.vectors),
            ("evaluate.context", self.evaluate.context),
            ("evaluate.documents", self.evaluate.documents),
            ("longbench.max_prompt_tokens", self.longbench.max_prompt_tokens),
            ("suite.max_prompt_tokens", self.suite.max_prompt_tokens),
            ("compare.task_prompt_tokens", self.compare.task_prompt_tokens),
            ("suite.repeats", self.suite.repeats),
        ];
        for (name, value) in positive {
            if value == 0 {
                bail!("{name} must be at least 1, found 0");
            }
        }
        for (name, chunks) in
            [("train.key_chunks", self.train.key_chunks), ("train.value_chunks", self.train.value_chunks)]
        {
            if !self.train.sparsity.is_multiple_of(chunks) {
                bail!("train.sparsity = {} cannot be shared evenly by {name} = {chunks}", self.train.sparsity);
            }
        }
        if self.train.weighting == Weighting::Attention && !self.calibrate.importance {
            bail!("train.weighting = \"attention\" needs calibrate.importance = true, which records the weights");
        }
        if !(0.01..=0.9).contains(&self.calibrate.heldout_fraction) {
            bail!("calibrate.heldout_fraction must lie in 0.01..0.9, found {}", self.calibrate.heldout_fraction);
        }
        for (name, continuation) in [
            ("evaluate.continuation", self.evaluate.continuation),
            ("allocate.continuation", self.allocate.continuation),
        ] {
            if continuation < 2 {
                bail!("{name} must be at least 2 (the first token is not scored), found {continuation}");
            }
        }
        let levels = &self.allocate.levels;
        if levels.is_empty() || !levels.iter().all(|level| (1..=255).contains(level)) || !levels.is_sorted() {
            bail!("allocate.levels must be a rising list of levels from 1 to 255, found {levels:?}");
        }
        let [low, high] = self.allocate.design;
        if low >= high || ![low, high].iter().all(|level| levels.contains(level)) {
            bail!(
                "allocate.design must be two rising levels of allocate.levels ({levels:?}), found {:?}",
                self.allocate.design
            );
        }
        let compare = &self.compare;
        if compare.contexts.is_empty() || compare.contexts.len() != compare.documents.len() {
            bail!(
                "compare.documents needs a number for each of the {} contexts, found {}",
                compare.contexts.len(),
                compare.documents.len()
            );
        }
        if compare.continuation < 2 || compare.contexts.iter().chain(&compare.documents).any(|&n| n == 0) {
            bail!("compare: contexts and documents must be at least 1, continuation at least 2");
        }
        if let Some(length) = compare.task_lengths.iter().find(|&&length| length > compare.task_prompt_tokens) {
            bail!(
                "compare.task_lengths holds {length}: prompts above compare.task_prompt_tokens = {} lose their middle",
                compare.task_prompt_tokens
            );
        }
        let lists = [
            ("evaluate.schemes", &self.evaluate.schemes),
            ("compare.schemes", &self.compare.schemes),
            ("longbench.schemes", &self.longbench.schemes),
            ("suite.schemes", &self.suite.schemes),
        ];
        for (name, schemes) in lists {
            if !schemes.iter().any(|s| s == "dense") {
                bail!("{name} must contain `dense`: everything is compared with it");
            }
        }
        for (name, tasks) in [("longbench.tasks", &self.longbench.tasks), ("suite.tasks", &self.suite.tasks)] {
            if tasks.is_empty() {
                bail!("{name} is empty: name at least one task or group");
            }
        }
        if let Some(depth) = self.suite.depths.iter().find(|depth| !(0.0..=1.0).contains(*depth)) {
            bail!("suite.depths holds {depth}, expected shares from 0 to 1");
        }
        for (name, profile) in
            [("longbench.dictionaries", &self.longbench.dictionaries), ("suite.dictionaries", &self.suite.dictionaries)]
        {
            if !profile.is_empty() && !plain(profile) {
                bail!("{name} = `{profile}`: the name of a profile is expected");
            }
        }
        if self.corpora.is_empty() {
            bail!("corpora is empty: name at least one text of data/sources.toml");
        }
        Ok(())
    }
}

/// Whether a name of a profile is one, and not a path.
pub fn plain(profile: &str) -> bool {
    profile.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !profile.starts_with('.')
        && !profile.is_empty()
}

fn list(profiles: &Path) -> String {
    let mut names: Vec<String> = std::fs::read_dir(profiles)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().to_str().and_then(|n| n.strip_suffix(".toml")).map(str::to_owned))
        .filter(|n| n != "defaults")
        .collect();
    names.sort();
    names.join(", ")
}

fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Applies `train.atoms=2048`: the value is read as TOML, or as a string where it is none.
fn apply(config: &mut Table, item: &str) -> Result<()> {
    let (path, text) = item.split_once('=').ok_or_else(|| anyhow!("override `{item}`: expected path=value"))?;
    let value = format!("v = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    let mut keys: Vec<&str> = path.split('.').collect();
    let last = keys.pop().unwrap_or_default();
    let mut table = config;
    for key in keys {
        table = table
            .get_mut(key)
            .and_then(Value::as_table_mut)
            .ok_or_else(|| anyhow!("override `{item}`: there is no section `{key}`"))?;
    }
    let old = table.get(last).ok_or_else(|| {
        let known: Vec<&str> = table.keys().map(String::as_str).collect();
        anyhow!("override `{item}`: unknown key `{last}`. Known here: {}", known.join(", "))
    })?;
    let value = match (old, value) {
        (Value::Float(_), Value::Integer(i)) => Value::Float(i as f64),
        (_, value) => value,
    };
    table.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn load(profile: &str, overrides: &[&str]) -> Result<Config> {
        let profiles = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
        Config::load(&profiles, profile, &overrides.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn profile_overrides_defaults_and_command_line_overrides_profile() {
        let config = load("smoke", &["train.atoms=512", "train.learning_rate=1", "device=cpu"]).unwrap();
        assert_eq!(config.calibrate.tokens, 4096);
        assert_eq!(config.train.atoms, 512);
        assert_eq!(config.train.learning_rate, 1.0);
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
            assert_eq!((config.train.atoms, config.train.key_chunks, config.train.value_chunks), (8192, 1, 2));
            assert_eq!(config.longbench.paper_model, model);
            for level in [4, 6, 8, 16] {
                // In tokens, of which every key-value head gives an atom: 4096 and 8192 with 32 heads, 1024 and 2048 with 8.
                let online = kvcsr_cache::CsrOptions::parse(&format!("csr-{level}+online")).unwrap().online.unwrap();
                assert_eq!((online.sampled, online.guard), (128, 256));
                assert!(config.longbench.schemes.contains(&format!("csr-{level}+online")), "{profile}");
            }
        }
    }

    #[test]
    fn unknown_keys_and_bad_values_are_errors_that_help() {
        let message = |o: &str| format!("{:#}", load("smoke", &[o]).unwrap_err());
        assert!(message("train.atom=4").contains("Known here: atoms"), "{}", message("train.atom=4"));
        assert!(message("trian.atoms=4").contains("no section `trian`"));
        assert!(message("train.atoms").contains("path=value"));
        assert!(message("train.atoms=many").contains("invalid type"));
        assert!(message("train.sparsity=7").contains("value_chunks"));
        assert!(message("dtype=fp16").contains("auto, f32, bf16 or f16"));
        assert!(format!("{:#}", load("nope", &[]).unwrap_err()).contains("smoke"));
        assert!(load("../smoke", &[]).is_err());
    }
}
