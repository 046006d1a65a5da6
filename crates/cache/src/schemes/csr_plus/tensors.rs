//! CSR+'s codes as tensors: see [`crate::tensor`].

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{D, DType, Tensor};
use kvcsr_codec::{Footprint, lloyd_max};

use super::transform::{GAINS, Transform};
use super::unpack::levels;
use crate::tensor::e4m3::exceeded;
use crate::tensor::growing::Growing;
use crate::tensor::packed::{Fields, Packing};
use crate::tensor::{JointPair, JointStores, TensorTokens, Uploads};
use crate::{CacheError, Geometry};

/// The number of steps between the smallest and the largest gain.
const GAIN_STEPS: f64 = 255.0;

/// One layer's tables on a device.
struct Tables {
    kv_heads: usize,
    head_dim: usize,
    /// The keys and the values of all heads, `(N, Hkv D)` each, in natural units.
    atoms: [Tensor; 2],
    /// `(C, N)` and `(1, N)`: see [`Transform`].
    search: Tensor,
    offsets: Tensor,
    /// `(C, r)`, with `C = 2 Hkv D`. `None` if no coordinate has bits.
    encode: Option<Tensor>,
    /// The matrices that restore keys, `(r, Hkv D)`, and values, `(Hkv, r, D)`, in the shapes that their products need.
    decode: Option<[Tensor; 2]>,
    runs: Vec<Run>,
    /// How the index of an atom is packed.
    index: Packing,
    fields: Arc<Fields>,
}

/// Coordinates with equal bits.
struct Run {
    packing: Packing,
    /// `(2^bits - 1,)`
    thresholds: Tensor,
    /// `(2^bits,)`
    levels: Tensor,
}

impl Tables {
    fn new(transform: &Transform, uploads: &mut Uploads) -> Result<Self, CacheError> {
        let (c, count, kept) = (transform.channels(), transform.atoms(), transform.kept());
        let transposed = |x: &Tensor| Ok::<_, CacheError>(x.t()?.contiguous()?);
        let search = transposed(&uploads.own(transform.search(), count, c)?)?;
        let decode: Vec<f32> = (0..c)
            .flat_map(|channel| transform.decode_channel(channel).iter().take(kept).map(|x| x.to_f32()))
            .collect();
        let basis =
            |numbers: &[f32], rows: usize, width: usize, uploads: &mut Uploads| -> Result<Option<Tensor>, CacheError> {
                if kept == 0 { Ok(None) } else { Ok(Some(transposed(&uploads.own(numbers, rows, width)?)?)) }
            };
        let run = |(count, bits): (usize, usize), uploads: &mut Uploads| -> Result<Run, CacheError> {
            let thresholds = &lloyd_max(bits).thresholds;
            Ok(Run {
                packing: Packing { bits, count },
                thresholds: uploads.own(thresholds, 1, thresholds.len())?.flatten_all()?,
                levels: uploads.own(levels(bits), 1, 1 << bits)?.flatten_all()?,
            })
        };
        let halves = |x: &Tensor| -> Result<[Tensor; 2], CacheError> {
            Ok([x.narrow(1, 0, c / 2)?.contiguous()?, x.narrow(1, c / 2, c / 2)?.contiguous()?])
        };
        let decode = match basis(&decode, c, kept, uploads)? {
            None => None,
            Some(both) => {
                let ([keys, values], Geometry { kv_heads, head_dim, .. }) = (halves(&both)?, transform.geometry());
                Some([keys, by_head(&values, kv_heads, head_dim)?])
            }
        };
        Ok(Self {
            kv_heads: transform.geometry().kv_heads,
            head_dim: transform.geometry().head_dim,
            atoms: halves(&uploads.own(transform.all_atoms(), count, c)?)?,
            search,
            offsets: uploads.own(transform.offsets(), 1, count)?,
            encode: basis(transform.encoding(), kept, c, uploads)?,
            decode,
            runs: transform.runs().map(|of| run(of, uploads)).collect::<Result<_, CacheError>>()?,
            index: Packing { bits: transform.index_bits(), count: 1 },
            fields: uploads.fields()?,
        })
    }

