//! Scores schemes on single long documents, for `evaluate`, `compare` and `at-rest`, each with its own settings.
//!
//! The mean over all tokens cannot tell compression from deletion. So the model runs once more with all tokens hidden except 4
//! sinks and the last 256. Positions where this changes the model's output are called far. Over the far positions, a scheme's
//! recovery is 0 if it does no better than deletion, and 1 if it loses nothing ([`kvcsr_eval::heldout::far`]). The threshold is
//! chosen on documents that are not scored.
//!
//! One exact prefill per window serves every scheme. Rows stream to disk as they are made; a killed run continues with the first
//! missing document and scheme.

mod documents;

use std::collections::HashMap;
use std::hash::Hash;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kvcsr_cache::tensor::Attention;
use kvcsr_cache::{Scheme, SchemeContext, registry};
use kvcsr_eval::heldout::far::{self, HIDDEN};
use kvcsr_eval::heldout::unit::PIECE;
use kvcsr_eval::heldout::{Prepared, Reference, UnitScore, Window};
use kvcsr_eval::longbench::predictions::label;
use kvcsr_model::{Decoder, Tokenizer};
use kvcsr_records::heldout::REPEAT;
use kvcsr_records::{DictionarySource, HeldoutRow, Journal, SchemeSummary, ThresholdRow, files};
use kvcsr_report::aggregate::Statistics;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

pub use self::documents::Texts;
use self::documents::{Unit, cut};
use crate::atomic;
use crate::config::Config;
use crate::room::{Amount, Room};
use crate::stage::{Part, Run, SchemeNames, parameters_of};
use crate::stages::gather;
use crate::stages::inputs::PREFILL_CHUNK;
use crate::stages::sizes::{self, Sizes, product};
use crate::ui;

/// File of the rows per document and scheme.
pub const ROWS: &str = "heldout.jsonl";
/// File of the thresholds of far tokens.
pub const THRESHOLDS: &str = "thresholds.jsonl";

/// The smallest size of a row, in bytes.
const ROW_BYTES: u64 = 300;

/// The parameters that may grow: existing rows of documents and schemes stay valid.
pub const GROWS: &[&str] = &["schemes", "contexts", "documents", "heldout.repeats"];

/// The parameters of a stage that scores documents: those that decide what is scored.
pub fn parameters(run: &Run, section: &impl Serialize) -> Result<Map<String, Value>> {
    let mut parameters = parameters_of(section)?;
    let mut heldout = parameters_of(&run.config.heldout)?;
    // It does not change the rows. Only the report uses it, for its tables.
    heldout.remove("training_noise");
    parameters.insert("heldout".into(), heldout.into());
    parameters.insert("seed".into(), run.config.seed.into());
    Ok(parameters)
}

/// The statistics by which tables tell schemes apart.
pub fn statistics(config: &Config) -> Statistics {
    Statistics { bootstrap: config.bootstrap(), noise: config.heldout.training_noise }
}

/// What a stage prints when it is done: a line per scheme and context.
pub fn lines(rows: &[SchemeSummary]) -> Vec<String> {
    let line = |row: &SchemeSummary| {
        let recovery = row.recovery.map_or_else(|| "no far tokens".to_owned(), |share| format!("{share:.3}"));
        format!(
            "{:<28} at {} tokens: recovery {recovery}, KL {:.4}, {:.2} measured bits per channel",
            row.label(),
            row.context,
            row.kl,
            row.measured_bits
        )
    };
    rows.iter().map(line).collect()
}

/// What a stage scores.
pub struct Scoring<'a> {
    /// The name of the stage, for people.
    pub stage: &'static str,
    /// The contexts: at most this many tokens are prefilled exactly and then compressed.
    pub contexts: &'a [usize],
    /// Most documents of each domain.
    pub documents: usize,
    /// Tokens decoded one by one after the first document of each domain, for their time; 0: none.
    pub decode: usize,
}

/// Document, most tokens of its context, and the scheme's label.
type Key = (String, usize, String);

fn key(row: &HeldoutRow) -> Key {
    (row.id.clone(), row.context, row.label())
}

