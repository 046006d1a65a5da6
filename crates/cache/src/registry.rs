//! Every scheme by name, with its parameters, source and builder.
//!
//! Each family of schemes, in a file of its own, exports its [`Family`]: entries that describe it and a function that
//! builds a scheme from a name. This file only joins them. The command line, profiles, the evaluator, the README's
//! table and the conformance tests all read [`entries`].

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use kvcsr_codec::{CodebookSet, DictionarySet, Encoder};

use crate::name::SchemeName;
use crate::schemes::{asymkv, commvq, cq, csr, dense, fp8, gear, ggml, kivi, lexico, svdq, turboquant, vidkv};
use crate::{Budgets, CacheError, Geometry, Scheme};

/// The dictionary set a scheme uses when its name does not say (`csr-8` is `csr-8@neuraldict`).
pub const DEFAULT_DICTIONARIES: &str = "neuraldict";

/// The dictionary set that is trained with whatever wins beyond the paper.
pub const BEST_DICTIONARIES: &str = "best";

/// The dictionary set of schemes that code keys after position embedding.
pub const ROPE_DICTIONARIES: &str = "neuraldict-rope";

/// All families, in the order of the README's table.
const FAMILIES: &[Family] = &[
    dense::FAMILY,
    fp8::FAMILY,
    ggml::FAMILY,
    kivi::FAMILY,
    gear::FAMILY,
    asymkv::FAMILY,
    vidkv::FAMILY,
    turboquant::FAMILY,
    svdq::FAMILY,
    lexico::FAMILY,
    cq::FAMILY,
    commvq::FAMILY,
    csr::FAMILY,
];

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
    /// What holds where it is not given; empty where it must be.
    pub default: &'static str,
    /// What it is.
    pub meaning: &'static str,
}

/// One registered scheme, or a family of them that differ in a number.
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
    /// Whether a prefill taken over leaves the cache that the same tokens leave when they are decoded one by one. Not so
    /// where a method treats a prompt in another way.
    pub prefill_as_decoded: bool,
}

/// The exact tokens that every compressed scheme can have around its codes.
pub const WINDOW: [Parameter; 2] = [
    Parameter { name: "+window(sinks)", default: "4", meaning: "first tokens kept in f16" },
    Parameter { name: "+window(recent)", default: "128", meaning: "last tokens kept in f16" },
];

/// The schemes of one file or folder.
#[derive(Clone, Copy)]
pub struct Family {
    /// What it has.
    pub entries: &'static [Entry],
    /// Builds a scheme, or nothing if the name is not of this family.
    pub build: fn(&SchemeName<'_>, &SchemeContext) -> Built,
}

/// A scheme, nothing if the name is another family's, or why it could not be built.
pub type Built = Result<Option<Box<dyn Scheme>>, BuildError>;

/// Why a family did not build a name that is its own.
#[derive(Debug)]
pub enum BuildError {
    /// The name is wrong; the sentence says where.
    Name(String),
    /// The name is right, but the scheme cannot be built here.
    Scheme(CacheError),
}

impl From<String> for BuildError {
    fn from(reason: String) -> Self {
        Self::Name(reason)
    }
}

impl From<CacheError> for BuildError {
    fn from(error: CacheError) -> Self {
        Self::Scheme(error)
    }
}

/// All registered schemes.
pub fn entries() -> impl Iterator<Item = &'static Entry> {
    FAMILIES.iter().flat_map(|family| family.entries)
}

/// What schemes are built from: the model's shape and the trained dictionary sets by name.
///
/// Encoders (with their Gram matrices) are made once per set and shared by all schemes over it.
pub struct SchemeContext {
    geometry: Geometry,
    sets: BTreeMap<String, (DictionarySet, Vec<Arc<Encoder>>)>,
    budgets: Budgets,
    codebooks: BTreeMap<String, CodebookSet>,
}

