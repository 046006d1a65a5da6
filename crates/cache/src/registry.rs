//! Every scheme by name, with its parameters, source and builder.
//!
//! The command line, profiles, the evaluator and the conformance tests all read [`ENTRIES`].

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::DType;
use kvcsr_codec::{DictionarySet, Encoder};

use crate::{Budgets, CacheError, CsrOptions, CsrScheme, DenseScheme, Geometry, Scheme};

/// The dictionary set a scheme uses when its name does not say (`csr-8` is `csr-8@neuraldict`).
pub const DEFAULT_DICTIONARIES: &str = "neuraldict";

/// The dictionary set of schemes that code keys after position embedding.
pub const ROPE_DICTIONARIES: &str = "neuraldict-rope";

/// Where a scheme codes keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeysCoded {
    /// Before position embedding.
    BeforeRope,
    /// After position embedding.
    AfterRope,
}

/// One registered scheme, or a family of them that differ in a number.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Entry {
    /// Name as given on the command line; `S` stands for a number.
    pub pattern: &'static str,
    /// A sentence for people.
    pub summary: &'static str,
    /// Where the method comes from.
    pub citation: &'static str,
    /// Where it codes keys.
    pub keys_coded: KeysCoded,
}

/// All registered schemes.
pub const ENTRIES: &[Entry] = &[
    Entry {
        pattern: "dense",
        summary: "Uncompressed f32 keys and values: the reference of every comparison",
        citation: "",
        keys_coded: KeysCoded::AfterRope,
    },
    Entry {
        pattern: "dense-f16",
        summary: "Uncompressed f16 keys and values: the 16 bits per channel that compression is measured against",
        citation: "",
        keys_coded: KeysCoded::AfterRope,
    },
    Entry {
        pattern: "csr-S",
        summary: "CSR with S atoms per key and S/2 in each of two value chunks; `csr-S@kmeans` uses the k-means dictionaries",
        citation: "Zhang et al., CSR: Achieving 1 Bit Key-Value Cache via Sparse Representation, AAAI 2025",
        keys_coded: KeysCoded::BeforeRope,
    },
    Entry {
        pattern: "csr-S+online",
        summary: "CSR with atoms from the prompt, sampled and guard: `csr-8+online(sampled=128,guard=256,\
                  sampler=reverse,prefill=exact)` spells out the defaults, sizes in tokens; samplers are reverse, \
                  uniform, strided and worst",
        citation: "Zhang et al., section 4",
        keys_coded: KeysCoded::BeforeRope,
    },
    Entry {
        pattern: "csr-S+window",
        summary: "CSR between exact tokens in f16: `csr-4+window(sinks=4,recent=128)`",
        citation: "",
        keys_coded: KeysCoded::BeforeRope,
    },
    Entry {
        pattern: "csr-S+fp8",
        summary: "CSR with packed codes: indices in ceil(log2 N) bits and coefficients in f16, fp8, int8, int6 or int4",
        citation: "",
        keys_coded: KeysCoded::BeforeRope,
    },
    Entry {
        pattern: "csr-S+refit",
        summary: "CSR with least-squares coefficients for the atoms that matching pursuit picked",
        citation: "",
        keys_coded: KeysCoded::BeforeRope,
    },
    Entry {
        pattern: "csr-S+stop",
        summary: "CSR that stops adding atoms once the relative squared error is small enough, in rows of different \
                  lengths: `csr-8+stop(0.02)`; nominal bits are those of full rows",
        citation: "",
        keys_coded: KeysCoded::BeforeRope,
    },
    Entry {
        pattern: "csr-S+split",
        summary: "CSR with other levels for keys than for values, S on average: `csr-8+split(k=10,v=6)`",
        citation: "",
        keys_coded: KeysCoded::BeforeRope,
    },
    Entry {
        pattern: "csr-S+budget",
        summary: "CSR with levels by layer and kind, S on average, spent where they lower KL most (`just allocate`)",
        citation: "",
        keys_coded: KeysCoded::BeforeRope,
    },
    Entry {
        pattern: "csr-S+rope",
        summary: "CSR with keys coded after position embedding, which are scored without restoring them; its \
                  dictionaries are `neuraldict-rope`, trained on such keys (`just train-rope`)",
        citation: "",
        keys_coded: KeysCoded::AfterRope,
    },
    Entry {
        pattern: "csr-S+restore",
        summary: "CSR attending to restored keys and values instead of on codes: the oracle of the default. All parts \
                  combine: `csr-8+online+int4+window+refit`",
        citation: "",
        keys_coded: KeysCoded::BeforeRope,
    },
];

/// What schemes are built from: the model's shape and the trained dictionary sets by name.
///
/// Encoders (with their Gram matrices) are made once per set and shared by all schemes over it.
pub struct SchemeContext {
    geometry: Geometry,
    sets: BTreeMap<String, (DictionarySet, Vec<Arc<Encoder>>)>,
    budgets: Budgets,
}

impl SchemeContext {
    /// A context without dictionaries.
    pub fn new(geometry: Geometry) -> Self {
        Self { geometry, sets: BTreeMap::new(), budgets: Budgets::new() }
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

    /// The model's shape.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }
}

/// Builds the scheme called `name`, for example `dense`, `csr-8`, `csr-8@kmeans` or
/// `csr-8+online+fp8@kmeans`.
///
/// # Errors
/// [`CacheError::UnknownScheme`] naming what is known, or what the scheme's own builder says.
pub fn build(name: &str, cx: &SchemeContext) -> Result<Box<dyn Scheme>, CacheError> {
    let unknown = |reason: &str| CacheError::UnknownScheme {
        name: name.to_owned(),
        reason: reason.to_owned(),
        known: ENTRIES.iter().map(|e| e.pattern).collect::<Vec<_>>().join(", "),
    };
    let (base, dictionaries) = match name.split_once('@') {
        Some((base, dictionaries)) => (base, Some(dictionaries)),
        None => (name, None),
    };
    if let Some(parts) = base.strip_prefix("csr-") {
        let options = CsrOptions::parse(parts).map_err(|reason| unknown(&reason))?;
        let dictionaries = dictionaries.unwrap_or(if options.rope { ROPE_DICTIONARIES } else { DEFAULT_DICTIONARIES });
        let (set, encoders) = cx.sets.get(dictionaries).ok_or_else(|| CacheError::MissingDictionaries {
            scheme: name.to_owned(),
            dictionaries: dictionaries.to_owned(),
        })?;
        return Ok(Box::new(CsrScheme::new(base, options, dictionaries, set, encoders, cx.geometry, &cx.budgets)?));
    }
    if dictionaries.is_some() {
        return Err(unknown("this scheme takes no dictionaries"));
    }
    match base {
        "dense" => Ok(Box::new(DenseScheme::new(DType::F32))),
        "dense-f16" => Ok(Box::new(DenseScheme::new(DType::F16))),
        _ => Err(unknown("no scheme of that name is registered")),
    }
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
        assert!(error("densest").contains("dense, dense-f16, csr-S"));
        assert!(error("csr-many").contains("not a number"));
        assert!(error("dense@kmeans").contains("takes no dictionaries"));
        assert!(error("csr-8").contains("just train"));
    }
}
