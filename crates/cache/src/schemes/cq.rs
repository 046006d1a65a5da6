//! CQ: coupled quantisation. Neighbouring channels are coded as one vector (Zhang et al., NeurIPS 2024).
//!
//! A head is cut into groups of `C` contiguous channels. Each group of each head of each layer has its own `2^B`
//! centroids. They are learned on calibration text, for keys before position embedding and for values. A token stores
//! the index of the nearest centroid. `cq-8c8b` is one bit per channel, without scales. The centroids come from the
//! stage `calibrate-peers`. Its weights replace the paper's gradients: see docs/DEVIATIONS.md.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Place;
use std::ops::Range;
use std::sync::Arc;

use half::f16;
use kvcsr_codec::{CodecError, Footprint, Kind, Nearest};
use kvcsr_codec::{pack_bits, packed_bytes, unpack_bits};

use crate::coded::{Codec, CodedScheme, CodedTokens, HeadTokens, PerHead, drop_front, reserve};
use crate::entry::{Entry, KeysCoded, Parameter, WINDOW};
use crate::family::{Family, Plan, Read};
use crate::name::SchemeName;
use crate::needs::{Binding, Needs};
use crate::{CacheError, Window};

/// `cq-CcBb`.
pub const FAMILY: Family = Family { entries: ENTRIES, read };

/// The table of a layer's centroids, `(Hkv, D / C, 2^B, C)`.
pub const CENTROIDS: &str = "centroids";

const ENTRIES: &[Entry] = &[Entry {
    pattern: "cq-CcBb",
    examples: &["cq-8c8b", "cq-4c8b", "cq-8c8b+window(sinks=2,recent=9)"],
    summary: "C channels as one of 2^B calibrated centroids, keys and values; k-means with surrogate weights",
    citation: "Zhang et al., KV Cache is 1 Bit Per Channel: Efficient Large Language Model Inference with Coupled \
               Quantization, NeurIPS 2024",
    keys_coded: KeysCoded::BeforeRope,
    parameters: &[
        Parameter { name: "C", default: "", meaning: "channels of a group; divides the head size" },
        Parameter { name: "B", default: "", meaning: "bits of a code, 1 to 12" },
        WINDOW[0],
        WINDOW[1],
        WINDOW[2],
    ],
    prefill_as_decoded: true,
}];

/// The channels and bits of a name's level, for example `8c8b`.
pub fn level(text: &str) -> Option<(usize, usize)> {
    let (channels, bits) = text.strip_suffix('b')?.split_once('c')?;
    let (channels, bits) = (channels.parse().ok()?, bits.parse().ok()?);
    ((1..=64).contains(&channels) && (1..=12).contains(&bits)).then_some((channels, bits))
}

fn read(name: &SchemeName<'_>) -> Read {
    let Some(text) = name.level("cq") else { return Ok(None) };
    let (channels, bits) =
        level(text).ok_or_else(|| format!("`{text}` is not CcBb: 1 to 64 channels and 1 to 12 bits, as in 8c8b"))?;
    name.arguments.only(&[])?;
    name.only_parts(&[])?;
    let (window, artefacts) = (name.window()?, name.artefacts.unwrap_or_default().to_owned());
    let needs = Needs::codebooks(KeysCoded::BeforeRope, name.artefacts.unwrap_or(name.head));
    Ok(Some(Plan::new(needs, move |bound| Ok(Box::new(bind(&bound, channels, bits, window, &artefacts)?)))))
}

fn bind(
    bound: &Binding<'_>,
    channels: usize,
    bits: usize,
    window: Window,
    artefacts: &str,
) -> Result<CodedScheme, CacheError> {
    let geometry = bound.geometry();
    if !geometry.head_dim.is_multiple_of(channels) {
        let reason = format!("groups of {channels} channels do not divide heads of {}", geometry.head_dim);
        return Err(bound.unsuitable(reason));
    }
    let groups = geometry.head_dim / channels;
    if groups > MOST_GROUPS {
        return Err(bound.unsuitable(format!("{groups} groups of channels: there may be {MOST_GROUPS}")));
    }
    let set = bound.codebooks()?;
    // Layers with the same table share what is computed from it.
    let mut made: BTreeMap<*const f16, Arc<Books>> = BTreeMap::new();
    let (mut bytes, mut stored) = (0, 0);
    let scheme = CodedScheme::new(bound, window, |layer| {
        let mut codec = |kind| -> Result<Arc<dyn Codec>, CacheError> {
            let shape = [geometry.kv_heads, geometry.head_dim / channels, 1 << bits, channels];
            let codec = |source| CacheError::Codec { layer, kind, source };
            let table = set.table(layer, kind, CENTROIDS, &shape).map_err(codec)?;
            let books = match made.entry(table.values().as_ptr()) {
                Place::Occupied(made) => made.get().clone(),
                Place::Vacant(place) => {
                    let books = Books::new(&table.to_f32(), shape[1], channels, bits).map_err(codec)?;
                    bytes += books.nearest.iter().map(Nearest::bytes).sum::<usize>();
                    stored += size_of_val(table.values());
                    place.insert(Arc::new(books)).clone()
                }
            };
            Ok(Arc::new(Coupled { books, heads: geometry.kv_heads }))
        };
        Ok((codec(Kind::Key)?, codec(Kind::Value)?))
    })?;
    Ok(scheme.with_artefacts(artefacts, bytes).stored_as(stored))
}

