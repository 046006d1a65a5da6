//! Rows of GGUF metadata: tokenizer and ends of a text.

use candle_core::quantized::gguf_file::Value;
use kvcsr_model::Message;

use super::Row;
use super::files::{Metadata, byte_level, gguf, of_gguf, sentencepiece, text, texts};

fn ids(metadata: Metadata, change: impl Fn(&mut Metadata)) -> Vec<u32> {
    of_gguf(metadata, change).unwrap().encode("ab", true).unwrap()
}

pub const TOKENIZER: &[Row] = &[
    Row {
        file: "GGUF",
        key: "`tokenizer.ggml.model`",
        behaviour: "`gpt2`: byte-level BPE; `llama`: SentencePiece BPE; others are refused",
        check: || {
            assert_eq!(ids(byte_level("gpt-2"), |_| {}), [2]);
            assert_eq!(ids(sentencepiece(), |_| {}), [1, 6, 5]);
            let error = of_gguf(byte_level("gpt-2"), |m| drop(m.insert("tokenizer.ggml.model", text("bert"))));
            assert!(error.err().unwrap().contains("tokenizer model `bert` is not supported (supported: gpt2, llama)"));
        },
    },
    Row {
        file: "GGUF",
        key: "`tokenizer.ggml.pre`",
        behaviour: "how text is cut, by a name of the list below; absent: `default`; other names are refused",
        check: || {
            let numbers = |change: fn(&mut Metadata)| {
                let tokenizer = of_gguf(byte_level("gpt-2"), |m| {
                    m.insert("tokenizer.ggml.tokens", texts(&["1", "11", "111", "1111", "<s>", "<e>", "<x>"]));
                    m.insert("tokenizer.ggml.merges", texts(&["1 1", "11 1", "111 1"]));
                    change(m);
                });
                tokenizer.unwrap().encode("1111", false).unwrap()
            };
            assert_eq!(numbers(|_| {}), [1, 1]);
            assert_eq!(numbers(|m| drop(m.insert("tokenizer.ggml.pre", text("smollm")))), [0; 4]);
            assert_eq!(numbers(|m| drop(m.remove("tokenizer.ggml.pre"))), [2, 0]);
            let error = of_gguf(byte_level("gemma4"), |_| {}).err().unwrap();
            assert!(error.contains("pre-tokenizer `gemma4`") && error.contains("deepseek-r1-qwen"), "{error}");
        },
    },
    Row {
        file: "GGUF",
        key: "`tokenizer.ggml.token_type`",
        behaviour: "control and user-defined tokens are matched whole; absent: none but those spelled like a known end",
        check: || {
            let spelled = |m: &mut Metadata| {
                m.remove("tokenizer.ggml.token_type");
                m.insert("tokenizer.ggml.tokens", texts(&["a", "b", "ab", "Ġ", "<s>", "<e>", "<|im_end|>"]));
            };
            let tokenizer = of_gguf(byte_level("gpt-2"), spelled).unwrap();
            assert_eq!(tokenizer.encode("ab<|im_end|>", false).unwrap(), [2, 6]);
            assert_eq!(tokenizer.encode("ab<s>", false).unwrap(), [2]);
            assert_eq!(of_gguf(byte_level("gpt-2"), |_| {}).unwrap().encode("ab<s>", false).unwrap(), [2, 4]);
        },
    },
    Row {
        file: "GGUF",
        key: "`tokenizer.ggml.add_bos_token`, `bos_token_id`",
        behaviour: "whether texts begin with the BOS. Absent: yes for `llama` and for the pre-tokenizers of Llama 3 and `tekken`, \
                    else no; the id absent: 1 for `llama`",
        check: || {
            for (pre, begins) in
                [("llama-bpe", true), ("llama3", true), ("tekken", true), ("qwen2", false), ("smaug-bpe", false)]
            {
                assert_eq!(ids(byte_level(pre), |_| {}), if begins { vec![4, 2] } else { vec![2] }, "{pre}");
                for says in [true, false] {
                    let said =
                        ids(byte_level(pre), |m| drop(m.insert("tokenizer.ggml.add_bos_token", Value::Bool(says))));
                    assert_eq!(said, if says { vec![4, 2] } else { vec![2] }, "{pre}");
                }
            }
            assert_eq!(ids(sentencepiece(), |_| {}), [1, 6, 5]);
            assert_eq!(
                ids(sentencepiece(), |m| drop(m.insert("tokenizer.ggml.bos_token_id", Value::U32(2)))),
                [2, 6, 5]
            );
        },
    },
    Row {
        file: "GGUF",
        key: "`tokenizer.ggml.add_eos_token`",
        behaviour: "whether texts end with the EOS; absent: no",
        check: || {
            assert_eq!(
                ids(byte_level("gpt-2"), |m| drop(m.insert("tokenizer.ggml.add_eos_token", Value::Bool(true)))),
                [2, 5]
            );
            let llama = ids(sentencepiece(), |m| drop(m.insert("tokenizer.ggml.add_eos_token", Value::Bool(true))));
            assert_eq!(llama, [1, 6, 5, 2]);
        },
    },
    Row {
        file: "GGUF",
        key: "`tokenizer.ggml.add_space_prefix`",
        behaviour: "for `llama`: whether a space is put before text; absent: yes",
        check: || {
            let without = |m: &mut Metadata| drop(m.insert("tokenizer.ggml.add_space_prefix", Value::Bool(false)));
            assert_eq!((ids(sentencepiece(), |_| {}), ids(sentencepiece(), without)), (vec![1, 6, 5], vec![1, 5]));
        },
    },
    Row {
        file: "GGUF",
        key: "`tokenizer.chat_template`",
        behaviour: "the chat template",
        check: || {
            let mut metadata = byte_level("gpt-2");
            metadata.insert("tokenizer.chat_template", text("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"));
            let template = gguf(&metadata).1.chat_template().unwrap().unwrap();
            assert_eq!(template.render(&[Message { role: "user", content: "x" }], true).unwrap(), "<s>x<e>");
        },
    },
];

