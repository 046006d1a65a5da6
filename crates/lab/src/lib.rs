//! Functions that need a model and that notebooks share, so that the cells of a notebook stay short.
//!
//! | module | what |
//! |---|---|
//! | [`places`] | where downloads are |
//! | [`documents`] | the long documents on which schemes are scored |
//! | [`model`] | the embedded model, opened from the downloads |
//! | [`prompt`] | a text with its exact prefill: its vectors, their codes, and the tokens after it |
//! | [`trial`] | a registered scheme or your own on a prompt: quality, bits, bytes, error of each layer |
//! | [`planes`] | vectors in the plane of their principal components: the paper's Figure 2 |
//! | [`rope`] | keys after position embedding |
//! | [`bias`] | how long keys are with and without the bias of their projection |
//! | [`logits`] | what schemes do to the keys of each layer, and to the logits of attention |
//! | [`transform`] | what atoms, and what principal components, leave of a layer's vectors |
//!
//! `use kvcsr_lab::*;` also imports everything in [`kvcsr_report::notebook`], and [`Shown`], so that a notebook shows
//! the last value of a cell.
//!
//! ```no_run
//! use kvcsr_lab::*;
//!
//! # fn main() -> Outcome<()> {
//! let model = Model::embedded()?;
//! let prompt = model.prompt("A text of a few hundred words ...", 64)?;
//! let schemes = schemes(&run_folder()?, &model, &["dense-f16", "csr-8", "kivi-2"])?;
//! println!("{}", trials(&model, &prompt, &schemes)?.html());
//! # Ok(()) }
//! ```

#![deny(missing_docs)]

pub mod bias;
pub mod documents;
pub mod error;
pub mod logits;
pub mod model;
pub mod places;
pub mod planes;
pub mod prompt;
pub mod rope;
#[cfg(test)]
mod testing;
pub mod transform;
pub mod trial;

pub use candle_core;
pub use error::LabError;
pub use kvcsr_model::Precision;
pub use kvcsr_report::notebook::*;
pub use model::Model;
pub use prompt::Prompt;
pub use trial::{Schemes, Trial, Trials, continuations, schemes, trials};
