//! Descriptions of schemes, for the command line, profiles, tables and conformance tests.

/// Where a scheme codes keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeysCoded {
    /// Before position embedding.
    BeforeRope,
    /// After position embedding.
    AfterRope,
}

/// A parameter that a scheme's name may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Parameter {
    /// How it is written in a name: `group`, `+window(recent)`, or a letter of the pattern.
    pub name: &'static str,
    /// Its default. Empty if it is required.
    pub default: &'static str,
    /// What it means.
    pub meaning: &'static str,
}

/// One registered scheme, or several that differ only in a number.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Entry {
    /// The name on the command line. Capital letters stand for numbers.
    pub pattern: &'static str,
    /// Names that can be built. The first one represents the entry. Conformance tests run all of them.
    pub examples: &'static [&'static str],
    /// A sentence for readers.
    pub summary: &'static str,
    /// The source of the method.
    pub citation: &'static str,
    /// Where the scheme codes keys.
    pub keys_coded: KeysCoded,
    /// The parameters that its name may set.
    pub parameters: &'static [Parameter],
    /// Whether a prefill that is taken over gives the same cache as decoding the same tokens one by one. False for
    /// methods that treat a prompt differently.
    pub prefill_as_decoded: bool,
}

/// The parameter that says whether the part common to all keys of a head is removed before coding.
pub const CENTRE: Parameter = Parameter {
    name: "+centre",
    default: "",
    meaning: "take each head's mean key of the prompt, before RoPE, from all keys and give it back to scores",
};

/// The tokens that any compressed scheme can store more precisely, before and after its codes.
pub const WINDOW: [Parameter; 3] = [
    Parameter { name: "+window(sinks)", default: "4", meaning: "first tokens kept in f16" },
    Parameter { name: "+window(recent)", default: "128", meaning: "last tokens kept in f16" },
    Parameter {
        name: "+window(graded)",
        default: "0",
        meaning: "tokens before those kept in 4 bits beside their codes",
    },
];
