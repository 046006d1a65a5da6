//! Commands beside the stages: they keep no record.

pub mod footprint;
pub mod generate;
pub mod logits;
pub mod schemes;
pub mod score;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use candle_core::Device;
use kvcsr_model::{ChatTemplate, Decoder, Gguf, HfCheckpoint, Tokenizer};

use crate::config::Config;
use crate::paths::Paths;
use crate::sources::{SourceKind, Sources};

/// The name that stands for the embedded model.
const DEFAULT: &str = "default";

/// An opened model file or folder.
enum Opened {
    Gguf(Gguf),
    Folder(HfCheckpoint),
}

impl Opened {
    /// Opens a GGUF file, a checkpoint folder, or the embedded model.
    fn new(model: &str) -> Result<Self> {
        let path = if model == DEFAULT { embedded()? } else { PathBuf::from(model) };
        if path.is_dir() {
            return Ok(Self::Folder(HfCheckpoint::open(&path)?));
        }
        if !path.exists() {
            bail!("model `{model}`: no such file or folder; `{DEFAULT}` is the embedded model");
        }
        Ok(Self::Gguf(Gguf::open(&path)?))
    }

    fn decoder(&self) -> Result<Decoder> {
        Ok(match self {
            Self::Gguf(file) => file.decoder(&Device::Cpu)?,
            Self::Folder(folder) => folder.decoder(&Device::Cpu)?,
        })
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        Ok(match self {
            Self::Gguf(file) => file.tokenizer()?,
            Self::Folder(folder) => folder.tokenizer()?,
        })
    }

    fn chat_template(&self) -> Result<ChatTemplate> {
        let template = match self {
            Self::Gguf(file) => file.chat_template()?,
            Self::Folder(folder) => folder.chat_template()?,
        };
        template.context("the model has no chat template: leave out --chat")
    }

    /// Ids that end a text.
    fn stop_ids(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        Ok(match self {
            Self::Gguf(_) => tokenizer.eos().into_iter().collect(),
            Self::Folder(folder) => folder.stop_ids()?,
        })
    }
}

/// The model that the profile `smol` uses.
fn embedded() -> Result<PathBuf> {
    let paths = Paths::find("smol")?;
    let config = Config::load(&paths.root.join("pipeline/profiles"), "smol", &[])?;
    Sources::load(&paths.root)?.get(&config.model, SourceKind::Model)?.fetched(&paths)
}
