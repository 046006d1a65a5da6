//! Hugging Face checkpoints: a folder with `config.json` and weights in safetensors or PyTorch files.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use super::pickle::PickleFile;
use super::safetensors::SafetensorsFile;
use super::sharded::Sharded;
use super::{Checkpoint, folder, text};
use crate::arch::Arch;
use crate::chat::ChatTemplate;
use crate::decoder::Decoder;
use crate::device::Kept;
use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// The names of weight files, in search order. safetensors come first: they can be mapped, and cannot contain code.
const WEIGHTS: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

/// An open checkpoint folder. The files must not change while it is open.
pub struct HfCheckpoint {
    directory: PathBuf,
    arch: Arch,
    weights: Box<dyn Checkpoint + Send>,
}

impl HfCheckpoint {
    /// Reads `config.json`, and opens the first existing file of `model.safetensors`, `model.safetensors.index.json`,
    /// `pytorch_model.bin` and `pytorch_model.bin.index.json`.
    ///
    /// # Errors
    /// [`crate::ModelError::Io`]. [`crate::ModelError::WrongFile`] for adapters, folders of GGUF files, and pointers
    /// instead of files. The errors of [`Arch::from_hf_config`] for a configuration that it does not read.
    /// [`crate::ModelError::Malformed`] for a damaged header, index or pickle.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self> {
        let directory = directory.as_ref();
        folder::check(directory)?;
        let config = directory.join("config.json");
        let json = text::need(&config)?;
        let arch = Arch::from_hf_config(&json, &config)?;
        let found = WEIGHTS.iter().position(|name| directory.join(name).is_file());
        let at = |index: usize| -> PathBuf { directory.join(WEIGHTS[index]) };
        let weights: Box<dyn Checkpoint + Send> = match found {
            Some(0) => Box::new(SafetensorsFile::open(at(0))?),
            Some(1) => Box::new(Sharded::open(at(1), SafetensorsFile::open)?),
            Some(2) => Box::new(PickleFile::open(at(2))?),
            Some(_) => Box::new(Sharded::open(at(3), PickleFile::open)?),
            None => return Err(folder::no_weights(directory, &WEIGHTS)),
        };
        Ok(Self { directory: directory.to_owned(), arch, weights })
    }

    /// The architecture that its configuration describes.
    pub fn arch(&self) -> &Arch {
        &self.arch
    }

    /// The decoder, with every tensor converted to f32 on `device`. Tensors are converted one at a time, so there is no
    /// second copy of the weights.
    ///
    /// # Errors
    /// See [`Decoder::new`].
    pub fn decoder(&self, device: &Device) -> Result<Decoder> {
        Decoder::new(self.arch.clone(), self, device)
    }

    /// The decoder, with its matrices stored as `kept` says. [`Checkpoint::dtype`] is their dtype in the files.
    ///
    /// # Errors
    /// See [`Decoder::with_dtype`].
    pub fn decoder_in(&self, device: &Device, kept: impl Into<Kept>) -> Result<Decoder> {
        Decoder::with_dtype(self.arch.clone(), self, device, kept)
    }

    /// The tokenizer of the folder.
    ///
    /// # Errors
    /// See [`Tokenizer::from_hf_folder`].
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_hf_folder(&self.directory)
    }

    /// The chat template of the folder, if any.
    ///
    /// # Errors
    /// See [`ChatTemplate::from_hf_folder`].
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        ChatTemplate::from_hf_folder(&self.directory)
    }
}

impl Checkpoint for HfCheckpoint {
    fn path(&self) -> &Path {
        self.weights.path()
    }

    fn names(&self) -> Vec<String> {
        self.weights.names()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.weights.shape(name)
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        self.weights.tensor(name)
    }

    fn matrix_dtypes(&self) -> Vec<DType> {
        self.weights.matrix_dtypes()
    }
}
