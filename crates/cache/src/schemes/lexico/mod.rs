//! Lexico: orthogonal matching pursuit over universal dictionaries (Kim et al., ICML 2025).
//!
//! Each layer has one dictionary for keys after position embedding and one for values. They are shared by all heads,
//! sequences and prompts. A head vector is coded as at most `S` atoms, each with an index of 16 bits and a coefficient
//! in fp8. The latest `buffer` tokens stay in f16. When there are more, the oldest `stride` of them are coded. With a
//! threshold `delta`, a vector takes only as many atoms as it needs to reach this relative error. With `+adaptive`,
//! vectors that do not reach it are stored as new atoms.

mod tensors;
mod tokens;

use std::sync::Arc;

use half::f16;
use kvcsr_codec::{CodeLayout, CoefficientFormat, Encoder, Kind, START_ROWS};

use self::tokens::LexicoTokens;
use crate::coded::{Buffering, Codec, CodedScheme, CodedTokens};
use crate::entry::{Entry, KeysCoded, Parameter, WINDOW};
use crate::family::{Family, Plan, Read};
use crate::name::SchemeName;
use crate::needs::{Binding, Needs};
use crate::tensor::{Stores, Uploads};
use crate::{CacheError, Window};

/// `lexico-S`.
pub const FAMILY: Family = Family { entries: ENTRIES, read };

/// The dictionary set that is used if a name does not give one.
pub const DICTIONARIES: &str = "lexico";

const ENTRIES: &[Entry] = &[Entry {
    pattern: "lexico-S",
    examples: &[
        "lexico-8",
        "lexico-4(buffer=0)",
        "lexico-16(buffer=12)",
        "lexico-8(buffer=12)+packed",
        "lexico-8(buffer=20,stride=7,delta=0.6)",
        "lexico-4(buffer=9,delta=0.4)+adaptive(atoms=5)",
        "lexico-8(buffer=0)+window(sinks=2,recent=9)",
    ],
    summary: "At most S atoms by orthogonal matching pursuit over universal dictionaries, 24 bits each; the latest 128 \
              tokens in f16",
    citation: "Kim et al., Lexico: Extreme KV Cache Compression via Sparse Coding over Universal Dictionaries, ICML 2025",
    keys_coded: KeysCoded::AfterRope,
    parameters: &[
        Parameter { name: "S", default: "", meaning: "most atoms of a head vector, 1 to 255" },
        Parameter { name: "buffer", default: "128", meaning: "latest tokens kept in f16" },
        Parameter { name: "stride", default: "1", meaning: "tokens coded at a time once the buffer is full" },
        Parameter {
            name: "delta",
            default: "0",
            meaning: "relative error at which a vector takes no more atoms; 0: never",
        },
        Parameter {
            name: "+adaptive(atoms)",
            default: "1024",
            meaning: "most vectors of a sequence and layer kept as atoms because they miss delta",
        },
        Parameter {
            name: "+packed",
            default: "",
            meaning: "indices of ceil(log2 N) bits in place of 16; not in the paper",
        },
        WINDOW[0],
        WINDOW[1],
        WINDOW[2],
    ],
    prefill_as_decoded: false,
}];

/// The settings that a name gives.
struct Named {
    sparsity: usize,
    delta: f32,
    adaptive: usize,
    layout: CodeLayout,
    buffering: Buffering,
    window: Window,
    artefacts: String,
}

fn read(name: &SchemeName<'_>) -> Read {
    let Some(level) = name.level("lexico") else { return Ok(None) };
    let sparsity: usize = level
        .parse()
        .ok()
        .filter(|s| (1..=255).contains(s))
        .ok_or_else(|| format!("`{level}` is not a number of atoms from 1 to 255"))?;
    name.arguments.only(&["buffer", "stride", "delta"])?;
    name.only_parts(&["adaptive", "packed"])?;
    let (buffer, stride) = (name.arguments.tokens("buffer", 128)?, name.arguments.tokens("stride", 1)?);
    if !(1..=buffer + 1).contains(&stride) {
        return Err(format!("stride: {stride} is not in 1 to {}", buffer + 1));
    }
    let delta = name.arguments.fraction("delta", 0.0)? as f32;
    let adaptive = match name.part("adaptive") {
        None => 0,
        Some(_) if delta == 0.0 => {
            return Err("`+adaptive` needs delta: it keeps vectors that miss it".to_owned());
        }
        Some(part) => {
            part.arguments.only(&["atoms"])?;
            part.arguments.tokens("atoms", 1024)?
        }
    };
    let layout = match name.part("packed") {
        None => CodeLayout::Bytes,
        Some(part) => {
            part.arguments.only(&[])?;
            CodeLayout::Packed(CoefficientFormat::Fp8)
        }
    };
    let buffering = if buffer == 0 { Buffering::None } else { Buffering::Sliding { exact: buffer, stride } };
    let (window, artefacts) = (name.window()?, name.artefacts.unwrap_or_default().to_owned());
    let needs = Needs::dictionaries(KeysCoded::AfterRope, name.artefacts.unwrap_or(DICTIONARIES));
    let named = Named { sparsity, delta, adaptive, layout, buffering, window, artefacts };
    Ok(Some(Plan::new(needs, move |bound| Ok(Box::new(bind(&bound, &named)?)))))
}

