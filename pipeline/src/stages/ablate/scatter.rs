//! The points of Figures 2a and 2b, from the calibration vectors.

use anyhow::Result;
use kvcsr_lab::planes;
use kvcsr_report::ScatterRow;

use crate::stage::Run;
use crate::stages::inputs::open_model;

/// Figure 2a.
pub fn prompts(run: &Run, layers: usize) -> Result<Vec<ScatterRow>> {
    Ok(planes::prompts(&run.stage_dir("calibrate"), layers, run.config.calibrate.sequence)?)
}

/// Figure 2b.
pub fn positions(run: &Run, layers: usize) -> Result<Vec<ScatterRow>> {
    let (decoder, _) = open_model(run)?;
    Ok(planes::positions(&run.stage_dir("calibrate"), layers, run.config.calibrate.sequence, decoder.rotary())?)
}
