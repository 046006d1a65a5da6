//! Decoding with a whole model under several caches, compared with llama.cpp on the same file.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kvcsr_cache::{PrefillSnapshot, Scheme, SchemeContext, registry};
use kvcsr_model::{Choice, Decoder, Limits, StopTokens};
use kvcsr_records::BenchRow;
use serde::Deserialize;
use serde_json::json;

use super::contest::{Contender, Turn, Work, rows, timed};
use super::worker::Worker;
use super::{Bench, random_tokens};
use crate::models::Opened;
use crate::stages::inputs::PREFILL_CHUNK;
use crate::ui;

/// The exact cache that our schemes are compared with.
pub const DENSE: &str = "dense";
/// How the names of llama.cpp's caches begin.
pub const LLAMA_CPP: &str = "llama.cpp";

/// The contexts in tokens, the decoded ones among them. In the first one the cache is almost empty.
const CONTEXTS: [usize; 4] = [128, 2048, 8192, 16384];
/// Tokens that a turn decodes. They are the last ones of the context.
const TOKENS: usize = 64;
const QUICK_CONTEXTS: [usize; 2] = [32, 64];
const QUICK_TOKENS: usize = 4;

/// Our schemes. Dictionaries have [`ATOMS`] atoms.
const SCHEMES: [&str; 5] = ["dense-f16", "q4_0", "kivi-2", "csr-8", "csr+@2"];
/// Number of atoms in the dictionaries. They hold random numbers.
const ATOMS: usize = 1024;

/// The types of llama.cpp's cache, each with the bits of a number.
const LLAMA_CPP_CACHES: [(&str, f64); 2] = [("f16", 16.0), ("q4_0", 4.5)];

/// The worker's answer to the type of a cache: how many tokens it decoded, and in what time.
#[derive(Debug, Deserialize)]
struct Answer {
    tokens: f64,
    seconds: f64,
}

/// What runs llama.cpp: an interpreter and a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq)]
struct LlamaCpp<'a> {
    python: &'a Path,
    file: &'a Path,
}

impl<'a> LlamaCpp<'a> {
    /// llama.cpp on the file `file`, or why it is left out.
    fn new(python: Option<&'a Path>, file: Option<&'a Path>) -> Result<Self, &'static str> {
        let python = python.ok_or("no Python that has it was given with --python (`just bench` sets one up)")?;
        let file = file.ok_or("it reads GGUF files only, and the model is none")?;
        Ok(Self { python, file })
    }

    /// Starts `pipeline/peers/decode.py`. Its turns decode `tokens` tokens after `prompt`.
    fn worker(self, prompt: &[u32], tokens: usize, context: usize) -> Result<Worker> {
        let model = self.file.to_str().with_context(|| format!("{}: no UTF-8", self.file.display()))?;
        let job = json!({
            "model": model,
            "prompt": prompt,
            "tokens": tokens,
            "context": context,
            "threads": rayon::current_num_threads(),
        });
        let data = tempfile::tempdir()?;
        std::fs::write(data.path().join("job.json"), job.to_string())?;
        Worker::start(self.python, "decode.py", data)
    }
}

/// Measures the model called `name` at all contexts that it has positions for.
pub fn run(bench: &Bench<'_>, name: &str, dtype: &str) -> Result<Vec<BenchRow>> {
    let model = Opened::named(name)?;
    let decoder = model.decoder("cpu", dtype)?;
    let positions = decoder.arch().max_positions;
    let llama_cpp = LlamaCpp::new(bench.python, model.gguf());
    if let Err(reason) = llama_cpp {
        ui::line("bench", &format!("decode: llama.cpp is left out: {reason}"));
    }
    let cx = SchemeContext::untrained(decoder.geometry(), if bench.quick { 256 } else { ATOMS });
    let (fitting, too_long) = contexts(bench.quick, positions);
    for context in too_long {
        ui::line("bench", &format!("decode: {context} tokens are left out: the model has {positions} positions"));
    }
    let mut found = Vec::new();
    for context in fitting {
        found.extend(one(bench, name, &decoder, &cx, llama_cpp.ok(), context)?);
    }
    Ok(found)
}

/// The contexts for which `positions` positions are enough, and the others.
fn contexts(quick: bool, positions: usize) -> (Vec<usize>, Vec<usize>) {
    let all = if quick { &QUICK_CONTEXTS[..] } else { &CONTEXTS[..] };
    all.iter().copied().partition(|context| *context <= positions)
}

