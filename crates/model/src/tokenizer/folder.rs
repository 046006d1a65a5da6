//! The tokenizer of a Hugging Face folder. It uses all tokenizer files together, and reads them as transformers does.
//!
//! `tokenizer.json` or `tokenizer.model` contains the vocabulary. The files `tokenizer_config.json`,
//! `special_tokens_map.json` and `added_tokens.json` name further tokens. They say how these tokens are matched, and
//! whether texts begin with a BOS and end with an EOS. `generation_config.json` and `config.json` name the ends of a
//! text.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::sentencepiece::{self, PieceType, Prefix};
use super::{Tokenizer, guard};
use crate::error::{ModelError, Result};
use crate::load::text::{read, read_json};
use crate::stop::{StopTokens, is_end, spelled};

/// Keys of `tokenizer_config.json` whose values are tokens, including keys of older files.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const EXTRA: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

impl Tokenizer {
    /// Reads the tokenizer of a checkpoint folder: `tokenizer.json`, or otherwise SentencePiece's `tokenizer.model`,
    /// with the tokens and settings of the other files.
    ///
    /// - Truncation and padding in `tokenizer.json` are switched off: a prompt is never cut or padded.
    /// - These tokens are matched as a whole, with their `lstrip`, `rstrip`, `single_word` and `normalized`: the tokens
    ///   of `added_tokens_decoder` (`tokenizer_config.json`), or otherwise of `added_tokens.json`, and every special
    ///   token that the files name.
    /// - With `tokenizer.json`, only its post-processor says what is put before and after a text. With
    ///   `tokenizer.model`, `add_bos_token` and `add_eos_token` of `tokenizer_config.json` say it. Both are false if
    ///   they are missing, as in transformers 5.
    /// - `legacy` and `add_prefix_space` say where `tokenizer.model` puts spaces. For a `LlamaTokenizer` without
    ///   `legacy`, it is false.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if neither file exists, or if the first is unreadable. [`ModelError::Io`],
    /// [`ModelError::Malformed`] or [`ModelError::WrongFile`] for files that are not text or JSON.
    /// [`ModelError::BadValue`] for an added token whose id is already used, and for a named token that is not a token.
    /// Also the errors of [`Tokenizer::from_sentencepiece`].
    pub fn from_hf_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let settings = Settings::read(folder)?;
        let pieces = folder.join("tokenizer.model");
        if folder.join("tokenizer.json").is_file() || !pieces.is_file() {
            from_json(folder, &settings)
        } else {
            from_pieces(folder, &pieces, settings)
        }
    }

    /// Reads a SentencePiece `tokenizer.model`, BPE or unigram, without other files. With `add_bos`, texts begin with
    /// its BOS, if it has one. Its EOS ends texts.
    ///
    /// # Errors
    /// [`ModelError::Io`]. [`ModelError::Malformed`] for a damaged file, or for one that rewrites the text before
    /// cutting it (NFKC, or removing spaces). The files of Llama, Mistral and Baichuan do not do this.
    pub fn from_sentencepiece(path: impl AsRef<Path>, add_bos: bool) -> Result<Self> {
        let path = path.as_ref();
        let model = read_pieces(path)?;
        let inner = model.build().map_err(|detail| malformed(path, detail))?;
        Ok(Self {
            inner: Arc::new(inner),
            before: model.bos.filter(|_| add_bos),
            after: None,
            stop: StopTokens::new(model.eos),
        })
    }
}

fn malformed(path: &Path, detail: String) -> ModelError {
    ModelError::Malformed { path: path.to_owned(), format: "SentencePiece model", detail }
}

fn read_pieces(path: &Path) -> Result<sentencepiece::Model> {
    let file = std::fs::read(path).map_err(ModelError::io(path))?;
    sentencepiece::Model::parse(&file).map_err(|detail| malformed(path, detail))
}

/// The settings in the files beside the vocabulary.
struct Settings {
    /// `tokenizer_config.json`, with the entries of an older `special_tokens_map.json`.
    config: Map<String, Value>,
    /// Tokens with their ids. `added_in` is the file that lists them.
    added: BTreeMap<u32, AddedToken>,
    added_in: PathBuf,
}

