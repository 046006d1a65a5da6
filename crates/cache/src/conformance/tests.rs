//! Faults that the checks must detect.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Tensor};
use kvcsr_codec::{BitsPerChannel, Footprint};

use super::*;
use crate::{AttendCx, DenseCache, DenseScheme, LayerCache, Rotary};

/// A dense cache with one fault.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    None,
    /// `clear` does not forget.
    Clear,
    /// The footprint is zero.
    Footprint,
    /// Wrong attention in calls of a single token.
    Singles,
    /// All forks share the state of the last prefill, for example its length.
    Position,
    /// NaN for large vectors.
    Overflow,
}

struct Faulty(Fault, DenseCache);

impl LayerCache for Faulty {
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        let start = if self.0 == Fault::Position { self.1.len() } else { cx.start };
        let out = self.1.attend(q, k, v, &AttendCx { start, ..*cx })?;
        Ok(match self.0 {
            Fault::Singles if q.dim(2)? == 1 => (out * 1.001)?,
            Fault::Overflow => ((out * 1e35)? * 1e-35)?,
            _ => out,
        })
    }
    fn absorb(&mut self, k: &Tensor, v: &Tensor, rotary: &Rotary) -> Result<(), CacheError> {
        self.1.absorb(k, v, rotary)
    }
    fn len(&self) -> usize {
        self.1.len()
    }
    fn footprint(&self) -> Footprint {
        if self.0 == Fault::Footprint { Footprint::default() } else { self.1.footprint() }
    }
    fn clear(&mut self) {
        if self.0 != Fault::Clear {
            self.1.clear();
        }
    }
}

struct Builds(Fault);

impl Scheme for Builds {
    fn name(&self) -> &str {
        "faulty"
    }
    fn empty(&self, _layer: usize) -> Result<Box<dyn LayerCache>, CacheError> {
        Ok(Box::new(Faulty(self.0, DenseCache::new(DType::F32))))
    }
    fn nominal_bits(&self) -> BitsPerChannel {
        BitsPerChannel(32.0)
    }
    fn shared_bytes(&self) -> usize {
        0
    }
}

fn failed(fault: Fault) -> Vec<String> {
    let promises = Promises { refuses_not_finite: false, ..Promises::default() };
    let outcomes = check(|_| Ok(Box::new(Builds(fault))), promises);
    outcomes.iter().filter(|outcome| !outcome.passed()).map(ToString::to_string).collect()
}

#[test]
fn each_fault_is_found_and_named() {
    for (fault, expected) in [
        (Fault::None, None),
        (Fault::Clear, Some("len() is 35 after clear()")),
        (Fault::Footprint, Some("footprint() is 0 bytes for 1 tokens")),
        (Fault::Singles, Some("tokens in one call and in pieces differ by")),
        (Fault::Position, Some("a position that does not continue what is held was taken")),
        (Fault::Overflow, Some("not finite for very large")),
    ] {
        let failed = failed(fault);
        match expected {
            None => assert!(failed.is_empty(), "{failed:?}"),
            Some(text) => assert!(failed.iter().any(|line| line.contains(text)), "{fault:?}: {failed:?}"),
        }
    }
}

#[test]
fn a_scheme_that_cannot_be_built_fails_every_check() {
    let refuse = |_: Geometry| Err(CacheError::Position { start: 1, len: 2 });
    let outcomes = check(refuse, Promises::default());
    assert!(outcomes.iter().all(|outcome| outcome.to_string().contains("could not be built")));
}

#[test]
fn a_dense_cache_passes_but_does_not_refuse_nan() {
    let build = |_: Geometry| Ok(Box::new(DenseScheme::new(DType::F32)) as Box<dyn Scheme>);
    let failed: Vec<String> =
        check(build, Promises::default()).iter().filter(|o| !o.passed()).map(ToString::to_string).collect();
    assert!(failed.len() == 1 && failed[0].contains("NotFinite"), "{failed:?}");
}
