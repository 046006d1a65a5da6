//! SmolLM2-135M-Instruct from its GGUF, compared with numbers and texts that Hugging Face transformers computed.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::sync::LazyLock;

use candle_core::{DType, Device, Tensor};
use common::real::Golden;
use common::{dense, golden, worst};
use kvcsr_model::{Gguf, Logits, Precision};

static GOLDEN: LazyLock<Option<Golden>> = LazyLock::new(|| {
    let folder = golden("golden_smollm2")?;
    let file = kvcsr_fixtures::smollm2("golden_smollm2")?;
    Some(Golden::load(&file, &folder.join("smollm2-135m-shared.safetensors")))
});

fn ids_of(value: &serde_json::Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn token_ids_are_the_same_and_decode_to_the_text() {
    let Some(g) = &*GOLDEN else { return };
    g.check_ids();
    let Some(folder) = golden("golden_smollm2") else { return };
    let cases: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("smollm2-tokenizer.json")).unwrap()).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 12);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let ids = ids_of(&case["ids"]);
        assert_eq!(g.tokenizer.encode(text, true).unwrap(), ids, "{text:?}");
        assert_eq!(g.tokenizer.decode(&ids, false).unwrap(), text);
    }
    let chat = "<|im_start|>user\nHello<|im_end|>\n";
    let skipped = g.tokenizer.decode(&g.tokenizer.encode(chat, true).unwrap(), true).unwrap();
    assert_eq!(skipped, "user\nHello\n");
    let ends = ["<|endoftext|>", "<|im_end|>", "<reponame>"].map(|token| g.tokenizer.id(token).unwrap());
    assert_eq!(g.tokenizer.stop_tokens().ids(), ends);
    assert_eq!(g.tokenizer.vocab_size(), g.decoder.arch().vocab);
}

#[test]
fn logits_and_likelihoods_agree() {
    let Some(g) = &*GOLDEN else { return };
    let found = g.differences();
    eprintln!("largest differences: {found:?}");
    assert!(found.last_logits < 2e-3 && found.top5_logits < 2e-3 && found.nll < 2e-3);
}

#[test]
fn keys_before_rotation_and_values_agree_in_half_split_order() {
    let Some(g) = &*GOLDEN else { return };
    let found = g.keys_and_values();
    eprintln!("relative differences: {found:?}");
    assert_eq!(found.len(), 6, "layers 0, 14 and 29 are given");
    assert!(found.iter().all(|(_, relative)| *relative < 1e-5), "{found:?}");
    let snapshot = g.decoder.prefill(&g.ids, 512).unwrap();
    let tokens = g.ids.len();
    let all = g.decoder.forward(&g.decoder.row(&g.ids).unwrap(), &mut dense(&g.decoder), Logits::All).unwrap();
    let last = all.narrow(1, tokens - 1, 1).unwrap().squeeze(1).unwrap();
    assert!(worst(&snapshot.last_logits, &last) < 1e-4);
}

#[test]
fn greedy_text_is_identical() {
    let Some(g) = &*GOLDEN else { return };
    let Some(folder) = golden("golden_smollm2") else { return };
    g.check_greedy(&folder.join("smollm2-135m-shared-greedy.json"));
}

#[test]
fn one_prefill_equals_token_by_token_and_uneven_pieces() {
    let Some(g) = &*GOLDEN else { return };
    let whole = g.decoder.forward(&g.decoder.row(&g.ids).unwrap(), &mut dense(&g.decoder), Logits::All).unwrap();
    for pieces in [vec![1; g.ids.len()], vec![31, 2, 1, 17, 14]] {
        let mut caches = dense(&g.decoder);
        let (mut at, mut largest) = (0, 0f32);
        for &tokens in &pieces {
            let ids = g.decoder.row(&g.ids[at..at + tokens]).unwrap();
            let logits = g.decoder.forward(&ids, &mut caches, Logits::All).unwrap();
            largest = largest.max(worst(&logits, &whole.narrow(1, at, tokens).unwrap()));
            at += tokens;
        }
        assert_eq!(at, g.ids.len());
        eprintln!("{} pieces: largest logit difference {largest:.1e}", pieces.len());
        assert!(largest < 2e-4, "{largest}");
    }
}

#[test]
fn half_precision_stays_near_in_likelihoods_and_top_tokens() {
    let Some(g) = &*GOLDEN else { return };
    let file = Gguf::open(kvcsr_fixtures::smollm2("golden_smollm2").unwrap()).unwrap();
    let tokens = g.ids.len();
    let top = |logits: &Tensor| logits.argmax(1).unwrap().to_vec1::<u32>().unwrap();
    let expected = g.tensors["top5_index"].to_dtype(DType::U32).unwrap().narrow(1, 0, 1).unwrap().squeeze(1).unwrap();
    let expected = expected.to_vec1::<u32>().unwrap();
    let cases = [(Precision::F16, 0.01, 0.97), (Precision::Bf16, 0.05, 0.9), (Precision::Bf16Fast, 0.05, 0.9)];
    for (dtype, mean, agreeing) in cases {
        let kept = dtype.resolve(DType::F32);
        let decoder = file.decoder_in(&Device::Cpu, kept).unwrap();
        assert_eq!(decoder.dtype(), kept.dtype);
        let ids = decoder.row(&g.ids).unwrap();
        let logits = decoder.forward(&ids, &mut dense(&decoder), Logits::All).unwrap().squeeze(0).unwrap();
        let log_probabilities = candle_nn::ops::log_softmax(&logits, 1).unwrap();
        let targets = ids.squeeze(0).unwrap().narrow(0, 1, tokens - 1).unwrap().unsqueeze(1).unwrap();
        let predicted = log_probabilities.narrow(0, 0, tokens - 1).unwrap().contiguous().unwrap();
        let nll = predicted.gather(&targets, 1).unwrap().neg().unwrap().squeeze(1).unwrap();
        let off = (nll - &g.tensors["nll"]).unwrap().abs().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
        let same = top(&logits).iter().zip(&expected).filter(|(a, b)| a == b).count() as f64 / tokens as f64;
        eprintln!("{dtype}: nll off by {off:.1e} in the mean, {:.1} % of the top tokens", 100.0 * same);
        assert!(off < mean && same >= agreeing, "{dtype}: {off}, {same}");
    }
}