impl Scoring<'_> {
    /// Scores every scheme on every document, and appends the missing rows to the files in `dir`.
    ///
    /// # Errors
    /// If a context is too long for the model, a document is missing, or a scheme fails.
    pub fn measure(
        &self,
        run: &Run,
        (decoder, tokenizer): (&Decoder, &Tokenizer),
        schemes: &[Box<dyn Scheme>],
        dir: &Path,
    ) -> Result<()> {
        self.measure_part(run, (decoder, tokenizer), schemes, None, dir)
    }

    /// The largest number of units that are scored at a context: documents, and passages that come back. Of `n` slices, each
    /// takes every `n`-th unit of each context.
    pub fn most_units(&self, config: &Config) -> usize {
        self.documents.saturating_mul(config.heldout.domains.len()).saturating_add(config.heldout.repeats)
    }

    /// The same as [`Scoring::measure`], but only for the documents of one slice if `part` is given.
    ///
    /// # Errors
    /// As [`Scoring::measure`].
    pub fn measure_part(
        &self,
        run: &Run,
        (decoder, tokenizer): (&Decoder, &Tokenizer),
        schemes: &[Box<dyn Scheme>],
        part: Option<Part>,
        dir: &Path,
    ) -> Result<()> {
        let cx = SchemeContext::new(decoder.geometry()).with_attention(Attention::Auto, decoder.device());
        let (dense, hidden) = (registry::build("dense", &cx)?, registry::build(HIDDEN, &cx)?);
        let model = Model { decoder, dense: dense.as_ref(), hidden: hidden.as_ref() };
        let (mut thresholds, known) = Journal::open(&dir.join(THRESHOLDS), |row: &ThresholdRow| row.context)?;
        let (mut journal, _) = Journal::open(&dir.join(ROWS), key)?;
        let texts = Texts::read(run, tokenizer)?;
        let named = |s: &dyn Scheme| label(s.name(), s.dictionaries());
        let mut order: Vec<Key> = Vec::new();
        self.fits(&run.config, decoder.rotary().max_positions())?;
        for &context in self.contexts {
            let mut units = texts.units(&run.config, context, self.documents)?;
            if let Some(part) = part {
                units = part.of(units);
            }
            if units.is_empty() {
                continue;
            }
            let threshold = match known.iter().find(|row| row.context == context) {
                Some(row) => row.threshold,
                None => thresholds.append(&model.threshold(run, &texts, context)?)?.threshold,
            };
            let bar = ui::bar(self.stage, (units.len() * schemes.len()) as u64, "documents x schemes");
            for Unit { domain, windows, timed } in units {
                let id = windows[0].document.clone();
                order.extend(schemes.iter().map(|s| (id.clone(), context, named(s.as_ref()))));
                let lacks = |s: &&dyn Scheme| !journal.contains(&(id.clone(), context, named(*s)));
                let todo: Vec<&dyn Scheme> = schemes.iter().map(|s| s.as_ref()).filter(lacks).collect();
                bar.inc((schemes.len() - todo.len()) as u64);
                if todo.is_empty() {
                    continue;
                }
                let threshold = if domain == REPEAT { f64::NEG_INFINITY } else { threshold };
                bar.set_message(format!("{id} at {context}: prefill"));
                let prepared = windows.into_iter().map(|w| model.prepared(w, threshold)).collect::<Result<Vec<_>>>()?;
                for scheme in todo {
                    let name = named(scheme);
                    bar.set_message(format!("{id} at {context}: {name}"));
                    let score = model
                        .score(&prepared, scheme, if timed { self.decode } else { 0 })
                        .with_context(|| format!("document {id} at {context} tokens, scheme {name}"))?;
                    journal.append(&row(&domain, context, scheme, &score, decoder))?;
                    bar.inc(1);
                }
            }
            bar.finish();
        }
        in_order(&dir.join(ROWS), key, &order)?;
        in_order(&dir.join(THRESHOLDS), |row: &ThresholdRow| row.context, self.contexts)
    }

    /// The memory and disk that scoring `schemes` takes: the model, the exact prefill of the longest context and its copies for the
    /// uncompressed model and for a scheme, the uncompressed distributions of every window of a document, what schemes are built
    /// from, and the rows.
    ///
    /// # Errors
    /// If the model was not fetched, or a scheme is not known.
    pub fn needs_room(&self, run: &Run, schemes: SchemeNames<'_>, lower: &'static str) -> Result<Room> {
        let sizes = Sizes::of(run)?;
        let context = self.contexts.iter().copied().max().unwrap_or(0);
        let heldout = &run.config.heldout;
        let most = cut(&run.config, context).most_tokens();
        let windows = heldout.windows.max(1) as u64;
        let prepared = sizes.cache(context) + sizes.distributions(most - context);
        let memory = sizes.with_prefill(most, 2) + windows * prepared + sizes::artefacts(run, schemes)?;
        let documents = self.documents * heldout.domains.len() + heldout.repeats;
        let count = product(&[documents, schemes.names.len(), self.contexts.len()]);
        Ok(Room { memory: Amount { bytes: memory, lower }, disk: sizes::rows(count, ROW_BYTES, lower) })
    }

    /// Checks that the longest context and what follows it fit a model with this many positions.
    ///
    /// # Errors
    /// If they do not, with what to lower.
    pub fn fits(&self, config: &Config, positions: usize) -> Result<()> {
        let context = self.contexts.iter().copied().max().unwrap_or(0);
        let longest = cut(config, context).most_tokens() + self.decode;
        if longest > positions {
            bail!(
                "{}: a context of {context} tokens and what follows take {longest} positions, the model has {positions}: lower \
                 {}.contexts or heldout.scored",
                self.stage,
                self.stage.replace('-', "_")
            );
        }
        Ok(())
    }
}

