//! Tests of shards and dictionary sets: round trips, and files with wrong content.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{dictionary, identity, normal};
use half::f16;
use kvcsr_codec::{CodecError, Dictionary, DictionaryGroup, DictionarySet, Kind, Shard, ShardHeader, ShardWriter};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Builds a safetensors file from its parts, even if they are wrong.
fn raw(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    let length = header.len() as u64;
    [&length.to_le_bytes(), header.as_bytes(), data].concat()
}

fn names(dir: &TempDir) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.path()).unwrap();
    entries.map(|e| e.unwrap().file_name().into()).collect()
}

fn sorted(dir: &TempDir) -> Vec<String> {
    let mut all: Vec<String> = names(dir).into_iter().map(|name| name.to_str().unwrap().to_owned()).collect();
    all.sort();
    all
}

/// The text of the error. It must name the file.
#[track_caller]
fn complaint<T>(path: &Path, result: Result<T, CodecError>) -> String {
    let text = result.err().unwrap().to_string();
    assert!(text.contains(path.to_str().unwrap()), "no file in: {text}");
    text
}

fn header(tokens: usize) -> ShardHeader {
    ShardHeader {
        layer: 5,
        kind: Kind::Value,
        tokens,
        heads: 2,
        head_dim: 6,
        extra: BTreeMap::from([("model".to_owned(), "tiny \"quoted\"".to_owned())]),
    }
}

fn write_shard(path: &Path, vectors: &[f32]) {
    let mut writer = ShardWriter::create(path, header(vectors.len() / 12)).unwrap();
    let cut = vectors.len() / 24 * 12;
    writer.append(&vectors[..cut]).unwrap();
    writer.append(&vectors[cut..]).unwrap();
    writer.finish().unwrap();
}

#[test]
fn shard_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("05.value.safetensors");
    let vectors = normal(101 * 12, 1);
    write_shard(&path, &vectors);
    assert_eq!(names(&dir), [path.file_name().unwrap()]);
    let expected: Vec<f32> = vectors.iter().map(|&x| f16::from_f32(x).to_f32()).collect();

    let shard = Shard::open(&path).unwrap();
    assert_eq!(shard.header(), &header(101));
    assert_eq!((shard.layer(), shard.kind()), (5, Kind::Value));
    assert_eq!((shard.tokens(), shard.heads(), shard.head_dim()), (101, 2, 6));
    for width in [1, 2, 3, 6] {
        let rows = shard.rows(width);
        assert_eq!(rows * width, vectors.len());
        let mut out = vec![f32::NAN; vectors.len()];
        shard.read(width, 0..rows, &mut out).unwrap();
        assert_eq!(out, expected);
        let picked = [rows - 1, 0, 7, 7];
        let mut out = vec![f32::NAN; 4 * width];
        shard.gather(width, &picked, &mut out).unwrap();
        for (row, out) in picked.iter().zip(out.chunks(width)) {
            assert_eq!(out, &expected[row * width..][..width]);
        }
        let mut out = vec![f32::NAN; 3 * width];
        shard.read(width, 4..7, &mut out).unwrap();
        assert_eq!(out, &expected[4 * width..7 * width]);

        let beyond = shard.read(width, rows - 2..rows + 1, &mut out);
        assert!(matches!(beyond, Err(CodecError::RowRange { .. })));
        let beyond = shard.gather(width, &[0, rows, 1], &mut out);
        assert!(matches!(beyond, Err(CodecError::RowRange { .. })));
        assert!(shard.read(width, 0..2, &mut out).is_err());
    }
    for width in [0, 4, 12] {
        let error = shard.read(width, 0..0, &mut []);
        assert!(matches!(error, Err(CodecError::ChunkWidth { .. })));
    }

    // The reference reader reads the same.
    let bytes = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("vectors").unwrap().shape(), [101, 2, 6]);
    assert_eq!(bytes.len() % 8, (101 * 12 * 2) % 8, "data starts aligned");
}

#[test]
fn an_empty_shard_is_a_shard() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    write_shard(&path, &[]);
    assert_eq!(Shard::open(&path).unwrap().rows(6), 0);
}

