//! evaluate: measures what compression costs on held-out text, and how well vectors are restored.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kvcsr_cache::registry;
use kvcsr_codec::{DictionarySet, Encoder, reconstruction_error};
use kvcsr_report::{HeldoutRow, ReconstructionRow, aggregate, files};
use serde_json::{Map, Value};

use crate::config::{Config, check, sections};
use crate::room::Room;
use crate::stage::{Artefact, Declaration, Need, Output, Part, Run, SchemeNames, Sliced, Stage, makers};
use crate::stages::heldout::{self, Scoring};
use crate::stages::inputs::{open_model, open_shard};
use crate::stages::provenance::Owner;
use crate::stages::train::Train;
use crate::stages::{artefacts, gather};
use crate::text::Side;
use crate::{atomic, ui};

/// File of the rows per layer, kind, dictionary and level.
pub const RECONSTRUCTION: &str = "reconstruction.jsonl";

/// File of a slice's share of these rows.
const PART: &str = "reconstruction-part.jsonl";

/// See the module.
pub struct Evaluate;

/// The schemes that are scored.
fn names(config: &Config) -> SchemeNames<'_> {
    SchemeNames { names: &config.evaluate.schemes, profile: "" }
}

/// The documents that are scored.
fn scoring(config: &Config) -> Scoring<'_> {
    let sections::Evaluate { contexts, documents, .. } = &config.evaluate;
    Scoring { stage: DECLARATION.name, contexts, documents: *documents, decode: 0 }
}

static DECLARATION: Declaration = Declaration {
    name: "evaluate",
    about: "Score CSR on single long documents by what deletion fails, and measure reconstruction error",
    version: 2,
    needs: &[Need::Model, Need::Documents, Need::Stage("calibrate"), Need::Stage("train"), Need::Schemes(names)],
    makes: &[Output::rows(heldout::ROWS), Output::rows(heldout::THRESHOLDS), Output::rows(RECONSTRUCTION)],
    reproduced: true,
    grows: heldout::GROWS,
    sliced: Some(&Evaluate),
    ..Declaration::EMPTY
};

impl Stage for Evaluate {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn check(&self, config: &Config) -> Result<()> {
        let sections::Evaluate { schemes, contexts, documents, .. } = &config.evaluate;
        if contexts.len() > 1 {
            bail!("evaluate.contexts = {contexts:?}: one context is expected; `compare` takes several");
        }
        config.heldout.check("evaluate", contexts, *documents)?;
        check::with_dense("evaluate", schemes)
    }

    fn fits(&self, config: &Config, positions: usize) -> Result<()> {
        scoring(config).fits(config, positions)
    }

    fn plan(&self, run: &Run) -> String {
        let sections::Evaluate { schemes, documents, .. } = &run.config.evaluate;
        format!("{} schemes on {documents} documents of each domain", schemes.len())
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        heldout::parameters(run, &run.config.evaluate)
    }

    fn needs_room(&self, run: &Run) -> Result<Room> {
        scoring(&run.config).needs_room(run, names(&run.config), "evaluate.contexts or heldout.windows")
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let (decoder, tokenizer) = open_model(run)?;
        reconstruction(run, &Owner::of(run, decoder.geometry())?, &dir.join(RECONSTRUCTION))?;
        let schemes = artefacts::schemes(run, names(&run.config), &decoder)?;
        scoring(&run.config).measure(run, (&decoder, &tokenizer), &schemes, dir)
    }

    fn summary(&self, _run: &Run, dir: &Path) -> Result<Vec<String>> {
        let rows: Vec<HeldoutRow> = files::read_jsonl(&dir.join(heldout::ROWS))?;
        Ok(heldout::lines(&aggregate::overall(&rows)?))
    }
}

impl Sliced for Evaluate {
    fn units(&self, run: &Run) -> Result<usize> {
        Ok(scoring(&run.config).most_units(&run.config))
    }

    fn make_part(&self, run: &Run, part: Part, dir: &Path) -> Result<()> {
        let (decoder, tokenizer) = open_model(run)?;
        let owner = Owner::of(run, decoder.geometry())?;
        let sets = sets(run, &owner)?;
        // Under a name of its own: outputs of the whole that this run extends may be here too.
        if !is_reconstructed(&sets, &dir.join(RECONSTRUCTION))? && !dir.join(PART).is_file() {
            restore(run, &sets, Some(part), &dir.join(PART))?;
        }
        let schemes = artefacts::schemes(run, names(&run.config), &decoder)?;
        scoring(&run.config).measure_part(run, (&decoder, &tokenizer), &schemes, Some(part), dir)
    }

    fn gather(&self, run: &Run, slices: &[PathBuf], dir: &Path) -> Result<()> {
        let to = dir.join(RECONSTRUCTION);
        // A slice that extends finished outputs has the errors of all layers.
        if let Some(whole) = slices.iter().find(|slice| !slice.join(PART).is_file()) {
            let from = whole.join(RECONSTRUCTION);
            let bytes = std::fs::read(&from).with_context(|| from.display().to_string())?;
            atomic::write(&to, &bytes)?;
        } else {
            let levels = run.config.evaluate.reconstruction.len();
            let rows = gather::interleaved(slices, Path::new(PART), levels)?;
            let text: String = rows.into_iter().map(|(_, line)| line + "\n").collect();
            atomic::write(&to, text.as_bytes())?;
        }
        heldout::gather_rows(slices, dir)
    }
}

/// Makes the file of relative errors of every layer's held-out vectors, for each set and level. It is made again if a set is
/// missing in it, for example after a scheme with other dictionaries was added.
fn reconstruction(run: &Run, owner: &Owner, path: &Path) -> Result<()> {
    let sets = sets(run, owner)?;
    if is_reconstructed(&sets, path)? { Ok(()) } else { restore(run, &sets, None, path) }
}

/// Whether the file has rows of every layer of each set.
fn is_reconstructed(sets: &[(&str, DictionarySet)], path: &Path) -> Result<bool> {
    if !path.is_file() {
        return Ok(false);
    }
    let known: Vec<ReconstructionRow> = files::read_jsonl(path)?;
    let has = |name: &str, kind, layer| {
        known.iter().any(|row| row.dictionary.as_str() == name && (row.kind, row.layer) == (kind, layer))
    };
    Ok(sets.iter().all(|(name, set)| {
        set.groups.iter().all(|group| group.layers.iter().all(|&layer| has(name, group.kind, layer)))
    }))
}

/// Measures the errors of all layers of each set, or of the layers of one slice.
fn restore(run: &Run, sets: &[(&str, DictionarySet)], part: Option<Part>, path: &Path) -> Result<()> {
    let total: usize = sets.iter().flat_map(|(_, s)| &s.groups).map(|g| g.layers.len()).sum();
    let bar = ui::bar("evaluate", total as u64, "layers restored");
    let mut rows = Vec::new();
    let mut units = 0..total;
    for (name, set) in sets {
        for group in &set.groups {
            let encoder = Encoder::new(group.dictionary.clone());
            for &layer in &group.layers {
                let unit = units.next().unwrap_or_default();
                if part.is_some_and(|part| !part.owns(unit)) {
                    bar.inc(1);
                    continue;
                }
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

/// The sets of [`Train`] and those that a named scheme uses, except sets of rotated keys, because rotated keys are not recorded.
fn sets(run: &Run, owner: &Owner) -> Result<Vec<(&'static str, DictionarySet)>> {
    let makers = makers(run.stages, &run.config.evaluate.schemes)?;
    let mut sets = Vec::new();
    for stage in run.stages {
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
