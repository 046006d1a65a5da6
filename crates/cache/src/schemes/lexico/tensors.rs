//! Lexico's codes as tensors: see [`crate::tensor`].

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use kvcsr_codec::Footprint;

use super::Settings;
use crate::CacheError;
use crate::tensor::codes::{CodeShape, TensorCodes};
use crate::tensor::pursuit::TensorAtoms;
use crate::tensor::{Stores, TensorTokens, Uploads};

/// Makes the stores of one layer's keys or values. `None` for rows of different lengths (a threshold, or adaptive
/// atoms).
pub(super) fn stores(settings: &Settings, uploads: &mut Uploads) -> Result<Option<Stores>, CacheError> {
    if settings.delta > 0.0 || settings.adaptive > 0 {
        return Ok(None);
    }
    let (dictionary, sparsity) = (settings.encoder.dictionary(), settings.sparsity);
    let atoms = TensorAtoms::new(uploads.table(dictionary.atoms(), dictionary.len(), dictionary.width())?);
    let shape = CodeShape::new(settings.layout, 1, sparsity, settings.nameable(), uploads)?;
    Ok(Some(Arc::new(move || {
        Ok(Box::new(LexicoTensors { atoms: atoms.clone(), codes: TensorCodes::new(shape.clone()), sparsity }))
    })))
}

/// The codes of one sequence.
struct LexicoTensors {
    atoms: TensorAtoms,
    codes: TensorCodes,
    sparsity: usize,
}

impl TensorTokens for LexicoTensors {
    fn append(&mut self, rows: &Tensor, _prompt: bool) -> Result<(), CacheError> {
        let (heads, n, d) = rows.dims3()?;
        let (indices, coefficients) = self.atoms.pursue_orthogonal(&rows.reshape((heads * n, d))?, self.sparsity)?;
        self.codes.push(&indices, &coefficients, (heads, n))
    }

    fn restore(&self, tokens: Range<usize>) -> Result<Tensor, CacheError> {
        self.codes.restore(&self.atoms, tokens)
    }

    #[cfg(feature = "cuda")]
    fn scores(
        &self,
        queries: &Tensor,
        tokens: Range<usize>,
        rotary: Option<(&crate::Rotary, usize)>,
    ) -> Result<Option<Tensor>, CacheError> {
        self.codes.scores(&self.atoms, queries, tokens, rotary)
    }

    fn footprint(&self) -> Footprint {
        self.codes.footprint() + Footprint { tables: size_of::<Self>(), ..Footprint::default() }
    }

    fn drop_first(&mut self, tokens: usize) -> Result<(), CacheError> {
        self.codes.drop_first(tokens)
    }
}