#[test]
fn an_unfinished_shard_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let mut writer = ShardWriter::create(&path, header(3)).unwrap();
    writer.append(&[0.0; 24]).unwrap();
    assert!(matches!(writer.append(&[0.0; 24]), Err(CodecError::Length { .. })));
    assert!(matches!(writer.append(&[0.0; 13]), Err(CodecError::NotAMultiple { .. })));
    for bad in [f32::NAN, f32::INFINITY, 7e4] {
        let mut token = [0.0; 12];
        token[3] = bad;
        assert!(matches!(writer.append(&token), Err(CodecError::NonFiniteRow { row: 0 })));
    }
    assert_eq!(names(&dir).len(), 1, "the temporary");
    let text = complaint(&path, writer.finish());
    assert!(text.contains("3 tokens") && text.contains("2 tokens"), "{text}");
    assert!(names(&dir).is_empty());

    drop(ShardWriter::create(&path, header(3)).unwrap());
    assert!(names(&dir).is_empty());
    let mut taken = header(1);
    taken.extra.insert("kind".into(), "key".into());
    assert!(complaint(&path, ShardWriter::create(&path, taken)).contains("kind"));
    let mut huge = header(usize::MAX / 8);
    huge.heads = 100;
    assert!(ShardWriter::create(&path, huge).is_err());
    assert!(names(&dir).is_empty());
}

#[test]
fn a_shard_goes_on_where_a_killed_run_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let vectors: Vec<f32> = (0..36).map(|x| x as f32).collect();
    let whole = dir.path().join("whole");
    write_shard(&whole, &vectors);

    let mut writer = ShardWriter::resume(&path, header(3)).unwrap();
    writer.append(&vectors[..24]).unwrap();
    writer.sync().unwrap();
    drop(writer);
    assert_eq!(sorted(&dir), ["s.unfinished", "whole"]);
    // Add half a token, as a killed program may leave it.
    let unfinished = dir.path().join("s.unfinished");
    let mut bytes = fs::read(&unfinished).unwrap();
    bytes.extend([1; 12]);
    fs::write(&unfinished, bytes).unwrap();
    let mut writer = ShardWriter::resume(&path, header(3)).unwrap();
    assert_eq!(writer.tokens(), 2);
    // The other shards of its set may have fewer tokens.
    writer.keep(1).unwrap();
    writer.append(&vectors[12..]).unwrap();
    writer.finish().unwrap();
    assert_eq!(sorted(&dir), ["s", "whole"]);
    assert_eq!(fs::read(&path).unwrap(), fs::read(&whole).unwrap());

    // A finished shard is complete. A shard with another header is started again.
    assert_eq!(ShardWriter::resume(&path, header(3)).unwrap().tokens(), 3);
    assert_eq!(ShardWriter::resume(&path, header(4)).unwrap().tokens(), 0);
}

#[test]
fn shards_that_lie_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.safetensors");
    let meta = json!({"layer": "0", "kind": "key"});
    let tensor =
        |dtype: &str, shape: Value, end: u64| json!({"dtype": dtype, "shape": shape, "data_offsets": [0, end]});
    let vectors = tensor("F16", json!([2, 1, 3]), 12);
    let good = json!({"__metadata__": meta, "vectors": vectors});
    fs::write(&path, raw(&good, &[0; 12])).unwrap();
    assert!(Shard::open(&path).is_ok());

    let cases = [
        ("tensors", json!({"__metadata__": meta, "other": vectors})),
        ("tensors", json!({"__metadata__": meta})),
        ("F16", json!({"__metadata__": meta, "vectors": tensor("BF16", json!([2, 1, 3]), 12)})),
        ("shape", json!({"__metadata__": meta, "vectors": tensor("F16", json!([2, 3]), 12)})),
        ("shape", json!({"__metadata__": meta, "vectors": tensor("F16", json!([6, 1, 0]), 0)})),
        ("header", json!({"__metadata__": meta, "vectors": tensor("F16", json!([2, 1, 4]), 12)})),
        ("data", json!({"__metadata__": meta, "vectors": tensor("F16", json!([2, 1, 4]), 16)})),
        ("header", json!({"__metadata__": meta, "vectors": tensor("F16", json!([1u64 << 63, 4, 1]), 12)})),
        ("data", json!({"__metadata__": meta, "vectors": tensor("F16", json!([1u64 << 40, 4, 1]), 1 << 43)})),
        ("layer", json!({"__metadata__": {"kind": "key"}, "vectors": vectors})),
        ("layer", json!({"__metadata__": {"kind": "key", "layer": "-1"}, "vectors": vectors})),
        ("kind", json!({"__metadata__": {"layer": "0"}, "vectors": vectors})),
        ("kind", json!({"__metadata__": {"layer": "0", "kind": "Key"}, "vectors": vectors})),
        ("layer", json!({"vectors": vectors})),
        ("header", json!([1, 2])),
    ];
    for (subject, header) in cases {
        let data = if subject == "shape" && header["vectors"]["shape"][2] == 0 { 0 } else { 12 };
        let data = if header.get("vectors").is_some() || header.get("other").is_some() { data } else { 0 };
        fs::write(&path, raw(&header, &vec![0; data])).unwrap();
        let text = complaint(&path, Shard::open(&path));
        assert!(text.contains(subject), "{subject}: {text}");
    }
    for length in [0, 1 << 19, 1 << 20, (1 << 20) + 1, u64::MAX, u64::MAX - 7] {
        let mut bytes = raw(&good, &[0; 12]);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        assert!(complaint(&path, Shard::open(&path)).contains("header"), "{length}");
    }
    assert!(Shard::open(dir.path().join("absent")).is_err());
}

