//! The decoder, compared with `candle_transformers::models::llama` on small random models. No files are needed.

#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, Llama3RopeConfig, Llama3RopeType};
use common::{dense, random_weights, rope, tiny_arch, worst};
use kvcsr_cache::{SchemeContext, registry};
use kvcsr_model::{Arch, Decoder, Logits, ModelError, Position, RopeScaling, TensorMap};

const IDS: [u32; 23] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 62, 63, 0];

fn build(arch: &Arch, seed: u64) -> Decoder {
    Decoder::new(arch.clone(), &TensorMap(random_weights(arch, seed)), &Device::Cpu).unwrap()
}

fn peer(arch: &Arch, seed: u64) -> (Llama, Cache) {
    let (theta, scaling) = rope(arch);
    let config = Config {
        hidden_size: arch.hidden,
        intermediate_size: arch.intermediate,
        vocab_size: arch.vocab,
        num_hidden_layers: arch.layers,
        num_attention_heads: arch.heads,
        num_key_value_heads: arch.kv_heads,
        use_flash_attn: false,
        rms_norm_eps: arch.rms_eps,
        rope_theta: theta as f32,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: match *scaling {
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                Some(Llama3RopeConfig {
                    factor: factor as f32,
                    low_freq_factor: low_freq_factor as f32,
                    high_freq_factor: high_freq_factor as f32,
                    original_max_position_embeddings: original_max_positions,
                    rope_type: Llama3RopeType::Llama3,
                })
            }
            _ => None,
        },
        max_position_embeddings: arch.max_positions,
        tie_word_embeddings: arch.tied_head,
    };
    let vb = VarBuilder::from_tensors(random_weights(arch, seed), DType::F32, &Device::Cpu);
    let llama = Llama::load(vb, &config).unwrap();
    (llama, Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap())
}

#[test]
fn logits_equal_candle_transformers_at_every_position() {
    let grouped = tiny_arch();
    let tied = Arch { tied_head: true, kv_heads: 4, ..tiny_arch() };
    let scaling =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 32 };
    let scaled = Arch { position: Position::Rope { theta: 1e4, scaling }, ..tiny_arch() };
    for (seed, arch) in [grouped, tied, scaled].into_iter().enumerate() {
        let decoder = build(&arch, seed as u64 + 1);
        let (llama, mut cache) = peer(&arch, seed as u64 + 1);
        let ours = decoder.forward(&decoder.row(&IDS).unwrap(), &mut dense(&decoder), Logits::All).unwrap();
        for end in 1..=IDS.len() {
            let theirs = llama.forward(&decoder.row(&IDS[..end]).unwrap(), 0, &mut cache).unwrap();
            let difference = worst(&ours.narrow(1, end - 1, 1).unwrap().squeeze(1).unwrap(), &theirs);
            assert!(difference < 2e-5, "model {seed}, position {end}: {difference}");
        }
    }
}

#[test]
fn any_split_of_the_input_gives_the_same_logits() {
    let decoder = build(&tiny_arch(), 7);
    let whole = decoder.forward(&decoder.row(&IDS).unwrap(), &mut dense(&decoder), Logits::All).unwrap();
    for split in [&[1; 23][..], &[7, 1, 1, 14], &[22, 1]] {
        let mut caches = dense(&decoder);
        let mut at = 0;
        for &tokens in split {
            let ids = decoder.row(&IDS[at..at + tokens]).unwrap();
            let hidden = decoder.forward_hidden(&ids, &mut caches).unwrap();
            let difference = worst(&decoder.head(&hidden).unwrap(), &whole.narrow(1, at, tokens).unwrap());
            assert!(difference < 1e-5, "{split:?} at {at}: {difference}");
            at += tokens;
        }
    }
    let last = whole.narrow(1, IDS.len() - 1, 1).unwrap().squeeze(1).unwrap();
    for chunk in [1, 5, 22, 23, 100] {
        let snapshot = decoder.prefill(&IDS, chunk).unwrap();
        assert_eq!(snapshot.len(), IDS.len());
        assert_eq!(snapshot.keys[2].dims(), [1, 2, IDS.len(), 8]);
        assert!(worst(&snapshot.last_logits, &last) < 1e-5);
    }
}

#[test]
fn a_prompt_compressed_layer_by_layer_is_the_fork_of_its_prefill() {
    let decoder = build(&tiny_arch(), 8);
    let numbers = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let cx = SchemeContext::new(decoder.geometry());
    // The second looks at the last queries, and so at what every layer recorded.
    for name in ["kivi-2(group=8)", "snapkv(budget=12,window=4)"] {
        let scheme = registry::build(name, &cx).unwrap();
        for chunk in [1, 5, 23] {
            let snapshot = decoder.prefill(&IDS, chunk).unwrap();
            let mut forked = snapshot.fork(scheme.as_ref(), decoder.rotary()).unwrap();
            let mut prompt = decoder.prefill_compressed(&IDS, chunk, scheme.as_ref()).unwrap();
            assert_eq!(numbers(&prompt.last_logits), numbers(&snapshot.last_logits), "{name}, {chunk}");
            let next = decoder.row(&[7, 8]).unwrap();
            let [a, b] = [&mut forked, &mut prompt.caches]
                .map(|caches| numbers(&decoder.forward(&next, caches, Logits::All).unwrap()));
            assert_eq!(a, b, "{name}, {chunk}");
        }
        assert!(decoder.prefill_compressed(&[], 8, scheme.as_ref()).is_err());
        assert!(decoder.prefill_compressed(&IDS, 0, scheme.as_ref()).is_err());
    }
}

