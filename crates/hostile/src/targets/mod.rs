//! One function per reader: it is given any bytes as the file, and asserts what must hold of every file.

mod checkpoints;
mod codec;
mod evaluation;
mod pipeline;
mod schemes;
mod text;

pub use self::pipeline::MEMBER;
pub use self::schemes::written_prompt;

use crate::mutate::Form;
use crate::place::Place;

/// What a reader said to an input. Anything else it may do (a panic, memory beyond the bound) is a find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It took it, and what it made of it was checked.
    Taken,
    /// It said what is wrong.
    Refused,
}

/// A reader under test.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name: that of its folder in the corpus, and on the command line.
    pub name: &'static str,
    /// What is read, for people.
    pub what: &'static str,
    /// Feeds one input to the reader.
    ///
    /// # Panics
    /// If the reader breaks a promise.
    pub body: fn(&[u8], &Place) -> Verdict,
    /// How inputs are built, so that damage gets past the outermost check.
    pub form: Form,
    /// Bytes that may be allocated at once for each byte of input, ...
    pub multiple: usize,
    /// ... and beside them.
    pub constant: usize,
}

impl Target {
    /// Most bytes that may be allocated at once for an input of `bytes`.
    #[must_use]
    pub fn bound(&self, bytes: usize) -> usize {
        self.multiple * bytes + self.constant
    }
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Every target, in the order of the table in docs/RELIABILITY.md.
pub const ALL: &[Target] = &[
    Target {
        name: "dictionary",
        what: "dictionary files",
        body: codec::dictionary,
        form: Form::Safetensors,
        multiple: 64,
        constant: 128 * KIB,
    },
    Target {
        name: "codebook",
        what: "codebook files",
        body: codec::codebook,
        form: Form::Safetensors,
        multiple: 64,
        constant: 128 * KIB,
    },
    Target {
        name: "shard",
        what: "calibration shards",
        body: codec::shard,
        form: Form::Safetensors,
        multiple: 64,
        constant: 64 * KIB,
    },
    Target {
        name: "codes",
        what: "packed codes",
        body: codec::codes,
        form: Form::Bytes,
        multiple: 1024,
        constant: 256 * KIB,
    },
    Target {
        name: "prompt",
        what: "prompts kept as files",
        body: schemes::prompt,
        form: Form::Prompt,
        multiple: 256,
        constant: 256 * KIB,
    },
    Target {
        name: "gguf",
        what: "GGUF files with their tokenizer and template",
        body: checkpoints::gguf,
        form: Form::Gguf,
        multiple: 256,
        constant: 8 * MIB,
    },
    Target {
        name: "safetensors",
        what: "safetensors of checkpoints",
        body: checkpoints::safetensors,
        form: Form::Safetensors,
        multiple: 64,
        constant: 64 * KIB,
    },
    Target {
        name: "pickle",
        what: "PyTorch files",
        body: checkpoints::pickle,
        form: Form::Zip,
        multiple: 256,
        constant: 512 * KIB,
    },
    Target {
        name: "tokenizer_json",
        what: "`tokenizer.json` with `tokenizer_config.json`",
        body: text::tokenizer_json,
        form: Form::Text(TOKENIZER),
        multiple: 256,
        constant: 2 * MIB,
    },
    Target {
        name: "tokenizer_model",
        what: "`tokenizer.model`",
        body: text::tokenizer_model,
        form: Form::Bytes,
        multiple: 256,
        constant: 2 * MIB,
    },
    Target {
        name: "chat_template",
        what: "chat templates",
        body: text::chat_template,
        form: Form::Text(JINJA),
        multiple: 4096,
        constant: 256 * MIB,
    },
    Target {
        name: "records",
        what: "LongBench records",
        body: evaluation::records,
        form: Form::Text(JSON),
        // Each line that is no record, of two bytes perhaps, is an error with the file's path.
        multiple: 512,
        constant: 128 * KIB,
    },
    Target {
        name: "predictions",
        what: "predictions, scored",
        body: evaluation::predictions,
        form: Form::Text(JSON),
        multiple: 1024,
        constant: 64 * KIB,
    },
    Target {
        name: "profile",
        what: "profiles",
        body: pipeline::profile,
        form: Form::Text(TOML),
        multiple: 256,
        constant: MIB,
    },
    Target {
        name: "set",
        what: "`set=` values",
        body: pipeline::set,
        form: Form::Text(TOML),
        multiple: 256,
        constant: MIB,
    },
    Target {
        name: "scheme",
        what: "scheme names",
        body: schemes::scheme,
        form: Form::Text(SCHEME),
        multiple: 64,
        constant: 64 * MIB,
    },
    Target {
        name: "sources",
        what: "`data/sources.toml` with parts and collections",
        body: pipeline::sources,
        form: Form::Text(SOURCES),
        multiple: 256,
        constant: 128 * KIB,
    },
    Target {
        name: "wheel",
        what: "wheels: members of any name, links and bombs",
        body: pipeline::wheel,
        form: Form::Zip,
        multiple: 512,
        constant: 4 * MIB,
    },
];

/// The target of that name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Target> {
    ALL.iter().find(|target| target.name == name)
}

