//! at-rest: keeps prompts as small files and restores them without a prefill; measures bytes, quality and time.
//!
//! Quality is measured as [`heldout`] says, beside deletion and beside csr+ as a cache: a prompt is coded as its file would hold
//! it, restored, and continued with an exact cache. Times are those of real files, from one document for each context.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use kvcsr_cache::Scheme;
use kvcsr_cache::schemes::csr_plus::rest::{PromptFile, RestCodec, RestScheme};
use kvcsr_codec::CodebookSet;
use kvcsr_model::{Decoder, Tokenizer};
use kvcsr_report::{HeldoutRow, RestFileRow, SchemeSummary, aggregate, files};
use serde_json::{Map, Value};

use crate::config::{Config, check, sections};
use crate::room::Room;
use crate::stage::{Declaration, Need, Output, Run, SchemeNames, Stage};
use crate::stages::heldout::{self, Scoring, Texts};
use crate::stages::inputs::{PREFILL_CHUNK, open_model};
use crate::stages::{artefacts, train_plus};
use crate::ui;

/// File of the rows per context and bits.
pub const FILES: &str = "files.jsonl";

/// See the module.
pub struct AtRest;

/// The schemes that the files are compared with.
fn names(config: &Config) -> SchemeNames<'_> {
    SchemeNames { names: &config.at_rest.schemes, profile: "" }
}

/// The documents that are scored.
fn scoring(config: &Config) -> Scoring<'_> {
    let sections::AtRest { contexts, documents, .. } = &config.at_rest;
    Scoring { stage: DECLARATION.name, contexts, documents: *documents, decode: 0 }
}

static DECLARATION: Declaration = Declaration {
    name: "at-rest",
    about: "Keep prompts as small files: bytes, quality after restoring, and time against a prefill",
    needs: &[Need::Model, Need::Documents, Need::Stage("train-plus"), Need::Schemes(names)],
    makes: &[Output::rows(heldout::ROWS), Output::rows(heldout::THRESHOLDS), Output::rows(FILES)],
    grows: &["bits", "schemes", "contexts", "documents", "heldout.repeats"],
    ..Declaration::EMPTY
};

impl Stage for AtRest {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn check(&self, config: &Config) -> Result<()> {
        let sections::AtRest { bits, schemes, contexts, documents } = &config.at_rest;
        config.heldout.check("at_rest", contexts, *documents)?;
        if let Some(bits) = bits.iter().find(|bits| !(0.1..=8.0).contains(*bits)) {
            bail!("at_rest.bits holds {bits}: 0.1 to 8 bits per channel are expected");
        }
        check::with_dense("at_rest", schemes)
    }

    fn fits(&self, config: &Config, positions: usize) -> Result<()> {
        scoring(config).fits(config, positions)
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        heldout::parameters(run, &run.config.at_rest)
    }

    fn needs_room(&self, run: &Run) -> Result<Room> {
        scoring(&run.config).needs_room(run, names(&run.config), "at_rest.contexts or heldout.windows")
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let (decoder, tokenizer) = open_model(run)?;
        let bits = &run.config.at_rest.bits;
        let mut schemes = artefacts::schemes(run, names(&run.config), &decoder)?;
        let tables = CodebookSet::load(run.stage_dir("train-plus").join(train_plus::FILE))?;
        let codecs = bits.iter().map(|&bits| Ok(Arc::new(RestCodec::new(&tables, decoder.geometry(), bits)?)));
        let codecs: Vec<Arc<RestCodec>> = codecs.collect::<Result<_>>()?;
        let shared = tables.bytes();
        schemes
            .extend(codecs.iter().map(|codec| -> Box<dyn Scheme> { Box::new(RestScheme::new(codec.clone(), shared)) }));
        scoring(&run.config).measure(run, (&decoder, &tokenizer), &schemes, dir)?;
        let rows = timed(run, (&decoder, &tokenizer), &codecs, &tables, dir)?;
        files::write_jsonl(&dir.join(FILES), &rows)?;
        Ok(())
    }

    fn summary(&self, _run: &Run, dir: &Path) -> Result<Vec<String>> {
        let rows: Vec<HeldoutRow> = files::read_jsonl(&dir.join(heldout::ROWS))?;
        let mut summaries: Vec<SchemeSummary> = aggregate::overall(&rows)?;
        summaries.sort_by(|a, b| a.context.cmp(&b.context).then(a.measured_bits.total_cmp(&b.measured_bits)));
        let mut lines = heldout::lines(&summaries);
        let rows: Vec<RestFileRow> = files::read_jsonl(&dir.join(FILES))?;
        lines.extend(rows.iter().map(|row| {
            format!(
                "{} tokens at {} bits: {:.2} MB, {:.1} % of f16; written in {:.2} s, restored in {:.2} s, prefill {:.2} s",
                row.tokens,
                row.bits,
                row.file_bytes as f64 / 1e6,
                100.0 * row.file_bytes as f64 / row.f16_bytes as f64,
                row.write_ms / 1e3,
                row.restore_ms / 1e3,
                row.prefill_ms / 1e3,
            )
        }));
        Ok(lines)
    }
}

/// Writes and restores the first document of each context as real files.
fn timed(
    run: &Run,
    (decoder, tokenizer): (&Decoder, &Tokenizer),
    codecs: &[Arc<RestCodec>],
    tables: &CodebookSet,
    dir: &Path,
) -> Result<Vec<RestFileRow>> {
    let contexts = &run.config.at_rest.contexts;
    let texts = Texts::read(run, tokenizer)?;
    let bar = ui::bar("at-rest", (contexts.len() * codecs.len()) as u64, "files");
    let mut rows = Vec::new();
    let path = dir.join("prompt.kvc");
    for &context in contexts {
        let units = texts.units(&run.config, context, 1)?;
        let window = &units.first().context("a context without a document")?.windows[0];
        let ids = &window.text.ids[..window.text.context];
        let started = Instant::now();
        let snapshot = decoder.prefill(ids, PREFILL_CHUNK)?;
        let prefill_ms = ms(started);
        for codec in codecs {
            let started = Instant::now();
            let file_bytes = PromptFile::write(&path, codec, "timed", ids, &snapshot)?;
            let write_ms = ms(started);
            let started = Instant::now();
            let restored = PromptFile::open(&path)?.restore(tables, decoder.geometry())?;
            let restore_ms = ms(started);
            rows.push(RestFileRow {
                document: window.document.clone(),
                context,
                tokens: restored.len(),
                bits: codec.bits(),
                file_bytes,
                f16_bytes: 2 * decoder.channels(ids.len()),
                prefill_ms,
                write_ms,
                restore_ms,
            });
            bar.inc(1);
        }
    }
    bar.finish();
    if path.is_file() {
        std::fs::remove_file(&path)?;
    }
    Ok(rows)
}

fn ms(started: Instant) -> f64 {
    started.elapsed().as_secs_f64() * 1e3
}
