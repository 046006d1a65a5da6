//! What every registered scheme must do, over head counts, head sizes, batches and prefill lengths.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::Tensor;
use common::{context, dictionaries, feed, largest_difference, rotary, tensor};
use kvcsr_cache::{AttendCx, Geometry, LayerCache, Padding, Pattern, Reach, registry};

const SCHEMES: [&str; 18] = [
    "dense",
    "dense-f16",
    "csr-4",
    "csr-8",
    "csr-4+restore",
    "csr-8+online(sampled=4,guard=6)",
    "csr-8+online(sampled=3,guard=5,sampler=worst,prefill=restored)",
    "csr-4+window(sinks=2,recent=9)",
    "csr-4+window(sinks=3,recent=5)+restore",
    "csr-8+fp8",
    "csr-8+int4",
    "csr-4+refit",
    "csr-8+stop(error=0.2)",
    "csr-8+stop(error=0.1)+int8+online(sampled=3,guard=4)+window(sinks=2,recent=4)",
    "csr-4+split(k=6,v=2)",
    "csr-4+budget",
    "csr-8+rope",
    "csr-8+online(sampled=2,guard=9,sampler=strided,prefill=restored)+int6+window(sinks=1,recent=3)+refit",
];
/// Whether the tokens of the first call are taken as the prompt, so that pieces differ from the whole.
fn first_call_is_the_prompt(name: &str) -> bool {
    name.contains("prefill=restored")
}
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
    for entry in registry::entries() {
        let covers =
            |scheme: &str| [4, 8].iter().any(|s| scheme.starts_with(&entry.pattern.replace('S', &s.to_string())));
        assert!(SCHEMES.iter().any(|s| covers(s)), "no conformance case for {}", entry.pattern);
    }
}

#[test]
fn pieces_give_what_the_whole_gives_and_clear_forgets() {
    for name in SCHEMES.into_iter().filter(|name| !first_call_is_the_prompt(name)) {
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
                    assert!(off < 5e-6, "{name} {heads:?} {d} {batch}: {off}");
                }
            }
        }
    }
}

#[test]
fn after_a_prefill_pieces_give_what_the_whole_gives() {
    for name in SCHEMES {
        for (heads, prompt) in [((6, 2), 20), ((4, 1), 1), ((3, 3), 4)] {
            let d = 64;
            let geometry = Geometry { layers: 1, kv_heads: heads.1, head_dim: d };
            let scheme = registry::build(name, &context(geometry, dictionaries(geometry, 96))).unwrap();
            let rotary = rotary(d);
            let x = inputs(2, heads, prompt + 25, d);
            let (k, v) = (x.1.narrow(2, 0, prompt).unwrap(), x.2.narrow(2, 0, prompt).unwrap());
            let run = |cuts: &[usize]| {
                let mut cache = scheme.after_prefill(0, &k, &v, &rotary).unwrap();
                let parts = cuts.windows(2).map(|w| feed(cache.as_mut(), &x, &rotary, prompt + w[0], prompt + w[1]));
                Tensor::cat(&parts.collect::<Vec<_>>(), 2).unwrap()
            };
            let whole = run(&[0, 25]);
            for cuts in [&[0, 1, 2, 3, 20, 25][..], &[0, 12, 25]] {
                let off = largest_difference(&whole, &run(cuts));
                assert!(off < 5e-6, "{name} {heads:?} {prompt}: {off}");
            }
        }
    }
}

#[test]
fn a_prefill_taken_over_goes_on_like_one_fed_and_lengths_and_bytes_grow() {
    let fed_as_taken = |name: &&str| !name.contains("+online") || first_call_is_the_prompt(name);
    for name in SCHEMES.into_iter().filter(fed_as_taken) {
        for tokens in [1, 31, 32, 33, 127, 128, 129, 1000] {
            let (heads, d) = ((6, 2), 64);
            let geometry = Geometry { layers: 1, kv_heads: heads.1, head_dim: d };
            let scheme = registry::build(name, &context(geometry, dictionaries(geometry, 96))).unwrap();
            let rotary = rotary(d);
            let x = inputs(1, heads, tokens + 2, d);
            let mut fed = scheme.empty(0).unwrap();
            feed(fed.as_mut(), &x, &rotary, 0, tokens);
            let (k, v) = (x.1.narrow(2, 0, tokens).unwrap(), x.2.narrow(2, 0, tokens).unwrap());
            let mut taken = scheme.after_prefill(0, &k, &v, &rotary).unwrap();
            assert_eq!(taken.len(), tokens, "{name}");
            assert!(taken.footprint().total() > 0, "{name}");
            for at in [tokens, tokens + 1] {
                let a = feed(fed.as_mut(), &x, &rotary, at, at + 1);
                let b = feed(taken.as_mut(), &x, &rotary, at, at + 1);
                let off = largest_difference(&a, &b);
                assert!(off < 5e-6, "{name} {tokens}: {off}");
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
    // Keys coded after position embedding have other codes at the positions that padding shifts them to.
    for name in SCHEMES.into_iter().filter(|name| !first_call_is_the_prompt(name) && !name.contains("+rope")) {
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
