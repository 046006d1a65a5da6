//! Every scheme by name.
//!
//! Each family of schemes has its own file and exports its [`Family`]: entries that describe it, and a function that
//! reads a name. This file only joins them. The command line, profiles, the evaluator, the table of methods and the
//! conformance tests all read [`entries`].

pub use crate::entry::{Entry, KeysCoded, Parameter, WINDOW};
use crate::family::{Family, Plan};
use crate::name::SchemeName;
use crate::needs::Needs;
pub use crate::schemes::csr::{BEST_DICTIONARIES, DEFAULT_DICTIONARIES, ROPE_DICTIONARIES};
use crate::schemes::evict::{snapkv, streaming};
use crate::schemes::{
    asymkv, commvq, cq, csr, csr_plus, dense, fp8, gear, ggml, kivi, lexico, nsnquant, svdq, turboquant, vidkv,
};
use crate::{CacheError, Geometry, Scheme, SchemeContext};

/// All families, in the order of the table of methods.
const FAMILIES: &[Family] = &[
    dense::FAMILY,
    streaming::FAMILY,
    snapkv::FAMILY,
    fp8::FAMILY,
    ggml::FAMILY,
    kivi::FAMILY,
    gear::FAMILY,
    asymkv::FAMILY,
    vidkv::FAMILY,
    turboquant::FAMILY,
    nsnquant::FAMILY,
    svdq::FAMILY,
    lexico::FAMILY,
    cq::FAMILY,
    commvq::FAMILY,
    csr::FAMILY,
    csr_plus::FAMILY,
];

/// All registered schemes.
pub fn entries() -> impl Iterator<Item = &'static Entry> {
    FAMILIES.iter().flat_map(|family| family.entries)
}

/// Splits a name into its parts, and finds the scheme that it describes.
fn read(name: &str) -> Result<(SchemeName<'_>, Plan), CacheError> {
    let unknown = |reason: String| CacheError::UnknownScheme {
        name: name.to_owned(),
        reason,
        known: entries().map(|e| e.pattern).collect::<Vec<_>>().join(", "),
    };
    let parsed = SchemeName::parse(name).map_err(unknown)?;
    for family in FAMILIES {
        if let Some(plan) = (family.read)(&parsed).map_err(unknown)? {
            return Ok((parsed, plan));
        }
    }
    Err(unknown("no scheme of that name is registered".to_owned()))
}

/// What the scheme called `name` needs. The name alone determines this.
///
/// # Errors
/// [`CacheError::UnknownScheme`], with the known schemes.
pub fn needs(name: &str) -> Result<Needs, CacheError> {
    Ok(read(name)?.1.needs().clone())
}

/// Builds the scheme called `name`, for example `dense`, `kivi-2`, `turboquant-3+window`, `csr-8@kmeans` or
/// `csr-8+online+fp8@kmeans`.
///
/// # Errors
/// [`CacheError::UnknownScheme`] with the known schemes, the errors of [`Needs::check`] if something is missing, or the
/// reason why the scheme does not fit the model.
pub fn build(name: &str, cx: &SchemeContext) -> Result<Box<dyn Scheme>, CacheError> {
    let (parsed, plan) = read(name)?;
    cx.place(plan.build(parsed.base, cx)?)
}

/// An entry, and the bits of its first example.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Listed {
    /// The entry.
    #[serde(flatten)]
    pub entry: Entry,
    /// Bits per channel of the first example as its paper counts them.
    pub nominal_bits: f64,
    /// Bits per channel with scales, norms and everything else that a coded token takes, without windows.
    pub stored_bits: f64,
    /// The `head_dim` of the geometry for which these bits are computed.
    pub head_dim: usize,
}

/// The shape of the model for which [`listing`] computes the bits. It is that of Llama 3 8B.
pub const LISTED_GEOMETRY: Geometry = Geometry { layers: 32, kv_heads: 8, head_dim: 128 };

/// Every entry, with the bits of its first example at [`LISTED_GEOMETRY`] with dictionaries of 1024 atoms.
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
                let base = SchemeName::parse(example).unwrap().base;
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

    #[test]
    fn needs_are_known_from_the_name_alone() {
        use KeysCoded::{AfterRope, BeforeRope};
        let budget = |level| Needs { budget: Some(level), ..Needs::dictionaries(BeforeRope, "neuraldict") };
        for (name, expected) in [
            ("dense", Needs::nothing(AfterRope)),
            ("kivi-2(group=64)+window", Needs::nothing(AfterRope)),
            ("nsnquant-2", Needs::nothing(BeforeRope)),
            ("svdq-2", Needs::nothing(BeforeRope)),
            ("svdq-2(basis=calibrated)", Needs::codebooks(BeforeRope, "svdq")),
            ("turboquant-2+pre-rope", Needs::nothing(BeforeRope)),
            ("cq-8c8b+window", Needs::codebooks(BeforeRope, "cq-8c8b")),
            ("commvq-k-1@mine", Needs::codebooks(BeforeRope, "mine")),
            ("lexico-8", Needs::dictionaries(AfterRope, "lexico")),
            ("csr-8", Needs::dictionaries(BeforeRope, "neuraldict")),
            ("csr-8+refit@best", Needs::dictionaries(BeforeRope, "best")),
            ("csr-8+rope+int8", Needs::dictionaries(AfterRope, "neuraldict-rope")),
            ("csr-4+budget", budget(4)),
        ] {
            assert_eq!(needs(name).unwrap(), expected, "{name}");
        }
        assert!(matches!(needs("csr-many"), Err(CacheError::UnknownScheme { .. })));
    }

    #[test]
    fn what_is_needed_is_what_building_misses() {
        let geometry = Geometry { layers: 1, kv_heads: 2, head_dim: 64 };
        let (bare, full) = (SchemeContext::new(geometry), SchemeContext::untrained(geometry, 96));
        for entry in entries() {
            for example in entry.examples {
                let needs = needs(example).unwrap();
                assert_eq!(needs.keys_coded, entry.keys_coded, "{example}");
                assert_eq!(build(example, &bare).is_ok(), needs.is_nothing(), "{example}");
                needs.check(example, &full).unwrap();
            }
        }
    }
}