    /// Codes tokens `(n, C)` as `(n, bytes)` u8.
    fn encode(&self, rows: &Tensor) -> Result<Tensor, CacheError> {
        let n = rows.dim(0)?;
        let atom = rows.matmul(&self.search)?.broadcast_sub(&self.offsets)?.argmax_keepdim(D::Minus1)?;
        let picked = atom.flatten_all()?;
        let [keys, values] = &self.atoms;
        let nearest = Tensor::cat(&[keys.index_select(&picked, 0)?, values.index_select(&picked, 0)?], 1)?;
        let left = (rows - nearest)?;
        let index = self.index.pack(&atom.to_dtype(DType::F32)?, &self.fields)?;
        let (low, high) = GAINS;
        let (low, step) = (f64::from(low), f64::from(high - low) / GAIN_STEPS);
        let Some(encode) = &self.encode else {
            // For a gain of zero, the host stores the smallest code.
            return Ok(Tensor::cat(&[index, Tensor::zeros((n, 1), DType::U8, rows.device())?], 1)?);
        };
        let coordinates = left.matmul(encode)?;
        let size = coordinates.sqr()?.mean_keepdim(1)?.sqrt()?.maximum(f32::MIN_POSITIVE)?;
        let place = size.log()?.affine(std::f64::consts::LOG2_E / step, -low / step)?;
        let gain_code = place.round()?.clamp(0f32, GAIN_STEPS as f32)?;
        let scaled = coordinates.broadcast_div(&self.gains(&gain_code)?)?;
        let mut parts = vec![index, gain_code.to_dtype(DType::U8)?];
        let mut from = 0;
        for run in &self.runs {
            let own = scaled.narrow(1, from, run.packing.count)?.contiguous()?;
            let codes = exceeded(&run.thresholds, &own, run.packing.bits)?;
            parts.push(run.packing.pack(&codes, &self.fields)?);
            from += run.packing.count;
        }
        Ok(Tensor::cat(&parts, 1)?)
    }

    /// The gains that belong to `codes`.
    fn gains(&self, codes: &Tensor) -> Result<Tensor, CacheError> {
        let (low, high) = GAINS;
        let step = f64::from(high - low) / GAIN_STEPS;
        let ln_2 = std::f64::consts::LN_2;
        Ok(codes.affine(step * ln_2, f64::from(low) * ln_2)?.exp()?)
    }

    /// Unpacks rows of codes `(n, bytes)` into atoms `(n,)` u32 and coordinates `(n, r)`, if there are any.
    fn unpack(&self, rows: &Tensor) -> Result<(Tensor, Option<Tensor>), CacheError> {
        let index = self.index.bytes();
        let atoms = self.index.unpack(&rows.narrow(1, 0, index)?.contiguous()?, &self.fields)?;
        let last = (self.atoms[0].dims()[0] - 1) as f32;
        let atoms = atoms.flatten_all()?.minimum(last)?.to_dtype(DType::U32)?;
        if self.runs.is_empty() {
            return Ok((atoms, None));
        }
        let gains = self.gains(&rows.narrow(1, index, 1)?.to_dtype(DType::F32)?)?;
        let (mut from, mut parts) = (index + 1, Vec::with_capacity(self.runs.len()));
        for run in &self.runs {
            let bytes = run.packing.bytes();
            let codes = run.packing.unpack(&rows.narrow(1, from, bytes)?, &self.fields)?;
            let (n, count) = codes.dims2()?;
            let codes = codes.flatten_all()?.to_dtype(DType::U32)?;
            parts.push(run.levels.index_select(&codes, 0)?.reshape((n, count))?);
            from += bytes;
        }
        Ok((atoms, Some(Tensor::cat(&parts, 1)?.broadcast_mul(&gains)?)))
    }

    /// Keys of `(n, bytes)` rows of codes: `(Hkv, n, D)`.
    fn keys(&self, rows: &Tensor) -> Result<Tensor, CacheError> {
        let (atoms, coordinates) = self.unpack(rows)?;
        let mut restored = self.atoms[0].index_select(&atoms, 0)?;
        if let (Some(coordinates), Some([decode, _])) = (coordinates, &self.decode) {
            restored = (restored + coordinates.matmul(decode)?)?;
        }
        by_head(&restored, self.kv_heads, self.head_dim)
    }

    /// Values of `(n, bytes)` rows of codes: `(Hkv, n, D)`.
    fn values(&self, rows: &Tensor) -> Result<Tensor, CacheError> {
        let (atoms, coordinates) = self.unpack(rows)?;
        let restored = by_head(&self.atoms[1].index_select(&atoms, 0)?, self.kv_heads, self.head_dim)?;
        let (Some(coordinates), Some([_, decode])) = (coordinates, &self.decode) else { return Ok(restored) };
        let (n, r) = coordinates.dims2()?;
        let coordinates = coordinates.unsqueeze(0)?.broadcast_as((self.kv_heads, n, r))?.contiguous()?;
        Ok((restored + coordinates.matmul(decode)?)?)
    }
}

/// `(n, Hkv D)` as `(Hkv, n, D)`.
fn by_head(x: &Tensor, kv_heads: usize, head_dim: usize) -> Result<Tensor, CacheError> {
    let n = x.dim(0)?;
    Ok(x.reshape((n, kv_heads, head_dim))?.transpose(0, 1)?.contiguous()?)
}

/// The codes of one sequence, and the keys whose values have not arrived yet.
struct Store {
    tables: Arc<Tables>,
    /// `(1, tokens, bytes)` u8
    codes: Growing,
    /// Blocks `(n, Hkv D)`, in order.
    waiting: Vec<Tensor>,
}

type Shared = Arc<Mutex<Store>>;

