//! Where codes are stored and attention runs.

use std::fmt::{self, Display};
use std::str::FromStr;

use candle_core::{Device, Tensor};
use kvcsr_codec::{BitsPerChannel, Footprint};

use crate::{AttendCx, CacheError, LastQueries, LayerCache, OnTensors, Padding, Rotary, Scheme};

/// How schemes run on the model's device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Attention {
    /// On the CPU: codes and SIMD kernels. On another device: tensors on that device. Schemes without tensors code on
    /// the host.
    #[default]
    Auto,
    /// Codes and SIMD kernels on the host. If the model is on another device, the tensors of attention are copied to
    /// the host and back for every token.
    Codes,
    /// Tensors on the model's device. Schemes without tensors are refused.
    Tensor,
}

impl Attention {
    const NAMES: [(&'static str, Self); 3] = [("auto", Self::Auto), ("codes", Self::Codes), ("tensor", Self::Tensor)];

    /// Places `scheme` so that it runs on `device`.
    ///
    /// # Errors
    /// [`CacheError::NoTensors`] if tensors are requested and the scheme has none. Also an error if the device does not
    /// have enough memory.
    pub fn place(self, scheme: Box<dyn Scheme>, device: &Device) -> Result<Box<dyn Scheme>, CacheError> {
        if self != Self::Tensor && device.is_cpu() {
            return Ok(scheme);
        }
        match scheme.on_tensors(device)? {
            OnTensors::AsItIs => Ok(scheme),
            OnTensors::Made(made) if self != Self::Codes => Ok(made),
            OnTensors::HostOnly if self == Self::Tensor => {
                Err(CacheError::NoTensors { scheme: scheme.name().to_owned() })
            }
            OnTensors::Made(_) | OnTensors::HostOnly => Ok(Box::new(OnHost(scheme))),
        }
    }
}

impl FromStr for Attention {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, attention)| attention);
        found.ok_or_else(|| format!("attention = \"{name}\": expected auto, codes or tensor"))
    }
}

impl Display for Attention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES.into_iter().find(|(_, known)| known == self).map_or("auto", |(name, _)| name))
    }
}

/// A scheme on the host, for a model on another device: inputs are copied to the host, and outputs are copied back.
pub(crate) struct OnHost(pub(crate) Box<dyn Scheme>);

struct HostCache(Box<dyn LayerCache>);

fn here(x: &Tensor) -> Result<Tensor, CacheError> {
    Ok(x.to_device(&Device::Cpu)?)
}

impl Scheme for OnHost {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn dictionaries(&self) -> &str {
        self.0.dictionaries()
    }

    fn empty(&self, layer: usize) -> Result<Box<dyn LayerCache>, CacheError> {
        Ok(Box::new(HostCache(self.0.empty(layer)?)))
    }

    fn after_observed_prefill(
        &self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
        queries: &LastQueries,
        rotary: &Rotary,
    ) -> Result<Box<dyn LayerCache>, CacheError> {
        let queries = LastQueries { queries: here(&queries.queries)?, ..queries.clone() };
        let inner = self.0.after_observed_prefill(layer, &here(k)?, &here(v)?, &queries, rotary.on_host()?)?;
        Ok(Box::new(HostCache(inner)))
    }

    fn nominal_bits(&self) -> BitsPerChannel {
        self.0.nominal_bits()
    }

    fn stored_bits(&self) -> BitsPerChannel {
        self.0.stored_bits()
    }

    fn shared_bytes(&self) -> usize {
        self.0.shared_bytes()
    }

    fn stored_bytes(&self) -> usize {
        self.0.stored_bytes()
    }
}

impl LayerCache for HostCache {
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        let host = AttendCx { rotary: cx.rotary.on_host()?, ..*cx };
        Ok(self.0.attend(&here(q)?, &here(k)?, &here(v)?, &host)?.to_device(q.device())?)
    }

    fn absorb(&mut self, k: &Tensor, v: &Tensor, rotary: &Rotary) -> Result<(), CacheError> {
        self.0.absorb(&here(k)?, &here(v)?, rotary.on_host()?)
    }

    fn absorb_padded(
        &mut self,
        k: &Tensor,
        v: &Tensor,
        rotary: &Rotary,
        padding: Padding<'_>,
    ) -> Result<(), CacheError> {
        self.0.absorb_padded(&here(k)?, &here(v)?, rotary.on_host()?, padding)
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn footprint(&self) -> Footprint {
        self.0.footprint()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}
