//! Several caches of one prompt, decoded token by token together.
//!
//! Generating one token reads every weight of the model, and on a CPU that is most of the time. All schemes that answer a prompt
//! hold equally many tokens at every step, so they can be the rows of one batch: the weights are read once for all of them, and
//! each row attends with its own cache.
//!
//! The batch always has [`ROWS`] rows, the missing ones idle: the sums of a matrix product may be taken in another order for
//! another number of rows, and a scheme's answer must not depend on which others stand beside it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use candle_core::{D, Tensor};
use kvcsr_cache::{AttendCx, CacheError, LayerCache, Rotary};
use kvcsr_codec::Footprint;
use kvcsr_model::{Decoder, Finish, Limits, Logits};

use crate::error::{LongBenchError, Result};

/// Rows of the batch.
pub const ROWS: usize = 8;

/// What one row generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its tokens, without the stop token.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// The passes through the weights that it took part in, which the rows share, and its own attention.
    pub time: Duration,
}

/// Greedy generation from `logits`, `(1, V)`, which are those after the last token that every cache holds. `forks` has the
/// caches of every layer for each of up to [`ROWS`] rows.
///
/// # Errors
/// Whatever the model or a cache fails with.
///
/// # Panics
/// With more than [`ROWS`] forks.
pub fn generate(
    decoder: &Decoder,
    logits: &Tensor,
    forks: Vec<Vec<Box<dyn LayerCache>>>,
    limits: Limits<'_>,
) -> Result<Vec<Answer>> {
    assert!(forks.len() <= ROWS, "at most {ROWS} rows, found {}", forks.len());
    let count = forks.len();
    let rows = Rows { held: Arc::new(Mutex::new(Held { forks, time: [Duration::ZERO; ROWS] })) };
    let mut layers: Vec<Box<dyn LayerCache>> = (0..decoder.arch().layers)
        .map(|layer| Box::new(Layer { layer, rows: rows.clone() }) as Box<dyn LayerCache>)
        .collect();
    let mut answers = vec![Answer { ids: Vec::new(), finish: Finish::Length, time: Duration::ZERO }; count];
    let mut open = vec![true; count];
    let mut logits = logits.broadcast_as((count.max(1), logits.dim(D::Minus1)?))?;
    for step in 0..limits.max_new_tokens {
        let barred = if step < limits.min_new_tokens { limits.stop } else { &[] };
        let mut next = [0_u32; ROWS];
        for row in (0..count).filter(|&row| open[row]).collect::<Vec<_>>() {
            let token = most_likely(&logits.get(row)?.to_vec1::<f32>()?, barred)?;
            if limits.stop.contains(&token) {
                answers[row].finish = Finish::Stop(token);
                open[row] = false;
                rows.close(row);
            } else {
                answers[row].ids.push(token);
                next[row] = token;
            }
        }
        if step + 1 == limits.max_new_tokens || !open.contains(&true) {
            break;
        }
        if layers.first().is_some_and(|layer| layer.len() >= decoder.arch().max_positions) {
            (0..count).filter(|&row| open[row]).for_each(|row| answers[row].finish = Finish::Context);
            break;
        }
        let ids = Tensor::new(&next[..], decoder.device())?.unsqueeze(1)?;
        let started = Instant::now();
        logits = decoder.forward(&ids, &mut layers, Logits::Last)?;
        let own = rows.take_time();
        let shared = started.elapsed().saturating_sub(own.iter().sum());
        for row in (0..count).filter(|&row| open[row]) {
            answers[row].time += shared + own[row];
        }
    }
    Ok(answers)
}

/// All caches of the batch.
#[derive(Clone)]
struct Rows {
    held: Arc<Mutex<Held>>,
}

struct Held {
    /// Per row, the cache of every layer; none for a row that ended.
    forks: Vec<Vec<Box<dyn LayerCache>>>,
    /// Time that each row's attention took since it was last asked.
    time: [Duration; ROWS],
}

impl Rows {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a row and gives its memory back.
    fn close(&self, row: usize) {
        self.lock().forks[row].clear();
    }

    fn take_time(&self) -> [Duration; ROWS] {
        std::mem::replace(&mut self.lock().time, [Duration::ZERO; ROWS])
    }
}

/// One layer of all rows, as the decoder sees it: a cache of a batch.
struct Layer {
    layer: usize,
    rows: Rows,
}

impl LayerCache for Layer {
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        let mut held = self.rows.lock();
        let Held { forks, time } = &mut *held;
        let idle = q.narrow(0, 0, 1)?.zeros_like()?;
        let mut out = Vec::with_capacity(ROWS);
        for (row, time) in time.iter_mut().enumerate() {
            let Some(cache) = forks.get_mut(row).and_then(|fork| fork.get_mut(self.layer)) else {
                out.push(idle.clone());
                continue;
            };
            let started = Instant::now();
            let of = |t: &Tensor| t.narrow(0, row, 1)?.contiguous();
            out.push(cache.attend(&of(q)?, &of(k)?, &of(v)?, cx)?);
            *time += started.elapsed();
        }
        Ok(Tensor::cat(&out, 0)?)
    }

    fn absorb(&mut self, _: &Tensor, _: &Tensor, _: &Rotary) -> Result<(), CacheError> {
        unreachable!("rows take over their prefill before they come together")
    }

    fn len(&self) -> usize {
        let held = self.rows.lock();
        held.forks.iter().find_map(|fork| fork.get(self.layer)).map_or(0, |cache| cache.len())
    }

    fn footprint(&self) -> Footprint {
        self.rows.lock().forks.iter().filter_map(|fork| fork.get(self.layer)).map(|cache| cache.footprint()).sum()
    }

    fn clear(&mut self) {
        self.rows.lock().forks.iter_mut().filter_map(|fork| fork.get_mut(self.layer)).for_each(|cache| cache.clear());
    }
}

/// The token of the largest logit, the first of equals, outside `barred`.
fn most_likely(logits: &[f32], barred: &[u32]) -> Result<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (id, &logit) in (0_u32..).zip(logits) {
        if logit.is_nan() {
            return Err(LongBenchError::Logits(format!("NaN for token {id}")));
        }
        if best.is_none_or(|(_, top)| logit > top) && !barred.contains(&id) {
            best = Some((id, logit));
        }
    }
    best.map(|(id, _)| id).ok_or_else(|| LongBenchError::Logits("every token is barred".to_owned()))
}
