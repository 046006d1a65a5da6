//! A limit on the instructions that kernels use, set by the user: `KVCSR_SIMD`.
//!
//! Results do not depend on it, except those of products of bf16 operands. It is there to show that, and to do what a machine
//! without the wider instructions does. The matrix product of the `gemm` crate finds its instructions by itself.

use std::env;
use std::sync::OnceLock;

use crate::error::CodecError;

/// The variable.
const VARIABLE: &str = "KVCSR_SIMD";

/// Sets of instructions, each with those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Width {
    Portable,
    Avx2,
    Avx512,
}

impl Width {
    const NAMES: [(&str, Self); 3] = [("portable", Self::Portable), ("avx2", Self::Avx2), ("avx512", Self::Avx512)];

    fn of(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("") => Some(Self::Avx512),
            Some(name) => Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, width)| *width),
        }
    }
}

/// Whether instructions of this width may be used.
pub(super) fn allows(width: Width) -> bool {
    static LIMIT: OnceLock<Width> = OnceLock::new();
    width <= *LIMIT.get_or_init(|| Width::of(env::var(VARIABLE).ok().as_deref()).unwrap_or(Width::Avx512))
}

/// Checks the environment variable `KVCSR_SIMD`: `portable`, `avx2` or `avx512` are the widest instructions that kernels may use.
/// Without it they use what the machine has. A value that is none of these counts as no limit, so programs check it first.
///
/// # Errors
/// [`CodecError::Variable`].
pub fn check_limit() -> Result<(), CodecError> {
    let found = env::var_os(VARIABLE).map(|value| value.to_string_lossy().into_owned());
    match Width::of(found.as_deref()) {
        Some(_) => Ok(()),
        None => Err(CodecError::Variable {
            variable: VARIABLE,
            expected: "portable, avx2 or avx512",
            found: found.unwrap_or_default(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_or_refused() {
        assert_eq!(Width::of(None), Some(Width::Avx512));
        assert_eq!(Width::of(Some("avx2")), Some(Width::Avx2));
        assert_eq!(Width::of(Some("AVX2 ")), None);
        assert!(Width::Portable < Width::Avx2 && Width::Avx2 < Width::Avx512);
    }
}
