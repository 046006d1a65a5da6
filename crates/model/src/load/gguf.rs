//! GGUF files: their metadata, and tensors that are dequantised to f32 once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::Value;
use candle_core::{DType, Tensor};

use super::ggml_types;
use super::gguf_parts::{Part, Placed, parts};
use crate::error::{ModelError, Result};

/// The list of tokens, ordered by id.
pub(crate) const TOKENS: &str = "tokenizer.ggml.tokens";
/// Divisors of the rotary frequencies, `(D/2)`, in files of models with rescaled frequencies.
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";

/// An open GGUF file. Its metadata is in memory. Its tensors are mapped, and read on demand.
///
/// A model that is split over several files is opened by its first file. The files must not change while they are open.
pub struct Gguf {
    path: PathBuf,
    metadata: HashMap<String, Value>,
    parts: Vec<Part>,
    tensors: HashMap<String, Placed>,
}

impl Gguf {
    /// Maps a file and reads its header. For a split model, it also reads the headers of all other parts, which must be
    /// in the same folder.
    ///
    /// # Errors
    /// [`ModelError::Io`]. [`ModelError::WrongFile`] if the file is not a GGUF. [`ModelError::Malformed`] for a
    /// truncated, oversized or contradictory header, or for tensors that share bytes. [`ModelError::Split`] for a later
    /// part, or if parts are missing. [`ModelError::Unsupported`] for a tensor type that is not read.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let (metadata, mut parts) = parts(&path)?;
        let mut tensors = HashMap::new();
        for (at, part) in parts.iter_mut().enumerate() {
            part.check_places()?;
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

    /// Returns an error for the first tensor, by name, whose type is not read.
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

    /// The files that are read: one, or all parts of a split model.
    pub fn files(&self) -> Vec<PathBuf> {
        self.parts.iter().map(|part| part.path().to_owned()).collect()
    }

    /// The path of the file.
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

    /// A metadata value as text for an error message.
    pub(crate) fn shown(&self, key: &str) -> String {
        self.optional(key).map_or_else(|| "nothing".to_owned(), shown)
    }

    /// Whether the file has a tensor with this GGUF name.
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
    /// [`ModelError::MissingKey`] or [`ModelError::BadValue`]. The other typed readers here have the same errors.
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
    /// The errors of [`Gguf::size`].
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

    /// The id of a token. `None` if the key is missing.
    pub(crate) fn token_id(&self, key: &str) -> Result<Option<u32>> {
        if self.optional(key).is_none() {
            return Ok(None);
        }
        let (id, tokens) = (self.size(key)?, self.array_len(TOKENS)?);
        // llama.cpp writes this value if the token does not exist.
        if id == u32::MAX as usize {
            return Ok(None);
        }
        match u32::try_from(id) {
            Ok(small) if id < tokens => Ok(Some(small)),
            _ => Err(ModelError::bad_value(&self.path, key, format!("an id below {tokens}"), id.to_string())),
        }
    }

    /// The GGUF names of all tensors.
    pub(super) fn tensor_names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    /// For each tensor, the dtype to which it is restored and its number of dimensions.
    pub(super) fn dtypes(&self) -> impl Iterator<Item = (DType, usize)> {
        self.tensors.values().map(|placed| (ggml_types::dtype(placed.info.kind), placed.info.shape.len()))
    }

    /// The shape of a tensor, by its GGUF name. `None` if there is no such tensor.
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

/// A value as text for an error message. Arrays and long strings are shown by their length.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("an array of {} elements", items.len()),
        Value::String(text) if text.len() > 60 => format!("a string of {} bytes", text.len()),
        other => format!("{other:?}"),
    }
}
