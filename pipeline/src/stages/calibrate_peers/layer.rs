//! The work on one layer, and the calibration vectors for it.

use std::path::Path;

use anyhow::{Result, bail};
use kvcsr_cache::Rotary;
use kvcsr_codec::{CodebookSet, Kind};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::config::sections;
use crate::stage::Run;
use crate::stages::inputs::open_shard;
use crate::text::Side;

/// The calibration sequences that are used: the first of each corpus.
pub struct Sample {
    /// Tokens of a sequence.
    pub length: usize,
    /// Sequences recorded per corpus, and those of them used.
    pub recorded: usize,
    pub used: usize,
    pub corpora: usize,
}

impl Sample {
    pub fn read(run: &Run) -> Result<Self> {
        let tokens = open_shard(run, Side::Calibration, 0, Kind::Key)?.tokens();
        let (length, corpora) = (run.config.calibrate.sequence, run.config.corpora.len());
        if !tokens.is_multiple_of(length * corpora) {
            bail!(
                "the calibration record of {tokens} tokens was not made with this profile: run `just calibrate` again"
            );
        }
        let recorded = tokens / length / corpora;
        let used = run.config.calibrate_peers.tokens.div_ceil(length * corpora).clamp(1, recorded);
        Ok(Self { length, recorded, used, corpora })
    }

    pub fn tokens(&self) -> usize {
        self.corpora * self.used * self.length
    }

    /// The index in the shard of the first token of every used sequence.
    pub fn starts(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.corpora).flat_map(move |c| (0..self.used).map(move |i| (c * self.recorded + i) * self.length))
    }
}

/// What the work on one layer needs.
pub struct Layer<'a> {
    pub run: &'a Run,
    pub sample: &'a Sample,
    pub weights: &'a CodebookSet,
    pub rotary: &'a Rotary,
    pub layer: usize,
    /// Folder of the files of single layers, until all are there.
    pub folder: &'a Path,
}

impl Layer<'_> {
    pub fn settings(&self) -> &sections::CalibratePeers {
        &self.run.config.calibrate_peers
    }

    /// A random generator for one purpose: it depends on the seed, the layer and `stream`.
    pub fn rng(&self, stream: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.run.config.seed);
        rng.set_stream(((self.layer as u64) << 32) + stream);
        rng
    }

    /// The sample's vectors of one kind, `(tokens, Hkv, D)`, with the heads and channels.
    pub fn vectors(&self, kind: Kind) -> Result<(Vec<f32>, usize, usize)> {
        let shard = open_shard(self.run, Side::Calibration, self.layer, kind)?;
        let (heads, d) = (shard.heads(), shard.head_dim());
        let each = self.sample.length * heads;
        let mut vectors = vec![0f32; self.sample.tokens() * heads * d];
        for (start, out) in self.sample.starts().zip(vectors.chunks_exact_mut(each * d)) {
            shard.read(d, start * heads..start * heads + each, out)?;
        }
        Ok((vectors, heads, d))
    }
}
