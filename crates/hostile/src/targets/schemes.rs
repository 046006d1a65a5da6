//! Names of schemes, plans, and stored prompts.

use std::path::{Component, Path};
use std::sync::LazyLock;

use candle_core::{Device, Tensor};
use kvcsr::readers;
use kvcsr_cache::schemes::csr_plus::TABLES;
use kvcsr_cache::schemes::csr_plus::rest::{PromptFile, RestCodec};
use kvcsr_cache::{Geometry, PrefillSnapshot, SchemeContext, name::SchemeName, registry};
use kvcsr_codec::CodebookSet;

use super::Verdict;
use crate::place::Place;

/// The shape of a model with one layer, for prompts.
const SMALL: Geometry = Geometry { layers: 1, kv_heads: 1, head_dim: 8 };
/// A shape that every scheme supports.
const WHOLE: Geometry = Geometry { layers: 1, kv_heads: 2, head_dim: 64 };
/// The shape of the model of the plans in the corpus.
const PLANNED: Geometry = Geometry { layers: 2, kv_heads: 1, head_dim: 32 };
/// The number of tokens of the prompt in the corpus.
const TOKENS: usize = 12;
/// The name of the model of the prompts.
const MODEL: &str = "a model";

fn tables() -> &'static CodebookSet {
    static CONTEXT: LazyLock<SchemeContext> = LazyLock::new(|| SchemeContext::untrained(SMALL, 32));
    CONTEXT.codebooks(TABLES, MODEL).expect("an untrained context has all tables")
}

/// An accepted name must be that of the scheme built, its needs must be those of its plan, and it must be usable as the
/// name of a folder.
pub fn scheme(input: &[u8], _: &Place) -> Verdict {
    let Ok(name) = std::str::from_utf8(input) else { return Verdict::Refused };
    static CONTEXT: LazyLock<SchemeContext> = LazyLock::new(|| SchemeContext::untrained(WHOLE, 96));
    let needs = registry::needs(name);
    let built = registry::build(name, &CONTEXT);
    assert!(needs.is_ok() || built.is_err(), "{name} is built without being known");
    let Ok(scheme) = built else { return Verdict::Refused };
    let parsed = SchemeName::parse(name).expect("a scheme that was built has a name");
    assert_eq!(scheme.name(), parsed.base);
    let mut parts = Path::new(name).components();
    assert!(parts.all(|part| matches!(part, Component::Normal(_))), "{name:?} leads out of a folder");
    let (nominal, stored) = (scheme.nominal_bits().0, scheme.stored_bits().0);
    assert!(
        nominal.is_finite() && stored.is_finite() && nominal >= 0.0 && stored >= 0.0,
        "{name}: {nominal}, {stored}"
    );
    Verdict::Taken
}

/// A plan that is written and read again must be the same. A scheme must be built from it if, and only if, the plan fits the
/// model and takes no more bits than the scheme's name says.
pub fn plan(input: &[u8], place: &Place) -> Verdict {
    static UNTRAINED: LazyLock<SchemeContext> = LazyLock::new(|| SchemeContext::untrained(PLANNED, 32));
    let Ok((plan, text)) = readers::plan(&place.write("own.toml", input)) else { return Verdict::Refused };
    let (again, _) = readers::plan(&place.write("again.toml", text.as_bytes())).expect("a plan that was written");
    assert_eq!(again, plan);
    let tables = UNTRAINED.codebooks(TABLES, MODEL).expect("an untrained context has all tables");
    let outcome = plan.outcome(tables, PLANNED);
    let context = SchemeContext::new(PLANNED).with_codebooks(TABLES, tables.clone()).with_plan("own", plan);
    let built = registry::build("csr+@8(plan=own)", &context);
    // The bits of a name are rounded.
    let fits = outcome.as_ref().is_ok_and(|outcome| outcome.bits <= 8.0 + 0.005);
    assert_eq!(built.is_ok(), fits, "{outcome:?}");
    let (Ok(scheme), Ok(outcome)) = (built, outcome) else { return Verdict::Refused };
    let loss = outcome.predicted_loss;
    assert!(outcome.bits > 0.0 && loss.is_finite() && loss >= 0.0, "{outcome:?}");
    let (nominal, stored) = (scheme.nominal_bits().0, scheme.stored_bits().0);
    assert!(nominal.is_finite() && stored.is_finite() && nominal >= 0.0 && stored >= 0.0, "{nominal}, {stored}");
    Verdict::Taken
}

/// An accepted prompt gives keys and values for its tokens. Also decodes a layer from any bytes.
pub fn prompt(input: &[u8], place: &Place) -> Verdict {
    let Ok(file) = PromptFile::open(&place.write("prompt", input)) else { return Verdict::Refused };
    let tokens = file.header().tokens;
    assert!(tokens <= file.ids().len() && file.bytes() == input.len());
    let _ = file.expect_model(MODEL);
    let Ok(restored) = file.restore(tables(), SMALL) else { return Verdict::Refused };
    assert_eq!(restored.len(), tokens);
    assert_eq!(restored.keys.len(), SMALL.layers);
    Verdict::Taken
}

/// A prompt file, as the project writes it.
///
/// # Panics
/// If it cannot be written.
pub fn written_prompt(place: &Place) -> Vec<u8> {
    let codec = RestCodec::new(tables(), SMALL, 2.0).expect("tables of the same shape");
    let state = |phase: f32| {
        let numbers: Vec<f32> = (0..TOKENS * SMALL.head_dim).map(|at| (at as f32 * 0.37 + phase).sin()).collect();
        vec![Tensor::from_vec(numbers, (1, 1, TOKENS, SMALL.head_dim), &Device::Cpu).expect("as many as the shape")]
    };
    let last_logits = Tensor::zeros((1, 1), candle_core::DType::F32, &Device::Cpu).expect("a number");
    let snapshot = PrefillSnapshot { keys: state(0.0), values: state(1.0), queries: Vec::new(), last_logits };
    let ids: Vec<u32> = (0..=TOKENS as u32).collect();
    let path = place.path("prompt");
    PromptFile::write(&path, &codec, MODEL, &ids, &snapshot).expect("a prompt of this model");
    std::fs::read(&path).expect("what was written")
}
