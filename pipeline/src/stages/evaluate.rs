//! evaluate: what compression costs on held-out text, and how well vectors are restored.
//!
//! One exact prefill per document serves every scheme. Rows stream to disk as they are made; an
//! unfinished run of the same recipe goes on with the first document and scheme it lacks.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use kvcsr_cache::{Scheme, SchemeContext, registry};
use kvcsr_codec::{DictionarySet, Encoder, reconstruction_error};
use kvcsr_eval::heldout::{HeldoutText, Reference};
use kvcsr_eval::longbench::predictions::label;
use kvcsr_model::{Decoder, Tokenizer};
use kvcsr_report::{HeldoutRow, ReconstructionRow, aggregate, files};
use serde_json::{Map, Value};

use crate::stage::{Run, Stage};
use crate::stages::provenance::Owner;
use crate::stages::{
    PREFILL_CHUNK, calibrate_peers, corpus, dictionaries, open_model, open_shard, rows_left, scores,
    text_and_model_inputs, text_parameters,
};
use crate::text::Part;
use crate::ui;

/// File of the rows per document and scheme.
pub const HELDOUT: &str = "heldout.jsonl";
/// File of the rows per layer, kind, dictionary and level.
pub const RECONSTRUCTION: &str = "reconstruction.jsonl";

/// See the module.
pub struct Evaluate;

impl Stage for Evaluate {
    fn name(&self) -> &'static str {
        "evaluate"
    }

    fn version(&self) -> u32 {
        1
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        text_parameters(run, &run.config.evaluate)
    }

    fn inputs(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut inputs = text_and_model_inputs(run)?;
        inputs.insert("calibrate".into(), run.finished("calibrate")?.digest.into());
        inputs.insert("train".into(), run.finished("train")?.digest.into());
        scores::add_inputs(run, &run.config.evaluate.schemes, "", &mut inputs)?;
        Ok(inputs)
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let (decoder, tokenizer) = open_model(run)?;
        let owner = Owner::of(run, decoder.geometry())?;
        let sets = dictionaries::load(|stage| run.stage_dir(stage), &owner)?;
        reconstruction(run, &sets, &dir.join(RECONSTRUCTION))?;
        heldout(run, &decoder, &tokenizer, sets, &dir.join(HELDOUT))
    }

    fn summary(&self, _run: &Run, dir: &Path) -> Result<Vec<String>> {
        let rows: Vec<HeldoutRow> = files::read_jsonl(&dir.join(HELDOUT))?;
        Ok(aggregate::overall(&rows)?
            .into_iter()
            .map(|s| {
                let name = label(&s.scheme, s.dictionary.as_str());
                format!("{name:<16} KL {:.5} nats/token at {:.2} measured bits per channel", s.kl, s.measured_bits)
            })
            .collect())
    }
}

