//! GGUF checkpoints, dequantised once to f32.
//!
//! llama.cpp's converter stores the q and k projections of Llama models (Mistral among them, but not Qwen) with their
//! rows permuted, so that rotary pairs are neighbours (`2i`, `2i+1`). Reading undoes that: everywhere in this crate
//! rotary pairs are `i` and `i + D/2`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::Value;
use candle_core::{DType, Device, Tensor};

use super::gguf_names::Names;
use super::gguf_parts::{Part, Placed, parts};
use super::{Checkpoint, ggml_types};
use crate::arch::Arch;
use crate::chat::ChatTemplate;
use crate::decoder::Decoder;
use crate::error::{ModelError, Result};
use crate::tokenizer::Tokenizer;

pub(crate) use super::gguf_names::ROPE_FREQS;

/// An opened GGUF file: its metadata in memory, its tensors mapped and read on demand.
///
/// A model split over several files is opened by its first. The files must not be changed while they are open.
pub struct Gguf {
    path: PathBuf,
    metadata: HashMap<String, Value>,
    parts: Vec<Part>,
    tensors: HashMap<String, Placed>,
}

impl Gguf {
    /// Maps a file and reads its header; of a split model, those of all its parts, which lie beside the first.
    ///
    /// # Errors
    /// [`ModelError::Io`]; [`ModelError::WrongFile`] for something that is no GGUF; [`ModelError::Malformed`] for a
    /// truncated, oversized or contradictory header; [`ModelError::Split`] for a later part, or parts that are not
    /// there; [`ModelError::Unsupported`] for a tensor type that is not read.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let (metadata, mut parts) = parts(&path)?;
        let mut tensors = HashMap::new();
        for (at, part) in parts.iter_mut().enumerate() {
            for (name, info) in part.take_tensors() {
                if tensors.insert(name.clone(), Placed { part: at, info }).is_some() {
                    let detail = format!("tensor `{name}` is in two parts of the model");
                    return Err(ModelError::Malformed { path: part.path().to_owned(), format: "GGUF", detail });
                }
            }
        }
        let file = Self { path, metadata, parts, tensors };
        file.check_types()?;
        Ok(file)
    }

    /// The first tensor, by name, of a type that is not read.
    fn check_types(&self) -> Result<()> {
        let unread = self.tensors.iter().filter(|(_, placed)| !ggml_types::is_read(placed.info.kind));
        let Some((name, placed)) = unread.min_by_key(|(name, _)| *name) else { return Ok(()) };
        Err(ModelError::Unsupported {
            path: self.parts[placed.part].path().to_owned(),
            what: "quantisation",
            found: format!("{} of tensor {name}", ggml_types::name(placed.info.kind)),
            supported: format!("{}; take another quantisation of the model", ggml_types::read_names()),
        })
    }

    /// The files read: one, or all parts of a split model.
    pub fn files(&self) -> Vec<PathBuf> {
        self.parts.iter().map(|part| part.path().to_owned()).collect()
    }

    /// The architecture its metadata describes.
    ///
    /// # Errors
    /// See [`Arch::from_gguf`].
    pub fn arch(&self) -> Result<Arch> {
        Arch::from_gguf(self)
    }

    /// The decoder, with every tensor dequantised to f32 on `device`.
    ///
    /// # Errors
    /// See [`Arch::from_gguf`] and [`Decoder::new`].
    pub fn decoder(&self, device: &Device) -> Result<Decoder> {
        self.decoder_in(device, DType::F32)
    }

    /// The decoder with its matrices dequantised to `dtype`.
    ///
    /// # Errors
    /// See [`Arch::from_gguf`] and [`Decoder::with_dtype`].
    pub fn decoder_in(&self, device: &Device, dtype: DType) -> Result<Decoder> {
        let tensors = self.checkpoint()?;
        Decoder::with_dtype(tensors.arch.clone(), &tensors, device, dtype)
    }

    /// The tensors under Hugging Face names, in half-split order.
    ///
    /// # Errors
    /// See [`Arch::from_gguf`].
    pub fn checkpoint(&self) -> Result<GgufTensors<'_>> {
        let interleaved = self.str("general.architecture")? == "llama";
        let arch = self.arch()?;
        Ok(GgufTensors { file: self, names: Names::of(&arch), arch, interleaved })
    }

    /// The tokenizer in its metadata.
    ///
    /// # Errors
    /// See [`Tokenizer::from_gguf`].
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_gguf(self)
    }

    /// The chat template in its metadata, if any.
    ///
    /// # Errors
    /// See [`ChatTemplate::from_gguf`].
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        ChatTemplate::from_gguf(self)
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A metadata value, if present.
    pub fn optional(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// All metadata keys that begin with `prefix`, sorted.
    pub(crate) fn keys(&self, prefix: &str) -> Vec<&str> {
        let mut keys: Vec<&str> = self.metadata.keys().map(String::as_str).filter(|k| k.starts_with(prefix)).collect();
        keys.sort_unstable();
        keys
    }

    /// A metadata value for an error message.
    pub(crate) fn shown(&self, key: &str) -> String {
        self.optional(key).map_or_else(|| "nothing".to_owned(), shown)
    }

    /// True if the file holds a tensor of that GGUF name.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn need<'a, T>(&'a self, key: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<T> {
        let value = self
            .optional(key)
            .ok_or_else(|| ModelError::MissingKey { path: self.path.clone(), key: key.to_owned() })?;
        read(value).ok_or_else(|| ModelError::bad_value(&self.path, key, expected, shown(value)))
    }

    /// A non-negative integer.
    ///
    /// # Errors
    /// [`ModelError::MissingKey`] or [`ModelError::BadValue`]; so for all typed readers here.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.need(key, "a whole number", |value| match *value {
            Value::U8(v) => Some(usize::from(v)),
            Value::U16(v) => Some(usize::from(v)),
            Value::U32(v) => usize::try_from(v).ok(),
            Value::U64(v) => usize::try_from(v).ok(),
            Value::I8(v) => usize::try_from(v).ok(),
            Value::I16(v) => usize::try_from(v).ok(),
            Value::I32(v) => usize::try_from(v).ok(),
            Value::I64(v) => usize::try_from(v).ok(),
            _ => None,
        })
    }

    pub(crate) fn float(&self, key: &str) -> Result<f64> {
        self.need(key, "a number", |value| match *value {
            Value::F32(v) => Some(f64::from(v)),
            Value::F64(v) => Some(v),
            _ => None,
        })
    }

    pub(crate) fn flag(&self, key: &str) -> Result<bool> {
        self.need(key, "true or false", |value| value.to_bool().ok())
    }

    /// A string, such as `tokenizer.chat_template`.
    ///
    /// # Errors
    /// As [`Gguf::size`].
    pub fn str(&self, key: &str) -> Result<&str> {
        self.need(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub(crate) fn array(&self, key: &str) -> Result<&[Value]> {
        self.need(key, "an array", |value| match value {
            Value::Array(items) => Some(items.as_slice()),
            _ => None,
        })
    }

    pub(crate) fn array_len(&self, key: &str) -> Result<usize> {
        self.array(key).map(<[Value]>::len)
    }

    pub(crate) fn strings(&self, key: &str) -> Result<Vec<&str>> {
        self.array(key)?
            .iter()
            .map(|value| match value {
                Value::String(text) => Ok(text.as_str()),
                other => Err(ModelError::bad_value(&self.path, key, "an array of strings", shown(other))),
            })
            .collect()
    }

    pub(crate) fn floats(&self, key: &str) -> Result<Vec<f32>> {
        self.array(key)?
            .iter()
            .map(|value| match *value {
                Value::F32(v) => Ok(v),
                ref other => Err(ModelError::bad_value(&self.path, key, "an array of f32", shown(other))),
            })
            .collect()
    }

    pub(crate) fn integers(&self, key: &str) -> Result<Vec<i64>> {
        self.array(key)?
            .iter()
            .map(|value| match *value {
                Value::I8(v) => Ok(i64::from(v)),
                Value::I16(v) => Ok(i64::from(v)),
                Value::I32(v) => Ok(i64::from(v)),
                Value::U8(v) => Ok(i64::from(v)),
                Value::U16(v) => Ok(i64::from(v)),
                Value::U32(v) => Ok(i64::from(v)),
                ref other => Err(ModelError::bad_value(&self.path, key, "an array of integers", shown(other))),
            })
            .collect()
    }

    /// Shape of a tensor by its GGUF name, if present.
    pub(crate) fn tensor_shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|placed| placed.info.shape.clone())
    }

    pub(crate) fn dequantise(&self, name: &str) -> Result<Tensor> {
        let missing = || ModelError::MissingTensors { path: self.path.clone(), tensors: vec![name.to_owned()] };
        let placed = self.tensors.get(name).ok_or_else(missing)?;
        let part = &self.parts[placed.part];
        let at = part.data().saturating_add(placed.info.offset);
        ggml_types::restore(placed.info.kind, &placed.info.shape, part.bytes(), at).map_err(|source| {
            ModelError::Tensor { path: part.path().to_owned(), tensor: name.to_owned(), source: Box::new(source) }
        })
    }
}

