//! Helpers shared by the test files.

#![allow(dead_code, unused_imports)]

pub mod gguf;
pub mod real;

use std::path::PathBuf;

use candle_core::Tensor;
use kvcsr_cache::{LayerCache, SchemeContext, registry};
pub use kvcsr_fixtures::{random_weights, tiny_arch};
use kvcsr_model::{Arch, Decoder, Position, RopeScaling};

/// The folder of golden files. `None` if it does not exist; then the test is skipped.
pub fn golden(test: &str) -> Option<PathBuf> {
    kvcsr_fixtures::shared(test, "golden")
}

/// Empty uncompressed caches for every layer.
pub fn dense(decoder: &Decoder) -> Vec<Box<dyn LayerCache>> {
    let scheme = registry::build("dense", &SchemeContext::new(decoder.geometry())).unwrap();
    (0..decoder.arch().layers).map(|layer| scheme.empty(layer).unwrap()).collect()
}

/// The rotary base and scaling of an architecture that has them.
pub fn rope(arch: &Arch) -> (f64, &RopeScaling) {
    match &arch.position {
        Position::Rope { theta, scaling } => (*theta, scaling),
        Position::Alibi => panic!("not a rotary model"),
    }
}

/// The largest absolute difference between two tensors of the same shape.
pub fn worst(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let differences = flat(a).into_iter().zip(flat(b)).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst, next| if next.is_nan() { f32::NAN } else { worst.max(next) })
}
