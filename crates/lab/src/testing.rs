//! Runs on disk for tests.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use kvcsr_codec::{Kind, ShardHeader, ShardWriter};

/// Writes `vectors`, `(T, Hkv, D)`, as those of a layer into `side` (`heldout` or `calibration`) of a run.
pub(crate) fn write_shard(
    run: &Path,
    side: &str,
    layer: usize,
    kind: Kind,
    [heads, head_dim]: [usize; 2],
    vectors: &[f32],
) {
    let folder = run.join("calibrate").join(side);
    std::fs::create_dir_all(&folder).unwrap();
    let tokens = vectors.len() / (heads * head_dim);
    let header = ShardHeader { layer, kind, tokens, heads, head_dim, extra: Default::default() };
    let mut shard = ShardWriter::create(folder.join(format!("layer-{layer:02}-{kind}s.safetensors")), header).unwrap();
    shard.append(vectors).unwrap();
    shard.finish().unwrap();
}
