//! SVDq: keys quantised in the basis of their own singular vectors (Hong et al., arXiv:2502.15304).
//!
//! The keys of a layer before position embedding, with all heads joined, are coded in the basis of the singular vectors
//! of a prompt's keys, after their mean is subtracted. The latent channels get the bits of a schedule. The strongest
//! channels come first, and the last ones get no bits. Each channel is quantised over groups of tokens.
//!
//! The basis is fitted to the prompt when the prompt is taken over, or comes from calibration text
//! (`basis=calibrated`). If a prompt has fewer tokens than twice the number of channels, no basis can be fitted. Its
//! keys, and all keys after it, then stay in f16. Values are in f16 or use KIVI.

mod allocation;
mod basis;
mod eigen;
mod keys;

use std::sync::Arc;

use kvcsr_codec::Kind;

use self::allocation::Schedule;
use self::basis::Basis;
use self::keys::KeyTokens;
use super::halves::Halves;
use super::kivi;
use crate::coded::affine::Affine;
use crate::coded::{Buffering, Codec, CodedScheme, CodedTokens};
use crate::entry::{Entry, KeysCoded, Parameter, WINDOW};
use crate::family::{Family, Plan, Read};
use crate::name::{Arguments, SchemeName};
use crate::needs::{Binding, Needs};
use crate::{CacheError, Geometry, Window};

pub use self::eigen::symmetric_eigenvectors;

/// `svdq-B`.
pub const FAMILY: Family = Family { entries: ENTRIES, read };

/// The codebook set that is used if a name asks for a calibrated basis without naming a set.
pub const CODEBOOKS: &str = "svdq";
/// The table of a layer's mean key, `(Hkv D)`.
pub const MEAN: &str = "mean";
/// The table of a layer's singular vectors, with the strongest first, `(Hkv D, Hkv D)`.
pub const BASIS: &str = "basis";
/// The table of the standard deviations along these vectors, `(Hkv D)`.
pub const DEVIATIONS: &str = "deviations";

const ENTRIES: &[Entry] = &[Entry {
    pattern: "svdq-B",
    examples: &[
        "svdq-2",
        "svdq-1.25",
        "svdq-2(values=kivi-2)",
        "svdq-2(basis=calibrated,group=32)",
        "svdq-2(schedule=water,group=32)+signed",
        "svdq-1.5(basis=calibrated,schedule=4/3/2/1/1/1/0/0)+window(sinks=2,recent=9)",
    ],
    summary: "Keys in the basis of a prompt's singular vectors, on average B bits per latent channel; values in f16",
    citation: "Hong et al., SVDq: 1.25-bit and 410x Key Cache Compression for LLM Attention, arXiv:2502.15304, 2025",
    keys_coded: KeysCoded::BeforeRope,
    parameters: &[
        Parameter { name: "B", default: "", meaning: "mean bits of a latent channel of keys; published: 2 and 1.25" },
        Parameter {
            name: "schedule",
            default: "8/4/2/1/1/0/0/0 or 4/2/2/2/0/0/0/0",
            meaning: "bits of eight equal tiers, or `water`: by variance",
        },
        Parameter { name: "basis", default: "prompt", meaning: "prompt or calibrated" },
        Parameter { name: "group", default: "128", meaning: "tokens of a quantisation group, or `prompt`: all of it" },
        Parameter { name: "values", default: "f16", meaning: "f16, kivi-2 or kivi-4" },
        Parameter {
            name: "+signed",
            default: "",
            meaning: "1-bit channels restored as mean ± mean deviation instead of minimum and maximum",
        },
        WINDOW[0],
        WINDOW[1],
        WINDOW[2],
    ],
    prefill_as_decoded: false,
}];

/// The number of tokens coded at a time during decode, unless the name gives a group.
const BLOCK: usize = 128;

/// How keys are coded. It is the same in all layers.
#[derive(Debug, Clone, PartialEq)]
struct Settings {
    schedule: Schedule,
    /// Tokens of a group. With 0, a group is a whole prompt.
    group: usize,
    signed: bool,
    heads: usize,
    head_dim: usize,
}

impl Settings {
    /// The number of latent channels, `Hkv D`.
    fn channels(&self) -> usize {
        self.heads * self.head_dim
    }

    /// The number of tokens coded at a time during decode.
    fn block(&self) -> usize {
        if self.group == 0 { BLOCK } else { self.group }
    }
}

