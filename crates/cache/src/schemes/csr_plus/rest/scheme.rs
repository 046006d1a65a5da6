//! The codec of prompt files as a scheme, to measure it beside others.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use kvcsr_codec::{BitsPerChannel, Footprint};

use super::RestCodec;
use crate::{AttendCx, CacheError, DenseCache, LayerCache, Rotary, Scheme};

/// A prompt is coded as in a [`super::PromptFile`] and restored. The tokens that follow are exact. The footprint counts
/// only the prompt's code: which cache holds the restored prompt is a separate choice.
pub struct RestScheme {
    codec: Arc<RestCodec>,
    name: String,
    shared: usize,
}

impl RestScheme {
    /// A scheme called `rest@B`. `shared` is the number of bytes of the codec's tables.
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
    /// The number of coded tokens.
    prompt: usize,
    /// Bytes of their code, with their ids.
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

    /// The bytes of the prompt's code. Later tokens count with as many bits as the prompt's.
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