impl SchemeContext {
    /// A context without dictionaries.
    pub fn new(geometry: Geometry) -> Self {
        Self { geometry, sets: BTreeMap::new(), codebooks: BTreeMap::new(), budgets: Budgets::new() }
    }

    /// Adds a dictionary set under `name`.
    pub fn with_dictionaries(mut self, name: &str, set: DictionarySet) -> Self {
        let encoders = set.groups.iter().map(|g| Arc::new(Encoder::new(g.dictionary.clone()))).collect();
        self.sets.insert(name.to_owned(), (set, encoders));
        self
    }

    /// Gives the levels by layer that `csr-S+budget` takes.
    pub fn with_budgets(mut self, budgets: Budgets) -> Self {
        self.budgets = budgets;
        self
    }

    /// The levels by layer that were given.
    pub fn budgets(&self) -> &Budgets {
        &self.budgets
    }

    /// Adds the codebooks of a calibrated method under `name`.
    pub fn with_codebooks(mut self, name: &str, set: CodebookSet) -> Self {
        self.codebooks.insert(name.to_owned(), set);
        self
    }

    /// The model's shape.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The dictionary set called `name` and the encoder of each of its groups.
    ///
    /// # Errors
    /// [`CacheError::MissingDictionaries`], naming `scheme`.
    pub fn dictionaries(&self, name: &str, scheme: &str) -> Result<(&DictionarySet, &[Arc<Encoder>]), CacheError> {
        self.sets
            .get(name)
            .map(|(set, encoders)| (set, &encoders[..]))
            .ok_or_else(|| CacheError::MissingDictionaries { scheme: scheme.to_owned(), dictionaries: name.to_owned() })
    }

    /// The codebooks called `name`, which were made for this model's shape.
    ///
    /// # Errors
    /// [`CacheError::MissingCodebooks`], naming `scheme`, or [`CacheError::Unsuitable`] if they are another model's.
    pub fn codebooks(&self, name: &str, scheme: &str) -> Result<&CodebookSet, CacheError> {
        let set = self
            .codebooks
            .get(name)
            .ok_or_else(|| CacheError::MissingCodebooks { scheme: scheme.to_owned(), codebooks: name.to_owned() })?;
        let Geometry { layers, kv_heads, head_dim } = self.geometry;
        set.validate_for(layers, kv_heads, head_dim)
            .map_err(|e| CacheError::Unsuitable { scheme: scheme.to_owned(), reason: e.to_string() })?;
        Ok(set)
    }
}

/// Builds the scheme called `name`, for example `dense`, `kivi-2`, `turboquant-3+window`, `csr-8@kmeans` or
/// `csr-8+online+fp8@kmeans`.
///
/// # Errors
/// [`CacheError::UnknownScheme`] naming what is known, or what the scheme's own builder says.
pub fn build(name: &str, cx: &SchemeContext) -> Result<Box<dyn Scheme>, CacheError> {
    let unknown = |reason: String| CacheError::UnknownScheme {
        name: name.to_owned(),
        reason,
        known: entries().map(|e| e.pattern).collect::<Vec<_>>().join(", "),
    };
    let parsed = SchemeName::parse(name).map_err(unknown)?;
    for family in FAMILIES {
        match (family.build)(&parsed, cx) {
            Ok(None) => {}
            Ok(Some(scheme)) => return Ok(scheme),
            Err(BuildError::Name(reason)) => return Err(unknown(reason)),
            Err(BuildError::Scheme(error)) => return Err(error),
        }
    }
    Err(unknown("no scheme of that name is registered".to_owned()))
}

/// An entry and what building its first example tells.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Listed {
    /// The entry.
    #[serde(flatten)]
    pub entry: Entry,
    /// Bits per channel of the first example as its paper counts them.
    pub nominal_bits: f64,
    /// The same with scales, norms and everything else a coded token takes, without windows.
    pub stored_bits: f64,
    /// The geometry that the bits are for.
    pub head_dim: usize,
}