fn set() -> DictionarySet {
    let group = |kind, layers: &[usize], chunks: usize, seed| DictionaryGroup {
        kind,
        layers: layers.to_vec(),
        chunks,
        sparsity: 8 / chunks,
        dictionary: dictionary(20 + seed as usize, 12 / chunks, seed),
    };
    DictionarySet {
        head_dim: 12,
        groups: vec![group(Kind::Key, &[0, 1], 1, 1), group(Kind::Value, &[0], 2, 2), group(Kind::Value, &[1], 3, 3)],
        provenance: BTreeMap::from([("corpus".to_owned(), "a \"text\"\n".to_owned())]),
    }
}

#[test]
fn set_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.safetensors");
    let set = set();
    set.save(&path).unwrap();
    assert_eq!(names(&dir), [path.file_name().unwrap()]);
    let loaded = DictionarySet::load(&path).unwrap();
    assert_eq!(loaded, set);

    let again = dir.path().join("again");
    loaded.save(&again).unwrap();
    assert_eq!(fs::read(&path).unwrap(), fs::read(&again).unwrap());
    let bytes = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("group.1.atoms").unwrap().shape(), [22, 6]);

    let find = |layer, kind| loaded.group(layer, kind).map(|g| g.chunks);
    assert_eq!(find(1, Kind::Key), Some(1));
    assert_eq!(find(0, Kind::Value), Some(2));
    assert_eq!(find(1, Kind::Value), Some(3));
    assert_eq!(find(2, Kind::Key), None);
}

#[test]
fn a_set_must_serve_the_model() {
    let mut set = set();
    assert!(set.validate_for(2, 12).is_ok());
    let text = |r: Result<(), CodecError>| r.unwrap_err().to_string();
    assert!(text(set.validate_for(2, 16)).contains("head_dim: expected 16, found 12"));
    assert!(text(set.validate_for(3, 12)).contains("layer 2, key"));
    assert!(text(set.validate_for(1, 12)).contains("found layer 1"));
    set.groups.pop();
    assert!(text(set.validate_for(2, 12)).contains("layer 1, value"));
}

#[test]
fn a_bad_set_is_not_saved() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d");
    let refuse = |spoil: fn(&mut DictionarySet), part: &str| {
        let mut set = set();
        spoil(&mut set);
        let text = complaint(&path, set.save(&path));
        assert!(text.contains(part), "{text}");
        assert!(names(&dir).is_empty());
    };
    refuse(|s| s.groups[2].layers.push(0), "layer 0 again");
    refuse(|s| s.groups[0].layers = vec![1, 1], "layer 1 again");
    refuse(|s| s.groups[0].layers.clear(), "at least one layer");
    refuse(|s| s.groups[0].sparsity = 0, "sparsity");
    refuse(|s| s.groups[0].chunks = 0, "chunks that divide");
    refuse(|s| s.groups[0].chunks = 5, "chunks that divide");
    refuse(|s| s.head_dim = 0, "head_dim");
    refuse(|s| s.groups[1].dictionary = identity(3), "group.1.atoms");
}

