//! Checkpoint folders that the test writes itself, in every format: what is read equals what was written, and damaged
//! folders give errors that name the file.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use common::{dense, random_weights, tiny_arch, worst};
use kvcsr_model::{Arch, Checkpoint, Decoder, HfCheckpoint, Logits, TensorMap};

const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 64, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64}"#;
const INDEX: &str = "model.safetensors.index.json";

type Weights = HashMap<String, Tensor>;

/// A function that writes weights to a folder in one of the formats.
type Writer = fn(&Weights, &Path);

fn weights(dtype: DType) -> Weights {
    let weights = random_weights(&tiny_arch(), 31);
    weights.into_iter().map(|(name, tensor)| (name, tensor.to_dtype(dtype).unwrap())).collect()
}

/// The weights of each file. The upper layers are in the second file.
fn shards(weights: &Weights) -> [Weights; 2] {
    let (second, first) =
        weights.clone().into_iter().partition(|(name, _)| name.contains("layers.1") || name.contains("layers.2"));
    [first, second]
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    folder
}

fn write_sharded(folder: &Path, stem: &str, extension: &str, weights: &Weights, write: fn(&Weights, &Path)) {
    let mut map = serde_json::Map::new();
    for (at, shard) in shards(weights).iter().enumerate() {
        let file = format!("{stem}-0000{}-of-00002.{extension}", at + 1);
        write(shard, &folder.join(&file));
        map.extend(shard.keys().map(|name| (name.clone(), file.clone().into())));
    }
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    fs::write(folder.join(format!("{stem}.{extension}.index.json")), index.to_string()).unwrap();
}

fn write_safetensors(weights: &Weights, path: &Path) {
    candle_core::safetensors::save(weights, path).unwrap();
}

/// Writes a state dict as `torch.save` does: a zip of `data.pkl` and one file of raw bytes per tensor.
fn write_pickle(weights: &Weights, path: &Path) {
    let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut pickle = b"\x80\x02}(".to_vec();
    for (at, (name, tensor)) in weights.iter().enumerate() {
        pickle.extend(described(name, tensor, at));
        zip.start_file(format!("archive/data/{at}"), stored).unwrap();
        zip.write_all(&bytes(tensor)).unwrap();
    }
    pickle.extend(b"u.");
    zip.start_file("archive/data.pkl", stored).unwrap();
    zip.write_all(&pickle).unwrap();
    zip.finish().unwrap();
}

/// The name, and `_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`.
fn described(name: &str, tensor: &Tensor, storage: usize) -> Vec<u8> {
    let text = |s: &str| [b"X", &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat();
    let int = |i: usize| [b"J", &(i as u32).to_le_bytes()[..]].concat();
    let tuple = |items: Vec<Vec<u8>>| [b"(".to_vec(), items.concat(), b"t".to_vec()].concat();
    let class = match tensor.dtype() {
        DType::F32 => b"ctorch\nFloatStorage\n".to_vec(),
        DType::BF16 => b"ctorch\nBFloat16Storage\n".to_vec(),
        _ => b"ctorch\nLongStorage\n".to_vec(),
    };
    let place = [class, text(&storage.to_string()), text("cpu"), int(tensor.elem_count())].concat();
    let shape = tensor.dims().iter().map(|&d| int(d)).collect();
    let strides = tensor.stride().iter().map(|&s| int(s)).collect();
    let arguments = tuple(vec![
        [tuple(vec![text("storage"), place]), b"Q".to_vec()].concat(),
        int(0),
        tuple(shape),
        tuple(strides),
        b"\x89ccollections\nOrderedDict\n)R".to_vec(),
    ]);
    [text(name), b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), arguments, b"R".to_vec()].concat()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    let flat = tensor.flatten_all().unwrap();
    match tensor.dtype() {
        DType::F32 => flat.to_vec1::<f32>().unwrap().into_iter().flat_map(f32::to_le_bytes).collect(),
        DType::I64 => flat.to_vec1::<i64>().unwrap().into_iter().flat_map(i64::to_le_bytes).collect(),
        // If an f32 was rounded to bf16, its upper half is the bf16.
        _ => {
            let wide = flat.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
            wide.into_iter().flat_map(|x| x.to_le_bytes()[2..].to_vec()).collect()
        }
    }
}

fn logits(decoder: &Decoder) -> Tensor {
    let ids = decoder.row(&[3, 1, 4, 1, 5, 9, 2, 6]).unwrap();
    decoder.forward(&ids, &mut dense(decoder), Logits::All).unwrap()
}

fn load(folder: &Path) -> Result<Decoder, String> {
    HfCheckpoint::open(folder).and_then(|checkpoint| checkpoint.decoder(&Device::Cpu)).map_err(|e| e.to_string())
}

