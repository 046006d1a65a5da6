//! Hugging Face checkpoints: a folder with `config.json` and weights in safetensors or PyTorch files.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::Checkpoint;
use super::pickle::PickleFile;
use super::safetensors::SafetensorsFile;
use super::sharded::Sharded;
use crate::arch::Arch;
use crate::chat::ChatTemplate;
use crate::decoder::Decoder;
use crate::error::{ModelError, Result};
use crate::tokenizer::Tokenizer;

/// Weight files in the order they are looked for: safetensors first, which are mapped and cannot hold code.
const WEIGHTS: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

/// An opened checkpoint folder. The files must not be changed while it is open.
pub struct HfCheckpoint {
    directory: PathBuf,
    arch: Arch,
    weights: Box<dyn Checkpoint + Send>,
}

impl HfCheckpoint {
    /// Reads `config.json` and opens the first of `model.safetensors`, `model.safetensors.index.json`,
    /// `pytorch_model.bin` and `pytorch_model.bin.index.json` that is there.
    ///
    /// # Errors
    /// [`ModelError::Io`]; a configuration outside what [`Arch::from_hf_config`] reads; [`ModelError::Malformed`] for a
    /// damaged header, index or pickle.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self> {
        let directory = directory.as_ref();
        let config = directory.join("config.json");
        let json = std::fs::read_to_string(&config).map_err(ModelError::io(&config))?;
        let arch = Arch::from_hf_config(&json, &config)?;
        let found = WEIGHTS.iter().position(|name| directory.join(name).is_file());
        let at = |index: usize| -> PathBuf { directory.join(WEIGHTS[index]) };
        let weights: Box<dyn Checkpoint + Send> = match found {
            Some(0) => Box::new(SafetensorsFile::open(at(0))?),
            Some(1) => Box::new(Sharded::open(at(1), SafetensorsFile::open)?),
            Some(2) => Box::new(PickleFile::open(at(2))?),
            Some(_) => Box::new(Sharded::open(at(3), PickleFile::open)?),
            None => {
                return Err(ModelError::Unsupported {
                    path: directory.to_owned(),
                    what: "checkpoint",
                    found: "a folder without weights".to_owned(),
                    supported: WEIGHTS.join(", "),
                });
            }
        };
        Ok(Self { directory: directory.to_owned(), arch, weights })
    }

    /// The architecture its configuration describes.
    pub fn arch(&self) -> &Arch {
        &self.arch
    }

    /// The decoder, with every tensor converted to f32 on `device`, one at a time: no second copy of the weights.
    ///
    /// # Errors
    /// See [`Decoder::new`].
    pub fn decoder(&self, device: &Device) -> Result<Decoder> {
        Decoder::new(self.arch.clone(), self, device)
    }

    /// The decoder with its matrices in `dtype`; [`Checkpoint::dtype`] is what they are stored in.
    ///
    /// # Errors
    /// See [`Decoder::with_dtype`].
    pub fn decoder_in(&self, device: &Device, dtype: DType) -> Result<Decoder> {
        Decoder::with_dtype(self.arch.clone(), self, device, dtype)
    }

    /// The tokenizer in `tokenizer.json`, else in SentencePiece's `tokenizer.model`; the latter begins texts with a BOS
    /// unless `tokenizer_config.json` says `add_bos_token: false`.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if both are absent, or the first is unreadable; see [`Tokenizer::from_sentencepiece`].
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let pieces = self.directory.join("tokenizer.model");
        if self.directory.join("tokenizer.json").is_file() || !pieces.is_file() {
            return Tokenizer::from_hf_file(self.directory.join("tokenizer.json"), None);
        }
        let config = std::fs::read_to_string(self.directory.join("tokenizer_config.json")).ok();
        let config: Value = config.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
        Tokenizer::from_sentencepiece(pieces, config["add_bos_token"].as_bool().unwrap_or(true))
    }

    /// The chat template of the folder, if any.
    ///
    /// # Errors
    /// See [`ChatTemplate::from_hf_folder`].
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        ChatTemplate::from_hf_folder(&self.directory)
    }

    /// Ids that end a text: `eos_token_id`, a number or a list, of `generation_config.json`, else of `config.json`.
    ///
    /// # Errors
    /// [`ModelError::Malformed`] if a file is no JSON, [`ModelError::BadValue`] if an id is not one.
    pub fn stop_ids(&self) -> Result<Vec<u32>> {
        for name in ["generation_config.json", "config.json"] {
            let path = self.directory.join(name);
            let Ok(json) = std::fs::read_to_string(&path) else { continue };
            let config: Value = serde_json::from_str(&json).map_err(|e| ModelError::Malformed {
                path: path.clone(),
                format: "JSON",
                detail: e.to_string(),
            })?;
            let ids = match config.get("eos_token_id") {
                None | Some(Value::Null) => continue,
                Some(Value::Array(ids)) => ids.as_slice(),
                Some(id) => std::slice::from_ref(id),
            };
            let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
            let read = ids.iter().map(id).collect::<Option<Vec<u32>>>();
            let wrong = || {
                ModelError::bad_value(
                    &path,
                    "eos_token_id",
                    "an id or a list of ids",
                    config["eos_token_id"].to_string(),
                )
            };
            return read.ok_or_else(wrong);
        }
        Ok(Vec::new())
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

    fn dtype(&self) -> DType {
        self.weights.dtype()
    }
}
