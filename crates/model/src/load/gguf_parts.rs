//! A GGUF model in one file or in several files.
//!
//! llama.cpp splits a model into files named `NAME-00001-of-00003.gguf`. The first file has the metadata. Each file has
//! its own tensors, and `split.no` and `split.count` give its number and the number of files.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::Value;
use memmap2::Mmap;

use super::file_kind;
use super::ggml_types;
use super::gguf_header::{Header, TensorInfo};
use crate::error::{ModelError, Result};

/// The largest plausible number of files of one model.
const MAX_PARTS: usize = 999;

/// One mapped file.
pub(super) struct Part {
    path: PathBuf,
    map: Mmap,
    data: u64,
    tensors: HashMap<String, TensorInfo>,
}

/// A tensor, and the part that contains it.
pub(super) struct Placed {
    pub(super) part: usize,
    pub(super) info: TensorInfo,
}

impl Part {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The offset where the tensors' data begins.
    pub(super) fn data(&self) -> u64 {
        self.data
    }

    /// Takes the tensors that the header lists, so that the model can store them.
    pub(super) fn take_tensors(&mut self) -> HashMap<String, TensorInfo> {
        std::mem::take(&mut self.tensors)
    }

    /// Checks that tensors do not overlap. If they could share bytes, a small file could describe any number of large
    /// tensors.
    pub(super) fn check_places(&self) -> Result<()> {
        let mut places: Vec<(u64, u64, &str)> = self
            .tensors
            .iter()
            .filter_map(|(name, info)| Some((info.offset, ggml_types::bytes(info.kind, &info.shape)?, name.as_str())))
            .filter(|(_, bytes, _)| *bytes > 0)
            .collect();
        places.sort_unstable();
        let shared = places.windows(2).find(|pair| pair[0].0.saturating_add(pair[0].1) > pair[1].0);
        shared.map_or(Ok(()), |pair| {
            let detail = format!(
                "tensor `{}` of {} bytes at offset {} reaches into tensor `{}` at {}",
                pair[0].2, pair[0].1, pair[0].0, pair[1].2, pair[1].0
            );
            Err(ModelError::Malformed { path: self.path.clone(), format: "GGUF", detail })
        })
    }

    fn open(path: &Path) -> Result<(HashMap<String, Value>, Self)> {
        if path.is_dir() {
            return Err(ModelError::WrongFile {
                path: path.to_owned(),
                expected: "a GGUF file",
                found: "a folder".to_owned(),
                remedy: "give the file in it".to_owned(),
            });
        }
        let file = File::open(path).map_err(ModelError::io(path))?;
        file_kind::check(path, "a GGUF file", &[b"GGUF"])?;
        // SAFETY: the map is read-only. Nobody may truncate the file while it is open: this is a documented condition
        // of `Gguf`, as for every mapped checkpoint.
        let map = unsafe { Mmap::map(&file) }.map_err(ModelError::io(path))?;
        let Header { metadata, tensors, data } = Header::read(&map).map_err(|detail| {
            let cut = cut_by_bytes(path);
            let hint =
                if cut { ": by its name it is a piece of a larger file; join the pieces with `cat`" } else { "" };
            ModelError::Malformed { path: path.to_owned(), format: "GGUF", detail: format!("{detail}{hint}") }
        })?;
        Ok((metadata, Self { path: path.to_owned(), map, data, tensors }))
    }
}

/// Whether a name looks like that of a piece of a file that was cut by bytes: `m.gguf.part1of2`, `m.gguf-split-a`,
/// `m.gguf.00`.
fn cut_by_bytes(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let after = name.split_once(".gguf").map_or("", |(_, after)| after);
    let numbered = after.strip_prefix('.').is_some_and(|rest| rest.parse::<u32>().is_ok());
    after.contains("part") || after.contains("split") || numbered
}

