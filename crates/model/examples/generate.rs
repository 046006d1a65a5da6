//! Generates text under several caches from one prefill. It uses a GGUF file, or a tiny random model if no file is
//! given.
//!
//! ```sh
//! cargo run --release --package kvcsr-model --example generate
//! cargo run --release --package kvcsr-model --example generate -- SmolLM2-135M-Instruct.Q4_1.gguf "The three primary colours are"
//! ```

use std::error::Error;
use std::ops::ControlFlow;

use candle_core::Device;
use kvcsr_cache::{SchemeContext, registry};
use kvcsr_fixtures::{random_weights, tiny_arch};
use kvcsr_model::{Arch, Choice, Decoder, Gguf, Limits, StopTokens, TensorMap, Tokenizer};

/// Schemes that need no dictionaries.
const SCHEMES: [&str; 4] = ["dense", "q8_0", "kivi-2", "evict(sinks=4,recent=16)"];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next(), arguments.next()) {
        (Some(file), prompt) => {
            let file = Gguf::open(&file)?;
            let (tokenizer, decoder) = (file.tokenizer()?, file.decoder(&Device::Cpu)?);
            let prompt = prompt.unwrap_or_else(|| "The three primary colours are".to_owned());
            let ids = tokenizer.encode(&prompt, true)?;
            under_every_scheme(&decoder, &ids, Some(&tokenizer))
        }
        (None, _) => tiny(),
    }
}

/// A model of three layers with random weights. Its text has no meaning, but its caches are real.
fn tiny() -> Result<(), Box<dyn Error>> {
    let arch = Arch { hidden: 128, head_dim: 32, max_positions: 512, ..tiny_arch() };
    let weights = TensorMap(random_weights(&arch, 11));
    let decoder = Decoder::new(arch, &weights, &Device::Cpu)?;
    let ids: Vec<u32> = (0..40).map(|i| (i * 17 + 3) % 64).collect();
    under_every_scheme(&decoder, &ids, None)
}

fn under_every_scheme(decoder: &Decoder, ids: &[u32], tokenizer: Option<&Tokenizer>) -> Result<(), Box<dyn Error>> {
    let prompt = decoder.prefill(ids, 512)?;
    let context = SchemeContext::new(decoder.geometry());
    let none = StopTokens::default();
    for name in SCHEMES {
        // A copy of the exact prefill, which the scheme compresses.
        let scheme = registry::build(name, &context)?;
        let mut caches = prompt.fork(scheme.as_ref(), decoder.rotary())?;
        let stop = tokenizer.map_or(&none, |tokenizer| tokenizer.stop_tokens());
        let limits = Limits { max_new_tokens: 16, min_new_tokens: 0, stop };
        let more = |_| ControlFlow::Continue(());
        let answer = decoder.generate(&prompt.last_logits, &mut caches, Choice::Greedy, limits, more)?;
        let bytes: usize = caches.iter().map(|cache| cache.footprint().total()).sum();
        let text = match tokenizer {
            Some(tokenizer) => tokenizer.decode(&answer.ids, true)?,
            None => format!("{:?}", answer.ids),
        };
        println!("{name:24} {bytes:9} bytes  {text}");
    }
    Ok(())
}

#[test]
fn it_runs() {
    tiny().expect("the example runs");
}
