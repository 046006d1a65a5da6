//! The codes of one kind of vector of one layer.

use std::ops::Range;
use std::sync::Arc;

use kvcsr_codec::attend::CodedHead;
use kvcsr_codec::{Atoms, CodeLayout, CodecError, Codes, Encoder, Footprint, Kind, OnlineAtoms};

use super::online;
use super::options::OnlinePart;
use crate::CacheError;

/// How one kind of vector of one layer is coded.
#[derive(Clone)]
pub(super) struct Coder {
    pub(super) kind: Kind,
    pub(super) encoder: Arc<Encoder>,
    pub(super) sparsity: usize,
    pub(super) chunks: usize,
    pub(super) layout: CodeLayout,
    pub(super) refit: bool,
    /// Relative squared error at which pursuit stops.
    pub(super) stop: Option<f32>,
    /// Offline atoms and room for the online part.
    pub(super) atoms: usize,
}

impl Coder {
    /// Codes `rows` `(n, width)` over `atoms`.
    pub(super) fn encode(
        &self,
        atoms: Atoms<'_>,
        rows: &[f32],
        indices: &mut [u16],
        coefficients: &mut [f32],
    ) -> Result<(), CodecError> {
        self.encoder.encode_over(atoms, rows, self.sparsity, indices, coefficients)?;
        if let Some(tolerance) = self.stop {
            kvcsr_codec::stop_early(rows, atoms.width(), tolerance, indices, coefficients);
        }
        if self.refit {
            kvcsr_codec::refit(atoms, rows, indices, coefficients)?;
        }
        Ok(())
    }

    fn codes(&self) -> Codes {
        match self.stop {
            None => Codes::new(self.layout, self.sparsity, self.atoms),
            Some(_) => Codes::ragged(self.layout, self.sparsity, self.atoms),
        }
    }

    /// Bits per channel: of rows of full length, whose length takes 8 and a share in the starts, where
    /// rows differ.
    pub(super) fn bits(&self) -> f64 {
        let length = if self.stop.is_some() { 8.5 } else { 0.0 };
        let codes = self.layout.bits(self.sparsity, self.chunks, self.head_dim(), self.atoms);
        codes.0 + length * self.chunks as f64 / self.head_dim() as f64
    }

    pub(super) fn head_dim(&self) -> usize {
        self.chunks * self.encoder.dictionary().width()
    }
}

/// One stream of codes per sequence and head, in token order, and one online part per sequence.
pub(super) struct Streams {
    pub(super) coder: Coder,
    layer: usize,
    codes: Vec<Codes>,
    online: Vec<OnlineAtoms>,
}

/// Codes that were made but not yet kept, in `(B, Hkv, T, chunks, sparsity)` order.
pub(super) struct Fresh {
    indices: Vec<u16>,
    coefficients: Vec<f32>,
}

impl Streams {
    pub(super) fn new(coder: Coder, layer: usize) -> Self {
        Self { coder, layer, codes: Vec::new(), online: Vec::new() }
    }

    /// Sequences times heads held.
    pub(super) fn count(&self) -> usize {
        self.codes.len()
    }

    /// Online parts of the sequences whose vectors `rows` holds as `parts` cut it, `(Hkv, T, D)` each;
    /// not yet kept.
    pub(super) fn fill(
        &self,
        part: &OnlinePart,
        rows: &[f32],
        parts: &[Range<usize>],
        heads: usize,
    ) -> Result<Vec<OnlineAtoms>, CacheError> {
        let mut all = Vec::with_capacity(parts.len());
        for at in parts {
            all.push(online::fill(&self.coder, part, &rows[at.clone()], heads).map_err(|e| self.error(e))?);
        }
        Ok(all)
    }

    pub(super) fn keep_online(&mut self, online: Vec<OnlineAtoms>) {
        self.online = online;
    }

    pub(super) fn online(&self) -> &[OnlineAtoms] {
        &self.online
    }

