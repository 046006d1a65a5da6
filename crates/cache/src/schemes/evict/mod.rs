//! Eviction: tokens are deleted, and the remaining tokens are exact.
//!
//! These schemes are controls. If a measure shows no loss when most of the context is deleted, it does not measure
//! compression. And if a scheme with a window does not beat eviction at equal bits, its codes have brought nothing.
//!
//! They have their own cache and are not codecs of [`crate::coded`]. In that base, the window alone decides which
//! tokens a query of a call sees, and windows have slack. Here, deleted tokens must be hidden from later queries of the
//! same call, and their bytes must be freed immediately. Also, SnapKV makes one choice for keys and values together,
//! from scores with a scale that codecs do not know.
//!
//! - [`streaming`]: keeps the first and the last tokens (StreamingLLM).
//! - [`snapkv`]: keeps the prompt tokens that its last queries attend to, and all tokens after the prompt.

mod cache;
mod kept;
pub mod snapkv;
pub mod streaming;
