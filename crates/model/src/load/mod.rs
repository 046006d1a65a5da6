//! Checkpoints: where a decoder's tensors come from.

mod file_kind;
mod folder;
mod ggml_types;
pub mod gguf;
mod gguf_header;
mod gguf_model;
mod gguf_names;
mod gguf_parts;
pub mod hugging_face;
pub mod pickle;
mod pickle_scan;
pub mod safetensors;
pub mod sharded;
pub mod text;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::arch::Arch;
use crate::device::Kept;
use crate::error::{ModelError, Result};

/// A set of named tensors. Names are Hugging Face's (`model.layers.0.self_attn.q_proj.weight`), linear weights are
/// `(out, in)`, and the rows of q and k projections are in half-split (rotate-half) order, whatever the file does.
pub trait Checkpoint: Sync {
    /// The file, named in errors.
    fn path(&self) -> &Path;

    /// Every tensor present, by Hugging Face name where it has one.
    fn names(&self) -> Vec<String>;

    /// What the file calls the tensor of a Hugging Face name, for errors.
    fn name_in_file(&self, name: &str) -> String {
        name.to_owned()
    }

    /// Shape of a tensor, without reading it.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// The tensor on the CPU, in the floating-point dtype of the file (f32 of a quantised one).
    ///
    /// # Errors
    /// If the tensor is absent or unreadable.
    fn tensor(&self, name: &str) -> Result<Tensor>;

    /// The dtypes that matrices are stored in, over all files: f32 for quantised ones.
    fn matrix_dtypes(&self) -> Vec<DType>;

    /// The narrowest dtype a decoder can be kept in that holds every matrix exactly. Vectors do not count: they are kept
    /// in f32. Neither of bf16 and f16 holds the other.
    fn dtype(&self) -> DType {
        let mut dtypes = self.matrix_dtypes().into_iter();
        match dtypes.next() {
            Some(first @ (DType::BF16 | DType::F16)) if dtypes.all(|dtype| dtype == first) => first,
            _ => DType::F32,
        }
    }
}

/// The tensors of a checkpoint as a decoder keeps them.
pub(crate) struct Weights<'a> {
    checkpoint: &'a dyn Checkpoint,
    device: &'a Device,
    /// How matrices are kept.
    pub(crate) kept: Kept,
}

impl<'a> Weights<'a> {
    /// Matrices will be in f32, bf16 or f16.
    pub(crate) fn new(checkpoint: &'a dyn Checkpoint, device: &'a Device, kept: Kept) -> Result<Self> {
        let dtype = kept.dtype;
        if !matches!(dtype, DType::F32 | DType::BF16 | DType::F16) {
            let found = format!("{dtype:?}").to_lowercase();
            return Err(ModelError::Input { what: "dtype", expected: "f32, bf16 or f16".to_owned(), found });
        }
        Ok(Self { checkpoint, device, kept })
    }

    /// A matrix, in the decoder's dtype.
    pub(crate) fn matrix(&self, name: &str) -> Result<Tensor> {
        let stored = self.checkpoint.tensor(name)?;
        let tensor = stored.to_dtype(self.kept.dtype)?;
        if self.kept.dtype == DType::F16 && stored.dtype() != DType::F16 {
            let largest = tensor.abs()?.max_all()?.to_dtype(DType::F32)?.to_scalar::<f32>()?;
            if !largest.is_finite() {
                return Err(ModelError::Unsupported {
                    path: self.checkpoint.path().to_owned(),
                    what: "dtype",
                    found: format!("f16: tensor {name} holds numbers beyond 65504"),
                    supported: "f32, bf16".to_owned(),
                });
            }
        }
        Ok(tensor.to_device(self.device)?)
    }

    /// A norm's weight, in f32.
    pub(crate) fn norm(&self, name: &str, arch: &Arch) -> Result<Tensor> {
        let stored = self.vector(name)?;
        Ok(if arch.norms_less_one { (stored + 1.0)? } else { stored })
    }

    /// A bias, in f32.
    pub(crate) fn vector(&self, name: &str) -> Result<Tensor> {
        Ok(self.checkpoint.tensor(name)?.to_dtype(DType::F32)?.to_device(self.device)?)
    }
}

