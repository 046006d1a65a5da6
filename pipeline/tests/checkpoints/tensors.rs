//! Random tensors, written fast: every matrix repeats one block of numbers. Also safetensors in shards with their index.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

/// How many numbers the block has: a prime, so that the rows of a matrix differ.
const BLOCK: usize = 1_048_573;
/// Standard deviation of weights: the models' own before training (`initializer_range`).
const DEVIATION: f32 = 0.02;
/// A nearly normal number is the sum of this many uniform numbers.
const SUMMED: usize = 4;

/// The dtype that matrices are stored in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    F16,
    Bf16,
}

impl Dtype {
    fn bytes(self, number: f32) -> [u8; 2] {
        match self {
            Self::F16 => f16::from_f32(number).to_le_bytes(),
            Self::Bf16 => bf16::from_f32(number).to_le_bytes(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }
}

/// Sizes that a configuration names.
pub struct Shape {
    pub hidden: usize,
    pub intermediate: usize,
    pub vocab: usize,
    pub head_dim: usize,
    /// Rows of the projection to keys.
    pub kv_width: usize,
}

impl Shape {
    pub fn of(config: &Value) -> Self {
        let size = |key: &str| config[key].as_u64().map(|size| size as usize);
        let need = |key: &str| size(key).unwrap_or_else(|| panic!("config.json lacks {key}"));
        let (hidden, heads) = (need("hidden_size"), need("num_attention_heads"));
        let head_dim = hidden / heads;
        let kv_width = size("num_key_value_heads").unwrap_or(heads) * head_dim;
        Self { hidden, intermediate: need("intermediate_size"), vocab: need("vocab_size"), head_dim, kv_width }
    }
}

enum Numbers {
    Random,
    Ones,
    Frequencies,
}

/// One tensor of a checkpoint.
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    numbers: Numbers,
}

impl Tensor {
    pub fn matrix(name: &str, rows: usize, columns: usize) -> Self {
        Self { name: format!("{name}.weight"), shape: vec![rows, columns], numbers: Numbers::Random }
    }

    pub fn norm(name: &str, width: usize) -> Self {
        Self { name: format!("{name}.weight"), shape: vec![width], numbers: Numbers::Ones }
    }

    pub fn frequencies(name: &str, head_dim: usize) -> Self {
        Self { name: name.to_owned(), shape: vec![head_dim / 2], numbers: Numbers::Frequencies }
    }

    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    fn bytes(&self) -> usize {
        self.len() * if matches!(self.numbers, Numbers::Frequencies) { 4 } else { 2 }
    }

    fn dtype(&self, matrices: Dtype) -> &'static str {
        if matches!(self.numbers, Numbers::Frequencies) { "F32" } else { matrices.name() }
    }
}

/// The block of random numbers, and what is made of it.
pub struct Noise {
    dtype: Dtype,
    block: Vec<u8>,
    /// How many numbers were used: the next matrix continues there.
    used: usize,
}

impl Noise {
    pub fn new(dtype: Dtype) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(20);
        // The variance of a uniform number from -1 to 1 is a third.
        let scale = DEVIATION * (3.0 / SUMMED as f32).sqrt();
        let mut normal = || scale * (0..SUMMED).map(|_| rng.random_range(-1.0f32..1.0)).sum::<f32>();
        let block = (0..BLOCK).flat_map(|_| dtype.bytes(normal())).collect();
        Self { dtype, block, used: 0 }
    }

    /// Writes the numbers of `tensor`.
    pub fn write(&mut self, tensor: &Tensor, out: &mut impl Write) {
        let count = tensor.len();
        match tensor.numbers {
            Numbers::Ones => out.write_all(&self.dtype.bytes(1.0).repeat(count)).unwrap(),
            Numbers::Frequencies => {
                let at = |index: usize| 10_000f32.powf(-(index as f32) / count as f32);
                out.write_all(&(0..count).flat_map(|index| at(index).to_le_bytes()).collect::<Vec<u8>>()).unwrap();
            }
            Numbers::Random => {
                let end = self.used + count;
                while self.used < end {
                    let from = self.used % BLOCK;
                    let to = BLOCK.min(from + end - self.used);
                    out.write_all(&self.block[2 * from..2 * to]).unwrap();
                    self.used += to - from;
                }
            }
        }
    }
}

/// Writes `model-0000I-of-0000N.safetensors` and their index.
pub fn write_shards(folder: &Path, tensors: &[Tensor], dtype: Dtype, shards: usize) {
    let total: usize = tensors.iter().map(Tensor::bytes).sum();
    let mut noise = Noise::new(dtype);
    let mut weight_map = Map::new();
    let (mut rest, mut before) = (tensors, 0);
    for shard in 1..=shards {
        let mut taken = 0;
        // Takes the tensors whose first byte lies in the shard's share.
        while taken < rest.len() && (before * shards < shard * total || shard == shards) {
            before += rest[taken].bytes();
            taken += 1;
        }
        let (own, others) = rest.split_at(taken);
        rest = others;
        let file = format!("model-{shard:05}-of-{shards:05}.safetensors");
        weight_map.extend(own.iter().map(|tensor| (tensor.name.clone(), file.clone().into())));
        write_safetensors(&folder.join(file), own, dtype, &mut noise);
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// Writes a length, a JSON header with the places of the tensors, and their bytes.
fn write_safetensors(path: &Path, tensors: &[Tensor], dtype: Dtype, noise: &mut Noise) {
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut at = 0;
    for tensor in tensors {
        let end = at + tensor.bytes();
        let entry = json!({"dtype": tensor.dtype(dtype), "shape": tensor.shape, "data_offsets": [at, end]});
        header.insert(tensor.name.clone(), entry);
        at = end;
    }
    let mut header = Value::Object(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut out = BufWriter::new(File::create(path).unwrap());
    out.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    out.write_all(header.as_bytes()).unwrap();
    tensors.iter().for_each(|tensor| noise.write(tensor, &mut out));
    out.flush().unwrap();
}
