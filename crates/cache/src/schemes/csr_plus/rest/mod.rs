//! CSR+ in files: a prompt's keys and values as a small file. It can be restored without running the model over the
//! prompt again.
//!
//! The codes of a cache in use have rows with equal bits, so that attention finds any token. A file is read from the
//! start, so it does not need this. It holds the same atoms and coordinates as `csr+@B`, but coordinates are whole
//! numbers of one step. The step is the same for all coordinates of all layers: in a metric of nats, this is the best
//! way to divide an error. The numbers are entropy-coded with a model that learns from the prompt (`symbols.rs`). The
//! first tokens are stored in f16. The last tokens are coded with a finer step, since most attention goes to them.
//!
//! [`RestCodec`] codes one layer at a time. [`PromptFile`] is the file.

mod file;
mod rate;
mod scheme;
mod symbols;

use candle_core::{Device, Tensor};
use half::f16;
use kvcsr_codec::kernels::to_f16;
use kvcsr_codec::{CodebookSet, CodecError, Kind, RangeDecoder, RangeEncoder, index_bits};
use rayon::prelude::*;

pub use self::file::{Header, PromptFile, Section};
pub use self::scheme::RestScheme;

use self::symbols::{LARGEST, Symbols};
use super::TABLES;
use super::transform::{Tables, Transform};
use crate::{CacheError, Geometry, PrefillSnapshot};

/// The number of first tokens that are stored in f16.
pub const SINKS: usize = 4;
/// The number of last tokens, whose step is [`FINER`] times finer.
pub const RECENT: usize = 32;
/// How much finer the step of the last tokens is.
pub const FINER: u32 = 4;

/// The rounding threshold lies this far above one half. So sizes are rounded down more often, because zeros are cheap.
const DOWN: f32 = 0.17;
/// Coordinates whose deviation is at most this fraction of the step are left out: almost all their numbers would be 0.
const LEFT_OUT: f64 = 0.2;
/// Tokens that one thread restores at a time.
const CHUNK: usize = 64;
/// A restored size is its number minus a correction. The correction is stored as a byte divided by this.
const SHARES: f32 = 512.0;
/// Bytes before a layer's tokens: the corrections for numbers of size 1 and for larger ones, for both steps.
const LEAD: usize = 4;

/// The codec of a model's prompts, at a given number of bits.
pub struct RestCodec {
    geometry: Geometry,
    digest: String,
    bits: f64,
    step: f64,
    layers: Vec<LayerCodec>,
}

/// The codec of one layer.
struct LayerCodec {
    transform: Transform,
    /// Deviations of the coordinates, in steps, in falling order. For the last tokens they are [`FINER`] times as
    /// large.
    steps: Vec<f32>,
    /// The number of coordinates that tokens of the coarse step have. The last tokens have all coordinates.
    coarse: usize,
}

impl RestCodec {
    /// A codec for about `bits` bits per channel, 0.1 to 8, with the tables that `train-plus` made. How many bits a
    /// prompt really takes depends on the prompt. 4096 tokens similar to the calibration text take about `bits`.
    ///
    /// # Errors
    /// If the tables do not belong to a model of this shape, or if `bits` is out of range.
    pub fn new(set: &CodebookSet, geometry: Geometry, bits: f64) -> Result<Self, CacheError> {
        if !(0.1..=8.0).contains(&bits) {
            return Err(CacheError::Unsuitable {
                scheme: TABLES.to_owned(),
                reason: format!("a prompt at rest takes 0.1 to 8 bits per channel, not {bits}"),
            });
        }
        let tables = read(set, geometry)?;
        let deviations: Vec<Vec<f64>> = tables.iter().map(Tables::deviations).collect();
        let indices = tables.iter().map(|tables| index_bits(tables.atoms()) as f64).sum();
        let step = rate::step(&deviations, indices, bits);
        Ok(Self::assemble(set, &tables, geometry, (bits, step)))
    }

    /// A codec with a known step: the step of an existing file.
    ///
    /// # Errors
    /// If the tables do not belong to a model of this shape.
    pub fn with_step(set: &CodebookSet, geometry: Geometry, bits: f64, step: f64) -> Result<Self, CacheError> {
        Ok(Self::assemble(set, &read(set, geometry)?, geometry, (bits, step)))
    }

    fn assemble(set: &CodebookSet, tables: &[Tables<'_>], geometry: Geometry, (bits, step): (f64, f64)) -> Self {
        let layer = |tables: &Tables<'_>| {
            let deviations = tables.deviations();
            let above = |step: f64| deviations.iter().take_while(|deviation| **deviation > LEFT_OUT * step).count();
            let (coarse, all) = (above(step), above(step / f64::from(FINER)));
            let kept: Vec<u8> = (0..deviations.len()).map(|at| u8::from(at < all)).collect();
            let transform = Transform::new(tables, &kept, geometry);
            let steps: Vec<f32> =
                deviations[..transform.kept()].iter().map(|deviation| (deviation / step) as f32).collect();
            LayerCodec { coarse: coarse.min(steps.len()), transform, steps }
        };
        Self { geometry, digest: digest(set), bits, step, layers: tables.par_iter().map(layer).collect() }
    }

