//! Batches of texts of different lengths: with padding at the front, each row has the same logits as it has alone.

#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{Device, Tensor};
use common::{dense, random_weights, tiny_arch, worst};
use kvcsr_model::{Arch, Decoder, Logits, Position, QkNorm, Qkv, SlidingLayers, TensorMap};

const TEXTS: [&[u32]; 3] = [&[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], &[8, 9, 7], &[9, 3, 2, 3, 8, 4, 62]];
const PADDING: [usize; 3] = [0, 8, 4];
/// The tokens with which every row continues.
const NEXT: [u32; 2] = [17, 40];

fn check(name: &str, arch: Arch, pad: u32) {
    let decoder = Decoder::new(arch.clone(), &TensorMap(random_weights(&arch, 21)), &Device::Cpu).unwrap();
    let rows: Vec<Tensor> = TEXTS
        .iter()
        .zip(PADDING)
        .map(|(text, padding)| {
            let padded: Vec<u32> = std::iter::repeat_n(pad, padding).chain(text.iter().chain(&NEXT).copied()).collect();
            decoder.row(&padded).unwrap()
        })
        .collect();
    let batch = Tensor::cat(&rows, 0).unwrap();
    for split in [&[13][..], &[11, 1, 1], &[2, 9, 2]] {
        let mut caches = dense(&decoder);
        let mut at = 0;
        let mut pieces = Vec::new();
        for &tokens in split {
            let ids = batch.narrow(1, at, tokens).unwrap();
            pieces.push(decoder.forward_padded(&ids, &PADDING, &mut caches, Logits::All).unwrap());
            at += tokens;
        }
        let together = Tensor::cat(&pieces, 1).unwrap();
        for (row, text) in TEXTS.iter().enumerate() {
            let ids = decoder.row(&[text, &NEXT[..]].concat()).unwrap();
            let alone = decoder.forward(&ids, &mut dense(&decoder), Logits::All).unwrap();
            let padded = together.narrow(0, row, 1).unwrap().narrow(1, PADDING[row], text.len() + NEXT.len()).unwrap();
            let difference = worst(&padded, &alone);
            assert!(difference < 2e-5, "{name}, pad {pad}, {split:?}, row {row}: {difference}");
        }
    }
}

#[test]
fn each_row_has_the_logits_it_has_alone() {
    let sliding = Some(SlidingLayers::from_layer(1, tiny_arch().layers, 4));
    for pad in [0, 33] {
        check("rotary", tiny_arch(), pad);
        check("sliding", Arch { sliding: sliding.clone(), ..tiny_arch() }, pad);
        check("normed heads", Arch { qk_norm: QkNorm::PerHead, qkv: Qkv::Biased, ..tiny_arch() }, pad);
        // Three heads are not a power of two.
        let three = Arch { heads: 3, kv_heads: 3, qkv: Qkv::Packed, normalised_head: true, ..tiny_arch() };
        check("ALiBi", Arch { position: Position::Alibi, ..three }, pad);
    }
}

#[test]
fn padding_of_another_length_than_the_batch_is_refused() {
    let arch = tiny_arch();
    let decoder = Decoder::new(arch.clone(), &TensorMap(random_weights(&arch, 21)), &Device::Cpu).unwrap();
    let ids = decoder.row(TEXTS[0]).unwrap();
    let mut caches = dense(&decoder);
    let error = decoder.forward_padded(&ids, &[0, 1], &mut caches, Logits::Last).unwrap_err().to_string();
    assert!(error.contains("one per row") && caches[0].is_empty(), "{error}");
}
