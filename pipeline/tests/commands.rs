//! `generate`, `logits`, `footprint`, `gpu-check` and `bench`, on a small model that the test writes if one is needed.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use candle_core::{DType, Device, Tensor};
use kvcsr_cache::{LayerCache, SchemeContext, registry};
use kvcsr_codec::{Dictionary, DictionaryGroup, DictionarySet, Kind};
use kvcsr_model::{Arch, HfCheckpoint, Logits};

const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "vocab_size": 4, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
    "eos_token_id": [3]}"#;
const TOKENIZER: &str = r#"{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
    "post_processor": null, "decoder": null, "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "d": 3},
    "merges": []}}"#;

/// A model of fixed, uneven weights over the letters a to d; d ends a text.
fn model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let arch = Arch::from_hf_config(CONFIG, Path::new("config.json")).unwrap();
    let weights: HashMap<String, Tensor> = arch
        .tensors()
        .into_iter()
        .enumerate()
        .map(|(salt, (name, shape))| {
            let n = shape.iter().product::<usize>();
            let values = (0..n).map(|i| ((i * 7919 + salt * 104_729) % 1000) as f32 / 500.0 - 1.0).collect();
            (name, Tensor::from_vec::<_, f32>(values, shape, &Device::Cpu).unwrap())
        })
        .collect();
    candle_core::safetensors::save(&weights, folder.path().join("model.safetensors")).unwrap();
    fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    fs::write(folder.path().join("tokenizer.json"), TOKENIZER).unwrap();
    folder
}

fn kvcsr(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvcsr")).args(args).current_dir(folder).output().unwrap()
}

fn refused(folder: &Path, args: &[&str]) -> String {
    let out = kvcsr(folder, args);
    assert!(!out.status.success(), "{args:?} was accepted");
    String::from_utf8(out.stderr).unwrap()
}