fn ends(metadata: Metadata, change: impl Fn(&mut Metadata)) -> Vec<u32> {
    of_gguf(metadata, change).unwrap().stop_tokens().ids().to_vec()
}

pub const ENDS: &[Row] = &[
    Row {
        file: "GGUF",
        key: "`tokenizer.ggml.eos_token_id`, `eot_token_id`, `eom_token_id`, `fim_pad_token_id`, `fim_rep_token_id`, \
              `fim_sep_token_id`",
        behaviour: "these tokens end a text; `eos_token_id` absent: 2 for `llama`",
        check: || {
            for key in ["eot", "eom", "fim_pad", "fim_rep", "fim_sep"] {
                let key: &'static str = Box::leak(format!("tokenizer.ggml.{key}_token_id").into_boxed_str());
                assert_eq!(ends(byte_level("gpt-2"), |m| drop(m.insert(key, Value::U32(6)))), [5, 6], "{key}");
                let error = of_gguf(byte_level("gpt-2"), |m| drop(m.insert(key, Value::U32(7)))).err().unwrap();
                assert!(error.contains(key) && error.contains("an id below 7"), "{error}");
            }
            assert_eq!(ends(sentencepiece(), |_| {}), [2]);
        },
    },
    Row {
        file: "GGUF",
        key: "tokens spelled like the end of a text or turn (`</s>`, `<|im_end|>`, `<|eot_id|>`, ...)",
        behaviour: "end a text too, whatever their type",
        check: || {
            for end in
                ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "</s>"]
            {
                let named = |m: &mut Metadata| {
                    m.insert("tokenizer.ggml.tokens", texts(&["a", "b", "ab", end, "<s>", "<e>", "<x>"]));
                };
                assert_eq!(ends(byte_level("gpt-2"), named), [3, 5], "{end}");
            }
        },
    },
];
