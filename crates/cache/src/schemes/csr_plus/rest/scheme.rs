//! What a file would restore, as a scheme: to measure it beside others.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use kvcsr_codec::{BitsPerChannel, Footprint};

use super::RestCodec;
use crate::{AttendCx, CacheError, DenseCache, LayerCache, Rotary, Scheme};

/// A prompt coded as a [`super::PromptFile`] would hold it, and restored; tokens that follow are exact. It counts the prompt's
/// code alone, since what holds the restored prompt is another choice.
pub struct RestScheme {
    codec: Arc<RestCodec>,
    name: String,
    shared: usize,
}

impl RestScheme {
    /// A scheme called `rest@B`; `shared` are the bytes of the codec's tables.
    #[must_use]
    pub fn new(codec: Arc<RestCodec>, shared: usize) -> Self {
        Self { name: format!("rest@{}", codec.bits()), codec, shared }
    }
}

impl Scheme for RestScheme {
    fn name(&self) -> &str {
        &self.name
    }

    fn empty(&self, layer: usize) -> Result<Box<dyn LayerCache>, CacheError> {
        let inner = DenseCache::new(DType::F32);
        Ok(Box::new(RestCache { codec: self.codec.clone(), layer, inner, prompt: 0, bytes: 0 }))
    }

    fn nominal_bits(&self) -> BitsPerChannel {
        BitsPerChannel(self.codec.bits())
    }

    fn shared_bytes(&self) -> usize {
        self.shared
    }
}

struct RestCache {
    codec: Arc<RestCodec>,
    layer: usize,
    inner: DenseCache,
    /// Tokens that were coded.
    prompt: usize,
    /// Bytes of their code, ids included.
    bytes: usize,
}

impl LayerCache for RestCache {
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        self.inner.attend(q, k, v, cx)
    }

    fn absorb(&mut self, k: &Tensor, v: &Tensor, rotary: &Rotary) -> Result<(), CacheError> {
        let code = self.codec.encode(self.layer, k, v)?;
        let tokens = k.dim(2)?;
        let (keys, values) = self.codec.decode(self.layer, tokens, &code)?;
        self.inner.absorb(&keys, &values, rotary)?;
        self.prompt = tokens;
        self.bytes = code.len() + (tokens * size_of::<u32>()).div_ceil(self.codec.geometry().layers);
        Ok(())
    }

    fn len(&self) -> usize {
        self.inner.len()
    }

    /// The prompt's code; what follows counts as many bits as the prompt.
    fn footprint(&self) -> Footprint {
        if self.prompt == 0 {
            return self.inner.footprint();
        }
        Footprint { packed: self.bytes * self.len() / self.prompt, ..Footprint::default() }
    }

    fn clear(&mut self) {
        self.inner.clear();
        (self.prompt, self.bytes) = (0, 0);
    }
}
