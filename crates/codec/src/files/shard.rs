//! Calibration shards: files with the vectors of one layer and one kind.
//!
//! A shard is a safetensors file with one tensor `vectors`, f16 `(T, Hkv, D)` (tokens, KV heads, head_dim). Its metadata
//! strings are `layer`, `kind` and those of the caller.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use half::f16;
use half::slice::HalfFloatSliceExt;
use safetensors::Dtype;

use crate::files::{Planned, Reader, Writer};
use crate::{CodecError, Kind};

const TENSOR: &str = "vectors";

/// Elements converted at a time, on the stack.
const BATCH: usize = 256;

/// The content of a shard, as its header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardHeader {
    /// Layer index, from 0.
    pub layer: usize,
    /// Keys or values.
    pub kind: Kind,
    /// Tokens, `T`.
    pub tokens: usize,
    /// KV heads, `Hkv`, at least 1.
    pub heads: usize,
    /// Channels per head, `D`, at least 1.
    pub head_dim: usize,
    /// More metadata, for example the model and the corpus. The keys `layer` and `kind` are reserved.
    pub extra: BTreeMap<String, String>,
}

/// Writes a shard token by token under a temporary name. [`ShardWriter::finish`] renames it. If a writer is dropped
/// unfinished, the file is removed, unless it was started by [`ShardWriter::resume`].
///
/// After an error of the disk, every call fails with [`CodecError::Broken`]: tokens appended again could be in the file twice.
/// A new writer can continue the shard.
#[derive(Debug)]
pub struct ShardWriter {
    file: Writer,
    row: usize,
    expected: usize,
    written: usize,
}

impl ShardWriter {
    /// Starts a shard that will hold exactly `header.tokens` tokens.
    ///
    /// # Errors
    /// If the header is not valid or the file cannot be created.
    pub fn create(path: impl AsRef<Path>, header: ShardHeader) -> Result<Self, CodecError> {
        let path = path.as_ref();
        let (row, expected, metadata, planned) = Self::plan(path, header)?;
        Ok(Self { file: Writer::create(path, &metadata, &[planned])?, row, expected, written: 0 })
    }

    /// Continues the shard with the same header that an earlier run started or finished. An unfinished shard has the suffix
    /// `.unfinished`. If this writer is dropped unfinished, the file stays for the next run.
    ///
    /// # Errors
    /// The same as [`ShardWriter::create`].
    pub fn resume(path: impl AsRef<Path>, header: ShardHeader) -> Result<Self, CodecError> {
        let path = path.as_ref();
        let (row, expected, metadata, planned) = Self::plan(path, header)?;
        let (file, bytes) = Writer::resume(path, &metadata, &[planned])?;
        let tokens = usize::try_from(bytes).unwrap_or(usize::MAX) / (2 * row);
        let mut shard = Self { file, row, expected, written: 0 };
        shard.keep(tokens.min(expected / row))?;
        Ok(shard)
    }

    /// Number of tokens written so far.
    pub fn tokens(&self) -> usize {
        self.written / self.row
    }

