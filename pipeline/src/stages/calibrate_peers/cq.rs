//! CQ: weighted k-means over groups of channels.

use anyhow::{Result, bail};
use kvcsr_cache::schemes::cq;
use kvcsr_codec::{CodebookSet, Kind, Table};
use kvcsr_neuraldict::peers::cq::weighted_kmeans;

use super::layer::Layer;
use super::weights::MASS;

/// CQ: centroids of every head and group of channels.
pub(super) fn centroids(cx: &Layer<'_>, channels: usize, bits: usize, set: &mut CodebookSet) -> Result<()> {
    let settings = cx.settings();
    for kind in Kind::ALL {
        let (rows, heads, d) = cx.vectors(kind)?;
        if !d.is_multiple_of(channels) {
            bail!("groups of {channels} channels do not divide heads of {d}");
        }
        let mass = cx.weights.table(cx.layer, kind, MASS, &[cx.sample.tokens(), heads])?.to_f32();
        let groups = d / channels;
        let mut centroids = Vec::with_capacity((heads * d) << bits);
        for head in 0..heads {
            let weights: Vec<f32> = mass.iter().skip(head).step_by(heads).copied().collect();
            for group in 0..groups {
                let part = rows.chunks_exact(heads * d).flat_map(|row| &row[head * d + group * channels..][..channels]);
                let part: Vec<f32> = part.copied().collect();
                let stream = (usize::from(kind == Kind::Value) * heads + head) * groups + group;
                let limits = (settings.cq_iterations, settings.cq_tolerance);
                let found =
                    weighted_kmeans(&part, channels, &weights, 1 << bits, limits, &mut cx.rng(1 + stream as u64))?;
                centroids.extend(found.centroids);
            }
        }
        set.insert(cx.layer, kind, cq::CENTROIDS, Table::new(&[heads, groups, 1 << bits, channels], &centroids)?);
    }
    Ok(())
}
