//! Commands beside the stages: they keep no record.

pub mod generate;
pub mod logits;
pub mod schemes;
pub mod score;
