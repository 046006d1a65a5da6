//! One input through one target, and what came of it.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, Once, OnceLock, PoisonError};

use crate::allocation;
use crate::place::Place;
use crate::targets::{Target, Verdict, named};

/// What one input did.
#[derive(Debug)]
pub struct Outcome {
    /// What the reader said, if it came to say something.
    pub verdict: Option<Verdict>,
    /// Most bytes allocated at once.
    pub peak: usize,
    /// The promise that was broken.
    pub find: Option<String>,
    /// A panic of a library that our reader caught and made an error of.
    pub caught: Option<String>,
}

/// The last panic, in words.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Panics are kept instead of printed.
fn keep_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        panic::set_hook(Box::new(|info| {
            let place = info.location().map(|at| format!(" at {}:{}", crate_path(at.file()), at.line()));
            let text = info.payload_as_str().unwrap_or("a panic without words");
            let first = text.lines().next().unwrap_or_default();
            // Numbers differ from input to input; what is said is one find all the same.
            let first: String = first.chars().take(100).map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
            let said = format!("{}{}", first.replace("##", "#").replace("##", "#"), place.unwrap_or_default());
            *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
        }));
    });
}

/// A source path from the folder of its crate on.
fn crate_path(path: &str) -> &str {
    path.rsplit_once("/src/").map_or(path, |(before, _)| {
        let from = before.rfind('/').map_or(0, |at| at + 1);
        &path[from..]
    })
}

/// Runs files of the corpus once, uncounted: tables that are made when first needed are no allocation of an input.
pub fn warm(target: &Target, corpus: &[Vec<u8>], place: &Place) {
    for input in corpus {
        once(target, input, place);
    }
}

/// Feeds `input` to the target. The memory bound is only tested in a program with the [`allocation::Counting`] allocator.
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

/// One input for a program that expects a panic of what breaks a promise, as cargo-fuzz does. Memory is bounded by that program.
///
/// # Panics
/// If a promise is broken, or there is no such target.
pub fn fuzz(target: &str, input: &[u8]) {
    static PLACE: OnceLock<Place> = OnceLock::new();
    let place = PLACE.get_or_init(|| Place::new().expect("a temporary folder"));
    let target = named(target).expect("a target by its name");
    if let Some(find) = once(target, input, place).find {
        // The hook keeps what a panic says.
        eprintln!("{}: {find}", target.name);
        panic!("{}: {find}", target.name);
    }
}
