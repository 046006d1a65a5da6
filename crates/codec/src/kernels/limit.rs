//! A limit on the instruction sets that kernels use.

use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::error::CodecError;

/// Instruction sets. Each includes the previous ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Width {
    /// The instructions of the build target.
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

/// Forbids kernels to use wider instructions than `width`, for the whole process. Call it before any kernel runs.
///
/// The results do not depend on this limit. Use it to show this, or to run as on a CPU without the wider instructions. It does not
/// affect the matrix product of the `gemm` crate, which selects its own instructions.
pub fn limit_to(width: Width) {
    LIMIT.store(width as u8, Relaxed);
}

/// Whether kernels may use instructions of this width.
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
