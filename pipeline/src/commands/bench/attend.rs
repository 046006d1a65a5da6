//! Attention of one decoded token over a compressed cache, compared with PyTorch's attention over exact keys and values.

use anyhow::Result;
use candle_core::{Device, Tensor};
use kvcsr_cache::conformance::tensor;
use kvcsr_cache::{AttendCx, Geometry, LayerCache, Pattern, Rotary, SchemeContext, registry};
use kvcsr_neuraldict::yardstick::{Heads, Precision, Sdpa};
use kvcsr_records::BenchRow;

use super::Bench;
use super::contest::{Contender, Turn, Work, rows, timed};
use super::roofs::Roofs;

/// Number of atoms in the dictionaries and tables. They hold random numbers.
const ATOMS: usize = 4096;

/// Shapes of a layer, each with the context lengths that are measured.
const SHAPES: [(Heads, &[usize]); 3] = [
    (Heads { heads: 32, kv_heads: 8, head_dim: 128 }, &[1024, 4096, 8192, 32768]),
    (Heads { heads: 12, kv_heads: 2, head_dim: 128 }, &[4096, 8192]),
    (Heads { heads: 9, kv_heads: 3, head_dim: 64 }, &[4096, 8192]),
];
const QUICK: [(Heads, &[usize]); 1] = [(Heads { heads: 4, kv_heads: 2, head_dim: 64 }, &[256])];

const SCHEMES: [&str; 13] = [
    "dense",
    "dense-bf16",
    "dense-f16",
    "q8_0",
    "q4_0",
    "kivi-2",
    "turboquant-3",
    "csr-8",
    "csr-8+int4",
    "csr-8+window",
    "csr+@1",
    "csr+@2",
    "csr+@3",
];

/// Measures all shapes and lengths.
pub fn run(bench: &Bench<'_>, roofs: &Roofs) -> Result<Vec<BenchRow>> {
    let (shapes, atoms) = if bench.quick { (&QUICK[..], 256) } else { (&SHAPES[..], ATOMS) };
    let mut found = Vec::new();
    for &(heads, lengths) in shapes {
        let geometry = Geometry { layers: 1, kv_heads: heads.kv_heads, head_dim: heads.head_dim };
        let cx = SchemeContext::untrained(geometry, atoms);
        for &tokens in lengths {
            found.extend(one(bench, roofs, &cx, heads, tokens)?);
        }
    }
    Ok(found)
}

fn one(bench: &Bench<'_>, roofs: &Roofs, cx: &SchemeContext, heads: Heads, tokens: usize) -> Result<Vec<BenchRow>> {
    let Heads { heads: count, kv_heads, head_dim: d } = heads;
    let rotary = Rotary::new(d, 500_000.0, tokens + bench.rounds, &Device::Cpu)?;
    let (k, v) = (tensor(1, (1, kv_heads, tokens, d))?, tensor(2, (1, kv_heads, tokens, d))?);
    let token = [tensor(3, (1, count, 1, d))?, tensor(4, (1, kv_heads, 1, d))?, tensor(5, (1, kv_heads, 1, d))?];
    let mut contenders: Vec<Contender<'_>> = Vec::new();
    for name in SCHEMES {
        let cache = registry::build(name, cx)?.after_prefill(0, &k, &v, &rotary)?;
        contenders.push(ours(name, cache, &token, &rotary, roofs)?);
    }
    let exact = |bytes: usize| Some((2 * tokens * kv_heads * d * bytes) as f64);
    for (name, precision, bytes) in [("PyTorch SDPA bf16", Precision::Bf16, 2), ("PyTorch SDPA f32", Precision::F32, 4)]
    {
        let sdpa = Sdpa::new("cpu", heads, tokens, precision)?;
        let turn = move || Ok(Turn { units: 1.0, seconds: sdpa.seconds()?, error: None });
        contenders.push(Contender { bytes: exact(bytes), ..Contender::peer(name, turn) });
    }
    let shape = format!("{count}/{kv_heads} heads of {d}, {tokens} tokens");
    rows(&Work { name: "attend", shape, unit: "tokens", machine: bench.machine }, contenders, bench.rounds)
}

/// One layer's cache, which grows by a token with each turn.
fn ours<'a>(
    name: &str,
    mut cache: Box<dyn LayerCache>,
    [q, k, v]: &'a [Tensor; 3],
    rotary: &'a Rotary,
    roofs: &Roofs,
) -> Result<Contender<'a>> {
    let bytes = cache.footprint().total() as f64;
    let scale = 1.0 / (q.dim(3)? as f64).sqrt();
    let mut start = cache.len();
    let attend = move || {
        let turn = timed(1.0, || {
            cache.attend(q, k, v, &AttendCx { start, rotary, scale, pattern: Pattern::default() })?;
            Ok(())
        });
        start += 1;
        turn
    };
    Ok(Contender { bytes: Some(bytes), limit: Some(roofs.one_reading(bytes)), ..Contender::ours(name, attend) })
}
