//! KIVI: keys quantised per channel, values per token (Liu et al., ICML 2024).
//!
//! Keys wait in f16 until there are `window` of them. Then they are quantised together, each channel in groups of
//! `group` tokens. The last `window` values stay in f16. When a value leaves this window, it is quantised in groups of
//! `group` channels. Groups of keys are counted from the sequence's first token.

use std::sync::Arc;

use crate::CacheError;
use crate::coded::affine::{Affine, ChannelGroups, TokenGroups};
use crate::coded::{Buffering, Codec, CodedScheme, CodedTokens, PerHead};
use crate::entry::{CENTRE, Entry, KeysCoded, Parameter, WINDOW};
use crate::family::{Family, Plan, Read};
use crate::name::{Arguments, SchemeName};
use crate::needs::{Binding, Needs};
use crate::tensor::affine::{Along, TensorGroups};
use crate::tensor::{Stores, Uploads};

/// `kivi-2`, `kivi-4` and other widths.
pub const FAMILY: Family = Family { entries: ENTRIES, read };

pub(super) const GROUP: Parameter =
    Parameter { name: "group", default: "32", meaning: "tokens of a key group, channels of a value group" };
pub(super) const EXACT: Parameter = Parameter {
    name: "window",
    default: "128",
    meaning: "tokens of the method's own f16 buffer; 0: none, with keys in whole groups",
};

const BITS: Parameter = Parameter { name: "B", default: "", meaning: "bits of a code, 1 to 8; published: 2 and 4" };

const ENTRIES: &[Entry] = &[
    Entry {
        pattern: "kivi-B",
        examples: &[
            "kivi-2",
            "kivi-4",
            "kivi-2(group=64,window=64)",
            "kivi-8(window=32)",
            "kivi-2+window(sinks=2,recent=9)",
        ],
        summary: "Affine B-bit keys per channel and values per token, the latest tokens in f16",
        citation: "Liu et al., KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache, ICML 2024",
        keys_coded: KeysCoded::AfterRope,
        parameters: &[BITS, GROUP, EXACT, WINDOW[0], WINDOW[1], WINDOW[2]],
        prefill_as_decoded: true,
    },
    Entry {
        pattern: "kivi-B+centre",
        examples: &["kivi-2+centre", "kivi-4+centre", "kivi-2(group=32,window=32)+centre+window(sinks=2,recent=9)"],
        summary: "KIVI of keys without their heads' means; not in the paper",
        citation: "",
        keys_coded: KeysCoded::AfterRope,
        parameters: &[BITS, CENTRE, GROUP, EXACT, WINDOW[0], WINDOW[1], WINDOW[2]],
        prefill_as_decoded: false,
    },
];

fn read(name: &SchemeName<'_>) -> Read {
    let Some(level) = name.level("kivi") else { return Ok(None) };
    let bits = level
        .parse()
        .ok()
        .filter(|bits| (1..=8).contains(bits))
        .ok_or_else(|| format!("`{level}` is not a number of bits from 1 to 8"))?;
    name.no_artefacts()?;
    name.only_parts(&["centre"])?;
    let (groups, window, affine) = (Groups::read(&name.arguments)?, name.window()?, Affine::plain(bits));
    let centred = name.centred()?;
    Ok(Some(Plan::new(Needs::nothing(KeysCoded::AfterRope), move |bound| {
        let shape = groups.of(&bound)?;
        let scheme = CodedScheme::new(&bound, window, |_| Ok((shape.keys(affine), shape.values(affine))))?;
        Ok(Box::new(scheme.centred(centred)))
    })))
}

/// The groups and the buffer of KIVI, as given in a name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Groups {
    group: usize,
    window: usize,
}

