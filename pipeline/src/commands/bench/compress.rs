//! Compression of all layers of a prompt, compared with the prefill of that prompt.

use anyhow::{Context, Result};
use kvcsr_cache::{SchemeContext, registry};
use kvcsr_records::BenchRow;

use super::contest::{Contender, Work, rows, timed};
use super::{Bench, random_tokens};
use crate::models::Opened;
use crate::stages::inputs::PREFILL_CHUNK;

/// Tokens of the prompt.
const TOKENS: usize = 4096;
/// The schemes that compress it, each with the number of atoms of its dictionaries.
const SCHEMES: [(&str, usize); 6] =
    [("csr-8", 1024), ("csr-8", 8192), ("csr-8+online", 1024), ("csr+@2", 1024), ("kivi-2", 1024), ("q4_0", 1024)];

/// Measures the model called `name`. Dictionaries and tables hold random numbers: the time does not depend on them.
pub fn run(bench: &Bench<'_>, name: &str, dtype: &str) -> Result<Vec<BenchRow>> {
    let decoder = Opened::named(name)?.decoder("cpu", dtype)?;
    let arch = decoder.arch();
    let tokens = if bench.quick { 64 } else { TOKENS }.min(arch.max_positions);
    let ids = random_tokens(tokens, arch.vocab);
    let prompt = decoder.prefill(&ids, PREFILL_CHUNK)?;
    let mut contexts = Vec::new();
    for atoms in if bench.quick { vec![256] } else { vec![1024, 8192] } {
        contexts.push((atoms, SchemeContext::untrained(decoder.geometry(), atoms)));
    }
    let prefill = || timed(tokens as f64, || Ok(decoder.prefill(&ids, PREFILL_CHUNK)?));
    let mut contenders = vec![Contender::peer("our prefill", prefill)];
    for (scheme, atoms) in SCHEMES {
        let (atoms, cx) = contexts.iter().find(|(n, _)| *n == atoms || bench.quick).context("a number of atoms")?;
        let built = registry::build(scheme, cx)?;
        let (prompt, rotary) = (&prompt, decoder.rotary());
        let fork = move || timed(tokens as f64, || Ok(prompt.fork(built.as_ref(), rotary)?));
        contenders.push(Contender::ours(format!("{scheme}, N = {atoms}"), fork));
    }
    let shape = format!("{name}, {tokens} tokens");
    rows(&Work { name: "compress", shape, unit: "tokens", machine: bench.machine }, contenders, bench.rounds.min(3))
}