/// A value for an error message: arrays and long strings by length.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("an array of {} elements", items.len()),
        Value::String(text) if text.len() > 60 => format!("a string of {} bytes", text.len()),
        other => format!("{other:?}"),
    }
}

/// The tensors of a GGUF file under Hugging Face names, in half-split order.
pub struct GgufTensors<'a> {
    file: &'a Gguf,
    arch: Arch,
    names: Names,
    /// Rotary pairs are neighbours in the file, as llama.cpp's converter makes them for `llama` and no other.
    interleaved: bool,
}

impl Checkpoint for GgufTensors<'_> {
    fn path(&self) -> &Path {
        &self.file.path
    }

    fn names(&self) -> Vec<String> {
        // The rotary factors are not a weight: the architecture has taken them.
        let names = self.file.tensors.keys().filter(|name| *name != ROPE_FREQS);
        names.map(|name| self.names.hugging_face(name).unwrap_or_else(|| name.clone())).collect()
    }

    fn name_in_file(&self, name: &str) -> String {
        self.names.gguf(name).unwrap_or_else(|| name.to_owned())
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.file.tensor_shape(&self.names.gguf(name)?)
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let tensor = self.file.dequantise(&self.name_in_file(name))?;
        if !self.interleaved {
            Ok(tensor)
        } else if name.contains(".q_proj.") {
            Ok(half_split(&tensor, self.arch.heads)?)
        } else if name.contains(".k_proj.") {
            Ok(half_split(&tensor, self.arch.kv_heads)?)
        } else {
            Ok(tensor)
        }
    }

    fn matrix_dtypes(&self) -> Vec<DType> {
        let infos = self.file.tensors.values().map(|placed| &placed.info);
        super::of_matrices(infos.map(|info| (ggml_types::dtype(info.kind), info.shape.len())))
    }
}

/// Rows `(h, i, pair member)` to `(h, pair member, i)`: from interleaved to half-split rotary order. `(out, ...)`.
fn half_split(interleaved: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let rows = interleaved.dim(0)?;
    let width = interleaved.elem_count() / rows;
    interleaved
        .reshape((heads, rows / heads / 2, 2, width))?
        .transpose(1, 2)?
        .contiguous()?
        .reshape(interleaved.shape())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn half_split_gathers_even_rows_before_odd_rows_of_each_head() {
        let rows = Tensor::arange(0f32, 16.0, &Device::Cpu).unwrap().reshape((8, 2)).unwrap();
        let firsts: Vec<f32> =
            half_split(&rows, 2).unwrap().to_vec2::<f32>().unwrap().iter().map(|r| r[0] / 2.0).collect();
        assert_eq!(firsts, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }
}
