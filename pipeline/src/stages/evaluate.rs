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
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{Config, check};
use crate::stage::{Artefact, Declaration, Need, Output, Run, SchemeNames, Stage};
use crate::stages::provenance::Owner;
use crate::stages::{
    self, PREFILL_CHUNK, artefacts, corpus, open_model, open_shard, rows_left, text_parameters, train::Train,
};
use crate::text::Side;
use crate::ui;

/// File of the rows per document and scheme.
pub const HELDOUT: &str = "heldout.jsonl";
/// File of the rows per layer, kind, dictionary and level.
pub const RECONSTRUCTION: &str = "reconstruction.jsonl";

/// The section `[evaluate]`; `profiles/defaults.toml` explains every parameter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub schemes: Vec<String>,
    pub context: usize,
    pub continuation: usize,
    pub documents: usize,
    pub reconstruction: Vec<usize>,
}

/// See the module.
pub struct Evaluate;

/// The schemes that are scored.
fn names(config: &Config) -> SchemeNames<'_> {
    SchemeNames { names: &config.evaluate.schemes, profile: "" }
}

static DECLARATION: Declaration = Declaration {
    name: "evaluate",
    about: "Measure perplexity, KL and top-1 agreement after compression, and reconstruction error",
    needs: &[Need::Model, Need::Corpora, Need::Stage("calibrate"), Need::Stage("train"), Need::Schemes(names)],
    makes: &[Output::rows(HELDOUT), Output::rows(RECONSTRUCTION)],
    reproduced: true,
    ..Declaration::EMPTY
};

impl Stage for Evaluate {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn check(&self, config: &Config) -> Result<()> {
        let Settings { schemes, context, continuation, documents, .. } = &config.evaluate;
        check::positive("evaluate", &[("context", *context), ("documents", *documents)])?;
        check::continuation("evaluate", *continuation)?;
        check::with_dense("evaluate", schemes)
    }

    fn plan(&self, run: &Run) -> String {
        let Settings { schemes, documents, .. } = &run.config.evaluate;
        format!("{} schemes on {documents} documents of each text", schemes.len())
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        text_parameters(run, &run.config.evaluate)
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let (decoder, tokenizer) = open_model(run)?;
        reconstruction(run, &Owner::of(run, decoder.geometry())?, &dir.join(RECONSTRUCTION))?;
        let schemes = artefacts::schemes(run, names(&run.config), decoder.geometry())?;
        heldout(run, &decoder, &tokenizer, &schemes, &dir.join(HELDOUT))
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
fn reconstruction(run: &Run, owner: &Owner, path: &Path) -> Result<()> {
    if path.is_file() {
        return Ok(());
    }
    let sets = sets(run, owner)?;
    let total: usize = sets.iter().flat_map(|(_, s)| &s.groups).map(|g| g.layers.len()).sum();
    let bar = ui::bar("evaluate", total as u64, "layers restored");
    let mut rows = Vec::new();
    for (name, set) in &sets {
        for group in &set.groups {
            let encoder = Encoder::new(group.dictionary.clone());
            for &layer in &group.layers {
                let shard = open_shard(run, Side::Heldout, layer, group.kind)?;
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

/// The sets of [`Train`] and those that a named scheme uses, but for those of rotated keys, which are not recorded.
fn sets(run: &Run, owner: &Owner) -> Result<Vec<(&'static str, DictionarySet)>> {
    let makers = artefacts::makers(&run.config.evaluate.schemes)?;
    let mut sets = Vec::new();
    for stage in stages::ALL {
        let shown = stage.name() == Train.name() || makers.iter().any(|maker| maker.name() == stage.name());
        for output in stage.declaration().makes.iter().filter(|_| shown) {
            match output.artefact {
                Artefact::Dictionaries(name) if name != registry::ROPE_DICTIONARIES => {
                    sets.push((name, owner.load(&run.stage_dir(stage.name()).join(output.file))?));
                }
                _ => {}
            }
        }
    }
    Ok(sets)
}

/// Scores every scheme on every document, appending a row each.
fn heldout(
    run: &Run,
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    schemes: &[Box<dyn Scheme>],
    path: &Path,
) -> Result<()> {
    let settings = &run.config.evaluate;
    let dense = registry::build("dense", &SchemeContext::new(decoder.geometry()))?;
    let done = finished_rows(path)?;
    let mut out = OpenOptions::new().create(true).append(true).open(path)?;
    let documents = run.config.corpora.len() * settings.documents;
    let bar = ui::bar("evaluate", (documents * schemes.len()) as u64, "documents x schemes");
    for corpus_id in &run.config.corpora {
        let length = settings.context + settings.continuation;
        let texts = corpus(run, tokenizer, corpus_id, Side::Heldout, length, settings.documents)?;
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