#[test]
fn logits_are_those_of_the_decoder() {
    let folder = model();
    let ids: Vec<u32> = (0..60).map(|i| i * i % 4).collect();
    fs::write(folder.path().join("ids.json"), serde_json::to_string(&ids).unwrap()).unwrap();
    let out = kvcsr(folder.path(), &["logits", "--model", ".", "--ids", "ids.json", "--out", "logits.safetensors"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let written = candle_core::safetensors::load(folder.path().join("logits.safetensors"), &Device::Cpu).unwrap();

    let decoder = HfCheckpoint::open(folder.path()).unwrap().decoder(&Device::Cpu).unwrap();
    let dense = registry::build("dense", &SchemeContext::new(decoder.geometry())).unwrap();
    let mut caches: Vec<Box<dyn LayerCache>> = (0..2).map(|layer| dense.empty(layer).unwrap()).collect();
    let expected = decoder.forward(&decoder.row(&ids).unwrap(), &mut caches, Logits::All).unwrap().squeeze(0).unwrap();
    let found = &written["logits"];
    assert_eq!((found.dims(), found.dtype(), written.len()), (&[60, 4][..], DType::F32, 1));
    assert_eq!(found.to_vec2::<f32>().unwrap(), expected.to_vec2::<f32>().unwrap());
}

#[test]
fn logits_take_a_dtype_and_a_device() {
    let folder = model();
    fs::write(folder.path().join("ids.json"), "[0, 1, 2, 0, 2]").unwrap();
    let args = ["logits", "--model", ".", "--ids", "ids.json", "--out", "out", "--device"];
    let run = |device: &str, dtype: &str| {
        let out = kvcsr(folder.path(), &[&args[..], &[device, "--dtype", dtype]].concat());
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let written = candle_core::safetensors::load(folder.path().join("out"), &Device::Cpu).unwrap();
        written["logits"].flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let exact = run("cpu", "f32");
    assert_eq!(run("cpu", "auto"), exact);
    let largest = exact.iter().fold(0f32, |top, x| top.max(x.abs()));
    for (dtype, tolerance) in [("f16", 0.01), ("bf16", 0.05)] {
        let near = run("cpu", dtype);
        let worst = near.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst > 0.0 && worst < tolerance * largest, "{dtype}: {worst} of {largest}");
    }
    let wrong = |device: &str, dtype: &str| refused(folder.path(), &[&args[..], &[device, "--dtype", dtype]].concat());
    assert!(wrong("cuda:9999", "auto").contains("device `cuda:9999`"));
    assert!(wrong("tpu", "auto").contains("expected auto, cpu or cuda:N"));
    assert!(wrong("cpu", "int8").contains("auto, f32, bf16, bf16-fast or f16"));
}

#[test]
fn logits_refuses_ids_that_are_none_and_leaves_nothing() {
    let folder = model();
    for (json, named) in [
        ("[0, 4]", "id 4 at index 1 is not below 4"),
        ("[]", "expected 1 to 64 ids"),
        ("[-1]", "expected a list of token ids"),
        ("{", "ids.json"),
    ] {
        fs::write(folder.path().join("ids.json"), json).unwrap();
        let error = refused(folder.path(), &["logits", "--model", ".", "--ids", "ids.json", "--out", "out"]);
        assert!(error.contains(named) && error.contains("ids.json"), "{error}");
    }
    assert!(!folder.path().join("out").exists());
    assert!(refused(folder.path(), &["logits", "--model", "x", "--ids", "i", "--out", "o"]).contains("model `x`"));
}

#[test]
fn generate_streams_text_and_prints_the_ledger() {
    let folder = model();
    let run = |extra: &[&str]| {
        let args = [&["generate", "--model", ".", "--scheme", "dense-f16", "--prompt", "abc"], extra].concat();
        let out = kvcsr(folder.path(), &args);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let greedy = run(&["--max-new", "5"]);
    let text = greedy.lines().next().unwrap();
    assert!(text.len() <= 5 && text.chars().all(|c| "abc".contains(c)), "{greedy}");
    for word in ["3 prompt tokens", "ended by", "16.00 nominal", "measured", "dense", "shared"] {
        assert!(greedy.contains(word), "{word} is missing in\n{greedy}");
    }
    let drawn = |seed: &str| {
        let all = run(&["--max-new", "9", "--temperature", "3", "--seed", seed]);
        all.lines().next().unwrap().to_owned()
    };
    let first = drawn("1");
    assert_eq!(drawn("1"), first);
    assert!(["2", "3", "4", "5"].iter().any(|seed| drawn(seed) != first));

    let chat = ["generate", "--model", ".", "--scheme", "dense", "--prompt", "b", "--chat"];
    assert!(refused(folder.path(), &chat).contains("no chat template"));
    fs::write(folder.path().join("chat_template.jinja"), "a{{ messages[0].content }}a").unwrap();
    let chat = kvcsr(folder.path(), &chat);
    assert!(String::from_utf8(chat.stdout).unwrap().contains("3 prompt tokens"));

    let dictionaries = refused(folder.path(), &["generate", "--model", ".", "--prompt", "a"]);
    assert!(dictionaries.contains("needs the dictionaries `neuraldict`"), "{dictionaries}");
    assert!(refused(folder.path(), &["generate", "--model", ".", "--scheme", "x", "--prompt", "a"]).contains("csr-S"));
}

#[test]
fn footprint_needs_no_weights_and_no_project() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["footprint", "--shape", "smollm2-135m-instruct", "--profile", "llama2-7b-chat", "--tokens", "500,1000"];
    let schemes = "dense-f16 kivi-2 csr-8+online csr-8+split(k=10,v=6)+int4";
    let out = kvcsr(folder.path(), &[&args[..], &["--schemes", schemes, "--out", "memory"]].concat());
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    for word in ["30 layers, 3 key-value heads of 64, 1024 atoms", "llama2-7b-chat: 32 layers", "online_atoms", "never"]
    {
        assert!(text.contains(word), "{word} is missing in\n{text}");
    }
    let csv = fs::read_to_string(folder.path().join("memory/footprint-length.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + 2 * 4 * 2);
    // 30 layers x 3 heads x 64 channels x 2 kinds x 1000 tokens x 2 bytes.
    assert!(csv.contains("smollm2-135m-instruct,dense-f16,1000,1,16.0,16.0,23040000,"), "{csv}");
    assert!(fs::read_to_string(folder.path().join("memory/footprint-length.svg")).unwrap().contains("kivi-2"));

    // Layers with a window, from the shape and from the command line: 16 bits, relative to the channels that f16 would hold.
    let args = ["--tokens", "2000", "--schemes", "dense-f16", "--out", "memory"];
    for (shape, more, words, row) in [
        ("gemma-3-270m", &[][..], "15 of them with a window of 512 tokens", "2000,1,16.0,16.0,14008320,"),
        (
            "smollm2-135m-instruct",
            &["--window", "100"],
            "30 of them with a window of 100 tokens",
            "2000,1,16.0,16.0,2304000,",
        ),
        (
            "smollm2-135m-instruct",
            &["--window", "100", "--window-layers", "15"],
            "15 of them with a window of 100 tokens",
            "2000,1,16.0,16.0,24192000,",
        ),
    ] {
        let out = kvcsr(folder.path(), &[&["footprint", "--shape", shape], &args[..], more].concat());
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(text.contains(words), "{text}{}", String::from_utf8_lossy(&out.stderr));
        let csv = fs::read_to_string(folder.path().join("memory/footprint-length.csv")).unwrap();
        assert!(csv.contains(&format!("{shape},dense-f16,{row}")), "{csv}");
    }

    let refused = |args: &[&str]| refused(folder.path(), &[&["footprint"], args].concat());
    assert!(refused(&["--window", "0"]).contains("at least 1 token"));
    assert!(
        refused(&["--window", "9", "--window-layers", "33"]).contains("33 layers with a window of 9 tokens; it has 32")
    );
    assert!(refused(&["--window-layers", "3"]).contains("--window <TOKENS>"));
    assert!(refused(&["--shape", "gpt-5"]).contains("there are smollm2-135m-instruct, llama2-7b-chat"));
    assert!(refused(&["--schemes", "dense-f16 gear-4"]).contains("scheme `gear-4` has no formula here"));
    assert!(refused(&["--schemes", "csr-8+nothing"]).contains("no part of a CSR scheme"));
    assert!(refused(&["--schemes", "csr-7"]).contains("an even number"));
    assert!(refused(&["--tokens", "9..3"]).contains("--tokens"));
    assert!(refused(&["--batch", "0"]).contains("--batch"));
    assert!(refused(&["--atoms", "70000"]).contains("1 to 65536"));
}

/// A dictionary set for the test's model with four atoms per group. Of the four groups, for keys and values of two layers, the last
/// `missing` are left out.
fn dictionaries(path: &Path, missing: usize, model_sha256: &str) {
    let atoms = (0..4 * 8).map(|at| if at % 9 == 0 { 1.0 } else { 0.0 }).collect();
    let dictionary = std::sync::Arc::new(Dictionary::new(8, atoms).unwrap());
    let group = |(kind, layer)| DictionaryGroup {
        kind,
        layers: vec![layer],
        chunks: 1,
        sparsity: 1,
        dictionary: dictionary.clone(),
    };
    let places = [(Kind::Key, 0), (Kind::Key, 1), (Kind::Value, 0), (Kind::Value, 1)];
    let groups = places.into_iter().take(4 - missing).map(group).collect();
    let provenance = [("model".to_owned(), "other".to_owned()), ("model_sha256".to_owned(), model_sha256.to_owned())];
    DictionarySet { head_dim: 8, groups, provenance: provenance.into() }.save(path).unwrap();
}

#[test]
fn generate_refuses_dictionaries_that_lack_a_layer_and_names_those_of_another_model() {
    let folder = model();
    let path = folder.path().join("set.safetensors");
    let args = ["generate", "--model", ".", "--scheme", "csr-2", "--prompt", "ab", "--max-new", "2"];
    let named = [&args[..], &["--dictionaries", "set.safetensors"]].concat();
    dictionaries(&path, 1, "0");
    let gap = refused(folder.path(), &named);
    for part in ["set.safetensors", "layer 1, value", "expected a dictionary, found none"] {
        assert!(gap.contains(part), "{gap}");
    }
    dictionaries(&path, 0, "0");
    assert!(kvcsr(folder.path(), &named).status.success());

    // Inside a clone the model is identified by its contents: a profile's set must belong to it; a file causes only a warning.
    let data = tempfile::tempdir().unwrap();
    let stage = data.path().join("runs/other/train");
    fs::create_dir_all(&stage).unwrap();
    dictionaries(&stage.join("dictionaries.safetensors"), 0, "0");
    fs::write(stage.join("manifest.json"), "{}").unwrap();
    let inside = |extra: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_kvcsr"))
            .args(["generate", "--model", folder.path().to_str().unwrap(), "--prompt", "ab"])
            .args(extra)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .env("KVCSR_DATA", data.path())
            .env("KVCSR_CACHE", data.path())
            .output()
            .unwrap()
    };
    let text = |out: &Output| String::from_utf8_lossy(&out.stderr).into_owned();
    let profile = inside(&["--profile", "other", "--scheme", "csr-2"]);
    assert!(
        !profile.status.success() && text(&profile).contains("runs/other/train/dictionaries"),
        "{}",
        text(&profile)
    );
    let file = inside(&["--scheme", "csr-2", "--dictionaries", path.to_str().unwrap()]);
    assert!(file.status.success() && text(&file).contains("another model's"), "{}", text(&file));
    // If the scheme needs no dictionaries, none are read.
    let dense = inside(&["--profile", "other", "--scheme", "dense"]);
    assert!(dense.status.success(), "{}", text(&dense));
}

#[test]
fn a_cache_of_tensors_is_asked_for_by_name() {
    let folder = model();
    dictionaries(&folder.path().join("set.safetensors"), 0, "0");
    let generate = |scheme: &str, attention: &str| {
        let args = ["generate", "--model", ".", "--scheme", scheme, "--dictionaries", "set.safetensors"];
        let rest = ["--prompt", "abcab", "--max-new", "12", "--temperature", "0", "--attention", attention];
        kvcsr(folder.path(), &[&args[..], &rest].concat())
    };
    let text = |out: Output| {
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let out = String::from_utf8(out.stdout).unwrap();
        out.lines().next().unwrap().to_owned()
    };
    for scheme in ["csr-2", "csr-2+window", "dense"] {
        assert_eq!(text(generate(scheme, "codes")), text(generate(scheme, "tensor")), "{scheme}");
    }
    let error = |scheme, attention| String::from_utf8(generate(scheme, attention).stderr).unwrap();
    assert!(error("csr-2", "gpu").contains("expected auto, codes or tensor"), "{}", error("csr-2", "gpu"));
    let stop = error("csr-2+stop", "tensor");
    assert!(stop.contains("`csr-2+stop`") && stop.contains("Take auto or codes"), "{stop}");
}

#[test]
fn the_check_of_a_gpu_can_be_rehearsed_on_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let out = kvcsr(folder.path(), &["gpu-check", "--device", "cpu", "--quick", "--out", "rows.csv"]);
    let printed = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{printed}{}", String::from_utf8_lossy(&out.stderr));
    let rows = fs::read_to_string(folder.path().join("rows.csv")).unwrap();
    for part in ["card", "conformance", "agreement", "encode", "decode", "training"] {
        let own: Vec<&str> = rows.lines().filter(|line| line.starts_with(&format!("{part},"))).collect();
        assert!(!own.is_empty() && own.iter().all(|line| line.ends_with(",true")), "{part}: {rows}");
    }
    let absent = refused(folder.path(), &["gpu-check", "--device", "cuda:77"]);
    assert!(absent.contains("device `cuda:77`"), "{absent}");
}

/// The parts of `bench`.
const PARTS: [&str; 5] = ["encode", "attend", "compress", "decode", "threads"];

#[test]
fn a_bench_keeps_the_rows_of_parts_that_it_does_not_measure() {
    let folder = model();
    // Blocks of 32 need heads of 32 channels.
    let config = CONFIG.replace("\"hidden_size\": 16", "\"hidden_size\": 64");
    let arch = Arch::from_hf_config(&config, Path::new("config.json")).unwrap();
    let zeros = |shape: Vec<usize>| Tensor::full(0.01f32, shape, &Device::Cpu).unwrap();
    let weights: HashMap<String, Tensor> =
        arch.tensors().into_iter().map(|(name, shape)| (name, zeros(shape))).collect();
    candle_core::safetensors::save(&weights, folder.path().join("model.safetensors")).unwrap();
    fs::write(folder.path().join("config.json"), config).unwrap();
    let markers = PARTS.map(|name| format!("<!-- BEGIN {name} -->\n<!-- END {name} -->\n"));
    fs::write(folder.path().join("page.md"), markers.concat()).unwrap();
    let bench = |parts: &[&str]| {
        let fixed = ["--quick", "--rounds", "1", "--model", ".", "--out", "rows.csv", "--page", "page.md"];
        let out = kvcsr(folder.path(), &[&["bench"], parts, &fixed].concat());
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        (fs::read_to_string(folder.path().join("rows.csv")).unwrap(), String::from_utf8(out.stdout).unwrap())
    };
    let (rows, printed) = bench(&[]);
    assert!(printed.contains("llama.cpp is left out: no Python"), "{printed}");
    for part in PARTS {
        assert!(rows.lines().any(|line| line.starts_with(&format!("{part},"))), "{part} {rows}");
    }
    let (again, _) = bench(&["attend"]);
    let others = |rows: &str| -> Vec<String> {
        rows.lines().filter(|line| !line.starts_with("attend,")).map(str::to_owned).collect()
    };
    assert_eq!(others(&again), others(&rows));
    let page = fs::read_to_string(folder.path().join("page.md")).unwrap();
    assert!(page.contains("| `csr+@2` |") && page.contains("PyTorch orthogonal matching pursuit"), "{page}");
    assert!(page.contains("| ., 64 tokens | `kivi-2` |"), "{page}");
    let unknown = refused(folder.path(), &["bench", "speed"]);
    assert!(unknown.contains("`speed` is not a part") && unknown.contains(&PARTS.join(", ")), "{unknown}");
}