/// Checks that a checkpoint holds exactly the tensors of `arch`, in their shapes, before any is read.
///
/// # Errors
/// All missing tensors, else all unexpected ones, else the first misshapen one.
pub(crate) fn check(checkpoint: &dyn Checkpoint, arch: &Arch) -> Result<()> {
    let path = checkpoint.path();
    let needed = arch.tensors();
    let absent = needed.iter().filter(|(name, _)| checkpoint.shape(name).is_none());
    let missing: Vec<String> = absent.map(|(name, _)| checkpoint.name_in_file(name)).collect();
    if !missing.is_empty() {
        return Err(ModelError::MissingTensors { path: path.to_owned(), tensors: missing });
    }
    let known: BTreeSet<&str> = needed.iter().map(|(name, _)| name.as_str()).collect();
    let mut unexpected: Vec<String> = checkpoint
        .names()
        .into_iter()
        .filter(|name| !known.contains(name.as_str()) && !is_derived(name, arch))
        .map(|name| checkpoint.name_in_file(&name))
        .collect();
    if !unexpected.is_empty() {
        unexpected.sort();
        return Err(ModelError::UnexpectedTensors { path: path.to_owned(), tensors: unexpected });
    }
    for (tensor, expected) in needed {
        match checkpoint.shape(&tensor) {
            Some(found) if found != expected => {
                let tensor = checkpoint.name_in_file(&tensor);
                return Err(ModelError::TensorShape { path: path.to_owned(), tensor, expected, found });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a checkpoint whose head is said to be tied holds another one, as after training with a larger vocabulary: transformers takes
/// that one then, and so do we.
pub(crate) fn holds_own_head(checkpoint: &dyn Checkpoint, arch: &Arch) -> Result<bool> {
    const HEAD: &str = "lm_head.weight";
    /// Rows compared at a time.
    const PIECE: usize = 4096;
    let Some(found) = checkpoint.shape(HEAD) else { return Ok(false) };
    let expected = vec![arch.vocab, arch.hidden];
    if found != expected {
        let (path, tensor) = (checkpoint.path().to_owned(), checkpoint.name_in_file(HEAD));
        return Err(ModelError::TensorShape { path, tensor, expected, found });
    }
    let (head, embedding) = (checkpoint.tensor(HEAD)?, checkpoint.tensor("model.embed_tokens.weight")?);
    for at in (0..arch.vocab).step_by(PIECE) {
        let piece = |x: &Tensor| -> Result<Vec<f32>> {
            let rows = x.narrow(0, at, PIECE.min(arch.vocab - at))?;
            Ok(rows.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
        };
        if piece(&head)? != piece(&embedding)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A tensor as it was read; integers are no weights, and f64 is more than any model is kept in.
fn as_weight(path: &Path, name: &str, read: candle_core::Result<Tensor>) -> Result<Tensor> {
    let failed =
        |source| ModelError::Tensor { path: path.to_owned(), tensor: name.to_owned(), source: Box::new(source) };
    let tensor = read.map_err(failed)?;
    if !tensor.dtype().is_float() {
        return Err(no_weight(path, name, &format!("{:?}", tensor.dtype())));
    }
    if tensor.dtype() == DType::F64 { tensor.to_dtype(DType::F32).map_err(failed) } else { Ok(tensor) }
}

/// That a tensor's dtype is none of weights.
fn no_weight(path: &Path, name: &str, dtype: &str) -> ModelError {
    ModelError::Unsupported {
        path: path.to_owned(),
        what: "dtype",
        found: format!("{dtype} of tensor {name}"),
        supported: "f32, f16, bf16, f64".to_owned(),
    }
}

/// The dtypes of matrices, given dtype and number of dimensions of each tensor.
fn of_matrices(tensors: impl IntoIterator<Item = (DType, usize)>) -> Vec<DType> {
    tensors.into_iter().filter(|(_, dimensions)| *dimensions > 1).map(|(dtype, _)| dtype).collect()
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
        Ok(tensor.to_device(&Device::Cpu)?)
    }

    fn matrix_dtypes(&self) -> Vec<DType> {
        of_matrices(self.0.values().map(|tensor| (tensor.dtype(), tensor.rank())))
    }
}
