//! Chat templates: the Jinja program in a checkpoint that turns messages into the text on which the model was trained.
//!
//! Templates run as in transformers: the same names are defined, blocks remove the white space of their line, `tojson`
//! is Python's `json.dumps`, and Python's `%` and string methods work. A template is code of the publisher, so it runs
//! with limits: no files, no clock except `strftime_now`, a limited number of steps, and a limited number of bytes
//! written.
//!
//! There is no limit on text that a template builds from its own text without writing it, because minijinja has no such
//! limit.

mod clock;
mod python;
mod syntax;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, context};
use serde_json::Value as Json;

use crate::error::{ModelError, Result};
use crate::load::gguf::Gguf;
use crate::load::text::{read, read_json};

/// The number of steps a template may take. Published templates take a few dozen per message.
const FUEL: u64 = 1_000_000;
const NAME: &str = "chat template";

/// One turn of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// `system`, `user` or `assistant`.
    pub role: &'a str,
    /// The text of the turn.
    pub content: &'a str,
}

/// A model's chat template, with the special tokens that it may write.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Special tokens: their names (`bos_token`) and their spellings.
    tokens: Vec<(String, String)>,
    path: PathBuf,
}

impl ChatTemplate {
    /// Compiles a template. `path` is its name in errors. `tokens` are the special tokens that it may write, by name
    /// (`bos_token`, `eos_token`) and spelling. A token that is not in this list is undefined in the template.
    ///
    /// # Errors
    /// [`ModelError::Template`], with the line of the mistake.
    pub fn new(source: &str, path: &Path, tokens: &[(&str, &str)]) -> Result<Self> {
        let failed = |error: Error| failed(path, &error);
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(python::method);
        minijinja_contrib::add_to_environment(&mut environment);
        environment.add_filter("wordcount", python::wordcount);
        environment.add_filter("tojson", python::tojson);
        environment.add_filter(syntax::PERCENT, python::percent);
        environment.add_filter("format", python::format);
        environment.add_filter("indent", python::indent);
        environment.add_filter("batch", python::batch);
        environment.add_filter("slice", python::slice);
        // It makes filler text of any requested length. No template of a model uses it.
        environment.remove_global("lipsum");
        environment.add_function("strftime_now", clock::strftime_now);
        environment.add_function("raise_exception", |detail: String| -> std::result::Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, detail))
        });
        environment.add_template_owned(NAME, syntax::rewritten(source)).map_err(failed)?;
        let tokens = tokens.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        Ok(Self { environment, tokens, path: path.to_owned() })
    }

    /// The template in a GGUF file, if it has one.
    ///
    /// # Errors
    /// The errors of [`ChatTemplate::new`]. Also an error for keys of the wrong type.
    pub fn from_gguf(file: &Gguf) -> Result<Option<Self>> {
        if file.optional("tokenizer.chat_template").is_none() {
            return Ok(None);
        }
        let token = |key: &str| -> Result<&str> {
            if file.optional(key).is_none() {
                return Ok("");
            }
            let tokens = file.strings("tokenizer.ggml.tokens")?;
            Ok(tokens.get(file.size(key)?).copied().unwrap_or_default())
        };
        let tokens = [
            ("bos_token", token("tokenizer.ggml.bos_token_id")?),
            ("eos_token", token("tokenizer.ggml.eos_token_id")?),
        ];
        Self::new(file.str("tokenizer.chat_template")?, file.path(), &tokens).map(Some)
    }

    /// The template of a checkpoint folder: `chat_template.jinja`, or otherwise `chat_template` in
    /// `tokenizer_config.json`. If there are several, it takes the one called `default`. `None` if the folder has no
    /// template.
    ///
    /// # Errors
    /// The errors of [`ChatTemplate::new`]. [`ModelError::Io`] and [`ModelError::Malformed`] for files that are not
    /// text or JSON. [`ModelError::BadValue`] for named templates if none of them is the default.
    pub fn from_hf_folder(folder: impl AsRef<Path>) -> Result<Option<Self>> {
        let folder = folder.as_ref();
        let config_path = folder.join("tokenizer_config.json");
        let mut config = read_json(&config_path)?.unwrap_or_default();
        // Older folders have the tokens in a separate file.
        let map = read_json(&folder.join("special_tokens_map.json"))?;
        if let (Some(Json::Object(map)), None) = (map, config.get("added_tokens_decoder")) {
            match &mut config {
                Json::Object(config) => config.extend(map),
                config => *config = Json::Object(map),
            }
        }
        // A token is given by its spelling, or by an object that contains the spelling.
        let named = config.as_object().into_iter().flatten().filter(|(key, _)| key.ends_with("_token"));
        let tokens: Vec<(&str, &str)> = named
            .filter_map(|(key, value)| Some((key.as_str(), value.as_str().or_else(|| value["content"].as_str())?)))
            .collect();
        let own_path = folder.join("chat_template.jinja");
        if let Some(source) = read(&own_path)? {
            return Self::new(&source, &own_path, &tokens).map(Some);
        }
        let wrong =
            |expected: &str, found: String| ModelError::bad_value(&config_path, "chat_template", expected, found);
        let source = match &config["chat_template"] {
            Json::Null => return Ok(None),
            Json::String(source) => source,
            Json::Array(named) => {
                let default = named.iter().find(|entry| entry["name"] == "default");
                default.and_then(|entry| entry["template"].as_str()).ok_or_else(|| {
                    let names: Vec<&str> = named.iter().filter_map(|entry| entry["name"].as_str()).collect();
                    let expected = "a template called `default`; put the one you want into the folder as \
                                    chat_template.jinja";
                    wrong(expected, format!("templates called {}", names.join(", ")))
                })?
            }
            other => return Err(wrong("a template, or a list of named ones", other.to_string())),
        };
        Self::new(source, &config_path, &tokens).map(Some)
    }

    /// The text of a conversation. Pass it to [`encode`](crate::Tokenizer::encode) without special tokens, because the
    /// template writes them itself. With `open`, the text ends where the assistant's next turn begins. There are no
    /// tools and no documents.
    ///
    /// # Errors
    /// [`ModelError::Template`] if the template refuses the conversation or does not end.
    pub fn render(&self, messages: &[Message<'_>], open: bool) -> Result<String> {
        let messages: Vec<Value> =
            messages.iter().map(|message| context! { role => message.role, content => message.content }).collect();
        let failed = |error: Error| failed(&self.path, &error);
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let tokens: BTreeMap<&str, Value> =
            self.tokens.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str()))).collect();
        let values = context! {
            messages => messages,
            tools => (),
            documents => (),
            add_generation_prompt => open,
            ..Value::from(tokens)
        };
        let mut text = Text { written: Vec::new(), full: false };
        match template.render_captured_to(values, &mut text) {
            Ok(_) => {}
            Err(_) if text.full => {
                let detail = format!("it writes over {} bytes", python::MOST_TEXT);
                return Err(ModelError::Template { path: self.path.clone(), detail });
            }
            Err(error) => return Err(failed(error)),
        }
        Ok(String::from_utf8_lossy(&text.written).into_owned())
    }
}

