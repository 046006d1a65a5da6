//! Converts text to token ids and back. It reads GGUF metadata, or the tokenizer files of a Hugging Face folder.

mod folder;
mod gguf;
mod guard;
mod pre;
mod sentencepiece;

use std::sync::Arc;

use crate::error::{ModelError, Result};
use crate::stop::StopTokens;

/// A tokenizer with its model's special tokens.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<dyn Inner>,
    /// The ids that `encode(.., special = true)` puts before and after every text. `None` if the inner post-processor
    /// does this.
    before: Option<u32>,
    after: Option<u32>,
    stop: StopTokens,
}

impl Tokenizer {
    /// The token ids of a text. Special tokens that are written in the text (`<|im_start|>`) become their ids. With
    /// `special`, the tokens that the model needs around every text are added (a BOS, for most models).
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if the tokenizer cannot represent the text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let around = |id: Option<u32>| id.filter(|_| special);
        let ids = self.inner.encode(text, special)?;
        Ok(around(self.before).into_iter().chain(ids).chain(around(self.after)).collect())
    }

    /// The text of token ids. Bytes that are not UTF-8 become U+FFFD. Ids outside the vocabulary become nothing.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if the decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special)
    }

    /// The tokens that end a text, from all files that name one.
    pub fn stop_tokens(&self) -> &StopTokens {
        &self.stop
    }

    /// The number of distinct ids, including special tokens.
    pub fn vocab_size(&self) -> usize {
        self.inner.size()
    }

    /// The id of a token with this exact spelling, such as `<|im_end|>`.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.id(token)
    }

    /// The spelling of a token in the vocabulary, such as `Ġthe`.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.token(id)
    }
}

/// The functions of a tokenizer, behind a pointer to the code that made it. Every cell of a notebook is a separate
/// library with its own copy of the regular-expression engine. Only the copy that compiled a pattern can split a text
/// with it.
trait Inner: Send + Sync {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>>;
    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String>;
    fn size(&self) -> usize;
    fn id(&self, token: &str) -> Option<u32>;
    fn token(&self, id: u32) -> Option<String>;
}

impl Inner for tokenizers::Tokenizer {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        Ok(guard::guarded(|| self.encode_fast(text, special))?.get_ids().to_vec())
    }

    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guard::guarded(|| (**self).decode(ids, skip_special))
    }

    fn size(&self) -> usize {
        self.get_vocab_size(true)
    }

    fn id(&self, token: &str) -> Option<u32> {
        self.token_to_id(token)
    }

    fn token(&self, id: u32) -> Option<String> {
        self.id_to_token(id)
    }
}

fn failed(error: tokenizers::Error) -> ModelError {
    ModelError::Tokenizer { detail: error.to_string() }
}
