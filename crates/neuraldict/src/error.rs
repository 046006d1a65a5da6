//! Errors of dictionary learning.

use std::path::PathBuf;

use kvcsr_codec::{CodecError, Kind};

/// The end of a message: where the batch and the atoms were saved.
fn told(saved: &Option<PathBuf>) -> String {
    saved.as_ref().map_or_else(String::new, |path| format!(" (batch and atoms: {})", path.display()))
}

/// Errors of this crate. `group` names the merged group, such as `key[3]` or `value[4-6]`.
#[derive(Debug, thiserror::Error)]
pub enum NeuralDictError {
    /// A field of [`TrainConfig`](crate::TrainConfig) is out of range.
    #[error("train.{field}: {reason}")]
    Config {
        /// The field's name.
        field: &'static str,
        /// What was found and what is allowed.
        reason: String,
    },
    /// Codebooks cannot be learned from these vectors.
    #[error("codebooks: {reason}")]
    Codebooks {
        /// What is wrong with the vectors.
        reason: String,
    },
    /// The requested device does not exist, or libtorch cannot use it.
    #[error("device {requested:?}: {reason}")]
    Device {
        /// The device as written in the configuration.
        requested: String,
        /// What is missing, and how to solve it.
        reason: String,
    },
    /// There are no shards, or all shards are empty.
    #[error("{group}: no {what} vectors: calibrate on a longer text")]
    NoVectors {
        /// The group.
        group: String,
        /// `training` or `held-out`.
        what: &'static str,
    },
    /// There are fewer vectors than atoms. The atoms are initialised from the vectors.
    #[error(
        "{group}: {vectors} training vectors are fewer than {atoms} atoms: calibrate on more tokens or lower train.atoms"
    )]
    TooFewVectors {
        /// The group.
        group: String,
        /// Vectors found (after cutting into chunks).
        vectors: usize,
        /// Number of atoms in the configuration.
        atoms: usize,
    },
    /// There are more vectors than 32-bit numbers can address.
    #[error("{group}: {vectors} vectors are more than {max}: calibrate on fewer tokens or merge fewer layers", max = u32::MAX)]
    TooManyVectors {
        /// The group.
        group: String,
        /// Vectors found (after cutting into chunks).
        vectors: usize,
    },
    /// The head vector cannot be cut into equal chunks.
    #[error("{group}: {chunks} chunks do not divide a head vector of {head_dim} channels")]
    Chunks {
        /// The group.
        group: String,
        /// Chunks per head vector, the paper's `s_n`.
        chunks: usize,
        /// Channels of a head vector.
        head_dim: usize,
    },
    /// The shards of one group have different kinds or widths.
    #[error("{group}: layer {layer} holds {found}, the group's first shard {expected}")]
    MixedShards {
        /// The group.
        group: String,
        /// Layer of the shard that differs.
        layer: usize,
        /// Kind and head_dim of that shard.
        found: String,
        /// Kind and head_dim of the first shard.
        expected: String,
    },
    /// A calibration vector contains NaN or an infinity.
    #[error("{kind} shard of layer {layer}: vector {vector} (of width {width}) is not finite: calibrate again")]
    NonFiniteVector {
        /// Layer of the shard.
        layer: usize,
        /// Kind of the shard.
        kind: Kind,
        /// Number of the vector within the shard, counted after cutting into chunks.
        vector: usize,
        /// Channels of a chunk.
        width: usize,
    },
    /// Every calibration vector is zero, so there is no direction to learn.
    #[error("{group}: all sampled vectors are zero")]
    AllZero {
        /// The group.
        group: String,
    },
    /// Training diverged: the loss or the norm of an updated atom is not a usable number.
    #[error("{group}: {what} at epoch {epoch}, batch {batch}: lower train.learning_rate{}", told(.saved))]
    Diverged {
        /// The group.
        group: String,
        /// Epoch, from 1.
        epoch: usize,
        /// Batch within the epoch, from 0.
        batch: usize,
        /// The quantity and its value.
        what: String,
        /// Where the batch and the atoms before the update were saved, if a folder was given.
        saved: Option<PathBuf>,
    },
    /// A weight is negative or not finite, or the weights do not match the vectors.
    #[error("{group}: weights: {reason}")]
    Weights {
        /// The group.
        group: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// A checkpoint cannot be used.
    #[error("checkpoint {}: {reason}: remove the file to train the group from the start", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// The layer groups are not a partition of the model's layers.
    #[error("{kind} layer groups: {reason}")]
    Groups {
        /// Keys or values.
        kind: Kind,
        /// What is wrong.
        reason: String,
    },
    /// Reading shards, building a dictionary or matching pursuit failed.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// libtorch reported an error.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

/// `Result` of this crate.
pub type Result<T> = std::result::Result<T, NeuralDictError>;
