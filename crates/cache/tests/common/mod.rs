//! Random inputs and dictionaries for the tests of this crate.
#![allow(clippy::unwrap_used, dead_code)]

use std::sync::Arc;

use candle_core::{Device, Tensor};
use kvcsr_cache::conformance::{self, Inputs};
use kvcsr_cache::{Budget, Geometry, LayerCache, Pattern, Rotary, SchemeContext};
use kvcsr_codec::{Dictionary, DictionaryGroup, DictionarySet, Kind};

pub use kvcsr_cache::conformance::noise;

pub fn tensor(seed: u64, shape: (usize, usize, usize, usize)) -> Tensor {
    conformance::tensor(seed, shape).unwrap()
}

/// Dictionaries for every layer: keys in one chunk, values in two, with `atoms` random atoms each.
pub fn dictionaries(geometry: Geometry, atoms: usize) -> DictionarySet {
    let group = |layer: usize, kind: Kind, chunks: usize| {
        let width = geometry.head_dim / chunks;
        let seed = 100 + 2 * layer as u64 + u64::from(kind == Kind::Value);
        let dictionary = Dictionary::normalised(width, noise(seed, atoms * width)).unwrap();
        DictionaryGroup { kind, layers: vec![layer], chunks, sparsity: 8 / chunks, dictionary: Arc::new(dictionary) }
    };
    let groups = (0..geometry.layers).flat_map(|l| [group(l, Kind::Key, 1), group(l, Kind::Value, 2)]).collect();
    DictionarySet { head_dim: geometry.head_dim, groups, provenance: Default::default() }
}

/// The unit vectors as atoms. There are as many atoms as channels, so restoring is exact except for f16 rounding.
pub fn unit_vectors(geometry: Geometry) -> DictionarySet {
    let mut set = dictionaries(geometry, 1);
    for group in &mut set.groups {
        let width = group.dictionary.width();
        let atoms = (0..width * width).map(|i| if i / width == i % width { 1.0 } else { 0.0 }).collect();
        group.dictionary = Arc::new(Dictionary::new(width, atoms).unwrap());
    }
    set
}

/// The set under every name, and budgets that give more atoms to keys than to values and fewer to the last layer.
pub fn context(geometry: Geometry, set: DictionarySet) -> SchemeContext {
    let budget =
        |level: usize| Budget { keys: vec![level + 2; geometry.layers], values: vec![level - 2; geometry.layers] };
    SchemeContext::new(geometry)
        .with_dictionaries("neuraldict", set.clone())
        .with_dictionaries("neuraldict-rope", set)
        .with_budgets([4, 8].map(|level| (level, budget(level))).into())
}

pub fn rotary(head_dim: usize) -> Rotary {
    Rotary::new(head_dim, 10_000.0, conformance::MAX_POSITIONS, &Device::Cpu).unwrap()
}

/// Feeds the tokens `from..to` of `(q, k, v)`.
pub fn feed(
    cache: &mut dyn LayerCache,
    qkv: &(Tensor, Tensor, Tensor),
    rotary: &Rotary,
    from: usize,
    to: usize,
) -> Tensor {
    let (q, k, v) = qkv.clone();
    Inputs { q, k, v }.feed(cache, rotary, Pattern::default(), from..to).unwrap()
}

pub fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    conformance::largest_difference(a, b).unwrap()
}
