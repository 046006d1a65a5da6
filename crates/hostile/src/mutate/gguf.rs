//! Changes of single fields of a GGUF file. A walk through the file finds the fields.

use std::ops::Range;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::bytes;

/// The kind of a field.
#[derive(Clone, Copy, PartialEq)]
enum Field {
    /// A count, length, number, dimension or offset.
    Number,
    /// The number that stands for a type.
    Type,
    /// The bytes of a string. Its length is the field before.
    Text,
}

/// Gives one field another value. A string gets another length.
pub(super) fn field(out: &mut Vec<u8>, other: &[u8], rng: &mut ChaCha8Rng) {
    let fields = fields(out);
    if fields.is_empty() {
        return bytes::blind(out, other, rng);
    }
    let at = rng.random_range(0..fields.len());
    let (kind, place) = fields[at].clone();
    match kind {
        Field::Number | Field::Type => {
            let usual = out[place.clone()].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
            let number = if kind == Field::Type && rng.random_bool(0.8) {
                rng.random_range(0..42)
            } else if rng.random_bool(0.1) {
                (out.len() - place.end) as u64
            } else {
                bytes::number(usual, rng)
            };
            let length = place.len();
            out[place].copy_from_slice(&number.to_le_bytes()[..length]);
        }
        Field::Text => {
            let mut text = out[place.clone()].to_vec();
            bytes::blind(&mut text, &other[bytes::part(other.len(), rng)], rng);
            if let Some((_, length)) = at.checked_sub(1).map(|before| fields[before].clone()) {
                out[length].copy_from_slice(&(text.len() as u64).to_le_bytes());
            }
            out.splice(place, text);
        }
    }
}

/// Lists the fields of the file. Stops where the file is not valid.
fn fields(file: &[u8]) -> Vec<(Field, Range<usize>)> {
    let mut walk = Walk { file, at: 4, fields: Vec::new() };
    let _ = walk.header();
    walk.fields
}

struct Walk<'a> {
    file: &'a [u8],
    at: usize,
    fields: Vec<(Field, Range<usize>)>,
}

impl Walk<'_> {
    fn header(&mut self) -> Option<()> {
        self.number(Field::Number, 4)?;
        let (tensors, entries) = (self.number(Field::Number, 8)?, self.number(Field::Number, 8)?);
        for _ in 0..entries {
            self.text()?;
            let kind = self.number(Field::Type, 4)?;
            self.value(kind, 0)?;
        }
        for _ in 0..tensors {
            self.text()?;
            for _ in 0..self.number(Field::Number, 4)? {
                self.number(Field::Number, 8)?;
            }
            self.number(Field::Type, 4)?;
            self.number(Field::Number, 8)?;
        }
        Some(())
    }

    fn value(&mut self, kind: u64, deep: usize) -> Option<()> {
        match kind {
            0 | 1 | 7 => drop(self.number(Field::Number, 1)?),
            2 | 3 => drop(self.number(Field::Number, 2)?),
            4..=6 => drop(self.number(Field::Number, 4)?),
            10..=12 => drop(self.number(Field::Number, 8)?),
            8 => self.text()?,
            9 if deep < 3 => {
                let kind = self.number(Field::Type, 4)?;
                for _ in 0..self.number(Field::Number, 8)? {
                    self.value(kind, deep + 1)?;
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn text(&mut self) -> Option<()> {
        let length = usize::try_from(self.number(Field::Number, 8)?).ok()?;
        let place = self.at..self.at.checked_add(length).filter(|&end| end <= self.file.len())?;
        self.at = place.end;
        self.fields.push((Field::Text, place));
        Some(())
    }

    fn number(&mut self, kind: Field, bytes: usize) -> Option<u64> {
        let place = self.at..self.at + bytes;
        let number = self.file.get(place.clone())?.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        self.at = place.end;
        self.fields.push((kind, place));
        Some(number)
    }
}
