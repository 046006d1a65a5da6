//! A limit on the instructions that kernels use.

use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::error::CodecError;

/// Sets of instructions, each with those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Width {
    /// What the target of the build has.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512, with its products of bf16 pairs and of bytes.
    Avx512,
}

impl FromStr for Width {
    type Err = CodecError;

    /// `portable`, `avx2` or `avx512`.
    fn from_str(name: &str) -> Result<Self, CodecError> {
        match name {
            "portable" => Ok(Self::Portable),
            "avx2" => Ok(Self::Avx2),
            "avx512" => Ok(Self::Avx512),
            _ => Err(CodecError::Instructions { found: name.to_owned() }),
        }
    }
}

static LIMIT: AtomicU8 = AtomicU8::new(Width::Avx512 as u8);

/// Keeps kernels from wider instructions than `width`, for the whole process. Call it before any kernel runs.
///
/// Results do not depend on it. It is there to show that, and to do what a machine without the wider instructions does. The matrix product of the `gemm` crate finds its instructions by itself.
pub fn limit_to(width: Width) {
    LIMIT.store(width as u8, Relaxed);
}

/// Whether instructions of this width may be used.
pub(super) fn allows(width: Width) -> bool {
    width as u8 <= LIMIT.load(Relaxed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_known_or_refused() {
        assert_eq!("avx2".parse::<Width>().unwrap(), Width::Avx2);
        let error = "AVX2".parse::<Width>().unwrap_err().to_string();
        assert!(error.contains("`AVX2`") && error.contains("portable, avx2 or avx512"), "{error}");
        assert!(Width::Portable < Width::Avx2 && Width::Avx2 < Width::Avx512);
    }
}
