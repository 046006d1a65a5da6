//! The figures, one per file. Each is a unit struct that implements [`Figure`](crate::save::Figure).

pub mod atom_usage;
pub mod coefficient_histogram;
pub mod energy_left;
pub mod footprint_length;
pub mod frontier;
pub mod key_bias;
pub mod layer_divergence;
pub mod layer_error;
pub mod logit_correlation;
pub mod memory_length;
pub mod prompt_scatter;
pub mod quality_bits;
pub mod retrieval_grid;
pub mod rotary_scatter;
pub mod scatter;
pub mod sparsity_error;
pub mod sparsity_pattern;
pub mod sweep_quality;
pub mod time_length;
pub mod training_loss;

pub use atom_usage::AtomUsage;
pub use coefficient_histogram::CoefficientHistogram;
pub use energy_left::EnergyLeft;
pub use footprint_length::FootprintLength;
pub use frontier::Frontier;
pub use key_bias::KeyBias;
pub use layer_divergence::LayerDivergence;
pub use layer_error::LayerError;
pub use logit_correlation::LogitCorrelation;
pub use memory_length::MemoryLength;
pub use prompt_scatter::PromptScatter;
pub use quality_bits::QualityBits;
pub use retrieval_grid::RetrievalGrid;
pub use rotary_scatter::RotaryScatter;
pub use sparsity_error::SparsityError;
pub use sparsity_pattern::SparsityPattern;
pub use sweep_quality::SweepQuality;
pub use time_length::TimeLength;
pub use training_loss::TrainingLoss;

use crate::error::ReportError;
use crate::grouping::distinct;

/// The title of all axes of relative reconstruction error.
const RELATIVE_ERROR: &str = "relative squared error";

/// Joins names to `a`, `a and b`, or `a, b and c`.
pub(crate) fn listed(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [only] => only.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

/// The value of `field`, a layer or a head, that all rows have. `what` is the figure, and `expected` says which rows it needs.
///
/// # Errors
/// [`ReportError::Empty`] without rows, [`ReportError::Mixed`] if rows have several values.
fn shared<R>(
    what: &'static str,
    expected: &'static str,
    rows: &[R],
    field: &'static str,
    value: fn(&R) -> usize,
) -> Result<usize, ReportError> {
    let first = rows.first().map(value).ok_or(ReportError::Empty { what, expected })?;
    match rows.iter().map(value).find(|&other| other != first) {
        Some(other) => Err(ReportError::Mixed { what, field, first: first.to_string(), second: other.to_string() }),
        None => Ok(first),
    }
}
