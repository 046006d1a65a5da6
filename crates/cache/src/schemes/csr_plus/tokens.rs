//! The keys and values of one sequence, coded together.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError, RwLock};

use kvcsr_codec::Footprint;
use kvcsr_codec::kernels::Isa;
use rayon::prelude::*;

use super::tensors;
use super::transform::Transform;
use super::unpack::{self, Unpacked};
use crate::CacheError;
use crate::coded::{Block, CodedTokens, JointCodec, SumsCodes, TILE, drop_front, reserve};
use crate::tensor::{JointStores, Uploads};

/// Additional bytes of a shared store: its two reference counts.
const COUNTS: usize = 2 * size_of::<usize>();
/// Tokens that one thread codes together. This is fixed, so that codes do not depend on the number of threads.
const CHUNK: usize = 64;

/// How one layer's tokens are coded.
pub(super) struct Joint(pub(super) Arc<Transform>);

impl JointCodec for Joint {
    fn empty(&self) -> (Box<dyn CodedTokens>, Box<dyn CodedTokens>) {
        let store = Store {
            transform: self.0.clone(),
            codes: Vec::new(),
            waiting: Vec::new(),
            number: NEXT.fetch_add(1, Relaxed),
            changes: 0,
        };
        let shared = Shared(Arc::new(RwLock::new(store)));
        (Box::new(Keys(shared.clone())), Box::new(Values(shared)))
    }

    fn nominal_bits(&self) -> f64 {
        8.0 * self.0.row_bytes() as f64 / self.0.channels() as f64
    }

    fn centres(&self) -> [Arc<[f32]>; 2] {
        self.0.centres()
    }

    fn tensors(&self, uploads: &mut Uploads) -> Result<Option<JointStores>, CacheError> {
        tensors::stores(&self.0, uploads).map(Some)
    }
}

/// The codes of one sequence, and the keys whose values have not arrived yet.
struct Store {
    transform: Arc<Transform>,
    /// `(tokens, row_bytes)`
    codes: Vec<u8>,
    /// `(n, Hkv D)`
    waiting: Vec<f32>,
    /// Identifies this store.
    number: u64,
    /// How many times its codes changed.
    changes: u64,
}

#[derive(Clone)]
struct Shared(Arc<RwLock<Store>>);

/// The keys of the store. They count its bytes.
struct Keys(Shared);

/// The values of the store.
struct Values(Shared);

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    /// One number for each query row and token.
    weights: Vec<f32>,
    /// Sums for each query row, `(rows, width)`.
    sums: Vec<f32>,
}

