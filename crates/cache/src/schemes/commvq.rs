//! CommVQ for keys only: additive codebooks that commute with position embedding (Li et al., ICML 2025).
//!
//! The keys of all heads of a token, before position embedding, are divided by their common l2 norm, which is stored in
//! f16. Each head is then coded in residual steps. A step chooses two of 64 rows of complex numbers, `a` and `b`, and
//! subtracts `z_a + i z_b`, the nearest of the 4096 codewords. Tokens are coded 128 at a time. Values stay in f16: the
//! paper's value codec is a separate neural network, and is not implemented here.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Place;
use std::ops::Range;
use std::sync::Arc;

use half::f16;
use kvcsr_codec::{CodebookSet, Footprint, Kind, Table, TiedCodebook};
use kvcsr_codec::{pack_bits, packed_bytes, unpack_bits};
use rayon::prelude::*;

use super::halves::Halves;
use crate::coded::{Block, Buffering, Codec, CodedScheme, CodedTokens, drop_front, reserve};
use crate::entry::{Entry, KeysCoded, Parameter, WINDOW};
use crate::family::{Family, Plan, Read};
use crate::name::SchemeName;
use crate::needs::{Binding, Needs};
use crate::{CacheError, Geometry, Window};

/// `commvq-k-B`.
pub const FAMILY: Family = Family { entries: ENTRIES, read };

/// The codebook set that is used if a name does not give one.
pub const CODEBOOKS: &str = "commvq-k";
/// The table of a layer's codebook rows, `(Hkv, steps, 64, D)`. The real parts come before the imaginary parts.
pub const ROWS: &str = "rows";
/// Rows of a step's codebook.
pub const ROWS_PER_STEP: usize = 64;
/// Bits of a row number.
const INDEX_BITS: usize = 6;
/// Tokens that are coded at a time.
const BLOCK: usize = 128;

const ENTRIES: &[Entry] = &[Entry {
    pattern: "commvq-k-B",
    examples: &["commvq-k-1", "commvq-k-2", "commvq-k-1+window(sinks=2,recent=9)"],
    summary: "Keys as residual sums of codewords that commute with RoPE, about B bits per channel; values in f16",
    citation: "Li et al., CommVQ: Commutative Vector Quantization for KV Cache Compression, ICML 2025",
    keys_coded: KeysCoded::BeforeRope,
    parameters: &[
        Parameter {
            name: "B",
            default: "",
            meaning: "bits per channel of keys, 1 or 2: round(B D / 12) residual steps",
        },
        WINDOW[0],
        WINDOW[1],
        WINDOW[2],
    ],
    prefill_as_decoded: true,
}];

/// The number of residual steps for `bits` bits per channel and heads of `head_dim` channels.
pub fn steps(bits: usize, head_dim: usize) -> usize {
    ((bits * head_dim) as f64 / (2 * INDEX_BITS) as f64).round().max(1.0) as usize
}

fn read(name: &SchemeName<'_>) -> Read {
    let Some(text) = name.level("commvq-k") else { return Ok(None) };
    let bits = text
        .parse()
        .ok()
        .filter(|bits| (1..=2).contains(bits))
        .ok_or_else(|| format!("`{text}` is not a number of bits: there are 1 and 2"))?;
    name.arguments.only(&[])?;
    name.only_parts(&[])?;
    let (window, artefacts) = (name.window()?, name.artefacts.unwrap_or_default().to_owned());
    let needs = Needs::codebooks(KeysCoded::BeforeRope, name.artefacts.unwrap_or(CODEBOOKS));
    Ok(Some(Plan::new(needs, move |bound| Ok(Box::new(bind(&bound, bits, window, &artefacts)?)))))
}

fn bind(bound: &Binding<'_>, bits: usize, window: Window, artefacts: &str) -> Result<CodedScheme, CacheError> {
    let (geometry, set) = (bound.geometry(), bound.codebooks()?);
    let steps = steps(bits, geometry.head_dim);
    let values: Arc<dyn Codec> = Arc::new(Halves { heads: geometry.kv_heads, head_dim: geometry.head_dim });
    // Layers with the same table share what is computed from it.
    let mut made: BTreeMap<*const f16, Arc<Books>> = BTreeMap::new();
    let (mut bytes, mut stored) = (0, 0);
    let scheme = CodedScheme::new(bound, window, |layer| {
        let table = Books::table(bound, set, layer, steps)?;
        let books = match made.entry(table.values().as_ptr()) {
            Place::Occupied(made) => made.get().clone(),
            Place::Vacant(place) => {
                let books = Books::new(table, layer, steps)?;
                bytes += books.books.iter().map(TiedCodebook::bytes).sum::<usize>();
                // Only the trained steps that are used.
                stored += geometry.kv_heads * steps * ROWS_PER_STEP * geometry.head_dim * size_of::<f16>();
                place.insert(Arc::new(books)).clone()
            }
        };
        Ok((Arc::new(Keys { books, geometry, bits }), values.clone()))
    })?;
    Ok(scheme.with_artefacts(artefacts, bytes).stored_as(stored))
}

/// One layer's codebooks.
struct Books {
    /// One codebook per head and step.
    books: Vec<TiedCodebook>,
    steps: usize,
}

