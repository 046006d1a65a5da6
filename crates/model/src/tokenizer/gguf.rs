//! The tokenizer in a GGUF's metadata. If a key is missing, llama.cpp's default is used.

use std::sync::Arc;

use tokenizers::AddedToken;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::guard::caught;
use super::pre::PreTokenizer;
use super::sentencepiece::{self, PieceType, Prefix};
use super::{Tokenizer, failed};
use crate::error::{ModelError, Result};
use crate::load::gguf::{Gguf, TOKENS};
use crate::stop::{StopTokens, is_end};

const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const PRE: &str = "tokenizer.ggml.pre";

impl Tokenizer {
    /// Builds the tokenizer that a GGUF's `tokenizer.ggml.*` metadata describes: byte-level BPE (model `gpt2`) or
    /// SentencePiece BPE (model `llama`).
    ///
    /// # Errors
    /// If keys are missing or have a wrong type, if the tokenizer model is another one, if the pre-tokenizer is not
    /// known, or if merges contain tokens outside the vocabulary.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        let vocabulary = Vocabulary::read(file)?;
        match file.str("tokenizer.ggml.model")? {
            "llama" => pieces(file, vocabulary),
            "gpt2" => byte_level(file, vocabulary),
            other => Err(unsupported(file, "tokenizer model", other, "gpt2, llama".to_owned())),
        }
    }

    /// The names of pre-tokenizers (`tokenizer.ggml.pre`) that [`Tokenizer::from_gguf`] knows. Names for the same way
    /// of cutting text are in one group.
    pub fn pre_tokenizers() -> impl Iterator<Item = &'static [&'static str]> {
        PreTokenizer::groups()
    }
}

fn unsupported(file: &Gguf, what: &'static str, found: &str, supported: String) -> ModelError {
    ModelError::Unsupported { path: file.path().to_owned(), what, found: found.to_owned(), supported }
}

/// The tokens of a file, with their types. The id of a token is its position.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<PieceType>,
    /// Whether special tokens remove the white space after them.
    strips: bool,
}

impl<'a> Vocabulary<'a> {
    fn read(file: &'a Gguf) -> Result<Self> {
        let tokens = file.strings(TOKENS)?;
        let mut types = vec![PieceType::Normal; tokens.len()];
        if file.optional(TYPES).is_some() {
            let numbers = file.integers(TYPES)?;
            same_length(file, TYPES, numbers.len(), tokens.len())?;
            for (kind, number) in types.iter_mut().zip(numbers) {
                *kind = u64::try_from(number)
                    .ok()
                    .and_then(PieceType::numbered)
                    .ok_or_else(|| ModelError::bad_value(file.path(), TYPES, "1 to 6", number.to_string()))?;
            }
        }
        // Some converters marked the ends of turns as plain text. No model means this.
        for (kind, _) in types.iter_mut().zip(&tokens).filter(|(_, token)| is_end(token)) {
            *kind = PieceType::Control;
        }
        // Phi-3's special tokens strip white space. The format has no key for this.
        let name = file.optional("general.name").and_then(|name| name.to_string().ok());
        let name = name.map(|name| name.to_lowercase()).unwrap_or_default();
        Ok(Self { tokens, types, strips: name.contains("phi-3") || name.contains("phi3") })
    }

    /// Tokens that are matched as a whole, anywhere in a text.
    fn added(&self) -> impl Iterator<Item = AddedToken> {
        let typed = self.tokens.iter().zip(&self.types);
        typed.filter_map(|(token, kind)| {
            let special = match kind {
                PieceType::Control | PieceType::Unknown => true,
                PieceType::UserDefined => false,
                _ => return None,
            };
            let strips = self.strips && !["<unk>", "<s>", "<|endoftext|>"].contains(token);
            Some(AddedToken::from(*token, special).normalized(false).rstrip(strips))
        })
    }
}

fn same_length(file: &Gguf, key: &str, found: usize, tokens: usize) -> Result<()> {
    if found == tokens {
        return Ok(());
    }
    Err(ModelError::bad_value(file.path(), key, format!("{tokens} elements, one per token"), found.to_string()))
}

fn flag(file: &Gguf, key: &str, absent: bool) -> Result<bool> {
    if file.optional(key).is_some() { file.flag(key) } else { Ok(absent) }
}