impl Settings {
    fn read(folder: &Path) -> Result<Self> {
        let object = |name: &str| -> Result<Map<String, Value>> {
            let path = folder.join(name);
            match read_json(&path)? {
                None => Ok(Map::new()),
                Some(Value::Object(object)) => Ok(object),
                Some(_) => Err(ModelError::Malformed {
                    path,
                    format: "JSON",
                    detail: "expected an object, found another value".to_owned(),
                }),
            }
        };
        let mut config = object("tokenizer_config.json")?;
        named_tokens(&folder.join("tokenizer_config.json"), &config)?;
        let mut added = BTreeMap::new();
        let mut added_in = folder.join("tokenizer_config.json");
        let id_of = |path: &Path, key: &str, id: Option<u64>, found: &dyn Fn() -> String| {
            let id = id.and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| ModelError::bad_value(path, key, "an id per token", found()))
        };
        if let Some(decoder) = config.get("added_tokens_decoder").and_then(Value::as_object) {
            for (id, token) in decoder {
                let wrong = || token.to_string();
                let key = format!("added_tokens_decoder.{id}");
                let id = id_of(&added_in, &key, id.parse().ok(), &|| format!("{id:?}"))?;
                let token = added_token(token, false)
                    .ok_or_else(|| ModelError::bad_value(&added_in, &key, "a token with its content", wrong()))?;
                added.insert(id, token);
            }
        } else {
            let map = object("special_tokens_map.json")?;
            named_tokens(&folder.join("special_tokens_map.json"), &map)?;
            config.extend(map);
            let path = folder.join("added_tokens.json");
            let tokens = object("added_tokens.json")?;
            let special: Vec<&str> = NAMED.iter().filter_map(|key| spelling(config.get(*key)?)).collect();
            let extra: Vec<&str> =
                EXTRA.iter().filter_map(|key| config.get(*key)?.as_array()).flatten().filter_map(spelling).collect();
            for (token, id) in &tokens {
                let number = id_of(&path, token, id.as_u64(), &|| id.to_string())?;
                let is_special = special.contains(&token.as_str()) || extra.contains(&token.as_str());
                added.insert(number, AddedToken::from(token.as_str(), is_special));
            }
            added_in = path;
        }
        Ok(Self { config, added, added_in })
    }

    fn named(&self, key: &str) -> Option<&str> {
        spelling(self.config.get(key)?)
    }

    /// The value of a flag. `None` if it is missing.
    fn flag(&self, key: &str) -> Option<bool> {
        self.config.get(key)?.as_bool()
    }

    /// Whether the configuration names the class that uses `legacy` and `add_prefix_space` to place spaces.
    fn is_llama(&self) -> bool {
        self.named("tokenizer_class").is_some_and(|class| class.trim_end_matches("Fast") == "LlamaTokenizer")
    }

    /// The special tokens that the configuration names, with or without ids.
    fn special(&self) -> Vec<AddedToken> {
        let known = |value: &Value| {
            let content = spelling(value)?;
            let with_id = self.added.values().find(|token| token.content == content).cloned();
            let token = with_id.or_else(|| added_token(value, true));
            token.map(|token| AddedToken { special: true, ..token })
        };
        let extra = EXTRA.iter().filter_map(|key| self.config.get(*key)).flat_map(|value| match value {
            Value::Array(items) => items.iter().collect::<Vec<_>>(),
            Value::Object(items) => items.values().collect(),
            _ => Vec::new(),
        });
        // New tokens get ids in this order.
        let named = NAMED.iter().filter_map(|key| self.config.get(*key));
        let is_other = |key: &str| key.ends_with("_token") && !NAMED.contains(&key);
        let other = self.config.iter().filter(|(key, _)| is_other(key)).map(|(_, value)| value);
        named.chain(other).chain(extra).filter_map(known).collect()
    }
}

/// Refuses named tokens whose value is not a token. Otherwise an end of texts could be lost silently.
fn named_tokens(path: &Path, config: &Map<String, Value>) -> Result<()> {
    let is_token = |value: &Value| value.is_null() || value.is_string() || value["content"].is_string();
    let wrong = NAMED.iter().filter_map(|key| Some((*key, config.get(*key)?))).find(|(_, value)| !is_token(value));
    wrong.map_or(Ok(()), |(key, value)| {
        Err(ModelError::bad_value(path, key, "a token, or an object with its content", value.to_string()))
    })
}

/// The text of a token, which is a string or an object with `content`.
fn spelling(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str()).filter(|text| !text.is_empty())
}

/// A token as a configuration writes it. Missing flags are false, except `normalized`: it is false for special tokens,
/// and true for others.
fn added_token(value: &Value, special: bool) -> Option<AddedToken> {
    let flag = |key: &str, absent: bool| value.get(key).and_then(Value::as_bool).unwrap_or(absent);
    let special = flag("special", special);
    Some(AddedToken {
        content: spelling(value)?.to_owned(),
        single_word: flag("single_word", false),
        lstrip: flag("lstrip", false),
        rstrip: flag("rstrip", false),
        normalized: flag("normalized", !special),
        special,
    })
}

