//! What every registered scheme must do, over head counts, head sizes, batches and prefill lengths.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::Tensor;
use common::{context, dictionaries, feed, largest_difference, rotary, tensor};
use kvcsr_cache::{AttendCx, Geometry, LayerCache, Padding, Pattern, PrefillSnapshot, Reach, registry};

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
    "csr-8+stop(0.2)",
    "csr-4+split(k=6,v=2)",
    "csr-4+budget",
    "csr-8+rope",
    "csr-8+rope+stop(0.1)+int8+online(sampled=3,guard=4)+window(sinks=2,recent=4)+split(k=12,v=4)+refit",
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
    for entry in registry::ENTRIES {
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

/// Keys coded after position embedding have other codes at other positions, in front of which padding stands.
fn coded_by_position(name: &str) -> bool {
    name.contains("+rope")
}

/// Rows `row.0..row.0 + row.1` of a batch, tokens `from..to`.
fn part(x: &Tensor, row: (usize, usize), from: usize, to: usize) -> Tensor {
    x.narrow(0, row.0, row.1).unwrap().narrow(2, from, to - from).unwrap()
}

#[test]
fn left_padded_rows_attend_as_they_do_alone() {
    let (heads, d, tokens, padding) = ((6, 2), 64, 40, [11, 0, 39]);
    let geometry = Geometry { layers: 1, kv_heads: heads.1, head_dim: d };
    let rotary = rotary(d);
    for name in SCHEMES.into_iter().filter(|name| !coded_by_position(name)) {
        for reach in [Reach::Full, Reach::Sliding(9)] {
            let scheme = registry::build(name, &context(geometry, dictionaries(geometry, 96))).unwrap();
            let x = inputs(3, heads, tokens, d);
            let attend = |cache: &mut dyn LayerCache, row: (usize, usize), from: usize, to: usize, start, padding| {
                let pattern = Pattern { reach, padding, ..Pattern::default() };
                let cx = AttendCx { start, rotary: &rotary, scale: 0.125, pattern };
                cache.attend(&part(&x.0, row, from, to), &part(&x.1, row, from, to), &part(&x.2, row, from, to), &cx)
            };
            let mut cache = scheme.empty(0).unwrap();
            let pieces = match first_call_is_the_prompt(name) {
                true => &[(0, 40)][..],
                false => &[(0, 3), (3, 38), (38, 39), (39, 40)],
            };
            let together: Vec<Tensor> = pieces
                .iter()
                .map(|&(from, to)| attend(cache.as_mut(), (0, 3), from, to, from, Padding::Left(&padding)).unwrap())
                .collect();
            let together = Tensor::cat(&together, 2).unwrap();
            assert!(together.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|x| x.is_finite()), "{name}");
            for (row, from) in padding.into_iter().enumerate() {
                let mut alone = scheme.empty(0).unwrap();
                let alone = attend(alone.as_mut(), (row, 1), from, tokens, 0, Padding::None).unwrap();
                let padded = together.narrow(0, row, 1).unwrap().narrow(2, from, tokens - from).unwrap();
                let off = largest_difference(&padded, &alone);
                // Rotated f16 keys round differently at other positions.
                let most = if name == "dense-f16" { 1e-3 } else { 1e-5 };
                assert!(off < most, "{name} {reach:?}, row {row}: {off}");
            }
            if name.starts_with("csr") {
                let held = cache.footprint();
                let error = attend(cache.as_mut(), (0, 3), 39, 40, 40, Padding::Left(&[11, 1, 39])).unwrap_err();
                assert!(error.to_string().contains("begun with padding [11, 0, 39], found [11, 1, 39]"), "{error}");
                assert_eq!((cache.len(), cache.footprint()), (40, held), "{name}");
            }
        }
    }
}

/// A batch taken over from an exact prefill: what each text keeps, and how it goes on, is its own.
#[test]
fn a_padded_prefill_goes_on_as_each_text_alone() {
    let (heads, d, prompt, padding) = ((6, 2), 64, 60, [25, 0, 58]);
    let geometry = Geometry { layers: 1, kv_heads: heads.1, head_dim: d };
    let rotary = rotary(d);
    for name in SCHEMES.into_iter().filter(|name| name.starts_with("csr")) {
        let scheme = registry::build(name, &context(geometry, dictionaries(geometry, 96))).unwrap();
        let x = inputs(3, heads, prompt + 3, d);
        // Padding is not looked at, not even for NaN.
        let keys: Vec<f32> = part(&x.1, (0, 3), 0, prompt).flatten_all().unwrap().to_vec1().unwrap();
        let hidden = |i: usize| i / d % prompt < padding[i / (heads.1 * prompt * d)];
        let keys = keys.into_iter().enumerate().map(|(i, x)| if hidden(i) { f32::NAN } else { x }).collect();
        let snapshot = PrefillSnapshot {
            keys: vec![Tensor::from_vec(keys, (3, heads.1, prompt, d), x.1.device()).unwrap()],
            values: vec![part(&x.2, (0, 3), 0, prompt)],
            last_logits: x.0.clone(),
        };
        let cx = |start, padding| AttendCx {
            start,
            rotary: &rotary,
            scale: 0.125,
            pattern: Pattern { padding, ..Pattern::default() },
        };
        if !coded_by_position(name) {
            let mut caches = snapshot.fork_padded(scheme.as_ref(), &rotary, Padding::Left(&padding)).unwrap();
            let mut alone: Vec<_> = padding
                .iter()
                .enumerate()
                .map(|(row, &from)| {
                    let own = |x: &Tensor| part(x, (row, 1), from, prompt);
                    scheme.after_prefill(0, &own(&x.1), &own(&x.2), &rotary).unwrap()
                })
                .collect();
            for at in prompt..prompt + 3 {
                let [q, k, v] = [&x.0, &x.1, &x.2].map(|x| part(x, (0, 3), at, at + 1));
                let together = caches[0].attend(&q, &k, &v, &cx(at, Padding::Left(&padding))).unwrap();
                for (row, cache) in alone.iter_mut().enumerate() {
                    let [q, k, v] = [&x.0, &x.1, &x.2].map(|x| part(x, (row, 1), at, at + 1));
                    let one = cache.attend(&q, &k, &v, &cx(at - padding[row], Padding::None)).unwrap();
                    let off = largest_difference(&one, &together.narrow(0, row, 1).unwrap());
                    assert!(off < 1e-5, "{name}, row {row}, token {at}: {off}");
                }
            }
            let atoms = |cache: &dyn LayerCache| cache.footprint().online_atoms + cache.footprint().guard;
            assert_eq!(atoms(caches[0].as_ref()), alone.iter().map(|c| atoms(c.as_ref())).sum::<usize>(), "{name}");
        }
        let error = snapshot.fork(scheme.as_ref(), &rotary).err().unwrap();
        assert_eq!(error.to_string(), "layer 0, keys: token 0 has a NaN or infinite element", "{name}");
        let error = snapshot.fork_padded(scheme.as_ref(), &rotary, Padding::Left(&[24, 0, 58])).err().unwrap();
        assert_eq!(error.to_string(), "layer 0, keys: token 24 has a NaN or infinite element", "{name}");
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
