//! One PyTorch `.bin` file: a zip with raw tensors, and a pickle that names them.
//!
//! candle's reader interprets the few pickle instructions that describe tensors. It never calls what a pickle names, so
//! no code from the file runs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use candle_core::pickle::PthTensors;
use candle_core::{DType, Tensor};

use super::{Checkpoint, file_kind, pickle_scan};
use crate::error::{ModelError, Result};

/// An open `.bin` file with f32, f16 or bf16 tensors. Each tensor is read on demand.
pub struct PickleFile {
    path: PathBuf,
    tensors: PthTensors,
}

impl PickleFile {
    /// Reads which tensors a file has.
    ///
    /// # Errors
    /// [`ModelError::Io`]. [`ModelError::Malformed`] if it is not such a zip (PyTorch before 1.6 wrote another format),
    /// if its pickle has no tensors, or if reading it would take more memory than its size justifies.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        file_kind::check(&path, "a PyTorch file", &[b"PK"])?;
        let malformed = |detail: String| ModelError::Malformed { path: path.clone(), format: "PyTorch file", detail };
        pickle_scan::check(&path).map_err(malformed)?;
        let tensors = guarded(|| PthTensors::new(&path, None)).map_err(|e| malformed(e.to_string()))?;
        if tensors.tensor_infos().is_empty() {
            return Err(malformed("no tensors in it".to_owned()));
        }
        let length = std::fs::metadata(&path).map_err(ModelError::io(&path))?.len();
        tensors
            .tensor_infos()
            .values()
            .try_for_each(|info| pickle_scan::check_tensor(info, length))
            .map_err(malformed)?;
        Ok(Self { path, tensors })
    }
}

/// candle indexes the tuples of a pickle without checking their length. For a damaged file this would be a panic.
fn guarded<T>(read: impl FnOnce() -> candle_core::Result<T>) -> candle_core::Result<T> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(candle_core::Error::Msg("a tensor's description is damaged".to_owned())))
}

impl Checkpoint for PickleFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        self.tensors.tensor_infos().keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.tensor_infos().get(name).map(|info| info.layout.dims().to_vec())
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let read = || match self.tensors.get(name) {
            Ok(Some(tensor)) => tensor.contiguous(),
            Ok(None) => Err(candle_core::Error::Msg("not in this file".to_owned())),
            Err(error) => Err(error),
        };
        super::as_weight(&self.path, name, guarded(read))
    }

    fn matrix_dtypes(&self) -> Vec<DType> {
        let infos = self.tensors.tensor_infos().values();
        super::of_matrices(infos.map(|info| (info.dtype, info.layout.dims().len())))
    }
}
