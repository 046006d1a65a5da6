//! Tokenizers and chat templates.

use std::fs;
use std::path::Path;

use kvcsr_model::{ChatTemplate, Message, ModelError, Tokenizer};

use super::Verdict;
use crate::place::Place;
use crate::seeds::pieces;

/// The text that every tokenizer gets.
const SAMPLE: &str = "Hello  a world 123<s>\n\u{e9}\u{4e16}";

/// Encodes the sample and decodes ids, also unknown ones. A failure must be an error, not a panic.
pub(super) fn tokenized(tokenizer: &Tokenizer) {
    for special in [false, true] {
        if let Ok(ids) = tokenizer.encode(SAMPLE, special) {
            let _ = tokenizer.decode(&ids, !special);
        }
    }
    let _ = tokenizer.decode(&[0, 1, 2, u32::MAX], true);
    tokenizer.vocab_size();
    tokenizer.token(0);
    tokenizer.id("<s>");
}

/// Renders conversations of one and of three turns. Returns whether one of them succeeded.
pub(super) fn rendered(template: &ChatTemplate) -> bool {
    let turn = |role, content| Message { role, content };
    let one = template.render(&[turn("user", "Hi {{ x }} <s>")], true).is_ok();
    let more = template.render(&[turn("system", "s"), turn("user", "u"), turn("assistant", "")], false).is_ok();
    one || more
}

/// The input is `tokenizer.json`, followed after a zero byte by `tokenizer_config.json`.
pub fn tokenizer_json(input: &[u8], place: &Place) -> Verdict {
    folder(input, place, &["tokenizer.json", "tokenizer_config.json"]);
    read(Tokenizer::from_hf_folder(place.folder()))
}

fn read(tokenizer: Result<Tokenizer, ModelError>) -> Verdict {
    let Ok(tokenizer) = tokenizer else { return Verdict::Refused };
    tokenized(&tokenizer);
    Verdict::Taken
}

/// Files beside a `tokenizer.model`. In the input they are separated by zero bytes.
const BESIDE: [&str; 4] =
    ["added_tokens.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"];

/// A correct SentencePiece model. The input has the other files of its folder.
pub fn tokenizer_folder(input: &[u8], place: &Place) -> Verdict {
    if !place.path("tokenizer.model").is_file() {
        place.write("tokenizer.model", &pieces());
    }
    folder(input, place, &BESIDE);
    read(Tokenizer::from_hf_folder(place.folder()))
}

/// Writes the parts of an input, which zero bytes separate, as the files `names`. If a part is missing, its file does
/// not exist.
pub(super) fn folder(input: &[u8], place: &Place, names: &[&str]) {
    let mut parts = input.splitn(names.len(), |&byte| byte == 0);
    for name in names {
        match parts.next() {
            Some(part) => drop(place.write(name, part)),
            None => drop(fs::remove_file(place.path(name))),
        }
    }
}

/// A SentencePiece model without other files.
pub fn tokenizer_model(input: &[u8], place: &Place) -> Verdict {
    read(Tokenizer::from_sentencepiece(place.write("tokenizer.model", input), true))
}

/// Compiles a template, and renders two conversations.
pub fn chat_template(input: &[u8], _: &Place) -> Verdict {
    let Ok(source) = std::str::from_utf8(input) else { return Verdict::Refused };
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    match ChatTemplate::new(source, Path::new("chat_template.jinja"), &tokens) {
        Ok(template) if rendered(&template) => Verdict::Taken,
        _ => Verdict::Refused,
    }
}
