//! Every scheme on held-out documents: what `evaluate` and `compare` do, each with settings of its own.
//!
//! One exact prefill per document serves every scheme. Rows stream to disk as they are made; an unfinished run of the same
//! recipe goes on with the first document, context and scheme it lacks. Quality is scored over a continuation read in one pass,
//! in which every token sees what it would see if they came one by one.

use std::path::Path;

use anyhow::{Context, Result, bail};
use kvcsr_cache::{Geometry, Scheme, SchemeContext, registry};
use kvcsr_eval::heldout::{ContinuationScore, HeldoutText, Reference};
use kvcsr_eval::longbench::predictions::label;
use kvcsr_model::{Decoder, Tokenizer};
use kvcsr_records::{DictionarySource, HeldoutRow, Journal};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::stage::Run;
use crate::stages::{PREFILL_CHUNK, corpus};
use crate::text::Side;
use crate::ui;

/// What a stage scores, and the rows it keeps of that.
pub struct Scoring<'a, R> {
    /// The stage, for people.
    pub stage: &'static str,
    /// Tokens that are prefilled exactly and compressed, each with the number of documents of every corpus.
    pub contexts: &'a [(usize, usize)],
    /// Tokens after the context; all but the first are scored.
    pub continuation: usize,
    /// Tokens decoded one by one after that, for their time; 0: none.
    pub decode: usize,
    /// The row of a document under a scheme, from what was measured and the time per decoded token in milliseconds.
    pub row: fn(HeldoutRow, Option<f64>) -> R,
    /// What a row is known by.
    pub key: fn(&R) -> Key,
}

/// Document, tokens of its context, and the scheme's label.
pub type Key = (String, usize, String);

impl<R: Serialize + DeserializeOwned> Scoring<'_, R> {
    /// Scores every scheme on every document, appending a row to `path` for each that it lacks.
    ///
    /// # Errors
    /// If a context is too long for the model, or a scheme fails.
    pub fn measure(
        &self,
        run: &Run,
        (decoder, tokenizer): (&Decoder, &Tokenizer),
        schemes: &[Box<dyn Scheme>],
        path: &Path,
    ) -> Result<()> {
        let Self { stage, contexts, continuation, decode, row, key } = self;
        let longest = contexts.iter().map(|(tokens, _)| *tokens).max().unwrap_or(0) + continuation - 1 + decode;
        let positions = decoder.rotary().max_positions();
        if longest > positions {
            bail!(
                "{stage}: a context with its continuation and decoded tokens takes {longest} positions; the model has {positions}"
            );
        }
        let dense = registry::build("dense", &SchemeContext::new(decoder.geometry()))?;
        let (mut journal, _) = Journal::open(path, *key)?;
        let documents: usize = contexts.iter().map(|(_, count)| count * run.config.corpora.len()).sum();
        let bar = ui::bar(stage, (documents * schemes.len()) as u64, "documents x schemes");
        for &(context, count) in *contexts {
            for domain in &run.config.corpora {
                let texts = corpus(run, tokenizer, domain, Side::Heldout, context + continuation, count)?;
                for (i, ids) in texts.into_iter().enumerate() {
                    let id = format!("{domain}-{i:03}");
                    let named = |s: &dyn Scheme| label(s.name(), s.dictionaries());
                    let lacks = |s: &&dyn Scheme| !journal.contains(&(id.clone(), context, named(*s)));
                    let todo: Vec<&dyn Scheme> = schemes.iter().map(|s| s.as_ref()).filter(lacks).collect();
                    bar.inc((schemes.len() - todo.len()) as u64);
                    if todo.is_empty() {
                        continue;
                    }
                    bar.set_message(format!("{id} at {context}: prefill"));
                    let text = HeldoutText { ids, context };
                    let reference = Reference::new(decoder, &text, PREFILL_CHUNK, dense.as_ref())?;
                    for scheme in todo {
                        let name = named(scheme);
                        bar.set_message(format!("{id} at {context}: {name}"));
                        let score = reference
                            .score_and_decode(decoder, scheme, *decode)
                            .with_context(|| format!("document {id} at {context} tokens, scheme {name}"))?;
                        let measured = measured(&id, domain, scheme, context, &score, decoder.geometry());
                        journal.append(&row(measured, score.decode_ms_per_token))?;
                        bar.inc(1);
                    }
                }
            }
        }
        bar.finish();
        Ok(())
    }
}

/// The row of one document under one scheme.
fn measured(
    id: &str,
    domain: &str,
    scheme: &dyn Scheme,
    context: usize,
    score: &ContinuationScore,
    geometry: Geometry,
) -> HeldoutRow {
    // Artefacts that are no set of ours are part of the scheme's name in tables.
    let (name, dictionary) = match scheme.dictionaries().parse() {
        Ok(dictionary) => (scheme.name().to_owned(), dictionary),
        Err(_) => (label(scheme.name(), scheme.dictionaries()), DictionarySource::None),
    };
    HeldoutRow {
        id: id.to_owned(),
        domain: domain.to_owned(),
        scheme: name,
        dictionary,
        context,
        scored: score.scored,
        nll_sum: score.nll_sum,
        kl_sum: score.kl_sum,
        top1_agree: score.top1_agree,
        nominal_bits: scheme.nominal_bits().0,
        measured_bits: score.measured_bits(geometry).0,
        shared_bytes: scheme.shared_bytes(),
        encode_ms: score.encode_ms,
        score_ms: score.score_ms,
    }
}
