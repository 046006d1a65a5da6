//! Rotary position embedding (RoPE) in half-split channel order, or no rotation.

use std::sync::{Arc, OnceLock};

use candle_core::{D, DType, Device, Storage, Tensor};

use crate::{CacheError, Reach};

/// How a model encodes positions: cosine and sine tables for every position of its context, and how far back tokens
/// see. It is for all layers, or for one layer, see [`Rotary::of`].
#[derive(Debug, Clone)]
pub struct Rotary {
    /// Cosines and sines, `(max_positions, D / 2)`. `None` if the vectors do not contain positions.
    tables: Option<(Tensor, Tensor)>,
    max_positions: usize,
    reach: Reach,
    /// One per layer, if layers differ.
    layers: Option<Arc<Vec<Rotary>>>,
    /// A copy on the host. It is made when it is first needed.
    host: Arc<OnceLock<Box<Rotary>>>,
}

impl Rotary {
    /// Tables for `max_positions` positions. The angle of channel pair `j` is `position · theta^(-2j/D)`.
    ///
    /// # Errors
    /// If the tensors cannot be made on `device`.
    pub fn new(head_dim: usize, theta: f64, max_positions: usize, device: &Device) -> Result<Self, CacheError> {
        let half = head_dim / 2;
        let frequencies: Vec<f64> = (0..half).map(|j| theta.powf(-2.0 * j as f64 / head_dim as f64)).collect();
        Self::from_frequencies(&frequencies, max_positions, device)
    }

    /// Tables from explicit frequencies in radians per position, one per channel pair (`D / 2`). Scaled variants of
    /// RoPE use this function.
    ///
    /// The angles are computed in f32, as reference implementations do.
    ///
    /// # Errors
    /// If the tensors cannot be made on `device`.
    pub fn from_frequencies(frequencies: &[f64], max_positions: usize, device: &Device) -> Result<Self, CacheError> {
        let half = frequencies.len();
        let frequencies: Vec<f32> = frequencies.iter().map(|&f| f as f32).collect();
        let mut angles = Vec::with_capacity(max_positions * half);
        for position in 0..max_positions {
            angles.extend(frequencies.iter().map(|f| position as f32 * f));
        }
        let angles = Tensor::from_vec(angles, (max_positions, half), device)?;
        Ok(Self {
            tables: Some((angles.cos()?, angles.sin()?)),
            max_positions,
            reach: Reach::Full,
            layers: None,
            host: Arc::default(),
        })
    }

    /// No rotation, for models that encode positions in another way, for example with [`crate::Alibi`].
    pub fn identity(max_positions: usize) -> Self {
        Self { tables: None, max_positions, reach: Reach::Full, layers: None, host: Arc::default() }
    }

    /// The same tables for tokens that see only as far back as `reach`. A cache that takes over a prefill keeps only
    /// what later tokens can see.
    pub fn with_reach(self, reach: Reach) -> Self {
        Self { reach, host: Arc::default(), ..self }
    }

    /// Adds one `Rotary` per layer, for models whose layers rotate differently or see less far back than others.
    pub fn with_layers(self, layers: Vec<Self>) -> Self {
        Self { layers: Some(Arc::new(layers)), ..self }
    }

    /// The same tables on the host: `self` if they are already there, otherwise a copy that is made only once. The
    /// tables of other layers are not copied.
    ///
    /// # Errors
    /// If the tables cannot be copied.
    pub fn on_host(&self) -> Result<&Self, CacheError> {
        let Some((cos, sin)) = self.tables.as_ref().filter(|(cos, _)| !cos.device().is_cpu()) else { return Ok(self) };
        if let Some(host) = self.host.get() {
            return Ok(host);
        }
        let tables = Some((cos.to_device(&Device::Cpu)?, sin.to_device(&Device::Cpu)?));
        let host = Self { tables, layers: None, host: Arc::default(), ..*self };
        Ok(self.host.get_or_init(|| Box::new(host)))
    }

    /// The tables of one layer.
    pub fn of(&self, layer: usize) -> &Self {
        self.layers.as_ref().and_then(|layers| layers.get(layer)).unwrap_or(self)
    }

    /// How far back tokens see.
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// Whether vectors are rotated.
    pub fn rotates(&self) -> bool {
        self.tables.is_some()
    }

    /// The number of positions in the tables.
    pub fn max_positions(&self) -> usize {
        self.max_positions
    }

    /// Cosines and sines of `tokens` positions from `start` on, `(tokens, D / 2)` each. `None` if vectors are not
    /// rotated.
    ///
    /// # Errors
    /// [`CacheError::ContextLength`] if the tables end before the last position.
    pub fn tables(&self, start: usize, tokens: usize) -> Result<Option<(Tensor, Tensor)>, CacheError> {
        if start + tokens > self.max_positions {
            return Err(CacheError::ContextLength { position: start + tokens, max: self.max_positions });
        }
        let Some((cos, sin)) = &self.tables else { return Ok(None) };
        Ok(Some((cos.narrow(0, start, tokens)?, sin.narrow(0, start, tokens)?)))
    }

