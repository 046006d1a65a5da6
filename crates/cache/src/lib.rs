//! The interface between a decoder and its key-value cache, and all schemes that implement it. This interface is called
//! the *seam*.
//!
//! If a cache can only *append*, and then returns keys and values, it must decompress everything at each step. Here the
//! seam is one object-safe call, [`LayerCache::attend`]. The decoder passes queries, keys and values *before* position
//! embedding. The scheme decides what to store and how to attend.
//!
//! | paper | code | meaning |
//! |---|---|---|
//! | `s` | `sparsity` | atoms per coded vector (MP level) |
//! | `s_n` | `chunks` | pieces that a head vector is cut into; each piece is coded separately |
//! | `D`, `N` | [`kvcsr_codec::Dictionary`], `len()` | dictionary and its number of atoms |
//! | `d_h` | `head_dim` (`D` in shapes) | channels per head |
//! | online part, sampling, Guard | [`OnlinePart`], [`Sampler`] | atoms taken from the prompt itself |
//!
//! Shapes use the same letters everywhere: `B` batch, `H` query heads, `Hkv` key-value heads, `T` new tokens, `S`
//! tokens seen so far, `D` head_dim.
//!
//! During prefill, all schemes attend exactly. So one prefill can be used for every scheme, see [`PrefillSnapshot`] and
//! [`Scheme::after_prefill`].
//!
//! # Where things are
//!
//! | | |
//! |---|---|
//! | the seam | [`LayerCache`], [`Scheme`], [`AttendCx`] |
//! | the methods, one per file or folder | [`schemes`] |
//! | the cache that all methods that code tokens share: padding, sinks, windows, buffers, attention | [`coded`] |
//! | how a method is composed of stages | [`coded::stages`] |
//! | the same codes as tensors, for a GPU | [`tensor`] |
//! | prompts as files | [`schemes::csr_plus::rest`] |
//! | names: grammar, entries, what a scheme needs | [`name`], [`Entry`], [`Needs`] |
//! | all schemes by name | [`registry`] |
//! | what every cache must do | [`conformance`] |
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use kvcsr_cache::{AttendCx, Geometry, LayerCache, Pattern, Rotary, Scheme, SchemeContext, registry};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let geometry = Geometry { layers: 1, kv_heads: 1, head_dim: 4 };
//! let dense = registry::build("dense", &SchemeContext::new(geometry))?;
//! let mut cache = dense.empty(0)?;
//! let rotary = Rotary::new(4, 10_000.0, 16, &Device::Cpu)?;
//! let cx = AttendCx { start: 0, rotary: &rotary, scale: 0.5, pattern: Pattern::default() };
//! let x = Tensor::ones((1, 1, 3, 4), candle_core::DType::F32, &Device::Cpu)?;
//! let out = cache.attend(&x, &x, &x, &cx)?;
//! assert_eq!((out.dims(), cache.len()), (&[1, 1, 3, 4][..], 3));
//! # Ok(()) }
//! ```

pub mod attention;
mod budget;
pub mod coded;
pub mod conformance;
mod context;
mod entry;
mod error;
mod family;
mod mass;
pub mod name;
mod needs;
mod pattern;
mod recording;
pub mod registry;
mod rotary;
pub mod schemes;
mod seam;
mod shadow;
mod snapshot;
pub mod tensor;
mod untrained;
mod window;

pub use budget::{Budget, Budgets, Sensitivity, allocate};
pub use context::SchemeContext;
pub use entry::{Entry, KeysCoded, Parameter};
pub use error::CacheError;
pub use family::{Family, Plan, Read};
pub use mass::{AttentionMass, Mass};
pub use needs::{Binding, Needs};
pub use pattern::{Alibi, Bias, Padding, Pattern, Reach};
pub use recording::{Recorded, Recording};
pub use rotary::Rotary;
pub use schemes::csr::{AttentionPath, CsrOptions, CsrShape, KindShape, OnlinePart, Prefill, Sampler, Share};
pub use schemes::dense::{DenseCache, DenseScheme};
pub use seam::{AttendCx, Geometry, LayerCache, OnTensors, Scheme};
pub use shadow::Shadow;
pub use snapshot::{LastQueries, PrefillSnapshot};
pub use window::Window;
