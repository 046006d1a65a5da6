//! How one kind of vector of one layer is coded.

use std::sync::Arc;

use kvcsr_codec::{Atoms, CodeLayout, CodecError, Codes, Encoder, Kind};

use super::options::OnlinePart;

/// How one kind of vector of one layer is coded.
pub(super) struct Coder {
    pub(super) kind: Kind,
    pub(super) heads: usize,
    pub(super) encoder: Arc<Encoder>,
    pub(super) sparsity: usize,
    pub(super) chunks: usize,
    pub(super) layout: CodeLayout,
    pub(super) refit: bool,
    /// The relative squared error at which the pursuit stops.
    pub(super) stop: Option<f32>,
    pub(super) online: Option<OnlinePart>,
    /// The number of offline atoms, plus the space reserved for the online part.
    pub(super) atoms: usize,
}

impl Coder {
    /// Codes `rows` `(n, width)` over `atoms`.
    pub(super) fn encode(
        &self,
        atoms: Atoms<'_>,
        rows: &[f32],
        indices: &mut [u16],
        coefficients: &mut [f32],
    ) -> Result<(), CodecError> {
        self.encoder.encode_over(atoms, rows, self.sparsity, indices, coefficients)?;
        if let Some(tolerance) = self.stop {
            kvcsr_codec::stop_early(rows, atoms.width(), tolerance, indices, coefficients);
        }
        if self.refit {
            kvcsr_codec::refit(atoms, rows, indices, coefficients)?;
        }
        Ok(())
    }

    /// An empty store for the codes of one head.
    pub(super) fn codes(&self) -> Codes {
        match self.stop {
            None => Codes::new(self.layout, self.sparsity, self.atoms),
            Some(_) => Codes::ragged(self.layout, self.sparsity, self.atoms),
        }
    }
}
