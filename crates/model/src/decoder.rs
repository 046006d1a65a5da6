//! The decoder: embedding, layers, final norm and output projection. All of them are built from one [`Arch`].

use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::rms_norm;
use kvcsr_cache::{Alibi, AttendCx, Bias, Geometry, LayerCache, Padding, Pattern, Reach, Rotary};
use rayon::prelude::*;

use crate::arch::{Arch, Position, SlidingLayers};
use crate::device::Kept;
use crate::error::{ModelError, Result};
use crate::layer::Layer;
use crate::linear::Linear;
use crate::load::{self, Checkpoint, Weights};

/// The new tokens for which a forward pass computes logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// Every token: `(B, T, V)`. For long inputs, use [`Decoder::forward_hidden`], and [`Decoder::head`] on pieces.
    All,
    /// The last token: `(B, V)`.
    Last,
    /// No token: `(B, 0, V)`. This is for all pieces of a prompt except the last.
    None,
}

/// A decoder. It holds weights and rotary tables, but no state. The state is in the caches.
///
/// Matrices are stored in one dtype, see [`Decoder::with_dtype`]. The residual stream, norms, rotation, attention and
/// logits are always f32. So caches always get f32.
pub struct Decoder {
    arch: Arch,
    device: Device,
    kept: Kept,
    rotary: Rotary,
    alibi: Option<Alibi>,
    /// `(V, hidden)`, in the dtype of `kept`.
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Linear,
}

impl Decoder {
    /// Builds a decoder in f32 from a checkpoint. It converts tensors on all cores.
    ///
    /// # Errors
    /// The errors of [`Decoder::with_dtype`].
    pub fn new(arch: Arch, checkpoint: &dyn Checkpoint, device: &Device) -> Result<Self> {
        Self::with_dtype(arch, checkpoint, device, DType::F32)
    }

    /// Builds a decoder from a checkpoint. Its matrices (embedding, projections, head) are stored in one dtype: f32,
    /// bf16 or f16. It converts tensors on all cores.
    ///
    /// On the CPU, products widen these weights exactly, and use f32 activations. So storing a bf16 checkpoint in bf16
    /// costs no accuracy, unless [`Kept::rounded`] allows rounding activations too. On other devices, activations are
    /// rounded for each product.
    ///
    /// # Errors
    /// If `arch` is invalid or the dtype is another one. If tensors are missing, unexpected, unreadable or have a wrong
    /// shape, or contain numbers beyond the range of f16.
    pub fn with_dtype(arch: Arch, checkpoint: &dyn Checkpoint, device: &Device, kept: impl Into<Kept>) -> Result<Self> {
        let kept = kept.into();
        arch.validate(checkpoint.path())?;
        load::check(checkpoint, &arch)?;
        let own_head = arch.tied_head && load::holds_own_head(checkpoint, &arch)?;
        let arch = Arch { tied_head: arch.tied_head && !own_head, ..arch };
        let weights = Weights::new(checkpoint, device, kept)?;
        let (outer, layers) = rayon::join(
            || -> Result<_> {
                let embedding = weights.matrix("model.embed_tokens.weight")?;
                let head = if arch.tied_head { embedding.clone() } else { weights.matrix("lm_head.weight")? };
                Ok((embedding, head, weights.norm("model.norm.weight", &arch)?))
            },
            || {
                let layers = (0..arch.layers).into_par_iter();
                layers.map(|layer| Layer::load(&arch, &weights, layer)).collect::<Result<Vec<_>>>()
            },
        );
        let (embedding, head, norm) = outer?;
        let scale = if arch.normalised_head { Some(inverse_lengths(&head)?) } else { None };
        let head = Linear::new(head, kept).with_scale(scale);
        let alibi = (arch.position == Position::Alibi).then(|| Alibi::new(arch.heads));
        let rotary = rotary(&arch, device)?;
        Ok(Self { device: device.clone(), kept, rotary, alibi, embedding, layers: layers?, norm, head, arch })
    }

    /// The architecture of the decoder.
    pub fn arch(&self) -> &Arch {
        &self.arch
    }

    /// The device of the weights. `ids` must be on the same device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The dtype in which the matrices are stored.
    pub fn dtype(&self) -> DType {
        self.kept.dtype
    }

    /// The rotary tables of all layers. They are needed to build caches from a prefill.
    pub fn rotary(&self) -> &Rotary {
        &self.rotary
    }

    /// The properties of this model that caches need.
    pub fn geometry(&self) -> Geometry {
        Geometry { layers: self.arch.layers, kv_heads: self.arch.kv_heads, head_dim: self.arch.head_dim }
    }

