//! CSR compared with its definition and its bit formula, and bad input.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{DType, Device, Tensor};
use common::{context, dictionaries, feed, largest_difference, rotary, tensor, unit_vectors};
use kvcsr_cache::{AttendCx, Budget, CacheError, DenseCache, Geometry, Pattern, Recording, SchemeContext, registry};
use kvcsr_codec::{Encoder, Kind, SparseCodes};

const GEOMETRY: Geometry = Geometry { layers: 2, kv_heads: 2, head_dim: 32 };

#[test]
fn a_complete_dictionary_restores_the_dense_result() {
    let cx = context(GEOMETRY, unit_vectors(GEOMETRY));
    let x = (tensor(1, (1, 4, 40, 32)), tensor(2, (1, 2, 40, 32)), tensor(3, (1, 2, 40, 32)));
    let rotary = rotary(32);
    let out = |name: &str| {
        let scheme = registry::build(name, &cx).unwrap();
        feed(scheme.empty(1).unwrap().as_mut(), &x, &rotary, 0, 40)
    };
    let off = largest_difference(&out("dense"), &out("csr-32"));
    assert!(off < 2e-3, "{off}");
    let off = largest_difference(&out("dense"), &out("csr-16"));
    assert!(off > 1e-2, "half of the atoms cannot be exact: {off}");
}

#[test]
fn keys_are_coded_before_and_rotated_after_restoring() {
    let set = dictionaries(GEOMETRY, 64);
    let x = (tensor(1, (1, 4, 9, 32)), tensor(2, (1, 2, 9, 32)), tensor(3, (1, 2, 9, 32)));
    let rotary = rotary(32);
    let restored = |kind: Kind, x: &Tensor, sparsity: usize| {
        let dictionary = set.group(1, kind).unwrap().dictionary.clone();
        let rows = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let mut codes = SparseCodes::new(sparsity);
        codes.encode_append(&Encoder::new(dictionary.clone()), &rows).unwrap();
        let mut out = vec![0f32; rows.len()];
        codes.decode_into(&dictionary, 0..codes.rows(), &mut out).unwrap();
        Tensor::from_vec(out, x.dims(), &Device::Cpu).unwrap()
    };
    let (k, v) = (restored(Kind::Key, &x.1, 8), restored(Kind::Value, &x.2, 4));
    let mut dense = DenseCache::new(DType::F32);
    let want = feed(&mut dense, &(x.0.clone(), k, v), &rotary, 0, 9);
    let scheme = registry::build("csr-8", &context(GEOMETRY, set)).unwrap();
    let got = feed(scheme.empty(1).unwrap().as_mut(), &x, &rotary, 0, 9);
    assert!(largest_difference(&want, &got) < 1e-6);
}

#[test]
fn nominal_bits_follow_the_formula_and_bad_levels_are_refused() {
    let geometry = Geometry { layers: 1, kv_heads: 1, head_dim: 128 };
    let cx = context(geometry, dictionaries(geometry, 64));
    for (name, bits) in [("csr-4", 1.0), ("csr-6", 1.5), ("csr-8", 2.0), ("csr-16", 4.0)] {
        assert_eq!(registry::build(name, &cx).unwrap().nominal_bits().0, bits, "{name}");
    }
    let error = |name: &str, cx: &SchemeContext| registry::build(name, cx).err().unwrap().to_string();
    assert!(error("csr-7", &cx).contains("cannot be shared by 2 chunks"));
    assert!(error("csr-0", &cx).contains("sparsity 0"));
    assert!(error("csr-512", &cx).contains("beyond 255"));
    assert!(error("csr-100", &cx).contains("the dictionary's 64 atoms"));
    assert!(error("csr-8+split(k=9,v=7)", &cx).contains("sparsity 7 cannot be shared by 2 chunks"));
    assert!(error("csr-8+split(k=11,v=5)+stop(error=2)", &cx).contains("between 0 and 1"));
    assert_eq!(registry::build("csr-8+split(k=10,v=6)", &cx).unwrap().nominal_bits().0, 2.0);
    assert_eq!(registry::build("csr-8+budget", &cx).unwrap().nominal_bits().0, 2.0);
    assert!(error("csr-16+budget", &cx).contains("budgets for the levels 4, 8, none for 16"));
    let bare = SchemeContext::new(geometry).with_dictionaries("neuraldict", dictionaries(geometry, 64));
    assert!(error("csr-8+budget", &bare).contains("just allocate"));
    assert!(error("csr-8+rope", &bare).contains("`neuraldict-rope`"));
    let wrong = Budget { keys: vec![8, 8], values: vec![8, 8] };
    let bare = bare.with_budgets([(8, wrong)].into());
    assert!(error("csr-8+budget", &bare).contains("the model has 1"));
    // A full row takes as many bits as codes of fixed length, plus its length.
    assert_eq!(registry::build("csr-8+stop(error=0.1)", &cx).unwrap().nominal_bits().0, 2.0 + 8.5 * 1.5 / 128.0);
    let wider = Geometry { head_dim: 64, ..geometry };
    assert!(error("csr-4", &context(wider, dictionaries(geometry, 64))).contains("a head of 64 channels"));
    let deeper = Geometry { layers: 2, ..geometry };
    assert!(error("csr-4", &context(deeper, dictionaries(geometry, 64))).contains("layer 1"));
}

