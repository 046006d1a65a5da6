//! A Python peer: a second process, which does a turn when it is asked to.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use crate::paths::Paths;

/// A running worker. Dropping this value ends it.
pub struct Worker {
    pipes: RefCell<(Child, ChildStdin, BufReader<ChildStdout>)>,
    /// The folder that it reads. It is removed when this is dropped.
    _data: TempDir,
}

impl Worker {
    /// Starts the script `script` of `pipeline/peers` with the interpreter `python`. `data` is the folder that it reads.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(python: &Path, script: &str, data: TempDir) -> Result<Self> {
        let script = Paths::find("smol")?.root.join("pipeline/peers").join(script);
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
        Ok(Self { pipes: RefCell::new((child, to, BufReader::new(from))), _data: data })
    }

    /// Its answer to `name`.
    ///
    /// # Errors
    /// If the worker ended or said that it failed.
    pub fn ask<A: DeserializeOwned>(&self, name: &str) -> Result<A> {
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
