//! Runs one input through one target, and collects the result.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, Once, OnceLock, PoisonError};

use crate::allocation;
use crate::place::Place;
use crate::targets::{Target, Verdict, named};

/// The result of one input.
#[derive(Debug)]
pub struct Outcome {
    /// The verdict of the reader, if it returned one.
    pub verdict: Option<Verdict>,
    /// The largest number of bytes allocated at the same time.
    pub peak: usize,
    /// The promise that was broken, if any.
    pub find: Option<String>,
    /// A library's panic that our reader caught and turned into an error.
    pub caught: Option<String>,
}

/// The message of the last panic.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Stores panic messages instead of printing them.
fn keep_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        panic::set_hook(Box::new(|info| {
            let place = info.location().map(|at| format!(" at {}:{}", crate_path(at.file()), at.line()));
            let text = info.payload_as_str().unwrap_or("a panic without words");
            let first = text.lines().next().unwrap_or_default();
            // Numbers differ from input to input, but equal messages count as one find.
            let first: String = first.chars().take(100).map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
            let said = format!("{}{}", first.replace("##", "#").replace("##", "#"), place.unwrap_or_default());
            *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
        }));
    });
}

/// A source path, beginning with the folder of its crate.
fn crate_path(path: &str) -> &str {
    path.rsplit_once("/src/").map_or(path, |(before, _)| {
        let from = before.rfind('/').map_or(0, |at| at + 1);
        &path[from..]
    })
}

/// Runs the files of the corpus once, without counting: tables that are made on first use are not allocations of an
/// input.
pub fn warm(target: &Target, corpus: &[Vec<u8>], place: &Place) {
    for input in corpus {
        once(target, input, place);
    }
}

/// Gives `input` to the target. The memory bound is checked only in a program with the [`allocation::Counting`]
/// allocator.
pub fn once(target: &Target, input: &[u8], place: &Place) -> Outcome {
    keep_panics();
    allocation::reset();
    let run = panic::catch_unwind(AssertUnwindSafe(|| (target.body)(input, place)));
    let peak = allocation::peak();
    let panicked = PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
    let bound = target.bound(input.len());
    let (verdict, caught, find) = match run {
        Err(_) => (None, None, Some(panicked.unwrap_or_else(|| "a panic without words".to_owned()))),
        Ok(verdict) if peak > bound => {
            let factor = if peak / bound.max(1) < 4 { "over the bound" } else { "over four times the bound" };
            (Some(verdict), panicked, Some(format!("memory {factor}")))
        }
        Ok(verdict) => (Some(verdict), panicked, None),
    };
    Outcome { verdict, peak, find, caught }
}

/// Runs one input for a program that expects a panic when a promise is broken, such as cargo-fuzz. That program limits
/// the memory.
///
/// # Panics
/// If a promise is broken, or if there is no such target.
pub fn fuzz(target: &str, input: &[u8]) {
    static PLACE: OnceLock<Place> = OnceLock::new();
    let place = PLACE.get_or_init(|| Place::new().expect("a temporary folder"));
    let target = named(target).expect("a target by its name");
    if let Some(find) = once(target, input, place).find {
        // The hook stores panic messages, so the find is also printed here.
        eprintln!("{}: {find}", target.name);
        panic!("{}: {find}", target.name);
    }
}
