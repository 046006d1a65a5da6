//! The online part, the exact window and packed codes compared with their definitions, and bad input.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{DType, Device, Tensor};
use common::{context, dictionaries, feed, largest_difference, rotary, tensor};
use half::f16;
use kvcsr_cache::{AttendCx, CacheError, DenseCache, Geometry, LayerCache, Pattern, SchemeContext, registry};
use kvcsr_codec::{Encoder, Kind, SparseCodes, measured_bits};

const GEOMETRY: Geometry = Geometry { layers: 1, kv_heads: 2, head_dim: 32 };

type Inputs = (Tensor, Tensor, Tensor);

fn inputs(batch: usize, tokens: usize) -> Inputs {
    (tensor(1, (batch, 4, tokens, 32)), tensor(2, (batch, 2, tokens, 32)), tensor(3, (batch, 2, tokens, 32)))
}

fn after_prefill(name: &str, cx: &SchemeContext, x: &Inputs, prompt: usize) -> Box<dyn LayerCache> {
    let (k, v) = (x.1.narrow(2, 0, prompt).unwrap(), x.2.narrow(2, 0, prompt).unwrap());
    registry::build(name, cx).unwrap().after_prefill(0, &k, &v, &rotary(32)).unwrap()
}

fn next(cache: &mut dyn LayerCache, x: &Inputs) -> Tensor {
    let at = cache.len();
    feed(cache, x, &rotary(32), at, at + 1)
}

/// The mean square error of the next token's attention, compared with the uncompressed cache.
fn error(name: &str, cx: &SchemeContext, x: &Inputs, prompt: usize) -> f64 {
    let exact = next(after_prefill("dense", cx, x, prompt).as_mut(), x);
    let found = next(after_prefill(name, cx, x, prompt).as_mut(), x);
    f64::from((found - exact).unwrap().sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap())
}

#[test]
fn the_parts_hold_what_their_sizes_say() {
    let cx = context(GEOMETRY, dictionaries(GEOMETRY, 40));
    let x = inputs(3, 101);
    for sampler in ["reverse", "uniform", "strided", "worst"] {
        let name = format!("csr-4+online(sampled=6,guard=11,sampler={sampler})");
        let held = after_prefill(&name, &cx, &x, 100).footprint();
        // Two bytes per element, three sequences, two heads, keys of width 32 and values of width 16.
        assert_eq!(held.online_atoms, 2 * 3 * 6 * 2 * (32 + 16), "{name}");
        assert_eq!(held.guard, 2 * 3 * 11 * 2 * (32 + 16), "{name}");
        let plain = after_prefill("csr-4", &cx, &x, 100).footprint();
        assert_eq!((held.indices, held.coefficients), (plain.indices, plain.coefficients));
        let bits = |name: &str| registry::build(name, &cx).unwrap().nominal_bits();
        assert_eq!(bits(&name), bits("csr-4"));
        let measured = |bytes| measured_bits(bytes, 2 * 300 * 2 * 32).0;
        assert!(measured(held.total()) > measured(plain.total()) + 1.0);
    }
}

#[test]
fn a_prompt_shorter_than_the_samples_becomes_atoms_whole() {
    let cx = context(GEOMETRY, dictionaries(GEOMETRY, 40));
    for tokens in [1, 2, 7] {
        let x = inputs(1, tokens + 1);
        for sampler in ["reverse", "uniform", "strided", "worst"] {
            let name = format!("csr-2+online(sampler={sampler})");
            let held = after_prefill(&name, &cx, &x, tokens).footprint();
            assert_eq!((held.online_atoms, held.guard), (2 * tokens * 2 * 2 * 32, 0), "{name}");
        }
        // A vector that became an atom is restored by this atom. Only the token that attends is not exact.
        let queries = (x.0.clone(), (&x.1 * 0.0).unwrap(), (&x.2 * 0.0).unwrap());
        let run = |name: &str| {
            let mut cache = after_prefill(name, &cx, &x, tokens);
            next(cache.as_mut(), &queries)
        };
        let off = largest_difference(&run("dense"), &run("csr-2+online"));
        assert!(off < 2e-3, "{tokens}: {off}");
        assert!(largest_difference(&run("dense"), &run("csr-2")) > 1e-2);
    }
}

