//! How text is cut before byte-pair merging, by the name a GGUF gives it (`tokenizer.ggml.pre`).
//!
//! A GGUF does not spell its pre-tokenizer out. The cuts decide ids: `smollm` cuts off every digit before the GPT-2
//! pattern sees the text, so the space before a number stands alone. Patterns are those of the models' own
//! `tokenizer.json`; which name means which, and which of them begin texts with a BOS, is llama.cpp's.

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use super::failed;
use crate::error::Result;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
const UP_TO_THREE_DIGITS: &str = r"\p{N}{1,3}";
const CJK: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";
/// What DeepSeek's later models cut after numbers and Chinese and Japanese script.
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const DEEPSEEK_HAN: &str = "[一-龥ࠀ-一가-\u{d7ff}]+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const THREE_DIGITS: &str = "[0-9][0-9][0-9]";

/// The same cuts under all their names.
struct Cuts {
    names: &'static [&'static str],
    /// Each cuts what the one before left, at both ends of every match.
    patterns: &'static [&'static str],
    /// A piece that is a token is taken as it is, whatever the merges say.
    ignore_merges: bool,
    /// Whether texts begin with a BOS where the file does not say.
    add_bos: bool,
}

const fn cuts(names: &'static [&'static str], patterns: &'static [&'static str]) -> Cuts {
    Cuts { names, patterns, ignore_merges: false, add_bos: false }
}

const KNOWN: &[Cuts] = &[
    Cuts {
        names: &[
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        patterns: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
    },
    cuts(&["smaug-bpe", "dbrx", "glm4", "chatglm-bpe"], &[LLAMA3]),
    cuts(
        &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"],
        &[QWEN2],
    ),
    cuts(&["qwen35"], &[QWEN35]),
    cuts(
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
        ],
        &[GPT2],
    ),
    cuts(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[DIGIT, GPT2],
    ),
    cuts(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", THREE_DIGITS]),
    cuts(&["falcon"], &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, THREE_DIGITS]),
    Cuts { names: &["tekken"], patterns: &[TEKKEN], ignore_merges: true, add_bos: true },
    cuts(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O]),
    cuts(&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], &[UP_TO_THREE_DIGITS, CJK, DEEPSEEK_V3]),
    cuts(&["deepseek-coder"], &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_HAN, DIGIT]),
    cuts(&["seed-coder"], &[SEED_CODER]),
    cuts(&["bailingmoe", "bailingmoe2", "llada-moe"], &[BAILING]),
];

/// How text is cut before byte-pair merging.
#[derive(Clone, Copy)]
pub(super) struct PreTokenizer(&'static Cuts);

impl PreTokenizer {
    /// The cuts of this GGUF name, if they are known.
    pub(super) fn named(name: &str) -> Option<Self> {
        KNOWN.iter().find(|cuts| cuts.names.contains(&name)).map(Self)
    }

    /// Every known name.
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        Self::groups().flatten().copied()
    }

    /// Every known name, those of the same cuts together.
    pub(super) fn groups() -> impl Iterator<Item = &'static [&'static str]> {
        KNOWN.iter().map(|cuts| cuts.names)
    }

    /// Whether a piece that is a token is taken as it is.
    pub(super) fn ignores_merges(self) -> bool {
        self.0.ignore_merges
    }

    /// Whether texts begin with a BOS where the file does not say.
    pub(super) fn adds_bos(self) -> bool {
        self.0.add_bos
    }

    pub(super) fn build(self) -> Result<PreTokenizerWrapper> {
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        for pattern in self.0.patterns {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(failed)?.into());
        }
        steps.push(ByteLevel::default().add_prefix_space(false).use_regex(false).into());
        Ok(Sequence::new(steps).into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
    }

    #[test]
    fn every_name_is_there_once_and_builds() {
        let mut names: Vec<&str> = PreTokenizer::names().collect();
        assert!(names.iter().all(|name| PreTokenizer::named(name).unwrap().build().is_ok()));
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
