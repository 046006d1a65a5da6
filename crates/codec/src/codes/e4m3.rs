//! Eight-bit floating point with 4 exponent bits, 3 mantissa bits and no infinity.

use float8::F8E4M3;

/// The nearest e4m3 number. Ties go to even, values saturate at ±448, and NaN stays NaN.
#[must_use]
pub fn to_e4m3(x: f32) -> u8 {
    F8E4M3::from_f32(x).to_bits()
}

/// The value of an e4m3 number.
#[inline]
#[must_use]
pub fn from_e4m3(bits: u8) -> f32 {
    static VALUES: [f32; 256] = {
        let mut all = [0.0; 256];
        let mut bits = 0;
        while bits < 256 {
            all[bits] = F8E4M3::from_bits(bits as u8).to_f32();
            bits += 1;
        }
        all
    };
    VALUES[usize::from(bits)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_e4m3_number_comes_back_and_between_two_the_nearer_is_taken() {
        let numbers: Vec<f32> = (0..0x7f).map(from_e4m3).collect();
        assert_eq!((numbers[0], numbers[1], numbers[8], numbers[0x7e]), (0.0, 2f32.powi(-9), 2f32.powi(-6), 448.0));
        for (bits, pair) in numbers.windows(2).enumerate() {
            let bits = bits as u8;
            assert!(pair[0] < pair[1], "{bits}");
            assert_eq!((to_e4m3(pair[0]), to_e4m3(-pair[0]) & 0x7f), (bits, bits));
            assert_eq!(from_e4m3(bits | 0x80), -pair[0]);
            let middle = f32::midpoint(pair[0], pair[1]);
            assert_eq!(to_e4m3(middle * 0.999), bits);
            assert_eq!(to_e4m3(middle * 1.001), bits + 1);
            assert_eq!(to_e4m3(middle) & 1, 0, "ties go to even");
        }
        assert_eq!((to_e4m3(1e9), to_e4m3(-449.0)), (0x7e, 0xfe));
        assert_eq!((to_e4m3(f32::INFINITY), to_e4m3(1e-30)), (0x7e, 0));
        assert!(from_e4m3(to_e4m3(f32::NAN)).is_nan());
    }
}
