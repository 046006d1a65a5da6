//! train-plus: what csr+@B is built from. Per layer, atoms of whole tokens (keys and values of all heads) and the principal axes of what
//! they leave, in a metric in which a squared error of 1 costs 1 nat by the measurements of `allocate`. Layers that an unfinished run of
//! the same recipe completed are kept.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use kvcsr_cache::schemes::csr_plus;
use kvcsr_codec::{CodebookSet, Kind, Table};
use kvcsr_neuraldict::plus::{self, PlusConfig};
use serde_json::{Map, Value};

use super::allocate;
use crate::config::{Config, check};
use crate::stage::{Artefact, Declaration, Need, Output, Run, Stage, parameters_of};
use crate::stages::inputs::{layers, open_shard};
use crate::text::Side;
use crate::{ui, workers};

/// File of the tables.
const FILE: &str = "csr-plus.safetensors";

/// See the module.
pub struct TrainPlus;

static DECLARATION: Declaration = Declaration {
    name: "train-plus",
    about: "Learn atoms of whole tokens and the axes of what they leave, for csr+@B",
    needs: &[Need::Stage("calibrate"), Need::Stage("allocate")],
    makes: &[Output { file: FILE, artefact: Artefact::Tables(csr_plus::TABLES) }],
    ..Declaration::EMPTY
};

impl Stage for TrainPlus {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn check(&self, config: &Config) -> Result<()> {
        let settings = &config.train_plus;
        check::positive("train_plus", &[("atoms", settings.atoms), ("iterations", settings.iterations)])?;
        ensure!(
            settings.key_weight > 0.0 && settings.key_weight.is_finite(),
            "train_plus.key_weight = {}: a number above 0 is expected",
            settings.key_weight
        );
        Ok(())
    }

    fn plan(&self, run: &Run) -> String {
        format!("{} atoms of whole tokens per layer, and the axes of what they leave", run.config.train_plus.atoms)
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = parameters_of(&run.config.train_plus)?;
        parameters.insert("seed".into(), run.config.seed.into());
        Ok(parameters)
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let slopes = allocate::slopes(&run.stage_dir("allocate"))?;
        let all: Vec<usize> = (0..layers(run)?).collect();
        let file = |layer: usize| dir.join(format!("layer-{layer:02}.safetensors"));
        let bar = ui::bar("train-plus", all.len() as u64, "layers");
        kvcsr_neuraldict::set_threads(1);
        // Layers side by side, each on one thread: the same result for any number of them.
        workers::each(&all, rayon::current_num_threads(), |&layer| {
            if !file(layer).is_file() {
                let slope = |kind| {
                    let missing = || format!("allocate has measured no {kind}s of layer {layer}");
                    slopes.get(&(layer, kind)).copied().with_context(missing)
                };
                let slopes = [slope(Kind::Key)? * run.config.train_plus.key_weight, slope(Kind::Value)?];
                layer_tables(run, layer, slopes)?.save(file(layer))?;
            }
            bar.inc(1);
            Ok(())
        })?;
        bar.finish();
        let mut joined: Option<CodebookSet> = None;
        for &layer in &all {
            let set = CodebookSet::load(file(layer))?;
            match &mut joined {
                Some(joined) => joined.extend(set),
                None => joined = Some(set),
            }
        }
        let mut joined = joined.context("the model has no layers")?;
        joined.provenance = [
            ("model".to_owned(), run.config.model.clone()),
            ("calibration".to_owned(), run.finished("calibrate")?.digest),
            ("costs".to_owned(), run.finished("allocate")?.digest),
            ("seed".to_owned(), run.config.seed.to_string()),
            ("train-plus".to_owned(), serde_json::to_string(&run.config.train_plus)?),
        ]
        .into();
        joined.save(dir.join(FILE))?;
        all.iter().try_for_each(|&layer| Ok(std::fs::remove_file(file(layer))?))
    }

    fn summary(&self, run: &Run, dir: &Path) -> Result<Vec<String>> {
        let bytes = std::fs::metadata(dir.join(FILE))?.len();
        Ok(vec![format!("{} atoms per layer, {:.1} MB", run.config.train_plus.atoms, bytes as f64 / 1e6)])
    }
}

/// The tables of one layer; `slopes` are nats per unit of relative squared error of its keys and values.
fn layer_tables(run: &Run, layer: usize, slopes: [f64; 2]) -> Result<CodebookSet> {
    let settings = &run.config.train_plus;
    let (mut tokens, mut metric, mut shape) = (Vec::new(), Vec::new(), (0, 0, 0));
    for (at, (kind, slope)) in Kind::ALL.into_iter().zip(slopes).enumerate() {
        let shard = open_shard(run, Side::Calibration, layer, kind)?;
        let (count, heads, d) = (shard.tokens(), shard.heads(), shard.head_dim());
        let half = heads * d;
        let mut rows = vec![0f32; count * half];
        shard.read(d, 0..count * heads, &mut rows)?;
        let energy = rows.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / count as f64;
        metric.resize((at + 1) * half, (slope / energy.max(1e-30)).sqrt() as f32);
        tokens.resize(count * 2 * half, 0.0);
        for (token, row) in tokens.chunks_exact_mut(2 * half).zip(rows.chunks_exact(half)) {
            token[at * half..][..half].copy_from_slice(row);
        }
        shape = (count, heads, d);
    }
    let (count, heads, d) = shape;
    ensure!(
        count >= settings.atoms,
        "{count} calibration tokens are fewer than train_plus.atoms = {}: raise calibrate.tokens",
        settings.atoms
    );
    let seed = run.config.seed.wrapping_add(layer as u64);
    let found =
        plus::fit(&tokens, &metric, PlusConfig { atoms: settings.atoms, iterations: settings.iterations, seed })?;
    let n = metric.len();
    let mut set = CodebookSet::new(csr_plus::TABLES, layers(run)?, heads, d);
    for (name, shape, values) in [
        (csr_plus::ATOMS, &[settings.atoms, n][..], &found.atoms),
        (csr_plus::METRIC, &[n], &metric),
        (csr_plus::BASIS, &[n, n], &found.basis),
        (csr_plus::DEVIATIONS, &[n], &found.deviations),
    ] {
        set.insert(layer, Kind::Key, name, Table::new(shape, values)?);
    }
    Ok(set)
}
