//! The header of a GGUF file, read without trusting it.
//!
//! Before memory is used, every length is checked against the rest of the file, and every count against a plausible
//! limit. Two entries with the same name are refused. Types of tensors are stored as the numbers in the file, so that
//! an unreadable type can still be named.
//!
//! Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;

/// The largest number of elements in all metadata arrays together. Vocabularies have a few hundred thousand.
const MAX_ELEMENTS: u64 = 1 << 24;
/// The largest number of metadata entries, and of tensors.
const MAX_ENTRIES: u64 = 1 << 16;
const MAX_NESTING: usize = 4;
/// The alignment of the tensors' data, if `general.alignment` is missing.
const ALIGNMENT: u64 = 32;

/// The header of a GGUF file.
pub(super) struct Header {
    pub(super) metadata: HashMap<String, Value>,
    pub(super) tensors: HashMap<String, TensorInfo>,
    /// The offset where the tensors' data begins.
    pub(super) data: u64,
}

/// The location and the type of a tensor.
pub(super) struct TensorInfo {
    /// GGML's number of the type.
    pub(super) kind: u32,
    /// The dimensions. The outermost dimension comes first.
    pub(super) shape: Vec<usize>,
    /// The offset from the start of the data.
    pub(super) offset: u64,
}

impl Header {
    /// Reads a header of GGUF version 2 or 3. The error says what is wrong, and at which byte.
    pub(super) fn read(file: &[u8]) -> Result<Self, String> {
        let mut walk = Walk { file, at: 0, elements: 0 };
        if walk.take(4)? != b"GGUF" {
            return Err("it does not begin with the magic `GGUF`".to_owned());
        }
        let version = walk.u32()?;
        if !(2..=3).contains(&version) {
            return Err(match version.swap_bytes() {
                2 | 3 => "it is written for a big-endian machine (supported: little-endian files)".to_owned(),
                _ => format!("version {version} (supported: 2, 3)"),
            });
        }
        let (tensors, entries) = (walk.u64()?, walk.u64()?);
        if tensors > MAX_ENTRIES || entries > MAX_ENTRIES {
            return Err(format!(
                "{tensors} tensors and {entries} metadata entries; at most {MAX_ENTRIES} of each are believable"
            ));
        }
        let metadata = walk.metadata(entries)?;
        let alignment = match metadata.get("general.alignment") {
            Some(Value::U32(alignment)) => u64::from(*alignment),
            _ => ALIGNMENT,
        };
        let tensors = walk.tensors(tensors)?;
        Ok(Self { metadata, tensors, data: (walk.at as u64).next_multiple_of(alignment) })
    }
}

struct Walk<'a> {
    file: &'a [u8],
    at: usize,
    elements: u64,
}

impl<'a> Walk<'a> {
    fn metadata(&mut self, entries: u64) -> Result<HashMap<String, Value>, String> {
        let mut metadata = HashMap::new();
        for _ in 0..entries {
            let name = self.string()?;
            let kind = self.u32()?;
            let at = self.at;
            let value = self.value(kind, 0)?;
            if name == "general.alignment" {
                let raw = &self.file[at..self.at];
                let alignment = raw.iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
                if kind != 4 || !alignment.is_power_of_two() {
                    return Err(format!("general.alignment is {alignment} of type {kind}, not a u32 power of two"));
                }
            }
            if metadata.contains_key(&name) {
                return Err(format!("metadata key `{name}` appears twice"));
            }
            metadata.insert(name, value);
        }
        Ok(metadata)
    }

    fn tensors(&mut self, count: u64) -> Result<HashMap<String, TensorInfo>, String> {
        let mut tensors = HashMap::new();
        for _ in 0..count {
            let name = self.string()?;
            let dimensions = self.u32()?;
            if !(1..=4).contains(&dimensions) {
                return Err(format!("tensor `{name}` has {dimensions} dimensions"));
            }
            let (mut elements, mut shape) = (1u64, Vec::new());
            for _ in 0..dimensions {
                let dimension = self.u64()?;
                elements = elements
                    .checked_mul(dimension)
                    .filter(|&elements| elements <= 1 << 40)
                    .ok_or_else(|| format!("tensor `{name}` has over 2^40 elements"))?;
                shape.push(usize::try_from(dimension).map_err(|e| format!("tensor `{name}`: {e}"))?);
            }
            shape.reverse();
            let (kind, offset) = (self.u32()?, self.u64()?);
            if tensors.contains_key(&name) {
                return Err(format!("tensor `{name}` appears twice"));
            }
            tensors.insert(name, TensorInfo { kind, shape, offset });
        }
        Ok(tensors)
    }

    fn take(&mut self, bytes: u64) -> Result<&'a [u8], String> {
        let rest = &self.file[self.at..];
        match usize::try_from(bytes).ok().and_then(|bytes| rest.get(..bytes)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => {
                Err(format!("the header needs {bytes} bytes at byte {}, but only {} are left", self.at, rest.len()))
            }
        }
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N as u64)?.try_into().expect("as many bytes were taken"))
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.number()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.number()?))
    }

    /// Some writers end strings with a zero byte. Bytes that are not UTF-8 become U+FFFD.
    fn string(&mut self) -> Result<String, String> {
        let length = self.u64()?;
        let bytes = self.take(length)?;
        let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    /// Reads one value of GGUF's type number `kind`. 8 is a string, and 9 an array.
    fn value(&mut self, kind: u32, nesting: usize) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.number()?)),
            1 => Value::I8(i8::from_le_bytes(self.number()?)),
            2 => Value::U16(u16::from_le_bytes(self.number()?)),
            3 => Value::I16(i16::from_le_bytes(self.number()?)),
            4 => Value::U32(u32::from_le_bytes(self.number()?)),
            5 => Value::I32(i32::from_le_bytes(self.number()?)),
            6 => Value::F32(f32::from_le_bytes(self.number()?)),
            7 => match u8::from_le_bytes(self.number()?) {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(format!("a boolean is {other} at byte {}", self.at - 1)),
            },
            8 => Value::String(self.string()?),
            9 => Value::Array(self.array(nesting + 1)?),
            10 => Value::U64(u64::from_le_bytes(self.number()?)),
            11 => Value::I64(i64::from_le_bytes(self.number()?)),
            12 => Value::F64(f64::from_le_bytes(self.number()?)),
            _ => return Err(format!("unknown value type {kind} at byte {}", self.at)),
        })
    }

    fn array(&mut self, nesting: usize) -> Result<Vec<Value>, String> {
        let (kind, length) = (self.u32()?, self.u64()?);
        self.elements = self.elements.saturating_add(length);
        if self.elements > MAX_ELEMENTS || nesting > MAX_NESTING {
            return Err(format!(
                "arrays of over {MAX_ELEMENTS} elements, or nested over {MAX_NESTING} deep, at byte {}",
                self.at
            ));
        }
        (0..length).map(|_| self.value(kind, nesting)).collect()
    }
}
