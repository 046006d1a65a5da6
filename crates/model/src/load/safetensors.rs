//! One safetensors file. It is mapped, and each tensor is read only on demand.

use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};

use super::{Checkpoint, file_kind};
use crate::error::{ModelError, Result};

/// A mapped safetensors file with f32, f16 or bf16 tensors. It must not change while it is open.
pub struct SafetensorsFile {
    path: PathBuf,
    tensors: MmapedSafetensors,
}

impl SafetensorsFile {
    /// Maps a file and reads its header.
    ///
    /// # Errors
    /// [`ModelError::Io`]. [`ModelError::Malformed`] for a damaged header, or for a file that is too short.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        file_kind::check(&path, "a safetensors file", &[])?;
        // SAFETY: the map is read-only. Nobody may truncate the file while it is open: this is a documented condition
        // of this type, as for every mapped checkpoint.
        let tensors = unsafe { MmapedSafetensors::new(&path) }.map_err(|e| ModelError::Malformed {
            path: path.clone(),
            format: "safetensors",
            detail: e.to_string(),
        })?;
        Ok(Self { path, tensors })
    }
}

impl Checkpoint for SafetensorsFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        self.tensors.tensors().into_iter().map(|(name, _)| name).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).ok().map(|view| view.shape().to_vec())
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        if let Ok(view) = self.tensors.get(name)
            && DType::try_from(view.dtype()).is_err()
        {
            return Err(super::no_weight(&self.path, name, &format!("{:?}", view.dtype())));
        }
        let tensor = self.tensors.load(name, &Device::Cpu);
        super::as_weight(&self.path, name, tensor)
    }

    fn matrix_dtypes(&self) -> Vec<DType> {
        let views = self.tensors.tensors().into_iter();
        super::of_matrices(views.map(|(_, view)| {
            let dtype = DType::try_from(view.dtype()).unwrap_or(DType::F32);
            (dtype, view.shape().len())
        }))
    }
}
