//! Compares a real model with numbers and texts that transformers computed from the same file.

use std::collections::HashMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use kvcsr_model::{Choice, Decoder, Gguf, Limits, Logits, Tokenizer};

use super::{dense, worst};

/// A model, and the expected results.
pub struct Golden {
    pub tokenizer: Tokenizer,
    pub decoder: Decoder,
    pub tensors: HashMap<String, Tensor>,
    pub text: String,
    pub ids: Vec<u32>,
}

/// The largest differences found.
#[derive(Debug)]
pub struct Differences {
    pub last_logits: f32,
    pub top5_logits: f32,
    pub nll: f32,
}

impl Golden {
    /// The model of a GGUF file in f32, and the tensors that transformers computed from it.
    pub fn load(gguf: &Path, tensors: &Path) -> Self {
        let file = Gguf::open(gguf).unwrap();
        let bytes = fs::read(tensors).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap();
        Self {
            tokenizer: file.tokenizer().unwrap(),
            decoder: file.decoder(&Device::Cpu).unwrap(),
            tensors: candle_core::safetensors::load(tensors, &Device::Cpu).unwrap(),
            text: metadata["text"].clone(),
            ids: serde_json::from_str(&metadata["ids"]).unwrap(),
        }
    }

    /// Checks that the text has the expected ids, and that they decode to the text.
    pub fn check_ids(&self) {
        assert_eq!(self.tokenizer.encode(&self.text, true).unwrap(), self.ids);
        assert_eq!(self.tokenizer.decode(&self.ids, false).unwrap(), self.text);
    }

    /// Compares the logits and likelihoods of the text with the expected ones.
    pub fn differences(&self) -> Differences {
        let ids = self.decoder.row(&self.ids).unwrap();
        let logits = self.decoder.forward(&ids, &mut dense(&self.decoder), Logits::All).unwrap().squeeze(0).unwrap();
        let tokens = self.ids.len();
        let last = logits.narrow(0, tokens - 1, 1).unwrap().squeeze(0).unwrap();
        let index = self.tensors["top5_index"].to_dtype(DType::U32).unwrap();
        let log_probabilities = candle_nn::ops::log_softmax(&logits, 1).unwrap();
        let targets = ids.squeeze(0).unwrap().narrow(0, 1, tokens - 1).unwrap().unsqueeze(1).unwrap();
        let predicted = log_probabilities.narrow(0, 0, tokens - 1).unwrap().contiguous().unwrap();
        let nll = predicted.gather(&targets, 1).unwrap().neg().unwrap().squeeze(1).unwrap();
        Differences {
            last_logits: worst(&last, &self.tensors["logits_last"]),
            top5_logits: worst(&logits.gather(&index, 1).unwrap(), &self.tensors["top5_logit"]),
            nll: worst(&nll, &self.tensors["nll"]),
        }
    }

    /// Compares keys before rotation and values of the given layers, in half-split order. Returns the relative
    /// difference of each tensor.
    pub fn keys_and_values(&self) -> Vec<(String, f32)> {
        let snapshot = self.decoder.prefill(&self.ids, 512).unwrap();
        let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let mut found = Vec::new();
        for (kind, held) in [("k_pre_rope", &snapshot.keys), ("v", &snapshot.values)] {
            for (layer, rows) in held.iter().enumerate() {
                let name = format!("{kind}.{layer}");
                let Some(expected) = self.tensors.get(&name) else { continue };
                let rows = rows.squeeze(0).unwrap().transpose(0, 1).unwrap().flatten_from(1).unwrap();
                found.push((name, norm(&(&rows - expected).unwrap()) / norm(expected)));
            }
        }
        found
    }

    /// Generates greedily as many tokens as the JSON file `case` has after its prompt. The tokens and the text must be
    /// the same.
    pub fn check_greedy(&self, case: &Path) {
        let case: serde_json::Value = serde_json::from_slice(&fs::read(case).unwrap()).unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        let encoded = self.tokenizer.encode(case["prompt"].as_str().unwrap(), true).unwrap();
        assert_eq!(encoded, ids[..encoded.len()]);
        let snapshot = self.decoder.prefill(&encoded, 512).unwrap();
        let context = kvcsr_cache::SchemeContext::new(self.decoder.geometry());
        let scheme = kvcsr_cache::registry::build("dense", &context).unwrap();
        let mut caches = snapshot.fork(scheme.as_ref(), self.decoder.rotary()).unwrap();
        let limits =
            Limits { max_new_tokens: ids.len() - encoded.len(), min_new_tokens: 0, stop: self.tokenizer.stop_tokens() };
        let step = |_| ControlFlow::Continue(());
        let generated =
            self.decoder.generate(&snapshot.last_logits, &mut caches, Choice::Greedy, limits, step).unwrap();
        assert_eq!(generated.ids, ids[encoded.len()..]);
        let text = self.tokenizer.decode(&[encoded, generated.ids].concat(), true).unwrap();
        assert_eq!(text, case["text"].as_str().unwrap());
    }
}
