//! Files as users have them. They are read as by other programs, or refused with an error that says what they are and
//! what to do. The files are in `data/cases`. `data/cases.py` contains the expected results.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use common::{dense, random_weights, tiny_arch, worst};
use kvcsr_model::{Checkpoint, Decoder, Gguf, HfCheckpoint, Logits, Precision, TensorMap};

fn cases(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cases").join(name)
}

fn expected() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(cases("expected.safetensors"), &Device::Cpu).unwrap()
}

fn logits(decoder: &Decoder) -> Tensor {
    let ids = expected()["ids"].to_dtype(DType::U32).unwrap().unsqueeze(0).unwrap();
    decoder.forward(&ids, &mut dense(decoder), Logits::All).unwrap().squeeze(0).unwrap()
}

fn refused(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    let opened = if path.is_dir() {
        HfCheckpoint::open(path).and_then(|checkpoint| checkpoint.decoder(&Device::Cpu))
    } else {
        Gguf::open(path).and_then(|file| file.decoder(&Device::Cpu))
    };
    opened.err().unwrap_or_else(|| panic!("{} was read", path.display())).to_string()
}

#[test]
fn rope_scaling_added_beside_rope_parameters_counts() {
    let folder = cases("rope-scaling-beside-parameters");
    let checkpoint = HfCheckpoint::open(&folder).unwrap();
    assert_eq!(checkpoint.arch().max_positions, 1024);
    let difference =
        worst(&logits(&checkpoint.decoder(&Device::Cpu).unwrap()), &expected()["rope-scaling-beside-parameters"]);
    assert!(difference < 1e-4, "{difference}");

    // The same model in the older spelling.
    let old = tempfile::tempdir().unwrap();
    fs::copy(folder.join("model.safetensors"), old.path().join("model.safetensors")).unwrap();
    fs::copy(cases("rope-scaling-alone/config.json"), old.path().join("config.json")).unwrap();
    assert_eq!(HfCheckpoint::open(old.path()).unwrap().arch(), checkpoint.arch());
}

#[test]
fn auto_keeps_mixed_checkpoints_in_the_widest_dtype() {
    let checkpoint = HfCheckpoint::open(cases("mixed-dtypes")).unwrap();
    assert_eq!(checkpoint.dtype(), DType::F32);
    let decoder = checkpoint.decoder_in(&Device::Cpu, Precision::Auto.resolve(checkpoint.dtype())).unwrap();
    let difference = worst(&logits(&decoder), &expected()["mixed-dtypes"]);
    assert!(difference < 1e-4, "{difference}");
}

#[test]
fn vectors_do_not_widen_and_two_halves_do() {
    let with = |change: &dyn Fn(&str, DType) -> DType| {
        let weights = random_weights(&tiny_arch(), 3).into_iter();
        let cast = |(name, tensor): (String, Tensor)| {
            let dtype = change(&name, if tensor.rank() > 1 { DType::BF16 } else { DType::F32 });
            (name, tensor.to_dtype(dtype).unwrap())
        };
        TensorMap(weights.map(cast).collect()).dtype()
    };
    assert_eq!(with(&|_, dtype| dtype), DType::BF16);
    let one = |name: &str| name == "model.layers.2.mlp.up_proj.weight";
    assert_eq!(with(&|name, dtype| if one(name) { DType::F16 } else { dtype }), DType::F32);
    assert_eq!(with(&|name, dtype| if name == "lm_head.weight" { DType::F32 } else { dtype }), DType::F32);
    assert_eq!(with(&|name, dtype| if name.ends_with("norm.weight") { DType::BF16 } else { dtype }), DType::BF16);
}

#[test]
fn four_bit_tables_are_restored_as_gguf_py_does() {
    let expected = expected();
    for name in ["iq4_nl", "mxfp4"] {
        let file = Gguf::open(cases(&format!("quantised-gguf/{name}.gguf"))).unwrap();
        let checkpoint = file.checkpoint().unwrap();
        let weights = expected.iter().filter_map(|(key, value)| Some((key.strip_prefix(&format!("{name}."))?, value)));
        let mut compared = 0;
        for (gguf, values) in weights {
            let own = checkpoint.names().into_iter().find(|own| checkpoint.name_in_file(own) == gguf).unwrap();
            let restored = checkpoint.tensor(&own).unwrap();
            if !own.contains("q_proj") && !own.contains("k_proj") {
                assert_eq!(worst(&restored, values), 0.0, "{name}: {gguf}");
                compared += 1;
            }
        }
        assert!(compared > 0, "{name}");
        assert_eq!(checkpoint.dtype(), DType::F32);
        assert!(logits_of(&file).to_vec1::<f32>().unwrap().iter().all(|x| x.is_finite()));
    }
}

