//! AsymKV: KIVI with two bits in the first layers and one bit in the later layers (Tao, Yu and Zhou, COLING 2025).
//!
//! In the paper, the dequantisation formula contradicts the quantiser. Here values are restored as
//! `code · scale + min`. A one-bit code restores to a group's smallest or largest value. On bell-shaped data this is
//! worse than storing zeros. `+calibrated` is not in the paper: it moves both levels inwards, as XQuant does.

use super::kivi::{EXACT, GROUP, Groups};
use crate::coded::CodedScheme;
use crate::coded::affine::Affine;
use crate::entry::{Entry, KeysCoded, Parameter, WINDOW};
use crate::family::{Family, Plan, Read};
use crate::name::SchemeName;
use crate::needs::Needs;

/// `asymkv-LK-LV`, plain and calibrated.
pub const FAMILY: Family = Family { entries: ENTRIES, read };

/// The pulls of one-bit and two-bit groups that minimise the squared error for groups of 32 normal variates.
const PULLS: [f64; 2] = [0.30, 0.07];

const LAYERS: [Parameter; 2] = [
    Parameter { name: "LK", default: "", meaning: "first layers whose keys have 2 bits; the others have 1" },
    Parameter { name: "LV", default: "", meaning: "first layers whose values have 2 bits, at most LK" },
];

const ENTRIES: &[Entry] = &[
    Entry {
        pattern: "asymkv-LK-LV",
        examples: &["asymkv-16-0", "asymkv-1-0", "asymkv-0-0(window=32)", "asymkv-32-0(window=512)"],
        summary: "KIVI with 2 bits in the first layers and 1 bit (smallest and largest value) in the others",
        citation: "Tao, Yu and Zhou, AsymKV: Enabling 1-Bit Quantization of KV Cache with Layer-Wise Asymmetric Quantization Configurations, COLING 2025",
        keys_coded: KeysCoded::AfterRope,
        parameters: &[LAYERS[0], LAYERS[1], GROUP, EXACT, WINDOW[0], WINDOW[1], WINDOW[2]],
        prefill_as_decoded: true,
    },
    Entry {
        pattern: "asymkv-LK-LV+calibrated",
        examples: &["asymkv-16-0+calibrated", "asymkv-0-0+calibrated+window(sinks=2,recent=9)"],
        summary: "AsymKV with its levels pulled in from the ends of a group's range; not in the paper",
        citation: "Yang et al., XQuant: Achieving Ultra-Low Bit KV Cache Quantization with Cross-Layer Compression, EMNLP 2025 (the calibration)",
        keys_coded: KeysCoded::AfterRope,
        parameters: &[
            LAYERS[0],
            LAYERS[1],
            GROUP,
            EXACT,
            Parameter {
                name: "+calibrated(one)",
                default: "0.3",
                meaning: "pull of 1-bit levels, of the group's range",
            },
            Parameter { name: "+calibrated(two)", default: "0.07", meaning: "pull of 2-bit levels" },
            WINDOW[0],
            WINDOW[1],
            WINDOW[2],
        ],
        prefill_as_decoded: true,
    },
];

fn read(name: &SchemeName<'_>) -> Read {
    let Some(level) = name.level("asymkv") else { return Ok(None) };
    let layers = level.split_once('-').and_then(|(k, v)| Some((k.parse::<usize>().ok()?, v.parse::<usize>().ok()?)));
    let (keys, values) = layers.ok_or_else(|| format!("`{level}` is not two numbers of layers, like 16-0"))?;
    if values > keys {
        return Err(format!("{values} layers of 2-bit values are more than the {keys} of 2-bit keys"));
    }
    name.no_artefacts()?;
    name.only_parts(&["calibrated"])?;
    let pulls = match name.part("calibrated") {
        None => [0.0, 0.0],
        Some(part) => {
            part.arguments.only(&["one", "two"])?;
            [part.arguments.fraction("one", PULLS[0])?, part.arguments.fraction("two", PULLS[1])?]
        }
    };
    let (groups, window) = (Groups::read(&name.arguments)?, name.window()?);
    let affine = move |two: bool| {
        let bits = if two { 2 } else { 1 };
        Affine { bits, pull: pulls[bits - 1] as f32 }
    };
    Ok(Some(Plan::new(Needs::nothing(KeysCoded::AfterRope), move |bound| {
        let shape = groups.of(&bound)?;
        let codecs = |layer| Ok((shape.keys(affine(layer < keys)), shape.values(affine(layer < values))));
        Ok(Box::new(CodedScheme::new(&bound, window, codecs)?))
    })))
}