#[test]
fn online_atoms_and_a_refit_lower_the_error() {
    let cx = context(GEOMETRY, dictionaries(GEOMETRY, 64));
    let x = inputs(1, 121);
    let plain = error("csr-4", &cx, &x, 120);
    assert!(error("csr-4+online(sampled=32,guard=0)", &cx, &x, 120) < plain);
    assert!(error("csr-4+online(sampled=0,guard=64)", &cx, &x, 120) < plain);
    assert!(error("csr-8+refit", &cx, &x, 120) < error("csr-8", &cx, &x, 120));
    let packed = error("csr-8+int8", &cx, &x, 120) / error("csr-8", &cx, &x, 120);
    assert!((0.9..1.1).contains(&packed), "{packed}");
}

#[test]
fn tokens_fed_without_a_prompt_go_without_an_online_part() {
    let cx = context(GEOMETRY, dictionaries(GEOMETRY, 64));
    let x = inputs(1, 30);
    let run = |name: &str| {
        let mut cache = registry::build(name, &cx).unwrap().empty(0).unwrap();
        (feed(cache.as_mut(), &x, &rotary(32), 0, 30), cache.footprint().online_atoms)
    };
    let ((plain, _), (online, held)) = (run("csr-4"), run("csr-4+online"));
    assert_eq!((largest_difference(&plain, &online), held), (0.0, 0));
}

/// The reference: sinks and recent tokens in f16, the others as the codec restores them, with dense attention.
#[test]
fn a_window_is_exact_at_both_ends() {
    let set = dictionaries(GEOMETRY, 64);
    let cx = context(GEOMETRY, set.clone());
    let x = inputs(1, 51);
    let mixed = |kind: Kind, x: &Tensor, sparsity: usize| {
        let dictionary = set.group(0, kind).unwrap().dictionary.clone();
        let mut rows = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        rows.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
        let mut codes = SparseCodes::new(sparsity);
        codes.encode_append(&Encoder::new(dictionary.clone()), &rows).unwrap();
        let mut restored = vec![0f32; rows.len()];
        codes.decode_into(&dictionary, 0..codes.rows(), &mut restored).unwrap();
        for (i, (row, restored)) in rows.chunks_mut(32).zip(restored.chunks(32)).enumerate() {
            if (5..51 - 9).contains(&(i % 51)) {
                row.copy_from_slice(restored);
            }
        }
        Tensor::from_vec(rows, x.dims(), &Device::Cpu).unwrap()
    };
    let (k, v) = (mixed(Kind::Key, &x.1, 4), mixed(Kind::Value, &x.2, 2));
    let mut dense = DenseCache::new(DType::F32);
    let want = feed(&mut dense, &(x.0.clone(), k, v), &rotary(32), 0, 51).narrow(2, 50, 1).unwrap();
    for prompt in [1, 4, 5, 30, 50] {
        let mut cache = after_prefill("csr-4+window(sinks=5,recent=9)", &cx, &x, prompt);
        let mut last = None;
        while cache.len() < 51 {
            last = Some(next(cache.as_mut(), &x));
        }
        let off = largest_difference(&want, &last.unwrap());
        assert!(off < 5e-6, "{prompt}: {off}");
        assert!(cache.footprint().window >= 2 * 2 * (5 + 9) * 32 * 2);
    }
}

