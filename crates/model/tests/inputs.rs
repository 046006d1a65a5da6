//! Tokenizers and chat templates, compared with independent programs. `data/inputs/*.py` wrote the expected values: ids
//! from transformers and from a plain byte-level BPE in Python, and texts that transformers rendered.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::quantized::QTensor;
use candle_core::quantized::gguf_file::{self, Value as Gg};
use kvcsr_model::{ChatTemplate, Gguf, Message, Tokenizer};
use serde_json::{Value, json};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn read(name: &str) -> Value {
    serde_json::from_slice(&fs::read(data("inputs").join(name)).unwrap()).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn texts(value: &Value) -> Vec<&str> {
    list(value).iter().map(|text| text.as_str().unwrap()).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    list(value).iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

#[test]
fn tokenizer_folders_give_the_ids_of_transformers() {
    let (expected, vocabulary) = (read("tokenizer_folders.json"), read("byte_level.json"));
    let vocab: serde_json::Map<String, Value> =
        texts(&vocabulary["tokens"]).into_iter().zip(0..).map(|(token, id)| (token.to_owned(), id.into())).collect();
    let texts = texts(&expected["texts"]);
    let (mut compared, mut wrong) = (0, Vec::new());
    for case in list(&expected["folders"]) {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in case["files"].as_object().unwrap() {
            fs::write(folder.path().join(name), content.to_string()).unwrap();
        }
        let mut json = case["tokenizer.json"].clone();
        if json.is_null() {
            fs::copy(data("llama-bpe.model"), folder.path().join("tokenizer.model")).unwrap();
        } else {
            json["model"]["vocab"] = vocab.clone().into();
            json["model"]["merges"] = vocabulary["merges"].clone();
            fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        }
        let tokenizer = Tokenizer::from_hf_folder(folder.path()).unwrap();
        for (special, expected) in [(true, &case["ids"]), (false, &case["plain"])] {
            for (text, expected) in texts.iter().zip(list(expected)) {
                let (found, expected) = (tokenizer.encode(text, special).unwrap(), ids(expected));
                compared += found.len();
                if found != expected {
                    wrong.push(format!("{}: {text:?}, special {special}: {found:?}, not {expected:?}", case["name"]));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} texts differ:\n{}", wrong.len(), wrong.join("\n"));
    eprintln!("{} folders, {compared} ids", list(&expected["folders"]).len());
}

#[test]
fn pre_tokenizers_give_the_ids_of_a_plain_byte_level_bpe() {
    let (expected, vocabulary) = (read("pre_tokenizers.json"), read("byte_level.json"));
    let strings = |value: &Value| Gg::Array(texts(value).into_iter().map(|text| Gg::String(text.to_owned())).collect());
    let (tokens, merges) = (strings(&vocabulary["tokens"]), strings(&vocabulary["merges"]));
    let mut names = Vec::new();
    let mut compared = 0;
    for cuts in list(&expected["cuts"]) {
        for name in texts(&cuts["names"]) {
            let metadata = [
                ("tokenizer.ggml.model", Gg::String("gpt2".to_owned())),
                ("tokenizer.ggml.pre", Gg::String(name.to_owned())),
                ("tokenizer.ggml.tokens", tokens.clone()),
                ("tokenizer.ggml.merges", merges.clone()),
            ];
            let file = tempfile::NamedTempFile::new().unwrap();
            let entries: Vec<(&str, &Gg)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
            let none: [(&str, &QTensor); 0] = [];
            gguf_file::write(&mut fs::File::create(file.path()).unwrap(), &entries, &none).unwrap();
            let tokenizer = Gguf::open(file.path()).unwrap().tokenizer().unwrap();
            for (text, expected) in texts(&expected["texts"]).iter().zip(list(&cuts["ids"])) {
                let found = tokenizer.encode(text, true).unwrap();
                assert_eq!(found, ids(expected), "{name}: {text:?}");
                assert_eq!(tokenizer.decode(&found, false).unwrap(), **text, "{name}");
                compared += found.len();
            }
            names.push(name);
        }
    }
    let mut known: Vec<&str> = Tokenizer::pre_tokenizers().flatten().copied().collect();
    known.sort_unstable();
    names.sort_unstable();
    assert_eq!(names, known, "every known name is compared");
    eprintln!("{} names, {compared} ids", names.len());
}

#[test]
fn chat_templates_render_as_in_transformers() {
    let expected = read("chat_templates.json");
    let tokens: BTreeMap<&str, &str> =
        expected["tokens"].as_object().unwrap().iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap())).collect();
    let tokens: Vec<(&str, &str)> = tokens.into_iter().collect();
    let mut wrong = Vec::new();
    let mut refused = 0;
    for case in list(&expected["cases"]) {
        let name = case["template"].as_str().unwrap();
        let source = expected["templates"][name].as_str().unwrap();
        let messages: Vec<Message<'_>> = list(&case["messages"])
            .iter()
            .map(|m| Message { role: m["role"].as_str().unwrap(), content: m["content"].as_str().unwrap() })
            .collect();
        let open = case["add_generation_prompt"].as_bool().unwrap();
        let found = ChatTemplate::new(source, Path::new("own.jinja"), &tokens).and_then(|t| t.render(&messages, open));
        match (found, case["text"].as_str()) {
            (Ok(found), Some(text)) if found == text => {}
            (Err(error), None) => {
                refused += 1;
                let error = error.to_string();
                assert!(
                    error.starts_with("own.jinja: chat template: ") && error.contains("chat_template.jinja"),
                    "{error}"
                );
            }
            (found, text) => {
                let found = found.map_err(|error| error.to_string());
                wrong.push(format!(
                    "{name}: {source:.300}\n  here          {found:?}\n  transformers  {text:?} {}",
                    case["refused"]
                ));
            }
        }
    }
    let cases = list(&expected["cases"]).len();
    assert!(wrong.is_empty(), "{} of {cases} differ:\n{}", wrong.len(), wrong.join("\n"));
    eprintln!(
        "{cases} renderings of {} templates, {refused} refusals",
        expected["templates"].as_object().unwrap().len()
    );
}

/// Folders and files from real use, with the number of tokens or the ids that transformers or llama.cpp give.
#[test]
fn cases_from_the_field_have_their_ids() {
    let cases = data("inputs/cases");
    let folder = |name: &str| Tokenizer::from_hf_folder(cases.join(name)).unwrap();
    let marked = "<|im_start|>user hello<|im_end|>";
    for name in ["added-json", "added-decoder"] {
        let tokenizer = folder(name);
        assert_eq!(tokenizer.encode(marked, true).unwrap(), [1, 400, 317, 327, 401], "{name}");
        assert_eq!(tokenizer.stop_tokens().ids(), [2, 401], "{name}");
    }
    for name in ["truncates", "pads"] {
        let ids = folder(name).encode("hello hello hello world and more of it", true).unwrap();
        assert_eq!(ids.len(), 26, "{name}");
    }
    let counts = json!({"llama3.gguf": 4, "llama3-says-so.gguf": 4});
    for (name, count) in counts.as_object().unwrap() {
        let ids = Gguf::open(cases.join(name)).unwrap().tokenizer().unwrap().encode("hello hello", true).unwrap();
        assert_eq!(ids.len() as u64, count.as_u64().unwrap(), "{name}");
    }
    let chat = Gguf::open(cases.join("chat.gguf")).unwrap().tokenizer().unwrap();
    let ends = ["<|eot_id|>", "<|eos|>"].map(|token| chat.id(token).unwrap());
    assert!(ends.iter().all(|id| chat.stop_tokens().contains(*id)), "{:?}", chat.stop_tokens());
}

#[test]
fn templates_from_the_field_render_as_in_transformers() {
    let cases = data("inputs/cases");
    let code = "if a < b && c: print('x')";
    for (name, content, text) in [
        ("tools", "hi", "hi".to_owned()),
        ("crlf", "hi", "user\nhi\n".to_owned()),
        ("tojson", code, format!("\"{code}\"{{\"b\": 1, \"a\": 2}}")),
        ("kwargs", "a < b", "\"a < b\"".to_owned()),
        ("generation", "hi", "hi".to_owned()),
        ("percent", "hi", "user: hi".to_owned()),
    ] {
        let template = ChatTemplate::from_hf_folder(cases.join(name)).unwrap().unwrap();
        let turn = Message { role: "user", content };
        assert_eq!(template.render(&[turn], true).unwrap(), text, "{name}");
    }
    let template = ChatTemplate::from_hf_folder(cases.join("strftime")).unwrap().unwrap();
    let text = template.render(&[Message { role: "user", content: "hi" }], true).unwrap();
    let (year, rest) = text.split_once(' ').unwrap();
    assert!(year.len() == 4 && year.parse::<u32>().is_ok_and(|year| year >= 2026) && rest == "hi", "{text}");
}
