//! What every registered scheme must do, over head counts, head sizes, batches and prefill lengths.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::Tensor;
use common::{context, dictionaries, feed, largest_difference, rotary, tensor};
use kvcsr_cache::{AttendCx, Geometry, LayerCache, Padding, Pattern, Reach, registry};

const SCHEMES: [&str; 4] = ["dense", "dense-f16", "csr-4", "csr-8"];
/// Query heads, key-value heads: multi-head, grouped and multi-query attention.
const HEADS: [(usize, usize); 3] = [(4, 4), (6, 2), (4, 1)];

fn inputs(batch: usize, heads: (usize, usize), tokens: usize, d: usize) -> (Tensor, Tensor, Tensor) {
    (
        tensor(1, (batch, heads.0, tokens, d)),
        tensor(2, (batch, heads.1, tokens, d)),
        tensor(3, (batch, heads.1, tokens, d)),
    )
}

#[test]
fn every_registered_pattern_is_covered() {
    for entry in registry::ENTRIES {
        let stem = entry.pattern.trim_end_matches('S');
        assert!(SCHEMES.iter().any(|s| s.starts_with(stem)), "no conformance case for {}", entry.pattern);
    }
}

#[test]
fn pieces_give_what_the_whole_gives_and_clear_forgets() {
    for name in SCHEMES {
        for heads in HEADS {
            for d in [64, 128] {
                for batch in [1, 3] {
                    let geometry = Geometry { layers: 1, kv_heads: heads.1, head_dim: d };
                    let scheme = registry::build(name, &context(geometry, dictionaries(geometry, 96))).unwrap();
                    let rotary = rotary(d);
                    let x = inputs(batch, heads, 35, d);
                    let mut cache = scheme.empty(0).unwrap();
                    let whole = feed(cache.as_mut(), &x, &rotary, 0, 35);
                    assert_eq!((whole.dims(), cache.len()), (&[batch, heads.0, 35, d][..], 35), "{name}");

                    cache.clear();
                    assert!(cache.is_empty(), "{name}");
                    let mut pieces = Vec::new();
                    for (from, to) in [(0, 1), (1, 2), (2, 33), (33, 34), (34, 35)] {
                        pieces.push(feed(cache.as_mut(), &x, &rotary, from, to));
                    }
                    let pieces = Tensor::cat(&pieces, 2).unwrap();
                    let off = largest_difference(&whole, &pieces);
                    assert!(off < 2e-6, "{name} {heads:?} {d} {batch}: {off}");
                }
            }
        }
    }
}

#[test]
fn a_prefill_taken_over_goes_on_like_one_fed_and_lengths_and_bytes_grow() {
    for name in SCHEMES {
        for tokens in [1, 31, 32, 33, 127, 128, 129, 1000] {
            let (heads, d) = ((6, 2), 64);
            let geometry = Geometry { layers: 1, kv_heads: heads.1, head_dim: d };
            let scheme = registry::build(name, &context(geometry, dictionaries(geometry, 96))).unwrap();
            let rotary = rotary(d);
            let x = inputs(1, heads, tokens + 2, d);
            let mut fed = scheme.empty(0).unwrap();
            feed(fed.as_mut(), &x, &rotary, 0, tokens);
            let (k, v) = (x.1.narrow(2, 0, tokens).unwrap(), x.2.narrow(2, 0, tokens).unwrap());
            let mut taken = scheme.from_prefill(0, &k, &v, &rotary).unwrap();
            assert_eq!(taken.len(), tokens, "{name}");
            assert!(taken.footprint().total() > 0, "{name}");
            for at in [tokens, tokens + 1] {
                let a = feed(fed.as_mut(), &x, &rotary, at, at + 1);
                let b = feed(taken.as_mut(), &x, &rotary, at, at + 1);
                let off = largest_difference(&a, &b);
                assert!(off < 1e-6, "{name} {tokens}: {off}");
            }
            assert_eq!(taken.len(), tokens + 2);
        }
    }
}

#[test]
fn left_padded_rows_attend_as_they_do_alone() {
    let (heads, d, tokens, padding) = ((6, 2), 64, 40, [11, 0, 39]);
    let geometry = Geometry { layers: 1, kv_heads: heads.1, head_dim: d };
    let rotary = rotary(d);
    for name in SCHEMES {
        for reach in [Reach::Full, Reach::Sliding(9)] {
            let scheme = registry::build(name, &context(geometry, dictionaries(geometry, 96))).unwrap();
            let x = inputs(3, heads, tokens, d);
            let attend = |cache: &mut dyn LayerCache, row: (usize, usize), from: usize, to: usize, start, padding| {
                let part = |x: &Tensor| x.narrow(0, row.0, row.1).unwrap().narrow(2, from, to - from).unwrap();
                let pattern = Pattern { reach, padding, ..Pattern::default() };
                let cx = AttendCx { start, rotary: &rotary, scale: 0.125, pattern };
                cache.attend(&part(&x.0), &part(&x.1), &part(&x.2), &cx).unwrap()
            };
            let mut cache = scheme.empty(0).unwrap();
            let pieces: Vec<Tensor> = [(0, 3), (3, 38), (38, 39), (39, 40)]
                .map(|(from, to)| attend(cache.as_mut(), (0, 3), from, to, from, Padding::Left(&padding)))
                .into();
            let together = Tensor::cat(&pieces, 2).unwrap();
            for (row, from) in padding.into_iter().enumerate() {
                let alone = attend(scheme.empty(0).unwrap().as_mut(), (row, 1), from, tokens, 0, Padding::None);
                let padded = together.narrow(0, row, 1).unwrap().narrow(2, from, tokens - from).unwrap();
                let off = largest_difference(&padded, &alone);
                // Rotated f16 keys round differently at other positions.
                let most = if name == "dense-f16" { 1e-3 } else { 1e-5 };
                assert!(off < most, "{name} {reach:?}, row {row}: {off}");
            }
        }
    }
}

#[test]
fn more_bits_give_smaller_errors() {
    let (heads, d) = ((6, 2), 64);
    let geometry = Geometry { layers: 1, kv_heads: heads.1, head_dim: d };
    let cx = context(geometry, dictionaries(geometry, 512));
    let x = inputs(1, heads, 200, d);
    let rotary = rotary(d);
    let run = |name: &str| {
        let scheme = registry::build(name, &cx).unwrap();
        (scheme.nominal_bits().0, feed(scheme.empty(0).unwrap().as_mut(), &x, &rotary, 0, 200))
    };
    let (_, exact) = run("dense");
    let mut last = (0.0, f64::INFINITY);
    for name in ["csr-2", "csr-4", "csr-8", "csr-16", "dense-f16"] {
        let (bits, out) = run(name);
        let error = (out - &exact).unwrap().sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(bits > last.0 && f64::from(error) < last.1, "{name}: {bits} bits, error {error}, before {last:?}");
        last = (bits, f64::from(error));
    }
}
