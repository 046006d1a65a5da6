//! The keys that caches hand out for a look, against the exact ones.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{Device, Tensor};
use common::{rotary, tensor};
use kvcsr_cache::conformance::{Inputs, Setting};
use kvcsr_cache::{CacheError, LayerCache, Padding, Pattern, Reach, Rotary, SchemeContext, registry};

const SETTING: Setting = Setting { batch: 2, heads: 4, kv_heads: 2, head_dim: 64 };
const PROMPT: usize = 300;

fn empty(name: &str) -> Box<dyn LayerCache> {
    registry::build(name, &SchemeContext::untrained(SETTING.geometry(1), 96)).unwrap().empty(0).unwrap()
}

/// A cache with the first `PROMPT` tokens as a prompt and the others one by one.
fn filled(name: &str, x: &Inputs) -> Box<dyn LayerCache> {
    let (rotary, prompt) = (rotary(64), x.tokens(0..PROMPT).unwrap());
    let mut cache = empty(name);
    cache.absorb(&prompt.k, &prompt.v, &rotary).unwrap();
    for at in PROMPT..x.k.dim(2).unwrap() {
        x.feed(cache.as_mut(), &rotary, Pattern::default(), at..at + 1).unwrap();
    }
    cache
}

fn keys(name: &str, x: &Inputs) -> Tensor {
    filled(name, x).scored_keys(&rotary(64)).unwrap().unwrap()
}

fn exact(x: &Inputs) -> Tensor {
    rotary(64).apply(&x.k, 0).unwrap()
}

fn energy(x: &Tensor) -> f32 {
    x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()
}

/// Squared error of `found` over the energy of `exact`.
fn relative(found: &Tensor, exact: &Tensor) -> f32 {
    assert_eq!(found.dims(), exact.dims());
    energy(&(found - exact).unwrap()) / energy(exact)
}

#[test]
fn a_dense_cache_has_the_exact_keys() {
    let x = Inputs::random(SETTING, PROMPT + 20).unwrap();
    let numbers = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(numbers(&keys("dense", &x)), numbers(&exact(&x)));
    let halves = relative(&keys("dense-f16", &x), &exact(&x));
    assert!(halves > 0.0 && halves < 1e-6, "{halves}");
}

#[test]
fn quantisers_have_keys_within_their_error() {
    let x = Inputs::random(SETTING, PROMPT + 5).unwrap();
    // Numbers between -1 and 1 have a variance of 1/3: rounding to steps of width w takes w²/4 of it.
    for (name, most) in [
        ("q8_0", 1e-4),
        ("q4_0", 0.01),
        ("q4_0+hadamard", 0.03),
        ("q4_0+window(sinks=2,recent=9)", 0.01),
        ("turboquant-4", 0.02),
        ("turboquant-4+pre-rope", 0.02),
        ("kivi-4", 0.01),
    ] {
        let error = relative(&keys(name, &x), &exact(&x));
        assert!(error > 1e-7 && error < most, "{name}: {error}");
    }
}

#[test]
fn each_token_is_in_the_form_in_which_it_is_held() {
    let x = Inputs::random(SETTING, PROMPT + 5).unwrap();
    let tokens = PROMPT + 5;
    let (found, exact) = (keys("csr-4+window(sinks=2,recent=5,graded=11)", &x), exact(&x));
    let error = |from: usize, count: usize| {
        let part = |x: &Tensor| x.narrow(2, from, count).unwrap().contiguous().unwrap();
        relative(&part(&found), &part(&exact))
    };
    // Sinks and the newest in f16, those before the newest in 4 bits, and untrained atoms in the middle.
    assert!(error(0, 2) < 1e-6 && error(tokens - 5, 5) < 1e-6, "{} {}", error(0, 2), error(tokens - 5, 5));
    let graded = error(tokens - 16, 11);
    assert!(graded > 1e-5 && graded < 0.01, "{graded}");
    assert!(error(2, tokens - 18) > 0.1, "{}", error(2, tokens - 18));
}

#[test]
fn what_centring_takes_off_is_there_again() {
    let plain = Inputs::random(SETTING, PROMPT).unwrap();
    let bias: Vec<f32> = (0..64).map(|channel| if channel == 5 { 30.0 } else { 0.0 }).collect();
    let bias = Tensor::new(&bias[..], &Device::Cpu).unwrap();
    let biased = Inputs { k: plain.k.broadcast_add(&bias).unwrap(), ..plain.clone() };
    let error = |name: &str, x: &Inputs| energy(&(keys(name, x) - exact(x)).unwrap());
    for name in ["turboquant-4", "q4_0", "kivi-2"] {
        let centred = format!("{name}+centre");
        let [usual, worse, mended] = [error(name, &plain), error(name, &biased), error(&centred, &biased)];
        assert!(worse > 4.0 * usual && mended < 2.0 * usual, "{name}: {usual}, biased {worse}, centred {mended}");
    }
}

#[test]
fn without_the_key_of_every_token_there_are_none() {
    let rotary = rotary(64);
    for name in ["dense", "q8_0"] {
        assert!(empty(name).scored_keys(&rotary).unwrap().is_none(), "{name} without tokens");
    }
    let x = Inputs::random(SETTING, 900).unwrap();
    let sliding = rotary.clone().with_reach(Reach::Sliding(50));
    for name in ["dense", "q8_0", "q8_0+window(sinks=2,recent=9)", "kivi-2"] {
        let mut cache = empty(name);
        cache.absorb(&x.k, &x.v, &sliding).unwrap();
        assert!(cache.scored_keys(&sliding).unwrap().is_none(), "{name} within a window");
    }
    let mut padded = empty("q8_0");
    padded.absorb_padded(&x.k, &x.v, &rotary, Padding::Left(&[3, 0])).unwrap();
    assert!(padded.scored_keys(&rotary).unwrap().is_none());
    let mut evicting = empty("evict(sinks=2,recent=9)");
    evicting.absorb(&x.k, &x.v, &rotary).unwrap();
    assert!(evicting.scored_keys(&rotary).unwrap().is_none());
}

#[test]
fn more_tokens_than_positions_are_refused() {
    let mut cache = empty("q8_0");
    let (k, v) = (tensor(1, (1, 2, 40, 64)), tensor(2, (1, 2, 40, 64)));
    cache.absorb(&k, &v, &rotary(64)).unwrap();
    let short = Rotary::new(64, 1e4, 39, &Device::Cpu).unwrap();
    assert!(matches!(cache.scored_keys(&short), Err(CacheError::ContextLength { position: 40, max: 39 })));
}
