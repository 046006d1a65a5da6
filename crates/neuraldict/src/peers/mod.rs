//! Training for other calibrated methods, one file per method. The file name is the name of the method's scheme.
//!
//! The functions take vectors as slices and return plain tables. The caller records the vectors and writes the files. Every
//! result depends only on the data and the seed.
//!
//! | method | here |
//! |---|---|
//! | CQ: weighted k-means of neighbouring channels (Zhang et al., NeurIPS 2024) | [`cq`] |
//! | CommVQ: RoPE-commuting codebooks by expectation maximisation (Li et al., ICML 2025) | [`commvq`] |
//! | SVDq: singular vectors of a layer's keys (Hong et al., 2025) | [`svdq`] |
//!
//! Lexico's dictionaries are trained with [`crate::train_group`], like all dictionaries.

pub mod commvq;
pub mod cq;
pub mod svdq;
