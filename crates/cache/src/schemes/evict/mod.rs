//! Eviction: tokens are deleted, and what is kept is exact.
//!
//! These are controls. A measure that a cache passes with most of its context deleted measures something else than
//! compression, and a windowed scheme that does not beat eviction at equal bits has gained nothing from its codes.
//!
//! - [`streaming`]: the first tokens and the last ones, StreamingLLM.
//! - [`snapkv`]: the tokens of a prompt that its last queries attend to, and everything after them.

mod cache;
mod kept;
pub mod snapkv;
pub mod streaming;
