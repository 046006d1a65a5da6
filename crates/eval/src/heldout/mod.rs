//! Quality after compression on held-out text: perplexity, KL divergence and top-1 agreement.
//!
//! A context is prefilled once without compression. Every scheme takes over that prefill, compresses it, and reads the same
//! continuation token by token. Each token is compressed when it arrives. The tokens are read in one causal pass, which gives
//! the same result by the contract of [`kvcsr_cache::LayerCache::attend`]. The next-token distributions are compared with
//! those of the uncompressed cache at the same positions.
//!
//! Any [`Scheme`](kvcsr_cache::Scheme) can be scored, registered or your own:
//!
//! ```no_run
//! use kvcsr_cache::{Scheme, SchemeContext, registry};
//! use kvcsr_eval::heldout::{HeldoutText, Reference};
//!
//! # fn score(decoder: &kvcsr_model::Decoder, ids: Vec<u32>, own: &dyn Scheme) -> Result<(), Box<dyn std::error::Error>> {
//! let dense = registry::build("dense", &SchemeContext::new(decoder.geometry()))?;
//! let text = HeldoutText { context: ids.len() - 64, ids };
//! let reference = Reference::new(decoder, &text, 512, dense.as_ref())?;
//! let score = reference.score(decoder, own)?;
//! println!("{:.4} nats, {:.2} bits per channel", score.kl(), score.measured_bits().0);
//! # Ok(()) }
//! ```
//!
//! The mean over all positions cannot distinguish compression from deletion, because most next tokens need only the last few
//! hundred tokens. [`Prepared`] scores single long documents ([`windows`]) and separates the far tokens ([`far`]). On these,
//! deletion recovers nothing.
//!
//! The distribution after the last token of the context is not scored. It comes from the uncompressed prefill and is the same
//! for every scheme.

mod distribution;
mod document;
pub mod far;
mod reference;
mod text;
pub mod unit;
pub mod windows;

pub use distribution::Position;
pub use document::TextForm;
pub use far::{FarScore, FarTokens};
pub use reference::{ContinuationScore, Measurement, Reference};
pub use text::HeldoutText;
pub use unit::{Prepared, UnitScore};
pub use windows::{Cut, Repeat, Window};