fn one(
    bench: &Bench<'_>,
    name: &str,
    decoder: &Decoder,
    cx: &SchemeContext,
    llama_cpp: Option<LlamaCpp<'_>>,
    context: usize,
) -> Result<Vec<BenchRow>> {
    let tokens = if bench.quick { QUICK_TOKENS } else { TOKENS };
    // One position stays free: llama.cpp's server ends a text before it fills the last one.
    let ids = random_tokens(context - tokens - 1, decoder.arch().vocab);
    let prompt = decoder.prefill(&ids, PREFILL_CHUNK)?;
    let prompt = &prompt;
    let worker = llama_cpp.map(|llama_cpp| llama_cpp.worker(&ids, tokens, context)).transpose()?;
    let mut contenders: Vec<Contender<'_>> = Vec::new();
    for cache in [DENSE].into_iter().chain(SCHEMES) {
        let scheme = registry::build(cache, cx)?;
        let bytes = Some(held(decoder, prompt, scheme.as_ref())?);
        let turn = move || ours(decoder, prompt, scheme.as_ref(), tokens);
        let contender = if cache == DENSE { Contender::peer(cache, turn) } else { Contender::ours(cache, turn) };
        contenders.push(Contender { bytes, ..contender });
    }
    if let Some(worker) = &worker {
        for (kind, bits) in LLAMA_CPP_CACHES {
            let turn = move || {
                let Answer { tokens, seconds } = worker.ask::<Answer>(kind)?;
                Ok(Turn { units: tokens, seconds, error: None })
            };
            let bytes = Some(decoder.channels(ids.len()) as f64 * bits / 8.0);
            contenders.push(Contender { bytes, ..Contender::peer(format!("{LLAMA_CPP} {kind}"), turn) });
        }
    }
    let shape = format!("{name}, {context} tokens");
    rows(&Work { name: "decode", shape, unit: "tokens", machine: bench.machine }, contenders, bench.rounds.min(3))
}

/// The bytes that the caches of all layers take when they hold the prompt. What texts share is not among them.
fn held(decoder: &Decoder, prompt: &PrefillSnapshot, scheme: &dyn Scheme) -> Result<f64> {
    let caches = prompt.fork(scheme, decoder.rotary())?;
    Ok(caches.iter().map(|cache| cache.footprint().total()).sum::<usize>() as f64)
}

/// One turn of a scheme: it takes over the prompt, which is not timed, and then decodes `tokens` tokens greedily.
fn ours(decoder: &Decoder, prompt: &PrefillSnapshot, scheme: &dyn Scheme, tokens: usize) -> Result<Turn> {
    let mut caches = prompt.fork(scheme, decoder.rotary())?;
    let stop = StopTokens::default();
    // The prefill computed the logits of the first token, so one more is asked for than is decoded.
    let limits = Limits { max_new_tokens: tokens + 1, min_new_tokens: 0, stop: &stop };
    timed(tokens as f64, || {
        let onward = |_| ControlFlow::Continue(());
        let text = decoder.generate(&prompt.last_logits, &mut caches, Choice::Greedy, limits, onward)?;
        ensure!(text.ids.len() == tokens + 1, "{} tokens instead of {}", text.ids.len(), tokens + 1);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn contexts_end_where_the_models_positions_do() {
        assert_eq!(contexts(false, 8192), (vec![128, 2048, 8192], vec![16384]));
        assert_eq!(contexts(false, 100_000), (CONTEXTS.to_vec(), vec![]));
        assert_eq!(contexts(true, 63), (vec![32], vec![64]));
        assert!(CONTEXTS.iter().all(|context| *context > TOKENS + 1));
        assert!(QUICK_CONTEXTS.iter().all(|context| *context > QUICK_TOKENS + 1));
    }

    #[test]
    fn llama_cpp_needs_a_python_and_a_gguf_file() {
        let (python, file) = (Path::new("python"), Path::new("model.gguf"));
        assert_eq!(LlamaCpp::new(Some(python), Some(file)), Ok(LlamaCpp { python, file }));
        assert!(LlamaCpp::new(None, Some(file)).unwrap_err().contains("--python"));
        assert!(LlamaCpp::new(Some(python), None).unwrap_err().contains("GGUF"));
    }
}
