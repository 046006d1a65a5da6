//! GGUF checkpoints, dequantised once to f32.
//!
//! llama.cpp's converter stores the q and k projections of Llama models (Mistral among them, but not Qwen) with their
//! rows permuted, so that rotary pairs are neighbours (`2i`, `2i+1`). Reading undoes that: everywhere in this crate
//! rotary pairs are `i` and `i + D/2`.

use std::fs::File;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;

use super::{Checkpoint, gguf_guard};
use crate::arch::Arch;
use crate::chat::ChatTemplate;
use crate::decoder::Decoder;
use crate::error::{ModelError, Result};
use crate::tokenizer::Tokenizer;

/// An opened GGUF file: its metadata in memory, its tensors mapped and read on demand.
///
/// The file must not be changed while it is open.
pub struct Gguf {
    path: PathBuf,
    map: Mmap,
    content: Content,
}

impl Gguf {
    /// Maps a file and reads its header.
    ///
    /// # Errors
    /// [`ModelError::Io`], or [`ModelError::Malformed`] for a truncated, oversized or contradictory header.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = File::open(&path).map_err(ModelError::io(&path))?;
        // SAFETY: the map is read-only; that nobody truncates the file while it is open is this type's documented
        // condition, as for every mapped checkpoint.
        let map = unsafe { Mmap::map(&file) }.map_err(ModelError::io(&path))?;
        let malformed = |detail: String| ModelError::Malformed { path: path.clone(), format: "GGUF", detail };
        gguf_guard::check(&map).map_err(malformed)?;
        let content = Content::read(&mut Cursor::new(&map[..])).map_err(|e| malformed(e.to_string()))?;
        Ok(Self { path, map, content })
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
        Ok(GgufTensors { file: self, arch: self.arch()?, interleaved })
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
        self.content.metadata.get(key)
    }

    /// True if the file holds a tensor of that GGUF name.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
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
        self.content.tensor_infos.get(name).map(|info| info.shape.dims().to_vec())
    }

    pub(crate) fn dequantise(&self, name: &str) -> Result<Tensor> {
        let missing = || ModelError::MissingTensors { path: self.path.clone(), tensors: vec![name.to_owned()] };
        let info = self.content.tensor_infos.get(name).ok_or_else(missing)?;
        info.read(&mut Cursor::new(&self.map[..]), self.content.tensor_data_offset, &Device::Cpu)
            .and_then(|quantised| quantised.dequantize(&Device::Cpu))
            .map_err(|source| ModelError::Tensor {
                path: self.path.clone(),
                tensor: name.to_owned(),
                source: Box::new(source),
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
    /// Rotary pairs are neighbours in the file, as llama.cpp's converter makes them for `llama` and no other.
    interleaved: bool,
}

/// Divisors of the rotary frequencies, `(D/2)`, in files of models with rescaled ones.
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";

/// Hugging Face name, GGUF name; of a layer's tensors, without the layer.
const OUTER: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];
const IN_LAYER: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

fn gguf_name(hugging_face: &str) -> Option<String> {
    if let Some((_, gguf)) = OUTER.iter().find(|(hf, _)| *hf == hugging_face) {
        return Some((*gguf).to_owned());
    }
    let (layer, rest) = hugging_face.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, parameter) = rest.rsplit_once('.')?;
    let (_, gguf) = IN_LAYER.iter().find(|(hf, _)| *hf == module)?;
    Some(format!("blk.{layer}.{gguf}.{parameter}"))
}

fn hugging_face_name(gguf: &str) -> Option<String> {
    if let Some((hf, _)) = OUTER.iter().find(|(_, name)| *name == gguf) {
        return Some((*hf).to_owned());
    }
    let (layer, rest) = gguf.strip_prefix("blk.")?.split_once('.')?;
    let (module, parameter) = rest.rsplit_once('.')?;
    let (hf, _) = IN_LAYER.iter().find(|(_, name)| *name == module)?;
    Some(format!("model.layers.{layer}.{hf}.{parameter}"))
}

impl Checkpoint for GgufTensors<'_> {
    fn path(&self) -> &Path {
        &self.file.path
    }

    fn names(&self) -> Vec<String> {
        // The rotary factors are not a weight: the architecture has taken them.
        let names = self.file.content.tensor_infos.keys().filter(|name| *name != ROPE_FREQS);
        names.map(|name| hugging_face_name(name).unwrap_or_else(|| name.clone())).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.file.tensor_shape(&gguf_name(name)?)
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let gguf = gguf_name(name).unwrap_or_else(|| name.to_owned());
        let tensor = self.file.dequantise(&gguf)?;
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

    fn dtype(&self) -> DType {
        let infos = self.file.content.tensor_infos.values();
        super::commonest(infos.map(|info| {
            let dtype = match info.ggml_dtype {
                GgmlDType::BF16 => DType::BF16,
                GgmlDType::F16 => DType::F16,
                _ => DType::F32,
            };
            (dtype, info.shape.elem_count())
        }))
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
    fn names_map_both_ways() {
        for (hf, gguf) in [
            ("lm_head.weight", "output.weight"),
            ("model.layers.12.self_attn.k_proj.bias", "blk.12.attn_k.bias"),
            ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
        ] {
            assert_eq!(gguf_name(hf).as_deref(), Some(gguf));
            assert_eq!(hugging_face_name(gguf).as_deref(), Some(hf));
        }
        assert_eq!(gguf_name("model.layers.0.self_attn.rotary_emb.inv_freq"), None);
        assert_eq!(hugging_face_name("rope_freqs.weight"), None);
    }

    #[test]
    fn half_split_gathers_even_rows_before_odd_rows_of_each_head() {
        let rows = Tensor::arange(0f32, 16.0, &Device::Cpu).unwrap().reshape((8, 2)).unwrap();
        let firsts: Vec<f32> =
            half_split(&rows, 2).unwrap().to_vec2::<f32>().unwrap().iter().map(|r| r[0] / 2.0).collect();
        assert_eq!(firsts, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }
}
