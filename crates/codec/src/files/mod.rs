//! Safetensors files: written whole or not at all, read as untrusted.

pub mod atomic;
pub mod set;
pub mod shard;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value, json};

use self::atomic::AtomicFile;
use crate::CodecError;

pub use self::set::{DictionaryGroup, DictionarySet};
pub use self::shard::{Shard, ShardHeader, ShardWriter};

/// Largest header read, in bytes. Ours are a few kilobytes; the bound keeps a hostile file from
/// making the JSON parser allocate many times its length.
const MAX_HEADER: u64 = 1 << 20;

/// Bytes of the header's length field.
const LENGTH_FIELD: usize = 8;

/// A tensor to come in a file being written.
pub(crate) struct Planned {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: usize,
}

/// A file under a temporary name until [`Writer::finish`] renames it; dropped before that, it is removed.
#[derive(Debug)]
pub(crate) struct Writer {
    path: PathBuf,
    file: AtomicFile,
}

impl Writer {
    /// Creates the file and writes its header. Entries are in a fixed order, so equal
    /// content gives equal bytes.
    pub(crate) fn create(
        path: &Path,
        metadata: &BTreeMap<String, String>,
        tensors: &[Planned],
    ) -> Result<Self, CodecError> {
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!(metadata));
        let mut start = 0;
        for t in tensors {
            let end = start + t.bytes;
            header.insert(t.name.clone(), json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": [start, end]}));
            start = end;
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        // Data then starts 8-byte aligned, as the format recommends.
        text.resize(text.len().next_multiple_of(LENGTH_FIELD), b' ');
        let length = text.len() as u64;
        if length > MAX_HEADER {
            let most = format!("at most {MAX_HEADER} bytes");
            return Err(CodecError::file(path, "header", most, length.to_string()));
        }

        let file = AtomicFile::create(path).map_err(|e| CodecError::io(path, e))?;
        let mut writer = Self { path: path.to_owned(), file };
        writer.write(&length.to_le_bytes())?;
        writer.write(&text)?;
        Ok(writer)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), CodecError> {
        self.file.write_all(bytes).map_err(|e| CodecError::io(&self.path, e))
    }

    /// Makes the data durable, then visible under its name.
    pub(crate) fn finish(self) -> Result<(), CodecError> {
        self.file.persist().map_err(|e| CodecError::io(&self.path, e))
    }
}

/// A mapped file whose header was parsed and agrees with the file's length.
#[derive(Debug)]
pub(crate) struct Reader {
    path: PathBuf,
    map: Mmap,
    data_start: usize,
    header: Metadata,
}

impl Reader {
    pub(crate) fn open(path: &Path) -> Result<Self, CodecError> {
        let file = File::open(path).map_err(|e| CodecError::io(path, e))?;
        let length = file.metadata().map_err(|e| CodecError::io(path, e))?.len();
        let bad =
            |subject: &str, expected: String, found: String| Err(CodecError::file(path, subject, expected, found));
        if length < LENGTH_FIELD as u64 {
            let least = format!("at least {LENGTH_FIELD} bytes");
            return bad("file", least, format!("{length} bytes"));
        }
        // SAFETY: the map is read-only and only ever read as bytes, for which every pattern is
        // valid. Files are replaced by rename, never edited in place, by this crate; another
        // program that truncates one while it is open breaks the contract of every mapped reader.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| CodecError::io(path, e))?;
        let Some((field, rest)) = map.split_first_chunk::<LENGTH_FIELD>() else {
            return bad("file", "a header length".into(), "nothing".into());
        };
        let header_length = u64::from_le_bytes(*field);
        let available = MAX_HEADER.min(rest.len() as u64);
        if header_length > available {
            let most = format!("at most {available} bytes");
            return bad("header", most, format!("{header_length} bytes"));
        }
        // Bounded by MAX_HEADER above.
        let header_length = header_length as usize;
        let header: Metadata = match serde_json::from_slice(&rest[..header_length]) {
            Ok(header) => header,
            Err(e) => return bad("header", "safetensors JSON".into(), e.to_string()),
        };
        let data_length = rest.len() - header_length;
        if header.data_len() != data_length {
            let expected = format!("{} bytes as the header says", header.data_len());
            return bad("data", expected, format!("{data_length} bytes"));
        }
        Ok(Self { path: path.to_owned(), data_start: LENGTH_FIELD + header_length, map, header })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, in the order of their data.
    pub(crate) fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// A tensor's description and bytes.
    pub(crate) fn tensor(&self, name: &str) -> Result<(&TensorInfo, &[u8]), CodecError> {
        let Some(info) = self.header.info(name) else {
            return Err(self.error(name, "a tensor", format!("tensors {:?}", self.names())));
        };
        let (start, end) = info.data_offsets;
        // Inside the data: the header's offsets were checked to be contiguous and to end with it.
        Ok((info, &self.map[self.data_start..][start..end]))
    }

    /// All metadata strings.
    pub(crate) fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        let entries = self.header.metadata().iter().flatten();
        entries.map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// A metadata string that must be there.
    pub(crate) fn meta(&self, key: &str) -> Result<&str, CodecError> {
        match self.metadata().find(|(k, _)| *k == key) {
            Some((_, value)) => Ok(value),
            None => Err(self.error(key, "a metadata entry", "none")),
        }
    }

    pub(crate) fn error(&self, subject: &str, expected: impl Into<String>, found: impl Into<String>) -> CodecError {
        CodecError::file(&self.path, subject, expected, found)
    }
}
