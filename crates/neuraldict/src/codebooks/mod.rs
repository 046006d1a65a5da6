//! What other calibrated methods learn: the codebooks of CQ and CommVQ, and SVDq's basis.
//!
//! Vectors come as slices and leave as plain tables; who records the vectors, and in which file tables lie, is the
//! caller's business. Every result depends on the data and the seed alone.
//!
//! | method | here |
//! |---|---|
//! | CQ: weighted k-means of neighbouring channels (Zhang et al., NeurIPS 2024) | [`coupled`] |
//! | CommVQ: RoPE-commuting codebooks by expectation maximisation (Li et al., ICML 2025) | [`commutative`] |
//! | SVDq: singular vectors of a layer's keys (Hong et al., 2025) | [`basis`] |

pub mod basis;
pub mod commutative;
pub mod coupled;