#[test]
fn every_format_gives_the_weights_that_were_written() {
    for dtype in [DType::F32, DType::BF16] {
        let weights = weights(dtype);
        let expected = logits(&Decoder::new(tiny_arch(), &TensorMap(weights.clone()), &Device::Cpu).unwrap());
        type WriteAll = fn(&Weights, &Path);
        let formats: [(&str, WriteAll); 4] = [
            ("safetensors", |w, to| write_safetensors(w, &to.join("model.safetensors"))),
            ("sharded safetensors", |w, to| write_sharded(to, "model", "safetensors", w, write_safetensors)),
            ("PyTorch", |w, to| write_pickle(w, &to.join("pytorch_model.bin"))),
            ("sharded PyTorch", |w, to| write_sharded(to, "pytorch_model", "bin", w, write_pickle)),
        ];
        for (format, write) in formats {
            let folder = folder();
            write(&weights, folder.path());
            let read = load(folder.path()).unwrap_or_else(|e| panic!("{format}: {e}"));
            assert_eq!(worst(&logits(&read), &expected), 0.0, "{format}, {dtype:?}");
            assert_eq!(HfCheckpoint::open(folder.path()).unwrap().arch(), &tiny_arch());
        }
    }
}

#[test]
fn half_precision_weights_stay_near_f32() {
    let exact = logits(&Decoder::new(tiny_arch(), &TensorMap(weights(DType::F32)), &Device::Cpu).unwrap());
    for (dtype, most) in [(DType::F16, 0.01), (DType::BF16, 0.08)] {
        let rounded = logits(&Decoder::new(tiny_arch(), &TensorMap(weights(dtype)), &Device::Cpu).unwrap());
        let difference = worst(&rounded, &exact);
        eprintln!("{dtype:?} weights: largest logit difference {difference:.2e}");
        assert!(difference > 0.0 && difference < most, "{dtype:?}: {difference}");
    }
}

#[test]
fn damaged_indexes_are_named() {
    let change = |change: &dyn Fn(&Path)| {
        let folder = folder();
        write_sharded(folder.path(), "model", "safetensors", &weights(DType::F32), write_safetensors);
        change(folder.path());
        load(folder.path()).err().unwrap()
    };
    let rewrite = |from: &str, to: &str| {
        change(&|folder| {
            let index = fs::read_to_string(folder.join(INDEX)).unwrap();
            assert!(index.contains(from), "{index}");
            fs::write(folder.join(INDEX), index.replace(from, to)).unwrap();
        })
    };
    let second = "model-00002-of-00002.safetensors";
    let norm = "\"model.norm.weight\":\"model-00001-of-00002.safetensors\"";
    for (error, named) in [
        (change(&|folder| fs::remove_file(folder.join(second)).unwrap()), second),
        (change(&|folder| fs::write(folder.join(INDEX), "{").unwrap()), "malformed checkpoint index"),
        (change(&|folder| fs::write(folder.join(INDEX), "{}").unwrap()), "no object `weight_map`"),
        (change(&|folder| fs::write(folder.join(INDEX), b"\xff\xfe").unwrap()), INDEX),
        (change(&|folder| fs::remove_file(folder.join(INDEX)).unwrap()), "a folder without weights"),
        (rewrite(norm, "\"model.norm.weight\":\"../secret\""), "not a file name"),
        (rewrite(norm, "\"model.norm.weight\":7"), "not a file name"),
        (rewrite(norm, &format!("\"model.norm.weight\":\"{second}\"")), "missing tensors: model.norm.weight"),
        (rewrite("\"model.norm.weight\"", "\"model.norm.bias\""), "missing tensors: model.norm.bias"),
    ] {
        assert!(error.contains(named), "{named}: {error}");
    }
}

#[test]
fn truncated_files_are_errors_that_name_the_file() {
    let cases: [(&str, Writer); 2] = [("model.safetensors", write_safetensors), ("pytorch_model.bin", write_pickle)];
    for (name, write) in cases {
        let folder = folder();
        let path = folder.path().join(name);
        write(&weights(DType::F32), &path);
        let whole = fs::read(&path).unwrap();
        for length in (0..whole.len()).step_by(whole.len() / 23).chain([1, 7, 8, 9, whole.len() - 1]) {
            fs::write(&path, &whole[..length]).unwrap();
            let error = load(folder.path()).err().unwrap_or_else(|| panic!("{length} of {} bytes", whole.len()));
            assert!(error.contains(name), "{length}: {error}");
        }
    }
}