fn from_json(folder: &Path, settings: &Settings) -> Result<Tokenizer> {
    let path = folder.join("tokenizer.json");
    let named = |e: tokenizers::Error| ModelError::Tokenizer { detail: format!("{}: {e}", path.display()) };
    let Some(text) = read(&path)? else {
        let detail = format!("{}: there is neither tokenizer.json nor tokenizer.model", folder.display());
        return Err(ModelError::Tokenizer { detail });
    };
    guard::check(&text).map_err(|detail| ModelError::Tokenizer { detail: format!("{}: {detail}", path.display()) })?;
    let read =
        || tokenizers::Tokenizer::from_bytes(text.as_bytes()).map_err(|e| format!("{}: {e}", path.display()).into());
    let mut inner = guard::guarded(read)?;
    inner.with_truncation(None).map_err(named)?;
    inner.with_padding(None);
    add(&mut inner, settings)?;
    let eos = settings.named("eos_token").and_then(|token| inner.token_to_id(token));
    let stop = ends(folder, &inner, eos)?;
    Ok(Tokenizer { inner: Arc::new(inner), before: None, after: None, stop })
}

fn from_pieces(folder: &Path, path: &Path, mut settings: Settings) -> Result<Tokenizer> {
    let mut model = read_pieces(path)?;
    // Text between added tokens gets its own leading space. So added tokens are matched before spaces are inserted.
    settings.added.values_mut().for_each(|token| token.normalized = false);
    model.prefix = match (settings.is_llama(), settings.flag("legacy")) {
        (true, _) if settings.flag("add_prefix_space") == Some(false) => Prefix::Never,
        (true, Some(true)) => Prefix::EveryTextUnlessSpaced,
        (true, _) => Prefix::StartUnlessSpaced,
        (false, Some(false)) if model.prefix == Prefix::EveryText => Prefix::StartUnlessSpaced,
        (false, _) => model.prefix,
    };
    let pieces = model.pieces.len();
    // Added tokens have the ids that their file gives to them. There may be gaps between these ids and the pieces.
    for (&id, token) in &settings.added {
        let at = id as usize;
        if let Some((piece, _, kind)) = model.pieces.get_mut(at) {
            // A placeholder takes the name of the token. A piece of text does not, and then the token is refused below.
            if matches!(kind, PieceType::Control | PieceType::UserDefined | PieceType::Unused) {
                token.content.clone_into(piece);
            }
            continue;
        }
        if at - pieces > MOST_BETWEEN + settings.added.len() {
            return Err(ModelError::bad_value(
                &settings.added_in,
                &token.content,
                format!("an id just above those of {}, which has {pieces} pieces", path.display()),
                id.to_string(),
            ));
        }
        while model.pieces.len() < at {
            let unused = format!("<unused id {}>", model.pieces.len());
            model.pieces.push((unused, 0.0, PieceType::Unused));
        }
        model.pieces.push((token.content.clone(), 0.0, PieceType::UserDefined));
    }
    let mut inner = model.build().map_err(|detail| malformed(path, detail))?;
    add(&mut inner, &settings)?;
    let named = |key: &str, own: Option<u32>| settings.named(key).and_then(|token| inner.token_to_id(token)).or(own);
    let (bos, eos) = (named("bos_token", model.bos), named("eos_token", model.eos));
    let add_bos = settings.flag("add_bos_token").unwrap_or(false);
    let add_eos = settings.flag("add_eos_token").unwrap_or(false);
    let stop = ends(folder, &inner, eos)?;
    Ok(Tokenizer { inner: Arc::new(inner), before: bos.filter(|_| add_bos), after: eos.filter(|_| add_eos), stop })
}

/// The largest number of ids between the pieces of a `tokenizer.model` and the added tokens that may be unused.
const MOST_BETWEEN: usize = 1 << 16;

/// Adds the tokens of the configuration to a vocabulary, and checks that each token has the id that it must have.
fn add(inner: &mut tokenizers::Tokenizer, settings: &Settings) -> Result<()> {
    guard::guarded(|| inner.add_tokens(settings.added.values().cloned()))?;
    for (id, token) in &settings.added {
        let found = inner.token_to_id(&token.content);
        if found != Some(*id) {
            let found = found.map_or_else(|| "no such token".to_owned(), |id| id.to_string());
            let expected = format!("id {id}, which the vocabulary gives the token");
            return Err(ModelError::bad_value(&settings.added_in, &token.content, expected, found));
        }
    }
    // A known token is matched in the same way as before.
    let known = inner.get_added_tokens_decoder();
    let special = settings.special().into_iter().map(|token| {
        let found = known.values().find(|known| known.content == token.content);
        found.map_or(token, |found| AddedToken { special: true, ..found.clone() })
    });
    let special: Vec<AddedToken> = special.collect();
    guard::guarded(|| inner.add_special_tokens(special))?;
    Ok(())
}

