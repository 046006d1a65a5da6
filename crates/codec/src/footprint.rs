//! The byte ledger: the bytes that a cache really allocates, and bits per channel.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};

use serde::{Deserialize, Serialize};

/// Which vectors of the attention: keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Keys, before position embedding.
    Key,
    /// Values.
    Value,
}

impl Kind {
    /// Both kinds, keys first.
    pub const ALL: [Self; 2] = [Self::Key, Self::Value];

    /// `"key"` or `"value"`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Value => "value",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Allocated bytes (capacity, not length), by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Footprint {
    /// Atom indices, u16 each.
    pub indices: usize,
    /// Sparse coefficients, f16 or e4m3 each.
    pub coefficients: usize,
    /// Quantised integers and packed codes, several numbers per word.
    pub packed: usize,
    /// Scales and zero points of quantised values.
    pub scales: usize,
    /// Per-row lengths of variable-length codes.
    pub row_lengths: usize,
    /// Uncompressed keys and values.
    pub dense: usize,
    /// Uncompressed first tokens (sinks) and recent tokens around the compressed tokens.
    pub window: usize,
    /// Atoms sampled from the prompt.
    pub online_atoms: usize,
    /// Atoms taken from outliers (the paper's Guard).
    pub guard: usize,
    /// Entries with extreme values, stored separately from coarser codes: their values and positions.
    pub outliers: usize,
    /// Factors of low-rank parts, and bases that were fitted to one sequence.
    pub low_rank: usize,
    /// Tables derived from the parts above to make encoding fast, such as Gram matrices.
    pub tables: usize,
}

impl Footprint {
    /// Name and bytes of each part, in the order of the fields.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, usize)> + use<> {
        [
            ("indices", self.indices),
            ("coefficients", self.coefficients),
            ("packed", self.packed),
            ("scales", self.scales),
            ("row_lengths", self.row_lengths),
            ("dense", self.dense),
            ("window", self.window),
            ("online_atoms", self.online_atoms),
            ("guard", self.guard),
            ("outliers", self.outliers),
            ("low_rank", self.low_rank),
            ("tables", self.tables),
        ]
        .into_iter()
    }

    /// Sum of all parts, in bytes.
    #[must_use]
    pub fn total(&self) -> usize {
        self.parts().map(|(_, bytes)| bytes).sum()
    }
}

impl AddAssign for Footprint {
    fn add_assign(&mut self, other: Self) {
        self.indices += other.indices;
        self.coefficients += other.coefficients;
        self.packed += other.packed;
        self.scales += other.scales;
        self.row_lengths += other.row_lengths;
        self.dense += other.dense;
        self.window += other.window;
        self.online_atoms += other.online_atoms;
        self.guard += other.guard;
        self.outliers += other.outliers;
        self.low_rank += other.low_rank;
        self.tables += other.tables;
    }
}

impl Add for Footprint {
    type Output = Self;
    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl Sum for Footprint {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), Add::add)
    }
}

impl<'a> Sum<&'a Self> for Footprint {
    fn sum<I: Iterator<Item = &'a Self>>(iter: I) -> Self {
        iter.copied().sum()
    }
}

/// Bits per channel. A channel is one scalar of the uncompressed cache, which takes 16 bits in FP16.
/// The value is displayed with two decimals unless the format string sets another precision.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BitsPerChannel(pub f64);

impl fmt::Display for BitsPerChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:.*}", f.precision().unwrap_or(2), self.0);
        write!(f, "{:>width$}", text, width = f.width().unwrap_or(0))
    }
}

/// The paper's own count (section 4): `32 s s_n / d_h`. It counts only the codes of one kind. Keys with `s` atoms and 1
/// chunk have the same count as values with `s / 2` atoms and 2 chunks.
#[must_use]
pub fn nominal_bits(sparsity: usize, chunks: usize, head_dim: usize) -> BitsPerChannel {
    BitsPerChannel(32.0 * sparsity as f64 * chunks as f64 / head_dim as f64)
}

/// Bits per channel of `bytes` really allocated bytes. `channels` is how many numbers an uncompressed cache would hold:
/// the keys *and* values of all heads, layers and tokens, `2 tokens kv_heads head_dim layers`. For a layer with a sliding
/// window, count only the tokens that the layer would hold. The result is not finite if `channels` is 0.
#[must_use]
pub fn measured_bits(bytes: usize, channels: usize) -> BitsPerChannel {
    BitsPerChannel(8.0 * bytes as f64 / channels as f64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Each field is a different power of two. If a part is missing or counted twice, the sum changes.
    fn distinct() -> Footprint {
        serde_json::from_value(serde_json::Value::Object(
            Footprint::default()
                .parts()
                .enumerate()
                .map(|(i, (name, _))| (name.to_owned(), (1usize << i).into()))
                .collect(),
        ))
        .unwrap()
    }

    #[test]
    fn every_field_is_a_part_once() {
        let json = serde_json::to_value(distinct()).unwrap();
        assert_eq!(json.as_object().unwrap().len(), distinct().parts().count());
        for (name, bytes) in distinct().parts() {
            assert_eq!(json[name], bytes, "{name}");
        }
        assert_eq!(distinct().total(), (1 << distinct().parts().count()) - 1);
    }

    #[test]
    fn sums_add_every_part() {
        let twice: Footprint = [distinct(), distinct()].iter().sum();
        assert_eq!(twice, distinct() + distinct());
        for ((name, one), (_, two)) in distinct().parts().zip(twice.parts()) {
            assert_eq!(2 * one, two, "{name}");
        }
    }

    #[test]
    fn bits_of_the_paper() {
        assert_eq!(nominal_bits(4, 1, 128), BitsPerChannel(1.0));
        assert_eq!(nominal_bits(2, 2, 128), BitsPerChannel(1.0));
        assert_eq!(nominal_bits(8, 1, 128), BitsPerChannel(2.0));
        // An FP16 cache has 2 bytes per channel, for keys and values.
        let fp16 = 2 * 2 * 100 * 8 * 128 * 32;
        assert_eq!(measured_bits(fp16, 2 * 100 * 8 * 128 * 32), BitsPerChannel(16.0));
        assert_eq!(format!("{}", BitsPerChannel(1.005)), "1.00");
        assert_eq!(format!("{:6.1}|", BitsPerChannel(2.04)), "   2.0|");
    }

    #[test]
    fn kinds_are_lowercase_everywhere() {
        for kind in Kind::ALL {
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("\"{kind}\""));
            assert_eq!(serde_json::from_str::<Kind>(&json).unwrap(), kind);
        }
    }
}
