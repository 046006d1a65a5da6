//! Lexico: dictionaries of keys after position embedding and of values, one of each per layer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use kvcsr_codec::{DictionaryGroup, DictionarySet, Kind, Shard, ShardHeader, ShardWriter};
use kvcsr_lab::rope;
use kvcsr_neuraldict::{GradientPath, TrainConfig};

use super::layer::Layer;
use crate::stages::inputs::open_shard;
use crate::text::Side;

/// Lexico: trains dictionaries of `atoms` atoms for a layer's keys after position embedding and for its values. The first token
/// of a text counts too: without a window it is coded like any other.
pub(super) fn train(cx: &Layer<'_>, set: &str, atoms: usize, path: &Path) -> Result<()> {
    let settings = cx.settings();
    let mut groups = Vec::new();
    let mut head_dim = 0;
    for kind in Kind::ALL {
        let sides = [Side::Calibration, Side::Heldout].map(|side| rotated(cx, set, kind, side));
        let [train, heldout] = sides;
        let (train, heldout) = (train?, heldout?);
        head_dim = train.shard.head_dim();
        let config = TrainConfig {
            atoms,
            sparsity: settings.lexico_sparsity,
            chunks: 1,
            epochs: settings.lexico_epochs,
            gradient: GradientPath::Atoms,
            kmeans_sample: settings.lexico_tokens.max(atoms),
            seed: cx.run.config.seed,
            device: cx.run.config.device.clone(),
            ..TrainConfig::default()
        };
        let trained = kvcsr_neuraldict::train_group(&config, &[&train.shard], &[&heldout.shard], &mut |_| {})?;
        groups.push(DictionaryGroup {
            kind,
            layers: vec![cx.layer],
            chunks: 1,
            sparsity: settings.lexico_sparsity,
            dictionary: trained.dictionary.into(),
        });
    }
    Ok(DictionarySet { head_dim, groups, provenance: BTreeMap::new() }.save(path)?)
}

/// A shard whose file is removed when this is dropped.
struct Temporary {
    shard: Shard,
    path: PathBuf,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Best effort: a leftover is removed with the folder.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Writes the vectors that Lexico trains on, of at most `lexico_tokens` tokens: values as they are, and keys after position
/// embedding at positions that are spread over all positions below `rope_positions`.
fn rotated(cx: &Layer<'_>, set: &str, kind: Kind, side: Side) -> Result<Temporary> {
    let shard = open_shard(cx.run, side, cx.layer, kind)?;
    let (heads, d, length) = (shard.heads(), shard.head_dim(), cx.run.config.calibrate.sequence);
    let all = shard.tokens() / length;
    let used = cx.settings().lexico_tokens.div_ceil(length).clamp(1, all.max(1));
    let name = format!(
        "rotated-{set}-{}-{:02}-{kind}.safetensors",
        if side == Side::Heldout { "heldout" } else { "train" },
        cx.layer
    );
    let path = cx.folder.join(name);
    let header =
        ShardHeader { layer: cx.layer, kind, tokens: used * length, heads, head_dim: d, extra: BTreeMap::new() };
    let mut writer = ShardWriter::create(&path, header)?;
    let mut rows = vec![0f32; length * heads * d];
    for i in 0..used {
        let first = i * all / used * length * heads;
        shard.read(d, first..first + length * heads, &mut rows)?;
        if kind == Kind::Key {
            let positions = cx.settings().rope_positions.min(cx.rotary.max_positions());
            let first = rope::spread(i, length, positions);
            rows = rope::rotated_from(&rows, heads, d, length, cx.rotary, |_| first)?;
        }
        writer.append(&rows)?;
    }
    writer.finish()?;
    Ok(Temporary { shard: Shard::open(&path)?, path })
}
