//! One decoder for the Llama, Mistral, Qwen, Baichuan, Gemma 3, OLMo and Phi families. It is driven by configuration,
//! and uses the cache seam of [`kvcsr_cache`].
//!
//! Model libraries usually have one file per model, and each has its key-value cache inside its attention. Then a new
//! kind of cache needs a fork of every model. Here models differ only in the numbers of an [`Arch`]. The decoder passes
//! queries, keys and values *before* position embedding to any [`kvcsr_cache::LayerCache`] of the caller.
//!
//! - [`load`]: checkpoints. [`Gguf`] (dequantised once) and [`HfCheckpoint`] (`config.json`, with safetensors or
//!   PyTorch files, whole or sharded).
//! - [`Tokenizer`]: byte-level BPE or SentencePiece from the same files, with the [`StopTokens`] that they name.
//! - [`ChatTemplate`]: the text of a conversation, made by the template in a checkpoint.
//! - [`Decoder`]: [`forward`](Decoder::forward) with any caches, [`prefill`](Decoder::prefill) once for all schemes,
//!   [`prefill_compressed`](Decoder::prefill_compressed) for one scheme in little memory,
//!   [`generate`](Decoder::generate) greedily or sampled.
//!
//! Shapes: `B` sequences, `T` new tokens, `H` query heads, `Hkv` key-value heads, `D` channels per head, `V`
//! vocabulary. Rotary pairs are channels `i` and `i + D/2` (half-split order) everywhere, whatever order the file uses.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//!
//! use candle_core::Device;
//! use kvcsr_cache::{SchemeContext, registry};
//! use kvcsr_model::{Choice, Gguf, Limits};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let file = Gguf::open("SmolLM2-135M-Instruct.Q4_1.gguf")?;
//! let (tokenizer, decoder) = (file.tokenizer()?, file.decoder(&Device::Cpu)?);
//!
//! let prompt = tokenizer.encode("The three primary colours are", true)?;
//! let scheme = registry::build("kivi-2", &SchemeContext::new(decoder.geometry()))?;
//! let mut prompt = decoder.prefill_compressed(&prompt, 512, scheme.as_ref())?;
//! let limits = Limits { max_new_tokens: 24, min_new_tokens: 0, stop: tokenizer.stop_tokens() };
//! let more = |_| ControlFlow::Continue(());
//! let generated = decoder.generate(&prompt.last_logits, &mut prompt.caches, Choice::Greedy, limits, more)?;
//! println!("{}", tokenizer.decode(&generated.ids, true)?);
//! # Ok(()) }
//! ```

pub mod arch;
mod chat;
mod decoder;
mod device;
mod error;
mod generate;
mod layer;
mod linear;
pub mod load;
mod prefill;
mod stop;
mod stream;
mod swiglu;
mod tokenizer;

/// candle's sampler: temperature, top-k and top-p, with its own seed.
pub use candle_transformers::generation::LogitsProcessor as Sampler;

pub use arch::{Activation, Arch, Norms, Position, QkNorm, Qkv, RopeScaling, SlidingLayers};
pub use chat::{ChatTemplate, Message};
pub use decoder::{Decoder, Logits};
pub use device::{Kept, Precision, find_device};
pub use error::{ModelError, Result};
pub use generate::{Choice, Finish, Generated, Limits};
pub use load::gguf::Gguf;
pub use load::hugging_face::HfCheckpoint;
pub use load::{Checkpoint, TensorMap};
pub use prefill::CompressedPrompt;
pub use stop::StopTokens;
pub use stream::TextStream;
pub use tokenizer::Tokenizer;
