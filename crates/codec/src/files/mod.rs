//! Safetensors files: written whole or not at all, read as untrusted.

pub mod atomic;
pub mod set;
pub mod shard;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
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

/// A file under another name until [`Writer::finish`] renames it.
#[derive(Debug)]
pub(crate) struct Writer {
    path: PathBuf,
    target: Target,
}

#[derive(Debug)]
enum Target {
    /// Under a temporary name: dropped before it is finished, it is removed.
    New(AtomicFile),
    /// Under a name that the next run of the program finds, with the bytes of its header.
    Kept { file: BufWriter<File>, at: PathBuf, header: u64 },
}

/// What is added to the name of a file that another run may go on with.
const UNFINISHED: &str = ".unfinished";

impl Writer {
    /// Creates the file and writes its header. Entries are in a fixed order, so equal
    /// content gives equal bytes.
    pub(crate) fn create(
        path: &Path,
        metadata: &BTreeMap<String, String>,
        tensors: &[Planned],
    ) -> Result<Self, CodecError> {
        let file = AtomicFile::create(path).map_err(|e| CodecError::io(path, e))?;
        let mut writer = Self { path: path.to_owned(), target: Target::New(file) };
        writer.write(&Self::header(path, metadata, tensors)?)?;
        Ok(writer)
    }

    /// As [`Writer::create`], but goes on with the file of the same header that an earlier run began, or finished; returns the bytes of
    /// data that it holds. Dropped unfinished, it stays for the next run.
    pub(crate) fn resume(
        path: &Path,
        metadata: &BTreeMap<String, String>,
        tensors: &[Planned],
    ) -> Result<(Self, u64), CodecError> {
        let header = Self::header(path, metadata, tensors)?;
        let mut at = path.as_os_str().to_owned();
        at.push(UNFINISHED);
        let at = PathBuf::from(at);
        let open = || -> std::io::Result<(File, u64)> {
            if path.is_file() {
                std::fs::rename(path, &at)?;
            }
            let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&at)?;
            let mut found = Vec::with_capacity(header.len());
            Read::by_ref(&mut file).take(header.len() as u64).read_to_end(&mut found)?;
            if found == header {
                let bytes = file.metadata()?.len() - header.len() as u64;
                return Ok((file, bytes));
            }
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(&header)?;
            Ok((file, 0))
        };
        let (file, bytes) = open().map_err(|e| CodecError::io(&at, e))?;
        let file = BufWriter::with_capacity(1 << 16, file);
        let header = header.len() as u64;
        Ok((Self { path: path.to_owned(), target: Target::Kept { file, at, header } }, bytes))
    }

    /// Keeps the first `bytes` bytes of data of a file that is gone on with, and writes after them.
    pub(crate) fn keep(&mut self, bytes: u64) -> Result<(), CodecError> {
        let Target::Kept { file, at, header } = &mut self.target else { return Ok(()) };
        let cut = |file: &mut BufWriter<File>| -> std::io::Result<()> {
            file.seek(SeekFrom::Start(*header + bytes))?;
            file.get_ref().set_len(*header + bytes)
        };
        cut(file).map_err(|e| CodecError::io(&*at, e))
    }

    /// Makes what was written so far durable, where another run may go on with it.
    pub(crate) fn sync(&mut self) -> Result<(), CodecError> {
        let Target::Kept { file, at, .. } = &mut self.target else { return Ok(()) };
        file.flush().and_then(|()| file.get_ref().sync_data()).map_err(|e| CodecError::io(&*at, e))
    }

    /// The header and its length.
    fn header(path: &Path, metadata: &BTreeMap<String, String>, tensors: &[Planned]) -> Result<Vec<u8>, CodecError> {
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
        Ok([&length.to_le_bytes()[..], &text].concat())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), CodecError> {
        let written = match &mut self.target {
            Target::New(file) => file.write_all(bytes),
            Target::Kept { file, .. } => file.write_all(bytes),
        };
        written.map_err(|e| CodecError::io(&self.path, e))
    }

    /// Makes the data durable, then visible under its name.
    pub(crate) fn finish(self) -> Result<(), CodecError> {
        let finished = match self.target {
            Target::New(file) => file.persist(),
            Target::Kept { file, at, .. } => file
                .into_inner()
                .map_err(std::io::IntoInnerError::into_error)
                .and_then(|_| atomic::rename(&at, &self.path)),
        };
        finished.map_err(|e| CodecError::io(&self.path, e))
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
