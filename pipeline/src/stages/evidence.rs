//! evidence: schemes on single long documents, by what deletion fails.
//!
//! The model is run once more with all but 4 sinks and the last 256 tokens hidden; positions where that changes it are far, and
//! over them a scheme's recovery is 0 if it does no better than deleting and 1 if it loses nothing
//! ([`kvcsr_eval::heldout::far`]). Their threshold is chosen on documents that are not scored. Domain `repeat` is passages that
//! come back after thousands of tokens of other text. All windows of a document are one row.
//!
//! The documents, 75 MB in packages, are fetched when the stage first runs: no other stage needs them.

use std::path::Path;

use anyhow::{Context, Result, bail};
use kvcsr_cache::{Scheme, SchemeContext, registry};
use kvcsr_eval::heldout::far::{self, HIDDEN};
use kvcsr_eval::heldout::unit::PIECE;
use kvcsr_eval::heldout::{Cut, FarScore, Prepared, Reference, Repeat, UnitScore, Window};
use kvcsr_eval::longbench::predictions::label;
use kvcsr_lab::documents::{self, Document};
use kvcsr_model::{Decoder, Tokenizer};
use kvcsr_records::{Journal, ThresholdRow, UnitRow, files};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{Config, check};
use crate::sources::{self, Sources};
use crate::stage::{Declaration, Need, Output, Run, SchemeNames, Stage, parameters_of};
use crate::stages::{PREFILL_CHUNK, artefacts, open_model};
use crate::ui;

/// File of the rows per document and scheme.
const UNITS: &str = "units.jsonl";
/// File of the thresholds of far tokens.
const THRESHOLDS: &str = "thresholds.jsonl";
/// The domain of passages that come back.
const REPEAT: &str = "repeat";
/// Tokens of a passage's beginning that stand before what is scored of its return.
const CUE: usize = 32;

/// The section `[evidence]`; `profiles/defaults.toml` explains every parameter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub schemes: Vec<String>,
    pub contexts: Vec<usize>,
    pub documents: usize,
    pub windows: usize,
    pub scored: usize,
    pub far_share: f64,
    pub repeats: usize,
}

/// See the module.
pub struct Evidence;

/// The schemes that are scored.
fn names(config: &Config) -> SchemeNames<'_> {
    SchemeNames { names: &config.evidence.schemes, profile: "" }
}

static DECLARATION: Declaration = Declaration {
    name: "evidence",
    about: "Score schemes on single long documents, by what deletion fails: far tokens and their recovery",
    needs: &[Need::Model, Need::Schemes(names)],
    makes: &[Output::rows(UNITS), Output::rows(THRESHOLDS)],
    ..Declaration::EMPTY
};

impl Stage for Evidence {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn check(&self, config: &Config) -> Result<()> {
        let Settings { schemes, contexts, documents, windows, scored, far_share, .. } = &config.evidence;
        check::positive("evidence", &[("documents", *documents), ("windows", *windows), ("scored", *scored)])?;
        if contexts.is_empty() || contexts.iter().any(|&tokens| tokens <= far::RECENT) {
            bail!("evidence.contexts: every context must be longer than the {} tokens that are never far", far::RECENT);
        }
        if !(0.0..=1.0).contains(far_share) {
            bail!("evidence.far_share: {far_share} is not a share between 0 and 1");
        }
        check::with_dense("evidence", schemes)
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = parameters_of(&run.config.evidence)?;
        parameters.insert("seed".into(), run.config.seed.into());
        Ok(parameters)
    }

