//! Training of dictionaries: its epochs, what they restore, which layers share one, and what changes it.

use serde::{Deserialize, Serialize};

use crate::{Kind, heldout::DictionarySource};

/// Reconstruction of one layer's held-out vectors of one kind at one sparsity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReconstructionRow {
    /// The layer, counted from 0.
    pub layer: usize,
    /// Keys or values.
    pub kind: Kind,
    /// Where the dictionary came from.
    pub dictionary: DictionarySource,
    /// Matching-pursuit steps per chunk, the paper's `s`.
    pub sparsity: usize,
    /// Chunks per head vector, the paper's `s_n`.
    pub chunks: usize,
    /// `sum |x - x'|^2 / sum |x|^2`.
    pub relative: f64,
    /// Mean over vectors of `|x - x'|^2`.
    pub mse: f64,
    /// Vectors measured.
    pub vectors: usize,
}

impl ReconstructionRow {
    /// The `n` of CSR-n that this row's kind has under the paper's rule: keys use `(n, 1)`, values `(n / 2, 2)`, so `sparsity * chunks`.
    pub fn level(&self) -> usize {
        self.sparsity * self.chunks
    }
}

/// The fewest bits that a layer's vectors can take for an error, as far as second moments tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CeilingRow {
    /// The layer, counted from 0; the first one of two.
    pub layer: usize,
    /// `keys`, `values`, or `keys and values`.
    pub vectors: String,
    /// What is transformed together.
    pub together: String,
    /// Squared error as a share of the variance.
    pub error: f64,
    /// Bits per channel.
    pub bits: f64,
}

/// One epoch of one group's dictionary training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRow {
    /// The group's name.
    pub group: String,
    /// Keys or values.
    pub kind: Kind,
    /// The merged layers; in files a text like `3 4 5`.
    #[serde(with = "layers")]
    pub layers: Vec<usize>,
    /// The epoch; 0 is the state before training, if it was measured.
    pub epoch: usize,
    /// `L_MSE` per vector.
    pub mse: f64,
    /// `L_div`.
    pub diversity: f64,
    /// The weight of `L_div` in the loss.
    pub beta: f64,
    /// Relative squared error on training vectors.
    pub train_relative: f64,
    /// Relative squared error on held-out vectors.
    pub heldout_relative: f64,
    /// Atoms that no training vector used in this epoch.
    pub dead_atoms: usize,
    /// Entropy of the atoms' usage, in nats; `ln N` when all are used alike.
    pub usage_entropy: f64,
    /// Wall time of the epoch.
    pub seconds: f64,
}

/// `[3, 4, 5]` as `3 4 5`.
pub fn spaced(layers: &[usize]) -> String {
    layers.iter().map(usize::to_string).collect::<Vec<_>>().join(" ")
}

/// Layers in files: written as a text, which is one field of a table; read as a text or as the list of older files.
mod layers {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Layers {
        List(Vec<usize>),
        One(usize),
        Text(String),
    }

    pub fn serialize<S: Serializer>(layers: &[usize], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::spaced(layers))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<usize>, D::Error> {
        match Layers::deserialize(from)? {
            Layers::List(layers) => Ok(layers),
            Layers::One(layer) => Ok(vec![layer]),
            Layers::Text(text) => text
                .split_whitespace()
                .map(|layer| {
                    layer.parse().map_err(|_| D::Error::custom(format!("`{layer}` is not the number of a layer")))
                })
                .collect(),
        }
    }
}

/// How far apart the spaces of two layers are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DivergenceRow {
    /// Keys or values.
    pub kind: Kind,
    /// The layer.
    pub layer: usize,
    /// The layer it is compared with.
    pub other: usize,
    /// Number of the group that `layer` was put in.
    pub group: usize,
    /// Jensen-Shannon divergence in nats, 0 to ln 2. Of a layer with itself: that of two halves of its vectors, the noise floor.
    pub divergence: f64,
}

/// Held-out error of one dictionary on one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AblationRow {
    /// The comparison: `table3`, `options`, `merged`, or `peers` for other projects' learners.
    pub section: String,
    /// What was varied: the option, or how layers were merged. `neuraldict` for the paper's method.
    pub name: String,
    /// The layer whose held-out vectors were measured.
    pub layer: usize,
    /// Keys or values.
    pub kind: Kind,
    /// `N`.
    pub atoms: usize,
    /// `s`, per chunk.
    pub sparsity: usize,
    /// `s_n`.
    pub chunks: usize,
    /// Vectors (chunks) that the dictionary was trained on.
    pub vectors: usize,
    /// Passes over them; 0 for a start that was not trained.
    pub epochs: usize,
    /// `sum |x - x'|^2 / sum |x|^2` over held-out vectors, by matching pursuit.
    pub relative: f64,
    /// Mean over held-out (chunk) vectors of `|x - x'|^2`: the paper's unit.
    pub mse: f64,
    /// `relative` with both sums weighted by the attention vectors get, where it was recorded.
    pub weighted: Option<f64>,
    /// Wall time of training on one thread, in seconds. Other work may share the machine.
    pub seconds: f64,
}
