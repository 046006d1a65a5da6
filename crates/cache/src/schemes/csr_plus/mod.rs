//! CSR+: one atom and a quantised remainder for the keys and values of all heads of a token together.
//!
//! A token of a layer is one vector with `2 Hkv D` channels: its keys before position embedding and its values, of all
//! heads. Its code consists of
//!
//! 1. the index of the nearest of `N` atoms. Atoms hold what tokens have in common: the means of heads and, in Qwen2.5,
//!    the bias of keys;
//! 2. the remainder after the atom is subtracted, in an orthogonal basis of the layer that is learned from calibration
//!    text. Each coordinate has 0 to 8 bits, with the quantiser of least error for a normal variate. All coordinates
//!    are multiplied by one gain of 8 bits.
//!
//! "Nearest" and "orthogonal" refer to a metric in which a squared error of 1 costs 1 nat of KL divergence. The stage
//! `allocate` measures it. So the bits of all coordinates of all layers can be paid from one budget: each bit goes
//! where it lowers the sum most ([`allocation`]). `csr+@B` spends `B` bits per channel on everything at a context of
//! 4096 tokens, including the windows around its codes. The default windows are 4 exact sinks and 32 exact recent
//! tokens. Below 1.75 bits, 4 bits are better than the codes. Then the default is 4 exact sinks, 16 exact recent tokens
//! and 112 tokens before them at 4 bits, if `D` is a multiple of 32.
//!
//! A [plan](BitPlan) that somebody wrote can set the bits instead: `csr+@B(plan=NAME)`.
//!
//! Values are summed over atoms and coordinates, and restored once per query. Keys are restored in tiles and rotated.

pub mod allocation;
mod plan;
pub mod rest;
mod tensors;
mod tokens;
mod transform;
mod unpack;

use std::collections::BTreeMap;
use std::sync::Arc;

use half::f16;
use kvcsr_codec::CodebookSet;

pub use self::plan::{BitPlan, Outcome};
use self::tokens::Joint;
use self::transform::{Tables, Transform};
use crate::coded::blocks::BLOCK;
use crate::coded::{CodedScheme, JointCodec, window_bytes};
use crate::entry::{Entry, KeysCoded, Parameter};
use crate::family::{Family, Plan, Read};
use crate::name::{PLUS, SchemeName, is_plain};
use crate::needs::{Binding, Needs};
use crate::{CacheError, Geometry, Reach, Window};

/// `csr+@B`.
pub const FAMILY: Family = Family { entries: ENTRIES, read };

/// The default windows around the codes.
pub const AROUND: Window = Window { sinks: 4, recent: 32, graded: 0 };
/// The default windows of schemes with fewer than [`FEW`] bits.
const GRADED: Window = Window { sinks: 4, recent: 16, graded: 112 };
/// From this number of bits on, a token's code is better than the 4 bits of a graded window.
const FEW: f64 = 1.75;
/// The default context: the number of tokens for which the bits of the windows are counted.
const CONTEXT: usize = 4096;

/// The tables that are used if a name does not give any.
pub const TABLES: &str = "csr-plus";
/// Atoms in natural units, with the means, `(N, 2 Hkv D)`.
pub const ATOMS: &str = "atoms";
/// Weights that convert natural units to units of the metric, `(2 Hkv D)`.
pub const METRIC: &str = "metric";
/// Rows that are orthonormal in the metric, in order of falling deviation, `(2 Hkv D, 2 Hkv D)`.
pub const BASIS: &str = "basis";
/// The standard deviation of the remainder along each of these rows, `(2 Hkv D)`.
pub const DEVIATIONS: &str = "deviations";

const ENTRIES: &[Entry] = &[Entry {
    pattern: "csr+@B",
    examples: &[
        "csr+@2",
        "csr+@1",
        "csr+@3.5+window(sinks=0,recent=0)",
        "csr+@1.5(context=512)+window(sinks=2,recent=9)",
    ],
    summary: "One atom for all keys and values of a token; the rest in bits that go where they lower KL most. B counts everything, \
              with 4 sinks and a short window in f16",
    citation: "",
    keys_coded: KeysCoded::BeforeRope,
    parameters: &[
        Parameter {
            name: "B",
            default: "",
            meaning: "bits per channel with everything that a sequence takes, 0.25 to 8",
        },
        Parameter {
            name: "context",
            default: "4096",
            meaning: "tokens of the sequence for which B counts the windows",
        },
        Parameter {
            name: "plan",
            default: "",
            meaning: "a file of bits by layer to use instead of those that the tables buy; `kvcsr plan` writes one",
        },
        Parameter { name: "+window(sinks)", default: "4", meaning: "first tokens kept in f16" },
        Parameter { name: "+window(recent)", default: "32", meaning: "last tokens kept in f16; 16 below 1.75 bits" },
        Parameter {
            name: "+window(graded)",
            default: "0",
            meaning: "tokens before those kept in 4 bits beside their codes; 112 below 1.75 bits",
        },
    ],
    prefill_as_decoded: true,
}];