/// The number of the next store. No two stores have the same number.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Shared {
    fn with<R>(&self, f: impl FnOnce(&Store) -> R) -> R {
        f(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<R>(&self, f: impl FnOnce(&mut Store) -> R) -> R {
        f(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Store {
    /// Copies the heads of a block into `rows` `(n, channels)`, from channel `first` on.
    fn gather(block: &Block<'_>, d: usize, channels: usize, first: usize, rows: &mut [f32]) {
        for (head, own) in block.rows.chunks_exact(block.tokens * d).enumerate() {
            for (row, x) in rows.chunks_exact_mut(channels).zip(own.chunks_exact(d)) {
                row[first + head * d..][..d].copy_from_slice(x);
            }
        }
    }

    /// Codes the tokens of `values` together with their keys, which are waiting.
    fn join(&mut self, values: &Block<'_>) {
        let (channels, d) = (self.transform.channels(), self.transform.geometry().head_dim);
        let half = channels / 2;
        let mut rows = vec![0.0; values.tokens * channels];
        let keys: Vec<f32> = self.waiting.drain(..values.tokens * half).collect();
        rows.chunks_exact_mut(channels)
            .zip(keys.chunks_exact(half))
            .for_each(|(row, x)| row[..half].copy_from_slice(x));
        Self::gather(values, d, channels, half, &mut rows);
        if self.waiting.is_empty() {
            self.waiting = Vec::new();
        }
        let each = self.transform.row_bytes();
        reserve(&mut self.codes, values.tokens, each);
        let transform = &self.transform;
        let coded: Vec<Vec<u8>> = rows
            .par_chunks_mut(CHUNK * channels)
            .map(|rows| {
                let mut codes = Vec::with_capacity(rows.len() / channels * each);
                transform.encode(rows, &mut codes);
                codes
            })
            .collect();
        coded.iter().for_each(|codes| self.codes.extend_from_slice(codes));
        self.changes += 1;
    }

    /// Calls `f` with the unpacked `tokens`, tile by tile: the range of these tokens within `tokens`, the tile, and the
    /// index of the first of them in the tile.
    fn read(&self, tokens: Range<usize>, mut f: impl FnMut(Range<usize>, &Unpacked, usize)) {
        let each = self.transform.row_bytes();
        let held = self.codes.len() / each;
        let mut at = tokens.start;
        while at < tokens.end {
            let tile = at / TILE;
            let all = tile * TILE..((tile + 1) * TILE).min(held);
            let end = all.end.min(tokens.end);
            let fill = |unpacked: &mut Unpacked| {
                self.transform.unpack(&self.codes[all.start * each..all.end * each], unpacked);
            };
            let place = at - tokens.start..end - tokens.start;
            unpack::with((self.number, self.changes, tile), fill, |unpacked| f(place, unpacked, at - all.start));
            at = end;
        }
    }

    /// Restores half-head `at` of `tokens` into `out`, `(tokens, D)`.
    fn restore(&self, at: usize, tokens: Range<usize>, out: &mut [f32]) {
        let d = self.transform.geometry().head_dim;
        self.read(tokens, |place, unpacked, from| {
            self.transform.restore_unpacked(at, unpacked, from, &mut out[place.start * d..place.end * d]);
        });
    }
}

impl CodedTokens for Keys {
    fn append(&mut self, block: &Block<'_>) {
        self.0.change(|store| {
            let d = store.transform.geometry().head_dim;
            let half = store.transform.channels() / 2;
            let held = store.waiting.len();
            store.waiting.resize(held + block.tokens * half, 0.0);
            Store::gather(block, d, half, 0, &mut store.waiting[held..]);
        });
    }

    fn restore(&self, head: usize, tokens: Range<usize>, out: &mut [f32]) {
        self.0.with(|store| store.restore(head, tokens, out));
    }

    fn footprint(&self) -> Footprint {
        self.0.with(|store| Footprint {
            packed: store.codes.capacity(),
            tables: size_of::<Self>()
                + COUNTS
                + size_of::<RwLock<Store>>()
                + store.waiting.capacity() * size_of::<f32>(),
            ..Footprint::default()
        })
    }

    fn drop_first(&mut self, tokens: usize) {
        self.0.change(|store| {
            let each = store.transform.row_bytes();
            drop_front(&mut store.codes, tokens * each);
            store.changes += 1;
        });
    }
}

impl CodedTokens for Values {
    fn append(&mut self, block: &Block<'_>) {
        self.0.change(|store| store.join(block));
    }

    fn restore(&self, head: usize, tokens: Range<usize>, out: &mut [f32]) {
        self.0.with(|store| store.restore(store.transform.geometry().kv_heads + head, tokens, out));
    }

    fn sums_codes(&self) -> Option<&dyn SumsCodes> {
        Some(self)
    }

    fn footprint(&self) -> Footprint {
        Footprint { tables: size_of::<Self>(), ..Footprint::default() }
    }

    /// The keys have already dropped these tokens.
    fn drop_first(&mut self, _tokens: usize) {}
}

/// The sums are `(N + width, rows)`: first the weights by atom, then the sums of coordinates.
impl SumsCodes for Values {
    fn sums(&self, rows: usize, tokens: usize) -> usize {
        self.0.with(|store| {
            let (transform, d) = (&store.transform, store.transform.geometry().head_dim);
            let (atoms, kept) = (transform.atoms(), transform.width());
            let on_codes = tokens * rows * (kept + 1) + (atoms + kept) * d * rows;
            let restoring = tokens * d * (kept + rows);
            if on_codes < restoring { (atoms + kept) * rows } else { 0 }
        })
    }

    fn add(&self, _head: usize, tokens: Range<usize>, weights: &[f32], rows: usize, sums: &mut [f32]) {
        self.0.with(|store| {
            let (of_atoms, of_coordinates) = sums.split_at_mut(store.transform.atoms() * rows);
            let width = store.transform.width();
            store.read(tokens, |place, unpacked, from| {
                let (n, weights) = (place.len(), &weights[place.start * rows..place.end * rows]);
                let tokens = from..from + n;
                for (&atom, weights) in unpacked.atoms[tokens.clone()].iter().zip(weights.chunks_exact(rows)) {
                    of_atoms[atom * rows..][..rows].iter_mut().zip(weights).for_each(|(sum, weight)| *sum += weight);
                }
                let levels = &unpacked.levels[tokens.start * width..tokens.end * width];
                let gains = &unpacked.gains[tokens];
                let mut scratch = SCRATCH.take();
                scratch.weights.clear();
                for row in 0..rows {
                    let own = weights.iter().skip(row).step_by(rows);
                    scratch.weights.extend(own.zip(gains).map(|(weight, gain)| weight * gain));
                }
                scratch.sums.clear();
                scratch.sums.resize(rows * width, 0.0);
                Isa::detect().add_weighted_together(&scratch.weights, levels, width, &mut scratch.sums);
                for (row, sums) in scratch.sums.chunks_exact(width.max(1)).enumerate() {
                    of_coordinates.iter_mut().skip(row).step_by(rows).zip(sums).for_each(|(sum, x)| *sum += x);
                }
                SCRATCH.set(scratch);
            });
        });
    }

    fn finish(&self, head: usize, sums: &[f32], rows: usize, out: &mut [f32]) {
        self.0.with(|store| {
            let (transform, isa) = (&store.transform, Isa::detect());
            let (d, at) = (transform.geometry().head_dim, transform.geometry().kv_heads + head);
            let (of_atoms, of_coordinates) = sums.split_at(transform.atoms() * rows);
            for (atom, weights) in of_atoms.chunks_exact(rows).enumerate() {
                for (&weight, out) in weights.iter().zip(out.chunks_exact_mut(d)).filter(|(weight, _)| **weight != 0.0)
                {
                    isa.axpy(out, weight, transform.atom(atom, at));
                }
            }
            let (width, decode) = (transform.width(), transform.decode(at));
            if width == 0 {
                return;
            }
            let mut scratch = SCRATCH.take();
            scratch.sums.clear();
            (0..rows).for_each(|row| scratch.sums.extend(of_coordinates.iter().skip(row).step_by(rows)));
            scratch.weights.resize(rows, 0.0);
            for (channel, decode) in decode.chunks_exact(width).enumerate() {
                isa.dots(decode, &scratch.sums, &mut scratch.weights);
                out.iter_mut().skip(channel).step_by(d).zip(&scratch.weights).for_each(|(x, sum)| *x += sum);
            }
            SCRATCH.set(scratch);
        });
    }
}
