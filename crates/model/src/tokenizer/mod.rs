//! Text to token ids and back, from GGUF metadata or the tokenizer files of a Hugging Face folder.

mod folder;
mod gguf;
mod pre;
mod sentencepiece;

use crate::error::{ModelError, Result};
use crate::stop::StopTokens;

/// A tokenizer with its model's special tokens.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Put before and after every text by `encode(.., special = true)`; `None` where the inner post-processor does it.
    before: Option<u32>,
    after: Option<u32>,
    stop: StopTokens,
}

impl Tokenizer {
    /// Token ids of a text. Special tokens written in the text (`<|im_start|>`) become their ids; with `special`, the
    /// tokens the model wants around every text (a BOS, for most) are added.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if the tokenizer cannot represent the text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, special).map_err(failed)?;
        let around = |id: Option<u32>| id.filter(|_| special);
        let ids = encoding.get_ids().iter().copied();
        Ok(around(self.before).into_iter().chain(ids).chain(around(self.after)).collect())
    }

    /// Text of token ids; bytes that are not UTF-8 become U+FFFD, ids outside the vocabulary nothing.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if the decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(failed)
    }

    /// The tokens that end a text, from every file that names one.
    pub fn stop_tokens(&self) -> &StopTokens {
        &self.stop
    }

    /// Number of distinct ids, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Id of a token by its exact spelling, such as `<|im_end|>`.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Spelling of a token in the vocabulary, such as `Ġthe`.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }
}

fn failed(error: tokenizers::Error) -> ModelError {
    ModelError::Tokenizer { detail: error.to_string() }
}
