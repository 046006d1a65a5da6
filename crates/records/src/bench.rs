//! Our speed compared with that of a named peer, as `just bench` measures it.

use serde::{Deserialize, Serialize};

/// One piece of work, done by us and by one peer in the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchRow {
    /// `encode`, `attend`, `compress`, `decode` or `threads`.
    pub work: String,
    /// The sizes of the work.
    pub shape: String,
    /// Our method: a scheme, or an encoder.
    pub ours: String,
    /// The peer.
    pub peer: String,
    /// The unit that is counted: `vectors` or `tokens`.
    pub unit: String,
    /// Our speed in units per second.
    pub ours_per_s: f64,
    /// The peer's speed in units per second.
    pub peer_per_s: f64,
    /// `ours_per_s / peer_per_s`. Above 1 we are faster.
    pub ratio: f64,
    /// The limit that the machine sets: see docs/PERFORMANCE.md.
    pub limit: String,
    /// Fraction of that limit that we reach, if there is a limit.
    pub limit_share: Option<f64>,
    /// Our bytes: of a code of one vector, or of a cache.
    pub ours_bytes: Option<f64>,
    /// The peer's bytes.
    pub peer_bytes: Option<f64>,
    /// Relative squared error of our decoded vectors, if the work encodes vectors.
    pub ours_error: Option<f64>,
    /// Relative squared error of the peer's decoded vectors.
    pub peer_error: Option<f64>,
    /// The processor and the number of threads.
    pub machine: String,
    /// The commit of this program.
    pub commit: String,
}
