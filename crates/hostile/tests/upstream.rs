//! Inputs that readers of other projects accept and that ours must refuse: each case of docs/UPSTREAM.md.

#![allow(clippy::unwrap_used)]

use std::io::{Cursor, Write};
use std::panic::catch_unwind;
use std::path::Path;

use candle_core::quantized::gguf_file::Content;
use kvcsr_hostile::place::Place;
use kvcsr_model::load::pickle::PickleFile;
use kvcsr_model::{ChatTemplate, Gguf, Message, Tokenizer};
use zip::CompressionMethod;
use zip::write::SimpleFileOptions;

/// A GGUF file with these metadata entries (name, number of the type, bytes) and tensors (name, dimensions, type,
/// offset), and with one block of data.
fn gguf(metadata: &[(&str, u32, Vec<u8>)], tensors: &[(&str, &[u64], u32, u64)]) -> Vec<u8> {
    let text = |s: &str| [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat();
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((metadata.len() as u64).to_le_bytes());
    for (name, kind, value) in metadata {
        file.extend([text(name), kind.to_le_bytes().to_vec(), value.clone()].concat());
    }
    for (name, dims, kind, offset) in tensors {
        file.extend([text(name), (dims.len() as u32).to_le_bytes().to_vec()].concat());
        dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
        file.extend([&kind.to_le_bytes()[..], &offset.to_le_bytes()].concat());
    }
    file.resize(file.len().next_multiple_of(32) + 64, 0);
    file
}

/// Whether candle reads a header. `Err` if it panics.
fn candles(file: &[u8]) -> Result<bool, ()> {
    catch_unwind(|| Content::read(&mut Cursor::new(file)).is_ok()).map_err(drop)
}

fn ours(file: &[u8]) -> String {
    let place = Place::new().unwrap();
    Gguf::open(place.write("m.gguf", file)).err().unwrap().to_string()
}

#[test]
fn an_alignment_of_zero() {
    let file = gguf(&[("general.alignment", 4, vec![0; 4])], &[]);
    assert_eq!(candles(&file), Err(()), "candle divides by it");
    assert!(ours(&file).contains("general.alignment is 0 of type 4, not a u32 power of two"), "{}", ours(&file));
}

#[test]
fn a_shape_whose_product_overflows() {
    let file = gguf(&[], &[("t", &[1 << 32, 1 << 32], 0, 0)]);
    assert_eq!(candles(&file), Ok(true), "candle takes 2^64 weights");
    assert!(ours(&file).contains("tensor `t` has over 2^40 elements"), "{}", ours(&file));
}

#[test]
fn tensors_that_share_bytes() {
    let file = gguf(&[], &[("a", &[16], 0, 0), ("b", &[16], 0, 32)]);
    assert_eq!(candles(&file), Ok(true), "candle reads both");
    assert!(
        ours(&file).contains("tensor `a` of 64 bytes at offset 0 reaches into tensor `b` at 32"),
        "{}",
        ours(&file)
    );
}

#[test]
fn names_that_appear_twice() {
    let file = gguf(&[], &[("a", &[8], 0, 0), ("a", &[8], 0, 32)]);
    assert_eq!(candles(&file), Ok(true), "candle keeps the last");
    assert!(ours(&file).contains("tensor `a` appears twice"), "{}", ours(&file));
    let file = gguf(&[("k", 0, vec![1]), ("k", 0, vec![2])], &[]);
    assert_eq!(candles(&file), Ok(true), "candle keeps the last");
    assert!(ours(&file).contains("metadata key `k` appears twice"), "{}", ours(&file));
}

#[test]
fn arrays_of_bytes() {
    let length = (1u64 << 24) + 1;
    let array = [&0u32.to_le_bytes()[..], &length.to_le_bytes(), &vec![0; length as usize]].concat();
    let file = gguf(&[("k", 9, array)], &[]);
    assert_eq!(candles(&file), Ok(true), "candle takes 32 bytes and more for each");
    assert!(ours(&file).contains("arrays of over 16777216 elements"), "{}", ours(&file));
}

#[test]
fn a_file_for_machines_of_the_other_order() {
    let mut file = gguf(&[], &[]);
    file[..4].reverse();
    assert_eq!(candles(&file), Ok(true), "candle reads its numbers in the wrong order");
    assert!(ours(&file).contains("does not begin with the magic"), "{}", ours(&file));
}

/// Reads a PyTorch file with this pickle.
fn pickled(pickle: &[u8]) -> String {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    zip.start_file("archive/data.pkl", stored).unwrap();
    zip.write_all(pickle).unwrap();
    let place = Place::new().unwrap();
    let path = place.write("pytorch_model.bin", &zip.finish().unwrap().into_inner());
    PickleFile::open(path).err().unwrap().to_string()
}

/// `t`, a tensor with this shape.
fn described(shape: &[u8]) -> Vec<u8> {
    let text = |s: &str| [b"X", &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat();
    [
        b"\x80\x02}(",
        &text("t")[..],
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text("0"),
        &text("cpu"),
        b"K\x04tQK\0",
        shape,
        b"\x89}tRu.",
    ]
    .concat()
}

#[test]
fn pickles_that_ask_for_more_than_they_hold() {
    for (pickle, said) in [
        (b"\x80\x02X\xff\xff\xff\xff.".to_vec(), "a text of 4294967295 bytes, but only 1 are left"),
        ([&b"\x80\x02Nq\0"[..], &b"h\0h\0\x86q\0".repeat(60), b"."].concat(), "makes objects of over"),
        ([&b"\x80\x02N"[..], &[0x85; 1 << 18], b"."].concat(), "nests objects over 64 deep"),
        (described(b"(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ft(K\x01K\x01t"), "is more than the file's"),
        (described(b"(J\0\0\0\x10t(K\x01t"), "is more than the file's"),
    ] {
        let error = pickled(&pickle);
        assert!(error.contains("malformed PyTorch file") && error.contains(said), "{error}");
    }
}

#[test]
fn pickles_that_candle_indexes_blindly() {
    let error = pickled(b"\x80\x02}(X\x01\0\0\0tctorch._utils\n_rebuild_tensor_v2\n)Ru.");
    assert!(error.contains("a tensor's description is damaged"), "{error}");
}

fn tokenizer(json: &str) -> Result<Vec<u32>, String> {
    let place = Place::new().unwrap();
    place.write("tokenizer.json", json.as_bytes());
    let read = Tokenizer::from_hf_folder(place.folder()).map_err(|error| error.to_string())?;
    let ids = read.encode("ab", true).map_err(|error| error.to_string())?;
    read.decode(&ids, false).map_err(|error| error.to_string())?;
    Ok(ids)
}

#[test]
fn tokenizers_whose_reader_panics() {
    let file = |parts: &str, prefix: &str, merges: &str| {
        format!(
            r#"{{"version":"1.0","added_tokens":[],{parts},"model":{{"type":"BPE","continuing_subword_prefix":{prefix},
            "vocab":{{"a":0,"b":1,"é":2,"aé":3}},"merges":{merges}}}}}"#
        )
    };
    let template = r#""post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}}],
        "pair":[],"special_tokens":{}}"#;
    for parts in [
        r#""pre_tokenizer":{"type":"FixedLength","length":0}"#,
        r#""decoder":{"type":"Strip","content":"a","start":0,"stop":9}"#,
        r#""decoder":{"type":}"#,
        template,
    ] {
        let error = tokenizer(&file(parts, "null", "[]")).unwrap_err();
        assert!(error.contains("tokenizer: "), "{parts}: {error}");
    }
    // Added tokens from another file are normalised when they are added.
    let place = Place::new().unwrap();
    let empty_trie = r#""normalizer":{"type":"Precompiled","precompiled_charsmap":"AAAAAA=="}"#;
    place.write("tokenizer.json", file(empty_trie, "null", "[]").as_bytes());
    place.write("added_tokens.json", br#"{"x": 4}"#);
    let error = Tokenizer::from_hf_folder(place.folder()).err().unwrap().to_string();
    assert!(error.contains("tokenizer: "), "{error}");
    let sound = tokenizer(&file(r#""decoder":null"#, "null", "[]"));
    assert_eq!(sound, Ok(vec![0, 1]));
    let cut = tokenizer(&file(r#""decoder":null"#, r#""@""#, r#"[["a","é"]]"#)).unwrap_err();
    assert!(cut.contains("model.merges[0]: expected a right side that begins with"), "{cut}");
}

#[test]
fn templates_that_ask_for_gigabytes() {
    for source in
        ["{{ '%99999999999d' % 1 }}", "{{ 'a'|indent(99999999999, true) }}", "{{ [1]|batch(99999999999, 0)|list }}"]
    {
        let template = ChatTemplate::new(source, Path::new("t.jinja"), &[]).unwrap();
        let turn = [Message { role: "user", content: "" }];
        let error = template.render(&turn, true).unwrap_err().to_string();
        assert!(error.contains("99999999999"), "{error}");
    }
}