fn bind(bound: &Binding<'_>, named: &Named) -> Result<CodedScheme, CacheError> {
    let geometry = bound.geometry();
    let (set_name, set, encoders) = bound.dictionaries()?;
    let Named { sparsity, delta, adaptive, layout, buffering, .. } = *named;
    let codec = |layer: usize, kind: Kind| -> Result<Arc<dyn Codec>, CacheError> {
        let refuse = |reason: String| CacheError::Dictionary { scheme: bound.scheme.to_owned(), layer, kind, reason };
        let (group, encoder) = set
            .groups
            .iter()
            .zip(encoders)
            .find(|(group, _)| group.kind == kind && group.layers.contains(&layer))
            .ok_or_else(|| refuse(format!("the set `{set_name}` has no dictionary for it")))?;
        let (atoms, width) = (group.dictionary.len(), group.dictionary.width());
        if width != geometry.head_dim {
            return Err(refuse(format!("expected atoms of width {}, found {width}", geometry.head_dim)));
        }
        if sparsity > atoms || atoms + adaptive > kvcsr_codec::MAX_ATOMS {
            return Err(refuse(format!(
                "{sparsity} of {atoms} atoms and {adaptive} adaptive ones: indices name up to {} atoms",
                kvcsr_codec::MAX_ATOMS
            )));
        }
        Ok(Arc::new(Coder(Settings {
            encoder: encoder.clone(),
            heads: geometry.kv_heads,
            sparsity,
            delta,
            adaptive,
            layout,
            buffering,
        })))
    };
    let scheme =
        CodedScheme::new(bound, named.window, |layer| Ok((codec(layer, Kind::Key)?, codec(layer, Kind::Value)?)))?;
    let bytes = encoders.iter().map(|e| e.bytes() + e.dictionary().bytes()).sum();
    let atoms: usize = encoders.iter().map(|e| e.dictionary().atoms().len()).sum();
    Ok(scheme.with_artefacts(&named.artefacts, bytes).stored_as(atoms * size_of::<f16>()))
}

/// How one layer's keys or values are coded.
#[derive(Clone)]
struct Settings {
    encoder: Arc<Encoder>,
    heads: usize,
    sparsity: usize,
    delta: f32,
    adaptive: usize,
    layout: CodeLayout,
    buffering: Buffering,
}

impl Settings {
    /// The number of atoms that indices can refer to: those of the dictionary, and the sequence's own.
    fn nameable(&self) -> usize {
        self.encoder.dictionary().len() + self.adaptive
    }
}

struct Coder(Settings);

impl Codec for Coder {
    fn empty(&self) -> Box<dyn CodedTokens> {
        Box::new(LexicoTokens::new(self.0.clone()))
    }

    fn buffering(&self) -> Buffering {
        self.0.buffering
    }

    /// False: tables of atoms are made for all tokens of a head.
    fn in_parts(&self) -> bool {
        false
    }

    fn tensors(&self, uploads: &mut Uploads) -> Result<Option<Stores>, CacheError> {
        tensors::stores(&self.0, uploads)
    }

    fn nominal_bits(&self) -> f64 {
        let d = self.0.encoder.dictionary().width();
        self.0.layout.bits(self.0.sparsity, 1, d, self.0.nameable()).0
    }

    fn stored_bits(&self) -> f64 {
        let d = self.0.encoder.dictionary().width() as f64;
        let lengths = if self.0.delta > 0.0 { (8.0 + 32.0 / START_ROWS as f64) / d } else { 0.0 };
        self.nominal_bits() + lengths
    }
}