    /// Keeps the first `tokens` tokens of a continued shard and removes the others.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn keep(&mut self, tokens: usize) -> Result<(), CodecError> {
        let kept = tokens * self.row;
        self.file.keep(2 * kept as u64)?;
        self.written = kept;
        Ok(())
    }

    /// Makes the tokens written so far durable, so that another run can continue them.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn sync(&mut self) -> Result<(), CodecError> {
        self.file.sync()
    }

    /// The number of elements per token, the total number of elements, the metadata and the tensor.
    fn plan(path: &Path, header: ShardHeader) -> Result<(usize, usize, BTreeMap<String, String>, Planned), CodecError> {
        let shape = [header.tokens, header.heads, header.head_dim];
        let wrong = |expected| CodecError::file(path, TENSOR, expected, format!("shape {shape:?}"));
        if header.heads == 0 || header.head_dim == 0 {
            return Err(wrong("at least one head and channel"));
        }
        let too_large = || wrong("a shape whose bytes can be addressed");
        let row = elements(&shape[1..]).ok_or_else(too_large)?;
        let expected = elements(&shape).ok_or_else(too_large)?;
        let bytes = expected.checked_mul(2).ok_or_else(too_large)?;
        let mut metadata = header.extra;
        for (key, value) in [("layer", header.layer.to_string()), ("kind", header.kind.to_string())] {
            if let Some(found) = metadata.insert(key.into(), value) {
                return Err(CodecError::file(path, key, "no extra entry", found));
            }
        }
        Ok((row, expected, metadata, Planned { name: TENSOR.into(), dtype: "F16", shape: shape.to_vec(), bytes }))
    }

    /// Appends tokens `(t, Hkv, D)`, rounded to f16.
    ///
    /// # Errors
    /// - If `vectors` is not a whole number of tokens, or there are more tokens than the header says.
    /// - If an element is not finite in f16. The row of this error is the token's number within the call.
    /// - If the disk refuses.
    ///
    /// After an error no token of the call counts. The shard then has too few tokens, and [`ShardWriter::finish`] refuses it.
    pub fn append(&mut self, vectors: &[f32]) -> Result<(), CodecError> {
        CodecError::multiple("calibration vectors", self.row, vectors.len())?;
        if vectors.len() > self.expected - self.written {
            return Err(CodecError::Length {
                what: "calibration vectors",
                expected: self.expected,
                found: self.written + vectors.len(),
            });
        }
        let most = f16::MAX.to_f32();
        if let Some(at) = vectors.iter().position(|x| x.is_nan() || x.abs() > most) {
            return Err(CodecError::NonFiniteRow { row: at / self.row });
        }
        let mut halves = [f16::ZERO; BATCH];
        let mut bytes = [0u8; 2 * BATCH];
        for batch in vectors.chunks(BATCH) {
            let halves = &mut halves[..batch.len()];
            halves.convert_from_f32_slice(batch);
            for (to, from) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(halves.iter()) {
                *to = from.to_le_bytes();
            }
            self.file.write(&bytes[..2 * batch.len()])?;
        }
        self.written += vectors.len();
        Ok(())
    }

    /// Checks the number of tokens, makes the file durable and gives it its name.
    ///
    /// # Errors
    /// If fewer tokens were appended than the header says, or the disk refuses.
    pub fn finish(self) -> Result<(), CodecError> {
        if self.written != self.expected {
            let tokens = |elements| format!("{} tokens", elements / self.row);
            return Err(CodecError::file(self.file.path(), TENSOR, tokens(self.expected), tokens(self.written)));
        }
        self.file.finish()
    }
}

/// A shard that is open for reading. The file is mapped, so random vectors can be read from a file that is larger than
/// the memory.
///
/// The file is validated when it is opened. It must not be changed while it is open.
#[derive(Debug)]
pub struct Shard {
    file: Reader,
    header: ShardHeader,
}

impl Shard {
    /// Opens and validates a shard.
    ///
    /// # Errors
    /// If the file cannot be read, or is not one f16 tensor `vectors` of three dimensions with
    /// metadata `layer` and `kind`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CodecError> {
        let file = Reader::open(path.as_ref())?;
        let names = file.names();
        if names != [TENSOR] {
            return Err(file.error("tensors", format!("[{TENSOR:?}]"), format!("{names:?}")));
        }
        let (info, _) = file.tensor(TENSOR)?;
        if info.dtype != Dtype::F16 {
            return Err(file.error(TENSOR, "dtype F16", format!("{:?}", info.dtype)));
        }
        let &[tokens, heads @ 1..=usize::MAX, head_dim @ 1..=usize::MAX] = info.shape.as_slice() else {
            return Err(file.error(
                TENSOR,
                "shape (tokens, heads, head_dim), heads and head_dim at least 1",
                format!("{:?}", info.shape),
            ));
        };
        let layer = file.meta("layer")?;
        let layer = layer.parse().map_err(|_| file.error("layer", "a layer index", format!("{layer:?}")))?;
        let kind = file.meta("kind")?;
        let kind = Kind::ALL
            .into_iter()
            .find(|k| k.as_str() == kind)
            .ok_or_else(|| file.error("kind", "\"key\" or \"value\"", format!("{kind:?}")))?;
        let extra = file
            .metadata()
            .filter(|(key, _)| !["layer", "kind"].contains(key))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let header = ShardHeader { layer, kind, tokens, heads, head_dim, extra };
        Ok(Self { file, header })
    }

    /// All header fields of the file.
    #[must_use]
    pub fn header(&self) -> &ShardHeader {
        &self.header
    }

    /// Layer index, from 0.
    #[must_use]
    pub fn layer(&self) -> usize {
        self.header.layer
    }

    /// Keys or values.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.header.kind
    }

    /// Tokens, `T`.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.header.tokens
    }

    /// KV heads, `Hkv`.
    #[must_use]
    pub fn heads(&self) -> usize {
        self.header.heads
    }

    /// Channels per head, `D`.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.header.head_dim
    }

    /// Number of vectors if every head vector is cut into equal chunks of `width` channels (the paper's
    /// `s_n = head_dim / width` chunks): `T * Hkv * s_n`. They are ordered by token, head, chunk.
    ///
    /// # Panics
    /// If `width` does not divide `head_dim`.
    #[must_use]
    pub fn rows(&self, width: usize) -> usize {
        assert!(
            width > 0 && self.head_dim().is_multiple_of(width),
            "chunks of width {width} do not divide head_dim {}",
            self.head_dim()
        );
        self.tokens() * self.heads() * (self.head_dim() / width)
    }

    /// Reads the vectors `rows` of width `width` into `out`, `(rows.len(), width)`.
    ///
    /// # Errors
    /// If `width` does not divide `head_dim`, `rows` is out of range or `out` has another size.
    pub fn read(&self, width: usize, rows: Range<usize>, out: &mut [f32]) -> Result<(), CodecError> {
        let held = self.checked_rows(width)?;
        if rows.start > rows.end || rows.end > held {
            return Err(CodecError::RowRange { start: rows.start, end: rows.end, rows: held });
        }
        CodecError::length("vectors read", rows.len() * width, out.len())?;
        let (_, bytes) = self.file.tensor(TENSOR)?;
        to_f32(&bytes[2 * rows.start * width..2 * rows.end * width], out);
        Ok(())
    }

    /// Reads the vectors with the numbers in `rows`, in that order, into `out`, `(rows.len(), width)`.
    ///
    /// # Errors
    /// The same as [`Shard::read`]. `out` may then be partly written.
    pub fn gather(&self, width: usize, rows: &[usize], out: &mut [f32]) -> Result<(), CodecError> {
        let held = self.checked_rows(width)?;
        CodecError::length("vectors gathered", rows.len() * width, out.len())?;
        let (_, bytes) = self.file.tensor(TENSOR)?;
        for (&row, out) in rows.iter().zip(out.chunks_exact_mut(width)) {
            if row >= held {
                return Err(CodecError::RowRange { start: row, end: row.saturating_add(1), rows: held });
            }
            to_f32(&bytes[2 * row * width..2 * (row + 1) * width], out);
        }
        Ok(())
    }

    fn checked_rows(&self, width: usize) -> Result<usize, CodecError> {
        let head_dim = self.head_dim();
        if width == 0 || !head_dim.is_multiple_of(width) {
            return Err(CodecError::ChunkWidth { width, head_dim });
        }
        Ok(self.rows(width))
    }
}

fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

/// Converts little-endian f16 to f32 through a buffer on the stack, since the mapped bytes may have an odd address.
fn to_f32(bytes: &[u8], out: &mut [f32]) {
    let mut halves = [f16::ZERO; BATCH];
    for (bytes, out) in bytes.chunks(2 * BATCH).zip(out.chunks_mut(BATCH)) {
        let halves = &mut halves[..out.len()];
        for (half, &bytes) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *half = f16::from_le_bytes(bytes);
        }
        halves.convert_to_f32_slice(out);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::File;
    use std::io::BufWriter;

    use super::*;
    use crate::files::Target;

    /// Gives a continued shard another file to write to. Returns the one that it had.
    fn swap(writer: &mut ShardWriter, file: File) -> File {
        let Target::Kept { file: held, .. } = &mut writer.file.target else { panic!("a shard that is not continued") };
        std::mem::replace(held, BufWriter::new(file)).into_parts().0
    }

    #[test]
    fn after_an_error_of_the_disk_a_shard_is_not_written_on() {
        let dir = tempfile::tempdir().unwrap();
        let (path, unfinished) = (dir.path().join("s"), dir.path().join("s.unfinished"));
        // Tokens of 128 KiB, more than a file buffers.
        let head_dim = 1 << 16;
        let header = ShardHeader { layer: 0, kind: Kind::Key, tokens: 2, heads: 1, head_dim, extra: BTreeMap::new() };
        let token: Vec<f32> = (0..head_dim).map(|channel| (channel % 2048) as f32).collect();
        let mut writer = ShardWriter::resume(&path, header.clone()).unwrap();
        writer.append(&token).unwrap();
        writer.sync().unwrap();
        // The disk refuses for a while: a file that is open for reading takes nothing.
        let works = swap(&mut writer, File::open(&unfinished).unwrap());
        let refused = writer.append(&token);
        assert!(matches!(&refused, Err(CodecError::Io { path, .. }) if *path == unfinished), "{refused:?}");
        swap(&mut writer, works);
        for result in [writer.append(&token), writer.sync(), writer.keep(0)] {
            assert!(matches!(&result, Err(CodecError::Broken { path }) if *path == unfinished), "{result:?}");
        }
        assert_eq!(writer.tokens(), 1);
        drop(writer);

        let mut writer = ShardWriter::resume(&path, header.clone()).unwrap();
        assert_eq!(writer.tokens(), 1);
        writer.append(&token).unwrap();
        writer.finish().unwrap();
        let shard = Shard::open(&path).unwrap();
        let mut read = vec![0f32; 2 * head_dim];
        shard.read(head_dim, 0..2, &mut read).unwrap();
        assert!(read == [&token[..], &token].concat());
    }
}
