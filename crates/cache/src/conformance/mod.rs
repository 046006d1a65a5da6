//! What every cache must do: the contract of [`LayerCache`](crate::LayerCache) as checks. They also work for your own
//! scheme.
//!
//! [`check`] runs all checks at a few shapes, and returns one [`Outcome`] per check. A [`Probe`] runs single checks at
//! shapes of your choice. The tests of this crate run the same checks over every registered scheme.
//!
//! ```
//! use candle_core::DType;
//! use kvcsr_cache::conformance::{self, Promises};
//! use kvcsr_cache::{DenseScheme, Geometry, Scheme};
//!
//! let build = |_: Geometry| Ok(Box::new(DenseScheme::new(DType::F32)) as Box<dyn Scheme>);
//! // An exact cache stores any number, NaN too.
//! let promises = Promises { refuses_not_finite: false, ..Promises::default() };
//! for outcome in conformance::check(build, promises) {
//!     assert!(outcome.passed(), "{outcome}");
//! }
//! ```

mod inputs;
mod probe;
#[cfg(test)]
mod tests;

use std::fmt::{self, Display};

use candle_core::Device;

pub use self::inputs::{Inputs, MAX_POSITIONS, largest_difference, noise, tensor};
pub use self::probe::Probe;
use crate::{CacheError, Geometry, Reach, Scheme};

/// What a scheme promises in addition to what all schemes must do, and how precisely. The defaults fit a scheme that
/// treats a prompt like any other tokens and sums in f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Promises {
    /// A prefill that is taken over leaves the same state as decoding the same tokens one by one.
    pub prefill_as_decoded: bool,
    /// The tokens of the first call are the prompt, and are treated differently. So a prompt in pieces differs from the
    /// whole.
    pub first_call_is_the_prompt: bool,
    /// NaN and infinite keys and values are refused. A scheme that stores any number unchanged does not need to refuse
    /// them.
    pub refuses_not_finite: bool,
    /// Padding that changes in the middle of a text is refused.
    pub refuses_changed_padding: bool,
    /// The largest allowed difference between outputs that differ only by the order of sums.
    pub rounding: f32,
    /// The same after a prefill was taken over.
    pub prefill_rounding: f32,
    /// The same for padded rows compared with the rows alone. `None` if codes depend on the position of a token in the
    /// batch.
    pub padded_rounding: Option<f32>,
}

impl Default for Promises {
    fn default() -> Self {
        Self {
            prefill_as_decoded: true,
            first_call_is_the_prompt: false,
            refuses_not_finite: true,
            refuses_changed_padding: false,
            rounding: 5e-6,
            prefill_rounding: 5e-6,
            padded_rounding: Some(1e-5),
        }
    }
}

/// The shapes at which a check runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Rows of the batch (`B`).
    pub batch: usize,
    /// Query heads (`H`).
    pub heads: usize,
    /// Key-value heads (`Hkv`).
    pub kv_heads: usize,
    /// Channels of a head (`D`).
    pub head_dim: usize,
}

impl Setting {
    /// The geometry of a model with this number of layers.
    pub fn geometry(self, layers: usize) -> Geometry {
        Geometry { layers, kv_heads: self.kv_heads, head_dim: self.head_dim }
    }
}

impl Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch, heads, kv_heads, head_dim } = self;
        write!(f, "batch {batch}, {heads} query and {kv_heads} key-value heads of {head_dim} channels")
    }
}

/// A violation of the contract.
#[derive(Debug, thiserror::Error)]
#[error("{scheme} ({setting}): {reason}")]
pub struct Violation {
    /// The scheme.
    pub scheme: String,
    /// The shapes.
    pub setting: Setting,
    /// What was expected and what was found.
    pub reason: String,
}

/// One check of [`check`], and its result.
#[derive(Debug)]
pub struct Outcome {
    /// What was checked, as a sentence.
    pub check: &'static str,
    /// The first failure, with the setting at which it occurred.
    pub result: Result<(), Violation>,
}

impl Outcome {
    /// Whether the scheme passed this check.
    pub fn passed(&self) -> bool {
        self.result.is_ok()
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.result {
            Ok(()) => write!(f, "pass  {}", self.check),
            Err(violation) => write!(f, "FAIL  {}: {violation}", self.check),
        }
    }
}

/// The shapes of [`check`]: multi-head, grouped-query and multi-query attention, two head sizes, and one or more texts.
const SETTINGS: [Setting; 3] = [
    Setting { batch: 1, heads: 4, kv_heads: 4, head_dim: 64 },
    Setting { batch: 3, heads: 6, kv_heads: 2, head_dim: 64 },
    Setting { batch: 2, heads: 4, kv_heads: 1, head_dim: 128 },
];

/// Runs every check on schemes from `build`, which makes a new scheme for each setting. It takes seconds.
pub fn check(build: impl Fn(Geometry) -> Result<Box<dyn Scheme>, CacheError>, promises: Promises) -> Vec<Outcome> {
    check_on(&Device::Cpu, build, promises)
}

/// The same as [`check`], with the model on a device.
pub fn check_on(
    device: &Device,
    build: impl Fn(Geometry) -> Result<Box<dyn Scheme>, CacheError>,
    promises: Promises,
) -> Vec<Outcome> {
    type Check = fn(&Probe<'_>) -> Result<(), Violation>;
    const PADDING: [usize; 3] = [11, 0, 39];
    let checks: [(&'static str, Check); 9] = [
        ("tokens in pieces attend as in one call, and clear() forgets them", |p| p.pieces(&[0, 1, 2, 33, 34, 35])),
        ("the same over many tokens", |p| p.pieces(&[0, 31, 32, 33, 127, 128, 129, 130, 200])),
        ("a prefill is taken over", |p| [1, 31, 32, 129].iter().try_for_each(|&n| p.takes_over(n))),
        ("after a prefill, pieces attend as one call", |p| {
            p.pieces_after_prefill(20, &[&[0, 1, 2, 3, 20, 25], &[0, 12, 25]])
        }),
        ("forks of a prefill do not see each other", |p| p.forks(150)),
        ("padded rows attend as they do alone", |p| {
            [Reach::Full, Reach::Sliding(9)]
                .into_iter()
                .try_for_each(|reach| p.padded(&PADDING[..p.setting().batch], &[0, 3, 38, 39, 40], reach))
        }),
        ("after an error a cache is as it was", |p| p.errors(139)),
        ("vectors of any size are kept", |p| p.any_size(130)),
        ("tokens in pieces attend as in one call within a sliding window, which bounds the bytes", |p| {
            p.pieces(&[0, 200, 201, 202, 333, 400, 401])?;
            p.keeps_its_window(1000)
        }),
    ];
    let at = |setting: Setting, reach: Reach, check: Check| {
        let violation = |error: CacheError| Violation {
            scheme: "the scheme".to_owned(),
            setting,
            reason: format!("it could not be built: {error}"),
        };
        let scheme = build(setting.geometry(2)).map_err(violation)?;
        let probe = Probe::new(scheme.as_ref(), promises, setting).map_err(violation)?.with_reach(reach);
        let probe = probe.on(device).map_err(violation)?;
        check(&probe)
    };
    let last = checks.len() - 1;
    checks
        .into_iter()
        .enumerate()
        .map(|(i, (name, check))| {
            let reach = if i == last { Reach::Sliding(40) } else { Reach::Full };
            let result = SETTINGS.into_iter().try_for_each(|setting| at(setting, reach, check));
            Outcome { check: name, result }
        })
        .collect()
}
