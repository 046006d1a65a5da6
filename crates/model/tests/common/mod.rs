//! Helpers shared by the test files.

#![allow(dead_code)]

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use kvcsr_cache::{LayerCache, SchemeContext, registry};
use kvcsr_model::{Arch, Decoder, Position, Qkv, RopeScaling};

/// The folder of golden files, or `None`, where the test is skipped.
pub fn golden(test: &str) -> Option<PathBuf> {
    kvcsr_fixtures::shared(test, "golden")
}

/// Empty uncompressed caches for every layer.
pub fn dense(decoder: &Decoder) -> Vec<Box<dyn LayerCache>> {
    let scheme = registry::build("dense", &SchemeContext::new(decoder.geometry())).unwrap();
    (0..decoder.arch().layers).map(|layer| scheme.empty(layer).unwrap()).collect()
}

/// A small grouped-query architecture.
pub fn tiny_arch() -> Arch {
    Arch {
        hidden: 32,
        layers: 3,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        intermediate: 64,
        vocab: 64,
        rms_eps: 1e-5,
        position: Position::Rope { theta: 1e4, scaling: RopeScaling::None },
        sliding: None,
        max_positions: 64,
        qkv: Qkv::Separate,
        qk_norm: false,
        tied_head: false,
        normalised_head: false,
    }
}

/// The rotary base and scaling of an architecture that has them.
pub fn rope(arch: &Arch) -> (f64, &RopeScaling) {
    match &arch.position {
        Position::Rope { theta, scaling } => (*theta, scaling),
        Position::Alibi => panic!("not a rotary model"),
    }
}

/// Weights drawn by a fixed generator: matrices about `1/sqrt(in)`, norms about 1.
pub fn random_weights(arch: &Arch, seed: u64) -> HashMap<String, Tensor> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let mut draw = |shape: &[usize]| {
        let (offset, scale) = match shape {
            [_] => (1.0, 0.3),
            _ => (0.0, 2.0 / (shape[shape.len() - 1] as f32).sqrt()),
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| offset + scale * uniform()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    arch.tensors().into_iter().map(|(name, shape)| (name, draw(&shape))).collect()
}

/// Largest absolute difference of two tensors of one shape.
pub fn worst(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let differences = flat(a).into_iter().zip(flat(b)).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst, next| if next.is_nan() { f32::NAN } else { worst.max(next) })
}
