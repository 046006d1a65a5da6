//! Text to token ids and back: byte-level BPE, from GGUF metadata or a Hugging Face `tokenizer.json`.
//!
//! A GGUF names its pre-tokenizer (`tokenizer.ggml.pre`) but does not spell it out; [`PreTokenizer`] does. The split
//! decides ids: `smollm` cuts off every digit before the GPT-2 pattern sees the text, so the space before a number
//! stands alone.

use std::path::Path;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, PreTokenizerWrapper};

use crate::error::{ModelError, Result};
use crate::load::gguf::Gguf;

/// GGUF token types that are not plain vocabulary.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// How text is cut before byte-pair merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreTokenizer {
    /// GPT-2's pattern on the whole text.
    Gpt2,
    /// Every numeric character alone, then GPT-2's pattern on what is between.
    SmolLm,
}

impl PreTokenizer {
    /// GGUF names that are understood.
    pub const NAMES: &'static [&'static str] = &["gpt-2", "smollm"];

    fn named(name: &str) -> Option<Self> {
        match name {
            "gpt-2" => Some(Self::Gpt2),
            "smollm" => Some(Self::SmolLm),
            _ => None,
        }
    }

    fn build(self) -> PreTokenizerWrapper {
        let byte_level = ByteLevel::default().add_prefix_space(false);
        match self {
            Self::Gpt2 => byte_level.into(),
            Self::SmolLm => Sequence::new(vec![Digits::new(true).into(), byte_level.into()]).into(),
        }
    }
}

/// A tokenizer with its model's special tokens.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Put before every text by `encode(.., special = true)`; `None` where the inner post-processor does it.
    bos: Option<u32>,
    eos: Option<u32>,
}