    /// How many numbers an uncompressed cache of a text of `tokens` tokens holds. See [`Geometry::channels`].
    pub fn channels(&self, tokens: usize) -> usize {
        self.geometry().channels(tokens, &self.rotary)
    }

    /// The bias of a layer's projection to keys, `(Hkv, D)` in f32: what all keys of a head have in common before position
    /// embedding, whatever the token is. Qwen2 and Qwen2.5 have one. `None` for a model without biases, and for a layer that it does
    /// not have.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn key_bias(&self, layer: usize) -> Result<Option<Tensor>> {
        self.layers.get(layer).map_or(Ok(None), |layer| layer.key_bias(&self.arch))
    }

    /// Feeds `ids`, `(B, T)` u32, which continue the tokens in `caches`. Returns logits; see [`Logits`] for their
    /// shape.
    ///
    /// # Errors
    /// [`ModelError::Input`], before anything changes, if the input is empty, if there is not one cache per layer, if
    /// caches have different lengths, or if the model does not have enough positions. If the cache of a layer refuses
    /// the tokens, the earlier layers have already stored them: then clear all caches.
    pub fn forward(&self, ids: &Tensor, caches: &mut [Box<dyn LayerCache>], logits: Logits) -> Result<Tensor> {
        self.forward_over(ids, &mut borrowed(caches), logits, Padding::None)
    }

    /// The same as [`Decoder::forward`], for a batch of texts of different lengths that are padded at the front. No
    /// token of a row's text sees the first `padding[row]` tokens of the row, whatever these tokens are. So each row
    /// has the same logits as it has alone. Logits of the padding have no meaning.
    ///
    /// `padding` counts from the first token that the caches hold. It must be the same in every call with the same
    /// caches.
    ///
    /// # Errors
    /// The errors of [`Decoder::forward`]. Also an error if the length of `padding` is not the batch size.
    pub fn forward_padded(
        &self,
        ids: &Tensor,
        padding: &[usize],
        caches: &mut [Box<dyn LayerCache>],
        logits: Logits,
    ) -> Result<Tensor> {
        self.forward_over(ids, &mut borrowed(caches), logits, Padding::Left(padding))
    }

    /// The same as [`Decoder::forward`], with borrowed caches. So the caller can still read what a wrapper such as
    /// [`kvcsr_cache::Shadow`] recorded.
    ///
    /// # Errors
    /// The errors of [`Decoder::forward`].
    pub fn forward_borrowed(&self, ids: &Tensor, caches: &mut [&mut dyn LayerCache], logits: Logits) -> Result<Tensor> {
        self.forward_over(ids, caches, logits, Padding::None)
    }

    /// The same as [`Decoder::forward`], but it stops before the final norm. Returns the residual stream,
    /// `(B, T, hidden)`.
    ///
    /// # Errors
    /// The errors of [`Decoder::forward`].
    pub fn forward_hidden(&self, ids: &Tensor, caches: &mut [Box<dyn LayerCache>]) -> Result<Tensor> {
        self.hidden_over(ids, &mut borrowed(caches), Padding::None)
    }

    /// Final norm and output projection. Turns the `(B, T, hidden)` of [`Decoder::forward_hidden`], or any narrowed
    /// piece of it, into logits `(B, T, V)`.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        let (batch, tokens, width) = hidden.dims3()?;
        let rows = hidden.reshape((batch * tokens, width))?;
        let normed = rms_norm(&rows, &self.norm, self.arch.rms_eps as f32)?;
        let logits = self.head.forward(&normed)?;
        Ok(logits.reshape((batch, tokens, self.arch.vocab))?)
    }

    pub(crate) fn forward_over(
        &self,
        ids: &Tensor,
        caches: &mut [&mut dyn LayerCache],
        logits: Logits,
        padding: Padding<'_>,
    ) -> Result<Tensor> {
        let hidden = self.hidden_over(ids, caches, padding)?;
        let (batch, tokens, _) = hidden.dims3()?;
        match logits {
            Logits::All => self.head(&hidden),
            Logits::Last => Ok(self.head(&hidden.narrow(1, tokens - 1, 1)?)?.squeeze(1)?),
            Logits::None => Ok(Tensor::zeros((batch, 0, self.arch.vocab), hidden.dtype(), hidden.device())?),
        }
    }

    fn hidden_over(&self, ids: &Tensor, caches: &mut [&mut dyn LayerCache], padding: Padding<'_>) -> Result<Tensor> {
        let (batch, tokens, start) = self.check_call(ids, caches)?;
        let mut x = self.embed(ids)?;
        for (layer, cache) in caches.iter_mut().enumerate() {
            x = self.pass(layer, &x, (batch, tokens), *cache, start, padding)?;
        }
        Ok(x.reshape((batch, tokens, self.arch.hidden))?)
    }

    /// The residual stream before the first layer, `(B T, hidden)`.
    pub(crate) fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let x = self.embedding.index_select(&ids.flatten_all()?, 0)?.to_dtype(DType::F32)?;
        Ok(if self.arch.embedding_scale == 1.0 { x } else { (x * self.arch.embedding_scale)? })
    }

    /// Takes the residual stream of new tokens, `(B T, hidden)`, through one layer. `start` is the position of the first of them.
    pub(crate) fn pass(
        &self,
        layer: usize,
        x: &Tensor,
        (batch, tokens): (usize, usize),
        cache: &mut dyn LayerCache,
        start: usize,
        padding: Padding<'_>,
    ) -> Result<Tensor> {
        let bias = self.alibi.as_ref().map_or(Bias::None, Bias::Alibi);
        // How far back tokens see depends on the layer, so the layer sets it.
        let pattern = Pattern { reach: Reach::Full, bias, padding };
        // The layer also sets rotation and scale.
        let cx = AttendCx { start, rotary: &self.rotary, scale: 1.0, pattern };
        self.layers[layer].forward(&self.arch, x, (batch, tokens), layer, cache, &cx)
    }

    /// Returns the batch size, the number of new tokens, and the position of the first one.
    fn check_call(&self, ids: &Tensor, caches: &[&mut dyn LayerCache]) -> Result<(usize, usize, usize)> {
        let input = |what, expected: String, found: String| Err(ModelError::Input { what, expected, found });
        let &[batch, tokens] = ids.dims() else {
            return input("ids", "shape (B, T)".to_owned(), format!("{:?}", ids.dims()));
        };
        if batch * tokens == 0 {
            return input("ids", "at least one token".to_owned(), format!("{:?}", ids.dims()));
        }
        if caches.len() != self.arch.layers {
            let expected = format!("one per layer ({})", self.arch.layers);
            return input("caches", expected, caches.len().to_string());
        }
        let start = caches[0].len();
        if let Some(layer) = caches.iter().position(|cache| cache.len() != start) {
            let found = format!("{} in layer {layer}", caches[layer].len());
            return input("caches", format!("{start} tokens in every layer"), found);
        }
        if tokens > self.arch.max_positions.saturating_sub(start) {
            let expected = format!("at most {} positions", self.arch.max_positions);
            return input("ids", expected, format!("{start} held and {tokens} new"));
        }
        Ok((batch, tokens, start))
    }
}

