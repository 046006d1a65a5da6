//! Rows of checkpoint folders: tokenizer files, ends of a text, chat templates.

use kvcsr_model::{ChatTemplate, Message, Tokenizer};

use super::Row;
use super::files::{folder, pieces, tokenizer, tokenizer_json};

pub const TOKENIZER: &[Row] = &[
    Row {
        file: "tokenizer.json",
        key: "`truncation`, `padding`",
        behaviour: "switched off: a prompt is neither cut nor filled up",
        check: || {
            for settings in [
                r#""truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},"#,
                r#""padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                   "pad_type_id": 0, "pad_token": "a"},"#,
            ] {
                let folder = folder(&[("tokenizer.json", &tokenizer_json(settings))]);
                let ids = Tokenizer::from_hf_folder(folder.path()).unwrap().encode("ab b a", true).unwrap();
                assert_eq!(ids, [2, 3, 1, 3, 0], "{settings}");
            }
        },
    },
    Row {
        file: "tokenizer.json",
        key: "`post_processor`",
        behaviour: "puts tokens around a text; `add_bos_token` and `add_eos_token` change nothing then",
        check: || {
            let json = tokenizer_json(POST_PROCESSOR);
            let ids = |config: &str| {
                let folder = folder(&[("tokenizer.json", &json), ("tokenizer_config.json", config)]);
                Tokenizer::from_hf_folder(folder.path()).unwrap().encode("ab", true).unwrap()
            };
            assert_eq!(ids("{}"), [4, 2]);
            assert_eq!(ids(r#"{"bos_token": "<s>", "add_bos_token": false}"#), [4, 2]);
            assert_eq!(ids(r#"{"bos_token": "<s>", "eos_token": "</s>", "add_eos_token": true}"#), [4, 2]);
        },
    },
    Row {
        file: "tokenizer.model",
        key: "the whole file",
        behaviour: "read where there is no `tokenizer.json`",
        check: || assert_eq!(pieces(&[]).unwrap().vocab_size(), 420),
    },
    Row {
        file: "tokenizer_config.json",
        key: "`add_bos_token`, `add_eos_token`",
        behaviour: "with `tokenizer.model`: whether `bos_token` and `eos_token` are put around a text; absent: neither, as in transformers 5",
        check: || {
            let around = r#"{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true, "add_eos_token": true}"#;
            let plain = tokenizer(&[("tokenizer_config.json", around)]).unwrap().encode("ab", true).unwrap();
            assert_eq!(plain, [2], "tokenizer.json has its post-processor");
            let of_model = |config: &str| {
                let ids = pieces(&[("tokenizer_config.json", config)]).unwrap().encode("the cat", true).unwrap();
                (ids.first() == Some(&1), ids.last() == Some(&2))
            };
            assert_eq!(of_model("{}"), (false, false));
            assert_eq!(of_model(r#"{"add_bos_token": true}"#), (true, false));
            assert_eq!(of_model(r#"{"add_bos_token": false, "add_eos_token": true}"#), (false, true));
        },
    },
    Row {
        file: "tokenizer_config.json",
        key: "`added_tokens_decoder`",
        behaviour: "tokens matched whole, with their `lstrip`, `rstrip`, `single_word`, `normalized`, `special`; refused where \
                    the vocabulary has another id for one",
        check: || {
            let added = |flags: &str| {
                let token = format!(r#"{{"added_tokens_decoder": {{"7": {{"content": "<t>"{flags}}}}}}}"#);
                tokenizer(&[("tokenizer_config.json", &token)]).unwrap()
            };
            let ids = |flags: &str, text: &str| added(flags).encode(text, true).unwrap();
            assert_eq!(ids("", "a <t> b"), [0, 3, 7, 3, 1]);
            assert_eq!(ids(r#", "lstrip": true"#, "a <t> b"), [0, 7, 3, 1]);
            assert_eq!(ids(r#", "rstrip": true"#, "a <t> b"), [0, 3, 7, 1]);
            assert!(!ids(r#", "single_word": true"#, "a<t>b").contains(&7));
            assert_eq!(added(r#", "special": true"#).decode(&[0, 7], true).unwrap(), "a");
            assert_eq!(added("").decode(&[0, 7], true).unwrap(), "a<t>");
            let taken = r#"{"added_tokens_decoder": {"9": {"content": "<t>"}}}"#;
            let error = tokenizer(&[("tokenizer_config.json", taken)]).err().unwrap();
            assert!(error.contains("tokenizer_config.json: key `<t>`: expected id 9"), "{error}");
        },
    },
    Row {
        file: "added_tokens.json",
        key: "every token",
        behaviour: "matched whole, where `tokenizer_config.json` has no `added_tokens_decoder`",
        check: || {
            let added = ("added_tokens.json", r#"{"<t>": 7}"#);
            assert_eq!(tokenizer(&[added]).unwrap().encode("a<t>", true).unwrap(), [0, 7]);
            let decoder = ("tokenizer_config.json", r#"{"added_tokens_decoder": {}}"#);
            assert_eq!(tokenizer(&[added, decoder]).unwrap().id("<t>"), None);
            let of_model = pieces(&[("added_tokens.json", r#"{"<t>": 420, "<u>": 423}"#)]).unwrap();
            let taken = pieces(&[("added_tokens.json", r#"{"<t>": 400}"#)]).err().unwrap();
            assert!(taken.contains("key `<t>`: expected id 400"), "{taken}");
            assert_eq!((of_model.id("<t>"), of_model.id("<u>")), (Some(420), Some(423)));
        },
    },
    Row {
        file: "tokenizer_config.json",
        key: "`bos_token`, `eos_token`, every other `..._token`, `additional_special_tokens`, `extra_special_tokens`",
        behaviour: "matched whole and left out of shown text; refused where a named one is neither a text nor an object with `content`",
        check: || {
            let wrong = tokenizer(&[("tokenizer_config.json", r#"{"eos_token": ["</s>"]}"#)]);
            assert!(wrong.err().unwrap().contains("key `eos_token`"));
            let config = r#"{"pad_token": {"content": "<p>"}, "additional_special_tokens": ["<q>"], "x_token": "<r>"}"#;
            let tokenizer = tokenizer(&[("tokenizer_config.json", config)]).unwrap();
            for token in ["<p>", "<q>", "<r>"] {
                let ids = tokenizer.encode(&format!("a{token}"), true).unwrap();
                assert_eq!(ids, [0, tokenizer.id(token).unwrap()]);
                assert_eq!(tokenizer.decode(&ids, true).unwrap(), "a");
            }
        },
    },
    Row {
        file: "special_tokens_map.json",
        key: "the same keys",
        behaviour: "as in `tokenizer_config.json`, over its entries, where that has no `added_tokens_decoder`",
        check: || {
            let map = ("special_tokens_map.json", r#"{"bos_token": {"content": "<s>"}}"#);
            let config = ("tokenizer_config.json", r#"{"bos_token": "</s>", "add_bos_token": true}"#);
            let ids = |files: &[(&str, &str)]| pieces(files).unwrap().encode("the", true).unwrap();
            assert_eq!((ids(&[map, config])[0], ids(&[config])[0]), (1, 2));
        },
    },
    Row {
        file: "tokenizer_config.json",
        key: "`legacy`, `add_prefix_space`",
        behaviour: "with `tokenizer.model`: where a space is put before text. `legacy: false` (absent: so for \
                    `LlamaTokenizer`, and only for it): at the start only; true: after every special token too",
        check: || {
            let ids = |config: &str| {
                pieces(&[("tokenizer_config.json", config)]).unwrap().encode("<s>the</s>the", false).unwrap()
            };
            let (always, start) = (ids(r#"{"legacy": true}"#), ids(r#"{"legacy": false}"#));
            assert_ne!(always, start);
            let llama = |more: &str| ids(&format!(r#"{{"tokenizer_class": "LlamaTokenizer"{more}}}"#));
            assert_eq!((ids("{}"), llama("")), (always.clone(), start.clone()));
            assert_eq!((llama(r#", "legacy": true"#), llama(r#", "legacy": false"#)), (always, start.clone()));
            assert_eq!(llama(r#", "legacy": true, "add_prefix_space": false"#), start);
        },
    },
];

const POST_PROCESSOR: &str = r#""post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>",
    "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {"<s>": {"id": "<s>",
    "ids": [4], "tokens": ["<s>"]}}},"#;

/// The end tokens of a folder with a plain tokenizer and these files.
fn ends(files: &[(&str, &str)]) -> Vec<u32> {
    tokenizer(files).unwrap().stop_tokens().ids().to_vec()
}

pub const ENDS: &[Row] = &[
    Row {
        file: "generation_config.json",
        key: "`eos_token_id`",
        behaviour: "a number or a list: these tokens end a text",
        check: || {
            assert_eq!(ends(&[("generation_config.json", r#"{"eos_token_id": 4}"#)]), [4]);
            assert_eq!(ends(&[("generation_config.json", r#"{"eos_token_id": [2, 1]}"#)]), [1, 2]);
            let error = tokenizer(&[("generation_config.json", r#"{"eos_token_id": "</s>"}"#)]).err().unwrap();
            assert!(error.contains("generation_config.json: key `eos_token_id`: expected an id"), "{error}");
        },
    },
    Row {
        file: "config.json",
        key: "`eos_token_id`",
        behaviour: "the same, where `generation_config.json` has none",
        check: || {
            let config = ("config.json", r#"{"eos_token_id": 0}"#);
            assert!(ends(&[config]).contains(&0));
            assert_eq!(ends(&[config, ("generation_config.json", r#"{"eos_token_id": 4}"#)]), [4]);
            assert!(ends(&[config, ("generation_config.json", r#"{"eos_token_id": null}"#)]).contains(&0));
        },
    },
    Row {
        file: "tokenizer_config.json",
        key: "`eos_token`",
        behaviour: "ends a text too",
        check: || {
            let generation = ("generation_config.json", r#"{"eos_token_id": 4}"#);
            assert_eq!(ends(&[generation, ("tokenizer_config.json", r#"{"eos_token": "<|im_end|>"}"#)]), [4, 6]);
        },
    },
    Row {
        file: "tokenizer.json, added_tokens.json",
        key: "added tokens spelled like the end of a text or turn (`</s>`, `<|im_end|>`, `<|eot_id|>`, ...)",
        behaviour: "end a text too, where `generation_config.json` names no end",
        check: || {
            assert_eq!(ends(&[("added_tokens.json", r#"{"<|eot_id|>": 7}"#)]), [5, 6, 7]);
            assert_eq!(ends(&[("generation_config.json", r#"{"eos_token_id": [4]}"#)]), [4]);
        },
    },
];

fn rendered(files: &[(&str, &str)]) -> Option<String> {
    let template = ChatTemplate::from_hf_folder(folder(files).path()).unwrap()?;
    Some(template.render(&[Message { role: "user", content: "x" }], false).unwrap())
}

pub const CHAT: &[Row] = &[
    Row {
        file: "chat_template.jinja",
        key: "the whole file",
        behaviour: "the chat template",
        check: || {
            let config = ("tokenizer_config.json", r#"{"chat_template": "c", "bos_token": "<s>"}"#);
            let own = ("chat_template.jinja", "{{ bos_token }}{{ messages[0].content }}");
            assert_eq!(rendered(&[config, own]).unwrap(), "<s>x");
        },
    },
    Row {
        file: "tokenizer_config.json",
        key: "`chat_template`",
        behaviour: "the chat template, where there is no `chat_template.jinja`: a text, or of a list the one called `default`; a list without one is refused with its names",
        check: || {
            assert_eq!(rendered(&[("tokenizer_config.json", r#"{"chat_template": "c"}"#)]).unwrap(), "c");
            let list = r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#;
            assert_eq!(rendered(&[("tokenizer_config.json", list)]).unwrap(), "d");
            assert_eq!(rendered(&[]), None);
            let unnamed = list.replace("default", "tools");
            let folder = folder(&[("tokenizer_config.json", unnamed.as_str())]);
            let error = ChatTemplate::from_hf_folder(folder.path()).err().unwrap().to_string();
            assert!(error.contains("rag, tools") && error.contains("chat_template.jinja"), "{error}");
        },
    },
];