const JSON: &[&str] = &[
    "null",
    "true",
    "[]",
    "{}",
    "-1",
    "1e999",
    "18446744073709551616",
    "\"\"",
    "\\u0000",
    "\\ud800",
    "\"_id\":",
    "\"answers\":",
    "\"all_classes\":",
    "\"pred\":",
    "\"length\":",
    "\"dataset\":\"trec_e\"",
    "\"language\":\"zh\"",
    "\n",
    "[[[[[[[[",
    "},{",
    ",",
];
const TOML: &[&str] = &[
    "[train]\n",
    "[sweep]\n",
    "[[",
    "]]",
    "= ",
    "\n",
    "nan",
    "inf",
    "-1",
    "9223372036854775807",
    "0x7fffffffffffffff",
    "1e308",
    "''",
    "\"\"\"",
    "{}",
    "[]",
    "train.atoms=",
    "train.",
    "longbench.tasks=",
    "sweep={}",
    "device=",
    "true",
    "1979-05-27",
    "[[[[[[[[[[",
    "{a={a={a=",
    "..",
    "=",
];
const SCHEME: &[&str] = &[
    "dense",
    "dense-f16",
    "kivi-",
    "gear-",
    "csr-",
    "csr+@",
    "+window",
    "(recent=",
    "(group=",
    "(sinks=",
    "+online",
    "+budget",
    "+rope",
    "+int8",
    "+fp8",
    "+refit",
    "+centre",
    "@kmeans",
    "@best",
    "turboquant-",
    "svdq-",
    "lexico-",
    "cq-8c8b",
    "commvq-k-1",
    "asymkv-",
    "vidkv-",
    "evict(",
    "snapkv(",
    "fp8",
    "q4_0",
    "=",
    ",",
    ")",
    "16777216",
    "18446744073709551615",
    "0",
    "-1",
    "0.5",
    "nan",
    "1e999",
    "../../",
    "/",
];
const SOURCES: &[&str] = &[
    "[[source]]\n",
    "[[collection]]\n",
    "[[source.parts]]\n",
    "parts = [",
    "package = \"",
    "file = \"../",
    "file = \"/etc/passwd\"",
    "version = \"..\"",
    "bytes = 9223372036854775807",
    "kind = \"document\"",
    "documents = { blocks_of = 0 }",
    "\\u0000",
    "./",
    "..",
    "-",
    "@ file:///",
    "\n",
    "{ ",
    " }",
    ",",
    "[[[[",
];
const JINJA: &[&str] = &[
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "{% for m in messages %}",
    "{% endfor %}",
    "{% if ",
    "{% endif %}",
    "{% set x = ",
    "{% raw %}",
    "{% endraw %}",
    "{% generation %}",
    "{% endgeneration %}",
    "{% macro f(x) %}",
    "{% endmacro %}",
    "range(99999)",
    "messages",
    "['content']",
    " % ",
    " ~ ",
    " * ",
    " ** ",
    " // ",
    "|tojson(indent=",
    "|indent(",
    "|format(",
    "|join(",
    "|batch(",
    "|slice(",
    "|replace('',",
    ".split(",
    ".ljust(",
    ".zfill(",
    ".rsplit(",
    "namespace(x=",
    "loop.index",
    "'%9999999999d'",
    "%(",
    "%*d",
    "999999999",
    "strftime_now('%",
    "lipsum(",
    "|e",
    "-1",
    "9223372036854775807",
    "1e308",
    "''",
    "\\",
    "'",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
];
const TOKENIZER: &[&str] = &[
    "null",
    "true",
    "[]",
    "{}",
    "-1",
    "0",
    "4294967295",
    "18446744073709551615",
    "1e999",
    "\"\"",
    "\"type\":\"BPE\"",
    "\"type\":\"Unigram\"",
    "\"type\":\"WordPiece\"",
    "\"type\":\"WordLevel\"",
    "\"type\":\"Split\"",
    "\"type\":\"Strip\"",
    "\"type\":\"FixedLength\",\"length\":0",
    "\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AAAA\"",
    "\"type\":\"TemplateProcessing\"",
    "\"type\":\"Sequence\"",
    "\"type\":\"Metaspace\"",
    "\"continuing_subword_prefix\":\"##\"",
    "\"unk_id\":9",
    "\"cache_capacity\":",
    "\"merges\":",
    "\"vocab\":",
    "\"Regex\":\"(a+)+$\"",
    "\"Regex\":\"",
    "(?<=",
    "{1000}",
    "\\\\p{L}",
    "\"start\":",
    "\"stop\":",
    "\"content\":",
    "\"id\":",
    "\"dropout\":",
    "\"byte_fallback\":true",
    ",",
    ":",
    "}",
    "]",
    "\u{e9}",
];
