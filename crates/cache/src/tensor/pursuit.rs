//! Matching pursuit on tensors: products with all atoms, the largest product, and the update, for many rows at once.

use candle_core::{D, DType, Tensor};

use crate::CacheError;

/// The largest number of products held at a time, on the CPU and on other devices. It limits the memory for coding a
/// long prompt.
const PRODUCTS: [usize; 2] = [1 << 22, 1 << 28];

/// The shared offline atoms, and the online atoms of the sequence. The indices of online atoms begin after the offline
/// atoms.
#[derive(Debug, Clone)]
pub struct TensorAtoms {
    /// `(N, width)` f32.
    offline: Tensor,
    /// `(M, width)`, in f16, as they are stored.
    online: Option<Tensor>,
}

impl TensorAtoms {
    /// Offline atoms `(N, width)` f32 of unit norm.
    pub fn new(offline: Tensor) -> Self {
        Self { offline, online: None }
    }

    /// The same offline atoms, with `(M, width)` f16 as the new online atoms.
    pub fn with_online(&self, online: Option<Tensor>) -> Self {
        Self { offline: self.offline.clone(), online }
    }

    /// The number of elements of an atom.
    pub fn width(&self) -> usize {
        self.offline.dims()[1]
    }

    /// All atoms as one table. `None` if there are online atoms.
    pub fn one_table(&self) -> Option<&Tensor> {
        self.online.is_none().then_some(&self.offline)
    }

    /// The number of atoms, offline and online.
    #[expect(clippy::len_without_is_empty, reason = "a dictionary is never empty")]
    pub fn len(&self) -> usize {
        self.offline.dims()[0] + self.online.as_ref().map_or(0, |online| online.dims()[0])
    }

