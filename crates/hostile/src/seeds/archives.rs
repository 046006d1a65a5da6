//! Wheels, and PyTorch files as `torch.save` writes them.

use std::io::{Cursor, Write};

use anyhow::Result;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::Made;
use crate::targets::MEMBER;

fn zip(members: &[(&str, &[u8])], method: CompressionMethod) -> Result<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, data) in members {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method))?;
        zip.write_all(data)?;
    }
    Ok(zip.finish()?.into_inner())
}

pub(super) fn wheels() -> Result<Vec<Made>> {
    let (name, text, _) = MEMBER;
    let (stored, deflated) = (CompressionMethod::Stored, CompressionMethod::Deflated);
    let mut link = ZipWriter::new(Cursor::new(Vec::new()));
    link.add_symlink(name, "/etc/passwd", SimpleFileOptions::default())?;
    link.add_symlink("link", "../x.utf8", SimpleFileOptions::default())?;
    Ok(vec![
        ("stored", zip(&[(name, text), ("pkg/__init__.py", b"")], stored)?),
        ("deflated", zip(&[("pkg/a", &[b'a'; 90]), (name, text)], deflated)?),
        ("outside", zip(&[("../x.utf8", text), ("/x.utf8", text), ("pkg/../../x.utf8", text)], stored)?),
        ("link", link.finish()?.into_inner()),
        ("bomb", zip(&[(name, &[0; 1 << 20])], deflated)?),
    ])
}

/// `_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())` for a named tensor.
fn described(name: &str, class: &str, storage: &str, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let text = |s: &str| [b"X", &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat();
    let ints = |all: &[u8]| all.iter().flat_map(|&n| [b'K', n]).collect::<Vec<u8>>();
    let elements: u8 = shape.iter().product();
    [
        &text(name)[..],
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage"),
        format!("ctorch\n{class}\n").as_bytes(),
        &text(storage),
        &text("cpu"),
        &ints(&[elements]),
        b"tQK\0(",
        &ints(shape),
        b"t(",
        &ints(strides),
        b"t\x89ccollections\nOrderedDict\n)RtR",
    ]
    .concat()
}

pub(super) fn pickles() -> Result<Vec<Made>> {
    let stored = CompressionMethod::Stored;
    let all = |tensors: &[Vec<u8>], before: &[u8], after: &[u8]| [before, &tensors.concat(), after].concat();
    let dictionary = b"\x80\x02ccollections\nOrderedDict\nq\0)R(";
    let two = [
        described("model.norm.weight", "FloatStorage", "0", &[3], &[1]),
        described("lm_head.weight", "HalfStorage", "1", &[2, 3], &[3, 1]),
    ];
    let turned = [described("t", "BFloat16Storage", "0", &[2, 3], &[1, 2])];
    let data: Vec<u8> = (0..12).collect();
    let pickled = |pickle: &[u8]| {
        zip(&[("archive/data.pkl", pickle), ("archive/data/0", &data), ("archive/data/1", &data)], stored)
    };
    Ok(vec![
        ("two-tensors", pickled(&all(&two, dictionary, b"u."))?),
        ("plain-dictionary", pickled(&all(&two, b"\x80\x02}q\0(", b"uq\x01."))?),
        ("columns-first", pickled(&all(&turned, dictionary, b"u."))?),
    ])
}
