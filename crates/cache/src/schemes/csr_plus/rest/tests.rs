#![allow(clippy::unwrap_used)]
use std::path::Path;

use candle_core::DType;
use proptest::prelude::*;

use super::*;
use crate::SchemeContext;
use crate::conformance::{Inputs, Setting};

const GEOMETRY: Geometry = Geometry { layers: 2, kv_heads: 2, head_dim: 32 };

fn tables() -> CodebookSet {
    SchemeContext::untrained(GEOMETRY, 16).codebooks(TABLES, "csr+@1").unwrap().clone()
}

fn prompt(tokens: usize) -> PrefillSnapshot {
    let x = Inputs::random(Setting { batch: 1, heads: 2, kv_heads: 2, head_dim: 32 }, tokens).unwrap();
    PrefillSnapshot {
        keys: vec![x.k.clone(), x.v.clone()],
        values: vec![x.v, x.k],
        queries: Vec::new(),
        last_logits: Tensor::zeros((1, 0), DType::F32, &Device::Cpu).unwrap(),
    }
}

fn error(a: &Tensor, b: &Tensor) -> f32 {
    let of = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    of(&(a - b).unwrap()) / of(a)
}

#[test]
fn more_bits_restore_more_and_first_tokens_are_exact_to_f16() {
    let (set, x) = (tables(), prompt(200));
    let mut last = (f32::INFINITY, 0);
    for bits in [0.5, 1.0, 2.0, 4.0, 7.0] {
        let codec = RestCodec::new(&set, GEOMETRY, bits).unwrap();
        let code = codec.encode(1, &x.keys[1], &x.values[1]).unwrap();
        let (keys, values) = codec.decode(1, 200, &code).unwrap();
        let off = error(&x.keys[1], &keys).max(error(&x.values[1], &values));
        assert!(off < last.0 && code.len() > last.1, "{bits}: {off} {}", code.len());
        last = (off, code.len());
        let first = |x: &Tensor| x.narrow(2, 0, SINKS).unwrap();
        assert!(error(&first(&x.keys[1]), &first(&keys)) < 1e-6);
    }
    assert!(last.0 < 1e-3, "{}", last.0);
}

#[test]
fn prompts_of_a_few_tokens_come_back() {
    let set = tables();
    let codec = RestCodec::new(&set, GEOMETRY, 3.0).unwrap();
    for tokens in [1, 3, 4, 5, 36, 37] {
        let x = prompt(tokens);
        let code = codec.encode(0, &x.keys[0], &x.values[0]).unwrap();
        let (keys, values) = codec.decode(0, tokens, &code).unwrap();
        assert!(error(&x.keys[0], &keys) < 0.2 && error(&x.values[0], &values) < 0.2, "{tokens}");
    }
}

#[test]
fn what_cannot_be_coded_is_refused_by_name() {
    let set = tables();
    let codec = RestCodec::new(&set, GEOMETRY, 1.0).unwrap();
    let x = prompt(20);
    let refused = |keys: &Tensor, values: &Tensor| codec.encode(0, keys, values).unwrap_err().to_string();
    assert!(refused(&x.keys[0], &x.values[0].narrow(2, 0, 19).unwrap()).contains("values"));
    let bad = (&x.keys[0] * f64::NAN).unwrap();
    assert!(refused(&bad, &x.values[0]).contains("token 0"));
    assert!(codec.decode(0, 20, &[0; 8]).is_err());
    for bits in [0.0, 9.0, f64::NAN] {
        assert!(RestCodec::new(&set, GEOMETRY, bits).map(drop).unwrap_err().to_string().contains("0.1 to 8"));
    }
    let other = Geometry { layers: 3, ..GEOMETRY };
    assert!(RestCodec::new(&set, other, 1.0).is_err());
}

fn written(path: &Path) -> (CodebookSet, PrefillSnapshot, Vec<u8>) {
    let (set, x) = (tables(), prompt(50));
    let ids: Vec<u32> = (0..51).collect();
    let codec = RestCodec::new(&set, GEOMETRY, 2.0).unwrap();
    let bytes = PromptFile::write(path, &codec, "this model", &ids, &x).unwrap();
    let file = std::fs::read(path).unwrap();
    assert_eq!(file.len(), bytes);
    (set, x, file)
}

#[test]
fn a_file_is_read_back_and_another_models_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prompt.kvc");
    let (set, x, _) = written(&path);
    let file = PromptFile::open(&path).unwrap();
    assert_eq!((file.ids().len(), file.header().tokens), (51, 50));
    let restored = file.restore(&set, GEOMETRY).unwrap();
    let codec = RestCodec::new(&set, GEOMETRY, 2.0).unwrap();
    for layer in 0..2 {
        let code = codec.encode(layer, &x.keys[layer], &x.values[layer]).unwrap();
        let (keys, values) = codec.decode(layer, 50, &code).unwrap();
        assert_eq!(error(&keys, &restored.keys[layer]), 0.0);
        assert_eq!(error(&values, &restored.values[layer]), 0.0);
    }
    assert!(file.expect_model("this model").is_ok());
    let refused = file.expect_model("that model").unwrap_err().to_string();
    assert!(refused.contains("that model") && refused.contains("this model"), "{refused}");
    let other = Geometry { kv_heads: 4, ..GEOMETRY };
    assert!(file.restore(&set, other).unwrap_err().to_string().contains("4 key-value heads"));
    let mut changed = tables();
    let metric = kvcsr_codec::Table::new(&[128], &[0.5; 128]).unwrap();
    changed.insert(0, Kind::Key, super::super::METRIC, metric);
    assert!(file.restore(&changed, GEOMETRY).unwrap_err().to_string().contains("tables"));
}

#[test]
fn a_file_that_was_cut_or_changed_anywhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prompt.kvc");
    let (set, _, whole) = written(&path);
    let other = dir.path().join("other.kvc");
    let reads = |bytes: &[u8]| {
        std::fs::write(&other, bytes).unwrap();
        PromptFile::open(&other).and_then(|file| file.restore(&set, GEOMETRY)).map(drop)
    };
    reads(&whole).unwrap();
    for at in (0..whole.len()).step_by(7).chain(0..24) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        assert!(reads(&bytes).is_err(), "changed at {at}");
        assert!(reads(&whole[..at]).is_err(), "cut at {at}");
    }
    // A header of length zero, in a file that ends inside the digest.
    assert!(reads(&[&whole[..8], &[0; 22]].concat()).is_err());
    assert!(reads(&[&whole[..], &[0]].concat()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_give_some_numbers(bytes in proptest::collection::vec(any::<u8>(), 0..2000), tokens in 1usize..40) {
        let codec = RestCodec::new(&tables(), GEOMETRY, 1.0).unwrap();
        let _ = codec.decode(0, tokens, &bytes);
    }
}
