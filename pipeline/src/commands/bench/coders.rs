//! The Python peers of `encode`: SPAMS, scikit-learn and faiss.

use std::path::Path;

use anyhow::Result;
use serde::Deserialize;
use serde_json::json;

use super::contest::Turn;
use super::encode::Size;
use super::worker::Worker;

/// The names of the peers that the worker knows.
const PEERS: [&str; 3] = ["SPAMS omp", "scikit-learn orthogonal_mp_gram", "faiss ResidualQuantizer 8 x 10 bits"];

/// The worker's answer to the name of a peer.
#[derive(Debug, Deserialize)]
struct Answer {
    rows: f64,
    seconds: f64,
    error: f64,
    /// Bytes of a coded vector, if they differ from ours.
    bytes: Option<f64>,
}

/// The peers, in a worker of their own.
pub struct Coders {
    worker: Worker,
    /// Bytes of a vector coded by the last peer.
    code_bytes: f64,
}

impl Coders {
    /// Starts `pipeline/peers/encode.py` with the interpreter `python` on `atoms` and `vectors`.
    ///
    /// # Errors
    /// If it does not start or cannot import what it needs.
    pub fn start(python: &Path, size: Size, atoms: &[f32], vectors: &[f32]) -> Result<Self> {
        let data = tempfile::tempdir()?;
        let bytes = |x: &[f32]| -> Vec<u8> { x.iter().flat_map(|x| x.to_le_bytes()).collect() };
        std::fs::write(data.path().join("atoms.f32"), bytes(atoms))?;
        std::fs::write(data.path().join("vectors.f32"), bytes(vectors))?;
        let mut job = serde_json::to_value(size)?;
        job["threads"] = json!(rayon::current_num_threads());
        std::fs::write(data.path().join("job.json"), job.to_string())?;
        let worker = Worker::start(python, "encode.py", data)?;
        // The quantiser is trained before it is timed.
        let code_bytes = worker.ask::<Answer>(PEERS[2])?.bytes.unwrap_or_default();
        Ok(Self { worker, code_bytes })
    }

    /// The names of the peers.
    pub fn peers(&self) -> &'static [&'static str] {
        &PEERS
    }

    /// Bytes of a vector coded by the peer `name`, if they differ from ours.
    pub fn bytes(&self, name: &str) -> Option<f64> {
        (name == PEERS[2]).then_some(self.code_bytes)
    }

    /// One turn of the peer `name`.
    ///
    /// # Errors
    /// If the worker ended or said that it failed.
    pub fn turn(&self, name: &str) -> Result<Turn> {
        let answer: Answer = self.worker.ask(name)?;
        Ok(Turn { units: answer.rows, seconds: answer.seconds, error: Some(answer.error) })
    }
}