/// Opens a model by its only or first file. Returns its metadata and all files.
pub(super) fn parts(path: &Path) -> Result<(HashMap<String, Value>, Vec<Part>)> {
    let (metadata, first) = Part::open(path)?;
    let Some((number, count)) = split(&metadata, path)? else { return Ok((metadata, vec![first])) };
    let names = PartNames::of(path, count);
    let refuse = |reason: String, remedy: String| {
        Err(ModelError::Split { path: path.to_owned(), number: number + 1, count, reason, remedy })
    };
    if number != 0 {
        let first = names.map_or_else(
            || format!("the file whose name ends in -00001-of-{count:05}.gguf"),
            |names| names.part(0).display().to_string(),
        );
        return refuse("a model is opened by its first part".to_owned(), format!("give {first}"));
    }
    let Some(names) = names else {
        let reason = "the other parts are found by name, and this name says nothing of parts".to_owned();
        return refuse(reason, format!("name the files NAME-00001-of-{count:05}.gguf and so on"));
    };
    let absent: Vec<PathBuf> = (1..count).map(|at| names.part(at)).filter(|part| !part.is_file()).collect();
    if let Some(part) = absent.first() {
        let more = match absent.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let name = part.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let remedy = "put all parts beside the first, or join them with `llama-gguf-split --merge`".to_owned();
        return refuse(format!("{name}{more} is not beside it"), remedy);
    }
    let mut all = vec![first];
    for at in 1..count {
        let path = names.part(at);
        let (metadata, part) = Part::open(&path)?;
        let found = split(&metadata, &path)?;
        if found != Some((at, count)) {
            let found = found
                .map_or("none".to_owned(), |(number, count)| format!("part {} of {count}", number.saturating_add(1)));
            return Err(ModelError::bad_value(&path, "split.no", format!("part {} of {count}", at + 1), found));
        }
        all.push(part);
    }
    if let Some(promised) = metadata.get("split.tensors.count").and_then(whole) {
        let held: usize = all.iter().map(|part| part.tensors.len()).sum();
        if promised != held {
            let expected = format!("the {held} tensors that the parts hold");
            return Err(ModelError::bad_value(path, "split.tensors.count", expected, promised.to_string()));
        }
    }
    Ok((metadata, all))
}

/// The number of a file, counted from zero, and the number of parts. `None` for a whole model.
fn split(metadata: &HashMap<String, Value>, path: &Path) -> Result<Option<(usize, usize)>> {
    let read = |key: &str| match metadata.get(key) {
        None => Ok(None),
        Some(value) => whole(value)
            .map(Some)
            .ok_or_else(|| ModelError::bad_value(path, key, "a whole number", format!("{value:?}"))),
    };
    let (number, count) = (read("split.no")?.unwrap_or(0), read("split.count")?.unwrap_or(0));
    if count <= 1 {
        return Ok(None);
    }
    if count > MAX_PARTS || number >= count {
        let expected = format!("a part of at most {MAX_PARTS}");
        return Err(ModelError::bad_value(
            path,
            "split.count",
            expected,
            format!("part {} of {count}", number.saturating_add(1)),
        ));
    }
    Ok(Some((number, count)))
}

fn whole(value: &Value) -> Option<usize> {
    match *value {
        Value::I32(number) => usize::try_from(number).ok(),
        ref other => other.to_u64().ok().and_then(|number| usize::try_from(number).ok()),
    }
}

/// The names of the files of a split model.
struct PartNames {
    folder: PathBuf,
    prefix: String,
    count: usize,
}

impl PartNames {
    /// From the name of one of the files. `None` if the name does not have llama.cpp's form for parts.
    fn of(path: &Path, count: usize) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let numbered = name.strip_suffix(&format!("-of-{count:05}.gguf"))?;
        let (prefix, number) = numbered.rsplit_once('-')?;
        if number.len() != 5 || number.parse::<usize>().is_err() {
            return None;
        }
        Some(Self { folder: path.parent().unwrap_or(Path::new("")).to_owned(), prefix: prefix.to_owned(), count })
    }

    /// The path of part `at`, counted from zero.
    fn part(&self, at: usize) -> PathBuf {
        self.folder.join(format!("{}-{:05}-of-{:05}.gguf", self.prefix, at + 1, self.count))
    }
}
