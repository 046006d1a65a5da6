//! Computes how much memory candle's reader would allocate for a PyTorch file, before that reader gets the file.
//!
//! candle allocates a string by its stated length. It clones an object whenever the pickle stores it or loads it again,
//! so a few bytes can double the total size again and again. It drops nested objects by recursion, and allocates a
//! tensor by its stated shape. So this code first walks through the pickle with sizes instead of objects.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use candle_core::pickle::TensorInfo;
use zip::ZipArchive;

/// The size in bytes of the largest pickle that is read. The pickle of a model describes a few hundred tensors, with
/// 200 bytes each.
const MOST_PICKLE: u64 = 1 << 26;
/// The longest name of a pickle in bytes. candle puts the pickle's folder before the name of every tensor.
const MOST_NAME: usize = 256;
/// A pickle is stored or deflated. Its size is at most this many times the size of the file.
const MOST_DEFLATED: u64 = 8;
/// The bytes that one object takes, including its place in a growing list.
const OBJECT: u64 = 128;
/// The bytes of objects, including copies, that are allowed for each byte of a pickle. Tensors need about 50.
const MOST_MADE: u64 = 256;
/// The largest nesting depth of objects. A parameter's tensor has depth 5.
const MOST_DEEP: usize = 64;

/// Checks the pickle of an archive. The error says what it would take.
pub(super) fn check(path: &Path) -> Result<(), String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|e| e.to_string())?;
    let most = MOST_PICKLE.min(length.saturating_mul(MOST_DEFLATED));
    let mut is_seen = false;
    for at in 0..archive.len() {
        let member = archive.by_index(at).map_err(|e| e.to_string())?;
        if !member.name_raw().ends_with(b"data.pkl") {
            continue;
        }
        if member.name_raw().len() > MOST_NAME {
            return Err(format!("the name of its pickle has over {MOST_NAME} bytes"));
        }
        // Several pickles could share their bytes, and candle reads all of them.
        if std::mem::replace(&mut is_seen, true) {
            return Err("it holds more than one pickle".to_owned());
        }
        let mut pickle = Vec::new();
        member.take(most + 1).read_to_end(&mut pickle).map_err(|e| e.to_string())?;
        if pickle.len() as u64 > most {
            return Err(format!("its pickle has over {most} bytes, the most for a file of {length}"));
        }
        Walk::new(&pickle).run()?;
    }
    Ok(())
}

/// Checks that a described tensor fits into a file of `length` bytes. `torch.save` stores tensors without compression.
pub(super) fn check_tensor(info: &TensorInfo, length: u64) -> Result<(), String> {
    let dims = info.layout.dims();
    let elements = dims.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
    let bytes = elements.and_then(|n| n.checked_mul(info.dtype.size_in_bytes())).map(|bytes| bytes as u64);
    match bytes {
        Some(bytes) if bytes <= length => Ok(()),
        _ => Err(format!("tensor `{}`: shape {dims:?} is more than the file's {length} bytes hold", info.name)),
    }
}

/// An object, represented by its size.
#[derive(Clone, Copy)]
struct Size {
    bytes: u64,
    deep: usize,
    mark: bool,
}

/// candle's machine with sizes. Where candle would stop with its own error, the walk simply ends.
struct Walk<'a> {
    rest: &'a [u8],
    stack: Vec<Size>,
    memo: HashMap<u32, Size>,
    made: u64,
    most: u64,
}

impl<'a> Walk<'a> {
    fn new(pickle: &'a [u8]) -> Self {
        let most = MOST_MADE * pickle.len() as u64;
        Self { rest: pickle, stack: Vec::new(), memo: HashMap::new(), made: 0, most }
    }

