//! How much attention each token gets. CQ's k-means weights vectors by it.

use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use kvcsr_cache::{AttentionMass, DenseCache, LayerCache, Rotary};
use kvcsr_codec::{CodebookSet, Kind, Table};

use super::layer::Sample;
use crate::stage::Run;
use crate::stages::inputs::{corpus, open_model};
use crate::text::Side;
use crate::ui;

/// The table of a layer's attention per token, `(tokens, Hkv)`.
pub(super) const MASS: &str = "mass";

/// How much attention each token of the sample gets, by layer, relative to the mean; read from `path` if the file exists.
pub(super) fn read(run: &Run, sample: &Sample, path: &Path) -> Result<(CodebookSet, Rotary)> {
    let (decoder, tokenizer) = open_model(run)?;
    let geometry = decoder.geometry();
    if path.is_file() {
        return Ok((CodebookSet::load(path)?, decoder.rotary().clone()));
    }
    let bar = ui::bar("calibrate-peers", sample.tokens() as u64, "tokens");
    // Per layer and kind `(tokens, Hkv)`: keys by attention, values by its square.
    let mut masses = vec![[Vec::new(), Vec::new()]; geometry.layers];
    for id in &run.config.corpora {
        bar.set_message(format!("attention, {id}"));
        for ids in
            corpus(run, &tokenizer, id, Side::Calibration, sample.length, sample.recorded)?.iter().take(sample.used)
        {
            let (mut caches, records): (Vec<Box<dyn LayerCache>>, Vec<_>) = (0..geometry.layers)
                .map(|_| {
                    let (cache, record) = AttentionMass::new(DenseCache::new(DType::F32));
                    (Box::new(cache) as Box<dyn LayerCache>, record)
                })
                .unzip();
            decoder.forward_hidden(&Tensor::new(&ids[..], &Device::Cpu)?.unsqueeze(0)?, &mut caches)?;
            for (masses, record) in masses.iter_mut().zip(records) {
                let record = record.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
                for (mass, part) in masses.iter_mut().zip([record.linear, record.squared]) {
                    for t in 0..ids.len() {
                        // Position 0, a sink in many layers, counts too: without a window it is coded like any other.
                        mass.extend((0..geometry.kv_heads).map(|head| part[head * ids.len() + t]));
                    }
                }
            }
            bar.inc(ids.len() as u64);
        }
    }
    bar.finish();
    let mut set = CodebookSet::new("weights", geometry.layers, geometry.kv_heads, geometry.head_dim);
    for (layer, masses) in masses.into_iter().enumerate() {
        for (kind, mut mass) in Kind::ALL.into_iter().zip(masses) {
            let mean = (mass.iter().map(|&x| f64::from(x)).sum::<f64>() / mass.len() as f64).max(1e-30) as f32;
            mass.iter_mut().for_each(|x| *x = (*x / mean).min(6e4));
            set.insert(layer, kind, MASS, Table::new(&[sample.tokens(), geometry.kv_heads], &mass)?);
        }
    }
    set.save(path)?;
    Ok((set, decoder.rotary().clone()))
}
