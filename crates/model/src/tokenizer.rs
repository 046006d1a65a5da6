//! Text to token ids and back, from GGUF metadata, a Hugging Face `tokenizer.json` or a SentencePiece
//! `tokenizer.model`.
//!
//! A GGUF names its pre-tokenizer (`tokenizer.ggml.pre`) but does not spell it out; [`PreTokenizer`] does. The split
//! decides ids: `smollm` cuts off every digit before the GPT-2 pattern sees the text, so the space before a number
//! stands alone.

use std::path::Path;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::error::{ModelError, Result};
use crate::load::gguf::Gguf;
use crate::sentencepiece::{self, PieceType};

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
    /// Llama 3's pattern: numbers in groups of up to three digits.
    Llama3,
    /// Qwen2's and Qwen3's pattern: as Llama 3's, but every digit alone.
    Qwen2,
}

/// Llama 3's and Qwen2's pattern, up to how many digits go together.
fn cl100k(digits: &str) -> String {
    let words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+";
    let rest = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    format!("{words}|{digits}|{rest}")
}

impl PreTokenizer {
    /// GGUF names that are understood.
    pub const NAMES: &'static [&'static str] = &["gpt-2", "smollm", "llama-bpe", "qwen2"];

    fn named(name: &str) -> Option<Self> {
        match name {
            "gpt-2" => Some(Self::Gpt2),
            "smollm" => Some(Self::SmolLm),
            "llama-bpe" => Some(Self::Llama3),
            "qwen2" => Some(Self::Qwen2),
            _ => None,
        }
    }

    fn build(self) -> Result<PreTokenizerWrapper> {
        let byte_level = ByteLevel::default().add_prefix_space(false);
        let pattern = |digits: &str| -> Result<PreTokenizerWrapper> {
            let pattern = SplitPattern::Regex(cl100k(digits));
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(failed)?;
            Ok(Sequence::new(vec![split.into(), byte_level.use_regex(false).into()]).into())
        };
        Ok(match self {
            Self::Gpt2 => byte_level.into(),
            Self::SmolLm => Sequence::new(vec![Digits::new(true).into(), byte_level.into()]).into(),
            Self::Llama3 => pattern(r"\p{N}{1,3}")?,
            Self::Qwen2 => pattern(r"\p{N}")?,
        })
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
        if model == "llama" {
            return Self::from_gguf_pieces(file);
        }
        if model != "gpt2" {
            return Err(unsupported("tokenizer model", model, "gpt2, llama".to_owned()));
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
        let bpe = BPE::builder().vocab_and_merges(vocab, merges);
        // Llama 3 takes a word that is a token as it is, whatever its merges say.
        let bpe = bpe.ignore_merges(pre == PreTokenizer::Llama3).build();
        let bpe = bpe.map_err(|e| {
            let expected = "merges of tokens in the vocabulary";
            ModelError::bad_value(file.path(), "tokenizer.ggml.merges", expected, e.to_string())
        })?;
        let mut inner = tokenizers::Tokenizer::new(bpe);
        inner.with_pre_tokenizer(Some(pre.build()?));
        inner.with_decoder(Some(ByteLevel::default()));
        let of_type = |wanted: i64| {
            let typed = tokens.iter().zip(&types);
            typed.filter(move |(_, kind)| **kind == wanted).map(|(token, _)| *token)
        };
        inner.add_special_tokens(of_type(CONTROL).map(|token| AddedToken::from(token, true))).map_err(failed)?;
        inner
            .add_tokens(of_type(USER_DEFINED).map(|token| AddedToken::from(token, false).normalized(false)))
            .map_err(failed)?;

        let add_bos =
            file.optional("tokenizer.ggml.add_bos_token").is_some() && file.flag("tokenizer.ggml.add_bos_token")?;
        Ok(Self {
            bos: if add_bos { token_id(file, "tokenizer.ggml.bos_token_id")? } else { None },
            eos: token_id(file, "tokenizer.ggml.eos_token_id")?,
            inner,
        })
    }

    /// A SentencePiece BPE vocabulary in GGUF metadata: tokens with scores instead of merges.
    fn from_gguf_pieces(file: &Gguf) -> Result<Self> {
        let wrong = |key: &str, expected: &str, found: String| ModelError::bad_value(file.path(), key, expected, found);
        let (tokens, scores) = (file.strings("tokenizer.ggml.tokens")?, file.floats("tokenizer.ggml.scores")?);
        let types = file.integers("tokenizer.ggml.token_type")?;
        for (key, length) in [("tokenizer.ggml.scores", scores.len()), ("tokenizer.ggml.token_type", types.len())] {
            if length != tokens.len() {
                let expected = format!("{} elements, one per token", tokens.len());
                return Err(wrong(key, &expected, length.to_string()));
            }
        }
        let pieces = tokens
            .iter()
            .zip(scores)
            .zip(types)
            .map(|((token, score), number)| {
                let kind = u64::try_from(number).ok().and_then(PieceType::numbered);
                let kind = kind.ok_or_else(|| wrong("tokenizer.ggml.token_type", "1 to 6", number.to_string()))?;
                Ok(((*token).to_owned(), score, kind))
            })
            .collect::<Result<Vec<_>>>()?;
        let flag = |key: &str| file.optional(key).map_or(Ok(true), |_| file.flag(key));
        let (bos, eos) =
            (token_id(file, "tokenizer.ggml.bos_token_id")?, token_id(file, "tokenizer.ggml.eos_token_id")?);
        let space_prefix = flag("tokenizer.ggml.add_space_prefix")?;
        let model = sentencepiece::Model { kind: sentencepiece::Kind::Bpe, pieces, space_prefix, bos, eos };
        let inner = model.build().map_err(|detail| wrong("tokenizer.ggml.tokens", "a vocabulary", detail))?;
        let add_bos = flag("tokenizer.ggml.add_bos_token")?;
        Ok(Self { bos: bos.filter(|_| add_bos), eos, inner })
    }

    /// Reads a SentencePiece `tokenizer.model`, BPE or unigram. With `add_bos`, texts begin with its BOS, if it has
    /// one.
    ///
    /// # Errors
    /// [`ModelError::Io`]; [`ModelError::Malformed`] for a damaged file, or one that rewrites the text before cutting
    /// it (NFKC, dropped spaces), which Llama's, Mistral's and Baichuan's do not.
    pub fn from_sentencepiece(path: impl AsRef<Path>, add_bos: bool) -> Result<Self> {
        let path = path.as_ref();
        let file = std::fs::read(path).map_err(ModelError::io(path))?;
        let malformed = |detail| ModelError::Malformed { path: path.to_owned(), format: "SentencePiece model", detail };
        let model = sentencepiece::Model::parse(&file).map_err(malformed)?;
        let inner = model.build().map_err(malformed)?;
        Ok(Self { bos: model.bos.filter(|_| add_bos), eos: model.eos, inner })
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

/// A token's id in GGUF metadata, if the key is there.
fn token_id(file: &Gguf, key: &str) -> Result<Option<u32>> {
    if file.optional(key).is_none() {
        return Ok(None);
    }
    let (id, tokens) = (file.size(key)?, file.array_len("tokenizer.ggml.tokens")?);
    match u32::try_from(id) {
        Ok(small) if id < tokens => Ok(Some(small)),
        _ => Err(ModelError::bad_value(file.path(), key, format!("an id below {tokens}"), id.to_string())),
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
    fn each_pattern_cuts_digits_its_own_way() {
        use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};
        for (name, cuts) in [
            ("gpt-2", &["I", "'ll", "Ġpay", "Ġ12345", "ĠâĤ¬", "Ċ", "Ċ", "Now"][..]),
            ("smollm", &["I", "'ll", "Ġpay", "Ġ", "1", "2", "3", "4", "5", "ĠâĤ¬", "Ċ", "Ċ", "Now"]),
            ("llama-bpe", &["I", "'ll", "Ġpay", "Ġ", "123", "45", "ĠâĤ¬ĊĊ", "Now"]),
            ("qwen2", &["I", "'ll", "Ġpay", "Ġ", "1", "2", "3", "4", "5", "ĠâĤ¬ĊĊ", "Now"]),
        ] {
            let mut text = PreTokenizedString::from("I'll pay 12345 €\n\nNow");
            PreTokenizer::named(name).unwrap().build().unwrap().pre_tokenize(&mut text).unwrap();
            let splits = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
            assert_eq!(splits.iter().map(|split| split.0).collect::<Vec<_>>(), cuts, "{name}");
        }
        assert!(PreTokenizer::NAMES.iter().all(|name| PreTokenizer::named(name).is_some()));
    }

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
