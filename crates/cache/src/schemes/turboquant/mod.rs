//! TurboQuant, the variant for squared error: a random rotation, then a Lloyd-Max quantiser per channel (Zandieh et
//! al., ICLR 2026).
//!
//! A head vector `x` is stored as its norm (f16) and the codes of `Π x / ‖x‖ · √D`. For any `x`, the channels of this
//! vector are close to normally distributed. Nothing is trained, and there is no buffer: each token is coded when it
//! arrives.
//!
//! With 2.5 and 3.5 bits there are two quantisers. The quarter of the channels with the largest average over the prompt
//! gets one bit more than the others. Each part has its own norm. The paper does not say how the channels are chosen.

mod rotation;
mod split;
mod tokens;

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;
use kvcsr_codec::Footprint;
use kvcsr_codec::kernels::saturating_f16;
use kvcsr_codec::{EIGHT, LloydMax, lloyd_max, pack_small, unpack_small};

pub use self::rotation::Rotation;
use self::split::Split;
use self::tokens::Tokens;
use crate::Geometry;
use crate::coded::{Codec, CodedScheme, CodedTokens, TILE, drop_front, reserve};
use crate::entry::{CENTRE, Entry, KeysCoded, Parameter, WINDOW};
use crate::family::{Family, Plan, Read};
use crate::name::SchemeName;
use crate::needs::Needs;

/// `turboquant-B` and `turboquant-B+pre-rope`.
pub const FAMILY: Family = Family { entries: ENTRIES, read };

/// The largest number of bits of a code.
pub const MAX_BITS: usize = 5;

const BITS: Parameter = Parameter { name: "B", default: "", meaning: "bits per channel: 1 to 5, 2.5 or 3.5" };
const SOURCE: &str =
    "Zandieh et al., TurboQuant: Online Vector Quantization with Near-optimal Distortion Rate, ICLR 2026";

const ENTRIES: &[Entry] = &[
    Entry {
        pattern: "turboquant-B",
        examples: &[
            "turboquant-2",
            "turboquant-3",
            "turboquant-4",
            "turboquant-1",
            "turboquant-2+window(sinks=2,recent=9)",
        ],
        summary: "Random rotation and a Lloyd-Max quantiser per channel, an f16 norm per head vector",
        citation: SOURCE,
        keys_coded: KeysCoded::AfterRope,
        parameters: &[BITS, WINDOW[0], WINDOW[1], WINDOW[2]],
        prefill_as_decoded: true,
    },
    Entry {
        pattern: "turboquant-2.5",
        examples: &["turboquant-2.5", "turboquant-3.5", "turboquant-2.5+window(sinks=2,recent=9)"],
        summary: "TurboQuant with a bit more for the quarter of channels that are largest over the prompt",
        citation: SOURCE,
        keys_coded: KeysCoded::AfterRope,
        parameters: &[BITS, WINDOW[0], WINDOW[1], WINDOW[2]],
        prefill_as_decoded: false,
    },
    Entry {
        pattern: "turboquant-B+centre",
        examples: &[
            "turboquant-3+centre",
            "turboquant-2+centre",
            "turboquant-2.5+centre",
            "turboquant-2+centre+window(sinks=2,recent=9)",
        ],
        summary: "TurboQuant of keys without their heads' means; not in the paper",
        citation: "",
        keys_coded: KeysCoded::AfterRope,
        parameters: &[BITS, CENTRE, WINDOW[0], WINDOW[1], WINDOW[2]],
        prefill_as_decoded: false,
    },
    Entry {
        pattern: "turboquant-B+pre-rope",
        examples: &[
            "turboquant-2+pre-rope",
            "turboquant-3+pre-rope",
            "turboquant-4+pre-rope",
            "turboquant-3+pre-rope+window(sinks=2,recent=9)",
        ],
        summary: "TurboQuant on keys before position embedding",
        citation: SOURCE,
        keys_coded: KeysCoded::BeforeRope,
        parameters: &[BITS, WINDOW[0], WINDOW[1], WINDOW[2]],
        prefill_as_decoded: true,
    },
];

/// The number of channels must be a multiple of this if they are split in two parts. The smaller part has a quarter of
/// them, and each part takes whole bytes.
const SPLIT: usize = 4 * EIGHT;