impl Tokenizer {
    /// Builds the tokenizer that a GGUF's `tokenizer.ggml.*` metadata describes.
    ///
    /// # Errors
    /// Missing or mistyped keys; a tokenizer model other than `gpt2`; a pre-tokenizer outside [`PreTokenizer::NAMES`];
    /// merges of tokens outside the vocabulary.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        let unsupported = |what, found: &str, supported: String| ModelError::Unsupported {
            path: file.path().to_owned(),
            what,
            found: found.to_owned(),
            supported,
        };
        let model = file.str("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(unsupported("tokenizer model", model, "gpt2".to_owned()));
        }
        let pre = file.str("tokenizer.ggml.pre")?;
        let pre = PreTokenizer::named(pre)
            .ok_or_else(|| unsupported("pre-tokenizer", pre, PreTokenizer::NAMES.join(", ")))?;

        let tokens = file.strings("tokenizer.ggml.tokens")?;
        let merges = file
            .strings("tokenizer.ggml.merges")?
            .into_iter()
            .map(|merge| match merge.split_once(' ') {
                Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
                None => Err(ModelError::bad_value(
                    file.path(),
                    "tokenizer.ggml.merges",
                    "pairs separated by one space",
                    format!("{merge:?}"),
                )),
            })
            .collect::<Result<Merges>>()?;
        let types = file.integers("tokenizer.ggml.token_type")?;
        if types.len() != tokens.len() {
            return Err(ModelError::bad_value(
                file.path(),
                "tokenizer.ggml.token_type",
                format!("{} elements, one per token", tokens.len()),
                types.len().to_string(),
            ));
        }
        let owned = tokens.iter().map(|token| (*token).to_owned());
        let vocab: Vocab = owned.zip(0u32..).collect();
        if vocab.len() != tokens.len() {
            return Err(ModelError::bad_value(
                file.path(),
                "tokenizer.ggml.tokens",
                format!("{} distinct tokens", tokens.len()),
                vocab.len().to_string(),
            ));
        }
        let bpe = BPE::builder().vocab_and_merges(vocab, merges).build();
        let bpe = bpe.map_err(|e| {
            let expected = "merges of tokens in the vocabulary";
            ModelError::bad_value(file.path(), "tokenizer.ggml.merges", expected, e.to_string())
        })?;
        let mut inner = tokenizers::Tokenizer::new(bpe);
        inner.with_pre_tokenizer(Some(pre.build()));
        inner.with_decoder(Some(ByteLevel::default()));
        let of_type = |wanted: i64| {
            let typed = tokens.iter().zip(&types);
            typed.filter(move |(_, kind)| **kind == wanted).map(|(token, _)| *token)
        };
        inner.add_special_tokens(of_type(CONTROL).map(|token| AddedToken::from(token, true))).map_err(failed)?;
        inner
            .add_tokens(of_type(USER_DEFINED).map(|token| AddedToken::from(token, false).normalized(false)))
            .map_err(failed)?;

        let id = |key: &str| -> Result<Option<u32>> {
            if file.optional(key).is_none() {
                return Ok(None);
            }
            let id = file.size(key)?;
            match u32::try_from(id) {
                Ok(small) if id < tokens.len() => Ok(Some(small)),
                _ => {
                    let expected = format!("an id below {}", tokens.len());
                    Err(ModelError::bad_value(file.path(), key, expected, id.to_string()))
                }
            }
        };
        let add_bos =
            file.optional("tokenizer.ggml.add_bos_token").is_some() && file.flag("tokenizer.ggml.add_bos_token")?;
        Ok(Self {
            bos: if add_bos { id("tokenizer.ggml.bos_token_id")? } else { None },
            eos: id("tokenizer.ggml.eos_token_id")?,
            inner,
        })
    }

    /// Reads a Hugging Face `tokenizer.json`. That file does not say which token ends a text: `eos` names it.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if the file is unreadable or does not hold the `eos` token.
    pub fn from_hf_file(path: impl AsRef<Path>, eos: Option<&str>) -> Result<Self> {
        let path = path.as_ref();
        let inner = tokenizers::Tokenizer::from_file(path)
            .map_err(|e| ModelError::Tokenizer { detail: format!("{}: {e}", path.display()) })?;
        let id = |token: &str| {
            inner
                .token_to_id(token)
                .ok_or_else(|| ModelError::Tokenizer { detail: format!("{}: no token `{token}`", path.display()) })
        };
        Ok(Self { eos: eos.map(id).transpose()?, bos: None, inner })
    }

    /// Token ids of a text. Special tokens written in the text (`<|im_start|>`) become their ids; with `special`, the
    /// tokens the model wants around every text (a BOS, for most) are added.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if the tokenizer cannot represent the text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, special).map_err(failed)?;
        let bos = self.bos.filter(|_| special);
        Ok(bos.into_iter().chain(encoding.get_ids().iter().copied()).collect())
    }

    /// Text of token ids; bytes that are not UTF-8 become U+FFFD, ids outside the vocabulary nothing.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if the decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(failed)
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Number of distinct ids, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Id of a token by its exact spelling, such as `<|im_end|>`.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
}

fn failed(error: tokenizers::Error) -> ModelError {
    ModelError::Tokenizer { detail: error.to_string() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const JSON: &str = r#"{"version": "1.0", "added_tokens": [{"id": 3, "content": "</s>", "special": true,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": {"type": "BPE",
        "vocab": {"a": 0, "b": 1, "ab": 2, "</s>": 3}, "merges": ["a b"]}}"#;

    #[test]
    fn a_hugging_face_file_reads_with_its_end_token() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), JSON).unwrap();
        let tokenizer = Tokenizer::from_hf_file(file.path(), Some("</s>")).unwrap();
        assert_eq!(tokenizer.encode("abba</s>", true).unwrap(), [2, 1, 0, 3]);
        assert_eq!((tokenizer.eos(), tokenizer.vocab_size()), (Some(3), 4));

        let error = Tokenizer::from_hf_file(file.path(), Some("<eos>")).err().unwrap();
        assert!(error.to_string().contains("no token `<eos>`"));
        std::fs::write(file.path(), "{").unwrap();
        assert!(Tokenizer::from_hf_file(file.path(), None).is_err());
    }
}
