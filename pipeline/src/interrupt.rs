//! Handles SIGINT (Ctrl-C) and SIGTERM: no unfinished files stay, and the program ends by that signal.
//!
//! A thread waits for the first signal. It lets a replacement of outputs finish, ends child processes, removes temporary files and
//! folders, clears the progress bars, says how to continue, and ends the program by the signal, which a shell shows as status 130
//! or 143. A second signal ends the program at once, as SIGKILL would. In either case the next run continues.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use kvcsr_codec::atomic;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::{flag, low_level};

use crate::ui;

/// Set by the first signal, while its handler runs.
static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// Held while outputs are replaced.
static REPLACING: Mutex<()> = Mutex::new(());
/// What the program has started and must clean up.
static BEGUN: Mutex<Begun> = Mutex::new(Begun { children: BTreeMap::new(), folders: BTreeSet::new() });

struct Begun {
    /// Children by process id.
    children: BTreeMap<u32, Child>,
    folders: BTreeSet<PathBuf>,
}

fn locked<T>(mutex: &'static Mutex<T>) -> MutexGuard<'static, T> {
    // Even if a thread panicked, cleaning up is still necessary.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts to wait for signals. `resumable`: the same command continues where it stopped.
pub fn watch(resumable: bool) -> Result<()> {
    let ignored = ignored_signals();
    // If the caller has made the program ignore a signal, as shells do for jobs in the background, it stays ignored.
    let signals: Vec<i32> = [SIGINT, SIGTERM].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0).collect();
    for &signal in &signals {
        // In this order: the first signal finds the flag unset and sets it.
        flag::register_conditional_default(signal, INTERRUPTED.clone()).context("signals")?;
        flag::register(signal, INTERRUPTED.clone()).context("signals")?;
    }
    let mut waiting = Signals::new(signals).context("signals")?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if let Some(signal) = waiting.forever().next() {
                end(signal, resumable);
            }
        })
        .context("signals")?;
    Ok(())
}

/// The signals that this process ignores, as bits; 0 if the system does not tell.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
}

/// Cleans up and ends the program by `signal`.
fn end(signal: i32, resumable: bool) {
    let _replaced = locked(&REPLACING);
    // This lock is held until the end: no child and no folder can be started after this.
    let mut begun = locked(&BEGUN);
    for child in begun.children.values_mut() {
        // A child that has already ended needs no signal.
        let _ = child.kill();
        let _ = child.wait();
    }
    atomic::remove_unfinished();
    for folder in &begun.folders {
        // Best effort: the next run removes what stays.
        let _ = std::fs::remove_dir_all(folder);
    }
    ui::clear_bars();
    let rest = if resumable { "; run the same command again to go on" } else { "" };
    eprintln!("interrupted{rest}");
    // Fails only for signals without a default action.
    let _ = low_level::emulate_default_handler(signal);
    std::process::exit(128 + signal);
}

/// If a signal is ending the program, waits for the end: errors that the cleaning up causes are not reported.
pub fn settle() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

/// Until the returned value is dropped, the first signal waits.
pub fn replacing() -> impl Drop {
    locked(&REPLACING)
}

/// A temporary folder. It is removed when this value is dropped or a signal ends the program.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes the folder, or takes over an existing one.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(folder: PathBuf) -> io::Result<Self> {
        let mut begun = locked(&BEGUN);
        std::fs::create_dir_all(&folder)?;
        begun.folders.insert(folder.clone());
        Ok(Self(folder))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Best effort: the next run removes what stays.
        let _ = std::fs::remove_dir_all(&self.0);
        locked(&BEGUN).folders.remove(&self.0);
    }
}

/// Runs a child process, which a signal to this program ends too. Returns its status and what it wrote to standard error.
///
/// # Errors
/// If it cannot be started, or what it writes cannot be read.
pub fn run_child(command: &mut Command) -> io::Result<(ExitStatus, String)> {
    let (id, stderr) = {
        let mut begun = locked(&BEGUN);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let started = (child.id(), child.stderr.take());
        begun.children.insert(started.0, child);
        started
    };
    let mut said = Vec::new();
    let read = stderr.map_or(Ok(0), |mut stderr| stderr.read_to_end(&mut said));
    // The child has closed its standard error: it has ended, or is about to end. The lock is released while this waits for it.
    let status = loop {
        let mut begun = locked(&BEGUN);
        let ended = match begun.children.get_mut(&id) {
            Some(child) => child.try_wait(),
            None => Err(io::Error::other("a child is waited for once")),
        };
        if let Some(ended) = ended.transpose() {
            begun.children.remove(&id);
            break ended?;
        }
        drop(begun);
        std::thread::sleep(Duration::from_millis(5));
    };
    read?;
    Ok((status, String::from_utf8_lossy(&said).into_owned()))
}