/// The finished tokenizer. `bos` and `eos` are the ids that the file's keys give, or their defaults.
fn finish(
    file: &Gguf,
    vocabulary: &Vocabulary<'_>,
    inner: tokenizers::Tokenizer,
    ids: (Option<u32>, Option<u32>),
    adds_bos: bool,
) -> Result<Tokenizer> {
    let (bos, eos) = ids;
    let (add_bos, add_eos) =
        (flag(file, "tokenizer.ggml.add_bos_token", adds_bos)?, flag(file, "tokenizer.ggml.add_eos_token", false)?);
    Ok(Tokenizer {
        inner: Arc::new(inner),
        before: bos.filter(|_| add_bos),
        after: eos.filter(|_| add_eos),
        stop: StopTokens::of_gguf(file, &vocabulary.tokens, eos)?,
    })
}

fn byte_level(file: &Gguf, vocabulary: Vocabulary<'_>) -> Result<Tokenizer> {
    let name = if file.optional(PRE).is_some() { file.str(PRE)? } else { "default" };
    let pre = PreTokenizer::named(name).ok_or_else(|| {
        let known = PreTokenizer::names().collect::<Vec<_>>().join(", ");
        let why = PreTokenizer::refusal(name).map_or_else(String::new, |why| format!("; `{name}` {why}"));
        unsupported(file, "pre-tokenizer", name, known + &why)
    })?;
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
    let tokens = &vocabulary.tokens;
    let vocab: Vocab = tokens.iter().map(|token| (*token).to_owned()).zip(0u32..).collect();
    if vocab.len() != tokens.len() {
        return Err(ModelError::bad_value(
            file.path(),
            TOKENS,
            format!("{} distinct tokens", tokens.len()),
            vocab.len().to_string(),
        ));
    }
    // If a merge is longer than every token, the builder panics.
    let bpe = caught(|| BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(pre.ignores_merges()).build());
    let bpe = bpe.map_err(|e| {
        let expected = "merges of tokens in the vocabulary";
        ModelError::bad_value(file.path(), "tokenizer.ggml.merges", expected, e)
    })?;
    let mut inner = tokenizers::Tokenizer::new(bpe);
    inner.with_pre_tokenizer(Some(pre.build()?));
    inner.with_decoder(Some(ByteLevel::default()));
    inner.add_tokens(vocabulary.added()).map_err(failed)?;
    let ids = (file.token_id("tokenizer.ggml.bos_token_id")?, file.token_id("tokenizer.ggml.eos_token_id")?);
    finish(file, &vocabulary, inner, ids, pre.adds_bos())
}

/// A SentencePiece BPE vocabulary: its tokens have scores instead of merges.
fn pieces(file: &Gguf, vocabulary: Vocabulary<'_>) -> Result<Tokenizer> {
    let scores = file.floats(SCORES)?;
    same_length(file, SCORES, scores.len(), vocabulary.tokens.len())?;
    let pieces = vocabulary.tokens.iter().zip(scores).zip(&vocabulary.types);
    let mut pieces: Vec<(String, f32, PieceType)> =
        pieces.map(|((token, score), kind)| ((*token).to_owned(), score, *kind)).collect();
    if pieces.iter().all(|piece| piece.2 != PieceType::Unknown) {
        // Gemma's converter marks the unknown token as a control token. The key says which token it is.
        let unknown = file.token_id("tokenizer.ggml.unknown_token_id")?.unwrap_or(0);
        if let Some(piece) = pieces.get_mut(unknown as usize) {
            piece.2 = PieceType::Unknown;
        }
    }
    // If the file gives no ids, those of Llama are used.
    let id = |key: &str, absent: u32| -> Result<Option<u32>> {
        let named = file.token_id(key)?;
        Ok(named.or((vocabulary.tokens.len() > absent as usize).then_some(absent)))
    };
    let (bos, eos) = (id("tokenizer.ggml.bos_token_id", 1)?, id("tokenizer.ggml.eos_token_id", 2)?);
    let prefix = if flag(file, "tokenizer.ggml.add_space_prefix", true)? { Prefix::EveryText } else { Prefix::Never };
    let model = sentencepiece::Model { kind: sentencepiece::Kind::Bpe, pieces, prefix, bos, eos };
    let mut inner =
        model.build().map_err(|detail| ModelError::bad_value(file.path(), TOKENS, "a vocabulary", detail))?;
    inner.add_tokens(vocabulary.added()).map_err(failed)?;
    finish(file, &vocabulary, inner, (bos, eos), true)
}