#[test]
fn sets_that_lie_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.safetensors");
    let group = json!({"kind": "key", "layers": [0], "chunks": 1, "sparsity": 4});
    let manifest = json!({"format": 1, "head_dim": 2, "groups": [group], "provenance": {}});
    let file = |manifest: &Value, name: &str, dtype: &str, shape: [usize; 2], atoms: &[f32]| {
        let data: Vec<u8> = atoms.iter().flat_map(|x| x.to_le_bytes()).collect();
        let tensor = json!({"dtype": dtype, "shape": shape, "data_offsets": [0, data.len()]});
        let metadata = json!({"kvcsr": manifest.to_string()});
        let mut header = json!({"__metadata__": metadata});
        header[name] = tensor;
        raw(&header, &data)
    };
    let atoms = [1.0, 0.0, 0.6, 0.8];
    let name = "group.0.atoms";
    fs::write(&path, file(&manifest, name, "F32", [2, 2], &atoms)).unwrap();
    let loaded = DictionarySet::load(&path).unwrap();
    assert_eq!(loaded.groups[0].dictionary.atom(1), [0.6, 0.8]);

    let with = |pointer: &str, value: Value| {
        let mut manifest = manifest.clone();
        *manifest.pointer_mut(pointer).unwrap() = value;
        manifest
    };
    let nan = [1.0, 0.0, f32::NAN, 0.8];
    let long = [1.0, 0.0, 0.6, 0.9];
    let many = [1.0, 0.0].repeat(65_537);
    let (twice, chunked) = (json!([group, group]), with("/groups/0/chunks", json!(2)));
    let cases: [(&str, Vec<u8>); 15] = [
        ("format", file(&with("/format", json!(2)), name, "F32", [2, 2], &atoms)),
        ("kvcsr", file(&with("/head_dim", json!(-2)), name, "F32", [2, 2], &atoms)),
        ("kvcsr", file(&with("/groups/0/kind", json!("query")), name, "F32", [2, 2], &atoms)),
        ("layer 0 again", file(&with("/groups", twice), name, "F32", [2, 2], &atoms)),
        ("layer 0 again", file(&with("/groups/0/layers", json!([0, 0])), name, "F32", [2, 2], &atoms)),
        ("tensors", file(&with("/groups", json!([])), name, "F32", [2, 2], &atoms)),
        ("shape (N, 1)", file(&chunked, name, "F32", [2, 2], &atoms)),
        ("shape (N, 2)", file(&manifest, name, "F32", [4, 1], &atoms)),
        ("group.0.atoms", file(&manifest, "group.1.atoms", "F32", [2, 2], &atoms)),
        ("dtype F32", file(&manifest, name, "I32", [2, 2], &atoms)),
        ("atom 1 has a NaN", file(&manifest, name, "F32", [2, 2], &nan)),
        ("atom 1 has l2 norm", file(&manifest, name, "F32", [2, 2], &long)),
        ("found 65537", file(&manifest, name, "F32", [65_537, 2], &many)),
        ("found 0", file(&manifest, name, "F32", [0, 2], &[])),
        ("header", file(&manifest, name, "F32", [1 << 40, 2], &atoms)),
    ];
    for (part, bytes) in cases {
        fs::write(&path, bytes).unwrap();
        let text = complaint(&path, DictionarySet::load(&path));
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn every_truncation_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    for write in [(|p| set().save(p).unwrap()) as fn(&Path), |p| write_shard(p, &normal(24, 1))] {
        write(&path);
        let bytes = fs::read(&path).unwrap();
        // Every cut in the length field and near both ends, then a sample of the others.
        let cuts = (0..bytes.len()).filter(|at| *at < 32 || bytes.len() - at < 32 || at % 13 == 0);
        for length in cuts {
            fs::write(&path, &bytes[..length]).unwrap();
            complaint(&path, DictionarySet::load(&path));
            complaint(&path, Shard::open(&path));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A file with a few changed bytes loads or is refused, but never panics. If it loads, the invariants of the types hold.
    #[test]
    fn damage_never_panics(
        changes in proptest::collection::vec((0.0f64..1.0, any::<u8>()), 1..4), shard: bool
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        if shard {
            write_shard(&path, &normal(24, 1));
        } else {
            set().save(&path).unwrap();
        }
        let mut bytes = fs::read(&path).unwrap();
        // Three of four changes are in the header, where damage has the most varied effects.
        for (at, value) in changes {
            let span = if value & 3 == 0 { bytes.len() } else { 700.min(bytes.len()) };
            bytes[(at * span as f64) as usize] = value;
        }
        fs::write(&path, bytes).unwrap();
        if let Ok(shard) = Shard::open(&path) {
            let mut out = vec![0.0; shard.rows(1)];
            prop_assert!(shard.read(1, 0..shard.rows(1), &mut out).is_ok());
        }
        if let Ok(set) = DictionarySet::load(&path) {
            for group in &set.groups {
                prop_assert_eq!(group.dictionary.width() * group.chunks, set.head_dim);
                let atoms = group.dictionary.atoms().to_vec();
                prop_assert!(Dictionary::new(group.dictionary.width(), atoms).is_ok());
            }
            prop_assert!(Arc::strong_count(&set.groups[0].dictionary) == 1);
        }
    }
}
