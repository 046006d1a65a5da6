//! SentencePiece models, compared with the results of sentencepiece itself. `data/sentencepiece.py` wrote both.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use kvcsr_model::Tokenizer;
use serde_json::Value;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

#[test]
fn ids_and_texts_are_those_of_sentencepiece() {
    let expected: Value = serde_json::from_slice(&fs::read(data("sentencepiece.json")).unwrap()).unwrap();
    for (name, cases) in expected.as_object().unwrap() {
        let tokenizer = Tokenizer::from_sentencepiece(data(&format!("{name}.model")), true).unwrap();
        assert_eq!(tokenizer.stop_tokens().ids(), [2]);
        let mut wrong = Vec::new();
        for case in cases.as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let ids: Vec<u32> = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            let found = tokenizer.encode(text, false).unwrap();
            // sentencepiece shows an unknown piece as `⁇`. Here it is a special token, and is left out.
            let known = !ids.contains(&0);
            if found != ids || (known && tokenizer.decode(&ids, true).unwrap() != case["decoded"].as_str().unwrap()) {
                wrong.push((text, ids, found));
            }
        }
        assert!(wrong.is_empty(), "{name}: {} of {} differ: {:?}", wrong.len(), cases.as_array().unwrap().len(), wrong);
        let with_bos = tokenizer.encode("atoms", true).unwrap();
        assert_eq!((with_bos[0], &with_bos[1..]), (1, &tokenizer.encode("atoms", false).unwrap()[..]));
    }
}

#[test]
fn special_tokens_written_in_a_text_become_their_ids() {
    let tokenizer = Tokenizer::from_sentencepiece(data("llama-bpe.model"), true).unwrap();
    assert_eq!(tokenizer.encode("<s></s>", false).unwrap(), [1, 2]);
    assert_eq!(tokenizer.decode(&[1, 2], true).unwrap(), "");
}

#[test]
fn damaged_files_are_errors_that_name_the_file() {
    let whole = fs::read(data("llama-bpe.model")).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let load = |bytes: &[u8]| {
        fs::write(file.path(), bytes).unwrap();
        Tokenizer::from_sentencepiece(file.path(), true).map(|_| ()).map_err(|e| e.to_string())
    };
    load(&whole).unwrap();
    for length in (0..whole.len()).step_by(whole.len() / 97) {
        let error = load(&whole[..length]).unwrap_err();
        assert!(error.contains("malformed SentencePiece model"), "{length}: {error}");
    }
    for at in (0..whole.len()).step_by(whole.len() / 301) {
        for byte in [0, 0x7f, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = byte;
            let _ = load(&damaged);
        }
    }
    assert!(load(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").unwrap_err().contains("over 64 bits"));
    assert!(load(b"{\"version\": 1}").is_err());
    assert!(Tokenizer::from_sentencepiece("nowhere.model", true).err().unwrap().to_string().contains("nowhere.model"));
}
