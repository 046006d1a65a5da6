//! Measures the KL of every weighing, and the reconstruction errors that explain it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use kvcsr_cache::{PrefillSnapshot, SchemeContext, registry};
use kvcsr_codec::{DictionarySet, Encoder, Kind};
use kvcsr_eval::heldout::{HeldoutText, Reference};
use kvcsr_model::Decoder;
use kvcsr_records::Journal;
use serde::{Deserialize, Serialize};

use super::design;
use super::restored::{self, Restored, Weighing};
use crate::stage::Run;
use crate::stages::inputs::PREFILL_CHUNK;
use crate::ui;

/// File of the design's weighings.
pub const WEIGHINGS: &str = "weighings.jsonl";
/// File of reconstruction errors by text, layer, kind and level.
pub const ERRORS: &str = "errors.jsonl";

/// One weighing of the design on one text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WeighingRow {
    pub text: usize,
    pub id: String,
    pub weighing: usize,
    pub scored: usize,
    pub kl_sum: f64,
}

/// The relative error of one layer's vectors of one kind at a level, on one text: see [`restored::relative_errors`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorRow {
    pub text: usize,
    pub layer: usize,
    pub kind: Kind,
    pub level: usize,
    pub relative: f64,
}

/// The encoder of every layer and kind, with the chunks of its vectors.
type Encoders = BTreeMap<(usize, Kind), (Arc<Encoder>, usize)>;

/// Appends the missing rows: errors of every text, layer, kind and level, and KL of every text and weighing.
pub fn measure(
    run: &Run,
    set: &DictionarySet,
    decoder: &Decoder,
    texts: &[(String, HeldoutText)],
    dir: &Path,
) -> Result<()> {
    let settings = &run.config.allocate;
    let dense = registry::build("dense", &SchemeContext::new(decoder.geometry()))?;
    let mut encoders = Encoders::new();
    for group in &set.groups {
        let encoder = Arc::new(Encoder::new(group.dictionary.clone()));
        encoders.extend(group.layers.iter().map(|&layer| ((layer, group.kind), (encoder.clone(), group.chunks))));
    }
    let (mut weighed, _) = Journal::open(&dir.join(WEIGHINGS), |row: &WeighingRow| (row.text, row.weighing))?;
    let (mut errors, _) =
        Journal::open(&dir.join(ERRORS), |row: &ErrorRow| (row.text, row.layer, row.kind, row.level))?;
    let weighings = design::weighings(2 * decoder.geometry().layers);
    let bar = ui::bar("allocate", (texts.len() * weighings) as u64, "weighings");
    for (number, (id, text)) in texts.iter().enumerate() {
        let todo: Vec<usize> = (0..weighings).filter(|&w| !weighed.contains(&(number, w))).collect();
        let unknown: Vec<(usize, Kind, usize)> = levels(&encoders, &settings.levels)
            .filter(|&(layer, kind, level)| !errors.contains(&(number, layer, kind, level)))
            .collect();
        bar.inc((weighings - todo.len()) as u64);
        if todo.is_empty() && unknown.is_empty() {
            continue;
        }
        bar.set_message(format!("{id}: prefill"));
        let reference = Reference::new(decoder, text, PREFILL_CHUNK, dense.as_ref())?;
        let snapshot = reference.snapshot();
        errors.append_all(&error_rows(number, snapshot, &encoders, &unknown)?)?;
        let restored = Restored::new(snapshot, |layer, kind| {
            let (encoder, chunks) = &encoders[&(layer, kind)];
            (encoder, settings.design.map(|level| (level / chunks).max(1)))
        })?;
        for weighing in todo {
            bar.set_message(id.clone());
            let scheme = Weighing { restored: &restored, dense: dense.as_ref(), text: number, weighing };
            let score = reference.score(decoder, &scheme)?;
            let (scored, kl_sum) = (score.scored, score.kl_sum);
            weighed.append(&WeighingRow { text: number, id: id.clone(), weighing, scored, kl_sum })?;
            bar.inc(1);
        }
    }
    bar.finish();
    Ok(())
}

/// Layer, kind and level of every error that is measured: only levels that the chunks can share evenly.
fn levels<'a>(encoders: &'a Encoders, levels: &'a [usize]) -> impl Iterator<Item = (usize, Kind, usize)> + 'a {
    encoders.iter().flat_map(move |(&(layer, kind), (_, chunks))| {
        levels.iter().filter(|level| level.is_multiple_of(*chunks)).map(move |&level| (layer, kind, level))
    })
}

/// The rows of a text's `unknown` errors, in which those of a layer and kind must stand together.
fn error_rows(
    text: usize,
    snapshot: &PrefillSnapshot,
    encoders: &Encoders,
    unknown: &[(usize, Kind, usize)],
) -> Result<Vec<ErrorRow>> {
    let mut rows = Vec::with_capacity(unknown.len());
    for same in unknown.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
        let (layer, kind, _) = same[0];
        let (encoder, chunks) = &encoders[&(layer, kind)];
        let x = if kind == Kind::Key { &snapshot.keys[layer] } else { &snapshot.values[layer] };
        let sparsities: Vec<usize> = same.iter().map(|(_, _, level)| level / chunks).collect();
        let errors = restored::relative_errors(encoder, x, &sparsities)?;
        let row =
            |(&(_, _, level), relative): (&(usize, Kind, usize), f64)| ErrorRow { text, layer, kind, level, relative };
        rows.extend(same.iter().zip(errors).map(row));
    }
    Ok(rows)
}
