//! Makes the token ids of a prompt from a record: template, middle truncation, chat wrap.
//!
//! Source: `get_pred` of LongBench's `pred.py`. The order matters. The filled template is tokenised, cut in the middle at token
//! level and decoded to text. Only then it is wrapped for chat and tokenised again. The second tokenisation may change the
//! length by a few tokens, and the wrap does not count against the limit.

use kvcsr_model::{ChatTemplate, Message};
use serde::{Deserialize, Serialize};

use crate::error::{EvalError, Result, TokensError};
use crate::longbench::record::Record;
use crate::longbench::tasks::Task;

/// The functions of a tokenizer that prompts need.
pub trait Tokens {
    /// Token ids of `text`, including special tokens such as the beginning-of-text token.
    ///
    /// # Errors
    /// The errors of the tokenizer.
    fn encode(&self, text: &str) -> Result<Vec<u32>, TokensError>;

    /// Token ids of `text` without any added tokens before or after it. This is the same as [`Tokens::encode`] for a tokenizer that
    /// adds none.
    ///
    /// # Errors
    /// The errors of the tokenizer.
    fn encode_as_is(&self, text: &str) -> Result<Vec<u32>, TokensError> {
        self.encode(text)
    }

    /// Text of `ids`, without special tokens.
    ///
    /// # Errors
    /// The errors of the tokenizer.
    fn decode(&self, ids: &[u32]) -> Result<String, TokensError>;
}

/// A prompt template with the placeholders `{context}` and `{input}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    source: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Context,
    Input,
}

impl Template {
    /// Splits `source` at its placeholders. As in Python's `str.format`, `{{` and `}}` are single braces.
    ///
    /// # Errors
    /// [`EvalError::Template`] for any other placeholder and for a single brace.
    pub fn parse(source: &str) -> Result<Self> {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = source;
        while let Some(brace) = rest.find(['{', '}']) {
            text.push_str(&rest[..brace]);
            rest = &rest[brace..];
            if let Some(after) = rest.strip_prefix("{{") {
                text.push('{');
                rest = after;
            } else if let Some(after) = rest.strip_prefix("}}") {
                text.push('}');
                rest = after;
            } else if let Some(after) = rest.strip_prefix("{context}") {
                parts.push(Part::Text(std::mem::take(&mut text)));
                parts.push(Part::Context);
                rest = after;
            } else if let Some(after) = rest.strip_prefix("{input}") {
                parts.push(Part::Text(std::mem::take(&mut text)));
                parts.push(Part::Input);
                rest = after;
            } else {
                let at: String = rest.chars().take(20).collect();
                return Err(EvalError::Template(format!(
                    "expected {{context}}, {{input}} or a doubled brace, found {at:?}"
                )));
            }
        }
        text.push_str(rest);
        parts.push(Part::Text(text));
        Ok(Self { source: source.to_owned(), parts })
    }

    /// The template as written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt of `record`. Braces in the record are not changed.
    #[must_use]
    pub fn fill(&self, record: &Record) -> String {
        self.parts
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.as_str(),
                Part::Context => &record.context,
                Part::Input => &record.input,
            })
            .collect()
    }
}

/// A prompt that is ready for the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The text, truncated and wrapped.
    pub text: String,
    /// Its token ids (T), special tokens included.
    pub ids: Vec<u32>,
    /// Number of tokens of the filled template before truncation and wrap.
    pub full_tokens: usize,
    /// Whether the middle was cut out.
    pub truncated: bool,
}

/// Cuts the middle out of `prompt` if it has more than `max_tokens` tokens. The first and the last `max_tokens / 2` tokens are
/// decoded separately and joined. Returns the text and the number of tokens before truncation.
///
/// # Errors
/// [`EvalError::PromptLimit`] for a limit below 2, [`EvalError::Tokens`] if the tokenizer fails.
pub fn truncate_middle(tokens: &dyn Tokens, prompt: String, max_tokens: usize) -> Result<(String, usize)> {
    // In Python, ids[-0:] would be the whole prompt.
    let half = match max_tokens / 2 {
        0 => return Err(EvalError::PromptLimit(max_tokens)),
        half => half,
    };
    let ids = tokens.encode(&prompt).map_err(EvalError::Tokens)?;
    if ids.len() <= max_tokens {
        return Ok((prompt, ids.len()));
    }
    let decode = |ids: &[u32]| tokens.decode(ids).map_err(EvalError::Tokens);
    let mut text = decode(&ids[..half])?;
    text.push_str(&decode(&ids[ids.len() - half..])?);
    Ok((text, ids.len()))
}