    fn run(mut self) -> Result<(), String> {
        while let Some(op) = self.take(1).map(|op| op[0]) {
            if self.step(op)?.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Executes one instruction. `None` where candle's machine stops.
    fn step(&mut self, op: u8) -> Result<Option<()>, String> {
        match op {
            0x80 => Ok(self.take(1).map(drop)),
            b'c' => {
                let Some(bytes) = self.line().zip(self.line()).map(|(module, class)| module + class) else {
                    return Ok(None);
                };
                self.push(bytes as u64, 0)
            }
            b'K' => self.number(1),
            b'M' => self.number(2),
            b'J' => self.number(4),
            b'G' => self.number(8),
            0x8a => match self.take(1).map(|n| n[0]) {
                Some(bytes) => self.number(bytes.into()),
                None => Ok(None),
            },
            b'X' => self.text(),
            b'(' => {
                self.stack.push(Size { bytes: 0, deep: 0, mark: true });
                self.spend(OBJECT)
            }
            b'N' | 0x88 | 0x89 | b')' | b']' | b'}' | b'd' => self.push(0, 0),
            b'Q' | 0x85 => self.join(1),
            0x86 | b'R' | b'b' | 0x81 => self.join(2),
            0x87 => self.join(3),
            b'a' => self.join(2),
            b's' => self.join(3),
            b't' => self.gather(0),
            b'e' | b'u' => self.gather(1),
            b'q' => {
                let id = self.take(1).map(|id| id[0].into());
                self.put(id)
            }
            b'r' => {
                let id = self.word();
                self.put(id)
            }
            b'h' => {
                let id = self.take(1).map(|id| id[0].into());
                self.get(id)
            }
            b'j' => {
                let id = self.word();
                self.get(id)
            }
            _ => Ok(None),
        }
    }

    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(bytes)?;
        self.rest = rest;
        Some(taken)
    }

    fn word(&mut self) -> Option<u32> {
        self.take(4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes)
    }

    /// The length of a line. The line is as long as it is in the file.
    fn line(&mut self) -> Option<usize> {
        let end = self.rest.iter().position(|&byte| byte == b'\n')?;
        self.rest = &self.rest[end + 1..];
        Some(end)
    }

    fn number(&mut self, bytes: usize) -> Result<Option<()>, String> {
        if self.take(bytes).is_none() { Ok(None) } else { self.push(0, 0) }
    }

    fn text(&mut self) -> Result<Option<()>, String> {
        let Some(length) = self.word() else { return Ok(None) };
        let left = self.rest.len();
        match usize::try_from(length).ok().and_then(|bytes| self.take(bytes)) {
            Some(_) => self.push(length.into(), 0),
            None => Err(format!("its pickle has a text of {length} bytes, but only {left} are left")),
        }
    }

    /// Counts allocated bytes.
    fn spend(&mut self, bytes: u64) -> Result<Option<()>, String> {
        self.made = self.made.saturating_add(bytes);
        if self.made > self.most {
            return Err(format!("its pickle makes objects of over {} bytes", self.most));
        }
        Ok(Some(()))
    }

    /// Pushes an object with `bytes` bytes in addition to its own place. The objects below it have depth `deep`.
    fn push(&mut self, bytes: u64, deep: usize) -> Result<Option<()>, String> {
        if deep > MOST_DEEP {
            return Err(format!("its pickle nests objects over {MOST_DEEP} deep"));
        }
        self.stack.push(Size { bytes: bytes.saturating_add(OBJECT), deep, mark: false });
        self.spend(bytes.saturating_add(OBJECT))
    }

    /// Makes one object of the last `count` objects. They are moved, so they are not counted again.
    fn join(&mut self, count: usize) -> Result<Option<()>, String> {
        let Some(from) = self.stack.len().checked_sub(count) else { return Ok(None) };
        let parts = self.stack.split_off(from);
        self.whole(&parts)
    }

    /// Makes one object of all objects since the last mark, and of `before` objects under the mark.
    fn gather(&mut self, before: usize) -> Result<Option<()>, String> {
        let Some(mark) = self.stack.iter().rposition(|size| size.mark) else { return Ok(None) };
        let mut parts = self.stack.split_off(mark + 1);
        self.stack.pop();
        for _ in 0..before {
            match self.stack.pop() {
                Some(under) => parts.push(under),
                None => return Ok(None),
            }
        }
        self.whole(&parts)
    }

    fn whole(&mut self, parts: &[Size]) -> Result<Option<()>, String> {
        let bytes = parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.bytes));
        let deep = parts.iter().map(|part| part.deep + 1).max().unwrap_or(0);
        if deep > MOST_DEEP {
            return Err(format!("its pickle nests objects over {MOST_DEEP} deep"));
        }
        self.stack.push(Size { bytes: bytes.saturating_add(OBJECT), deep, mark: false });
        // A list of moved objects is a new allocation.
        self.spend(OBJECT * (1 + parts.len() as u64))
    }

    fn put(&mut self, id: Option<u32>) -> Result<Option<()>, String> {
        let (Some(id), Some(&last)) = (id, self.stack.last()) else { return Ok(None) };
        self.memo.insert(id, last);
        self.spend(last.bytes.max(OBJECT))
    }

    fn get(&mut self, id: Option<u32>) -> Result<Option<()>, String> {
        let Some(&known) = id.and_then(|id| self.memo.get(&id)) else { return Ok(None) };
        self.stack.push(known);
        self.spend(known.bytes.max(OBJECT))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn error(pickle: &[u8]) -> String {
        Walk::new(pickle).run().unwrap_err()
    }

    #[test]
    fn a_text_longer_than_the_file_is_refused() {
        assert!(error(b"\x80\x02X\xff\xff\xff\x7fabc").contains("2147483647 bytes, but only 3 are left"));
        assert!(Walk::new(b"\x80\x02X\x03\0\0\0abc.").run().is_ok());
    }

    #[test]
    fn doubling_is_refused_and_nesting_too() {
        let doubled = [&b"\x80\x02Nq\0"[..], &b"h\0h\0\x86q\0".repeat(64), b"."].concat();
        assert!(error(&doubled).contains("objects of over"), "{}", error(&doubled));
        let nested = [&b"\x80\x02N"[..], &[0x85; 100_000], b"."].concat();
        assert!(error(&nested).contains("64 deep"), "{}", error(&nested));
        let lists = [&b"\x80\x02"[..], &b"]".repeat(200), &b"a".repeat(199), b"."].concat();
        assert!(error(&lists).contains("64 deep"), "{}", error(&lists));
    }

    #[test]
    fn where_candle_stops_so_does_the_walk() {
        for pickle in [&b""[..], b"\x80", b"t", b"X", b"q\0", b"h\0", b"\xff", b"c", b"ca\n", b"\x86", b"e", b"."] {
            assert!(Walk::new(pickle).run().is_ok(), "{pickle:?}");
        }
    }
}
