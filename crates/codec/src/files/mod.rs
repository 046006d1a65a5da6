//! Safetensors files. A file is written completely or not at all, and a reader does not trust its content.

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

/// The largest header that is read, in bytes. Our headers have a few kilobytes. With this limit a malicious file cannot make
/// the JSON parser allocate many times the length of the header.
const MAX_HEADER: u64 = 1 << 20;

/// Bytes of the header's length field.
const LENGTH_FIELD: usize = 8;

/// A tensor that will be written to a file.
pub(crate) struct Planned {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: usize,
}

/// Writes a file under another name until [`Writer::finish`] renames it. After an error of the disk, every call is refused.
#[derive(Debug)]
pub(crate) struct Writer {
    path: PathBuf,
    target: Target,
    /// Whether an operation on the file has failed.
    broken: bool,
}

#[derive(Debug)]
enum Target {
    /// The file has a temporary name. It is removed if it is dropped before it is finished.
    New(AtomicFile),
    /// The file has a name that the next run of the program finds. `header` is the size of its header in bytes.
    Kept { file: BufWriter<File>, at: PathBuf, header: u64 },
}

/// Suffix of the name of a file that another run may continue.
const UNFINISHED: &str = ".unfinished";

impl Writer {
    /// Creates the file and writes its header. The entries have a fixed order, so equal content gives equal bytes.
    pub(crate) fn create(
        path: &Path,
        metadata: &BTreeMap<String, String>,
        tensors: &[Planned],
    ) -> Result<Self, CodecError> {
        let file = AtomicFile::create(path).map_err(|e| CodecError::io(path, e))?;
        let mut writer = Self { path: path.to_owned(), target: Target::New(file), broken: false };
        writer.write(&Self::header(path, metadata, tensors)?)?;
        Ok(writer)
    }

    /// Does the same as [`Writer::create`], but continues the file with the same header that an earlier run started or finished.
    /// Returns the number of data bytes in that file. If the writer is dropped unfinished, the file stays for the next run.
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
        let target = Target::Kept { file, at, header: header.len() as u64 };
        Ok((Self { path: path.to_owned(), target, broken: false }, bytes))
    }

    /// Keeps the first `bytes` bytes of data of a continued file, removes the rest, and writes after them.
    pub(crate) fn keep(&mut self, bytes: u64) -> Result<(), CodecError> {
        self.on_disk(|target| {
            let Target::Kept { file, header, .. } = target else { return Ok(()) };
            file.seek(SeekFrom::Start(*header + bytes))?;
            file.get_ref().set_len(*header + bytes)
        })
    }

    /// Makes the data written so far durable, so that another run can continue it.
    pub(crate) fn sync(&mut self) -> Result<(), CodecError> {
        self.on_disk(|target| {
            let Target::Kept { file, .. } = target else { return Ok(()) };
            file.flush()?;
            file.get_ref().sync_data()
        })
    }

    /// Lets `act` use the file, unless an earlier use failed: then it may hold any part of what was written.
    fn on_disk(&mut self, act: impl FnOnce(&mut Target) -> std::io::Result<()>) -> Result<(), CodecError> {
        self.intact()?;
        let done = act(&mut self.target);
        self.broken = done.is_err();
        done.map_err(|e| CodecError::io(self.place(), e))
    }

    fn intact(&self) -> Result<(), CodecError> {
        if self.broken { Err(CodecError::Broken { path: self.place().to_owned() }) } else { Ok(()) }
    }

    /// The file to name in an error.
    fn place(&self) -> &Path {
        match &self.target {
            Target::New(_) => &self.path,
            Target::Kept { at, .. } => at,
        }
    }

    /// The header, preceded by its length.
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
        // The data then starts 8-byte aligned, as the format recommends.
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
        self.on_disk(|target| match target {
            Target::New(file) => file.write_all(bytes),
            Target::Kept { file, .. } => file.write_all(bytes),
        })
    }

    /// Makes the data durable, then makes the file visible under its name.
    pub(crate) fn finish(self) -> Result<(), CodecError> {
        self.intact()?;
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

/// A mapped file. Its header was parsed and matches the length of the file.
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
        // SAFETY: the map is read-only and is read only as bytes, for which every pattern is valid. This crate replaces files by
        // rename and never changes them in place. Another program that truncates a file while it is open breaks the contract of
        // every reader that maps files.
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

    /// The description and the bytes of a tensor.
    pub(crate) fn tensor(&self, name: &str) -> Result<(&TensorInfo, &[u8]), CodecError> {
        let Some(info) = self.header.info(name) else {
            return Err(self.error(name, "a tensor", format!("tensors {:?}", self.names())));
        };
        let (start, end) = info.data_offsets;
        // In bounds: the header's offsets were checked to be contiguous and to end with the data.
        Ok((info, &self.map[self.data_start..][start..end]))
    }

    /// All metadata strings, as pairs of key and value.
    pub(crate) fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        let entries = self.header.metadata().iter().flatten();
        entries.map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The metadata string of a key that must exist.
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
