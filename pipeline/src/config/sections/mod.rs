//! The sections of the configuration, one type each. The stage of a section checks it; `profiles/defaults.toml` explains every
//! parameter.

pub mod executor;
pub mod heldout;
pub mod longbench;
pub mod train;

use serde::{Deserialize, Serialize};

/// The section `[calibrate]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibrate {
    pub tokens: usize,
    pub heldout_tokens: usize,
    pub heldout_fraction: f64,
    pub sequence: usize,
    pub importance: bool,
}

/// The section `[merge]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

/// Which threshold is chosen so that a target number of groups results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The largest divergence of any pair in a group.
    Delta1,
    /// The largest sum of the divergences of neighbours in a group: this gives groups of more even length.
    Delta2,
}

/// The section `[ceiling]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    pub errors: Vec<f64>,
    pub atoms: usize,
}

/// The section `[train_best]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainBest {
    pub keys: String,
    pub values: String,
    pub epochs: usize,
}

/// The section `[train_plus]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainPlus {
    pub atoms: usize,
    pub iterations: usize,
    pub key_weight: f64,
    pub query_texts: usize,
    pub trial: Vec<f64>,
    pub trial_documents: usize,
    pub trial_context: usize,
    pub trial_continuation: usize,
}

/// The section `[allocate]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Allocate {
    pub documents: usize,
    pub context: usize,
    pub continuation: usize,
    pub check_documents: usize,
    pub design: [usize; 2],
    pub levels: Vec<usize>,
    pub budgets: Vec<usize>,
}

/// The section `[ablate]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

/// The section `[evaluate]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluate {
    pub schemes: Vec<String>,
    pub contexts: Vec<usize>,
    pub documents: usize,
    pub reconstruction: Vec<usize>,
}

/// The section `[calibrate_peers]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CalibratePeers {
    pub methods: Vec<String>,
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

/// The section `[at_rest]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AtRest {
    pub bits: Vec<f64>,
    pub schemes: Vec<String>,
    pub contexts: Vec<usize>,
    pub documents: usize,
}

/// The section `[compare]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compare {
    pub schemes: Vec<String>,
    pub contexts: Vec<usize>,
    pub documents: usize,
    pub decode: usize,
    pub tasks: Vec<String>,
    pub task_limit: usize,
    pub task_lengths: Vec<usize>,
    pub task_prompt_tokens: usize,
}

/// The section `[suite]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Suite {
    pub tasks: Vec<String>,
    pub limit: usize,
    pub lengths: Vec<usize>,
    pub depths: Vec<f64>,
    pub repeats: usize,
    pub max_prompt_tokens: usize,
    pub schemes: Vec<String>,
    pub dictionaries: String,
}

/// The section `[report]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub memory_tokens: usize,
    pub publish: bool,
}