/// Relative error of every layer's held-out vectors, for each set and level.
fn reconstruction(run: &Run, sets: &[(&'static str, DictionarySet)], path: &Path) -> Result<()> {
    if path.is_file() {
        return Ok(());
    }
    // Sets that a named scheme uses, but for that of rotated keys, which are not recorded.
    let best = scores::needed(&run.config.evaluate.schemes)?.contains(&"train-best");
    let shown = |name: &str| name != registry::ROPE_DICTIONARIES && (best || name != registry::BEST_DICTIONARIES);
    let sets: Vec<&(&'static str, DictionarySet)> = sets.iter().filter(|(name, _)| shown(name)).collect();
    let total: usize = sets.iter().flat_map(|(_, s)| &s.groups).map(|g| g.layers.len()).sum();
    let bar = ui::bar("evaluate", total as u64, "layers restored");
    let mut rows = Vec::new();
    for (name, set) in sets {
        for group in &set.groups {
            let encoder = Encoder::new(group.dictionary.clone());
            for &layer in &group.layers {
                let shard = open_shard(run, Part::Heldout, layer, group.kind)?;
                let width = group.dictionary.width();
                let mut vectors = vec![0f32; shard.rows(width) * width];
                shard.read(width, 0..shard.rows(width), &mut vectors)?;
                for &level in &run.config.evaluate.reconstruction {
                    let sparsity = level / group.chunks;
                    let error = reconstruction_error(&encoder, &vectors, sparsity)
                        .with_context(|| format!("layer {layer}, {}s, level {level}", group.kind))?;
                    rows.push(ReconstructionRow {
                        layer,
                        kind: group.kind,
                        dictionary: name.parse()?,
                        sparsity,
                        chunks: group.chunks,
                        relative: error.relative,
                        mse: error.mse,
                        vectors: error.vectors,
                    });
                }
                bar.inc(1);
            }
        }
    }
    bar.finish();
    files::write_jsonl(path, &rows)?;
    Ok(())
}

/// Scores every scheme on every document, appending a row each.
fn heldout(
    run: &Run,
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    sets: Vec<(&'static str, DictionarySet)>,
    path: &Path,
) -> Result<()> {
    let settings = &run.config.evaluate;
    let context = SchemeContext::new(decoder.geometry());
    let context = dictionaries::add_to(context, |stage| run.stage_dir(stage), sets)?;
    let context = calibrate_peers::add_to(&run.stage_dir("calibrate-peers"), context)?;
    let schemes =
        settings.schemes.iter().map(|name| Ok(registry::build(name, &context)?)).collect::<Result<Vec<_>>>()?;
    let dense = registry::build("dense", &context)?;
    let done = finished_rows(path)?;
    let mut out = OpenOptions::new().create(true).append(true).open(path)?;
    let documents = run.config.corpora.len() * settings.documents;
    let bar = ui::bar("evaluate", (documents * schemes.len()) as u64, "documents x schemes");
    for corpus_id in &run.config.corpora {
        let length = settings.context + settings.continuation;
        let texts = corpus(run, tokenizer, corpus_id, Part::Heldout, length, settings.documents)?;
        for (i, ids) in texts.into_iter().enumerate() {
            let id = format!("{corpus_id}-{i:03}");
            let todo: Vec<&Box<dyn Scheme>> = schemes
                .iter()
                .filter(|s| !done.contains(&(id.clone(), s.name().to_owned(), s.dictionaries().to_owned())))
                .collect();
            bar.inc((schemes.len() - todo.len()) as u64);
            if todo.is_empty() {
                continue;
            }
            let text = HeldoutText { ids, context: settings.context };
            let reference = Reference::new(decoder, &text, PREFILL_CHUNK, dense.as_ref())?;
            for scheme in todo {
                bar.set_message(format!("{id} {}", label(scheme.name(), scheme.dictionaries())));
                let score = reference
                    .score(decoder, scheme.as_ref())
                    .with_context(|| format!("document {id}, scheme {}", scheme.name()))?;
                let row = HeldoutRow {
                    id: id.clone(),
                    domain: corpus_id.clone(),
                    scheme: scheme.name().to_owned(),
                    dictionary: scheme.dictionaries().parse()?,
                    context: settings.context,
                    scored: score.scored,
                    nll_sum: score.nll_sum,
                    kl_sum: score.kl_sum,
                    top1_agree: score.top1_agree,
                    nominal_bits: scheme.nominal_bits().0,
                    measured_bits: score.measured_bits(decoder.geometry()).0,
                    shared_bytes: scheme.shared_bytes(),
                    encode_ms: score.encode_ms,
                    score_ms: score.score_ms,
                };
                writeln!(out, "{}", serde_json::to_string(&row)?)?;
                out.flush()?;
                bar.inc(1);
            }
        }
    }
    out.sync_all()?;
    bar.finish();
    Ok(())
}

/// Document, scheme and dictionaries of the rows an unfinished run left. A last line that was cut
/// off in writing is removed.
fn finished_rows(path: &Path) -> Result<HashSet<(String, String, String)>> {
    let rows: Vec<HeldoutRow> = rows_left(path)?;
    Ok(rows.into_iter().map(|row| (row.id, row.scheme, row.dictionary.as_str().to_owned())).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_cut_off_last_line_is_removed_and_the_rest_counts_as_done() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(HELDOUT);
        let row = r#"{"id":"wiki-000","domain":"wiki","scheme":"csr-4","dictionary":"kmeans","context":8,"scored":2,"nll_sum":1.0,"kl_sum":0.1,"top1_agree":1,"nominal_bits":2.0,"measured_bits":2.5,"shared_bytes":10,"encode_ms":1.0,"score_ms":1.0}"#;
        std::fs::write(&path, format!("{row}\n{}", &row[..40])).unwrap();
        let done = finished_rows(&path).unwrap();
        assert_eq!(done, HashSet::from([("wiki-000".to_owned(), "csr-4".to_owned(), "kmeans".to_owned())]));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{row}\n"));
        std::fs::write(&path, "{}\n").unwrap();
        assert!(format!("{:#}", finished_rows(&path).unwrap_err()).contains("line 1"));
        assert!(finished_rows(&dir.path().join("none")).unwrap().is_empty());
    }
}
