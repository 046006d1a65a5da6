//! The tokens that end a text, collected from all places where a checkpoint names them.
//!
//! A model has learned one or several such tokens. Files name them in different places, and often not all of them: a
//! base model's end of text is in one key, and the end of a chat turn is in another key or only in the vocabulary. A
//! [`StopTokens`] contains all of them. [`Tokenizer::stop_tokens`](crate::Tokenizer::stop_tokens) is the only way to
//! get it.
//!
//! - A GGUF: `tokenizer.ggml.eos_token_id`, `eot_token_id` and `eom_token_id`, and every token that is spelled like a
//!   known end, as in llama.cpp.
//! - A folder: `eos_token_id` (a number or a list) of `generation_config.json`, or otherwise of `config.json`, and
//!   `eos_token` of the tokenizer's files. If no `generation_config.json` names any, also added tokens that are spelled
//!   like a known end.

use crate::error::Result;
use crate::load::gguf::Gguf;

/// Spellings of tokens that end a text or a turn, in the vocabularies of published models.
const ENDS: [&str; 24] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|file_sep|>",
    "<|fim_pad|>",
];
/// More such spellings, from models of code: padding between files, and the start of the next repository.
const CODE_ENDS: [&str; 9] =
    ["<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"];

/// The ids of the tokens that end a text. They are not part of the text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopTokens(Vec<u32>);

impl StopTokens {
    /// The stop tokens with these ids, in ascending order, without duplicates.
    pub fn new(ids: impl IntoIterator<Item = u32>) -> Self {
        let mut ids: Vec<u32> = ids.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        Self(ids)
    }

    /// These stop tokens and `more`.
    #[must_use]
    pub fn and(&self, more: impl IntoIterator<Item = u32>) -> Self {
        Self::new(self.0.iter().copied().chain(more))
    }

    /// The ids, in ascending order.
    pub fn ids(&self) -> &[u32] {
        &self.0
    }

    /// Whether this token ends a text.
    pub fn contains(&self, id: u32) -> bool {
        self.0.binary_search(&id).is_ok()
    }

    /// The end tokens of a GGUF with the vocabulary `tokens`.
    ///
    /// # Errors
    /// [`crate::ModelError::BadValue`] for an id outside the vocabulary.
    pub(crate) fn of_gguf(file: &Gguf, tokens: &[&str], eos: Option<u32>) -> Result<Self> {
        const KEYS: [&str; 5] = ["eot", "eom", "fim_pad", "fim_rep", "fim_sep"];
        let mut ids: Vec<u32> = eos.into_iter().collect();
        for key in KEYS {
            ids.extend(file.token_id(&format!("tokenizer.ggml.{key}_token_id"))?);
        }
        let mut ends = spelled(tokens.iter().copied().zip(0u32..));
        ends.extend(ids);
        Ok(Self::new(ends))
    }
}

/// Whether a token with this spelling is an end, whatever type its file gives to it.
pub(crate) fn is_end(token: &str) -> bool {
    ENDS.contains(&token) || CODE_ENDS.contains(&token)
}

/// The ids of the tokens of a vocabulary that are spelled like a known end.
///
/// Two kinds of vocabularies use one of these spellings for something else. If turns end with `<|return|>` or
/// `<|flush|>` and there are calls, `<|end|>` ends a message inside a turn. If there are tool responses, `</s>` marks
/// text as deleted.
pub(crate) fn spelled<'a>(tokens: impl IntoIterator<Item = (&'a str, u32)>) -> Vec<u32> {
    let ends: Vec<(&str, u32)> = tokens.into_iter().filter(|(token, _)| is_end(token)).collect();
    let has = |token: &str| ends.iter().any(|(end, _)| *end == token);
    let calls = has("<|call|>") || has("<|calls|>");
    let inside = calls && (has("<|return|>") || has("<|flush|>"));
    let strikes = has("<|tool_response>");
    let kept = ends.iter().filter(|(end, _)| !(inside && *end == "<|end|>" || strikes && *end == "</s>"));
    kept.map(|(_, id)| *id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_sorted_and_distinct() {
        let stop = StopTokens::new([7, 3, 7]).and([5, 3]);
        assert_eq!(stop.ids(), [3, 5, 7]);
        assert!(stop.contains(5) && !stop.contains(4));
    }

    #[test]
    fn spellings_that_mean_something_else_in_a_vocabulary_are_left_out() {
        let of = |tokens: &[&'static str]| spelled(tokens.iter().copied().zip(0..));
        assert_eq!(of(&["a", "<|eot_id|>", "<|end|>", "</s>", "<|im_start|>"]), [1, 2, 3]);
        assert_eq!(of(&["<|return|>", "<|call|>", "<|end|>"]), [0, 1]);
        assert_eq!(of(&["<|flush|>", "<|calls|>", "<|end|>"]), [0, 1]);
        assert_eq!(of(&["<|return|>", "<|end|>"]), [0, 1]);
        assert_eq!(of(&["<|tool_response>", "</s>", "<eos>"]), [0, 2]);
    }
}
