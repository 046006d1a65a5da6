//! Damaged inputs. A seeded generator makes each one from files of the corpus, so the number of an input is enough to
//! make it again.
//!
//! Most changes are blind: changed bits, cuts, repeats, numbers at their limits, pieces of other files. Formats with
//! lengths and digests are also changed on the inside and then assembled again, because blind damage rarely passes
//! their first check.

mod bytes;
mod gguf;
mod packed;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The length of the longest input.
pub const LONGEST: usize = 1 << 14;

/// The format of an input. It decides how inputs are changed.
#[derive(Debug, Clone, Copy)]
pub enum Form {
    /// Bytes without a known format.
    Bytes,
    /// Text, with words that have a meaning for its reader.
    Text(&'static [&'static str]),
    /// A length, a JSON header, and data.
    Safetensors,
    /// The fields of GGUF, one after the other.
    Gguf,
    /// The members of an archive.
    Zip,
    /// A stored prompt. Its header has digests.
    Prompt,
}

/// Words used in JSON headers.
const HEADER: &[&str] = &[
    "0",
    "1",
    "-1",
    "4",
    "255",
    "65535",
    "4294967295",
    "9007199254740993",
    "18446744073709551615",
    "1e999",
    "null",
    "[]",
    "{}",
    "\"F32\"",
    "\"F16\"",
    "\"BF16\"",
    "\"F64\"",
    "\"U8\"",
    "\"I64\"",
    "\"F8_E4M3\"",
    "\"F4\"",
    "\"dtype\":",
    "\"shape\":",
    "\"data_offsets\":",
    "\"__metadata__\":",
    "\"key\"",
    "\"value\"",
    "layer.0.key.",
    "group.0.atoms",
    "\\\"",
    "\\u0000",
    ",",
    ":",
    "{",
    "}",
    "[",
    "]",
    " ",
];

/// The inputs of one target.
pub struct Inputs<'a> {
    corpus: &'a [Vec<u8>],
    form: Form,
    seed: u64,
}

impl<'a> Inputs<'a> {
    /// Inputs from the files of a corpus, which needs at least one file. Equal seeds give equal inputs.
    #[must_use]
    pub fn new(corpus: &'a [Vec<u8>], form: Form, seed: u64) -> Self {
        Self { corpus, form, seed }
    }

    /// Writes input number `at` to `out`: a file of the corpus with a few changes.
    pub fn make(&self, at: u64, out: &mut Vec<u8>) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ at.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        out.clear();
        let Some(chosen) = self.pick(&mut rng) else { return };
        out.extend_from_slice(chosen);
        // Half of the inputs have a single change, so that the effect of one field is not hidden by another.
        let changes = if rng.random_bool(0.5) { 1 } else { rng.random_range(1..6) };
        for _ in 0..changes {
            self.change(out, &mut rng);
        }
        out.truncate(LONGEST);
    }

    /// The shortest of three files. Short inputs test as much, and more of them can be run.
    fn pick(&self, rng: &mut ChaCha8Rng) -> Option<&'a [u8]> {
        if self.corpus.is_empty() {
            return None;
        }
        let some = [(); 3].map(|()| self.corpus[rng.random_range(0..self.corpus.len())].as_slice());
        some.into_iter().min_by_key(|file| file.len())
    }

    fn change(&self, out: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
        let other = self.pick(rng).unwrap_or_default();
        let inside = rng.random_bool(0.7);
        match self.form {
            Form::Text(words) if inside => bytes::text(out, words, other, rng),
            Form::Safetensors if inside => packed::safetensors(out, rng),
            Form::Gguf if inside => gguf::field(out, other, rng),
            Form::Zip if inside => packed::zip(out, other, rng),
            Form::Prompt if inside => packed::prompt(out, rng),
            _ => bytes::blind(out, other, rng),
        }
    }
}
