//! Prefill and decode of SmolLM2-135M at 2048 tokens. It prints tokens per second, compared with candle-transformers'
//! Llama on the same weights and dtype. It also prints the speed of prefill as a share of the speed of candle's matrix
//! product on the same shapes.
//!
//! All programs run in turn, for several rounds. Only the fastest round of each counts. So the ratios are also valid on
//! a machine that does other work at the same time. The model is the one that `just fetch` downloads. `KVCSR_MODEL`
//! names another Llama-type GGUF, and `RAYON_NUM_THREADS` sets the number of threads.
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::HashMap;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama};
use kvcsr_cache::{DenseCache, LayerCache};
use kvcsr_model::{Arch, Checkpoint, Decoder, Gguf, Logits, Position};

const TOKENS: usize = 2048;
/// Tokens per forward pass of our prefill, the same as in the pipeline.
const CHUNK: usize = 512;
const DECODED: usize = 16;
const ROUNDS: usize = 2;

fn main() {
    let Some(path) = kvcsr_fixtures::smollm2("throughput") else { return };
    let file = Gguf::open(path).unwrap();
    for dtype in [DType::F32, DType::BF16] {
        let decoder = file.decoder_in(&Device::Cpu, dtype).unwrap();
        let (llama, cache) = peer(&file, decoder.arch(), dtype);
        let ids: Vec<u32> = (0..TOKENS as u32).map(|i| i * 7919 % decoder.arch().vocab as u32).collect();

        let (mut ours, mut theirs, mut products) = ([f64::MAX; 2], [f64::MAX; 2], 0f64);
        let mut difference = 0f32;
        for _ in 0..ROUNDS {
            products = products.max(product_rate(decoder.arch()));
            let logits = our_round(&decoder, &ids, &mut ours);
            let other = their_round(&llama, &cache, &decoder, &ids, &mut theirs);
            difference = common::worst(&logits, &other);
        }

        let threads = rayon::current_num_threads();
        println!("SmolLM2-135M, {TOKENS} tokens, {dtype:?}, {threads} threads; last logits differ by {difference:.1e}");
        let rate = |seconds: f64, tokens: usize| tokens as f64 / seconds;
        for (what, i, tokens) in [("prefill", 0, TOKENS), ("decode", 1, DECODED)] {
            println!(
                "  {what:<8} {:8.1} tokens/s, candle-transformers {:8.1}: {:.2} x",
                rate(ours[i], tokens),
                rate(theirs[i], tokens),
                theirs[i] / ours[i]
            );
        }
        let reached = prefill_flops(decoder.arch()) / ours[0] / 1e9;
        println!(
            "  prefill  {reached:8.1} GFLOP/s, candle's f32 product on the same shapes {products:8.1}: {:.0} %",
            100.0 * reached / products
        );
    }
}

/// Runs prefill, then decode, and keeps the fastest time of each in seconds. Returns the last logits.
fn our_round(decoder: &Decoder, ids: &[u32], fastest: &mut [f64; 2]) -> Tensor {
    let mut caches: Vec<Box<dyn LayerCache>> = Vec::new();
    caches.resize_with(decoder.arch().layers, || Box::new(DenseCache::new(DType::F32)));
    let mut last = None;
    let started = Instant::now();
    for piece in ids.chunks(CHUNK) {
        last = Some(decoder.forward(&decoder.row(piece).unwrap(), &mut caches, Logits::Last).unwrap());
    }
    fastest[0] = fastest[0].min(started.elapsed().as_secs_f64());
    let next = decoder.row(&[1]).unwrap();
    let started = Instant::now();
    for _ in 0..DECODED {
        last = Some(decoder.forward(&next, &mut caches, Logits::Last).unwrap());
    }
    fastest[1] = fastest[1].min(started.elapsed().as_secs_f64());
    last.unwrap()
}

fn their_round(llama: &Llama, cache: &Cache, decoder: &Decoder, ids: &[u32], fastest: &mut [f64; 2]) -> Tensor {
    let mut cache = Cache::clone(cache);
    let prompt = decoder.row(ids).unwrap();
    let started = Instant::now();
    llama.forward(&prompt, 0, &mut cache).unwrap();
    fastest[0] = fastest[0].min(started.elapsed().as_secs_f64());
    let next = decoder.row(&[1]).unwrap();
    let mut last = None;
    let started = Instant::now();
    for step in 0..DECODED {
        last = Some(llama.forward(&next, TOKENS + step, &mut cache).unwrap());
    }
    fastest[1] = fastest[1].min(started.elapsed().as_secs_f64());
    last.unwrap()
}

/// The input and output widths of the four projections of a layer.
fn shapes(arch: &Arch) -> [(usize, usize); 4] {
    let attended = arch.heads * arch.head_dim;
    [
        (arch.hidden, arch.qkv_rows()),
        (attended, arch.hidden),
        (arch.hidden, 2 * arch.intermediate),
        (arch.intermediate, arch.hidden),
    ]
}

/// The floating-point operations of the matrix products in a prefill: projections, and attention to the tokens that
/// causality allows.
fn prefill_flops(arch: &Arch) -> f64 {
    let projections: usize = shapes(arch).iter().map(|(inputs, outputs)| 2 * inputs * outputs * TOKENS).sum();
    let attention = 4 * arch.heads * arch.head_dim * TOKENS * (TOKENS + 1) / 2;
    (arch.layers * (projections + attention)) as f64
}

/// GFLOP/s of candle's f32 product for the shapes of the projections, with `CHUNK` tokens at a time.
fn product_rate(arch: &Arch) -> f64 {
    let (mut flops, mut seconds) = (0.0, 0.0);
    for (inputs, outputs) in shapes(arch) {
        let x = Tensor::randn(0f32, 1.0, (CHUNK, inputs), &Device::Cpu).unwrap();
        let w = Tensor::randn(0f32, 1.0, (outputs, inputs), &Device::Cpu).unwrap();
        let mut fastest = f64::MAX;
        for _ in 0..8 {
            let started = Instant::now();
            x.matmul(&w.t().unwrap()).unwrap();
            fastest = fastest.min(started.elapsed().as_secs_f64());
        }
        flops += (2 * CHUNK * inputs * outputs) as f64;
        seconds += fastest;
    }
    flops / seconds / 1e9
}

fn peer(file: &Gguf, arch: &Arch, dtype: DType) -> (Llama, Cache) {
    let Position::Rope { theta, .. } = arch.position else { panic!("the peer is a rotary model") };
    let config = Config {
        hidden_size: arch.hidden,
        intermediate_size: arch.intermediate,
        vocab_size: arch.vocab,
        num_hidden_layers: arch.layers,
        num_attention_heads: arch.heads,
        num_key_value_heads: arch.kv_heads,
        use_flash_attn: false,
        rms_norm_eps: arch.rms_eps,
        rope_theta: theta as f32,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: None,
        max_position_embeddings: arch.max_positions,
        tie_word_embeddings: arch.tied_head,
    };
    let checkpoint = file.checkpoint().unwrap();
    let tensor = |name: String| (name.clone(), checkpoint.tensor(&name).unwrap().to_dtype(dtype).unwrap());
    let tensors: HashMap<String, Tensor> = arch.tensors().into_iter().map(|(name, _)| tensor(name)).collect();
    let llama = Llama::load(VarBuilder::from_tensors(tensors, dtype, &Device::Cpu), &config).unwrap();
    (llama, Cache::new(true, dtype, &config, &Device::Cpu).unwrap())
}
