//! Exact causal attention over dense keys and values, in tiles of queries.

use candle_core::{DType, Device, Tensor};

/// Queries scored at once. Bounds the score tile to `H · QUERY_TILE · S` and skips, tile by tile,
/// the keys that causality hides.
const QUERY_TILE: usize = 128;

/// `softmax(q kᵀ · scale + causal mask) v`.
///
/// `q` is `(B, H, T, D)`, `k` and `v` are `(B·Hkv, S, D)`, all f32 and after position embedding;
/// the `T` queries are those of the last `T` of the `S` tokens. `H` is a multiple of `Hkv`, and
/// query heads `g·H/Hkv ..` share key-value head `g`. `k` and `v` may be the front part of larger
/// buffers (`narrow`); they are not copied. Returns `(B, H, T, D)`.
///
/// # Errors
/// If a tensor operation fails.
pub fn causal(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> candle_core::Result<Tensor> {
    let (b, h, t, d) = q.dims4()?;
    let (heads, s, _) = k.dims3()?;
    let group = b * h / heads;
    let start = s - t;
    let q = (q * scale)?.reshape((heads, group, t, d))?;
    let mut tiles = Vec::with_capacity(t.div_ceil(QUERY_TILE));
    for first in (0..t).step_by(QUERY_TILE) {
        let rows = QUERY_TILE.min(t - first);
        let visible = start + first + rows;
        let q_tile = q.narrow(2, first, rows)?.contiguous()?.reshape((heads, group * rows, d))?;
        let mut scores = q_tile.matmul(&k.narrow(1, 0, visible)?.t()?)?;
        if rows > 1 {
            let mask = causal_mask(rows, visible, q.device())?.to_dtype(scores.dtype())?;
            scores = scores.reshape((heads, group, rows, visible))?.broadcast_add(&mask)?.reshape((
                heads,
                group * rows,
                visible,
            ))?;
        }
        let weights = candle_nn::ops::softmax_last_dim(&scores)?;
        let out = weights.matmul(&v.narrow(1, 0, visible)?)?;
        tiles.push(out.reshape((heads, group, rows, d))?);
    }
    let out = if tiles.len() == 1 { tiles.swap_remove(0) } else { Tensor::cat(&tiles, 2)? };
    out.reshape((b, h, t, d))
}

/// `(rows, visible)`: 0 where query `i` sees key `j`, that is `j <= visible - rows + i`, else -inf.
fn causal_mask(rows: usize, visible: usize, device: &Device) -> candle_core::Result<Tensor> {
    let hidden_from = visible - rows;
    let mut mask = vec![0f32; rows * visible];
    for (i, row) in mask.chunks_exact_mut(visible).enumerate() {
        row[hidden_from + i + 1..].fill(f32::NEG_INFINITY);
    }
    Tensor::from_vec(mask, (rows, visible), device)?.to_dtype(DType::F32)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Attention by the definition, one number at a time, in f64.
    fn by_definition(q: &[f32], k: &[f32], v: &[f32], shape: [usize; 6], scale: f64) -> Vec<f32> {
        let [b, h, h_kv, t, s, d] = shape;
        let mut out = vec![0f32; b * h * t * d];
        for bi in 0..b {
            for hi in 0..h {
                let kv = (bi * h_kv + hi / (h / h_kv)) * s * d;
                for ti in 0..t {
                    let at = ((bi * h + hi) * t + ti) * d;
                    let visible = s - t + ti + 1;
                    let scores: Vec<f64> = (0..visible)
                        .map(|j| {
                            let dot: f64 = (0..d).map(|c| f64::from(q[at + c]) * f64::from(k[kv + j * d + c])).sum();
                            (dot * scale).exp()
                        })
                        .collect();
                    let sum: f64 = scores.iter().sum();
                    for c in 0..d {
                        out[at + c] =
                            (0..visible).map(|j| scores[j] / sum * f64::from(v[kv + j * d + c])).sum::<f64>() as f32;
                    }
                }
            }
        }
        out
    }

    #[test]
    fn equals_the_definition_for_tiles_groups_and_batches() {
        for (b, h, h_kv, t, s, d) in
            [(1, 1, 1, 1, 1, 4), (2, 6, 2, 5, 9, 8), (1, 3, 1, 300, 300, 4), (2, 4, 4, 130, 200, 4)]
        {
            let tensor = |heads: usize, tokens: usize, salt: usize| {
                let n = b * heads * tokens * d;
                let x: Vec<f32> = (0..n).map(|i| (((i * 7919 + salt * 104_729) % 1000) as f32 / 500.0) - 1.0).collect();
                (Tensor::from_vec(x.clone(), (b, heads, tokens, d), &Device::Cpu).unwrap(), x)
            };
            let ((q, qv), (k, kv), (v, vv)) = (tensor(h, t, 1), tensor(h_kv, s, 2), tensor(h_kv, s, 3));
            let (k, v) = (k.flatten(0, 1).unwrap(), v.flatten(0, 1).unwrap());
            let got = causal(&q, &k, &v, 0.7).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let want = by_definition(&qv, &kv, &vv, [b, h, h_kv, t, s, d], 0.7);
            let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(worst < 2e-6, "{:?}: {worst}", (b, h, h_kv, t, s, d));
        }
    }
}
