//! Vocabularies of the published sizes and in the published formats, made of [`pieces`]. Special tokens have their published ids.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::pieces::{characters, runs};

/// What stands for a space in SentencePiece.
const SPACE: char = '\u{2581}';
/// Tokens of Llama 3 above its 128000 pieces.
const SPECIAL: usize = 256;
/// How Llama 3 cuts text before it merges.
const CUT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Numbers of SentencePiece's `Type`.
#[derive(Clone, Copy)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Byte = 6,
}

/// Llama 2's `tokenizer.model`: three control pieces, the bytes, and the pieces that are merged.
pub fn llama2(vocab: usize) -> Vec<u8> {
    let pieces = control().chain(bytes()).chain(normal());
    model(pieces, vocab, true)
}

/// Baichuan 2's `tokenizer.model`. `<reserved_106>` and `<reserved_107>`, which open the turns of a chat, have the ids that
/// `generation_config.json` names: 195 and 196.
pub fn baichuan2(vocab: usize) -> Vec<u8> {
    let unnamed = (3..89).map(|id| (format!("<unnamed_{id}>"), Kind::UserDefined));
    let reserved = (0..150).map(|number| (format!("<reserved_{number}>"), Kind::UserDefined));
    let pieces = control().chain(unnamed).chain(reserved).chain(bytes()).chain(normal());
    model(pieces, vocab, false)
}

fn control() -> impl Iterator<Item = (String, Kind)> {
    [("<unk>", Kind::Unknown), ("<s>", Kind::Control), ("</s>", Kind::Control)]
        .into_iter()
        .map(|(piece, kind)| (piece.to_owned(), kind))
}

fn bytes() -> impl Iterator<Item = (String, Kind)> {
    (0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), Kind::Byte))
}

fn normal() -> impl Iterator<Item = (String, Kind)> {
    // A new line and tabs are bytes in Llama 2.
    characters().chain(runs(SPACE)).map(|piece| (piece, Kind::Normal))
}

/// A SentencePiece model of the first `vocab` pieces, a BPE. `prefix`: a space is put before text.
fn model(pieces: impl Iterator<Item = (String, Kind)>, vocab: usize, prefix: bool) -> Vec<u8> {
    let mut file = Vec::new();
    let mut count = 0;
    for (piece, kind) in pieces.take(vocab) {
        let score = -(count as f32);
        let piece = [field(1, piece.as_bytes()), [&[0x15][..], &score.to_le_bytes()].concat(), number(3, kind as u64)];
        file.extend(field(1, &piece.concat()));
        count += 1;
    }
    assert_eq!(count, vocab, "too few pieces");
    let ids = [number(40, 0), number(41, 1), number(42, 2)].concat();
    let trainer = [number(3, 2), number(4, vocab as u64), number(35, 1), ids].concat();
    let normalizer = [field(1, b"identity"), number(3, prefix.into()), number(4, 0), number(5, 1)].concat();
    file.extend(field(2, &trainer));
    file.extend(field(3, &normalizer));
    file
}

/// A protobuf field of bytes.
fn field(id: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(id << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

/// A protobuf field of a whole number.
fn number(id: u64, value: u64) -> Vec<u8> {
    [varint(id << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// Llama 3's `tokenizer.json`: a byte-level BPE and its special tokens above it.
pub fn llama3(vocab: usize) -> Value {
    let mut ids = Map::new();
    let mut merges = Vec::new();
    let singles = (0..=255u8).map(|byte| byte_letter(byte).to_string());
    let mut known = HashSet::new();
    for piece in singles.chain(runs(byte_letter(b' '))) {
        if ids.len() == vocab - SPECIAL {
            break;
        }
        if !known.insert(piece.clone()) {
            continue;
        }
        ids.insert(piece.clone(), ids.len().into());
        if let Some((at, _)) = piece.char_indices().next_back().filter(|(at, _)| *at > 0) {
            let (left, right) = piece.split_at(at);
            merges.push(json!(format!("{left} {right}")));
        }
    }
    assert_eq!(ids.len(), vocab - SPECIAL, "too few pieces");
    let added: Vec<Value> = llama3_special()
        .map(|(id, mut token)| {
            token["id"] = id.parse::<u32>().unwrap().into();
            token
        })
        .collect();
    let begin = "<|begin_of_text|>";
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let opened = json!({"SpecialToken": {"id": begin, "type_id": 0}});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": CUT}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]},
        "post_processor": {"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
            {"type": "TemplateProcessing", "single": [opened, text("A")], "pair": [opened, text("A"), text("B")],
             "special_tokens": {begin: {"id": begin, "ids": [vocab - SPECIAL], "tokens": [begin]}}},
        ]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
                  "vocab": ids, "merges": merges},
    })
}

/// Its special tokens by id, as `tokenizer_config.json` lists them.
pub fn llama3_special() -> impl Iterator<Item = (String, Value)> {
    let named = |at: usize| match at {
        0 => "begin_of_text".to_owned(),
        1 => "end_of_text".to_owned(),
        6 => "start_header_id".to_owned(),
        7 => "end_header_id".to_owned(),
        9 => "eot_id".to_owned(),
        at => format!("reserved_special_token_{}", at - [2, 4, 5][usize::from(at > 5) + usize::from(at > 8)]),
    };
    (0..SPECIAL).map(move |at| {
        let token = json!({"content": format!("<|{}|>", named(at)), "lstrip": false, "normalized": false,
                           "rstrip": false, "single_word": false, "special": true});
        ((128_000 + at).to_string(), token)
    })
}

/// The letter that stands for a byte in byte-level BPE, as in GPT-2.
fn byte_letter(byte: u8) -> char {
    let shown = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match shown(byte) {
        true => char::from(byte),
        false => char::from_u32(256 + (0..byte).filter(|&other| !shown(other)).count() as u32).unwrap(),
    }
}