    fn inputs(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut inputs = crate::stage::declared_inputs(self.declaration(), run)?;
        let documents = Sources::load(&run.paths.root)?.documents();
        inputs.extend(documents.into_iter().map(|document| (document.id, document.sha256.into())));
        Ok(inputs)
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        sources::fetch(&Sources::load(&run.paths.root)?.documents(), &run.paths)?;
        let (decoder, tokenizer) = open_model(run)?;
        let schemes = artefacts::schemes(run, names(&run.config), decoder.geometry())?;
        let cx = SchemeContext::new(decoder.geometry());
        let (dense, hidden) = (registry::build("dense", &cx)?, registry::build(HIDDEN, &cx)?);
        let model = Model { decoder: &decoder, dense: dense.as_ref(), hidden: hidden.as_ref() };
        let (mut thresholds, known) = Journal::open(&dir.join(THRESHOLDS), |row: &ThresholdRow| row.context)?;
        let (mut journal, _) = Journal::open(&dir.join(UNITS), key)?;
        let scored = texts(run, &tokenizer, documents::Side::Scored, run.config.evidence.documents)?;
        for &context in &run.config.evidence.contexts {
            let cut = cut(run, context);
            let most = decoder.rotary().max_positions();
            if cut.most_tokens() > most {
                bail!(
                    "evidence: a context of {context} tokens and what follows take {}, the model has {most} positions",
                    cut.most_tokens()
                );
            }
            let threshold = match known.iter().find(|row| row.context == context) {
                Some(row) => row.threshold,
                None => {
                    let row = model.threshold(run, &tokenizer, cut)?;
                    thresholds.append(&row)?;
                    row.threshold
                }
            };
            let units = units(run, &scored, context, cut);
            let bar = ui::bar("evidence", (units.len() * schemes.len()) as u64, "documents x schemes");
            for (domain, windows) in units {
                let id = windows[0].document.clone();
                let named = |s: &dyn Scheme| label(s.name(), s.dictionaries());
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
                        .score(&prepared, scheme)
                        .with_context(|| format!("document {id} at {context} tokens, scheme {name}"))?;
                    journal.append(&row(&domain, context, name, scheme, &score, &decoder))?;
                    bar.inc(1);
                }
            }
            bar.finish();
        }
        Ok(())
    }

    fn summary(&self, _run: &Run, dir: &Path) -> Result<Vec<String>> {
        let rows: Vec<UnitRow> = files::read_jsonl(&dir.join(UNITS))?;
        let mut lines = Vec::new();
        let mut contexts: Vec<usize> = rows.iter().map(|row| row.context).collect();
        contexts.dedup();
        for context in contexts {
            lines.push(format!("far-context recovery at {context} tokens, 0 as deletion and 1 as the exact cache:"));
            let mut schemes: Vec<(&str, Total)> = Vec::new();
            for row in rows.iter().filter(|row| row.context == context && row.domain != REPEAT) {
                match schemes.iter_mut().find(|(name, _)| *name == row.scheme) {
                    Some((_, total)) => total.add(row),
                    None => {
                        let mut total = Total::default();
                        total.add(row);
                        schemes.push((&row.scheme, total));
                    }
                }
            }
            schemes.sort_by(|a, b| b.1.far.recovery().total_cmp(&a.1.far.recovery()));
            lines.extend(schemes.iter().map(|(name, total)| {
                format!(
                    "  {name:<28} {:>7.3} at {:>5.2} measured bits per channel; KL {:.4}, {:.4} over far tokens",
                    total.far.recovery(),
                    total.bits / total.units,
                    total.kl_sum / total.far.scored as f64,
                    total.far.kl(),
                )
            }));
        }
        Ok(lines)
    }
}

/// What a scheme did over documents.
#[derive(Default)]
struct Total {
    far: FarScore,
    kl_sum: f64,
    bits: f64,
    units: f64,
}

impl Total {
    fn add(&mut self, row: &UnitRow) {
        self.far +=
            FarScore { scored: row.scored, far: row.far, kl_sum: row.far_kl_sum, hidden_kl_sum: row.hidden_kl_sum };
        self.kl_sum += row.kl_sum;
        self.bits += row.measured_bits;
        self.units += 1.0;
    }
}

/// Document, most tokens of a context, and the scheme's label.
fn key(row: &UnitRow) -> (String, usize, String) {
    (row.id.clone(), row.context, row.scheme.clone())
}

fn cut(run: &Run, context: usize) -> Cut {
    let Settings { windows, scored, .. } = run.config.evidence;
    Cut { context, skip: far::RECENT, scored, windows, seed: run.config.seed }
}

