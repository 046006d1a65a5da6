//! The bias of keys that a decoder tells, against its checkpoint and against the keys that it makes.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use common::{random_weights, tiny_arch, worst};
use kvcsr_model::{Arch, Decoder, Qkv, TensorMap};

const IDS: [u32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 5];

fn decoder(arch: &Arch, weights: &HashMap<String, Tensor>) -> Decoder {
    Decoder::new(arch.clone(), &TensorMap(weights.clone()), &Device::Cpu).unwrap()
}

fn name(layer: usize) -> String {
    format!("model.layers.{layer}.self_attn.k_proj.bias")
}

#[test]
fn the_bias_is_that_of_the_checkpoint_and_in_every_key() {
    let arch = Arch { qkv: Qkv::Biased, ..tiny_arch() };
    let mut weights = random_weights(&arch, 5);
    let biased = decoder(&arch, &weights);
    for layer in 0..arch.layers {
        let found = biased.key_bias(layer).unwrap().unwrap();
        assert_eq!(found.dims(), [arch.kv_heads, arch.head_dim]);
        assert_eq!(worst(&found.flatten_all().unwrap(), &weights[&name(layer)]), 0.0, "layer {layer}");
    }
    assert!(biased.key_bias(arch.layers).unwrap().is_none());

    // Only the first layer sees the same input without it.
    let bias = weights[&name(0)].clone();
    weights.insert(name(0), bias.zeros_like().unwrap());
    let keys = |decoder: &Decoder| decoder.prefill(&IDS, 4).unwrap().keys.swap_remove(0);
    let bias = biased.key_bias(0).unwrap().unwrap().reshape((1, arch.kv_heads, 1, arch.head_dim)).unwrap();
    let expected = keys(&decoder(&arch, &weights)).broadcast_add(&bias).unwrap();
    assert!(worst(&keys(&biased), &expected) < 1e-5);
}

#[test]
fn a_model_without_biases_has_none() {
    let arch = tiny_arch();
    assert!(decoder(&arch, &random_weights(&arch, 5)).key_bias(0).unwrap().is_none());
}
