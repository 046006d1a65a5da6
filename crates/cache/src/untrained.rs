//! Placeholders for everything that calibration produces.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvcsr_codec::{CodebookSet, Dictionary, DictionaryGroup, DictionarySet, Kind, Table};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::schemes::csr::{DEFAULT_DICTIONARIES, ROPE_DICTIONARIES};
use crate::schemes::{commvq, cq, csr_plus, lexico, svdq};
use crate::{Budget, Geometry, SchemeContext};

/// The levels of CQ for which there are placeholders.
const CQ_LEVELS: [&str; 2] = ["8c8b", "4c8b"];
/// The bits of CommVQ's keys for which there are codebooks.
const COMMVQ_BITS: usize = 2;

impl SchemeContext {
    /// A context with an artefact of every kind that a scheme may need. None of them is trained: dictionaries have
    /// `atoms` seeded random atoms, centroids and codebooks are random, and a basis consists of the unit vectors. This
    /// is enough to build every registered scheme, to list it and to test its bookkeeping. Its codes are poor. All
    /// layers share one copy.
    ///
    /// # Panics
    /// If `atoms` is 0 or the head size is odd.
    pub fn untrained(geometry: Geometry, atoms: usize) -> Self {
        let halved = dictionaries(geometry, atoms, 2);
        let mut cx = Self::new(geometry)
            .with_dictionaries("kmeans", halved.clone())
            .with_dictionaries(ROPE_DICTIONARIES, halved.clone())
            .with_budgets([4, 8].map(|level| (level, favouring_keys(geometry, level))).into())
            .with_dictionaries(DEFAULT_DICTIONARIES, halved)
            .with_dictionaries(lexico::DICTIONARIES, dictionaries(geometry, atoms, 1));
        for level in CQ_LEVELS {
            let (channels, bits) = cq::level(level).expect("the levels above are levels");
            if geometry.head_dim.is_multiple_of(channels) {
                let shape = [geometry.kv_heads, geometry.head_dim / channels, 1 << bits, channels];
                let table = noise(&shape, 1.0);
                cx = cx.with_codebooks(
                    &format!("cq-{level}"),
                    everywhere(geometry, &[(&Kind::ALL, cq::CENTROIDS, table)]),
                );
            }
        }
        let steps = commvq::steps(COMMVQ_BITS, geometry.head_dim);
        let unit = 1.0 / ((geometry.kv_heads * geometry.head_dim) as f32).sqrt();
        let rows = noise(&[geometry.kv_heads, steps, commvq::ROWS_PER_STEP, geometry.head_dim], unit);
        cx = cx.with_codebooks(commvq::CODEBOOKS, everywhere(geometry, &[(&[Kind::Key], commvq::ROWS, rows)]));
        let d = geometry.kv_heads * geometry.head_dim;
        let numbers = |shape: &[usize], of: &dyn Fn(usize) -> f32| {
            let n = shape.iter().product();
            Table::new(shape, &(0..n).map(of).collect::<Vec<_>>()).expect("a few small numbers")
        };
        let basis = [
            (&[Kind::Key][..], svdq::MEAN, numbers(&[d], &|_| 0.0)),
            (&[Kind::Key], svdq::DEVIATIONS, numbers(&[d], &|i| 1.0 / (1 + i) as f32)),
            (&[Kind::Key], svdq::BASIS, numbers(&[d, d], &|at| if at / d == at % d { 1.0 } else { 0.0 })),
        ];
        let n = 2 * d;
        let plus = [
            (&[Kind::Key][..], csr_plus::ATOMS, noise(&[5, n], 0.5)),
            (&[Kind::Key], csr_plus::METRIC, numbers(&[n], &|_| 1.0)),
            (&[Kind::Key], csr_plus::DEVIATIONS, numbers(&[n], &|i| 1.0 / (1 + i) as f32)),
            (&[Kind::Key], csr_plus::BASIS, numbers(&[n, n], &|at| if at / n == at % n { 1.0 } else { 0.0 })),
        ];
        cx.with_codebooks(svdq::CODEBOOKS, everywhere(geometry, &basis))
            .with_codebooks(csr_plus::TABLES, everywhere(geometry, &plus))
    }
}

fn dictionaries(geometry: Geometry, atoms: usize, value_chunks: usize) -> DictionarySet {
    let group = |kind: Kind, chunks: usize| {
        let width = geometry.head_dim / chunks;
        let mut rng = ChaCha8Rng::seed_from_u64(kind as u64);
        let noise = (0..atoms * width).map(|_| rng.random_range(-1.0f32..1.0)).collect();
        let dictionary = Dictionary::normalised(width, noise).expect("random atoms are neither zero nor infinite");
        let layers = (0..geometry.layers).collect();
        DictionaryGroup { kind, layers, chunks, sparsity: 8 / chunks, dictionary: Arc::new(dictionary) }
    };
    let groups = vec![group(Kind::Key, 1), group(Kind::Value, value_chunks)];
    DictionarySet { head_dim: geometry.head_dim, groups, provenance: BTreeMap::new() }
}

/// Levels that give more atoms to keys than to values. Their mean is `level`.
fn favouring_keys(geometry: Geometry, level: usize) -> Budget {
    Budget { keys: vec![level + 2; geometry.layers], values: vec![level - 2; geometry.layers] }
}

fn noise(shape: &[usize], size: f32) -> Table {
    let mut rng = ChaCha8Rng::seed_from_u64(shape.len() as u64);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| size * rng.random_range(-1.0f32..1.0)).collect();
    Table::new(shape, &values).expect("random numbers below 1 are finite")
}

/// The same tables in every layer.
fn everywhere(geometry: Geometry, tables: &[(&[Kind], &str, Table)]) -> CodebookSet {
    let mut set = CodebookSet::new("untrained", geometry.layers, geometry.kv_heads, geometry.head_dim);
    for layer in 0..geometry.layers {
        for (kinds, name, table) in tables {
            kinds.iter().for_each(|&kind| set.insert(layer, kind, name, table.clone()));
        }
    }
    set
}
