//! Your own cache scheme. It rounds every vector to whole numbers. The example checks it against the contract of all
//! schemes.
//!
//! ```sh
//! cargo run --release --package kvcsr-cache --example own_scheme
//! ```
//!
//! `notebooks/06-your-own-scheme.ipynb` continues from here. It compares such a scheme with five others on a real
//! model.

use std::error::Error;

use candle_core::{DType, Tensor};
use kvcsr_cache::{AttendCx, CacheError, LayerCache, Padding, Pattern, Reach, Rotary, Scheme, attention, conformance};
use kvcsr_codec::{BitsPerChannel, Footprint, Kind};

/// Rounded vectors, one byte per channel, and their scales.
#[derive(Clone)]
struct Rounded {
    /// `(B, Hkv, T, D)`, u8.
    codes: Tensor,
    /// `(B, Hkv, T, 1)`, f32.
    scales: Tensor,
}

impl Rounded {
    fn of(x: &Tensor, levels: f64) -> Result<Self, CacheError> {
        let scales = (x.abs()?.max_keepdim(3)?.maximum(1e-30)? / levels)?;
        let codes = (x.broadcast_div(&scales)?.round()? + levels)?.to_dtype(DType::U8)?;
        Ok(Self { codes, scales })
    }

    fn after(self, old: Option<&Self>) -> Result<Self, CacheError> {
        let Some(old) = old else { return Ok(self) };
        Ok(Self {
            codes: Tensor::cat(&[&old.codes, &self.codes], 2)?,
            scales: Tensor::cat(&[&old.scales, &self.scales], 2)?,
        })
    }

    /// A copy without the first `tokens` tokens.
    fn without(&self, tokens: usize) -> Result<Self, CacheError> {
        let rest = |x: &Tensor| x.narrow(2, tokens, x.dim(2)? - tokens)?.force_contiguous();
        Ok(Self { codes: rest(&self.codes)?, scales: rest(&self.scales)? })
    }

    fn restored(&self, levels: f64) -> Result<Tensor, CacheError> {
        Ok((self.codes.to_dtype(DType::F32)? - levels)?.broadcast_mul(&self.scales)?)
    }
}

/// The cache of one layer.
struct Rounding {
    layer: usize,
    levels: f64,
    /// Keys and values of all tokens except the first `dropped`.
    held: Option<[Rounded; 2]>,
    dropped: usize,
}

impl Rounding {
    /// Returns the held tokens followed by `k` and `v`. It changes nothing: after an error the cache must be as it was.
    fn with(&self, k: &Tensor, v: &Tensor, start: usize) -> Result<[Rounded; 2], CacheError> {
        if start != self.len() {
            return Err(CacheError::Position { start, len: self.len() });
        }
        for (kind, x) in [(Kind::Key, k), (Kind::Value, v)] {
            let (width, tokens) = (x.dim(3)?, x.dim(2)?);
            let wrong = x.flatten_all()?.to_vec1::<f32>()?.iter().position(|x| !x.is_finite());
            if let Some(at) = wrong {
                return Err(CacheError::NotFinite { layer: self.layer, kind, token: start + at / width % tokens });
            }
        }
        let [keys, values] = match &self.held {
            Some([keys, values]) => [Some(keys), Some(values)],
            None => [None, None],
        };
        Ok([Rounded::of(k, self.levels)?.after(keys)?, Rounded::of(v, self.levels)?.after(values)?])
    }

    /// Stores the tokens, without those that a sliding window hides from every later token.
    fn keep(&mut self, [keys, values]: [Rounded; 2], reach: Reach) -> Result<(), CacheError> {
        let len = self.dropped + keys.codes.dim(2)?;
        let unseen = reach.first_seen(len).min(len) - self.dropped;
        self.held = Some(if unseen > 0 { [keys.without(unseen)?, values.without(unseen)?] } else { [keys, values] });
        self.dropped += unseen;
        Ok(())
    }
}

impl LayerCache for Rounding {
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        let held = self.with(k, v, cx.start)?;
        // Keys are stored before position embedding. All of them are rotated here.
        let keys = cx.rotary.apply(&held[0].restored(self.levels)?, self.dropped)?.flatten(0, 1)?;
        let values = held[1].restored(self.levels)?.flatten(0, 1)?;
        // Padding counts from the first token of the sequence, which may be dropped.
        let shifted: Vec<usize> = match cx.pattern.padding {
            Padding::Left(rows) => rows.iter().map(|&tokens| tokens.saturating_sub(self.dropped)).collect(),
            Padding::None => Vec::new(),
        };
        let padding = if shifted.is_empty() { Padding::None } else { Padding::Left(&shifted) };
        let pattern = Pattern { padding, ..cx.pattern };
        let out = attention::causal(&cx.rotary.apply(q, cx.start)?, &keys, &values, cx.scale, &pattern)?;
        self.keep(held, cx.pattern.reach)?;
        Ok(out)
    }

    fn absorb(&mut self, k: &Tensor, v: &Tensor, rotary: &Rotary) -> Result<(), CacheError> {
        let held = self.with(k, v, 0)?;
        self.keep(held, rotary.reach())
    }

    fn len(&self) -> usize {
        self.dropped + self.held.as_ref().map_or(0, |[keys, _]| keys.codes.dims()[2])
    }

    fn footprint(&self) -> Footprint {
        let held = self.held.iter().flatten();
        let (packed, scales) =
            held.fold((0, 0), |sum, x| (sum.0 + x.codes.elem_count(), sum.1 + 4 * x.scales.elem_count()));
        Footprint { packed, scales, ..Footprint::default() }
    }

    fn clear(&mut self) {
        (self.held, self.dropped) = (None, 0);
    }
}

/// The scheme: builds a cache for every layer.
struct RoundingScheme {
    name: String,
    levels: f64,
}

impl Scheme for RoundingScheme {
    fn name(&self) -> &str {
        &self.name
    }

    fn empty(&self, layer: usize) -> Result<Box<dyn LayerCache>, CacheError> {
        Ok(Box::new(Rounding { layer, levels: self.levels, held: None, dropped: 0 }))
    }

    /// The bits that a paper would state. The bytes that are really allocated come from [`LayerCache::footprint`].
    fn nominal_bits(&self) -> BitsPerChannel {
        BitsPerChannel((2.0 * self.levels + 1.0).log2())
    }

    fn shared_bytes(&self) -> usize {
        0
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let levels = 127.0;
    let make = |_| -> Result<Box<dyn Scheme>, CacheError> {
        Ok(Box::new(RoundingScheme { name: format!("rounding-{levels}"), levels }))
    };
    let outcomes = conformance::check(make, conformance::Promises::default());
    for outcome in &outcomes {
        println!("{outcome}");
    }
    if outcomes.iter().all(conformance::Outcome::passed) { Ok(()) } else { Err("the contract is not kept".into()) }
}

#[test]
fn it_runs() {
    main().expect("the example runs");
}