/// The end tokens of a folder. `eos` is the tokenizer's own.
fn ends(folder: &Path, inner: &tokenizers::Tokenizer, eos: Option<u32>) -> Result<StopTokens> {
    let generation = named_ends(&folder.join("generation_config.json"))?;
    let told = generation.is_some();
    let ids = match generation {
        Some(ids) => ids,
        None => named_ends(&folder.join("config.json"))?.unwrap_or_default(),
    };
    let mut ids = StopTokens::new(ids).and(eos);
    if !told {
        let added = inner.get_added_tokens_decoder();
        ids = ids.and(spelled(
            added.iter().filter(|(_, token)| is_end(&token.content)).map(|(id, token)| (token.content.as_str(), *id)),
        ));
    }
    Ok(ids)
}

/// `eos_token_id` of a configuration: a number or a list.
fn named_ends(path: &Path) -> Result<Option<Vec<u32>>> {
    let Some(config) = read_json(path)? else { return Ok(None) };
    let ids = match config.get("eos_token_id") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(ids)) => ids.as_slice(),
        Some(id) => std::slice::from_ref(id),
    };
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let wrong = || {
        let found = config["eos_token_id"].to_string();
        ModelError::bad_value(path, "eos_token_id", "an id or a list of ids", found)
    };
    ids.iter().map(id).collect::<Option<Vec<u32>>>().map(Some).ok_or_else(wrong)
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
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("tokenizer.json", JSON);
        write("tokenizer_config.json", r#"{"eos_token": "</s>"}"#);
        let tokenizer = Tokenizer::from_hf_folder(folder.path()).unwrap();
        assert_eq!(tokenizer.encode("abba</s>", true).unwrap(), [2, 1, 0, 3]);
        assert_eq!((tokenizer.stop_tokens().ids(), tokenizer.vocab_size()), (&[3][..], 4));
        write("tokenizer.json", "{");
        assert!(Tokenizer::from_hf_folder(folder.path()).is_err());
    }

    #[test]
    fn an_added_token_whose_id_is_taken_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("tokenizer.json", JSON);
        write("added_tokens.json", r#"{"<|im_end|>": 9}"#);
        let error = Tokenizer::from_hf_folder(folder.path()).err().unwrap().to_string();
        assert!(error.contains("added_tokens.json: key `<|im_end|>`: expected id 9"), "{error}");
        write("added_tokens.json", r#"{"<|im_end|>": 4}"#);
        let tokenizer = Tokenizer::from_hf_folder(folder.path()).unwrap();
        assert_eq!(
            (tokenizer.encode("a<|im_end|>", true).unwrap(), tokenizer.stop_tokens().ids()),
            (vec![0, 4], &[3, 4][..])
        );
        write("added_tokens.json", r#"{"<|im_end|>": -4}"#);
        assert!(Tokenizer::from_hf_folder(folder.path()).err().unwrap().to_string().contains("an id per token"));
    }

    #[test]
    fn files_in_other_clothes_are_read_or_named() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let open = || Tokenizer::from_hf_folder(folder.path());
        let refused = || open().err().unwrap().to_string();
        assert!(refused().contains("neither tokenizer.json nor tokenizer.model"), "{}", refused());
        write("tokenizer.json", format!("\u{feff}{JSON}").as_bytes());
        assert_eq!(open().unwrap().encode("ab</s>", false).unwrap(), [2, 3]);
        for (bytes, said) in [
            (wide(JSON), "tokenizer.json: malformed text: it is UTF-16; save it as UTF-8"),
            (wide(&format!("\u{feff}{JSON}")), "it is UTF-16; save it as UTF-8"),
            (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "Git LFS pointer"),
            (b"<!DOCTYPE html>".to_vec(), "a web page"),
            (Vec::new(), "an empty file"),
        ] {
            write("tokenizer.json", &bytes);
            assert!(refused().contains(said), "{}", refused());
        }
        write("tokenizer.json", JSON.as_bytes());
        for file in ["tokenizer_config.json", "special_tokens_map.json"] {
            for value in ["7", "[\"</s>\"]", "{}", "true"] {
                write(file, format!(r#"{{"eos_token": {value}}}"#).as_bytes());
                let said = format!("{file}: key `eos_token`: expected a token, or an object with its content");
                assert!(refused().contains(&said), "{}", refused());
            }
            for value in ["null", "\"</s>\"", r#"{"content": "</s>"}"#] {
                write(file, format!(r#"{{"eos_token": {value}}}"#).as_bytes());
                assert!(open().is_ok(), "{file}: {value}");
            }
        }
    }
}