    /// Codes `rows`, which `parts` cut into sequences `(Hkv, T, D)`, over each sequence's own atoms,
    /// without keeping anything.
    pub(super) fn encode(
        &self,
        rows: &[f32],
        parts: &[Range<usize>],
        online: &[OnlineAtoms],
    ) -> Result<Fresh, CacheError> {
        let (s, dictionary) = (self.coder.sparsity, self.coder.encoder.dictionary());
        let n = rows.len() / dictionary.width() * s;
        let mut fresh = Fresh { indices: vec![0; n], coefficients: vec![0.0; n] };
        let mut code = || -> Result<(), CodecError> {
            let Fresh { indices, coefficients } = &mut fresh;
            if online.is_empty() {
                return self.coder.encode(dictionary.as_ref().into(), rows, indices, coefficients);
            }
            for (at, online) in parts.iter().zip(online) {
                let codes = at.start / dictionary.width() * s..at.end / dictionary.width() * s;
                let (indices, coefficients) = (&mut indices[codes.clone()], &mut coefficients[codes]);
                self.coder.encode(Atoms::new(dictionary, online)?, &rows[at.clone()], indices, coefficients)?;
            }
            Ok(())
        };
        code().map_err(|source| self.error(source))?;
        Ok(fresh)
    }

    /// Keeps what [`Streams::encode`] made of `parts`.
    pub(super) fn keep(&mut self, fresh: &Fresh, parts: &[Range<usize>], heads: usize) {
        let Self { coder, codes, .. } = self;
        codes.resize_with(parts.len() * heads, || coder.codes());
        let per_element = |elements: usize| elements / coder.encoder.dictionary().width() * coder.sparsity;
        for (at, codes) in parts.iter().zip(codes.chunks_mut(heads)) {
            let each = per_element(at.len()) / heads;
            for (head, codes) in codes.iter_mut().enumerate() {
                let part = per_element(at.start) + head * each..per_element(at.start) + (head + 1) * each;
                codes.append(&fresh.indices[part.clone()], &fresh.coefficients[part]);
            }
        }
    }

    fn atoms(&self, stream: usize) -> Result<Atoms<'_>, CodecError> {
        let dictionary = self.coder.encoder.dictionary();
        match self.online.len() {
            0 => Ok(dictionary.as_ref().into()),
            sequences => Atoms::new(dictionary, &self.online[stream / (self.codes.len() / sequences)]),
        }
    }

    /// What attention on codes needs of one sequence's head.
    pub(super) fn head(&self, stream: usize) -> Result<CodedHead<'_>, CodecError> {
        Ok(CodedHead { codes: &self.codes[stream], atoms: self.atoms(stream)?, chunks: self.coder.chunks })
    }

    /// The first coded tokens of one sequence's head restored ("de-sparse"), as many as `out`, `(T, D)`, holds.
    pub(super) fn restore(&self, stream: usize, out: &mut [f32]) -> Result<(), CacheError> {
        let rows = out.len() / self.coder.encoder.dictionary().width();
        self.atoms(stream)
            .and_then(|atoms| self.codes[stream].decode_into(atoms, 0..rows, out))
            .map_err(|source| self.error(source))
    }

    pub(super) fn error(&self, source: CodecError) -> CacheError {
        CacheError::Codec { layer: self.layer, kind: self.coder.kind, source }
    }

    pub(super) fn footprint(&self) -> Footprint {
        let tables = self.codes.capacity() * size_of::<Codes>() + self.online.capacity() * size_of::<OnlineAtoms>();
        self.codes.iter().map(Codes::footprint).sum::<Footprint>()
            + self.online.iter().map(OnlineAtoms::footprint).sum()
            + Footprint { tables, ..Footprint::default() }
    }

    pub(super) fn clear(&mut self) {
        self.codes = Vec::new();
        self.online = Vec::new();
    }
}