/// Adds the rows that slices have made to the files of `dir`. Rows that are already there stay. [`Scoring::measure`] sorts them.
///
/// # Errors
/// If a file cannot be read or written.
pub fn gather_rows(slices: &[PathBuf], dir: &Path) -> Result<()> {
    gather::rows(slices, Path::new(ROWS), dir, &["id", "context", "scheme", "dictionary"])?;
    // Every slice needs the threshold of its contexts, and all slices find the same.
    for slice in slices {
        gather::rows(std::slice::from_ref(slice), Path::new(THRESHOLDS), dir, &["context"])?;
    }
    Ok(())
}

/// Sorts rows into the order of a run that made all of them at once. A run that grew has appended its new rows, and slices have
/// made their rows separately. The text of the lines does not change.
fn in_order<R: DeserializeOwned, K: Eq + Hash>(path: &Path, key: fn(&R) -> K, order: &[K]) -> Result<()> {
    let place: HashMap<&K, usize> = order.iter().enumerate().map(|(at, key)| (key, at)).collect();
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let rows: Vec<R> = files::read_jsonl(path)?;
    let mut lines: Vec<(Option<usize>, &str)> =
        rows.iter().map(|row| place.get(&key(row)).copied()).zip(text.lines()).collect();
    if lines.is_sorted_by_key(|(at, _)| *at) {
        return Ok(());
    }
    lines.sort_by_key(|(at, _)| *at);
    let sorted: String = lines.iter().map(|(_, line)| format!("{line}\n")).collect();
    atomic::write(path, sorted.as_bytes())
}

/// The model with its exact cache, and with a cache that hides all tokens except the near ones.
struct Model<'a> {
    decoder: &'a Decoder,
    dense: &'a dyn Scheme,
    hidden: &'a dyn Scheme,
}

impl Model<'_> {
    /// The threshold of far tokens, from the documents that are kept for it.
    fn threshold(&self, run: &Run, texts: &Texts, context: usize) -> Result<ThresholdRow> {
        let windows = texts.threshold_windows(run, context);
        let bar = ui::bar("far tokens", windows.len() as u64, "documents that set the threshold");
        let mut kl = Vec::new();
        for window in windows {
            let reference = Reference::new(self.decoder, &window.text, PREFILL_CHUNK, self.dense)?;
            kl.extend(reference.measure(self.decoder, self.hidden, PIECE)?.kl().split_off(window.skip));
            bar.inc(1);
        }
        bar.finish();
        if kl.is_empty() {
            bail!("no document that sets the threshold of far tokens is long enough for a context of {context} tokens");
        }
        Ok(ThresholdRow { context, threshold: far::threshold(&kl, run.config.heldout.far_share), positions: kl.len() })
    }

    fn prepared(&self, window: Window, threshold: f64) -> Result<Prepared> {
        Ok(Prepared::new(self.decoder, window, PREFILL_CHUNK, self.dense, self.hidden, threshold)?)
    }

    /// Scores a scheme over all windows of a document. After the first window, `decode` tokens are decoded one by one.
    fn score(&self, prepared: &[Prepared], scheme: &dyn Scheme, decode: usize) -> Result<UnitScore> {
        let [first, others @ ..] = prepared else { bail!("a document without a window") };
        let mut unit = first.score(self.decoder, scheme, decode)?;
        for window in others {
            unit.add(window.score(self.decoder, scheme, 0)?);
        }
        Ok(unit)
    }
}

fn row(domain: &str, context: usize, scheme: &dyn Scheme, score: &UnitScore, decoder: &Decoder) -> HeldoutRow {
    // A dictionary set that is not ours becomes part of the scheme's name in tables.
    let (name, dictionary) = match scheme.dictionaries().parse() {
        Ok(dictionary) => (scheme.name().to_owned(), dictionary),
        Err(_) => (label(scheme.name(), scheme.dictionaries()), DictionarySource::None),
    };
    HeldoutRow {
        id: score.document.clone(),
        domain: domain.to_owned(),
        scheme: name,
        dictionary,
        context,
        windows: score.windows,
        scored: score.scored(),
        nll_sum: score.nll_sum,
        kl_sum: score.kl.iter().sum(),
        kl_tail: score.tail_kl(),
        top1_agree: score.top1_agree,
        far: score.far.far,
        far_kl_sum: score.far.kl_sum,
        hidden_kl_sum: score.far.hidden_kl_sum,
        nominal_bits: scheme.nominal_bits().0,
        measured_bits: score.measured_bits(decoder.geometry()).0,
        shared_bytes: scheme.shared_bytes(),
        stored_bytes: scheme.stored_bytes(),
        channels: decoder.channels(context) / context.max(1),
        encode_ms: score.encode_ms / score.windows as f64,
        decode_ms_per_token: score.decode_ms_per_token,
    }
}
