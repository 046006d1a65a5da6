//! The fewest bits that keys and values can take, by what is transformed together.

use anyhow::Result;
use kvcsr_report::{CeilingRow, ceiling, files};

use crate::stage::Run;
use crate::stages::ceiling::ROWS;
use crate::stages::report::section::Section;
use crate::stages::report::sheet::Sheet;

/// See the module.
pub struct Ceiling;

impl Section for Ceiling {
    fn title(&self) -> &'static str {
        "What a transform can gain"
    }

    fn stages(&self) -> &'static [&'static str] {
        &["ceiling"]
    }

    fn write(&self, run: &Run, sheet: &mut Sheet<'_>) -> Result<()> {
        let rows: Vec<CeilingRow> = files::read_jsonl(&run.stage_dir("ceiling").join(ROWS))?;
        sheet.markdown(ABOUT);
        sheet.markdown(&ceiling::markdown(&rows));
        sheet.table("ceiling", &rows)
    }
}

/// What the table says.
const ABOUT: &str = "The fewest bits per channel that Gaussian vectors with the covariance of a layer's calibration vectors take for a \
     squared error (a share of their variance), means over layers. Vectors are transformed together by channel, head, layer or two \
     layers; keys are those before position embedding; the first 4 tokens of a text are left out. Where keys and values or two layers \
     are together, an error counts relative to the variance of its part. After an atom: the bits of its index, and of what it leaves. Real codes need more bits, and structure that a covariance \
     does not show, such as what atoms find, needs fewer.";
