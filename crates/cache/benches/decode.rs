//! Time of one decode step in one layer, for attention on codes, on restored vectors, and dense, together with the peer
//! methods.
//!
//! The schemes run in turn, for several rounds. Only the fastest round of each scheme counts. So the ratios are also
//! valid on a machine that does other work at the same time. Vectors and atoms are random, so the selected atoms are
//! spread over the whole dictionary. This is the hardest case for the CPU's cache lines.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use kvcsr_cache::{AttendCx, Geometry, Pattern, Rotary, SchemeContext, registry};
use kvcsr_codec::{Dictionary, DictionaryGroup, DictionarySet, Kind, measured_bits};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SCHEMES: [&str; 17] = [
    "dense",
    "dense-f16",
    "csr-8+restore",
    "csr-8",
    "csr-8+online",
    "csr-8+int4",
    "csr-8+window(sinks=4,recent=128)",
    "csr-8+stop(error=0.3)",
    "csr-8+rope",
    "fp8",
    "q4_0",
    "kivi-2",
    "gear-4",
    "vidkv-1.5-1.58",
    "turboquant-3",
    "csr+@2",
    "csr+@3",
];
const ROUNDS: usize = 7;

fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

fn main() {
    // Name, query heads, key-value heads, channels, atoms.
    for (model, heads, kv_heads, d, atoms) in [("SmolLM2-135M", 9, 3, 64, 2048), ("Llama-3-8B", 32, 8, 128, 4096)] {
        let geometry = Geometry { layers: 1, kv_heads, head_dim: d };
        let group = |kind: Kind, chunks: usize| {
            let width = d / chunks;
            let dictionary = Arc::new(Dictionary::normalised(width, noise(chunks as u64, atoms * width)).unwrap());
            DictionaryGroup { kind, layers: vec![0], chunks, sparsity: 8 / chunks, dictionary }
        };
        let groups = vec![group(Kind::Key, 1), group(Kind::Value, 2)];
        let set = DictionarySet { head_dim: d, groups, provenance: Default::default() };
        let cx = SchemeContext::new(geometry)
            .with_dictionaries(registry::DEFAULT_DICTIONARIES, set.clone())
            .with_dictionaries(registry::ROPE_DICTIONARIES, set)
            .with_codebooks(
                "csr-plus",
                SchemeContext::untrained(geometry, 1024).codebooks("csr-plus", "csr+@2").unwrap().clone(),
            );
        for tokens in [2048, 8192] {
            let rotary = Rotary::new(d, 500_000.0, tokens + 64, &Device::Cpu).unwrap();
            let tensor = |seed: u64, heads: usize, tokens: usize| {
                Tensor::from_vec(noise(seed, heads * tokens * d), (1, heads, tokens, d), &Device::Cpu).unwrap()
            };
            let (k, v) = (tensor(1, kv_heads, tokens), tensor(2, kv_heads, tokens));
            let (q, k1, v1) = (tensor(3, heads, 1), tensor(4, kv_heads, 1), tensor(5, kv_heads, 1));
            let mut caches = SCHEMES.map(|name| {
                let scheme = registry::build(name, &cx).unwrap();
                (scheme.after_prefill(0, &k, &v, &rotary).unwrap(), Duration::MAX)
            });
            for round in 0..ROUNDS {
                for (cache, fastest) in &mut caches {
                    let start = tokens + round;
                    let cx = AttendCx {
                        start,
                        rotary: &rotary,
                        scale: 1.0 / (d as f64).sqrt(),
                        pattern: Pattern::default(),
                    };
                    let begun = Instant::now();
                    cache.attend(&q, &k1, &v1, &cx).unwrap();
                    *fastest = (*fastest).min(begun.elapsed());
                }
            }
            println!("{model}: {heads}/{kv_heads} heads of {d}, {atoms} atoms, {tokens} tokens");
            let restored = caches[2].1.as_secs_f64();
            for (name, (cache, fastest)) in SCHEMES.iter().zip(&caches) {
                let (ms, bits) = (
                    fastest.as_secs_f64() * 1e3,
                    measured_bits(cache.footprint().total(), 2 * cache.len() * kv_heads * d),
                );
                println!("  {name:<34} {ms:8.3} ms  {:6.2} x restore  {bits:6} bits/channel", restored / ms * 1e3);
            }
        }
    }
}