    /// Calls `f` with the cosines and sines, `(max_positions, D / 2)` each, without copying them.
    ///
    /// # Errors
    /// If there are no tables, or if they are not in the memory of the CPU.
    pub fn with_tables<R>(&self, f: impl FnOnce(&[f32], &[f32]) -> R) -> Result<R, CacheError> {
        let Some((cos, sin)) = &self.tables else {
            return Err(candle_core::Error::Msg("the model has no rotary tables".into()).into());
        };
        let ((cos, cos_layout), (sin, sin_layout)) = (cos.storage_and_layout(), sin.storage_and_layout());
        match (&*cos, &*sin) {
            (Storage::Cpu(cos), Storage::Cpu(sin)) => {
                let (cos, sin) = (cos.as_slice::<f32>()?, sin.as_slice::<f32>()?);
                Ok(f(&cos[cos_layout.start_offset()..], &sin[sin_layout.start_offset()..]))
            }
            _ => Err(candle_core::Error::Msg("the rotary tables are not on the CPU".into()).into()),
        }
    }

    /// Rotates `x`, `(B, H, T, D)` in half-split order. Its first token is at position `start`.
    ///
    /// # Errors
    /// [`CacheError::ContextLength`] if the tables end before the last token.
    pub fn apply(&self, x: &Tensor, start: usize) -> Result<Tensor, CacheError> {
        let tokens = x.dim(D::Minus2)?;
        let Some((cos, sin)) = self.tables(start, tokens)? else { return Ok(x.clone()) };
        let x = x.contiguous()?;
        if x.dtype() == DType::F32 {
            return Ok(candle_nn::rotary_emb::rope(&x, &cos, &sin)?);
        }
        let (cos, sin) = (cos.to_dtype(x.dtype())?, sin.to_dtype(x.dtype())?);
        Ok(candle_nn::rotary_emb::rope(&x, &cos, &sin)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rotation_pairs_channel_j_with_j_plus_half() {
        let rotary = Rotary::new(4, 100.0, 8, &Device::Cpu).unwrap();
        let x = Tensor::new(&[[[[1f32, 2.0, 3.0, 4.0]]]], &Device::Cpu).unwrap();
        let y = rotary.apply(&x, 5).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for j in 0..2 {
            let angle = 5.0 * 100f64.powf(-(j as f64) / 2.0);
            let (a, b) = ((j + 1) as f64, (j + 3) as f64);
            assert!((f64::from(y[j]) - (a * angle.cos() - b * angle.sin())).abs() < 1e-5);
            assert!((f64::from(y[j + 2]) - (b * angle.cos() + a * angle.sin())).abs() < 1e-5);
        }
    }

    #[test]
    fn the_identity_changes_nothing_but_knows_the_context() {
        let x = Tensor::new(&[[[[1f32, 2.0, 3.0, 4.0]]]], &Device::Cpu).unwrap();
        let y = Rotary::identity(8).apply(&x, 7).unwrap();
        assert_eq!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0]);
        assert!(matches!(Rotary::identity(8).apply(&x, 8), Err(CacheError::ContextLength { .. })));
    }

    #[test]
    fn layers_may_rotate_otherwise_and_see_less() {
        let rotary = |theta| Rotary::new(4, theta, 8, &Device::Cpu).unwrap();
        let window = Reach::Sliding(3);
        let both = rotary(100.0).with_layers(vec![rotary(100.0), rotary(10.0).with_reach(window)]);
        assert_eq!([0, 1, 7].map(|layer| both.of(layer).reach()), [Reach::Full, window, Reach::Full]);
        let x = Tensor::new(&[[[[1f32, 2.0, 3.0, 4.0]]]], &Device::Cpu).unwrap();
        let turned = |rotary: &Rotary| rotary.apply(&x, 5).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(turned(both.of(0)), turned(&rotary(100.0)));
        assert_eq!(turned(both.of(1)), turned(&rotary(10.0)));
        assert_eq!(turned(both.of(7)), turned(&both));
    }

    #[test]
    fn positions_beyond_the_context_are_an_error() {
        let rotary = Rotary::new(4, 100.0, 8, &Device::Cpu).unwrap();
        let x = Tensor::zeros((1, 1, 2, 4), DType::F32, &Device::Cpu).unwrap();
        assert!(matches!(rotary.apply(&x, 7), Err(CacheError::ContextLength { position: 9, max: 8 })));
    }
}
