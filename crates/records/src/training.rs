//! Training of dictionaries: epochs, reconstruction errors, which layers share a dictionary, and ablations.

use serde::{Deserialize, Serialize};

use crate::{Kind, heldout::DictionarySource};

/// Reconstruction of one layer's held-out vectors of one kind at one sparsity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReconstructionRow {
    /// The layer, counted from 0.
    pub layer: usize,
    /// Keys or values.
    pub kind: Kind,
    /// How the dictionary was made.
    pub dictionary: DictionarySource,
    /// Matching-pursuit steps per chunk, the paper's `s`.
    pub sparsity: usize,
    /// Chunks per head vector, the paper's `s_n`.
    pub chunks: usize,
    /// `sum |x - x'|^2 / sum |x|^2`.
    pub relative: f64,
    /// Mean over vectors of `|x - x'|^2`.
    pub mse: f64,
    /// Number of vectors measured.
    pub vectors: usize,
}

impl ReconstructionRow {
    /// The `n` of CSR-n for this row. By the paper's rule keys use `(n, 1)` and values `(n / 2, 2)`, so `n` is
    /// `sparsity * chunks`.
    pub fn level(&self) -> usize {
        self.sparsity * self.chunks
    }
}

/// A lower bound on the bits that a layer's vectors need for a given error, computed from their second moments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CeilingRow {
    /// The layer, counted from 0. For two layers, the first one.
    pub layer: usize,
    /// `keys`, `values`, or `keys and values`.
    pub vectors: String,
    /// Which channels are transformed together.
    pub together: String,
    /// Squared error as a fraction of the variance.
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
    /// The merged layers. In files they are a text like `3 4 5`.
    #[serde(with = "layers")]
    pub layers: Vec<usize>,
    /// The epoch. 0 is the state before training, if it was measured.
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
    /// Entropy of the atoms' usage, in bits. It is `log2 N` if all atoms are used equally often.
    pub usage_entropy: f64,
    /// Wall time of the epoch.
    pub seconds: f64,
}

/// Writes `[3, 4, 5]` as `3 4 5`.
pub fn spaced(layers: &[usize]) -> String {
    layers.iter().map(usize::to_string).collect::<Vec<_>>().join(" ")
}

/// Layers in files. They are written as a text, which is one field of a table. They are read from a text, or from the list
/// of older files.
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

/// The divergence between the vectors of two layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DivergenceRow {
    /// Keys or values.
    pub kind: Kind,
    /// The layer.
    pub layer: usize,
    /// The layer that `layer` is compared with.
    pub other: usize,
    /// Number of the group of `layer`.
    pub group: usize,
    /// Jensen-Shannon divergence in nats, from 0 to ln 2. For a layer with itself: the divergence of two halves of its vectors,
    /// which is the noise floor.
    pub divergence: f64,
}

/// Held-out error of one dictionary on one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AblationRow {
    /// The comparison: `table3`, `options`, `merged`, or `peers` for the dictionary learning of other projects.
    pub section: String,
    /// What was varied: the option, or how layers were merged. `neuraldict` is the paper's method.
    pub name: String,
    /// The layer whose held-out vectors were measured.
    pub layer: usize,
    /// Keys or values.
    pub kind: Kind,
    /// Number of atoms, `N`.
    pub atoms: usize,
    /// Sparsity per chunk, `s`.
    pub sparsity: usize,
    /// Number of chunks, `s_n`.
    pub chunks: usize,
    /// Number of vectors (chunks) that the dictionary was trained on.
    pub vectors: usize,
    /// Number of passes over them. 0 for a start that was not trained.
    pub epochs: usize,
    /// `sum |x - x'|^2 / sum |x|^2` over held-out vectors, encoded by matching pursuit.
    pub relative: f64,
    /// Mean of `|x - x'|^2` over held-out (chunk) vectors, the unit of the paper.
    pub mse: f64,
    /// `relative` with both sums weighted by the attention that the vectors get, if that was recorded.
    pub weighted: Option<f64>,
    /// Wall time of training on one thread, in seconds. Other programs may have used the machine too.
    pub seconds: f64,
}