/// The settings that a name gives.
struct Named {
    mean: f64,
    schedule: Schedule,
    group: usize,
    signed: bool,
    /// The bits of KIVI's values. `None` for values in f16.
    values: Option<usize>,
    window: Window,
    artefacts: String,
}

fn read(name: &SchemeName<'_>) -> Read {
    let Some(text) = name.level("svdq") else { return Ok(None) };
    let mean: f64 = text
        .parse()
        .ok()
        .filter(|b| (0.01..=8.0).contains(b))
        .ok_or_else(|| format!("`{text}` is not a mean number of bits up to 8"))?;
    name.arguments.only(&["schedule", "basis", "group", "values"])?;
    name.only_parts(&["signed"])?;
    let group = match name.arguments.get("group") {
        Some("prompt") => 0,
        _ => Some(name.arguments.tokens("group", BLOCK)?)
            .filter(|&g| g > 0)
            .ok_or_else(|| "group: at least 1 token, or `prompt`".to_owned())?,
    };
    let schedule = Schedule::read(mean, name.arguments.get("schedule"))?;
    let values = match name.arguments.get("values") {
        None | Some("f16") => None,
        Some("kivi-2") => Some(2),
        Some("kivi-4") => Some(4),
        Some(other) => return Err(format!("values are f16, kivi-2 or kivi-4, not `{other}`")),
    };
    let needs = match name.arguments.get("basis") {
        None | Some("prompt") => {
            name.no_artefacts()?;
            Needs::nothing(KeysCoded::BeforeRope)
        }
        Some("calibrated") => Needs::codebooks(KeysCoded::BeforeRope, name.artefacts.unwrap_or(CODEBOOKS)),
        Some(other) => return Err(format!("basis is prompt or calibrated, not `{other}`")),
    };
    let (signed, window) = (name.flag("signed")?, name.window()?);
    let artefacts = name.artefacts.unwrap_or_default().to_owned();
    let calibrated = !needs.is_nothing();
    let named = Named { mean, schedule, group, signed, values, window, artefacts };
    Ok(Some(Plan::new(needs, move |bound| Ok(Box::new(bind(&bound, named, calibrated)?)))))
}

fn bind(bound: &Binding<'_>, named: Named, calibrated: bool) -> Result<CodedScheme, CacheError> {
    let Geometry { kv_heads: heads, head_dim, .. } = bound.geometry();
    let Named { mean, schedule, group, signed, .. } = named;
    let settings = Arc::new(Settings { schedule, group, signed, heads, head_dim });
    if !settings.channels().is_multiple_of(allocation::TIERS) {
        return Err(bound.unsuitable(format!("{} channels are not eight equal tiers", settings.channels())));
    }
    let values: Arc<dyn Codec> = match named.values {
        None => Arc::new(Halves { heads, head_dim }),
        Some(bits) => kivi::Groups::read(&Arguments::default())
            .map_err(|reason| bound.unsuitable(reason))?
            .of(bound)?
            .values(Affine::plain(bits)),
    };
    let calibrated = if calibrated { Some(bound.codebooks()?) } else { None };
    let mut bytes = 0;
    let scheme = CodedScheme::new(bound, named.window, |layer| {
        let basis = match calibrated {
            None => None,
            Some(set) => {
                let basis = Basis::calibrated(set, layer, &settings).map_err(|source| CacheError::Codec {
                    layer,
                    kind: Kind::Key,
                    source,
                })?;
                bytes += basis.bytes();
                Some(Arc::new(basis))
            }
        };
        Ok((Arc::new(Keys { settings: settings.clone(), mean, basis }), values.clone()))
    })?;
    Ok(scheme.with_artefacts(&named.artefacts, bytes))
}

struct Keys {
    settings: Arc<Settings>,
    mean: f64,
    basis: Option<Arc<Basis>>,
}

impl Codec for Keys {
    fn empty(&self) -> Box<dyn CodedTokens> {
        Box::new(KeyTokens::new(self.settings.clone(), self.basis.clone()))
    }

    fn buffering(&self) -> Buffering {
        let block = self.settings.block();
        Buffering::Blocks { block, aligned: block }
    }

    fn nominal_bits(&self) -> f64 {
        self.mean
    }

    fn stored_bits(&self) -> f64 {
        let kept = self.settings.schedule.kept();
        let scales = if self.settings.group == 0 { 0.0 } else { 32.0 * kept / self.settings.group as f64 };
        self.mean + scales
    }
}
