//! Chat templates: the Jinja program in a checkpoint that turns messages into the text the model was trained on.
//!
//! It is the publisher's code, so it runs with bounds: no files, no time, a limited number of steps.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, context};

use crate::error::{ModelError, Result};
use crate::load::gguf::Gguf;

/// Steps a template may take: published ones take a few dozen per message.
const FUEL: u64 = 10_000_000;
const NAME: &str = "chat template";

/// One turn of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// `system`, `user` or `assistant`.
    pub role: &'a str,
    /// What was said.
    pub content: &'a str,
}

/// A model's chat template with the tokens it may write.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the spellings of the tokens around a text.
    ///
    /// Blocks take their line's whitespace with them and Python's string methods work, as in transformers.
    ///
    /// # Errors
    /// [`ModelError::Template`] with the line of the mistake.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |detail: String| -> std::result::Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, detail))
        });
        environment.add_template_owned(NAME, source.to_owned()).map_err(failed)?;
        Ok(Self { environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The template in a GGUF file, if it has one.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`]; mistyped keys.
    pub fn from_gguf(file: &Gguf) -> Result<Option<Self>> {
        if file.optional("tokenizer.chat_template").is_none() {
            return Ok(None);
        }
        let token = |key: &str| -> Result<String> {
            if file.optional(key).is_none() {
                return Ok(String::new());
            }
            let tokens = file.strings("tokenizer.ggml.tokens")?;
            Ok(tokens.get(file.size(key)?).map(|token| (*token).to_owned()).unwrap_or_default())
        };
        let (bos, eos) = (token("tokenizer.ggml.bos_token_id")?, token("tokenizer.ggml.eos_token_id")?);
        Self::new(file.str("tokenizer.chat_template")?, &bos, &eos).map(Some)
    }

    /// The template of a checkpoint folder: `chat_template.jinja`, else `chat_template` in `tokenizer_config.json`
    /// (of several, the one called `default`). None if there is neither.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`]; [`ModelError::Malformed`] if `tokenizer_config.json` is no JSON object.
    pub fn from_hf_folder(folder: impl AsRef<Path>) -> Result<Option<Self>> {
        let path = folder.as_ref().join("tokenizer_config.json");
        let config = match std::fs::read_to_string(&path) {
            Ok(json) => serde_json::from_str(&json).map_err(|e| ModelError::Malformed {
                path: path.clone(),
                format: "tokenizer_config.json",
                detail: e.to_string(),
            })?,
            Err(_) => serde_json::Value::Null,
        };
        // A token is its spelling, or an object that holds it.
        let token = |key: &str| {
            let value = &config[key];
            value.as_str().or_else(|| value["content"].as_str()).unwrap_or_default().to_owned()
        };
        let own_file = std::fs::read_to_string(folder.as_ref().join("chat_template.jinja")).ok();
        let template = &config["chat_template"];
        let named = || {
            let default = template.as_array()?.iter().find(|entry| entry["name"] == "default")?;
            default["template"].as_str()
        };
        let source = own_file.as_deref().or_else(|| template.as_str()).or_else(named);
        source.map(|source| Self::new(source, &token("bos_token"), &token("eos_token"))).transpose()
    }

    /// The text of a conversation, ready for [`encode`](crate::Tokenizer::encode) without special tokens: the template
    /// writes them itself. With `open`, it ends where the assistant's next turn begins.
    ///
    /// # Errors
    /// [`ModelError::Template`] if the template refuses the conversation or does not end.
    pub fn render(&self, messages: &[Message<'_>], open: bool) -> Result<String> {
        let messages: Vec<Value> =
            messages.iter().map(|message| context! { role => message.role, content => message.content }).collect();
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let values = context! {
            messages => messages,
            add_generation_prompt => open,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        };
        template.render(values).map_err(failed)
    }
}

fn failed(error: Error) -> ModelError {
    ModelError::Template { detail: error.to_string() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Expressions keep the newline after them, in Jinja2 (3.1.6) as here.
    const CHATML: &str = "{% for message in messages %}
    {% if loop.first and messages[0]['role'] != 'system' %}
        {{- '<|im_start|>system\nYou help.<|im_end|>\n' }}
    {% endif %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'].strip() + '<|im_end|>' + '\n' }}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{% endif %}";
    /// Llama 2's: alternation is checked, the system text goes into the first turn.
    const LLAMA2: &str = "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set \
        system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = \
        false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == \
        0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
        {% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + \
        '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if \
        message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif \
        message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}";

    const fn turn<'a>(role: &'a str, content: &'a str) -> Message<'a> {
        Message { role, content }
    }

    #[test]
    fn blocks_take_their_whitespace_and_python_methods_work() {
        let template = ChatTemplate::new(CHATML, "", "").unwrap();
        assert_eq!(
            template.render(&[turn("user", " Hi. ")], true).unwrap(),
            "<|im_start|>system\nYou help.<|im_end|>\n\n<|im_start|>user\nHi.<|im_end|>\n\n<|im_start|>assistant\n\n"
        );
    }

    #[test]
    fn llama2_folds_the_system_text_and_refuses_two_users() {
        let template = ChatTemplate::new(LLAMA2, "<s>", "</s>").unwrap();
        let talk = [turn("system", "Be brief."), turn("user", "Hi"), turn("assistant", "Ho"), turn("user", "Bye")];
        assert_eq!(
            template.render(&talk, false).unwrap(),
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Ho </s><s>[INST] Bye [/INST]"
        );
        let error = template.render(&[turn("user", "a"), turn("user", "b")], false).unwrap_err().to_string();
        assert!(error.contains("roles must alternate"), "{error}");
    }

    #[test]
    fn mistakes_and_endless_templates_are_errors() {
        assert!(ChatTemplate::new("{% for %}", "", "").err().unwrap().to_string().contains("chat template"));
        let square = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
        let error = ChatTemplate::new(square, "", "").unwrap().render(&[], false).unwrap_err().to_string();
        assert!(error.contains("fuel"), "{error}");
    }

    #[test]
    fn a_folder_names_its_template_in_several_ways() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let rendered = || {
            let template = ChatTemplate::from_hf_folder(folder.path()).unwrap();
            template.map(|template| template.render(&[turn("user", "x")], false).unwrap())
        };
        assert_eq!(rendered(), None);
        let config = "tokenizer_config.json";
        write(
            config,
            r#"{"chat_template": "{{ bos_token }}|{{ messages[0].content }}", "bos_token": {"content": "<s>"}}"#,
        );
        assert_eq!(rendered().unwrap(), "<s>|x");
        write(config, r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#);
        assert_eq!(rendered().unwrap(), "d");
        write("chat_template.jinja", "{{ messages[0].role }}");
        assert_eq!(rendered().unwrap(), "user");
        write(config, "{");
        assert!(ChatTemplate::from_hf_folder(folder.path()).is_err());
    }
}
