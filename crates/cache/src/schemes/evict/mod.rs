//! Eviction: tokens are deleted, and what is kept is exact.
//!
//! These are controls. A measure that a cache passes with most of its context deleted measures something else than
//! compression, and a windowed scheme that does not beat eviction at equal bits has gained nothing from its codes.
//!
//! They have a cache of their own and are no codecs of [`crate::coded`]: there the tokens that a query of a call sees are decided by
//! its window alone, and windows have slack, while here deleted tokens must be hidden from later queries of the same call and their
//! bytes gone at once. What SnapKV keeps is also one choice for keys and values, made from scores whose scale codecs are not told.
//!
//! - [`streaming`]: the first tokens and the last ones, StreamingLLM.
//! - [`snapkv`]: the tokens of a prompt that its last queries attend to, and everything after them.

mod cache;
mod kept;
pub mod snapkv;
pub mod streaming;