impl Books {
    /// The table of a layer. It must have at least as many steps as are needed.
    fn table<'a>(
        bound: &Binding<'_>,
        set: &'a CodebookSet,
        layer: usize,
        steps: usize,
    ) -> Result<&'a Table, CacheError> {
        let Geometry { kv_heads, head_dim, .. } = bound.geometry();
        let trained = set.get(layer, Kind::Key, ROWS).and_then(|table| table.shape().get(1).copied()).unwrap_or(steps);
        let table = set
            .table(layer, Kind::Key, ROWS, &[kv_heads, trained, ROWS_PER_STEP, head_dim])
            .map_err(|source| CacheError::Codec { layer, kind: Kind::Key, source })?;
        if trained < steps {
            return Err(bound.unsuitable(format!("{steps} residual steps are needed, {trained} were trained")));
        }
        Ok(table)
    }

    fn new(table: &Table, layer: usize, steps: usize) -> Result<Self, CacheError> {
        let (trained, head_dim) = (table.shape()[1], table.shape()[3]);
        let each = ROWS_PER_STEP * head_dim;
        let books = table
            .to_f32()
            .chunks_exact(trained * each)
            .flat_map(|head| head.chunks_exact(each).take(steps))
            .map(|rows| TiedCodebook::new(head_dim, rows.to_vec()))
            .collect::<Result<_, _>>()
            .map_err(|source| CacheError::Codec { layer, kind: Kind::Key, source })?;
        Ok(Self { books, steps })
    }

    fn of(&self, head: usize) -> &[TiedCodebook] {
        &self.books[head * self.steps..(head + 1) * self.steps]
    }
}

struct Keys {
    books: Arc<Books>,
    geometry: Geometry,
    bits: usize,
}

impl Codec for Keys {
    fn empty(&self) -> Box<dyn CodedTokens> {
        let Geometry { kv_heads, head_dim, .. } = self.geometry;
        let heads = vec![Vec::new(); kv_heads];
        Box::new(KeyTokens { books: self.books.clone(), head_dim, norms: Vec::new(), heads })
    }

    fn buffering(&self) -> Buffering {
        Buffering::Blocks { block: BLOCK, aligned: BLOCK }
    }

    fn nominal_bits(&self) -> f64 {
        let exact = (2 * INDEX_BITS * self.books.steps) as f64 / self.geometry.head_dim as f64;
        exact.min(self.bits as f64)
    }

    fn stored_bits(&self) -> f64 {
        let Geometry { kv_heads, head_dim, .. } = self.geometry;
        let codes = 8 * packed_bytes(2 * self.books.steps, INDEX_BITS);
        codes as f64 / head_dim as f64 + 16.0 / (kv_heads * head_dim) as f64
    }
}

struct KeyTokens {
    books: Arc<Books>,
    head_dim: usize,
    /// The l2 norm of the keys of each token over all heads.
    norms: Vec<f16>,
    /// For each head, row numbers `(tokens, 2 steps)`. The numbers of a token take whole bytes.
    heads: Vec<Vec<u8>>,
}

impl CodedTokens for KeyTokens {
    fn append(&mut self, block: &Block<'_>) {
        let (d, n) = (self.head_dim, block.tokens);
        reserve(&mut self.norms, n, 1);
        let from = self.norms.len();
        for token in 0..n {
            let squares = block.rows.chunks_exact(n * d).flat_map(|head| &head[token * d..(token + 1) * d]);
            let norm = squares.map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            self.norms.push(f16::from_f64(norm.min(f16::MAX.to_f64())));
        }
        let (books, norms, steps) = (&self.books, &self.norms[from..], self.books.steps);
        self.heads.par_iter_mut().zip(block.rows.par_chunks_exact(n * d)).enumerate().for_each(
            |(head, (bytes, rows))| {
                reserve(bytes, n, packed_bytes(2 * steps, INDEX_BITS));
                let (mut parts, mut scores) = (Vec::new(), Vec::new());
                let (mut rest, mut codes) = (vec![0.0; d], vec![0u16; 2 * steps]);
                for (row, norm) in rows.chunks_exact(d).zip(norms) {
                    let norm = norm.to_f32();
                    let inverse = if norm > 0.0 { 1.0 / norm } else { 0.0 };
                    rest.iter_mut().zip(row).for_each(|(rest, x)| *rest = x * inverse);
                    for (book, code) in books.of(head).iter().zip(codes.chunks_exact_mut(2)) {
                        let (a, b) = book.find(&rest, &mut parts, &mut scores);
                        book.add((a, b), -1.0, &mut rest);
                        (code[0], code[1]) = (a as u16, b as u16);
                    }
                    pack_bits(&codes, INDEX_BITS, bytes);
                }
            },
        );
    }

    fn restore(&self, head: usize, tokens: Range<usize>, out: &mut [f32]) {
        let (d, steps) = (self.head_dim, self.books.steps);
        let each = packed_bytes(2 * steps, INDEX_BITS);
        let mut codes = vec![0u16; 2 * steps];
        let bytes = self.heads[head][tokens.start * each..tokens.end * each].chunks_exact(each);
        for ((bytes, norm), out) in bytes.zip(&self.norms[tokens]).zip(out.chunks_exact_mut(d)) {
            unpack_bits(bytes, INDEX_BITS, &mut codes);
            out.fill(0.0);
            for (book, code) in self.books.of(head).iter().zip(codes.chunks_exact(2)) {
                book.add((code[0].into(), code[1].into()), norm.to_f32(), out);
            }
        }
    }

    fn footprint(&self) -> Footprint {
        Footprint {
            packed: self.heads.iter().map(Vec::capacity).sum(),
            scales: self.norms.capacity() * size_of::<f16>(),
            tables: size_of::<Self>() + self.heads.capacity() * size_of::<Vec<u8>>(),
            ..Footprint::default()
        }
    }

    fn drop_first(&mut self, tokens: usize) {
        let each = packed_bytes(2 * self.books.steps, INDEX_BITS);
        drop_front(&mut self.norms, tokens);
        self.heads.iter_mut().for_each(|bytes| drop_front(bytes, tokens * each));
    }
}