    /// The requested bits per channel of a sequence.
    #[must_use]
    pub fn bits(&self) -> f64 {
        self.bits
    }

    /// The step of the coordinates, in the metric.
    #[must_use]
    pub fn step(&self) -> f64 {
        self.step
    }

    /// A digest of the numbers in the tables. It identifies the tables.
    #[must_use]
    pub fn tables(&self) -> &str {
        &self.digest
    }

    /// The shape of the model.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Codes one layer's keys, before position embedding, and values, `(1, Hkv, T, D)` each.
    ///
    /// # Errors
    /// If the shapes do not fit the model, or if a number is not finite.
    pub fn encode(&self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<Vec<u8>, CacheError> {
        let mut rows = self.rows(layer, keys, values)?;
        let codec = &self.layers[layer];
        let n = codec.transform.channels();
        let tokens = rows.len() / n;
        let (sinks, recent) = parts(tokens);
        let mut out = vec![0; LEAD];
        out.extend(to_f16(&rows[..sinks * n]).iter().flat_map(|x| x.to_le_bytes()));
        let kept = codec.steps.len();
        let coded: Vec<(Vec<usize>, Vec<f32>)> =
            rows[sinks * n..].par_chunks_mut(CHUNK * n).map(|rows| codec.transform.coordinates(rows)).collect();
        let mut lead = [Below::default(); 2];
        {
            let mut coder = RangeEncoder::new(&mut out);
            let mut symbols = codec.symbols();
            let mut numbers = vec![0; kept];
            let found = coded.iter().flat_map(|(atoms, coordinates)| {
                atoms.iter().enumerate().map(move |(at, atom)| (*atom, &coordinates[at * kept..(at + 1) * kept]))
            });
            for (token, (mut atom, coordinates)) in found.enumerate() {
                let fine = token + sinks >= tokens - recent;
                if token + sinks == tokens - recent {
                    codec.refine(&mut symbols);
                }
                let count = codec.count(fine);
                let numbers = &mut numbers[..count];
                for ((number, x), steps) in numbers.iter_mut().zip(coordinates).zip(&codec.steps) {
                    let x = x * steps * finer(fine);
                    let size = (x.abs() + 0.5 - DOWN).floor().min(LARGEST as f32);
                    lead[usize::from(fine)].see(size, x.abs());
                    *number = if x < 0.0 { -(size as i32) } else { size as i32 };
                }
                symbols.token(&mut coder, &mut atom, numbers);
            }
            coder.finish();
        }
        out[..LEAD].copy_from_slice(&[lead[0].shares(), lead[1].shares()].concat());
        Ok(out)
    }

    /// Restores one layer's keys, before position embedding, and values from its code, `(1, Hkv, tokens, D)` each. Any
    /// bytes give some numbers. Checksums must show whether they are the right ones.
    ///
    /// # Errors
    /// If there are fewer bytes than the first tokens take.
    pub fn decode(&self, layer: usize, tokens: usize, bytes: &[u8]) -> Result<(Tensor, Tensor), CacheError> {
        let codec = &self.layers[layer];
        let Geometry { kv_heads, head_dim: d, .. } = self.geometry;
        let n = codec.transform.channels();
        let (sinks, recent) = parts(tokens);
        let from = LEAD + sinks * n * size_of::<f16>();
        if bytes.len() < from {
            let source = CodecError::Length { what: "a layer's code, at least", expected: from, found: bytes.len() };
            return Err(CacheError::Codec { layer, kind: Kind::Key, source });
        }
        let below = [0, 2].map(|at| [f32::from(bytes[at]) / SHARES, f32::from(bytes[at + 1]) / SHARES]);
        let kept = codec.steps.len();
        let mut atoms = vec![0; tokens - sinks];
        let mut coordinates = vec![0f32; (tokens - sinks) * kept];
        let mut coder = RangeDecoder::new(&bytes[from..]);
        let mut symbols = codec.symbols();
        let mut numbers = vec![0; kept];
        for (token, atom) in atoms.iter_mut().enumerate() {
            let fine = token + sinks >= tokens - recent;
            if token + sinks == tokens - recent {
                codec.refine(&mut symbols);
            }
            let count = codec.count(fine);
            symbols.token(&mut coder, atom, &mut numbers[..count]);
            *atom = (*atom).min(codec.transform.atoms() - 1);
            let coordinates = &mut coordinates[token * kept..][..count];
            for ((x, &number), steps) in coordinates.iter_mut().zip(&numbers).zip(&codec.steps) {
                if number != 0 {
                    let size = number.unsigned_abs() as f32 - below[usize::from(fine)][usize::from(number.abs() > 1)];
                    *x = (size / (steps * finer(fine))).copysign(number as f32);
                }
            }
        }
        // (half-heads, tokens, D)
        let mut heads = vec![0f32; tokens * n];
        for (at, head) in heads.chunks_exact_mut(tokens * d).enumerate() {
            for token in 0..sinks {
                let bytes = &bytes[LEAD + (token * n + at * d) * size_of::<f16>()..][..d * size_of::<f16>()];
                for (x, bytes) in head[token * d..][..d].iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *x = f16::from_le_bytes(*bytes).to_f32();
                }
            }
            let rest = head[sinks * d..].par_chunks_mut(CHUNK * d).zip(atoms.par_chunks(CHUNK));
            rest.enumerate().for_each(|(chunk, (out, atoms))| {
                let coordinates = &coordinates[chunk * CHUNK * kept..][..atoms.len() * kept];
                codec.transform.restore(at, atoms, coordinates, out);
            });
        }
        let values = Tensor::from_slice(&heads[heads.len() / 2..], (1, kv_heads, tokens, d), &Device::Cpu)?;
        heads.truncate(heads.len() / 2);
        Ok((Tensor::from_vec(heads, (1, kv_heads, tokens, d), &Device::Cpu)?, values))
    }