fn locked<R>(shared: &Shared, f: impl FnOnce(&mut Store) -> R) -> R {
    f(&mut shared.lock().unwrap_or_else(PoisonError::into_inner))
}

/// `(Hkv, n, D)` as `(n, Hkv D)`.
fn by_token(rows: &Tensor) -> Result<Tensor, CacheError> {
    let (heads, n, d) = rows.dims3()?;
    Ok(rows.transpose(0, 1)?.contiguous()?.reshape((n, heads * d))?)
}

impl Store {
    fn rows(&self, tokens: Range<usize>) -> Result<Tensor, CacheError> {
        Ok(self.codes.rows(tokens)?.squeeze(0)?.contiguous()?)
    }
}

/// The keys of the store. They count its bytes.
struct Keys(Shared);

/// The values of the store.
struct Values(Shared);

impl TensorTokens for Keys {
    fn append(&mut self, rows: &Tensor, _prompt: bool) -> Result<(), CacheError> {
        let rows = by_token(rows)?;
        locked(&self.0, |store| store.waiting.push(rows));
        Ok(())
    }

    fn restore(&self, tokens: Range<usize>) -> Result<Tensor, CacheError> {
        locked(&self.0, |store| store.tables.keys(&store.rows(tokens)?))
    }

    fn footprint(&self) -> Footprint {
        locked(&self.0, |store| {
            let waiting: usize = store.waiting.iter().map(|x| x.elem_count() * size_of::<f32>()).sum();
            let tables = size_of::<Self>() + size_of::<Mutex<Store>>() + waiting;
            Footprint { packed: store.codes.bytes(), tables, ..Footprint::default() }
        })
    }

    fn drop_first(&mut self, tokens: usize) -> Result<(), CacheError> {
        locked(&self.0, |store| store.codes.drop_first(tokens))
    }
}

impl TensorTokens for Values {
    fn append(&mut self, rows: &Tensor, _prompt: bool) -> Result<(), CacheError> {
        let values = by_token(rows)?;
        locked(&self.0, |store| {
            // The keys of these tokens arrived before, in the same blocks.
            let keys = store.waiting.remove(0);
            let codes = store.tables.encode(&Tensor::cat(&[keys, values], 1)?)?;
            store.codes.push(&codes.unsqueeze(0)?)
        })
    }

    fn restore(&self, tokens: Range<usize>) -> Result<Tensor, CacheError> {
        locked(&self.0, |store| store.tables.values(&store.rows(tokens)?))
    }

    /// Weights are first summed by coordinate if this is less work.
    fn sum(&self, weights: &Tensor, tokens: Range<usize>) -> Result<Tensor, CacheError> {
        locked(&self.0, |store| {
            let tables = &store.tables;
            let (heads, rows, n) = weights.dims3()?;
            if rows >= n {
                let restored = tables.values(&store.rows(tokens)?)?;
                return Ok(weights.contiguous()?.matmul(&restored)?);
            }
            let (atoms, coordinates) = tables.unpack(&store.rows(tokens)?)?;
            let weights = weights.contiguous()?;
            let of_atoms = by_head(&tables.atoms[1].index_select(&atoms, 0)?, tables.kv_heads, tables.head_dim)?;
            let mut out = weights.matmul(&of_atoms)?;
            if let (Some(coordinates), Some([_, decode])) = (coordinates, &tables.decode) {
                // The sums of coordinates of each head, times the head's own part of the matrix.
                let sums = weights.reshape((heads * rows, n))?.matmul(&coordinates)?;
                out = (out + sums.reshape((heads, rows, sums.dim(1)?))?.matmul(decode)?)?;
            }
            Ok(out)
        })
    }

    fn footprint(&self) -> Footprint {
        Footprint { tables: size_of::<Self>(), ..Footprint::default() }
    }

    /// The keys have already dropped these tokens.
    fn drop_first(&mut self, _tokens: usize) -> Result<(), CacheError> {
        Ok(())
    }
}

/// Makes the stores of one layer.
pub(super) fn stores(transform: &Transform, uploads: &mut Uploads) -> Result<JointStores, CacheError> {
    let tables = Arc::new(Tables::new(transform, uploads)?);
    let Geometry { kv_heads, head_dim, .. } = transform.geometry();
    let [keys, values] = transform.centres();
    let mut centre =
        |numbers: &[f32]| -> Result<Tensor, CacheError> { Ok(uploads.own(numbers, kv_heads, head_dim)?.unsqueeze(1)?) };
    let centres = Some([centre(&keys)?, centre(&values)?]);
    let empty = move || -> Result<JointPair, CacheError> {
        let store = Store { tables: tables.clone(), codes: Growing::default(), waiting: Vec::new() };
        let shared = Arc::new(Mutex::new(store));
        Ok((Box::new(Keys(shared.clone())), Box::new(Values(shared))))
    };
    Ok(JointStores { empty: Arc::new(empty), centres })
}
