//! The codes of one kind of vector of one layer.

use std::sync::Arc;

use candle_core::Tensor;
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
        if self.refit {
            kvcsr_codec::refit(atoms, rows, indices, coefficients)?;
        }
        Ok(())
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

    /// Online parts for `rows` `(B, Hkv, T, D)`, not yet kept.
    pub(super) fn fill(
        &self,
        part: &OnlinePart,
        rows: &[f32],
        batch: usize,
        heads: usize,
    ) -> Result<Vec<OnlineAtoms>, CacheError> {
        rows.chunks_exact((rows.len() / batch.max(1)).max(1))
            .map(|rows| online::fill(&self.coder, part, rows, heads))
            .collect::<Result<_, _>>()
            .map_err(|source| self.error(source))
    }

    pub(super) fn keep_online(&mut self, online: Vec<OnlineAtoms>) {
        self.online = online;
    }

    pub(super) fn online(&self) -> &[OnlineAtoms] {
        &self.online
    }

    /// Codes `rows` `(B, Hkv, T, D)` over each sequence's own atoms, without keeping anything.
    pub(super) fn encode(&self, rows: &[f32], online: &[OnlineAtoms]) -> Result<Fresh, CacheError> {
        let (s, dictionary) = (self.coder.sparsity, self.coder.encoder.dictionary());
        let n = rows.len() / dictionary.width() * s;
        let mut fresh = Fresh { indices: vec![0; n], coefficients: vec![0.0; n] };
        let mut code = || -> Result<(), CodecError> {
            if online.is_empty() || rows.is_empty() {
                return self.coder.encode(
                    dictionary.as_ref().into(),
                    rows,
                    &mut fresh.indices,
                    &mut fresh.coefficients,
                );
            }
            let sequences = rows
                .chunks_exact(rows.len() / online.len())
                .zip(fresh.indices.chunks_exact_mut(n / online.len()))
                .zip(fresh.coefficients.chunks_exact_mut(n / online.len()));
            for (((rows, indices), coefficients), online) in sequences.zip(online) {
                self.coder.encode(Atoms::new(dictionary, online)?, rows, indices, coefficients)?;
            }
            Ok(())
        };
        code().map_err(|source| self.error(source))?;
        Ok(fresh)
    }

    pub(super) fn keep(&mut self, fresh: &Fresh, streams: usize) {
        let coder = &self.coder;
        self.codes.resize_with(streams, || Codes::new(coder.layout, coder.sparsity, coder.atoms));
        let each = fresh.indices.len() / streams.max(1);
        for (stream, codes) in self.codes.iter_mut().enumerate() {
            let part = stream * each..(stream + 1) * each;
            codes.append(&fresh.indices[part.clone()], &fresh.coefficients[part]);
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

    /// The first `tokens` coded tokens restored ("de-sparse"): `(B, Hkv, tokens, D)`.
    pub(super) fn restore(&self, batch: usize, tokens: usize, like: &Tensor) -> Result<Tensor, CacheError> {
        let (rows, width) = (tokens * self.coder.chunks, self.coder.encoder.dictionary().width());
        let mut restored = vec![0f32; self.codes.len() * rows * width];
        for (stream, out) in restored.chunks_exact_mut((rows * width).max(1)).enumerate() {
            self.atoms(stream)
                .and_then(|atoms| self.codes[stream].decode_into(atoms, 0..rows, out))
                .map_err(|source| self.error(source))?;
        }
        let shape = (batch, self.codes.len() / batch, tokens, self.coder.head_dim());
        Ok(Tensor::from_vec(restored, shape, like.device())?.to_dtype(like.dtype())?)
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