/// The rotary tables of a model. If some layers have a sliding window, each layer has its own tables.
fn rotary(arch: &Arch, device: &Device) -> Result<Rotary> {
    let tables = |position: &Position| match position {
        Position::Alibi => Ok(Rotary::identity(arch.max_positions)),
        Position::Rope { theta, scaling } => {
            let frequencies = scaling.frequencies(*theta, arch.head_dim);
            Rotary::from_frequencies(&frequencies, arch.max_positions, device).map_err(ModelError::cache(0))
        }
    };
    let rotary = tables(&arch.position)?;
    let Some(SlidingLayers { layers, position, .. }) = &arch.sliding else { return Ok(rotary) };
    let sliding = position.as_ref().map_or_else(|| Ok(rotary.clone()), tables)?;
    let of = |layer: usize| {
        let tables = if layers.get(layer) == Some(&true) { &sliding } else { &rotary };
        tables.clone().with_reach(arch.reach(layer))
    };
    let all = (0..arch.layers).map(of).collect();
    Ok(rotary.with_layers(all))
}

/// One divided by the length of each row of `(V, hidden)`: `(V)` in f32. It works on one piece at a time.
fn inverse_lengths(head: &Tensor) -> Result<Tensor> {
    const PIECE: usize = 4096;
    let rows = head.dim(0)?;
    let pieces = (0..rows).step_by(PIECE).map(|at| {
        let piece = head.narrow(0, at, PIECE.min(rows - at))?.to_dtype(DType::F32)?;
        piece.sqr()?.sum(D::Minus1)?.sqrt()?.maximum(1e-12)?.recip()
    });
    Ok(Tensor::cat(&pieces.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
}

fn borrowed(caches: &mut [Box<dyn LayerCache>]) -> Vec<&mut dyn LayerCache> {
    caches.iter_mut().map(|cache| cache.as_mut() as &mut dyn LayerCache).collect()
}
