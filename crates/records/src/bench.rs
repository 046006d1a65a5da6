//! Work of ours beside that of a named peer, as `just bench` measures it.

use serde::{Deserialize, Serialize};

/// One piece of work, done by us and by one peer in the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchRow {
    /// `encode`, `attend`, `compress` or `threads`.
    pub work: String,
    /// Its sizes.
    pub shape: String,
    /// Ours: a scheme, or a way to encode.
    pub ours: String,
    /// What it is compared with.
    pub peer: String,
    /// What is counted: `vectors` or `tokens`.
    pub unit: String,
    /// Units a second, ours.
    pub ours_per_s: f64,
    /// Units a second, the peer's.
    pub peer_per_s: f64,
    /// `ours_per_s / peer_per_s`: above 1 we are faster.
    pub ratio: f64,
    /// What the machine allows: see docs/PERFORMANCE.md.
    pub limit: String,
    /// Share of that limit that ours reaches, if there is one.
    pub limit_share: Option<f64>,
    /// Bytes of ours: of a coded vector, or of a cache.
    pub ours_bytes: Option<f64>,
    /// Bytes of the peer's.
    pub peer_bytes: Option<f64>,
    /// Relative squared error of what ours restores, where vectors are coded.
    pub ours_error: Option<f64>,
    /// Relative squared error of what the peer's restores.
    pub peer_error: Option<f64>,
    /// The processor, and threads.
    pub machine: String,
    /// The commit of this program.
    pub commit: String,
}
