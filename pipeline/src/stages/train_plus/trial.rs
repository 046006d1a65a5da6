//! Tries csr+@B once, on text that neither its tables nor their costs were learned from. Three KLs are compared: the one that the
//! tables predict, the one that the model has with csr+@B, and the one that it has with deletion, which keeps as many exact
//! tokens as fit into the same bytes.

use std::path::Path;

use anyhow::Result;
use kvcsr_cache::schemes::csr_plus;
use kvcsr_cache::tensor::Attention;
use kvcsr_cache::{CacheError, SchemeContext, registry};
use kvcsr_codec::CodebookSet;
use kvcsr_eval::heldout::{HeldoutText, Reference};
use kvcsr_records::Journal;
use serde::{Deserialize, Serialize};

use crate::stage::Run;
use crate::stages::inputs::{PREFILL_CHUNK, corpus, open_model};
use crate::text::Side;
use crate::ui;

/// File of what was found.
pub const TRIALS: &str = "trials.jsonl";
/// Sinks of the control that deletes.
const SINKS: usize = 4;
/// Bits per channel of the tokens that the control keeps.
const EXACT: f64 = 16.0;

/// The result of csr+ at some bits, or of deletion at as many bits, on one text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrialRow {
    pub id: String,
    pub bits: f64,
    pub scheme: String,
    pub measured_bits: f64,
    pub scored: usize,
    /// None if the model's output is not a finite number.
    pub kl_sum: Option<f64>,
    /// Nats per token that the tables predict if all tokens are coded; none for the control.
    pub predicted: Option<f64>,
}

/// The key of a row. Two numbers of bits can have the same control.
fn key(id: &str, bits: f64, scheme: &str) -> (String, u64, String) {
    (id.to_owned(), bits.to_bits(), scheme.to_owned())
}

