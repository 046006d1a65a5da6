//! Checkpoints: the sources of a decoder's tensors.

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

/// A set of named tensors. The names are those of Hugging Face (`model.layers.0.self_attn.q_proj.weight`). Linear
/// weights are `(out, in)`. The rows of q and k projections are in half-split (rotate-half) order, whatever order the
/// file uses.
pub trait Checkpoint: Sync {
    /// The file. Errors use its name.
    fn path(&self) -> &Path;

    /// All tensors, with their Hugging Face names if they have them.
    fn names(&self) -> Vec<String>;

    /// The name that the file uses for the tensor with a Hugging Face name, for errors.
    fn name_in_file(&self, name: &str) -> String {
        name.to_owned()
    }

    /// The shape of a tensor, without reading the tensor.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// The tensor on the CPU, in the floating-point dtype of the file (f32 for a quantised tensor).
    ///
    /// # Errors
    /// If the tensor is missing or unreadable.
    fn tensor(&self, name: &str) -> Result<Tensor>;

    /// The dtypes in which matrices are stored, over all files. f32 for quantised matrices.
    fn matrix_dtypes(&self) -> Vec<DType>;

    /// The narrowest dtype in which a decoder can store every matrix exactly. Vectors do not count, because they are
    /// stored in f32. bf16 cannot represent all f16 numbers, and f16 cannot represent all bf16 numbers.
    fn dtype(&self) -> DType {
        let mut dtypes = self.matrix_dtypes().into_iter();
        match dtypes.next() {
            Some(first @ (DType::BF16 | DType::F16)) if dtypes.all(|dtype| dtype == first) => first,
            _ => DType::F32,
        }
    }
}

/// The tensors of a checkpoint, in the form in which a decoder stores them.
pub(crate) struct Weights<'a> {
    checkpoint: &'a dyn Checkpoint,
    device: &'a Device,
    /// How matrices are stored.
    pub(crate) kept: Kept,
}

impl<'a> Weights<'a> {
    /// Weights whose matrices are in f32, bf16 or f16.
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

/// Checks that a checkpoint has exactly the tensors of `arch`, with their shapes. This happens before any tensor is
/// read.
///
/// # Errors
/// All missing tensors. If there are none, all unexpected tensors. If there are none, the first tensor with a wrong
/// shape.
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

/// Whether a checkpoint contains a different head although its configuration says that the head is tied. This happens
/// after training with a larger vocabulary. transformers then uses the different head, and so does this crate.
pub(crate) fn holds_own_head(checkpoint: &dyn Checkpoint, arch: &Arch) -> Result<bool> {
    const HEAD: &str = "lm_head.weight";
    /// The number of rows compared at a time.
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

/// Checks a tensor after it was read. Integers are not weights. f64 is converted to f32, because no model is stored in
/// f64.
fn as_weight(path: &Path, name: &str, read: candle_core::Result<Tensor>) -> Result<Tensor> {
    let failed =
        |source| ModelError::Tensor { path: path.to_owned(), tensor: name.to_owned(), source: Box::new(source) };
    let tensor = read.map_err(failed)?;
    if !tensor.dtype().is_float() {
        return Err(no_weight(path, name, &format!("{:?}", tensor.dtype())));
    }
    if tensor.dtype() == DType::F64 { tensor.to_dtype(DType::F32).map_err(failed) } else { Ok(tensor) }
}

/// The error for a tensor whose dtype is not a dtype of weights.
fn no_weight(path: &Path, name: &str, dtype: &str) -> ModelError {
    ModelError::Unsupported {
        path: path.to_owned(),
        what: "dtype",
        found: format!("{dtype} of tensor {name}"),
        supported: "f32, f16, bf16, f64".to_owned(),
    }
}

/// The dtypes of matrices, from the dtype and the number of dimensions of each tensor.
fn of_matrices(tensors: impl IntoIterator<Item = (DType, usize)>) -> Vec<DType> {
    tensors.into_iter().filter(|(_, dimensions)| *dimensions > 1).map(|(dtype, _)| dtype).collect()
}

/// Whether a tensor follows from the configuration: rotary frequencies, and the copy of a tied head. Some exporters add
/// such tensors.
fn is_derived(name: &str, arch: &Arch) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (arch.tied_head && name == "lm_head.weight")
}

/// Tensors in memory, for tests and for models that are built by hand.
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