#[test]
fn damaged_headers_and_pickles_return() {
    let cases: [(&str, Writer); 2] = [("model.safetensors", write_safetensors), ("pytorch_model.bin", write_pickle)];
    for (name, write) in cases {
        let folder = folder();
        let path = folder.path().join(name);
        write(&weights(DType::F32), &path);
        let whole = fs::read(&path).unwrap();
        // A safetensors header is at the start of the file. A pickle and the zip's directory are at the end.
        let header = if name.ends_with(".bin") { whole.len() - 12_000..whole.len() } else { 0..3_000 };
        for at in header.step_by(29) {
            for byte in [0, b'(', 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = byte;
                fs::write(&path, &damaged).unwrap();
                let _ = load(folder.path());
            }
        }
        if name == "model.safetensors" {
            for claim in [u64::MAX, 1 << 60, 1 << 40] {
                let mut damaged = whole.clone();
                damaged[..8].copy_from_slice(&claim.to_le_bytes());
                fs::write(&path, &damaged).unwrap();
                assert!(load(folder.path()).err().unwrap().contains("malformed safetensors"));
            }
        }
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let cases: [(&str, Writer); 2] = [("model.safetensors", write_safetensors), ("pytorch_model.bin", write_pickle)];
    for (file, write) in cases {
        let refused = |change: &dyn Fn(&mut Weights), named: &str| {
            let folder = folder();
            let mut weights = weights(DType::F32);
            change(&mut weights);
            write(&weights, &folder.path().join(file));
            let error = load(folder.path()).err().unwrap();
            assert!(error.contains(named) && error.contains(file), "{error}");
        };
        let norm = "model.norm.weight";
        refused(&|w| drop(w.remove(norm)), "missing tensors: model.norm.weight");
        refused(&|w| drop(w.insert("model.extra".to_owned(), w[norm].clone())), "without a place");
        let long = Tensor::ones(33, DType::F32, &Device::Cpu).unwrap();
        refused(&|w| drop(w.insert(norm.to_owned(), long.clone())), "expected shape [32], found [33]");
        let whole = Tensor::ones(32, DType::I64, &Device::Cpu).unwrap();
        refused(&|w| drop(w.insert(norm.to_owned(), whole.clone())), "dtype `I64 of tensor model.norm.weight`");
    }
}

#[test]
fn a_pickle_is_data_and_runs_nothing() {
    let folder = folder();
    let (weights, path) = (weights(DType::F32), folder.path().join("pytorch_model.bin"));
    let marker = folder.path().join("ran");
    let mut zip = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    let command = format!("touch {}", marker.display());
    let mut pickle = b"\x80\x02cposix\nsystem\n(X".to_vec();
    pickle.extend((command.len() as u32).to_le_bytes());
    pickle.extend(command.as_bytes());
    pickle.extend(b"tR.");
    zip.start_file("archive/data.pkl", zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(&pickle).unwrap();
    zip.finish().unwrap();
    assert!(load(folder.path()).err().unwrap().contains("no tensors in it"));
    assert!(!marker.exists());
    write_pickle(&weights, &path);
    assert_eq!(HfCheckpoint::open(folder.path()).unwrap().names().len(), weights.len());
}

/// The configuration in this file describes the architecture for which the weights are drawn.
#[test]
fn the_configuration_is_the_tiny_architecture() {
    assert_eq!(Arch::from_hf_config(CONFIG, Path::new("config.json")).unwrap(), tiny_arch());
}

#[test]
fn tokenizers_and_configurations_that_are_no_text_are_named() {
    let folder = folder();
    write_safetensors(&weights(DType::F32), &folder.path().join("model.safetensors"));
    let at = |name: &str| folder.path().join(name);
    let refused = || HfCheckpoint::open(folder.path()).and_then(|c| c.tokenizer()).err().unwrap().to_string();
    for damaged in [&b"{\"model\": \"\xff\xfe\"}"[..], b"", b"{", b"[]", b"\xef\xbb\xbf\x00"] {
        fs::write(at("tokenizer.json"), damaged).unwrap();
        assert!(refused().contains("tokenizer.json"), "{}", refused());
    }
    fs::remove_file(at("tokenizer.json")).unwrap();
    fs::write(at("tokenizer.model"), b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f").unwrap();
    assert!(refused().contains("tokenizer.model"), "{}", refused());
    for damaged in [&b"\xff"[..], b"{"] {
        fs::write(at("tokenizer_config.json"), damaged).unwrap();
        assert!(refused().contains("tokenizer_config.json"), "{}", refused());
    }
    fs::write(at("config.json"), b"\xff\xfe").unwrap();
    assert!(refused().contains("config.json"), "{}", refused());
}
