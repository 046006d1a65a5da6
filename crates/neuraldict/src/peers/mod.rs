//! What other calibrated methods learn, one file per method under the name that its scheme has.
//!
//! Vectors come as slices and leave as plain tables; who records the vectors, and in which file tables lie, is the
//! caller's business. Every result depends on the data and the seed alone.
//!
//! | method | here |
//! |---|---|
//! | CQ: weighted k-means of neighbouring channels (Zhang et al., NeurIPS 2024) | [`cq`] |
//! | CommVQ: RoPE-commuting codebooks by expectation maximisation (Li et al., ICML 2025) | [`commvq`] |
//! | SVDq: singular vectors of a layer's keys (Hong et al., 2025) | [`svdq`] |
//!
//! Lexico's dictionaries are trained by [`crate::train_group`] like any other.

pub mod commvq;
pub mod cq;
pub mod svdq;
