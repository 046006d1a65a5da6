//! Load time, prefill and decode speed of a GGUF model, beside candle-transformers' Llama on the same weights.
//!
//! `cargo run --release -p kvcsr-model --example throughput -- MODEL.gguf [TOKENS]`

use std::collections::HashMap;
use std::error::Error;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama};
use kvcsr_cache::{DenseCache, LayerCache};
use kvcsr_model::{Arch, Checkpoint, Gguf, Logits, Position};

const DECODED: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("which GGUF file?")?;
    let tokens: usize = arguments.next().map_or(Ok(1024), |n| n.parse())?;
    let device = Device::Cpu;

    let started = Instant::now();
    let file = Gguf::open(path)?;
    let opened = started.elapsed();
    let decoder = file.decoder(&device)?;
    let loaded = started.elapsed();
    file.tokenizer()?;
    println!("header {opened:.2?}, decoder {:.2?}, tokenizer {:.2?}", loaded - opened, started.elapsed() - loaded);

    let vocab = decoder.arch().vocab as u32;
    let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 7919 % vocab).collect();
    let prompt = decoder.row(&ids)?;
    let rate = |n: usize, started: Instant| n as f64 / started.elapsed().as_secs_f64();

    let (llama, mut theirs) = peer(&file, decoder.arch(), &device)?;
    let mut last = None;
    for round in 0..2 {
        let started = Instant::now();
        let snapshot = decoder.prefill(&ids, 512)?;
        println!("round {round}: prefill of {tokens}: ours {:.0} tokens/s", rate(tokens, started));
        let started = Instant::now();
        let logits = llama.forward(&prompt, 0, &mut Cache::clone(&theirs))?;
        println!("round {round}: prefill of {tokens}: candle-transformers {:.0} tokens/s", rate(tokens, started));
        last = Some((snapshot.last_logits, logits));
    }
    if let Some((ours, theirs)) = last {
        let difference = (ours - theirs)?.abs()?.max_all()?.to_scalar::<f32>()?;
        println!("largest difference of the last logits: {difference:.1e}");
    }

    let mut caches: Vec<Box<dyn LayerCache>> = Vec::new();
    caches.resize_with(decoder.arch().layers, || Box::new(DenseCache::new(DType::F32)));
    decoder.forward(&prompt, &mut caches, Logits::None)?;
    let next = decoder.row(&[1])?;
    let started = Instant::now();
    for _ in 0..DECODED {
        decoder.forward(&next, &mut caches, Logits::Last)?;
    }
    println!("decode at {tokens}: ours {:.1} tokens/s", rate(DECODED, started));
    llama.forward(&prompt, 0, &mut theirs)?;
    let started = Instant::now();
    for step in 0..DECODED {
        llama.forward(&next, tokens + step, &mut theirs)?;
    }
    println!("decode at {tokens}: candle-transformers {:.1} tokens/s", rate(DECODED, started));
    Ok(())
}

fn peer(file: &Gguf, arch: &Arch, device: &Device) -> Result<(Llama, Cache), Box<dyn Error>> {
    let Position::Rope { theta, .. } = arch.position else { return Err("the peer is a rotary model".into()) };
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
    let checkpoint = file.checkpoint()?;
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for (name, _) in arch.tensors() {
        let tensor = checkpoint.tensor(&name)?;
        tensors.insert(name, tensor);
    }
    let llama = Llama::load(VarBuilder::from_tensors(tensors, DType::F32, device), &config)?;
    Ok((llama, Cache::new(true, DType::F32, &config, device)?))
}