fn read(name: &SchemeName<'_>) -> Read {
    let Some(level) = name.level("turboquant") else { return Ok(None) };
    let wrong = || format!("`{level}` is not 1 to {MAX_BITS} bits, 2.5 or 3.5");
    let bits: f64 = level.parse().map_err(|_| wrong())?;
    let whole = bits.fract() == 0.0;
    if !(1.0..=MAX_BITS as f64).contains(&bits) || !(whole || bits == 2.5 || bits == 3.5) {
        return Err(wrong());
    }
    name.no_artefacts()?;
    name.arguments.only(&[])?;
    name.only_parts(&["pre-rope", "centre"])?;
    let keys_coded = if name.flag("pre-rope")? { KeysCoded::BeforeRope } else { KeysCoded::AfterRope };
    let (window, centred) = (name.window()?, name.centred()?);
    Ok(Some(Plan::new(Needs::nothing(keys_coded), move |bound| {
        let geometry = bound.geometry();
        let d = geometry.head_dim;
        if d == 0 || !d.is_multiple_of(if whole { EIGHT } else { SPLIT }) {
            return Err(bound.unsuitable(format!("heads of {d} channels cannot be packed")));
        }
        let low = bits as usize;
        let (codec, shared): (Arc<dyn Codec>, usize) = if whole {
            let part = Part::new(d, low, 1);
            let shared = part.shared_bytes();
            (Arc::new(Whole { part: Arc::new(part), geometry }), shared)
        } else {
            let parts = [Part::new(d / 4, low + 1, 2), Part::new(d - d / 4, low, 3)];
            let shared = parts.iter().map(Part::shared_bytes).sum();
            (Arc::new(Split { parts: Arc::new(parts), geometry, bits }), shared)
        };
        let scheme = CodedScheme::new(&bound, window, |_| Ok((codec.clone(), codec.clone())))?;
        Ok(Box::new(scheme.centred(centred).with_artefacts("", shared)))
    })))
}

/// A quantiser for vectors of `size` channels.
#[derive(Debug)]
struct Part {
    size: usize,
    bits: usize,
    rotation: Rotation,
    table: &'static LloydMax,
}

/// Vectors that a [`Part`] coded.
#[derive(Debug, Default)]
struct Coded {
    /// `(tokens, size)`, packed along channels.
    codes: Vec<u8>,
    norms: Vec<f16>,
}

impl Part {
    fn new(size: usize, bits: usize, seed: u64) -> Self {
        Self { size, bits, rotation: Rotation::new(size, seed), table: lloyd_max(bits) }
    }

    fn shared_bytes(&self) -> usize {
        self.rotation.bytes() + (self.table.levels.len() + self.table.thresholds.len()) * size_of::<f32>()
    }

    fn row_bytes(&self) -> usize {
        self.size * self.bits / EIGHT
    }

    /// Codes rows `(n, size)` and adds the codes.
    fn encode(&self, rows: &[f32], coded: &mut Coded) {
        let tokens = rows.len() / self.size;
        reserve(&mut coded.codes, tokens, self.row_bytes());
        reserve(&mut coded.norms, tokens, 1);
        let mut turned = vec![0.0; TILE.min(tokens) * self.size];
        let mut codes = vec![0; self.size];
        for rows in rows.chunks(TILE * self.size) {
            let turned = &mut turned[..rows.len()];
            self.rotation.apply(rows, turned);
            for row in turned.chunks_exact(self.size) {
                let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                let factor = if norm > 0.0 { (self.size as f32).sqrt() / norm } else { 0.0 };
                for (code, &x) in codes.iter_mut().zip(row) {
                    *code = self.table.code(x * factor);
                }
                pack_small(&codes, self.bits, &mut coded.codes);
                coded.norms.push(saturating_f16(norm));
            }
        }
    }

    /// Drops the first `tokens` rows.
    fn drop_first(&self, coded: &mut Coded, tokens: usize) {
        drop_front(&mut coded.codes, tokens * self.row_bytes());
        drop_front(&mut coded.norms, tokens);
    }

    /// Restores `tokens`, at most [`TILE`] at a time, into `out` `(tokens, size)`.
    fn decode(&self, coded: &Coded, tokens: Range<usize>, out: &mut [f32]) {
        let mut turned = TURNED.take();
        let n = tokens.len();
        self.unpack(coded, tokens, &mut turned);
        self.rotation.undo(&turned, &mut out[..n * self.size]);
        TURNED.set(turned);
    }