/// The text that a template has written, up to a limit.
struct Text {
    written: Vec<u8>,
    full: bool,
}

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written.len() + bytes.len() > python::MOST_TEXT {
            self.full = true;
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.written.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn failed(path: &Path, error: &Error) -> ModelError {
    ModelError::Template { path: path.to_owned(), detail: error.to_string() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The newline after an expression is kept, in Jinja2 (3.1.6) and here.
    const CHATML: &str = "{% for message in messages %}
    {% if loop.first and messages[0]['role'] != 'system' %}
        {{- '<|im_start|>system\nYou help.<|im_end|>\n' }}
    {% endif %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'].strip() + '<|im_end|>' + '\n' }}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{% endif %}";
    /// Llama 2's template: it checks that roles alternate, and puts the system text into the first turn.
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

    fn template(source: &str) -> Result<ChatTemplate> {
        ChatTemplate::new(source, Path::new("own.jinja"), &[])
    }

    #[test]
    fn blocks_take_their_whitespace_and_python_methods_work() {
        let template = template(CHATML).unwrap();
        assert_eq!(
            template.render(&[turn("user", " Hi. ")], true).unwrap(),
            "<|im_start|>system\nYou help.<|im_end|>\n\n<|im_start|>user\nHi.<|im_end|>\n\n<|im_start|>assistant\n\n"
        );
    }

    #[test]
    fn llama2_folds_the_system_text_and_refuses_two_users() {
        let template =
            ChatTemplate::new(LLAMA2, Path::new("own.jinja"), &[("bos_token", "<s>"), ("eos_token", "</s>")]).unwrap();
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
        assert!(template("{% for %}").err().unwrap().to_string().contains("own.jinja: chat template"));
        let square = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
        let error = template(square).unwrap().render(&[], false).unwrap_err().to_string();
        assert!(error.contains("fuel"), "{error}");
        // A few bytes that request gigabytes.
        for (source, said) in [
            ("{{ '%99999999999d' % 1 }}", "a width of 99999999999"),
            ("{{ '%*d' % (99999999999, 1) }}", "a width of 99999999999"),
            ("{{ '%-9999999s'|format('x') }}", "a width of 9999999"),
            ("{{ '{:>9999999}'.format('x') }}", "a width of 9999999"),
            ("{{ '{:{}}'.format('x', 9999999) }}", "a width of 9999999"),
            ("{{ [1]|tojson(indent=9999999999) }}", "an indent of 9999999999"),
            ("{{ 'a'|indent(9999999999, true) }}", "indent: 9999999999 spaces"),
            ("{{ 'a'|indent(width=9999999999) }}", "indent: 9999999999 spaces"),
            ("{{ [1]|batch(9999999999, 0)|list }}", "batch: 9999999999 are too many"),
            ("{{ [1]|slice(9999999999, 0)|list }}", "slice: 9999999999 are too many"),
            ("{{ lipsum(n=99999999) }}", "lipsum"),
            ("{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "it writes over 16777216 bytes"),
        ] {
            let error = template(source).unwrap().render(&[], false).unwrap_err().to_string();
            assert!(error.contains(said), "{source}: {error}");
        }
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
        for (template, said) in [
            (r#"[{"name": "rag", "template": "r"}, {"name": "tool_use", "template": "t"}]"#, "called rag, tool_use"),
            ("3", "a list of named ones, found 3"),
        ] {
            write(config, &format!(r#"{{"chat_template": {template}}}"#));
            let error = ChatTemplate::from_hf_folder(folder.path()).err().unwrap().to_string();
            assert!(error.contains("key `chat_template`") && error.contains(said), "{error}");
        }
        write("chat_template.jinja", "{{ messages[0].role }}");
        assert_eq!(rendered().unwrap(), "user");
        write(config, "{");
        assert!(ChatTemplate::from_hf_folder(folder.path()).is_err());
    }
}
