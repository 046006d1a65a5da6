//! Hugging Face checkpoints: a directory with `config.json` and `model.safetensors`.

use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};

use super::Checkpoint;
use crate::arch::Arch;
use crate::decoder::Decoder;
use crate::error::{ModelError, Result};

/// An opened checkpoint directory. The files must not be changed while it is open.
pub struct HfCheckpoint {
    path: PathBuf,
    arch: Arch,
    tensors: MmapedSafetensors,
}

impl HfCheckpoint {
    /// Reads `config.json` and maps `model.safetensors` (f32, f16 or bf16).
    ///
    /// # Errors
    /// [`ModelError::Io`]; a configuration outside what [`Arch::from_hf_config`] reads; [`ModelError::Malformed`] for a
    /// damaged header.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self> {
        let config = directory.as_ref().join("config.json");
        let json = std::fs::read_to_string(&config).map_err(ModelError::io(&config))?;
        let arch = Arch::from_hf_config(&json, &config)?;
        let path = directory.as_ref().join("model.safetensors");
        std::fs::metadata(&path).map_err(ModelError::io(&path))?;
        // SAFETY: the map is read-only; that nobody truncates the file while it is open is this type's documented
        // condition, as for every mapped checkpoint.
        let tensors = unsafe { MmapedSafetensors::new(&path) }.map_err(|e| ModelError::Malformed {
            path: path.clone(),
            format: "safetensors",
            detail: e.to_string(),
        })?;
        Ok(Self { path, arch, tensors })
    }

    /// The architecture its configuration describes.
    pub fn arch(&self) -> &Arch {
        &self.arch
    }

    /// The decoder, with every tensor converted to f32 on `device`.
    ///
    /// # Errors
    /// See [`Decoder::new`].
    pub fn decoder(&self, device: &Device) -> Result<Decoder> {
        Decoder::new(self.arch.clone(), self, device)
    }
}

impl Checkpoint for HfCheckpoint {
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
        self.tensors.load(name, &Device::Cpu).and_then(|tensor| tensor.to_dtype(DType::F32)).map_err(|source| {
            ModelError::Tensor { path: self.path.clone(), tensor: name.to_owned(), source: Box::new(source) }
        })
    }
}
