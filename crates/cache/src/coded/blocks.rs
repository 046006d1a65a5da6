//! Blocks of 32 channels with one f16 scale each, with the layout and rounding of ggml.

use half::f16;
use kvcsr_codec::kernels::saturating_f16;

/// Channels of a block.
pub const BLOCK: usize = 32;

/// How the numbers of a block are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockFormat {
    /// `q8_0`: 8-bit integers.
    Q8,
    /// `q4_0`: 4-bit integers.
    Q4,
}

impl BlockFormat {
    /// Bytes of a block. The scale comes first.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q8 => 2 + BLOCK,
            Self::Q4 => 2 + BLOCK / 2,
        }
    }

    /// Appends the code of a block `x` of 32 numbers.
    pub fn encode(self, x: &[f32], out: &mut Vec<u8>) {
        let top = x.iter().copied().fold(0.0f32, |top, x| if x.abs() > top.abs() { x } else { top });
        let step = match self {
            Self::Q8 => top.abs() / 127.0,
            Self::Q4 => top / -8.0,
        };
        let inverse = if step == 0.0 { 0.0 } else { 1.0 / step };
        let stored = saturating_f16(step);
        out.extend_from_slice(&stored.to_le_bytes());
        match self {
            Self::Q8 => out.extend(x.iter().map(|x| (x * inverse).round() as i8 as u8)),
            Self::Q4 => {
                let code = |x: f32| (x * inverse + 8.5).min(15.0) as u8;
                let (front, back) = x.split_at(BLOCK / 2);
                out.extend(front.iter().zip(back).map(|(&a, &b)| code(a) | code(b) << 4));
            }
        }
    }

    /// Restores the 32 numbers of a block.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        let step = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
        match self {
            Self::Q8 => {
                for (out, &code) in out.iter_mut().zip(&bytes[2..]) {
                    *out = f32::from(code as i8) * step;
                }
            }
            Self::Q4 => {
                let (front, back) = out.split_at_mut(BLOCK / 2);
                for ((front, back), &codes) in front.iter_mut().zip(back).zip(&bytes[2..]) {
                    *front = f32::from((codes & 15) as i8 - 8) * step;
                    *back = f32::from((codes >> 4) as i8 - 8) * step;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_round_as_ggml_rounds() {
        let mut x = [0.0f32; BLOCK];
        (x[0], x[1], x[16], x[17]) = (-4.0, 3.9, 0.26, -0.24);
        let mut bytes = Vec::new();
        BlockFormat::Q4.encode(&x, &mut bytes);
        // -4 / -8 = 0.5 is the step; 3.9 / 0.5 + 8.5 = 16.3 is limited to 15, and 0.26 / 0.5 + 8.5 = 9.02 is cut to 9.
        assert_eq!(bytes.len(), 18);
        assert_eq!(bytes[..4], [0x00, 0x38, 0x90, 0x8f]);
        let mut back = [0.0; BLOCK];
        BlockFormat::Q4.decode(&bytes, &mut back);
        assert_eq!((back[0], back[1], back[16], back[17]), (-4.0, 3.5, 0.5, 0.0));
        bytes.clear();
        BlockFormat::Q8.encode(&x, &mut bytes);
        assert_eq!((bytes.len(), bytes[2] as i8, bytes[3] as i8, bytes[2 + 16] as i8), (34, -127, 124, 8));
    }

    #[test]
    fn a_block_of_zeros_stays_zero() {
        for format in [BlockFormat::Q8, BlockFormat::Q4] {
            let mut bytes = Vec::new();
            format.encode(&[0.0; BLOCK], &mut bytes);
            let mut back = [1.0; BLOCK];
            format.decode(&bytes, &mut back);
            assert_eq!(back, [0.0; BLOCK]);
        }
    }
}
