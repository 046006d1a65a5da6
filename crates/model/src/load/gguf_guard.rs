//! A walk over a GGUF header before anything believes it.
//!
//! candle's reader bounds every length by the rest of the file, but divides by `general.alignment` unchecked, spends
//! 32 bytes of memory on each element of an array, and keeps the last of two entries with one name. This walk refuses
//! such files first, allocating only the names it compares.
//!
//! Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::HashSet;

/// Elements in all metadata arrays together: vocabularies hold a few hundred thousand.
const MAX_ELEMENTS: u64 = 1 << 24;
/// Metadata entries, and tensors.
const MAX_ENTRIES: u64 = 1 << 16;
const MAX_NESTING: usize = 4;

/// Checks a GGUF (version 2 or 3) header; the error says what is wrong, and at which byte.
pub(super) fn check(file: &[u8]) -> Result<(), String> {
    let mut walk = Walk { file, at: 0, elements: 0 };
    if walk.take(4)? != b"GGUF" {
        return Err("it does not begin with the magic `GGUF`".to_owned());
    }
    let version = walk.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("version {version} (supported: 2, 3)"));
    }
    let (tensors, entries) = (walk.u64()?, walk.u64()?);
    if tensors > MAX_ENTRIES || entries > MAX_ENTRIES {
        return Err(format!(
            "{tensors} tensors and {entries} metadata entries; at most {MAX_ENTRIES} of each are believable"
        ));
    }
    let mut names = HashSet::new();
    for _ in 0..entries {
        let name = walk.string()?;
        let kind = walk.u32()?;
        let at = walk.at;
        walk.value(kind, 0)?;
        if name == b"general.alignment" {
            let raw = &walk.file[at..walk.at];
            let alignment = raw.iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
            if kind != 4 || !alignment.is_power_of_two() {
                return Err(format!("general.alignment is {alignment} of type {kind}, not a u32 power of two"));
            }
        }
        if !names.insert(name) {
            return Err(format!("metadata key `{}` appears twice", String::from_utf8_lossy(name)));
        }
    }
    names.clear();
    for _ in 0..tensors {
        let name = walk.string()?;
        let shown = || String::from_utf8_lossy(name).into_owned();
        let dimensions = walk.u32()?;
        if !(1..=4).contains(&dimensions) {
            return Err(format!("tensor `{}` has {dimensions} dimensions", shown()));
        }
        let mut elements = 1u64;
        for _ in 0..dimensions {
            elements = elements
                .checked_mul(walk.u64()?)
                .filter(|&elements| elements <= 1 << 40)
                .ok_or_else(|| format!("tensor `{}` has over 2^40 elements", shown()))?;
        }
        let (_dtype, _offset) = (walk.u32()?, walk.u64()?);
        if !names.insert(name) {
            return Err(format!("tensor `{}` appears twice", shown()));
        }
    }
    Ok(())
}

struct Walk<'a> {
    file: &'a [u8],
    at: usize,
    elements: u64,
}

impl<'a> Walk<'a> {
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

    fn u32(&mut self) -> Result<u32, String> {
        let bytes = self.take(4)?.try_into().expect("4 bytes were taken");
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64, String> {
        let bytes = self.take(8)?.try_into().expect("8 bytes were taken");
        Ok(u64::from_le_bytes(bytes))
    }

    fn string(&mut self) -> Result<&'a [u8], String> {
        let length = self.u64()?;
        self.take(length)
    }

    /// Steps over one value; fixed sizes by GGUF's type number, 8 is a string, 9 an array.
    fn value(&mut self, kind: u32, nesting: usize) -> Result<(), String> {
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => return self.string().map(|_| ()),
            9 => return self.array(nesting + 1),
            _ => return Err(format!("unknown value type {kind} at byte {}", self.at)),
        };
        self.take(size).map(|_| ())
    }

    fn array(&mut self, nesting: usize) -> Result<(), String> {
        let (kind, length) = (self.u32()?, self.u64()?);
        self.elements = self.elements.saturating_add(length);
        if self.elements > MAX_ELEMENTS || nesting > MAX_NESTING {
            return Err(format!(
                "arrays of over {MAX_ELEMENTS} elements, or nested over {MAX_NESTING} deep, at byte {}",
                self.at
            ));
        }
        (0..length).try_for_each(|_| self.value(kind, nesting))
    }
}