    /// The tokens as rows `(T, 2 Hkv D)`.
    fn rows(&self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<Vec<f32>, CacheError> {
        let Geometry { kv_heads, head_dim: d, .. } = self.geometry;
        let mut rows = Vec::new();
        for (kind, tensor, name) in [(Kind::Key, keys, "keys"), (Kind::Value, values, "values")] {
            let shape = tensor.dims();
            if shape.len() != 4 || [shape[0], shape[1], shape[3]] != [1, kv_heads, d] || shape != keys.dims() {
                let expected = format!("(1, {kv_heads}, T, {d}), T the same for keys and values");
                return Err(CacheError::Shape { tensor: name, expected, found: shape.to_vec() });
            }
            let (tokens, half) = (shape[2], kv_heads * d);
            let numbers = tensor.transpose(1, 2)?.flatten_all()?.to_vec1::<f32>()?;
            if let Some(at) = numbers.iter().position(|x| !x.is_finite()) {
                return Err(CacheError::NotFinite { layer, kind, token: at / half });
            }
            rows.resize(tokens * 2 * half, 0.0);
            let first = if kind == Kind::Key { 0 } else { half };
            for (row, x) in rows.chunks_exact_mut(2 * half).zip(numbers.chunks_exact(half)) {
                row[first..first + half].copy_from_slice(x);
            }
        }
        Ok(rows)
    }
}

impl LayerCodec {
    fn symbols(&self) -> Symbols {
        Symbols::new(&self.steps, index_bits(self.transform.atoms()))
    }

    fn refine(&self, symbols: &mut Symbols) {
        let fine: Vec<f32> = self.steps.iter().map(|steps| steps * FINER as f32).collect();
        symbols.refine(FINER, self.coarse, &fine);
    }

    /// The number of coordinates of a token.
    fn count(&self, fine: bool) -> usize {
        if fine { self.steps.len() } else { self.coarse }
    }
}

/// How far sizes lie below the numbers they were rounded to, on average, for numbers of size 1 and for larger ones.
#[derive(Clone, Copy, Default)]
struct Below([(f64, usize); 2]);

impl Below {
    fn see(&mut self, size: f32, x: f32) {
        if size > 0.0 {
            let (sum, count) = &mut self.0[usize::from(size > 1.0)];
            *sum += f64::from(size - x);
            *count += 1;
        }
    }

    fn shares(self) -> [u8; 2] {
        self.0.map(|(sum, count)| (sum / count.max(1) as f64 * f64::from(SHARES)).round().clamp(0.0, 255.0) as u8)
    }
}

/// The number of tokens stored in f16, and of tokens with the finer step.
fn parts(tokens: usize) -> (usize, usize) {
    let sinks = tokens.min(SINKS);
    (sinks, (tokens - sinks).min(RECENT))
}

fn finer(fine: bool) -> f32 {
    if fine { FINER as f32 } else { 1.0 }
}

fn read(set: &CodebookSet, geometry: Geometry) -> Result<Vec<Tables<'_>>, CacheError> {
    let codec = |layer| move |source| CacheError::Codec { layer, kind: Kind::Key, source };
    set.validate_for(geometry.layers, geometry.kv_heads, geometry.head_dim).map_err(codec(0))?;
    (0..geometry.layers).map(|layer| Tables::read(set, layer, geometry).map_err(codec(layer))).collect()
}

/// A digest of the numbers in the tables.
fn digest(set: &CodebookSet) -> String {
    let mut hasher = blake3::Hasher::new();
    for layer in 0..set.layers {
        for name in [super::ATOMS, super::METRIC, super::BASIS, super::DEVIATIONS] {
            let values = set.get(layer, Kind::Key, name).map_or(&[][..], |table| table.values());
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(&bytes);
        }
    }
    hasher.finalize().to_hex().to_string()
}

/// The codes of all layers of a prompt, made in parallel.
fn encode_all(codec: &RestCodec, snapshot: &PrefillSnapshot) -> Result<Vec<Vec<u8>>, CacheError> {
    let layers = snapshot.keys.par_iter().zip(&snapshot.values).enumerate();
    layers.map(|(layer, (keys, values))| codec.encode(layer, keys, values)).collect()
}

#[cfg(test)]
mod tests;
