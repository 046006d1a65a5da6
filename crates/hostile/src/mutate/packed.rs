//! Changes inside formats that have lengths and digests. The lengths and digests are corrected afterwards.

use std::io::{Cursor, Read, Write};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::{HEADER, LONGEST, bytes};

/// Changes the header of a safetensors file, and corrects its length.
pub(super) fn safetensors(out: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    let Some((mut header, rest)) = headed(out, 0) else { return bytes::blind(out, &[], rng) };
    bytes::text(&mut header, HEADER, &out[8..], rng);
    let length = (header.len() as u64).to_le_bytes();
    *out = [&length[..], &header, &rest].concat();
}

/// Changes the header and the ids of a stored prompt, and corrects lengths and digests.
pub(super) fn prompt(out: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    let Some((mut header, rest)) = headed(out, 8) else { return bytes::blind(out, &[], rng) };
    let mut rest = rest.get(32..).unwrap_or_default().to_vec();
    let before = out[..8].to_vec();
    if rng.random_bool(0.5) {
        bytes::text(&mut header, HEADER, &out[16..], rng);
    } else {
        bytes::blind(&mut rest, &[], rng);
        // Parts keep their lengths as long as there are bytes. The last part gets the rest.
        if let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(&header) {
            let mut left = &rest[..];
            let layers = value["layers"].as_array().map_or(0, Vec::len);
            let mut digest = |section: &mut serde_json::Value, last: bool| {
                let bytes = section["bytes"].as_u64().unwrap_or(0).min(left.len() as u64) as usize;
                let (own, others) = left.split_at(if last { left.len() } else { bytes });
                left = others;
                section["bytes"] = own.len().into();
                section["blake3"] = blake3::hash(own).to_hex().to_string().into();
            };
            if value["ids"].is_object()
                && value["layers"].as_array().is_some_and(|all| all.iter().all(|x| x.is_object()))
            {
                digest(&mut value["ids"], layers == 0);
                for at in 0..layers {
                    digest(&mut value["layers"][at], at + 1 == layers);
                }
            }
            header = value.to_string().into_bytes();
        }
    }
    let length = (header.len() as u64).to_le_bytes();
    *out = [&before[..], &length, &header, blake3::hash(&header).as_bytes(), &rest].concat();
}

/// A header whose length is stored before it, at byte `at`, and what follows the header.
fn headed(file: &[u8], at: usize) -> Option<(Vec<u8>, Vec<u8>)> {
    let length = u64::from_le_bytes(*file.get(at..)?.first_chunk::<8>()?);
    let rest = &file[at + 8..];
    let (header, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some((header.to_vec(), rest.to_vec()))
}

/// Names that lead out of a folder, or are unusual.
const NAMES: &[&str] = &[
    "../x.utf8",
    "/x.utf8",
    "pkg/../../x.utf8",
    "pkg/x.utf8",
    "link",
    "",
    ".",
    "a//b",
    "C:\\x",
    "archive/data.pkl",
    "archive/data/0",
];

/// The largest member that consists of zeros has two to the power of this many bytes: a small zip bomb.
const BOMB: u32 = 20;

/// Changes members of an archive, and packs it again with correct checksums.
pub(super) fn zip(out: &mut Vec<u8>, other: &[u8], rng: &mut ChaCha8Rng) {
    let Some(mut members) = unpacked(out) else { return bytes::blind(out, other, rng) };
    if members.is_empty() {
        members.push(("pkg/x.utf8".to_owned(), b"hello".to_vec()));
    }
    let at = rng.random_range(0..members.len());
    let mut link = false;
    match rng.random_range(0..10) {
        0 => members[at].0 = NAMES[rng.random_range(0..NAMES.len())].to_owned(),
        1 => link = true,
        2 => {
            let most = 1 << rng.random_range(0..=BOMB);
            members[at].1 = vec![0; rng.random_range(0..most)];
        }
        3 => {
            let more = members[at].clone();
            members.push(more);
        }
        4 => drop(members.remove(at)),
        5 => members[at].1.clear(),
        _ => pickle(&mut members[at].1, rng),
    }
    let method = if rng.random_bool(0.5) { CompressionMethod::Stored } else { CompressionMethod::Deflated };
    if let Some(packed) = packed(&members, method, link.then_some(at)).filter(|packed| packed.len() <= LONGEST) {
        *out = packed;
    }
}

fn unpacked(file: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let mut archive = ZipArchive::new(Cursor::new(file)).ok()?;
    let mut members = Vec::new();
    for at in 0..archive.len().min(20) {
        let member = archive.by_index(at).ok()?;
        let name = String::from_utf8_lossy(member.name_raw()).into_owned();
        let mut data = Vec::new();
        member.take(LONGEST as u64).read_to_end(&mut data).ok()?;
        members.push((name, data));
    }
    Some(members)
}

fn packed(members: &[(String, Vec<u8>)], method: CompressionMethod, link: Option<usize>) -> Option<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (at, (name, data)) in members.iter().enumerate() {
        let options = SimpleFileOptions::default().compression_method(method);
        if link == Some(at) {
            zip.add_symlink(name.as_str(), "/etc/passwd", options).ok()?;
            continue;
        }
        zip.start_file(name.as_str(), options).ok()?;
        zip.write_all(data).ok()?;
    }
    Some(zip.finish().ok()?.into_inner())
}

/// Pickle instructions that request much memory, or that the reader does not expect.
const INSTRUCTIONS: &[&[u8]] = &[
    b"X\xff\xff\xff\x7f",
    b"X\0\0\0\0",
    b"J\xff\xff\xff\x7f",
    b"J\xff\xff\xff\xff",
    b"K\0",
    b"M\xff\xff",
    b"(",
    b"t",
    b"\x85",
    b"\x86",
    b"\x87",
    b"q\0",
    b"h\0",
    b"h\0h\0\x86q\0",
    b"h\0h\0h\0\x87q\0",
    b"}",
    b"]",
    b"e",
    b"u",
    b"s",
    b"a",
    b"R",
    b"b",
    b"Q",
    b"N",
    b".",
    b"\x8a\xff",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch\nDoubleStorage\n",
    b"ctorch\nLongStorage\n",
    b"ccollections\nOrderedDict\n",
    b"G\0\0\0\0\0\0\0\0",
    b"\x81",
    b"d",
    b"r\xff\xff\xff\xff",
    b"j\xff\xff\xff\xff",
];

fn pickle(data: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    if rng.random_bool(0.4) {
        return bytes::blind(data, &[], rng);
    }
    let put = INSTRUCTIONS[rng.random_range(0..INSTRUCTIONS.len())];
    let times = if rng.random_bool(0.1) { rng.random_range(2..500) } else { 1 };
    let at = rng.random_range(0..=data.len());
    let end = if rng.random_bool(0.5) { (at + put.len()).min(data.len()) } else { at };
    data.splice(at..end, put.repeat(times));
}