/// The shape of the model for which [`listing`] states bits: those of Llama 3 8B.
pub const LISTED_GEOMETRY: Geometry = Geometry { layers: 32, kv_heads: 8, head_dim: 128 };

/// Every entry, with the bits of its first example at [`LISTED_GEOMETRY`] over dictionaries of 1024 atoms.
///
/// # Errors
/// If an example cannot be built.
pub fn listing() -> Result<Vec<Listed>, CacheError> {
    let cx = SchemeContext::untrained(LISTED_GEOMETRY, 1024);
    entries()
        .map(|entry| {
            let scheme = build(entry.examples[0], &cx)?;
            Ok(Listed {
                entry: *entry,
                nominal_bits: scheme.nominal_bits().0,
                stored_bits: scheme.stored_bits().0,
                head_dim: LISTED_GEOMETRY.head_dim,
            })
        })
        .collect()
}

/// The README's table of methods.
///
/// # Errors
/// As [`listing`].
pub fn markdown() -> Result<String, CacheError> {
    let mut table = String::from(
        "| scheme | what | keys coded | nominal bits | stored bits | source |\n|---|---|---|--:|--:|---|\n",
    );
    for Listed { entry, nominal_bits, stored_bits, .. } in listing()? {
        let keys = match entry.keys_coded {
            KeysCoded::BeforeRope => "before RoPE",
            KeysCoded::AfterRope => "after RoPE",
        };
        let Entry { pattern, examples, summary, citation, .. } = entry;
        let example = if examples[0] == pattern { String::new() } else { format!(", as `{}`", examples[0]) };
        let (nominal, stored) = (shortest(nominal_bits), shortest(stored_bits));
        writeln!(table, "| `{pattern}`{example} | {summary} | {keys} | {nominal} | {stored} | {citation} |")
            .expect("writing to a string succeeds");
    }
    Ok(table)
}

/// With three decimals at most.
fn shortest(bits: f64) -> String {
    let text = format!("{bits:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn error(name: &str) -> String {
        let cx = SchemeContext::new(Geometry { layers: 1, kv_heads: 1, head_dim: 8 });
        build(name, &cx).err().unwrap().to_string()
    }

    #[test]
    fn names_that_are_wrong_say_what_is_known() {
        assert!(error("densest").contains("dense, dense-f16"));
        assert!(error("densest").contains("csr-S"));
        assert!(error("csr-many").contains("not a number"));
        assert!(error("dense@kmeans").contains("takes no dictionaries"));
        assert!(error("csr-8").contains("just train"));
    }

    #[test]
    fn every_entry_is_built_by_its_examples_under_its_own_name() {
        let cx = SchemeContext::untrained(Geometry { layers: 1, kv_heads: 2, head_dim: 64 }, 96);
        for entry in entries() {
            for example in entry.examples {
                let scheme = build(example, &cx).unwrap();
                let base = example.split('@').next().unwrap();
                assert_eq!(scheme.name(), base);
                assert!(
                    scheme.nominal_bits().0 > 0.0 && scheme.stored_bits().0 >= scheme.nominal_bits().0,
                    "{example}"
                );
            }
        }
        assert_eq!(listing().unwrap().len(), entries().count());
    }

    #[test]
    fn every_family_refuses_parts_and_arguments_it_has_not() {
        let cx = SchemeContext::untrained(Geometry { layers: 1, kv_heads: 2, head_dim: 64 }, 96);
        for entry in entries() {
            let head = entry.examples[0].split(['@', '+', '(']).next().unwrap();
            for wrong in [format!("{head}+nonsense"), format!("{head}(nonsense=1)"), format!("{head}x")] {
                let error = build(&wrong, &cx).err().unwrap_or_else(|| panic!("{wrong} was built"));
                assert!(matches!(error, CacheError::UnknownScheme { .. }), "{wrong}: {error}");
            }
        }
    }
}
