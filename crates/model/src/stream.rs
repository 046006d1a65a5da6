//! Text while it is generated: only whole characters, and no part of a stop string.

use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// Turns tokens into pieces of text that can be shown immediately.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    stops: &'a [String],
    ids: Vec<u32>,
    /// The start of the tokens that are decoded again with each new token, and the end of the tokens whose text was
    /// already returned. This is necessary because the text of a token can depend on the token before it.
    from: usize,
    done: usize,
    /// Decoded text that may be the start of a stop string.
    held: String,
    stopped: bool,
}

impl<'a> TextStream<'a> {
    /// A stream that ends before any of `stops`.
    pub fn new(tokenizer: &'a Tokenizer, stops: &'a [String]) -> Self {
        Self { tokenizer, stops, ids: Vec::new(), from: 0, done: 0, held: String::new(), stopped: false }
    }

    /// Takes a token, and returns the text that can be shown now. It may be empty.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let before = self.tokenizer.decode(&self.ids[self.from..self.done], true)?;
        let after = self.tokenizer.decode(&self.ids[self.from..], true)?;
        // A character can consist of several tokens. Until it is complete, it decodes to U+FFFD.
        if after.len() <= before.len() || after.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.held.push_str(after.get(before.len()..).unwrap_or_default());
        (self.from, self.done) = (self.done, self.ids.len());
        Ok(self.release(false))
    }

    /// Returns the text that was held back, at the end of the generation.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn finish(&mut self) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[self.from..self.done], true)?;
        let after = self.tokenizer.decode(&self.ids[self.from..], true)?;
        self.held.push_str(after.get(before.len()..).unwrap_or_default());
        (self.from, self.done) = (self.done, self.ids.len());
        Ok(self.release(true))
    }

    /// Whether a stop string was found.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    fn release(&mut self, all: bool) -> String {
        if self.stopped {
            return String::new();
        }
        if let Some(at) = self.stops.iter().filter(|s| !s.is_empty()).filter_map(|s| self.held.find(s.as_str())).min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let begins_a_stop = |at: &usize| {
            let tail = &self.held[*at..];
            self.stops.iter().any(|stop| stop.starts_with(tail))
        };
        let keep = self.held.char_indices().map(|(at, _)| at).find(begins_a_stop).filter(|_| !all);
        let rest = self.held.split_off(keep.unwrap_or(self.held.len()));
        std::mem::replace(&mut self.held, rest)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A byte-level vocabulary: `Ã` and `©` are the two bytes of `é`.
    const JSON: &str = r#"{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": true}, "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "Ã": 2, "©": 3}, "merges": []}}"#;

    fn run(ids: &[u32], stops: &[&str]) -> (Vec<String>, bool) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), JSON).unwrap();
        let tokenizer = Tokenizer::from_hf_folder(folder.path()).unwrap();
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut stream = TextStream::new(&tokenizer, &stops);
        let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        (pieces, stream.stopped())
    }

    #[test]
    fn characters_come_out_whole() {
        assert_eq!(run(&[0, 2, 3, 1], &[]).0, ["a", "", "é", "b", ""]);
        assert_eq!(run(&[0, 2], &[]).0, ["a", "", "\u{fffd}"]);
    }

    #[test]
    fn nothing_of_a_stop_string_is_shown() {
        assert_eq!(run(&[0, 1, 1, 0], &["bb"]), (["a", "", "", "", ""].map(str::to_owned).to_vec(), true));
        assert_eq!(run(&[0, 1, 0], &["bb"]), (["a", "", "ba", ""].map(str::to_owned).to_vec(), false));
        assert_eq!(run(&[0, 1], &["bb"]), (["a", "", "b"].map(str::to_owned).to_vec(), false));
    }
}
