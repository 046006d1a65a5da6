//! The embedded model.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::Device;
use kvcsr_cache::Scheme;
use kvcsr_model::{Checkpoint, Choice, Decoder, Gguf, Limits, Precision, Tokenizer};

use crate::error::Result;
use crate::{LabError, Prompt, places};

/// Its name in `data/sources.toml`.
pub const EMBEDDED: &str = "smollm2-135m-instruct";

/// A decoder with its tokenizer.
pub struct Model {
    /// The decoder, on the CPU; its matrices are in f32 where nothing else was asked for.
    pub decoder: Decoder,
    /// The tokenizer of the same file.
    pub tokenizer: Tokenizer,
}

impl Model {
    /// The embedded model, which every pipeline downloads. Opening it takes one or two seconds.
    ///
    /// # Errors
    /// If it was not downloaded yet. The error names the command that downloads it.
    pub fn embedded() -> Result<Self> {
        Self::gguf(&downloaded(EMBEDDED)?)
    }

    /// The model of `data/sources.toml` called `id`, its matrices kept as `precision` says: [`Precision::Bf16Fast`] takes half the
    /// memory, and half the time of a prefill where the CPU multiplies pairs of bf16.
    ///
    /// # Errors
    /// If there is no such model, or it was not downloaded yet.
    pub fn named(id: &str, precision: Precision) -> Result<Self> {
        let file = Gguf::open(downloaded(id)?)?;
        let kept = precision.resolve(file.checkpoint()?.dtype());
        Ok(Self { decoder: file.decoder_in(&Device::Cpu, kept)?, tokenizer: file.tokenizer()? })
    }

    /// Your own model, from a GGUF file.
    ///
    /// # Errors
    /// If the file is damaged, or if its architecture is not supported.
    pub fn gguf(path: &Path) -> Result<Self> {
        let file = Gguf::open(path)?;
        Ok(Self { decoder: file.decoder(&Device::Cpu)?, tokenizer: file.tokenizer()? })
    }

    /// Tokenizes `text`, and prefills all tokens exactly except the last `follows`. It then reads these last tokens
    /// with the uncompressed cache. Schemes are scored on them.
    ///
    /// # Errors
    /// If the text is not longer than `follows`, or if it is longer than the model's context.
    pub fn prompt(&self, text: &str, follows: usize) -> Result<Prompt> {
        Prompt::new(self, text, follows)
    }

    /// What the model writes after the prompt's context, at most `tokens` tokens. It always takes the most likely
    /// token. The context is stored under `scheme`.
    ///
    /// # Errors
    /// If the scheme cannot take over the prompt.
    pub fn generate(&self, prompt: &Prompt, scheme: &dyn Scheme, tokens: usize) -> Result<String> {
        let snapshot = prompt.reference.snapshot();
        let mut caches = snapshot.fork(scheme, self.decoder.rotary())?;
        let limits = Limits { max_new_tokens: tokens, min_new_tokens: 0, stop: self.tokenizer.stop_tokens() };
        let go_on = |_| ControlFlow::Continue(());
        let generated = self.decoder.generate(&snapshot.last_logits, &mut caches, Choice::Greedy, limits, go_on)?;
        Ok(self.tokenizer.decode(&generated.ids, true)?)
    }
}

/// The file of a model of `data/sources.toml`.
fn downloaded(id: &str) -> Result<PathBuf> {
    let here = std::env::current_dir().map_err(|source| LabError::Io { path: ".".into(), source })?;
    places::model(&here, &places::cache_dir()?, id)
}