    /// The same without undoing the rotation.
    fn unpack(&self, coded: &Coded, tokens: Range<usize>, turned: &mut Vec<f32>) {
        let (n, row_bytes) = (tokens.len(), self.row_bytes());
        turned.resize(n * self.size, 0.0);
        let mut norms = [0f32; TILE];
        let norms = &mut norms[..n];
        coded.norms[tokens.clone()].convert_to_f32_slice(norms);
        let bytes = coded.codes[tokens.start * row_bytes..].chunks_exact(row_bytes);
        let mut levels = [0f32; 1 << MAX_BITS];
        for ((row, bytes), &norm) in turned.chunks_exact_mut(self.size).zip(bytes).zip(&*norms) {
            let factor = norm / (self.size as f32).sqrt();
            for (scaled, level) in levels.iter_mut().zip(&self.table.levels) {
                *scaled = level * factor;
            }
            unpack_small(bytes, self.bits, |i, code| row[i] = levels[usize::from(code) & ((1 << MAX_BITS) - 1)]);
        }
    }
}

impl Coded {
    fn footprint(&self) -> Footprint {
        Footprint {
            packed: self.codes.capacity(),
            scales: self.norms.capacity() * size_of::<f16>(),
            ..Footprint::default()
        }
    }
}

/// The codec with one quantiser for all channels.
struct Whole {
    part: Arc<Part>,
    geometry: Geometry,
}

impl Codec for Whole {
    fn empty(&self) -> Box<dyn CodedTokens> {
        Box::new(Tokens::new(&self.part, self.geometry.kv_heads))
    }

    /// False: queries are rotated for all tokens of a head.
    fn in_parts(&self) -> bool {
        false
    }

    fn nominal_bits(&self) -> f64 {
        self.part.bits as f64
    }

    fn stored_bits(&self) -> f64 {
        self.part.bits as f64 + 16.0 / self.part.size as f64
    }
}

thread_local! {
    /// A buffer of this thread for rotated rows.
    static TURNED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::coded::testing::{published, ramp, relative_error, variates};

    /// Codes and restores `rows`.
    fn restored(part: &Part, rows: &[f32]) -> Vec<f32> {
        let (mut coded, mut out) = (Coded::default(), vec![0.0; rows.len()]);
        part.encode(rows, &mut coded);
        let tokens = rows.len() / part.size;
        for first in (0..tokens).step_by(TILE) {
            let n = TILE.min(tokens - first);
            part.decode(&coded, first..first + n, &mut out[first * part.size..]);
        }
        out
    }

    #[test]
    fn errors_do_not_depend_on_the_data_and_are_the_known_ones() {
        let (d, tokens) = (128, 2048);
        let normal = variates(7, tokens * d);
        // A channel that is a hundred times as large as the others.
        let spiked: Vec<f32> =
            normal.iter().enumerate().map(|(i, x)| if i % d == 5 { 100.0 * x } else { *x }).collect();
        for (bits, expected) in (1..).zip([0.3612, 0.1161, 0.0340, 0.0093]) {
            let part = Part::new(d, bits, 1);
            let error = relative_error(&normal, &restored(&part, &normal));
            assert!((error / expected - 1.0).abs() < 0.02, "{bits} bits: {error}");
            let error = relative_error(&spiked, &restored(&part, &spiked));
            assert!((error / expected - 1.0).abs() < 0.2, "{bits} bits, spiked: {error}");
        }
    }

    #[test]
    fn levels_and_codes_are_those_of_the_published_formulas() {
        let d = 32;
        let rows = ramp(3, 3 * d);
        for bits in 1..=5 {
            let (expected, table) = (&published()["turboquant"][bits.to_string()], lloyd_max(bits));
            for (level, expected) in table.levels.iter().zip(expected["levels"].as_array().unwrap()) {
                assert!((f64::from(*level) - expected.as_f64().unwrap()).abs() < 2e-6, "{bits} bits");
            }
            let codes: String = rows
                .chunks_exact(d)
                .flat_map(|row| {
                    let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                    row.iter().map(move |x| format!("{:02x}", table.code(x * (d as f32).sqrt() / norm)))
                })
                .collect();
            assert_eq!(codes, expected["codes"].as_str().unwrap(), "{bits} bits");
        }
    }

    #[test]
    fn a_zero_vector_stays_zero() {
        let part = Part::new(64, 2, 1);
        assert_eq!(restored(&part, &[0.0; 128]), [0.0; 128]);
    }
}