    /// Products of `rows` `(n, width)` with all atoms, `(n, N + M)`.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn products(&self, rows: &Tensor) -> Result<Tensor, CacheError> {
        let offline = rows.matmul(&self.offline.t()?)?;
        match &self.online {
            None => Ok(offline),
            Some(online) => {
                let online = rows.matmul(&online.to_dtype(DType::F32)?.t()?)?;
                Ok(Tensor::cat(&[offline, online], 1)?)
            }
        }
    }

    /// The atoms of `indices` `(m,)` u32, `(m, width)`.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn select(&self, indices: &Tensor) -> Result<Tensor, CacheError> {
        let Some(online) = &self.online else { return Ok(self.offline.index_select(indices, 0)?) };
        // Indices of atoms are exact in f32, and all these operations exist for f32 on every device.
        let at = indices.to_dtype(DType::F32)?;
        let first = self.offline.dims()[0] as f64;
        let of_offline = at.clamp(0f32, first as f32 - 1.0)?.to_dtype(DType::U32)?;
        let of_online = at.affine(1.0, -first)?.relu()?.to_dtype(DType::U32)?;
        let is_online = at.ge(first)?.unsqueeze(1)?.broadcast_as((at.dims()[0], self.width()))?;
        let offline = self.offline.index_select(&of_offline, 0)?;
        let online = online.index_select(&of_online, 0)?.to_dtype(DType::F32)?;
        Ok(is_online.where_cond(&online, &offline)?)
    }

    /// Sums of atoms with weights `(rows, N + M)`. Returns `(rows, width)`.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn sums(&self, weights: &Tensor) -> Result<Tensor, CacheError> {
        let (rows, all) = weights.dims2()?;
        debug_assert_eq!(all, self.len());
        let n = self.offline.dims()[0];
        let offline = weights.narrow(1, 0, n)?.contiguous()?.matmul(&self.offline)?;
        debug_assert_eq!(offline.dims(), [rows, self.width()]);
        match &self.online {
            None => Ok(offline),
            Some(online) => {
                let weights = weights.narrow(1, n, all - n)?.contiguous()?;
                Ok((offline + weights.matmul(&online.to_dtype(DType::F32)?)?)?)
            }
        }
    }

    /// Codes `rows` `(n, width)` f32 by matching pursuit. Returns indices `(n, s)` u32 and coefficients `(n, s)` f32.
    /// Each step takes the atom with the largest absolute product, as [`kvcsr_codec::Encoder`] does. If two products
    /// differ only by rounding, it may take the other atom.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn pursue(&self, rows: &Tensor, sparsity: usize) -> Result<(Tensor, Tensor), CacheError> {
        // Online atoms are in a separate table, but the kernel takes only one table.
        #[cfg(feature = "cuda")]
        if rows.device().is_cuda() && self.online.is_none() && self.width().is_multiple_of(4) {
            return Ok(super::fused::pursue(rows, &self.offline, sparsity)?);
        }
        self.in_chunks(rows, |rows| self.pursue_at_once(rows, sparsity))
    }

    /// Codes a limited number of rows at a time, which limits the memory for the products with all atoms.
    pub(super) fn in_chunks(
        &self,
        rows: &Tensor,
        code: impl Fn(&Tensor) -> Result<(Tensor, Tensor), CacheError>,
    ) -> Result<(Tensor, Tensor), CacheError> {
        let n = rows.dim(0)?;
        let bound = PRODUCTS[usize::from(!rows.device().is_cpu())];
        let chunk = (bound / self.len()).max(1);
        let (mut indices, mut coefficients) = (Vec::new(), Vec::new());
        for from in (0..n).step_by(chunk) {
            let rows = rows.narrow(0, from, chunk.min(n - from))?;
            let (i, c) = code(&rows)?;
            indices.push(i);
            coefficients.push(c);
        }
        if indices.len() == 1 {
            return Ok((indices.swap_remove(0), coefficients.swap_remove(0)));
        }
        Ok((Tensor::cat(&indices, 0)?, Tensor::cat(&coefficients, 0)?))
    }

    fn pursue_at_once(&self, rows: &Tensor, sparsity: usize) -> Result<(Tensor, Tensor), CacheError> {
        let mut residual = rows.contiguous()?;
        let (mut indices, mut coefficients) = (Vec::with_capacity(sparsity), Vec::with_capacity(sparsity));
        for step in 0..sparsity {
            let products = self.products(&residual)?;
            let index = products.abs()?.argmax_keepdim(D::Minus1)?;
            let coefficient = products.gather(&index, 1)?;
            if step + 1 < sparsity {
                let atoms = self.select(&index.flatten_all()?)?;
                residual = (residual - atoms.broadcast_mul(&coefficient)?)?;
            }
            indices.push(index);
            coefficients.push(coefficient);
        }
        Ok((Tensor::cat(&indices, 1)?, Tensor::cat(&coefficients, 1)?))
    }

    /// The vectors that the codes `(n, s)` restore to, `(n, width)`.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn restore(&self, indices: &Tensor, coefficients: &Tensor) -> Result<Tensor, CacheError> {
        let (n, sparsity) = indices.dims2()?;
        let atoms = self.select(&indices.contiguous()?.flatten_all()?)?;
        let weighted = atoms.broadcast_mul(&coefficients.contiguous()?.reshape((n * sparsity, 1))?)?;
        Ok(weighted.reshape((n, sparsity, self.width()))?.sum(1)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use candle_core::Device;
    use kvcsr_codec::{Dictionary, Encoder};

    use super::*;
    use crate::conformance::noise;

    #[test]
    fn atoms_and_coefficients_are_those_of_the_kernels() {
        for (width, atoms, sparsity) in [(64, 300, 8), (128, 1000, 4), (32, 33, 3), (16, 5, 1)] {
            let mut numbers = noise(3, width * atoms);
            for atom in numbers.chunks_exact_mut(width) {
                let norm = atom.iter().map(|x| x * x).sum::<f32>().sqrt();
                atom.iter_mut().for_each(|x| *x /= norm);
            }
            let rows = noise(4, width * 70);
            let (mut indices, mut coefficients) = (vec![0; 70 * sparsity], vec![0.0; 70 * sparsity]);
            let encoder = Encoder::new(Arc::new(Dictionary::new(width, numbers.clone()).unwrap()));
            encoder.encode(&rows, sparsity, &mut indices, &mut coefficients).unwrap();
            let tensors = TensorAtoms::new(Tensor::from_vec(numbers, (atoms, width), &Device::Cpu).unwrap());
            let x = Tensor::from_vec(rows, (70, width), &Device::Cpu).unwrap();
            let (i, c) = tensors.pursue(&x, sparsity).unwrap();
            let found: Vec<u32> = i.flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(found, indices.iter().map(|&i| u32::from(i)).collect::<Vec<_>>());
            let found: Vec<f32> = c.flatten_all().unwrap().to_vec1().unwrap();
            assert!(found.iter().zip(&coefficients).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }

    #[test]
    fn online_atoms_follow_the_offline_ones() {
        let offline = Tensor::new(&[[1f32, 0.0, 0.0], [0.0, 1.0, 0.0]], &Device::Cpu).unwrap();
        let online = Tensor::new(&[[0f32, 0.0, 1.0]], &Device::Cpu).unwrap().to_dtype(DType::F16).unwrap();
        let atoms = TensorAtoms::new(offline).with_online(Some(online));
        let x = Tensor::new(&[[0f32, 2.0, -5.0], [3.0, 1.0, 0.0]], &Device::Cpu).unwrap();
        let (indices, coefficients) = atoms.pursue(&x, 2).unwrap();
        assert_eq!(indices.to_vec2::<u32>().unwrap(), [[2, 1], [0, 1]]);
        assert_eq!(coefficients.to_vec2::<f32>().unwrap(), [[-5.0, 2.0], [3.0, 1.0]]);
        let back = atoms.restore(&indices, &coefficients).unwrap();
        assert_eq!(back.to_vec2::<f32>().unwrap(), x.to_vec2::<f32>().unwrap());
        let weights = Tensor::new(&[[1f32, 2.0, 3.0]], &Device::Cpu).unwrap();
        assert_eq!(atoms.sums(&weights).unwrap().to_vec2::<f32>().unwrap(), [[1.0, 2.0, 3.0]]);
    }
}