/// Appends the missing rows to the file.
///
/// # Errors
/// If a text, the model or a scheme fails.
pub fn run(run: &Run, tables: &Path, path: &Path) -> Result<()> {
    let settings = &run.config.train_plus;
    let count = settings.trial_documents;
    if settings.trial.is_empty() || count == 0 {
        return Ok(());
    }
    let (mut journal, _) = Journal::open(path, |row: &TrialRow| key(&row.id, row.bits, &row.scheme))?;
    let (decoder, tokenizer) = open_model(run)?;
    // On a model with fewer positions, the context is as long as they allow.
    let most = decoder.rotary().max_positions().saturating_sub(settings.trial_continuation);
    let context = settings.trial_context.min(most);
    let set = CodebookSet::load(tables)?;
    let cx = SchemeContext::new(decoder.geometry()).with_attention(Attention::Auto, decoder.device());
    let dense = registry::build("dense", &cx)?;
    let cx = cx.with_codebooks(csr_plus::TABLES, set.clone());
    let mut schemes = Vec::new();
    for &bits in &settings.trial {
        let name = format!("csr+@{bits}(context={context})");
        match registry::build(&name, &cx) {
            Ok(scheme) => {
                schemes.push((bits, scheme, Some(csr_plus::predicted_loss(&set, cx.geometry(), bits, context)?)))
            }
            Err(CacheError::Unsuitable { reason, .. }) => {
                ui::line("train-plus", &format!("{name} is not tried: {reason}"));
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        let recent = (bits / EXACT * context as f64) as usize;
        let control = format!("evict(sinks={SINKS},recent={})", recent.saturating_sub(SINKS).max(1));
        schemes.push((bits, registry::build(&control, &cx)?, None));
    }
    let length = context + settings.trial_continuation;
    let bar = ui::bar("train-plus", (count * run.config.corpora.len() * schemes.len()) as u64, "trials");
    for corpus_id in &run.config.corpora {
        for (i, ids) in corpus(run, &tokenizer, corpus_id, Side::Heldout, length, count)?.into_iter().enumerate() {
            let id = format!("{corpus_id}-{i:03}");
            let todo: Vec<_> =
                schemes.iter().filter(|(bits, s, _)| !journal.contains(&key(&id, *bits, s.name()))).collect();
            bar.inc((schemes.len() - todo.len()) as u64);
            if todo.is_empty() {
                continue;
            }
            bar.set_message(format!("{id}: prefill"));
            let text = HeldoutText { ids, context };
            let reference = Reference::new(&decoder, &text, PREFILL_CHUNK, dense.as_ref())?;
            for (bits, scheme, predicted) in todo {
                bar.set_message(format!("{id}: {}", scheme.name()));
                let score = reference.score(&decoder, scheme.as_ref())?;
                journal.append(&TrialRow {
                    id: id.clone(),
                    bits: *bits,
                    scheme: scheme.name().to_owned(),
                    measured_bits: score.measured_bits().0,
                    scored: score.scored,
                    kl_sum: Some(score.kl_sum).filter(|kl| kl.is_finite()),
                    predicted: *predicted,
                })?;
                bar.inc(1);
            }
        }
    }
    bar.finish();
    Ok(())
}

/// A line for each number of bits: what was predicted and found, and a warning if deletion does better.
pub fn lines(rows: &[TrialRow]) -> Vec<String> {
    let mut tried: Vec<f64> = Vec::new();
    for row in rows {
        if !tried.contains(&row.bits) {
            tried.push(row.bits);
        }
    }
    let of =
        |bits: f64, coded: bool| Found::of(rows.iter().filter(|r| r.bits == bits && r.predicted.is_some() == coded));
    tried
        .into_iter()
        .filter_map(|bits| {
            let (coded, deleted) = (of(bits, true)?, of(bits, false)?);
            let predicted = rows.iter().find_map(|row| row.predicted.filter(|_| row.bits == bits)).unwrap_or(f64::NAN);
            let verdict = match coded.kl {
                kl if kl < deleted.kl => "",
                kl if kl.is_nan() => ". WARNING: the model's answers are no numbers; do not use it",
                _ if deleted.kl.is_nan() => ". WARNING: the control's answers are no numbers",
                _ => ". WARNING: deletion does better; do not use it",
            };
            Some(format!(
                "{}, tried on other text: KL {:.4} nats at {:.2} bits ({predicted:.4} predicted); deletion {:.4} at {:.2}{verdict}",
                coded.scheme, coded.kl, coded.bits, deleted.kl, deleted.bits,
            ))
        })
        .collect()
}

/// Means over the texts of one scheme.
struct Found<'r> {
    scheme: &'r str,
    kl: f64,
    bits: f64,
}

impl<'r> Found<'r> {
    /// None if there are no rows.
    fn of(rows: impl Iterator<Item = &'r TrialRow>) -> Option<Self> {
        let rows: Vec<&TrialRow> = rows.collect();
        let scored: usize = rows.iter().map(|row| row.scored).sum();
        Some(Self {
            scheme: &rows.first()?.scheme,
            kl: rows.iter().map(|row| row.kl_sum.unwrap_or(f64::NAN)).sum::<f64>() / scored as f64,
            bits: rows.iter().map(|row| row.measured_bits).sum::<f64>() / rows.len() as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_that_loses_to_deletion_is_called_so() {
        let row = |id: &str, bits: f64, kl_sum: f64, predicted| TrialRow {
            id: id.to_owned(),
            bits,
            scheme: format!("csr+@{bits}(context=2048)"),
            measured_bits: bits,
            scored: 10,
            kl_sum: Some(kl_sum),
            predicted,
        };
        let rows = [
            row("a", 1.0, 2.0, Some(0.1)),
            row("a", 1.0, 4.0, None),
            row("b", 1.0, 4.0, Some(0.1)),
            row("b", 1.0, 3.0, None),
            row("a", 2.0, 3.0, Some(0.05)),
            row("a", 2.0, 2.0, None),
        ];
        let lines = lines(&rows);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("csr+@1(context=2048), tried"), "{}", lines[0]);
        assert!(lines[0].contains("KL 0.3000 nats at 1.00 bits (0.1000 predicted); deletion 0.3500"), "{}", lines[0]);
        assert!(!lines[0].contains("WARNING") && lines[1].contains("WARNING"), "{lines:?}");
        let broken = TrialRow { kl_sum: None, ..row("a", 1.0, 0.0, Some(0.1)) };
        let lines = super::lines(&[broken, row("a", 1.0, 4.0, None)]);
        assert!(lines[0].contains("no numbers"), "{lines:?}");
        assert!(super::lines(&[row("a", 1.0, 2.0, Some(0.1))]).is_empty(), "nothing to compare with");
    }
}
