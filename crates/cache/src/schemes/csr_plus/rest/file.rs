//! The file format of a stored prompt.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `kvcsr-pc` |
//! | 8 | length of the header, little-endian |
//! | that many | the [`Header`], JSON |
//! | 32 | BLAKE3 of the header |
//! | 4 each | ids of the prompt's tokens, little-endian |
//! | as the header says | the code of each layer |
//!
//! A file does not need to be trusted. The header has the length and the digest of every part, and the memory allocated
//! is at most a multiple of the file's size. The file is mapped, so a layer is read only when it is restored.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use kvcsr_codec::CodecError;
use kvcsr_codec::atomic::AtomicFile;
use memmap2::Mmap;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{RestCodec, encode_all};
use crate::{CacheError, Geometry, PrefillSnapshot};

/// The first bytes of a file.
const MAGIC: &[u8; 8] = b"kvcsr-pc";
/// Version of the format.
const FORMAT: u32 = 1;
/// Bytes before the header.
const BEFORE: usize = 16;
/// Bytes of a digest.
const DIGEST: usize = 32;
/// The largest size of a header. About 200 bytes per layer are usual.
const MOST_HEADER: usize = 1 << 20;

/// The header of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Version of the format.
    pub format: u32,
    /// Which model: a digest of its weights, or a name that the caller chose.
    pub model: String,
    /// A digest of the tables: [`RestCodec::tables`].
    pub tables: String,
    /// Key-value heads, `Hkv`.
    pub kv_heads: usize,
    /// Channels of a head, `D`.
    pub head_dim: usize,
    /// The number of tokens whose keys and values are stored: the first tokens of the prompt.
    pub tokens: usize,
    /// The requested bits per channel.
    pub bits: f64,
    /// [`RestCodec::step`].
    pub step: f64,
    /// Ids of the prompt's tokens.
    pub ids: Section,
    /// The code of each layer.
    pub layers: Vec<Section>,
}

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Its length in bytes.
    pub bytes: usize,
    /// Its BLAKE3 digest, in hexadecimal digits.
    pub blake3: String,
}

impl Section {
    fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len(), blake3: blake3::hash(bytes).to_hex().to_string() }
    }
}

/// An open file. Its header and ids have been checked.
#[derive(Debug)]
pub struct PromptFile {
    path: PathBuf,
    header: Header,
    ids: Vec<u32>,
    map: Mmap,
    /// The offset of the first layer.
    start: usize,
}

impl PromptFile {
    /// Codes the keys and values of `snapshot`, and writes them with the prompt's `ids`. The file has a temporary name
    /// until it is complete. Returns the number of bytes written. `ids` may be longer than the snapshot: the tokens
    /// after it must run through the model after restoring. The last token should be one of them, since a file holds no
    /// logits.
    ///
    /// # Errors
    /// If the snapshot does not have the codec's shape or has more tokens than `ids`, or if the file cannot be written.
    pub fn write(
        path: &Path,
        codec: &RestCodec,
        model: &str,
        ids: &[u32],
        snapshot: &PrefillSnapshot,
    ) -> Result<usize, CacheError> {
        let Geometry { layers, kv_heads, head_dim } = codec.geometry();
        if snapshot.keys.len() != layers || snapshot.len() > ids.len() {
            return Err(CacheError::PromptFile {
                path: path.to_owned(),
                part: "the prompt to write".to_owned(),
                expected: format!("{layers} layers and at most {} tokens", ids.len()),
                found: format!("{} layers and {} tokens", snapshot.keys.len(), snapshot.len()),
            });
        }
        let coded = encode_all(codec, snapshot)?;
        let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let header = Header {
            format: FORMAT,
            model: model.to_owned(),
            tables: codec.tables().to_owned(),
            kv_heads,
            head_dim,
            tokens: snapshot.len(),
            bits: codec.bits(),
            step: codec.step(),
            ids: Section::of(&ids),
            layers: coded.iter().map(|code| Section::of(code)).collect(),
        };
        let io = |source| CacheError::File(CodecError::Io { path: path.to_owned(), source });
        let header = serde_json::to_vec(&header).map_err(|error| io(error.into()))?;
        let mut file = AtomicFile::create(path).map_err(io)?;
        let (length, digest) = ((header.len() as u64).to_le_bytes(), *blake3::hash(&header).as_bytes());
        let before: [&[u8]; 5] = [MAGIC, &length, &header, &digest, &ids];
        let mut written = 0;
        for part in before.into_iter().chain(coded.iter().map(|code| &code[..])) {
            file.write_all(part).map_err(io)?;
            written += part.len();
        }
        file.persist().map_err(io)?;
        Ok(written)
    }

