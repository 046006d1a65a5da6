//! The Python peers: a second process, which does a turn when it is asked to.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::json;
use tempfile::TempDir;

use super::contest::Turn;
use super::encode::Size;

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

/// A running worker. Dropping this value ends it.
pub struct Worker {
    pipes: RefCell<(Child, ChildStdin, BufReader<ChildStdout>)>,
    /// Bytes of a vector coded by the last peer.
    code_bytes: f64,
    /// The folder that it reads. It is removed when this is dropped.
    _data: TempDir,
}

impl Worker {
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
        let script = crate::paths::Paths::find("smol")?.root.join("pipeline/peers/encode.py");
        let mut child = Command::new(python)
            .arg(&script)
            .arg(data.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{}: `just bench` sets it up", python.display()))?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the worker has no pipes")
        };
        let mut worker = Self { pipes: RefCell::new((child, to, BufReader::new(from))), code_bytes: 0.0, _data: data };
        // The quantiser is trained before it is timed.
        worker.code_bytes = worker.ask(PEERS[2])?.bytes.unwrap_or_default();
        Ok(worker)
    }

    /// The names of its peers.
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
        let answer = self.ask(name)?;
        Ok(Turn { units: answer.rows, seconds: answer.seconds, error: Some(answer.error) })
    }

    fn ask(&self, name: &str) -> Result<Answer> {
        let (_, to, from) = &mut *self.pipes.borrow_mut();
        writeln!(to, "{name}").and_then(|()| to.flush()).context("the worker ended")?;
        let mut line = String::new();
        from.read_line(&mut line).context("the worker ended")?;
        serde_json::from_str(&line).with_context(|| format!("{name}: the worker said {:?}", line.trim_end()))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let child = &mut self.pipes.borrow_mut().0;
        // The worker may have ended already.
        let _ = child.kill();
        let _ = child.wait();
    }
}