/// A document and its tokens.
struct Text {
    document: Document,
    ids: Vec<u32>,
}

/// The first `count` documents of each domain on one side.
fn texts(run: &Run, tokenizer: &Tokenizer, side: documents::Side, count: usize) -> Result<Vec<Text>> {
    let mut texts: Vec<Text> = Vec::new();
    for collection in documents::collections(&run.paths.root)?.iter().filter(|collection| collection.side == side) {
        for document in collection.documents(&run.paths.cache)? {
            if texts.iter().filter(|text| text.document.domain == document.domain).count() < count {
                let ids = tokenizer.encode(&document.text, false)?;
                texts.push(Text { document, ids });
            }
        }
    }
    Ok(texts)
}

/// Domain and windows of every document that is long enough, and of the passages that come back.
fn units(run: &Run, texts: &[Text], context: usize, cut: Cut) -> Vec<(String, Vec<Window>)> {
    let Settings { scored, repeats, .. } = run.config.evidence;
    let windows = |text: &Text| (text.document.domain.clone(), cut.windows(&text.document.name, &text.ids));
    let mut units: Vec<(String, Vec<Window>)> = texts.iter().map(windows).collect();
    let passage = scored + CUE + 1;
    let between = context.saturating_sub(passage + CUE);
    let repeat = Repeat { passage, between, cue: CUE, seed: run.config.seed };
    // Between a passage and its return stands the beginning of another document, of any domain.
    let others = texts.iter().cycle().skip(texts.len() / 2);
    let returns = texts.iter().zip(others).filter_map(|(text, other)| {
        let name = format!("{REPEAT}/{}", text.document.name);
        Some((REPEAT.to_owned(), vec![repeat.window(&name, &text.ids, &other.ids)?]))
    });
    units.extend(returns.take(if between > 0 { repeats } else { 0 }));
    units.retain(|(_, windows)| !windows.is_empty());
    units
}

/// The model, exact and with all but its near tokens hidden.
struct Model<'a> {
    decoder: &'a Decoder,
    dense: &'a dyn Scheme,
    hidden: &'a dyn Scheme,
}

impl Model<'_> {
    /// The threshold of far tokens, from the documents that are kept for it.
    fn threshold(&self, run: &Run, tokenizer: &Tokenizer, cut: Cut) -> Result<ThresholdRow> {
        let texts = texts(run, tokenizer, documents::Side::Threshold, usize::MAX)?;
        let mut kl = Vec::new();
        for window in texts.iter().flat_map(|text| cut.windows(&text.document.name, &text.ids)) {
            let reference = Reference::new(self.decoder, &window.text, PREFILL_CHUNK, self.dense)?;
            kl.extend(reference.measure(self.decoder, self.hidden, PIECE)?.kl().split_off(window.skip));
        }
        if kl.is_empty() {
            bail!("evidence: no document that sets the threshold has {} tokens", cut.most_tokens());
        }
        let threshold = far::threshold(&kl, run.config.evidence.far_share);
        Ok(ThresholdRow { context: cut.context, threshold, positions: kl.len() })
    }

    fn prepared(&self, window: Window, threshold: f64) -> Result<Prepared> {
        Ok(Prepared::new(self.decoder, window, PREFILL_CHUNK, self.dense, self.hidden, threshold)?)
    }

    /// A scheme over all windows of a document.
    fn score(&self, prepared: &[Prepared], scheme: &dyn Scheme) -> Result<UnitScore> {
        let mut scores = prepared.iter().map(|window| window.score(self.decoder, scheme));
        let mut unit = scores.next().context("a document has a window")??;
        for score in scores {
            unit.add(score?);
        }
        Ok(unit)
    }
}

fn row(
    domain: &str,
    context: usize,
    name: String,
    scheme: &dyn Scheme,
    score: &UnitScore,
    decoder: &Decoder,
) -> UnitRow {
    UnitRow {
        id: score.document.clone(),
        domain: domain.to_owned(),
        scheme: name,
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
    }
}
