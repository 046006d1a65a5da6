//! A method bound to a model.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use kvcsr_codec::BitsPerChannel;

use super::{Codec, CodedCache, JointCodec, LayerCodecs};
use crate::seam::OnTensors;
use crate::tensor::TensorScheme;
use crate::tensor::scheme::Origin;
use crate::{Binding, CacheError, Geometry, KeysCoded, LastQueries, LayerCache, Padding, Rotary, Scheme, Window};

/// A method bound to a model.
pub struct CodedScheme {
    name: String,
    artefacts: String,
    shared_bytes: usize,
    stored_bytes: usize,
    settings: Settings,
    layers: Vec<LayerCodecs>,
}

/// What all layers of a scheme have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) geometry: Geometry,
    pub(crate) keys_coded: KeysCoded,
    pub(crate) window: Window,
    /// Whether scores and sums are computed on the codes where the method can do so, instead of on restored vectors.
    pub(crate) on_codes: bool,
    /// Whether the mean is subtracted from keys before they are coded.
    pub(crate) centred: bool,
}

impl CodedScheme {
    /// The scheme that `bound` describes. `codecs` makes the codecs of each layer. Keys reach the codecs before or
    /// after position embedding, as the scheme's needs say.
    ///
    /// # Errors
    /// [`CacheError::Unsuitable`] for a model without key-value heads, for heads without channels or with an odd number
    /// of them, and for heads that a graded window cannot store. Also the errors of `codecs`.
    pub fn new(
        bound: &Binding<'_>,
        window: Window,
        mut codecs: impl FnMut(usize) -> Result<(Arc<dyn Codec>, Arc<dyn Codec>), CacheError>,
    ) -> Result<Self, CacheError> {
        Self::of(bound, window, |layer| codecs(layer).map(|(keys, values)| LayerCodecs::Apart(keys, values)))
    }

    /// The same as [`CodedScheme::new`], for a method that codes keys and values together.
    ///
    /// # Errors
    /// The errors of [`CodedScheme::new`].
    pub fn joint(
        bound: &Binding<'_>,
        window: Window,
        mut codecs: impl FnMut(usize) -> Result<Arc<dyn JointCodec>, CacheError>,
    ) -> Result<Self, CacheError> {
        Self::of(bound, window, |layer| codecs(layer).map(LayerCodecs::Together))
    }

    fn of(
        bound: &Binding<'_>,
        window: Window,
        codecs: impl FnMut(usize) -> Result<LayerCodecs, CacheError>,
    ) -> Result<Self, CacheError> {
        let geometry = bound.geometry();
        if geometry.kv_heads == 0 || geometry.head_dim == 0 || !geometry.head_dim.is_multiple_of(2) {
            return Err(bound.unsuitable(format!("heads of an even number of channels are needed, found {geometry:?}")));
        }
        if window.graded > 0 && !geometry.head_dim.is_multiple_of(super::blocks::BLOCK) {
            let reason = format!("a graded window codes 32 channels together, heads have {}", geometry.head_dim);
            return Err(bound.unsuitable(reason));
        }
        let layers = (0..geometry.layers).map(codecs).collect::<Result<_, _>>()?;
        let settings = Settings { geometry, keys_coded: bound.keys_coded(), window, on_codes: true, centred: false };
        Ok(Self {
            name: bound.scheme.to_owned(),
            artefacts: String::new(),
            shared_bytes: 0,
            stored_bytes: 0,
            settings,
            layers,
        })
    }

    /// Sets the name of the trained artefacts in use, and their size in bytes.
    pub fn with_artefacts(mut self, name: &str, bytes: usize) -> Self {
        self.artefacts = name.to_owned();
        (self.shared_bytes, self.stored_bytes) = (bytes, bytes);
        self
    }

    /// Sets the bytes of the artefacts as a deployment would store them, if this differs from the bytes held in memory.
    pub fn stored_as(mut self, bytes: usize) -> Self {
        self.stored_bytes = bytes;
        self
    }

    /// Restores all keys and values in order to attend. This is slower. Attention on codes is tested against it.
    pub fn restoring(mut self) -> Self {
        self.settings.on_codes = false;
        self
    }

    /// If `centred` is true: subtracts the mean key of each head from all keys, before position embedding, and adds its
    /// contribution back to the scores. The mean is that of the prompt; without a prompt it is the first token's key.
    /// Coded and buffered tokens are then centred, so a bias that all keys of a head share costs no precision. If
    /// `centred` is false, nothing changes.
    pub fn centred(mut self, centred: bool) -> Self {
        self.settings.centred = centred;
        self
    }

    fn cache(&self, layer: usize) -> Result<CodedCache, CacheError> {
        let codecs = self.layers.get(layer).ok_or_else(|| {
            let reason = format!("layer {layer} of a model built for {} layers", self.layers.len());
            CacheError::Unsuitable { scheme: self.name.clone(), reason }
        })?;
        Ok(CodedCache::new(layer, self.settings, codecs.clone()))
    }

    fn codecs(&self) -> impl Iterator<Item = &dyn Codec> {
        self.layers.iter().filter_map(LayerCodecs::each).flatten()
    }

    fn mean(&self, bits: impl Fn(&LayerCodecs) -> f64) -> BitsPerChannel {
        BitsPerChannel(self.layers.iter().map(bits).sum::<f64>() / self.layers.len() as f64)
    }
}

impl Scheme for CodedScheme {
    fn name(&self) -> &str {
        &self.name
    }

    fn dictionaries(&self) -> &str {
        &self.artefacts
    }

    fn empty(&self, layer: usize) -> Result<Box<dyn LayerCache>, CacheError> {
        Ok(Box::new(self.cache(layer)?))
    }

    fn after_observed_prefill(
        &self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
        queries: &LastQueries,
        rotary: &Rotary,
    ) -> Result<Box<dyn LayerCache>, CacheError> {
        let mut cache = self.cache(layer)?;
        let wanted = self.codecs().any(|codec| codec.sees_queries());
        cache.absorb_prompt(k, v, wanted.then_some(&queries.queries), rotary, Padding::None)?;
        Ok(Box::new(cache))
    }

    fn on_tensors(&self, device: &Device) -> Result<OnTensors, CacheError> {
        let origin = Origin {
            name: &self.name,
            artefacts: &self.artefacts,
            nominal: self.nominal_bits(),
            stored: self.stored_bits(),
            stored_bytes: self.stored_bytes,
            settings: self.settings,
            layers: &self.layers,
        };
        Ok(match TensorScheme::new(origin, device)? {
            Some(scheme) => OnTensors::Made(Box::new(scheme)),
            None => OnTensors::HostOnly,
        })
    }

    fn nominal_bits(&self) -> BitsPerChannel {
        self.mean(LayerCodecs::nominal_bits)
    }

    fn stored_bits(&self) -> BitsPerChannel {
        self.mean(LayerCodecs::stored_bits)
    }

    fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    fn stored_bytes(&self) -> usize {
        self.stored_bytes
    }
}
