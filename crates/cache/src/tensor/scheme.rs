//! A method bound to a model and a device.

use std::sync::Arc;

use candle_core::Device;
use kvcsr_codec::BitsPerChannel;

use super::cache::{LayerStores, OneKind, Shared};
use super::{TensorCache, Uploads};
use crate::coded::scheme::Settings;
use crate::coded::{Codec, LayerCodecs};
use crate::{CacheError, LayerCache, Scheme};

/// The largest number of restored numbers in a tile, on the CPU and on other devices. It limits the memory for
/// attention.
const TILE_NUMBERS: [usize; 2] = [1 << 20, 1 << 25];

/// A scheme whose codes are tensors on one device. [`Scheme::on_tensors`] makes it.
pub struct TensorScheme {
    name: String,
    artefacts: String,
    nominal: BitsPerChannel,
    stored: BitsPerChannel,
    shared_bytes: usize,
    stored_bytes: usize,
    shared: Arc<Shared>,
    layers: Vec<LayerStores>,
}

/// The data that a [`TensorScheme`] takes over from the scheme that it is made from.
pub(crate) struct Origin<'a> {
    pub(crate) name: &'a str,
    pub(crate) artefacts: &'a str,
    pub(crate) nominal: BitsPerChannel,
    pub(crate) stored: BitsPerChannel,
    pub(crate) stored_bytes: usize,
    pub(crate) settings: Settings,
    pub(crate) layers: &'a [LayerCodecs],
}

impl TensorScheme {
    /// The same method on `device`. `None` if one of its codecs has no tensor stores.
    pub(crate) fn new(origin: Origin<'_>, device: &Device) -> Result<Option<Self>, CacheError> {
        let Origin { name, artefacts, nominal, stored, stored_bytes, settings, layers } = origin;
        let mut uploads = Uploads::new(device);
        let mut made = Vec::with_capacity(layers.len());
        for layer in layers {
            let stores = match layer {
                LayerCodecs::Apart(keys, values) => {
                    match (one_kind(keys.as_ref(), &mut uploads)?, one_kind(values.as_ref(), &mut uploads)?) {
                        (Some(keys), Some(values)) => Some(LayerStores::Apart(keys, values)),
                        _ => None,
                    }
                }
                LayerCodecs::Together(codec) => codec.tensors(&mut uploads)?.map(LayerStores::Together),
            };
            let Some(stores) = stores else { return Ok(None) };
            made.push(stores);
        }
        let channels = settings.geometry.kv_heads * settings.geometry.head_dim;
        let tile = TILE_NUMBERS[usize::from(!device.is_cpu())] / channels.max(1);
        let shared = Shared { settings, device: device.clone(), fields: uploads.fields()?, tile: tile.max(128) };
        Ok(Some(Self {
            name: name.to_owned(),
            artefacts: artefacts.to_owned(),
            nominal,
            stored,
            shared_bytes: uploads.bytes(),
            stored_bytes,
            shared: Arc::new(shared),
            layers: made,
        }))
    }
}

fn one_kind(codec: &dyn Codec, uploads: &mut Uploads) -> Result<Option<OneKind>, CacheError> {
    let Some(stores) = codec.tensors(uploads)? else { return Ok(None) };
    Ok(Some(OneKind {
        stores,
        buffering: codec.buffering(),
        full_precision: codec.full_precision(),
        first_call_is_prompt: codec.first_call_is_prompt(),
    }))
}

impl Scheme for TensorScheme {
    fn name(&self) -> &str {
        &self.name
    }

    fn dictionaries(&self) -> &str {
        &self.artefacts
    }

    fn empty(&self, layer: usize) -> Result<Box<dyn LayerCache>, CacheError> {
        let stores = self.layers.get(layer).ok_or_else(|| {
            let reason = format!("layer {layer} of a model built for {} layers", self.layers.len());
            CacheError::Unsuitable { scheme: self.name.clone(), reason }
        })?;
        Ok(Box::new(TensorCache::new(layer, self.shared.clone(), stores.clone())))
    }

    fn nominal_bits(&self) -> BitsPerChannel {
        self.nominal
    }

    fn stored_bits(&self) -> BitsPerChannel {
        self.stored
    }

    fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    fn stored_bytes(&self) -> usize {
        self.stored_bytes
    }
}
