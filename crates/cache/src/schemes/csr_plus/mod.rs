//! CSR+: one atom and a quantised remainder for the keys and values of all heads of a token together.
//!
//! A token of a layer is one vector: its keys before position embedding and its values, all heads, `2 Hkv D` channels. Its code is
//!
//! 1. the number of the nearest of `N` atoms, which hold what tokens have in common: the means of heads and, in Qwen2.5, the bias of
//!    keys;
//! 2. what the atom leaves, in an orthogonal basis of the layer, learned from calibration text: each coordinate in 0 to 8 bits by the
//!    quantiser of least error for a normal variate, all of them times one gain of 8 bits.
//!
//! "Nearest" and "orthogonal" are meant in a metric in which a squared error of 1 costs 1 nat of KL divergence, by the measurements of the
//! stage `allocate`. So the bits of all coordinates of all layers are bought in one market: each goes where it lowers the sum most
//! ([`allocation`]). `csr+@B` spends `B` bits per channel.
//!
//! Values are summed over atoms and coordinates and restored once per query; keys are restored in tiles and rotated.

pub mod allocation;
mod tokens;
mod transform;

use std::collections::BTreeMap;
use std::sync::Arc;

use half::f16;
use kvcsr_codec::Kind;

use self::tokens::Joint;
use self::transform::{Tables, Transform};
use crate::coded::{CodedScheme, JointCodec};
use crate::entry::{Entry, KeysCoded, Parameter, WINDOW};
use crate::family::{Family, Plan, Read};
use crate::name::{PLUS, SchemeName};
use crate::needs::{Binding, Needs};
use crate::{CacheError, Window};

/// `csr+@B`.
pub const FAMILY: Family = Family { entries: ENTRIES, read };

/// The tables used when a name does not say.
pub const TABLES: &str = "csr-plus";
/// Atoms in natural units, means included, `(N, 2 Hkv D)`.
pub const ATOMS: &str = "atoms";
/// Weights that turn natural units into those of the metric, `(2 Hkv D)`.
pub const METRIC: &str = "metric";
/// Orthonormal rows, in the metric, of falling deviation, `(2 Hkv D, 2 Hkv D)`.
pub const BASIS: &str = "basis";
/// Standard deviation along each of them of what atoms leave, `(2 Hkv D)`.
pub const DEVIATIONS: &str = "deviations";

const ENTRIES: &[Entry] = &[Entry {
    pattern: "csr+@B",
    examples: &["csr+@2", "csr+@1", "csr+@3.5", "csr+@1.5+window(sinks=2,recent=9)"],
    summary: "One atom for a token's keys and values of all heads together, and what it leaves in B bits per channel on average, spent \
              where they lower KL most",
    citation: "",
    keys_coded: KeysCoded::BeforeRope,
    parameters: &[
        Parameter {
            name: "B",
            default: "",
            meaning: "bits per channel of a coded token, all layers on average, 0.25 to 8",
        },
        WINDOW[0],
        WINDOW[1],
        WINDOW[2],
    ],
    prefill_as_decoded: true,
}];

fn read(name: &SchemeName<'_>) -> Read {
    let Some(text) = name.head.strip_prefix(PLUS) else { return Ok(None) };
    let bits: f64 = text
        .parse()
        .ok()
        .filter(|bits| (0.25..=8.0).contains(bits))
        .ok_or_else(|| format!("`{text}` is not a number of bits per channel from 0.25 to 8, as in csr+@2"))?;
    name.arguments.only(&[])?;
    name.only_parts(&[])?;
    let (window, artefacts) = (name.window()?, name.artefacts.unwrap_or_default().to_owned());
    let needs = Needs::codebooks(KeysCoded::BeforeRope, name.artefacts.unwrap_or(TABLES));
    Ok(Some(Plan::new(needs, move |bound| Ok(Box::new(bind(&bound, bits, window, &artefacts)?)))))
}

fn bind(bound: &Binding<'_>, bits: f64, window: Window, artefacts: &str) -> Result<CodedScheme, CacheError> {
    let geometry = bound.geometry();
    let set = bound.codebooks()?;
    let tables = (0..geometry.layers)
        .map(|layer| {
            let codec = |source| CacheError::Codec { layer, kind: Kind::Key, source };
            Tables::read(set, layer, geometry).map_err(codec)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let deviations: Vec<Vec<f64>> = tables.iter().map(Tables::deviations).collect();
    let overhead: Vec<usize> = tables.iter().map(Tables::overhead_bits).collect();
    let spent = allocation::spend(&deviations, &overhead, bits).map_err(|reason| bound.unsuitable(reason))?;
    // Layers with one and the same tables and bits share what is made of them.
    let mut made: BTreeMap<(*const f16, &[u8]), Arc<Transform>> = BTreeMap::new();
    let mut transforms = Vec::with_capacity(tables.len());
    for (layer, (tables, bits)) in tables.iter().zip(&spent).enumerate() {
        let place = (tables.identity(), &bits[..]);
        let transform = match made.get(&place) {
            Some(made) => made.clone(),
            None => {
                let codec = |source| CacheError::Codec { layer, kind: Kind::Key, source };
                let transform = Arc::new(Transform::new(tables, bits, geometry).map_err(codec)?);
                made.insert(place, transform.clone());
                transform
            }
        };
        transforms.push(transform);
    }
    let bytes = made.values().map(|transform| transform.bytes()).sum();
    let stored = made.values().map(|transform| transform.stored_bytes()).sum();
    let scheme = CodedScheme::joint(bound, window, |layer| {
        let codec: Arc<dyn JointCodec> = Arc::new(Joint(transforms[layer].clone()));
        Ok(codec)
    })?;
    Ok(scheme.with_artefacts(artefacts, bytes).stored_as(stored))
}