    /// Opens a file that does not need to be trusted. Its start, header, lengths and ids are checked now, and each
    /// layer when it is restored.
    ///
    /// # Errors
    /// [`CacheError::PromptFile`], with the part, what was expected and what was found.
    pub fn open(path: &Path) -> Result<Self, CacheError> {
        let refuse = |part: &str, expected: String, found: String| CacheError::PromptFile {
            path: path.to_owned(),
            part: part.to_owned(),
            expected,
            found,
        };
        let io = |source| CacheError::File(CodecError::Io { path: path.to_owned(), source });
        let file = File::open(path).map_err(io)?;
        // SAFETY: the file is only read. As for all files mapped here, nobody may change it in the meantime.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let bytes = &map[..];
        if bytes.len() < BEFORE + DIGEST || &bytes[..8] != MAGIC {
            let found = format!("{} bytes that begin otherwise", bytes.len());
            return Err(refuse("beginning", "a prompt cache that `--save-cache` wrote".to_owned(), found));
        }
        let length = u64::from_le_bytes(std::array::from_fn(|at| bytes[8 + at]));
        let most = MOST_HEADER.min(bytes.len() - BEFORE - DIGEST);
        let Some(length) = usize::try_from(length).ok().filter(|length| *length <= most) else {
            return Err(refuse("header", format!("at most {most} bytes"), format!("{length}")));
        };
        let (text, rest) = bytes[BEFORE..].split_at(length);
        if blake3::hash(text).as_bytes() != &rest[..DIGEST] {
            return Err(refuse("header", "the digest after it".to_owned(), "another: the file was changed".to_owned()));
        }
        let header: Header = serde_json::from_slice(text)
            .map_err(|error| refuse("header", format!("that of format {FORMAT}"), error.to_string()))?;
        if header.format != FORMAT {
            return Err(refuse("header", format!("format {FORMAT}"), format!("format {}", header.format)));
        }
        let usual = |x: f64| x.is_finite() && (1e-30..1e30).contains(&x);
        if !usual(header.bits) || !usual(header.step) {
            let found = format!("bits {} and step {}", header.bits, header.step);
            return Err(refuse("header", "bits and a step above 0".to_owned(), found));
        }
        let at = BEFORE + length + DIGEST;
        let mut sections = std::iter::once(&header.ids).chain(&header.layers);
        let end = sections.try_fold(at, |end, section| end.checked_add(section.bytes));
        if end != Some(bytes.len()) {
            let expected = end.map_or_else(|| "what memory holds".to_owned(), |end| format!("{end} bytes"));
            return Err(refuse("length", expected, format!("{} bytes: the file was cut or added to", bytes.len())));
        }
        let start = at + header.ids.bytes;
        let own = &bytes[at..start];
        if Section::of(own) != header.ids {
            return Err(refuse("ids", "the digest of the header".to_owned(), "another: they were changed".to_owned()));
        }
        let (ids, tail) = own.as_chunks::<4>();
        if !tail.is_empty() || header.tokens > ids.len() || header.tokens == 0 {
            let found = format!("{} bytes of ids for {} tokens", own.len(), header.tokens);
            return Err(refuse("ids", "4 bytes for each of at least one token".to_owned(), found));
        }
        let ids = ids.iter().map(|id| u32::from_le_bytes(*id)).collect();
        Ok(Self { path: path.to_owned(), ids, map, start, header })
    }

    /// The header of the file.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Ids of the prompt's tokens. The keys and values of the first [`Header::tokens`] are stored.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.map.len()
    }

    /// Checks that the file belongs to this model, by the name that it was written with.
    ///
    /// # Errors
    /// [`CacheError::PromptFile`], with both names.
    pub fn expect_model(&self, model: &str) -> Result<(), CacheError> {
        if self.header.model == model {
            return Ok(());
        }
        Err(self.refuse("model", model.to_owned(), self.header.model.clone()))
    }

    /// Restores the keys and values of all layers in parallel. Any scheme can start from this state. It has no queries,
    /// and its logits have no columns: run the tokens that the file does not hold.
    ///
    /// `set` are the tables of `csr+` that the file was written with.
    ///
    /// # Errors
    /// [`CacheError::PromptFile`] for other tables, for a model of another shape, and for a layer that was changed.
    pub fn restore(&self, set: &kvcsr_codec::CodebookSet, geometry: Geometry) -> Result<PrefillSnapshot, CacheError> {
        let Header { kv_heads, head_dim, tokens, bits, step, .. } = self.header;
        let own = Geometry { layers: self.header.layers.len(), kv_heads, head_dim };
        if own != geometry {
            let say = |g: Geometry| format!("{} layers of {} key-value heads of {}", g.layers, g.kv_heads, g.head_dim);
            return Err(self.refuse("model", say(geometry), say(own)));
        }
        let codec = RestCodec::with_step(set, geometry, bits, step)?;
        if codec.tables() != self.header.tables {
            let found = self.header.tables.clone();
            return Err(self.refuse("tables of csr+ it was written with", codec.tables().to_owned(), found));
        }
        let mut at = self.start;
        let sections: Vec<(usize, &Section)> = self
            .header
            .layers
            .iter()
            .map(|section| {
                at += section.bytes;
                (at - section.bytes, section)
            })
            .collect();
        let layers = sections.par_iter().enumerate().map(|(layer, (at, section))| {
            let bytes = &self.map[*at..at + section.bytes];
            if Section::of(bytes) != **section {
                let expected = "the digest of the header".to_owned();
                return Err(self.refuse(&format!("layer {layer}"), expected, "another: it was changed".to_owned()));
            }
            codec.decode(layer, tokens, bytes)
        });
        let (keys, values) = layers.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let last_logits = Tensor::zeros((1, 0), DType::F32, &Device::Cpu)?;
        Ok(PrefillSnapshot { keys, values, queries: Vec::new(), last_logits })
    }

    fn refuse(&self, part: &str, expected: String, found: String) -> CacheError {
        CacheError::PromptFile { path: self.path.clone(), part: part.to_owned(), expected, found }
    }
}
