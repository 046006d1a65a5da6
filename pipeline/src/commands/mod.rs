//! Commands that are not stages. They write no manifest.

pub mod bench;
pub mod diff_runs;
pub mod draw;
pub mod fetch;
pub mod footprint;
pub mod generate;
pub mod gpu_check;
pub mod keep;
mod kept_prompt;
pub mod logits;
pub mod plan;
pub mod schemes;
pub mod score;
pub mod stage_times;
pub mod sweep;