fn logits_of(file: &Gguf) -> Tensor {
    let decoder = file.decoder(&Device::Cpu).unwrap();
    let ids = decoder.row(&[5, 7, 9]).unwrap();
    decoder.forward(&ids, &mut dense(&decoder), Logits::Last).unwrap().squeeze(0).unwrap()
}

/// Replaces the type number of IQ4_NL in the file by another one.
#[test]
fn types_that_are_not_read_are_named_with_the_tensor_and_what_is() {
    let whole = fs::read(cases("quantised-gguf/iq4_nl.gguf")).unwrap();
    let name = b"blk.0.ffn_gate.weight";
    let at = whole.windows(name.len()).position(|bytes| bytes == name).unwrap() + name.len();
    let dimensions = u32::from_le_bytes(whole[at..at + 4].try_into().unwrap()) as usize;
    let kind = at + 4 + 8 * dimensions;
    assert_eq!(whole[kind..kind + 4], 20u32.to_le_bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    for (number, named) in [
        (16u32, "IQ2_XXS"),
        (18, "IQ3_XXS"),
        (21, "IQ3_S"),
        (29, "IQ1_M"),
        (34, "TQ1_0"),
        (40, "NVFP4"),
        (15, "Q8_K"),
        (24, "I8"),
        (99, "type 99"),
    ] {
        let mut changed = whole.clone();
        changed[kind..kind + 4].copy_from_slice(&number.to_le_bytes());
        fs::write(&path, changed).unwrap();
        let error = refused(&path);
        let expected = format!(
            "m.gguf: quantisation `{named} of tensor blk.0.ffn_gate.weight` is not supported (supported: F32, "
        );
        assert!(
            error.contains(&expected) && error.contains("IQ4_NL") && error.contains("another quantisation"),
            "{error}"
        );
    }
}

#[test]
fn a_split_model_is_read_from_its_first_part() {
    let first = cases("split-gguf/m-00001-of-00002.gguf");
    let second = cases("split-gguf/m-00002-of-00002.gguf");
    let file = Gguf::open(&first).unwrap();
    assert_eq!(file.files(), [first.clone(), second.clone()]);
    assert_eq!(logits_of(&file).elem_count(), file.arch().unwrap().vocab);

    let error = refused(&second);
    assert!(
        error.contains("part 2 of 2") && error.contains("give ") && error.contains("m-00001-of-00002.gguf"),
        "{error}"
    );
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("m-00001-of-00002.gguf");
    fs::copy(&first, &alone).unwrap();
    let error = refused(&alone);
    assert!(error.contains("part 1 of 2") && error.contains("m-00002-of-00002.gguf is not beside it"), "{error}");
    // The second part is replaced by a copy of the first, or by a whole model.
    fs::copy(&first, folder.path().join("m-00002-of-00002.gguf")).unwrap();
    assert!(refused(&alone).contains("expected part 2 of 2, found part 1 of 2"));
    fs::copy(cases("quantised-gguf/mxfp4.gguf"), folder.path().join("m-00002-of-00002.gguf")).unwrap();
    assert!(refused(&alone).contains("expected part 2 of 2, found none"));
    let renamed = folder.path().join("model.gguf");
    fs::copy(&first, &renamed).unwrap();
    assert!(refused(&renamed).contains("name the files NAME-00001-of-00002.gguf"), "{}", refused(&renamed));
    let renamed = folder.path().join("other.gguf");
    fs::copy(&second, &renamed).unwrap();
    assert!(refused(&renamed).contains("-00001-of-00002.gguf"), "{}", refused(&renamed));
}

#[test]
fn quantised_folders_are_refused_by_their_method() {
    for (folder, method) in [("fp8", "fp8"), ("bnb-int8", "bitsandbytes"), ("gptq", "gptq")] {
        let error = refused(cases("quantised-folders").join(folder));
        let expected = format!("config.json: quantization_config: quant_method `{method}` is not supported");
        assert!(error.contains(&expected) && error.contains("take the unquantised checkpoint or a GGUF"), "{error}");
    }
}

/// File names and contents.
type Files<'a> = &'a [(&'a str, &'a [u8])];

/// A folder with the given files.
fn folder(files: Files<'_>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 1234\n";

#[test]
fn folders_that_are_something_else_are_recognised() {
    let config = fs::read(cases("rope-scaling-alone/config.json")).unwrap();
    let config = config.as_slice();
    let marked = [b"\xef\xbb\xbf", config].concat();
    let utf16: Vec<u8> =
        String::from_utf8(config.to_vec()).unwrap().encode_utf16().flat_map(u16::to_le_bytes).collect();
    let marked16 = [&b"\xff\xfe"[..], &utf16].concat();
    let mlx = String::from_utf8(config.to_vec()).unwrap().replacen('{', "{\"quantization\": {\"bits\": 4},", 1);
    let adapter: &[u8] = br#"{"base_model_name_or_path": "org/base", "peft_type": "LORA"}"#;
    let cases: &[(Files<'_>, &[&str])] = &[
        (&[("adapter_config.json", adapter)], &["an adapter", "org/base", "merge_and_unload"]),
        (&[("config.json", config), ("adapter_config.json", adapter)], &["an adapter", "org/base"]),
        (
            &[("a.gguf", b"GGUF"), ("b.gguf", b"GGUF")],
            &["GGUF files (a.gguf, b.gguf)", "give the file itself", "a.gguf"],
        ),
        (&[("config.json", config), ("a.gguf", b"GGUF")], &["a.gguf"]),
        (&[("params.json", b"{}"), ("consolidated.00.pth", b"")], &["params.json", "converted for transformers"]),
        (&[("config.json", config)], &["a folder without weights", "model.safetensors"]),
        (
            &[("config.json", config), ("model-00001-of-00002.safetensors", b"")],
            &["it holds model-00001-of-00002.safetensors", "index"],
        ),
        (&[("config.json", config), ("quantize_config.json", b"{}")], &["quantize_config.json", "GGUF"]),
        (&[("config.json", mlx.as_bytes())], &["quantization `{\"bits\":4}`"]),
        (&[("config.json", POINTER)], &["config.json: expected a text file, found a Git LFS pointer", "git lfs pull"]),
        (
            &[("config.json", config), ("model.safetensors", POINTER)],
            &["model.safetensors: expected a safetensors file", "git lfs pull"],
        ),
        (
            &[("config.json", config), ("pytorch_model.bin", POINTER)],
            &["pytorch_model.bin: expected a PyTorch file", "git lfs pull"],
        ),
        (
            &[("config.json", config), ("model.safetensors.index.json", POINTER)],
            &["index.json: expected a text file", "git lfs pull"],
        ),
        (&[("config.json", config), ("model.safetensors", b"GGUF\x03\0\0\0")], &["model.safetensors", "a GGUF file"]),
        (&[("config.json", config), ("model.safetensors", b"<!DOCTYPE html>")], &["a web page", "/resolve/"]),
        (&[("config.json", &utf16)], &["config.json", "UTF-16", "save it as UTF-8"]),
        (&[("config.json", &marked16)], &["config.json", "UTF-16", "save it as UTF-8"]),
        (&[("config.json", b"{\"a\": \"\xff\"}")], &["config.json", "UTF-8"]),
        (&[("config.json", b"")], &["config.json", "an empty file"]),
        // A byte-order mark before UTF-8 is skipped. So the error is about the missing weights.
        (&[("config.json", &marked)], &["a folder without weights"]),
    ];
    for (files, named) in cases {
        let error = refused(folder(files).path());
        let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
        assert!(named.iter().all(|named| error.contains(named)), "{names:?}: {error}");
    }
}

#[test]
fn files_that_are_no_gguf_are_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    for (bytes, named) in [
        (POINTER, "found a Git LFS pointer"),
        (b"<html>", "found a web page"),
        (b"\x10\0\0\0\0\0\0\0{\"a\": 1}", "found a safetensors file"),
        (b"PK\x03\x04", "found a zip archive"),
        (b"lmgg", "found a GGML file"),
        (b"", "found an empty file"),
        (b"GGUF\0\0\0\x03", "big-endian"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = refused(&path);
        assert!(error.contains("m.gguf: ") && error.contains(named), "{error}");
    }
    // A file that was cut by bytes: the first piece has a header, the others do not.
    let whole = fs::read(cases("quantised-gguf/mxfp4.gguf")).unwrap();
    let piece = folder.path().join("m.gguf.part2of2");
    fs::write(&piece, &whole[whole.len() / 2..]).unwrap();
    assert!(refused(&piece).contains("join the pieces"), "{}", refused(&piece));
}

#[test]
fn missing_tensors_have_the_names_of_the_file() {
    let whole = fs::read(cases("quantised-gguf/mxfp4.gguf")).unwrap();
    let name = b"blk.0.attn_norm.weight";
    let at = whole.windows(name.len()).position(|bytes| bytes == name).unwrap();
    let mut changed = whole.clone();
    changed[at..at + name.len()].copy_from_slice(b"blk.0.attn_worm.weight");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    fs::write(&path, changed).unwrap();
    assert!(refused(&path).contains("missing tensors: blk.0.attn_norm.weight"), "{}", refused(&path));
}
