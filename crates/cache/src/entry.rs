//! How a scheme is described: what the command line, profiles, tables and conformance tests read.

/// Where a scheme codes keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeysCoded {
    /// Before position embedding.
    BeforeRope,
    /// After position embedding.
    AfterRope,
}

/// Something about a scheme that its name may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Parameter {
    /// As it is written in a name: `group`, `+window(recent)`, or a letter of the pattern.
    pub name: &'static str,
    /// Its default; empty if it must be given.
    pub default: &'static str,
    /// What it is.
    pub meaning: &'static str,
}

/// One registered scheme, or several that differ in a number.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Entry {
    /// Name as given on the command line; capital letters stand for numbers.
    pub pattern: &'static str,
    /// Names that can be built. The first stands for the entry; conformance tests run them all.
    pub examples: &'static [&'static str],
    /// A sentence for people.
    pub summary: &'static str,
    /// Where the method comes from.
    pub citation: &'static str,
    /// Where it codes keys.
    pub keys_coded: KeysCoded,
    /// What its name may set.
    pub parameters: &'static [Parameter],
    /// Whether a prefill taken over leaves the cache that the same tokens leave when they are decoded one by one. False
    /// for methods that treat a prompt in another way.
    pub prefill_as_decoded: bool,
}

/// Whether keys are coded without what all keys of a head have in common.
pub const CENTRE: Parameter = Parameter {
    name: "+centre",
    default: "",
    meaning: "take each head's mean key of the prompt, before RoPE, from all keys and give it back to scores",
};

/// The tokens that every compressed scheme can keep better around its codes.
pub const WINDOW: [Parameter; 3] = [
    Parameter { name: "+window(sinks)", default: "4", meaning: "first tokens kept in f16" },
    Parameter { name: "+window(recent)", default: "128", meaning: "last tokens kept in f16" },
    Parameter {
        name: "+window(graded)",
        default: "0",
        meaning: "tokens before those kept in 4 bits beside their codes",
    },
];
