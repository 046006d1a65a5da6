//! The codes of one kind of vector in one layer, over offline atoms and the sequence's own atoms.

use std::ops::Range;
use std::sync::Arc;

use kvcsr_codec::{Atoms, Codes, Footprint, OnlineAtoms};
#[cfg(test)]
use kvcsr_codec::{CodeLayout, Encoder, Kind};

use super::coder::Coder;
use super::online;
use super::options::Prefill;
use super::tensors;
use crate::CacheError;
use crate::coded::{Block, Codec, CodedTokens, Prompt, ScoresCodes, SumsCodes};
use crate::schemes::sparse::{self, BUFFERS};
use crate::tensor::{Stores, Uploads};

/// Up to this number of query rows of one head, values are summed on codes. With more rows, it is faster to restore
/// each value once.
const SUMMED_ROWS: usize = 32;

/// The codec of a layer's keys or values under CSR.
pub(crate) struct CsrCodec(pub(super) Arc<Coder>);

#[cfg(test)]
impl CsrCodec {
    /// A codec with `sparsity` atoms of one dictionary for whole head vectors, without additions.
    pub(crate) fn plain(kind: Kind, heads: usize, encoder: Arc<Encoder>, sparsity: usize) -> Self {
        let (layout, atoms) = (CodeLayout::Paper, encoder.dictionary().len());
        let (chunks, refit, stop, online) = (1, false, None, None);
        Self(Arc::new(Coder { kind, heads, encoder, sparsity, chunks, layout, refit, stop, online, atoms }))
    }
}

impl Codec for CsrCodec {
    fn empty(&self) -> Box<dyn CodedTokens> {
        let coder = self.0.clone();
        let codes = (0..coder.heads).map(|_| coder.codes()).collect();
        let online = OnlineAtoms::new(coder.encoder.dictionary().width());
        Box::new(CsrTokens { coder, codes, online })
    }

    /// For rows of full length. If rows differ in length, the length of a row takes 8 bits, and the starts take a
    /// share.
    fn nominal_bits(&self) -> f64 {
        let Coder { sparsity, chunks, layout, atoms, .. } = *self.0;
        let head_dim = chunks * self.0.encoder.dictionary().width();
        let length = if self.0.stop.is_some() { 8.5 } else { 0.0 };
        layout.bits(sparsity, chunks, head_dim, atoms).0 + length * chunks as f64 / head_dim as f64
    }

    fn full_precision(&self) -> bool {
        true
    }

    fn first_call_is_prompt(&self) -> bool {
        self.0.online.is_some_and(|part| part.prefill == Prefill::Restored)
    }

    /// False: tables of atoms are made for all tokens of a head.
    fn in_parts(&self) -> bool {
        false
    }

    fn tensors(&self, uploads: &mut Uploads) -> Result<Option<Stores>, CacheError> {
        tensors::stores(&self.0, uploads)
    }
}

/// The codes of one sequence, with its own atoms.
struct CsrTokens {
    coder: Arc<Coder>,
    /// For each head, rows `(tokens, chunks)`.
    codes: Vec<Codes>,
    online: OnlineAtoms,
}

impl CsrTokens {
    /// Bytes of the struct and of what it holds per head, without the codes.
    fn bytes(heads: usize) -> usize {
        size_of::<Self>() + heads * size_of::<Codes>()
    }

    fn atoms(&self) -> Atoms<'_> {
        Atoms::new(self.coder.encoder.dictionary(), &self.online).expect("the scheme leaves room for online atoms")
    }

    /// The rows of codes that belong to `tokens`.
    fn rows(&self, tokens: Range<usize>) -> Range<usize> {
        tokens.start * self.coder.chunks..tokens.end * self.coder.chunks
    }
}

/// See [`CsrTokens::bytes`].
pub(super) fn struct_bytes(heads: usize) -> usize {
    CsrTokens::bytes(heads)
}

impl CodedTokens for CsrTokens {
    fn see_prompt(&mut self, prompt: &Prompt<'_>) {
        if let Some(part) = &self.coder.online {
            let rows = prompt.of(self.coder.kind);
            self.online = online::fill(&self.coder, part, rows, self.coder.heads).expect("prompts can be coded");
        }
    }

    fn append(&mut self, block: &Block<'_>) {
        let (s, width) = (self.coder.sparsity, self.coder.encoder.dictionary().width());
        let n = block.rows.len() / width * s;
        let (mut indices, mut coefficients) = (vec![0; n], vec![0.0; n]);
        self.coder
            .encode(self.atoms(), block.rows, &mut indices, &mut coefficients)
            .expect("blocks are finite rows of the dictionary's width");
        let each = n / self.coder.heads;
        let fresh = indices.chunks_exact(each).zip(coefficients.chunks_exact(each));
        for (codes, (indices, coefficients)) in self.codes.iter_mut().zip(fresh) {
            codes.append(indices, coefficients);
        }
    }

    fn restore(&self, head: usize, tokens: Range<usize>, out: &mut [f32]) {
        let mut buffers = BUFFERS.take();
        self.codes[head].restore(self.atoms(), self.rows(tokens), &mut buffers, out);
        BUFFERS.set(buffers);
    }

    fn scores_codes(&self) -> Option<&dyn ScoresCodes> {
        Some(self)
    }

    fn sums_codes(&self) -> Option<&dyn SumsCodes> {
        Some(self)
    }

    fn footprint(&self) -> Footprint {
        let tables = Self::bytes(self.codes.capacity());
        self.codes.iter().map(Codes::footprint).sum::<Footprint>()
            + self.online.footprint()
            + Footprint { tables, ..Footprint::default() }
    }

    fn drop_first(&mut self, tokens: usize) {
        let rows = tokens * self.coder.chunks;
        self.codes.iter_mut().for_each(|codes| codes.drop_first(rows));
    }
}

impl ScoresCodes for CsrTokens {
    fn prepare(&self, queries: &[f32], tokens: usize, table: &mut Vec<f32>) -> bool {
        let Coder { sparsity, chunks, .. } = *self.coder;
        sparse::prepare(self.atoms(), chunks, sparsity, queries, tokens, table)
    }

    fn score(&self, head: usize, tokens: Range<usize>, table: &[f32], out: &mut [f32]) {
        let (chunks, queries) = (self.coder.chunks, out.len() / tokens.len());
        let mut buffers = BUFFERS.take();
        let (indices, coefficients) = buffers.unpacked(&self.codes[head], self.rows(tokens));
        kvcsr_codec::score_codes(table, chunks, queries, indices, coefficients, out);
        BUFFERS.set(buffers);
    }
}

impl SumsCodes for CsrTokens {
    fn sums(&self, rows: usize, _tokens: usize) -> usize {
        if rows > SUMMED_ROWS { 0 } else { self.coder.chunks * self.atoms().len() * rows }
    }

    fn add(&self, head: usize, tokens: Range<usize>, weights: &[f32], rows: usize, sums: &mut [f32]) {
        let mut buffers = BUFFERS.take();
        let (indices, coefficients) = buffers.unpacked(&self.codes[head], self.rows(tokens));
        kvcsr_codec::add_weighted_codes(sums, self.coder.chunks, rows, indices, coefficients, weights);
        BUFFERS.set(buffers);
    }

    fn finish(&self, _head: usize, sums: &[f32], rows: usize, out: &mut [f32]) {
        kvcsr_codec::add_atom_sums(self.atoms(), self.coder.chunks, rows, sums, out);
    }
}