impl Groups {
    /// Reads `group` and `window`.
    pub(super) fn read(arguments: &Arguments<'_>) -> Result<Self, String> {
        arguments.only(&["group", "window"])?;
        let (group, window) = (arguments.tokens("group", 32)?, arguments.tokens("window", 128)?);
        if group == 0 || !group.is_multiple_of(8) {
            return Err(format!("group: {group} is not a multiple of 8"));
        }
        if !window.is_multiple_of(group) {
            return Err(format!("window: {window} is not a multiple of the group of {group} tokens"));
        }
        Ok(Self { group, window })
    }

    /// Adds the model's shape. An error if its heads are not whole groups.
    pub(super) fn of(self, bound: &Binding<'_>) -> Result<Shape, CacheError> {
        let Self { group, window } = self;
        check_groups(bound, group)?;
        Ok(Shape { group, window, heads: bound.geometry().kv_heads, head_dim: bound.geometry().head_dim })
    }
}

/// The data that both codecs of KIVI share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    group: usize,
    window: usize,
    heads: usize,
    head_dim: usize,
}

impl Shape {
    /// The codec of keys, quantised per channel.
    pub(super) fn keys(self, affine: Affine) -> Arc<dyn Codec> {
        Arc::new(Keys { shape: self, affine })
    }

    /// The codec of values, quantised per token.
    pub(super) fn values(self, affine: Affine) -> Arc<dyn Codec> {
        Arc::new(Values { shape: self, affine })
    }

    fn stored_bits(self, affine: Affine) -> f64 {
        affine.bits as f64 + 32.0 / self.group as f64
    }

    fn tensors(affine: Affine, along: Along, uploads: &mut Uploads) -> Result<Option<Stores>, CacheError> {
        let fields = uploads.fields()?;
        Ok(Some(Arc::new(move || Ok(Box::new(TensorGroups::new(affine, along, fields.clone()))))))
    }
}

/// Refuses a head size that is not a multiple of the channels of a group.
pub(super) fn check_groups(bound: &Binding<'_>, group: usize) -> Result<(), CacheError> {
    let head_dim = bound.geometry().head_dim;
    if head_dim.is_multiple_of(group) {
        return Ok(());
    }
    Err(bound.unsuitable(format!("groups of {group} channels do not divide heads of {head_dim}")))
}

struct Keys {
    shape: Shape,
    affine: Affine,
}

impl Codec for Keys {
    fn empty(&self) -> Box<dyn CodedTokens> {
        let Shape { group, heads, head_dim, .. } = self.shape;
        Box::new(PerHead::new(heads, |_| ChannelGroups::new(self.affine, group, head_dim)))
    }

    fn buffering(&self) -> Buffering {
        let block = self.shape.window.max(self.shape.group);
        Buffering::Blocks { block, aligned: block }
    }

    fn nominal_bits(&self) -> f64 {
        self.affine.bits as f64
    }

    fn stored_bits(&self) -> f64 {
        self.shape.stored_bits(self.affine)
    }

    fn tensors(&self, uploads: &mut Uploads) -> Result<Option<Stores>, CacheError> {
        Shape::tensors(self.affine, Along::Tokens(self.shape.group), uploads)
    }
}

struct Values {
    shape: Shape,
    affine: Affine,
}

impl Codec for Values {
    fn empty(&self) -> Box<dyn CodedTokens> {
        let Shape { group, heads, head_dim, .. } = self.shape;
        Box::new(PerHead::new(heads, |_| TokenGroups::new(self.affine, group, head_dim)))
    }

    fn buffering(&self) -> Buffering {
        match self.shape.window {
            0 => Buffering::None,
            exact => Buffering::Sliding { exact, stride: 1 },
        }
    }

    fn nominal_bits(&self) -> f64 {
        self.affine.bits as f64
    }

    fn stored_bits(&self) -> f64 {
        self.shape.stored_bits(self.affine)
    }

    fn tensors(&self, uploads: &mut Uploads) -> Result<Option<Stores>, CacheError> {
        Shape::tensors(self.affine, Along::Channels(self.shape.group), uploads)
    }
}