#[test]
fn batches_are_independent_sequences() {
    let decoder = build(&tiny_arch(), 8);
    let rows = [&IDS[..8], &IDS[8..16]];
    let batch = Tensor::cat(&rows.map(|row| decoder.row(row).unwrap()), 0).unwrap();
    let both = decoder.forward(&batch, &mut dense(&decoder), Logits::Last).unwrap();
    assert_eq!(both.dims(), [2, 64]);
    for (index, row) in rows.into_iter().enumerate() {
        let alone = decoder.forward(&decoder.row(row).unwrap(), &mut dense(&decoder), Logits::Last).unwrap();
        assert!(worst(&both.narrow(0, index, 1).unwrap(), &alone) < 1e-5);
    }
    let none = decoder.forward(&batch, &mut dense(&decoder), Logits::None).unwrap();
    assert_eq!(none.dims(), [2, 0, 64]);
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let decoder = build(&tiny_arch(), 9);
    let ids = decoder.row(&IDS).unwrap();
    let refused = |ids: &Tensor, caches: &mut [_], what: &str| match decoder.forward(ids, caches, Logits::Last) {
        Err(ModelError::Input { what: named, .. }) => assert_eq!(named, what),
        other => panic!("{what}: {other:?}"),
    };
    refused(&ids, &mut dense(&decoder)[..2], "caches");
    refused(&decoder.row(&[1; 65]).unwrap(), &mut dense(&decoder), "ids");
    refused(&ids.narrow(1, 0, 0).unwrap(), &mut dense(&decoder), "ids");
    refused(&ids.squeeze(0).unwrap(), &mut dense(&decoder), "ids");
    let mut uneven = dense(&decoder);
    decoder.forward(&ids, &mut uneven, Logits::None).unwrap();
    uneven[1].clear();
    refused(&ids, &mut uneven, "caches");
    assert!(decoder.forward(&decoder.row(&[64]).unwrap(), &mut dense(&decoder), Logits::Last).is_err());
    assert!(decoder.prefill(&[], 8).is_err());
    assert!(decoder.prefill(&IDS, 0).is_err());
}

#[test]
fn checkpoints_that_do_not_fit_are_named() {
    let arch = tiny_arch();
    let refused = |change: fn(&mut TensorMap), named: &str| {
        let mut weights = TensorMap(random_weights(&arch, 3));
        change(&mut weights);
        let error = Decoder::new(arch.clone(), &weights, &Device::Cpu).err().unwrap().to_string();
        assert!(error.contains(named), "{error}");
    };
    refused(
        |w| drop(w.0.remove("model.layers.2.mlp.up_proj.weight")),
        "missing tensors: model.layers.2.mlp.up_proj.weight",
    );
    refused(
        |w| {
            let bias = Tensor::zeros(32, DType::F32, &Device::Cpu).unwrap();
            w.0.insert("model.layers.0.self_attn.q_proj.bias".to_owned(), bias);
        },
        "without a place in this architecture: model.layers.0.self_attn.q_proj.bias",
    );
    refused(
        |w| {
            let turned = w.0["model.layers.1.mlp.down_proj.weight"].t().unwrap();
            w.0.insert("model.layers.1.mlp.down_proj.weight".to_owned(), turned);
        },
        "`model.layers.1.mlp.down_proj.weight`: expected shape [32, 64], found [64, 32]",
    );
}

#[test]
fn a_head_of_its_own_is_used_where_the_configuration_calls_it_tied() {
    const HEAD: &str = "lm_head.weight";
    let (own, tied) = (tiny_arch(), Arch { tied_head: true, ..tiny_arch() });
    let logits = |arch: &Arch, weights: &TensorMap| {
        let decoder = Decoder::new(arch.clone(), weights, &Device::Cpu).unwrap();
        decoder.prefill(&[3, 1, 4], 8).unwrap().last_logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let mut weights = TensorMap(random_weights(&own, 3));
    assert_eq!(logits(&tied, &weights), logits(&own, &weights));
    let copy = weights.0["model.embed_tokens.weight"].clone();
    weights.0.insert(HEAD.to_owned(), copy);
    let copied = logits(&tied, &weights);
    let short = weights.0.remove(HEAD).unwrap().narrow(0, 0, 8).unwrap();
    assert_eq!(copied, logits(&tied, &weights));
    weights.0.insert(HEAD.to_owned(), short);
    let refused = Decoder::new(tied, &weights, &Device::Cpu).map(drop).unwrap_err().to_string();
    assert!(refused.contains(HEAD), "{refused}");
}