/// The largest number of channel groups of a head.
const MOST_GROUPS: usize = 256;

/// The centroids of one layer's keys or values.
struct Books {
    /// One per head and group.
    nearest: Vec<Nearest>,
    groups: usize,
    channels: usize,
    bits: usize,
}

impl Books {
    fn new(table: &[f32], groups: usize, channels: usize, bits: usize) -> Result<Self, CodecError> {
        let nearest = table.chunks_exact(channels << bits).map(|c| Nearest::new(channels, c.to_vec()));
        Ok(Self { nearest: nearest.collect::<Result<_, _>>()?, groups, channels, bits })
    }
}

struct Coupled {
    books: Arc<Books>,
    heads: usize,
}

impl Codec for Coupled {
    fn empty(&self) -> Box<dyn CodedTokens> {
        Box::new(PerHead::new(self.heads, |head| CoupledHead { books: self.books.clone(), head, bytes: Vec::new() }))
    }

    fn nominal_bits(&self) -> f64 {
        self.books.bits as f64 / self.books.channels as f64
    }

    fn stored_bits(&self) -> f64 {
        let Books { groups, channels, bits, .. } = *self.books;
        (8 * packed_bytes(groups, bits)) as f64 / (groups * channels) as f64
    }
}

struct CoupledHead {
    books: Arc<Books>,
    head: usize,
    /// Codes `(tokens, groups)`. The codes of a token take whole bytes.
    bytes: Vec<u8>,
}

impl CoupledHead {
    fn nearest(&self) -> &[Nearest] {
        let groups = self.books.groups;
        &self.books.nearest[self.head * groups..(self.head + 1) * groups]
    }
}

/// Writes the centroids, of `C` channels each, that `codes` select.
fn fetch<const C: usize>(codes: &[u16], nearest: &[Nearest], out: &mut [f32]) {
    for ((&code, nearest), out) in codes.iter().zip(nearest).zip(out.as_chunks_mut::<C>().0) {
        *out = nearest.centroids().as_chunks::<C>().0[usize::from(code)];
    }
}

impl HeadTokens for CoupledHead {
    fn append(&mut self, rows: &[f32], tokens: usize, _prompt: bool) {
        let books = self.books.clone();
        let (mut scores, mut codes) = (Vec::new(), vec![0; books.groups]);
        reserve(&mut self.bytes, tokens, packed_bytes(books.groups, books.bits));
        for row in rows.chunks_exact(books.groups * books.channels) {
            for ((code, x), nearest) in codes.iter_mut().zip(row.chunks_exact(books.channels)).zip(self.nearest()) {
                *code = nearest.find(x, &mut scores) as u16;
            }
            pack_bits(&codes, books.bits, &mut self.bytes);
        }
    }

    fn restore(&self, tokens: Range<usize>, out: &mut [f32]) {
        let Books { groups, channels, bits, .. } = *self.books;
        let each = packed_bytes(groups, bits);
        let mut codes = [0u16; MOST_GROUPS];
        let codes = &mut codes[..groups];
        let bytes = self.bytes[tokens.start * each..tokens.end * each].chunks_exact(each);
        for (bytes, out) in bytes.zip(out.chunks_exact_mut(groups * channels)) {
            unpack_bits(bytes, bits, codes);
            match channels {
                4 => fetch::<4>(codes, self.nearest(), out),
                8 => fetch::<8>(codes, self.nearest(), out),
                _ => {
                    for ((&code, nearest), out) in codes.iter().zip(self.nearest()).zip(out.chunks_exact_mut(channels))
                    {
                        out.copy_from_slice(nearest.centroid(usize::from(code)));
                    }
                }
            }
        }
    }

    fn footprint(&self) -> Footprint {
        Footprint { packed: self.bytes.capacity(), ..Footprint::default() }
    }

    fn drop_first(&mut self, tokens: usize) {
        drop_front(&mut self.bytes, tokens * packed_bytes(self.books.groups, self.books.bits));
    }
}
