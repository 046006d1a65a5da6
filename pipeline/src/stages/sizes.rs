//! Sizes of the model and its caches, for the estimates of stages before they start.
//!
//! The formulas count what is surely held at once. Small buffers and memory that allocators keep are left out, so estimates are
//! too low rather than too high.

use anyhow::Result;
use kvcsr_model::{Arch, find_device};

use crate::models::Opened;
use crate::room::Amount;
use crate::stage::{Run, SchemeNames, folder, makers};
use crate::stages::inputs::PREFILL_CHUNK;

/// Bytes of the program with its libraries, without a model and data.
pub const PROGRAM: u64 = 140 << 20;
/// Bytes of an f32.
const FLOAT: u64 = 4;

/// The sizes of a run's model.
pub struct Sizes {
    arch: Arch,
    weights: u64,
}

impl Sizes {
    /// Reads the model's metadata.
    ///
    /// # Errors
    /// If it was not fetched, or is not a model that runs here.
    pub fn of(run: &Run) -> Result<Self> {
        let model = Opened::of(&run.config.model, &run.paths)?;
        let arch = model.arch()?;
        let numbers: u64 = arch.tensors().iter().map(|(_, shape)| product(shape)).sum();
        let width = if model.dtype(&run.config.dtype)?.starts_with("f32") { FLOAT } else { FLOAT / 2 };
        let on_host = find_device(&run.config.device)?.is_cpu();
        Ok(Self { arch, weights: if on_host { numbers * width } else { 0 } })
    }

    /// The program with the model's matrices, and with a prefill of `tokens` tokens in `copies` copies of its cache.
    pub fn with_prefill(&self, tokens: usize, copies: u64) -> u64 {
        PROGRAM + self.weights + self.pass(tokens) + copies * self.cache(tokens)
    }

    /// Keys and values of `tokens` tokens in f32.
    pub fn cache(&self, tokens: usize) -> u64 {
        2 * FLOAT * product(&[tokens, self.arch.layers, self.width()])
    }

    /// How many numbers a token's key or value has in one layer: heads times channels.
    pub fn width(&self) -> usize {
        self.arch.kv_heads * self.arch.head_dim
    }

    /// Layers, key-value heads and channels of a head.
    pub fn shape(&self) -> (usize, usize, usize) {
        (self.arch.layers, self.arch.kv_heads, self.arch.head_dim)
    }

    /// Bytes of distributions over the vocabulary at `positions` positions.
    pub fn distributions(&self, positions: usize) -> u64 {
        FLOAT * product(&[positions, self.arch.vocab])
    }

    /// Bytes that the last piece of a prefill of `tokens` tokens takes besides matrices and caches: scores before and after the
    /// softmax, and the feed-forward layer's three activations.
    fn pass(&self, tokens: usize) -> u64 {
        let piece = PREFILL_CHUNK.min(tokens);
        let scores = 2 * product(&[piece, tokens, self.arch.heads]);
        FLOAT * (scores + 3 * product(&[piece, self.arch.intermediate]))
    }
}

/// The product of sizes.
pub fn product(sizes: &[usize]) -> u64 {
    sizes.iter().map(|&size| size as u64).product()
}

/// Bytes of the files that schemes are built from, as they are on the disk.
pub fn artefacts(run: &Run, schemes: SchemeNames<'_>) -> Result<u64> {
    let mut bytes = 0;
    for stage in makers(run.stages, schemes.names)? {
        let dir = folder(run, schemes.profile, stage.name());
        let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let loaded = files.filter(|file| file.path().extension().is_some_and(|ending| ending == "safetensors"));
        bytes += loaded.map(|file| file.metadata().map_or(0, |about| about.len())).sum::<u64>();
    }
    Ok(bytes)
}

/// The disk that `count` answers or rows of about `each` bytes take.
pub fn rows(count: u64, each: u64, lower: &'static str) -> Amount {
    Amount { bytes: count * each, lower }
}