/// The prompt of `record`: fills `template`, cuts the text to `max_tokens`, wraps it by `chat` if the task uses a wrap, and
/// tokenises it.
///
/// Pass `None` for a base model.
///
/// # Errors
/// The same as [`truncate_middle`]. [`EvalError::Model`] if the checkpoint's template refuses the prompt.
pub fn prepare(
    task: &Task,
    template: &Template,
    record: &Record,
    tokens: &dyn Tokens,
    max_tokens: usize,
    chat: Option<Wrap<'_>>,
) -> Result<Prompt> {
    let (text, full_tokens) = truncate_middle(tokens, template.fill(record), max_tokens)?;
    let chat = chat.filter(|_| task.chat);
    let text = match chat {
        None => text,
        Some(Wrap::Around(wrap)) => wrap(&text),
        Some(Wrap::Template(own)) => own.render(&[Message { role: "user", content: &text }], true)?,
    };
    let ids = match chat {
        Some(Wrap::Template(_)) => tokens.encode_as_is(&text),
        _ => tokens.encode(&text),
    };
    let ids = ids.map_err(EvalError::Tokens)?;
    Ok(Prompt { text, ids, full_tokens, truncated: full_tokens > max_tokens })
}

/// How prompts are wrapped for a chat model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Chat {
    /// No wrap: the prompt is used as it is.
    #[default]
    None,
    /// [`llama2_chat`].
    Llama2,
    /// [`chatml`].
    ChatMl,
    /// [`baichuan2_chat`].
    Baichuan2,
    /// The template of the checkpoint: one turn of the user, then the start of the assistant's turn.
    Checkpoint,
}

/// The text around a prompt.
#[derive(Clone, Copy)]
pub enum Wrap<'a> {
    /// A text that is tokenised together with the prompt like any other text.
    Around(fn(&str) -> String),
    /// A checkpoint's template. It writes its special tokens itself, so no tokens are added before them.
    Template(&'a ChatTemplate),
}

impl Chat {
    /// The wrap around a prompt, if any. `own` is the checkpoint's template.
    ///
    /// # Errors
    /// [`EvalError::NoTemplate`] if the checkpoint's template is requested but does not exist.
    pub fn wrap(self, own: Option<&ChatTemplate>) -> Result<Option<Wrap<'_>>> {
        Ok(match self {
            Self::None => None,
            Self::Llama2 => Some(Wrap::Around(llama2_chat)),
            Self::ChatMl => Some(Wrap::Around(chatml)),
            Self::Baichuan2 => Some(Wrap::Around(baichuan2_chat)),
            Self::Checkpoint => Some(Wrap::Template(own.ok_or(EvalError::NoTemplate)?)),
        })
    }
}