#[test]
fn packed_codes_take_the_bits_they_name() {
    let geometry = Geometry { layers: 1, kv_heads: 1, head_dim: 128 };
    let cx = context(geometry, dictionaries(geometry, 4096));
    // Indices of 12 bits: keys take 8 x 20 = 160 bits, values 2 x (4 x 20 = 80), for 2 x 128 channels.
    assert_eq!(registry::build("csr-8+fp8", &cx).unwrap().nominal_bits().0, 1.25);
    assert_eq!(registry::build("csr-8+f16", &cx).unwrap().nominal_bits().0, 1.75);
    // 16 bits each: keys take 128 + 16 of scale, values 2 x (64 + 16).
    assert_eq!(registry::build("csr-8+int4", &cx).unwrap().nominal_bits().0, (144.0 + 160.0) / 256.0);
    assert_eq!(registry::build("csr-8", &cx).unwrap().nominal_bits().0, 2.0);
}

#[test]
fn bad_input_is_named_and_changes_nothing() {
    let cx = context(GEOMETRY, dictionaries(GEOMETRY, 64));
    let refused = |name: &str, cx: &SchemeContext| registry::build(name, cx).err().unwrap().to_string();
    let text = refused("csr-4+online(sampled=40000)", &cx);
    assert!(text.contains("64 offline and 80512 online atoms are more than the 65536"), "{text}");
    assert!(registry::build("csr-4+online(sampled=32480,guard=256)", &cx).is_ok());
    assert!(refused("csr-4+online(sampled=32481,guard=256)", &cx).contains("layer 0, keys"));
    assert!(refused("csr-4+offline", &cx).contains("is no part of a CSR scheme"));

    let x = inputs(1, 8);
    let rotary = rotary(32);
    let part = |x: &Tensor, from: usize, n: usize| x.narrow(2, from, n).unwrap();
    for name in ["csr-4", "csr-4+online", "csr-4+window", "csr-4+int4"] {
        let mut cache = after_prefill(name, &cx, &x, 5);
        let held = cache.footprint();
        let at = |start| AttendCx { start, rotary: &rotary, scale: 1.0, pattern: Pattern::default() };
        let (q, k, v) = (part(&x.0, 5, 2), part(&x.1, 5, 2), part(&x.2, 5, 2));
        let mut broken = v.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        broken[32 + 3] = f32::INFINITY;
        let broken = Tensor::from_vec(broken, v.dims(), &Device::Cpu).unwrap();
        let error = cache.attend(&q, &k, &broken, &at(5)).unwrap_err();
        assert_eq!(error.to_string(), "layer 0, values: token 6 has a NaN or infinite element", "{name}");
        let none = |x: &Tensor| part(x, 5, 0);
        assert!(cache.attend(&none(&x.0), &none(&x.1), &none(&x.2), &at(5)).is_err(), "{name}");
        for q in [part(&x.0, 5, 1), q.narrow(1, 0, 3).unwrap(), q.narrow(3, 0, 16).unwrap()] {
            let error = cache.attend(&q, &k, &v, &at(5)).unwrap_err();
            assert!(matches!(error, CacheError::Shape { tensor: "queries", .. }), "{name}: {error}");
        }
        assert_eq!((cache.len(), cache.footprint()), (5, held), "{name}");
        // Zero vectors are coded as zeros.
        let zeros = |x: &Tensor| (part(x, 5, 2) * 0.0).unwrap();
        let out = cache.attend(&q, &zeros(&x.1), &zeros(&x.2), &at(5)).unwrap();
        assert!(out.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap().is_finite());
        assert_eq!(cache.len(), 7);

        let mut zero_prompt = registry::build(name, &cx).unwrap().empty(0).unwrap();
        zero_prompt.absorb(&zeros(&x.1), &zeros(&x.2), &rotary).unwrap();
        assert_eq!(zero_prompt.footprint().online_atoms, 0);
        assert!(zero_prompt.absorb(&part(&x.1, 0, 1), &part(&x.2, 0, 1), &rotary).is_err());
        zero_prompt.clear();
        let empty = registry::build(name, &cx).unwrap().empty(0).unwrap().footprint();
        assert_eq!(zero_prompt.footprint(), empty, "{name}");
        assert!(zero_prompt.absorb(&none(&x.1), &none(&x.2), &rotary).is_err());
    }
}