/// The settings that a name gives.
#[derive(Clone, Copy)]
struct Asked {
    bits: f64,
    context: usize,
    window: Option<Window>,
}

impl Asked {
    /// The windows around the codes.
    fn window(&self, geometry: Geometry) -> Window {
        let graded = self.bits < FEW && geometry.head_dim.is_multiple_of(BLOCK);
        self.window.unwrap_or(if graded { GRADED } else { AROUND })
    }

    /// The bits of all coordinates. The windows are paid first.
    fn spend(&self, name: &str, tables: &[Tables<'_>], geometry: Geometry) -> Result<Vec<Vec<u8>>, CacheError> {
        let channels = geometry.kv_heads * geometry.head_dim;
        let around = window_bytes(self.window(geometry), self.context, channels, Reach::Full);
        let around = 8.0 * around as f64 / (self.context * channels) as f64;
        let deviations: Vec<Vec<f64>> = tables.iter().map(Tables::deviations).collect();
        let overhead: Vec<usize> = tables.iter().map(Tables::overhead_bits).collect();
        allocation::spend(&deviations, &overhead, self.bits - around)
            .map_err(|reason| CacheError::Unsuitable { scheme: name.to_owned(), reason })
    }
}

/// The loss that the tables `set` predict for `csr+@bits` at `context` tokens: KL in nats per token, if every token
/// that is read is coded.
///
/// # Errors
/// [`CacheError::Codec`] if the tables do not belong to this model. [`CacheError::Unsuitable`] if the windows leave too
/// few bits.
pub fn predicted_loss(set: &CodebookSet, geometry: Geometry, bits: f64, context: usize) -> Result<f64, CacheError> {
    let asked = Asked { bits, context, window: None };
    let tables = Tables::all(set, geometry)?;
    let spent = asked.spend(&format!("{PLUS}{bits}"), &tables, geometry)?;
    Ok(tables.iter().zip(&spent).map(|(tables, bits)| allocation::loss(&tables.deviations(), bits)).sum())
}

fn read(name: &SchemeName<'_>) -> Read {
    let Some(text) = name.head.strip_prefix(PLUS) else { return Ok(None) };
    let bits: f64 = text
        .parse()
        .ok()
        .filter(|bits| (0.25..=8.0).contains(bits))
        .ok_or_else(|| format!("`{text}` is not a number of bits per channel from 0.25 to 8, as in csr+@2"))?;
    name.arguments.only(&["context", "plan"])?;
    let context = name.arguments.tokens("context", CONTEXT)?;
    if context == 0 {
        return Err("context: at least one token".to_owned());
    }
    name.only_parts(&[])?;
    let window = name.part("window").map(|_| name.window()).transpose()?;
    let plan = name.arguments.get("plan").map(str::to_owned);
    if let Some(plan) = plan.as_deref().filter(|plan| !is_plain(plan)) {
        return Err(format!("plan: `{plan}` is not the name of a plan: letters, digits and ._+-"));
    }
    if plan.is_some() && (name.arguments.get("context").is_some() || window.is_some()) {
        return Err("plan: the plan says the context and the windows".to_owned());
    }
    let artefacts = name.artefacts.unwrap_or_default().to_owned();
    let needs = Needs { plan, ..Needs::codebooks(KeysCoded::BeforeRope, name.artefacts.unwrap_or(TABLES)) };
    let asked = Asked { bits, context, window };
    Ok(Some(Plan::new(needs, move |bound| Ok(Box::new(bind(&bound, asked, &artefacts)?)))))
}

fn bind(bound: &Binding<'_>, asked: Asked, artefacts: &str) -> Result<CodedScheme, CacheError> {
    let geometry = bound.geometry();
    let tables = Tables::all(bound.codebooks()?, geometry)?;
    let (window, spent) = match bound.plan()? {
        None => (asked.window(geometry), asked.spend(bound.scheme, &tables, geometry)?),
        Some(plan) => (plan.window(), plan.within(asked.bits, &tables, geometry).map_err(|r| bound.unsuitable(r))?),
    };
    // Layers with the same tables and bits share what is computed from them.
    let mut made: BTreeMap<(*const f16, &[u8]), Arc<Transform>> = BTreeMap::new();
    let mut transforms = Vec::with_capacity(tables.len());
    for (tables, bits) in tables.iter().zip(&spent) {
        let place = (tables.identity(), &bits[..]);
        let transform = match made.get(&place) {
            Some(made) => made.clone(),
            None => {
                let transform = Arc::new(Transform::new(tables, bits, geometry));
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::Device;
    use kvcsr_codec::{Kind, Table};

    use super::*;
    use crate::conformance::{self, Inputs, Setting};
    use crate::{Pattern, Rotary, Scheme, SchemeContext, registry};

    fn bound<R>(cx: &SchemeContext, f: impl FnOnce(&Binding<'_>) -> R) -> R {
        let needs = Needs::codebooks(KeysCoded::BeforeRope, TABLES);
        f(&Binding::new("csr+@2", &needs, cx).unwrap())
    }

    #[test]
    fn values_summed_over_atoms_and_coordinates_are_those_restored() {
        let setting = Setting { batch: 2, heads: 6, kv_heads: 2, head_dim: 64 };
        let cx = SchemeContext::untrained(setting.geometry(1), 16);
        let (x, rotary) = (Inputs::random(setting, 300).unwrap(), Rotary::new(64, 1e4, 512, &Device::Cpu).unwrap());
        for bits in [0.75, 2.0, 4.0] {
            let scheme = || {
                bound(&cx, |bound| {
                    bind(bound, Asked { bits, context: 4096, window: Some(Window::default()) }, "").unwrap()
                })
            };
            let last = |scheme: &CodedScheme| {
                let mut cache = scheme.empty(0).unwrap();
                x.feed(cache.as_mut(), &rotary, Pattern::default(), 0..290).unwrap();
                x.feed(cache.as_mut(), &rotary, Pattern::default(), 290..300).unwrap()
            };
            let off = conformance::largest_difference(&last(&scheme()), &last(&scheme().restoring())).unwrap();
            assert!(off < 2e-5, "{bits} bits: {off}");
        }
    }

    #[test]
    fn parts_of_the_tokens_give_what_one_pass_gives() {
        let setting = Setting { batch: 2, heads: 6, kv_heads: 2, head_dim: 64 };
        let cx = SchemeContext::untrained(setting.geometry(1), 16);
        let (x, rotary) = (Inputs::random(setting, 900).unwrap(), Rotary::new(64, 1e4, 1024, &Device::Cpu).unwrap());
        for name in ["csr+@2", "csr+@2+window(sinks=0,recent=0)"] {
            let last = |first: usize| {
                let mut cache = registry::build(name, &cx).unwrap().empty(0).unwrap();
                x.feed(cache.as_mut(), &rotary, Pattern::default(), 0..first).unwrap();
                let out = x.feed(cache.as_mut(), &rotary, Pattern::default(), first..900).unwrap();
                out.narrow(2, 895 - first, 5).unwrap()
            };
            // 15 query rows, which are split into parts, and 300 query rows, which are not.
            let off = conformance::largest_difference(&last(895), &last(800)).unwrap();
            assert!(off < 5e-6, "{name}: {off}");
        }
    }

    #[test]
    fn a_bias_that_atoms_hold_costs_graded_tokens_no_precision() {
        let (setting, bias) = (Setting { batch: 1, heads: 4, kv_heads: 2, head_dim: 64 }, 80.0);
        let (n, rotary) = (2 * 2 * 64, Rotary::new(64, 1e4, 512, &Device::Cpu).unwrap());
        let biased = |channel: usize| channel < n / 2 && channel % 64 == 5;
        let error = |bias: f32| {
            let mut x = Inputs::random(setting, 130).unwrap();
            let shift: Vec<f32> = (0..64).map(|channel| if biased(channel) { bias } else { 0.0 }).collect();
            x.k = x.k.broadcast_add(&candle_core::Tensor::new(&shift[..], &Device::Cpu).unwrap()).unwrap();
            let atoms: Vec<f32> =
                (0..3 * n).map(|at| 0.1 * (at % 7) as f32 - 0.3 + if biased(at % n) { bias } else { 0.0 }).collect();
            let identity: Vec<f32> = (0..n * n).map(|at| if at / n == at % n { 1.0 } else { 0.0 }).collect();
            let mut set = CodebookSet::new(TABLES, 1, 2, 64);
            for (name, shape, values) in [
                (ATOMS, &[3, n][..], &atoms[..]),
                (METRIC, &[n], &vec![1.0; n]),
                (BASIS, &[n, n], &identity),
                (DEVIATIONS, &[n], &vec![1.0; n]),
            ] {
                set.insert(0, Kind::Key, name, Table::new(shape, values).unwrap());
            }
            let cx = SchemeContext::new(setting.geometry(1)).with_codebooks(TABLES, set);
            // 4 sinks, then graded tokens, then exact tokens. No token is seen in its coded form.
            let last = |name: &str| {
                let mut cache = registry::build(name, &cx).unwrap().empty(0).unwrap();
                x.feed(cache.as_mut(), &rotary, Pattern::default(), 0..129).unwrap();
                x.feed(cache.as_mut(), &rotary, Pattern::default(), 129..130).unwrap()
            };
            conformance::largest_difference(&last("dense"), &last("csr+@1")).unwrap()
        };
        let (plain, biased) = (error(0.0), error(bias));
        assert!(biased < 2.0 * plain, "{plain}, with a bias {biased}");
    }

    #[test]
    fn the_bits_of_a_name_are_what_a_sequence_of_its_context_takes() {
        let geometry = Geometry { layers: 1, kv_heads: 3, head_dim: 64 };
        let cx = SchemeContext::untrained(geometry, 16);
        let setting = Setting { batch: 1, heads: 3, kv_heads: 3, head_dim: 64 };
        let (x, rotary) = (Inputs::random(setting, 1024).unwrap(), Rotary::identity(1024));
        for (bits, name) in
            [(1.0, "csr+@1(context=1024)"), (2.0, "csr+@2(context=1024)"), (3.5, "csr+@3.5(context=1024)")]
        {
            let cache = registry::build(name, &cx).unwrap().after_prefill(0, &x.k, &x.v, &rotary).unwrap();
            let taken = 8.0 * cache.footprint().total() as f64 / (1024 * 2 * 3 * 64) as f64;
            // The at most 36 exact tokens have no codes, and this space stays unused.
            let least = bits * (1.0 - 36.0 / 1024.0) - 0.03;
            assert!((least..bits + 0.01).contains(&taken), "{name}: {taken}");
        }
        let refused = registry::build("csr+@0.3(context=64)", &cx).map(drop).unwrap_err().to_string();
        assert!(refused.contains("are left for codes"), "{refused}");
    }

    #[test]
    fn tables_predict_less_loss_from_more_bits() {
        let geometry = Geometry { layers: 2, kv_heads: 2, head_dim: 64 };
        let cx = SchemeContext::untrained(geometry, 16);
        let set = cx.codebooks(TABLES, "csr+@2").unwrap();
        let loss = |bits: f64| predicted_loss(set, geometry, bits, 4096).unwrap();
        // Coordinates with variance 1 / i², for i from 1, in both layers.
        let all: f64 = 2.0 * (1..=256).map(|i| 1.0 / f64::from(i * i)).sum::<f64>();
        assert!(0.0 < loss(4.0) && loss(4.0) < 0.2 * loss(1.0) && loss(1.0) < 0.2 * all, "{all} {}", loss(1.0));
        assert!(matches!(predicted_loss(set, geometry, 1.0, 64), Err(CacheError::Unsuitable { .. })));
    }

    #[test]
    fn tables_that_cannot_be_right_are_refused_by_name() {
        let geometry = Geometry { layers: 1, kv_heads: 1, head_dim: 2 };
        let build = |atoms: usize, metric: [f32; 4], deviations: [f32; 4]| {
            let mut set = CodebookSet::new(TABLES, 1, 1, 2);
            let identity: Vec<f32> = (0..16).map(|at| if at % 5 == 0 { 1.0 } else { 0.0 }).collect();
            for (name, shape, values) in [
                (ATOMS, &[atoms, 4][..], &[0.0; 4][..4 * atoms]),
                (METRIC, &[4], &metric),
                (BASIS, &[4, 4], &identity),
                (DEVIATIONS, &[4], &deviations),
            ] {
                set.insert(0, Kind::Key, name, Table::new(shape, values).unwrap());
            }
            let cx = SchemeContext::new(geometry).with_codebooks(TABLES, set);
            registry::build("csr+@8+window(sinks=0,recent=0)", &cx).map(drop).map_err(|error| error.to_string())
        };
        let falling = [4.0, 3.0, 2.0, 1.0];
        assert!(build(1, [1.0; 4], falling).is_ok());
        assert!(build(0, [1.0; 4], falling).unwrap_err().contains("`atoms`"));
        let of = |metric, deviations| build(1, metric, deviations).unwrap_err();
        assert!(of([1.0, 0.0, 1.0, 1.0], falling).contains("`metric`"), "{}", of([1.0, 0.0, 1.0, 1.0], falling));
        assert!(of([1.0; 4], [1.0, 2.0, 0.0, 0.0]).contains("`deviations`"));
        assert!(of([1.0; 4], [1.0, 0.5, 0.0, -1.0]).contains("`deviations`"));
        // Without the tables, the error says how to make them.
        let missing = registry::build("csr+@2", &SchemeContext::new(geometry)).map(drop).unwrap_err().to_string();
        assert!(missing.contains(TABLES), "{missing}");
    }
}