/// Rows that stop early restore every vector to the given error, or as well as full rows. They hold fewer atoms.
#[test]
fn stopping_early_saves_atoms_and_keeps_the_error_bounded() {
    let geometry = Geometry { layers: 1, kv_heads: 1, head_dim: 16 };
    let cx = context(geometry, dictionaries(geometry, 256));
    let x = (tensor(1, (1, 1, 300, 16)), tensor(2, (1, 1, 300, 16)), tensor(3, (1, 1, 300, 16)));
    let mut last = usize::MAX;
    for (tolerance, least, most) in [("0.0001", 0.9, 1.0), ("0.05", 0.4, 0.9), ("0.3", 0.1, 0.6)] {
        let held = |name: &str| {
            let scheme = registry::build(name, &cx).unwrap();
            let cache = scheme.after_prefill(0, &x.1, &x.2, &rotary(16)).unwrap();
            cache.footprint().indices
        };
        let (full, short) = (held("csr-8"), held(&format!("csr-8+stop(error={tolerance})")));
        let share = short as f64 / full as f64;
        println!("{tolerance}: {share}");
        assert!((least..=most).contains(&share) && short < last, "{tolerance}: {share}");
        last = short;
    }
    let dictionary = dictionaries(geometry, 256).group(0, Kind::Key).unwrap().dictionary.clone();
    let rows = x.1.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (mut indices, mut coefficients) = (vec![0; 300 * 8], vec![0.0; 300 * 8]);
    Encoder::new(dictionary.clone()).encode(&rows, 8, &mut indices, &mut coefficients).unwrap();
    let full = kvcsr_codec::relative_residuals(dictionary.as_ref().into(), &rows, &indices, &coefficients).unwrap();
    kvcsr_codec::stop_early(&rows, 16, 0.05, &mut indices, &mut coefficients);
    let short = kvcsr_codec::relative_residuals(dictionary.as_ref().into(), &rows, &indices, &coefficients).unwrap();
    for (full, short) in full.iter().zip(&short) {
        assert!(*short <= full.max(0.05) + 1e-5 && *short >= full - 1e-6, "{short}, in full {full}");
    }
}

#[test]
fn an_error_leaves_the_cache_as_it_was() {
    let scheme = registry::build("csr-4", &context(GEOMETRY, dictionaries(GEOMETRY, 64))).unwrap();
    let rotary = rotary(32);
    let x = (tensor(1, (1, 4, 6, 32)), tensor(2, (1, 2, 6, 32)), tensor(3, (1, 2, 6, 32)));
    let mut cache = scheme.empty(1).unwrap();
    feed(cache.as_mut(), &x, &rotary, 0, 5);
    let held = cache.footprint();
    let cx = |start| AttendCx { start, rotary: &rotary, scale: 1.0, pattern: Pattern::default() };
    let one = |x: &Tensor| x.narrow(2, 5, 1).unwrap();
    let broken = (one(&x.2) * f64::NAN).unwrap();
    let error = cache.attend(&one(&x.0), &one(&x.1), &broken, &cx(5)).unwrap_err();
    assert!(error.to_string().contains("layer 1, values"), "{error}");
    assert!(matches!(
        cache.attend(&one(&x.0), &one(&x.1), &one(&x.2), &cx(4)),
        Err(CacheError::Position { start: 4, len: 5 })
    ));
    let narrow = tensor(4, (1, 1, 1, 32));
    assert!(matches!(cache.attend(&one(&x.0), &narrow, &narrow, &cx(5)), Err(CacheError::Shape { .. })));
    assert_eq!((cache.len(), cache.footprint()), (5, held));
    feed(cache.as_mut(), &x, &rotary, 5, 6);
}

/// Half-precision tensors use the portable path. The result has their type, and differs from that of f32 only by
/// rounding.
#[test]
fn half_precision_tensors_are_attended_to_in_their_own_type() {
    let cx = context(GEOMETRY, dictionaries(GEOMETRY, 64));
    let rotary = rotary(32);
    let x = (tensor(1, (2, 4, 40, 32)), tensor(2, (2, 2, 40, 32)), tensor(3, (2, 2, 40, 32)));
    for name in ["csr-8", "csr-8+rope", "csr-8+online(sampled=4,guard=4,prefill=restored)+window(sinks=2,recent=5)"] {
        let run = |dtype: DType| {
            let x = [&x.0, &x.1, &x.2].map(|x| x.to_dtype(dtype).unwrap());
            let x = (x[0].clone(), x[1].clone(), x[2].clone());
            let mut cache = registry::build(name, &cx).unwrap().empty(0).unwrap();
            let outputs = [(0, 39), (39, 40)].map(|(from, to)| feed(cache.as_mut(), &x, &rotary, from, to));
            assert_eq!(outputs[0].dtype(), dtype, "{name}");
            outputs.map(|out| out.to_dtype(DType::F32).unwrap())
        };
        let exact = run(DType::F32);
        for (dtype, most) in [(DType::F16, 0.01), (DType::BF16, 0.1)] {
            for (a, b) in run(dtype).iter().zip(&exact) {
                // Rounding sometimes changes the picked atom. So errors are compared on average, not at the worst
                // position.
                let off = (a - b).unwrap().sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
                assert!(off < most, "{name} {dtype:?}: {off}");
            }
        }
    }
}

#[test]
fn recording_hands_out_what_passed() {
    let x = (tensor(1, (1, 4, 6, 32)), tensor(2, (1, 2, 6, 32)), tensor(3, (1, 2, 6, 32)));
    let rotary = rotary(32);
    let mut cache = Recording::new(DenseCache::new(DType::F32));
    assert!(cache.take().unwrap().is_none());
    feed(&mut cache, &x, &rotary, 0, 4);
    feed(&mut cache, &x, &rotary, 4, 6);
    let (k, v) = cache.take().unwrap().unwrap();
    assert_eq!(largest_difference(&k, &x.1) + largest_difference(&v, &x.2), 0.0);
    assert!(cache.take().unwrap().is_none());
}
