//! How text is cut before byte-pair merging, for each name that a GGUF uses (`tokenizer.ggml.pre`).
//!
//! A GGUF contains only the name of its pre-tokenizer. The cuts determine the ids. For example, `smollm` cuts off every
//! digit before the GPT-2 pattern is applied, so the space before a number is a separate piece. The patterns are those
//! of the models' own `tokenizer.json`. llama.cpp defines which name means which pattern, and for which names texts
//! begin with a BOS.

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
/// What DeepSeek's later models cut, after numbers and after Chinese and Japanese script.
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const DEEPSEEK_HAN: &str = "[一-龥ࠀ-一가-\u{d7ff}]+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
/// A space and cased letters, as in DeepSeek LLM's `tokenizer.json`.
const CASED: &str = concat!(
    "\\s?[",
    "A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{295}-\u{2af}\u{370}",
    "-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}\u{3a3}-\u{3f5}",
    "\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\u{13f8}-\u{13fd}\u{1c90}",
    "-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}",
    "-\u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}",
    "\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}",
    "-\u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}",
    "\u{2119}-\u{211d}\u{2124}\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\u{2145}",
    "-\u{2149}\u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}",
    "-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\u{fb00}",
    "-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}",
    "-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}",
    "]+"
);
/// What BLOOM cuts: runs of characters other than white space and the punctuation of a few scripts.
const BLOOM: &str = " ?[^(\\s|.,!?\u{2026}\u{3002}\u{ff0c}\u{3001}\u{964}\u{6d4}\u{60c})]+";
const YOUTU_SCRIPTS: &str = "[\u{ac00}-\u{d7a3}\u{3131}-\u{318e}]+|[\u{ff01}\u{2026}\u{201c}\u{201d}\u{2018}\u{2019}\u{2014}\u{ff1a}\u{ff1b}\u{ff0c}\u{3001}-\u{303f}\u{fe30}-\u{fe4f}]+|[\u{3105}-\u{312f}]+|[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+";
/// GPT-4o's pattern with single digits.
const YOUTU: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words that may contain single spaces.
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const MINICPM5: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen2's pattern without English contractions, so that Turkish suffixes stay with their apostrophe.
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Llama 3's pattern, with white space in pieces whose lengths are powers of two.
const JAIS_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
/// DeepSeek V3's pattern, with each line end as a separate piece.
const SPARK: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##;
/// GPT-4o's pattern with Chinese script separately, as in Kimi K2's `tokenization_kimi.py`.
const KIMI_K2: &str = r"\p{Han}+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Groups of three digits, counted from the end of a number.
const THREES_FROM_THE_END: &str = r"\p{N}{1,2}(?=(?:\p{N}{3})+(?!\p{N}))|\p{N}{3}|\p{N}{1,2}";
/// Scripts that AFMoE cuts as a whole: Chinese, Japanese, Korean, Thai vowels, Lao, Khmer, Myanmar.
const AFMOE_SCRIPTS: &str = "[\u{4e00}-\u{9fff}\u{3400}-\u{4dbf}\u{f900}-\u{faff}\u{3040}-\u{309f}\u{30a0}-\u{30ff}\u{ff65}-\u{ff9f}\u{2f00}-\u{2fdf}\u{e40}-\u{e7f}\u{e80}-\u{eff}\u{1780}-\u{17ff}\u{1000}-\u{109f}\u{aa60}-\u{aa7f}\u{a9e0}-\u{a9ff}\u{ac00}-\u{d7af}\u{1100}-\u{11ff}]+";
const THREE_DIGITS: &str = "[0-9][0-9][0-9]";

/// One way of cutting, with all its names.
struct Cuts {
    names: &'static [&'static str],
    /// Each pattern cuts the pieces that the patterns before it left, at both ends of every match.
    patterns: &'static [&'static str],
    /// Whether a piece that is a token is used directly, without applying merges.
    ignore_merges: bool,
    /// Whether texts begin with a BOS if the file does not say it.
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
    cuts(
        &["deepseek-llm"],
        &[
            r"[\r\n]",
            CASED,
            "\\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+",
            r"\s+$",
            DEEPSEEK_HAN,
            r"\p{N}+",
        ],
    ),
    cuts(&["bloom", "poro-chat", "gpt3-finnish"], &[BLOOM]),
    cuts(&["viking"], &[BLOOM, DIGIT]),
    Cuts {
        names: &["chameleon"],
        patterns: &[
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            DIGIT,
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ],
        ignore_merges: false,
        add_bos: true,
    },
    Cuts { names: &["youtu"], patterns: &[YOUTU_SCRIPTS, YOUTU], ignore_merges: true, add_bos: false },
    cuts(&["superbpe"], &[r"\p{N}+", r"(?=(\d{3})+(?!\d))"]),
    cuts(&["tiny_aya", "cohere2moe"], &[r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O]),
    cuts(&["exaone-moe"], &[EXAONE_MOE]),
    Cuts { names: &["minicpm5"], patterns: &[UP_TO_THREE_DIGITS, MINICPM5], ignore_merges: true, add_bos: false },
    cuts(&["ufakzeka"], &[UFAKZEKA]),
    cuts(&["laguna"], &[r"[^\n]+|[\n]+", QWEN2]),
    cuts(&["jais-2"], &[JAIS_2]),
    cuts(&["kimi-k2"], &[KIMI_K2]),
    cuts(&["afmoe"], &[THREES_FROM_THE_END, AFMOE_SCRIPTS, DEEPSEEK_V3]),
    cuts(&["spark2_5"], &[UP_TO_THREE_DIGITS, CJK, SPARK, DIGIT]),
];

/// Names that are known but not supported, and the reasons.
const REFUSED: &[(&[&str], &str)] = &[
    (
        &[
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "whitespace",
            "granite-embed-multi-97m",
            "granite-embed-multi-311m",
        ],
        "is of embedding models, which generate no text",
    ),
    (&["gemma4", "sarvam-moe"], "merges characters, not bytes, and is of architectures that are not read"),
];

/// How text is cut before byte-pair merging.
#[derive(Clone, Copy)]
pub(super) struct PreTokenizer(&'static Cuts);

impl PreTokenizer {
    /// The cuts of this GGUF name, if they are known.
    pub(super) fn named(name: &str) -> Option<Self> {
        KNOWN.iter().find(|cuts| cuts.names.contains(&name)).map(Self)
    }

    /// The reason why a known name is not supported.
    pub(super) fn refusal(name: &str) -> Option<&'static str> {
        REFUSED.iter().find(|(names, _)| names.contains(&name)).map(|(_, why)| *why)
    }

    /// Every known name.
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        Self::groups().flatten().copied()
    }

    /// Every known name. Names for the same cuts are together.
    pub(super) fn groups() -> impl Iterator<Item = &'static [&'static str]> {
        KNOWN.iter().map(|cuts| cuts.names)
    }

    /// Whether a piece that is a token is used directly.
    pub(super) fn ignores_merges(self) -> bool {
        self.0.ignore_merges
    }

    /// Whether texts begin with a BOS if the file does not say it.
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
