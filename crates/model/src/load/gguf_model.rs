//! The model in a GGUF file: its architecture, decoder, tokenizer and chat template, and its tensors as a checkpoint.
//!
//! For Llama models (including Mistral, but not Qwen), llama.cpp's converter permutes the rows of the q and k
//! projections, so that rotary pairs are neighbours (`2i`, `2i+1`). Reading undoes this: everywhere in this crate,
//! rotary pairs are `i` and `i + D/2`.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::Checkpoint;
use super::gguf::{Gguf, ROPE_FREQS};
use super::gguf_names::Names;
use crate::arch::Arch;
use crate::chat::ChatTemplate;
use crate::decoder::Decoder;
use crate::device::Kept;
use crate::error::Result;
use crate::tokenizer::Tokenizer;

impl Gguf {
    /// The architecture that its metadata describes.
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

    /// The decoder, with its matrices dequantised and stored as `kept` says.
    ///
    /// # Errors
    /// See [`Arch::from_gguf`] and [`Decoder::with_dtype`].
    pub fn decoder_in(&self, device: &Device, kept: impl Into<Kept>) -> Result<Decoder> {
        let tensors = self.checkpoint()?;
        Decoder::with_dtype(tensors.arch.clone(), &tensors, device, kept)
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
}

/// The tensors of a GGUF file under Hugging Face names, in half-split order.
pub struct GgufTensors<'a> {
    file: &'a Gguf,
    arch: Arch,
    names: Names,
    /// Whether rotary pairs are neighbours in the file. llama.cpp's converter does this only for `llama`.
    interleaved: bool,
}

impl Checkpoint for GgufTensors<'_> {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn names(&self) -> Vec<String> {
        // The rotary factors are not a weight: the architecture already contains them.
        let names = self.file.tensor_names().filter(|name| *name != ROPE_FREQS);
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
        super::of_matrices(self.file.dtypes())
    }
}

/// Reorders rows from `(h, i, pair member)` to `(h, pair member, i)`: from interleaved to half-split rotary order. The
/// shape is `(out, ...)`.
fn half_split(interleaved: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let rows = interleaved.dim(0)?;
    if rows == 0 || !rows.is_multiple_of(2 * heads) {
        candle_core::bail!("{rows} rows are no whole number of pairs for each of {heads} heads");
    }
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
