//! Rounding to half precision without infinities. An infinite number would make every sum that contains it infinite or NaN.

use half::f16;

/// The nearest f16. Values saturate at ±65504, and NaN stays NaN.
#[inline]
#[must_use]
pub fn saturating_f16(x: f32) -> f16 {
    f16::from_f32(x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}

/// Applies [`saturating_f16`] to every number.
#[must_use]
pub fn to_f16(x: &[f32]) -> Vec<f16> {
    x.iter().map(|&x| saturating_f16(x)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_saturate() {
        assert_eq!(to_f16(&[1e9, -65_520.0, 1.0 / 3.0]), [f16::MAX, f16::MIN, f16::from_f32(1.0 / 3.0)]);
        assert!(saturating_f16(f32::NAN).is_nan());
    }
}
