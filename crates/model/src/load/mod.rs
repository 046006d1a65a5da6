//! Checkpoints: where a decoder's tensors come from.

pub mod gguf;
mod gguf_guard;
pub mod hugging_face;
pub mod pickle;
pub mod safetensors;
pub mod sharded;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::arch::Arch;
use crate::error::{ModelError, Result};

/// A set of named tensors. Names are Hugging Face's (`model.layers.0.self_attn.q_proj.weight`), linear weights are
/// `(out, in)`, and the rows of q and k projections are in half-split (rotate-half) order, whatever the file does.
pub trait Checkpoint: Sync {
    /// The file, named in errors.
    fn path(&self) -> &Path;

    /// Every tensor present, by Hugging Face name where it has one.
    fn names(&self) -> Vec<String>;

    /// Shape of a tensor, without reading it.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// The tensor as f32, on the CPU.
    ///
    /// # Errors
    /// If the tensor is absent or unreadable.
    fn tensor(&self, name: &str) -> Result<Tensor>;
}

/// Checks that a checkpoint holds exactly the tensors of `arch`, in their shapes, before any is read.
///
/// # Errors
/// All missing tensors, else all unexpected ones, else the first misshapen one.
pub(crate) fn check(checkpoint: &dyn Checkpoint, arch: &Arch) -> Result<()> {
    let path = checkpoint.path();
    let needed = arch.tensors();
    let missing: Vec<String> =
        needed.iter().filter(|(name, _)| checkpoint.shape(name).is_none()).map(|(name, _)| name.clone()).collect();
    if !missing.is_empty() {
        return Err(ModelError::MissingTensors { path: path.to_owned(), tensors: missing });
    }
    let known: BTreeSet<&str> = needed.iter().map(|(name, _)| name.as_str()).collect();
    let mut unexpected: Vec<String> = checkpoint
        .names()
        .into_iter()
        .filter(|name| !known.contains(name.as_str()) && !is_derived(name, arch))
        .collect();
    if !unexpected.is_empty() {
        unexpected.sort();
        return Err(ModelError::UnexpectedTensors { path: path.to_owned(), tensors: unexpected });
    }
    for (tensor, expected) in needed {
        match checkpoint.shape(&tensor) {
            Some(found) if found != expected => {
                return Err(ModelError::TensorShape { path: path.to_owned(), tensor, expected, found });
            }
            _ => {}
        }
    }
    Ok(())
}

/// A tensor as it was read, as f32; integers are no weights.
fn as_f32(path: &Path, name: &str, read: candle_core::Result<Tensor>) -> Result<Tensor> {
    let failed =
        |source| ModelError::Tensor { path: path.to_owned(), tensor: name.to_owned(), source: Box::new(source) };
    let tensor = read.map_err(failed)?;
    if !tensor.dtype().is_float() {
        return Err(ModelError::Unsupported {
            path: path.to_owned(),
            what: "dtype",
            found: format!("{:?} of tensor {name}", tensor.dtype()),
            supported: "f32, f16, bf16, f64".to_owned(),
        });
    }
    tensor.to_dtype(DType::F32).map_err(failed)
}

/// Tensors some exporters add although they follow from the configuration: rotary frequencies, and the copy of a tied
/// head.
fn is_derived(name: &str, arch: &Arch) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (arch.tied_head && name == "lm_head.weight")
}

/// Tensors in memory, for tests and for models built by hand.
#[derive(Debug, Clone, Default)]
pub struct TensorMap(pub HashMap<String, Tensor>);

impl Checkpoint for TensorMap {
    fn path(&self) -> &Path {
        Path::new("tensors in memory")
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).map(|tensor| tensor.dims().to_vec())
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let tensor = self.0.get(name).ok_or_else(|| ModelError::MissingTensors {
            path: self.path().to_owned(),
            tensors: vec![name.to_owned()],
        })?;
        Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?)
    }
}
