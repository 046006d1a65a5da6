//! The parent of the children: it gives them parts to run, watches them, and sums the counts.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use memmap2::Mmap;

use super::child::{BEFORE, MAPPED, Task, save};
use super::counts::{Counts, Find, State};
use crate::targets::Target;

/// What must be run.
#[derive(Clone)]
pub struct Plan {
    /// The targets.
    pub targets: Vec<&'static Target>,
    /// The total number of inputs that each target must have had.
    pub executions: u64,
    /// The number of children at a time.
    pub jobs: usize,
    /// The seed of the inputs.
    pub seed: u64,
    /// The folder for counts and finds. The next run reads them again.
    pub folder: PathBuf,
    /// Whether the end of each part is reported.
    pub verbose: bool,
}

/// The number of inputs of one part.
const PART: u64 = 100_000;
/// A child that takes longer than this for one input hangs.
const LONGEST: Duration = Duration::from_secs(20);
/// How often a child is checked.
const POLL: Duration = Duration::from_millis(50);
/// The address space of a child in KiB: enough for libraries, and for a reader that is about to allocate much memory.
const ADDRESSES: u64 = 16 << 20;

/// Runs until every target has had its inputs. Returns the counts.
///
/// # Errors
/// If a child cannot be started, or a file cannot be read or written.
pub fn run(plan: &Plan) -> Result<State> {
    fs::create_dir_all(&plan.folder).with_context(|| plan.folder.display().to_string())?;
    let path = plan.folder.join("state.json");
    let state = Mutex::new((State::load(&path)?, Vec::<(String, u64)>::new()));
    let work = |job: usize| -> Result<()> {
        while let Some((target, from, to)) = next(plan, &state)? {
            let counts = part(plan, target, from..to, job)?;
            let mut held = state.lock().map_err(|_| anyhow!("another job failed"))?;
            held.1.retain(|(name, _)| name != target.name);
            if plan.verbose {
                let rate = counts.executions as f64 / counts.seconds.max(1e-9);
                println!("{:<16} {from} to {to}: {rate:.0}/s, {} finds", target.name, counts.finds.len());
            }
            held.0.targets.entry(target.name.to_owned()).or_default().add(counts);
            held.0.save(&path)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let work = &work;
        let jobs: Vec<_> = (0..plan.jobs.max(1)).map(|job| scope.spawn(move || work(job))).collect();
        jobs.into_iter().try_for_each(|job| job.join().map_err(|_| anyhow!("a job panicked"))?)
    })?;
    let (state, _) = state.into_inner().map_err(|_| anyhow!("a job panicked"))?;
    Ok(state)
}

/// The next part. It belongs to the target with the fewest inputs so far, among those that no job works on.
fn next(plan: &Plan, state: &Mutex<(State, Vec<(String, u64)>)>) -> Result<Option<(&'static Target, u64, u64)>> {
    let mut held = state.lock().map_err(|_| anyhow!("another job failed"))?;
    let had = |state: &State, name: &str| state.targets.get(name).map_or(0, |counts| counts.executions);
    let free = plan.targets.iter().filter(|target| held.1.iter().all(|(name, _)| name != target.name));
    let left = free.filter(|target| had(&held.0, target.name) < plan.executions);
    let Some(target) = left.min_by_key(|target| had(&held.0, target.name)).copied() else { return Ok(None) };
    let from = had(&held.0, target.name);
    held.1.push((target.name.to_owned(), from));
    Ok(Some((target, from, (from + PART).min(plan.executions))))
}

/// Runs the inputs `numbers` of a target, in as many children as necessary.
fn part(plan: &Plan, target: &Target, numbers: std::ops::Range<u64>, job: usize) -> Result<Counts> {
    let folder = tempfile::Builder::new().prefix("kvcsr-hostile-").tempdir()?;
    let at_hand = folder.path().join(format!("{job}.map"));
    let mut all = Counts::default();
    let mut from = numbers.start;
    while from < numbers.end {
        File::create(&at_hand)?.set_len(MAPPED as u64)?;
        number_none(&at_hand)?;
        let task = Task {
            target: target.name.to_owned(),
            from,
            to: numbers.end,
            seed: plan.seed,
            at_hand: at_hand.clone(),
            finds: plan.folder.join("finds"),
        };
        let mut child = start(&task)?;
        let ended = watch(&mut child, &at_hand)?;
        let counted = at_hand.with_extension("json");
        let mut counts = match fs::read_to_string(&counted) {
            Ok(text) => serde_json::from_str(&text).context("the counts of a child")?,
            Err(_) => Counts::default(),
        };
        let _ = fs::remove_file(&counted);
        let Some(said) = ended else {
            all.add(counts);
            break;
        };
        let (number, input) = look(&at_hand)?;
        if number == NONE {
            bail!("{}: a child ended before its first input, perhaps at a file of the corpus: {said}", target.name);
        }
        // The number of the current input says how many inputs the child ran after it last wrote its counts.
        counts.executions = number + 1 - from;
        let inputs = vec![save(target.name, &input, &task.finds)?];
        counts.finds.insert(said, Find { times: 1, inputs });
        all.add(counts);
        from = number + 1;
    }
    Ok(all)
}

/// The number that stands for "before the first input".
const NONE: u64 = u64::MAX;

/// Writes that there is no current input yet.
fn number_none(at_hand: &Path) -> Result<()> {
    let mut file = File::options().write(true).open(at_hand)?;
    Ok(file.write_all(&NONE.to_le_bytes())?)
}

/// Starts a child with a limited address space. If it requests more memory, it ends.
fn start(task: &Task) -> Result<Child> {
    let own = std::env::current_exe()?;
    Command::new("sh")
        .args(["-c", "ulimit -v \"$1\"; ulimit -c 0; shift; exec \"$@\"", "sh"])
        .arg(ADDRESSES.to_string())
        .arg(own)
        .arg("child")
        .arg(serde_json::to_string(task)?)
        .env("RAYON_NUM_THREADS", "1")
        // Errors would carry backtraces, and their tables take more memory and time than any reader.
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("a child could not be started")
}

/// Waits for a child. Returns what went wrong, if anything did.
fn watch(child: &mut Child, at_hand: &Path) -> Result<Option<String>> {
    let (mut last, mut since) = (None, Instant::now());
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(said(status));
        }
        let number = look(at_hand)?.0;
        if last != Some(number) {
            (last, since) = (Some(number), Instant::now());
        }
        if since.elapsed() > LONGEST {
            child.kill()?;
            child.wait()?;
            return Ok(Some(format!("it takes over {} seconds", LONGEST.as_secs())));
        }
        thread::sleep(POLL);
    }
}

fn said(status: ExitStatus) -> Option<String> {
    match (status.success(), status.signal()) {
        (true, _) => None,
        (_, Some(6)) => Some("the process is aborted: memory, or a panic in a panic".to_owned()),
        (_, Some(11)) => Some("the process is ended by SIGSEGV: the stack overflows, or worse".to_owned()),
        (_, Some(signal)) => Some(format!("the process is ended by signal {signal}")),
        (_, None) => Some(format!("the process ends with {:?}", status.code())),
    }
}

/// The number and the bytes of the current input.
fn look(at_hand: &Path) -> Result<(u64, Vec<u8>)> {
    let file = File::open(at_hand)?;
    // SAFETY: the file is only read. The bytes of the input are used only after the child that writes them has ended.
    let map = unsafe { Mmap::map(&file)? };
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| map[at + i]));
    let length = usize::try_from(number(8)).unwrap_or(0).min(map.len() - BEFORE);
    Ok((number(0), map[BEFORE..BEFORE + length].to_vec()))
}