/// A user turn in ChatML without a system prompt, then the start of the assistant's turn. This is not part of LongBench. It is for
/// models such as SmolLM2-Instruct and Qwen2, which `pred.py` does not know.
#[must_use]
pub fn chatml(prompt: &str) -> String {
    format!("<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
}

/// A user turn as in Baichuan 2's own `build_chat_input`, because its checkpoints have no template. Not part of LongBench.
#[must_use]
pub fn baichuan2_chat(prompt: &str) -> String {
    format!("<reserved_106>{prompt}<reserved_107>")
}

/// The chat wrap of `pred.py` for Llama-2 chat models, without a system prompt and without spaces.
#[must_use]
pub fn llama2_chat(prompt: &str) -> String {
    format!("[INST]{prompt}[/INST]")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::longbench::tasks::{Language, TaskTable};

    const BOS: u32 = 1;

    /// One token per character, and a beginning-of-text token.
    struct Characters;

    impl Tokens for Characters {
        fn encode(&self, text: &str) -> Result<Vec<u32>, TokensError> {
            Ok(std::iter::once(BOS).chain(text.chars().map(u32::from)).collect())
        }

        fn encode_as_is(&self, text: &str) -> Result<Vec<u32>, TokensError> {
            Ok(text.chars().map(u32::from).collect())
        }

        fn decode(&self, ids: &[u32]) -> Result<String, TokensError> {
            ids.iter()
                .filter(|&&id| id != BOS)
                .map(|&id| char::from_u32(id).ok_or_else(|| format!("no token {id}").into()))
                .collect()
        }
    }

    fn record(context: &str, input: &str) -> Record {
        Record {
            input: input.to_owned(),
            context: context.to_owned(),
            answers: vec!["x".to_owned()],
            length: 1,
            dataset: "qasper".to_owned(),
            language: Language::En,
            all_classes: None,
            id: String::new(),
        }
    }

    fn prompt(task: &str, context: &str, max_tokens: usize) -> Prompt {
        let task = TaskTable::embedded().get(task).unwrap();
        let template = Template::parse("{context}").unwrap();
        let record = record(context, "");
        prepare(task, &template, &record, &Characters, max_tokens, Some(Wrap::Around(llama2_chat))).unwrap()
    }

    #[test]
    fn data_is_not_reinterpreted() {
        let template = Template::parse("News: \n{context}\n{{Q}}: {input}").unwrap();
        assert_eq!(template.fill(&record("{input} {0} {{", "{context}")), "News: \n{input} {0} {{\n{Q}: {context}");
    }

    #[test]
    fn other_placeholders_are_refused() {
        for bad in ["{answers}", "{context!r}", "{", "a } b", "{ input}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_middle_goes_and_the_wrap_comes_after() {
        // 11 tokens with BOS, and a limit of 6: BOS a b | h i j. BOS is not decoded.
        let cut = prompt("qasper", "abcdefghij", 6);
        assert_eq!(cut.text, "[INST]abhij[/INST]");
        assert_eq!((cut.full_tokens, cut.truncated), (11, true));
        assert_eq!(cut.ids.len(), 1 + cut.text.len());
        assert_eq!(cut.ids[0], BOS);
    }

    #[test]
    fn an_odd_limit_loses_the_odd_token() {
        assert_eq!(prompt("lcc", "abcdefghij", 7).text, "abhij");
    }

    #[test]
    fn the_first_token_counts_against_the_limit() {
        assert!(!prompt("lcc", "abcde", 6).truncated);
        assert!(prompt("lcc", "abcdef", 6).truncated);
    }

    #[test]
    fn six_tasks_go_without_the_wrap() {
        for task in TaskTable::embedded().tasks() {
            let wrapped = prompt(&task.name, "ab", 8).text == "[INST]ab[/INST]";
            assert_eq!(wrapped, task.chat, "{}", task.name);
        }
    }

    #[test]
    fn wraps_are_named_in_lower_case() {
        for (name, wrapped) in [
            ("none", None),
            ("llama2", Some("[INST]a[/INST]")),
            ("chatml", Some("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n")),
            ("baichuan2", Some("<reserved_106>a<reserved_107>")),
        ] {
            let chat: Chat = serde_json::from_value(name.into()).unwrap();
            let found = chat.wrap(None).unwrap().map(|wrap| match wrap {
                Wrap::Around(wrap) => wrap("a"),
                Wrap::Template(_) => panic!("{name}: no template was given"),
            });
            assert_eq!(found.as_deref(), wrapped, "{name}");
        }
    }

    #[test]
    fn the_checkpoints_template_writes_the_first_token_itself() {
        let source = "{{ bos_token }}<u>{{ messages[0].content }}</u>{% if add_generation_prompt %}<a>{% endif %}";
        let own = ChatTemplate::new(source, "t.json".as_ref(), &[("bos_token", "!")]).unwrap();
        let of = |task: &str| {
            let task = TaskTable::embedded().get(task).unwrap();
            let chat = Chat::Checkpoint.wrap(Some(&own)).unwrap();
            let template = Template::parse("{context}").unwrap();
            prepare(task, &template, &record("abcdefghij", ""), &Characters, 6, chat).unwrap()
        };
        let wrapped = of("qasper");
        assert_eq!(wrapped.text, "!<u>abhij</u><a>");
        assert_eq!(wrapped.ids.len(), wrapped.text.len(), "no token is put before the template's own");
        // A prompt without a wrap is tokenised like any text.
        let plain = of("lcc");
        assert_eq!((plain.text.as_str(), plain.ids[0]), ("abhij", BOS));
        assert!(matches!(Chat::Checkpoint.wrap(None), Err(EvalError::NoTemplate)));
    }

    #[test]
    fn a_limit_without_halves_is_refused() {
        for limit in [0, 1] {
            let result = truncate_middle(&Characters, "abc".to_owned(), limit);
            assert!(matches!(result, Err(EvalError::PromptLimit(n)) if n == limit));
        }
    }
}
