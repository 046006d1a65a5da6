//! VidKV, without the parts that need images: keys at 1.5 bits, values at 1.58 (Tao et al., 2025).
//!
//! For each block of tokens, key channels are ranked by their range over tokens and heads. The half with the larger
//! ranges is coded with a 2-bit affine quantiser. The others pass through a Fourier transform across channels, and keep
//! only signs and a mean magnitude. A value is -1, 0 or 1 times the mean magnitude, which is stored per channel and 32
//! tokens.
//!
//! Vectors are restored as the paper describes. The released decoders differ: they restore signs as 0 and 1, and
//! ternary codes without their scale. The transform is real and orthonormal, so that it has as many outputs as inputs.
//! Coded tokens do not change. The released code restores and codes all of them again every 128 tokens.

mod easy;
mod keys;
mod values;

use std::sync::Arc;

use self::keys::Keys;
use self::values::Values;
use crate::coded::{Codec, CodedScheme};
use crate::entry::{CENTRE, Entry, KeysCoded, Parameter, WINDOW};
use crate::family::{Family, Plan, Read};
use crate::name::SchemeName;
use crate::needs::Needs;

/// `vidkv-B-1.58`.
pub const FAMILY: Family = Family { entries: ENTRIES, read };

const ENTRIES: &[Entry] = &[Entry {
    pattern: "vidkv-B-1.58",
    examples: &["vidkv-1.5-1.58", "vidkv-1.75-1.58", "vidkv-2-1.58+window(sinks=2,recent=9)", "vidkv-1.5-1.58+centre"],
    summary: "Keys at 2 bits in the channels of largest range, transform and sign in the others; ternary values",
    citation: "Tao et al., Plug-and-Play 1.x-Bit KV Cache Quantization for Video Large Language Models, arXiv:2503.16257, 2025",
    keys_coded: KeysCoded::AfterRope,
    parameters: &[
        Parameter { name: "B", default: "", meaning: "bits per key channel, from 1 to 2; published: 1.5" },
        CENTRE,
        WINDOW[0],
        WINDOW[1],
        WINDOW[2],
    ],
    prefill_as_decoded: false,
}];

/// Tokens of a group.
const GROUP: usize = 32;
/// The number of tokens coded at a time during decode.
const BLOCK: usize = 128;

fn read(name: &SchemeName<'_>) -> Read {
    let Some(level) = name.level("vidkv") else { return Ok(None) };
    let wrong = || format!("`{level}` is not 1.58 bits for values after 1 to 2 bits for keys, like 1.5-1.58");
    let bits: f64 = level.strip_suffix("-1.58").and_then(|bits| bits.parse().ok()).ok_or_else(wrong)?;
    if !(1.0..=2.0).contains(&bits) {
        return Err(wrong());
    }
    name.no_artefacts()?;
    name.arguments.only(&[])?;
    name.only_parts(&["centre"])?;
    let (window, centred) = (name.window()?, name.centred()?);
    Ok(Some(Plan::new(Needs::nothing(KeysCoded::AfterRope), move |bound| {
        let (heads, head_dim) = (bound.geometry().kv_heads, bound.geometry().head_dim);
        let hard = (head_dim as f64 * (bits - 1.0)).floor() as usize;
        if !head_dim.is_multiple_of(8) || !hard.is_multiple_of(8) {
            let reason = format!("{hard} of {head_dim} channels at 2 bits: both must be multiples of 8");
            return Err(bound.unsuitable(reason));
        }
        let matrix = Arc::new(easy::fourier(head_dim - hard));
        let bytes = matrix.len() * size_of::<f32>();
        let keys: Arc<dyn Codec> = Arc::new(Keys { heads, head_dim, hard, matrix });
        let values: Arc<dyn Codec> = Arc::new(Values { heads, head_dim });
        let scheme = CodedScheme::new(&bound, window, |_| Ok((keys.clone(), values.clone())))?;
        Ok(Box::new(scheme.centred(centred).with_artefacts("", bytes)))
    })))
}
