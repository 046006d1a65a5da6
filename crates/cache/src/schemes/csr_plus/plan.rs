//! A plan: the bits of every coordinate of every layer, as a person can read and edit them.

use kvcsr_codec::{CodebookSet, WIDEST};
use serde::{Deserialize, Serialize};

use super::transform::Tables;
use super::{Asked, PLUS, allocation};
use crate::coded::window_bytes;
use crate::{CacheError, Geometry, Reach, Window};

/// What `csr+@B(plan=NAME)` gives to each layer, instead of what the tables would buy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BitPlan {
    /// Tokens of the sequence for which the bits of the windows are counted.
    pub context: usize,
    /// First tokens kept in f16.
    pub sinks: usize,
    /// Last tokens kept in f16.
    pub recent: usize,
    /// Tokens before those, kept in 4 bits beside their codes.
    pub graded: usize,
    /// One row per layer: how many coordinates get 8 bits, 7 bits, and so on down to 1 bit. The others get none. Coordinates are in
    /// the order of falling deviation, so that the first ones get the most bits.
    pub layers: Vec<[usize; WIDEST]>,
}

impl BitPlan {
    /// What `csr+@bits` buys over the tables `set`.
    ///
    /// # Errors
    /// As [`super::predicted_loss`].
    pub fn of(set: &CodebookSet, geometry: Geometry, bits: f64, context: usize) -> Result<Self, CacheError> {
        let asked = Asked { bits, context, window: None };
        let spent = asked.spend(&format!("{PLUS}{bits}"), &Tables::all(set, geometry)?, geometry)?;
        let Window { sinks, recent, graded } = asked.window(geometry);
        let count = |bits: &[u8], width: usize| bits.iter().filter(|&&b| usize::from(b) == width).count();
        let layers = spent.iter().map(|bits| std::array::from_fn(|at| count(bits, WIDEST - at))).collect();
        Ok(Self { context, sinks, recent, graded, layers })
    }

    /// The windows around the codes.
    pub fn window(&self) -> Window {
        Window { sinks: self.sinks, recent: self.recent, graded: self.graded }
    }

    /// The bits of each coordinate of each layer, widest first, if the plan takes `bits` per channel or fewer.
    ///
    /// # Errors
    /// A sentence that says what does not fit.
    pub(super) fn within(&self, bits: f64, tables: &[Tables<'_>], geometry: Geometry) -> Result<Vec<Vec<u8>>, String> {
        let spent = self.spent(geometry)?;
        let takes = self.outcome_over(tables, &spent, geometry).bits;
        // The name is written with a few digits.
        if takes > bits + 0.005 {
            return Err(format!("the plan takes {takes:.3} bits per channel: give bits to fewer coordinates"));
        }
        Ok(spent)
    }

    /// The bits of each coordinate of each layer, widest first.
    fn spent(&self, geometry: Geometry) -> Result<Vec<Vec<u8>>, String> {
        if self.layers.len() != geometry.layers {
            return Err(format!("the plan has {} layers, the model has {}", self.layers.len(), geometry.layers));
        }
        if self.context == 0 || [self.context, self.sinks, self.recent, self.graded].iter().any(|&n| n > 1 << 24) {
            return Err("the plan's context is 0, or it has a number of tokens above 2^24".to_owned());
        }
        let channels = 2 * geometry.kv_heads * geometry.head_dim;
        let row = |(layer, counts): (usize, &[usize; WIDEST])| {
            // A count from a file may be any number.
            let coded = counts.iter().try_fold(0usize, |sum, &count| sum.checked_add(count));
            let Some(coded) = coded.filter(|&coded| coded <= channels) else {
                return Err(format!("the plan gives bits to more than the {channels} coordinates of layer {layer}"));
            };
            let mut bits = Vec::with_capacity(channels);
            for (at, &count) in counts.iter().enumerate() {
                bits.extend(std::iter::repeat_n((WIDEST - at) as u8, count));
            }
            bits.extend(std::iter::repeat_n(0, channels - coded));
            Ok(bits)
        };
        self.layers.iter().enumerate().map(row).collect()
    }

    /// What the plan takes and loses over the tables `set`.
    ///
    /// # Errors
    /// [`CacheError::Codec`] for tables that are not of this model, [`CacheError::Unsuitable`] if the plan does not fit the model.
    pub fn outcome(&self, set: &CodebookSet, geometry: Geometry) -> Result<Outcome, CacheError> {
        let tables = Tables::all(set, geometry)?;
        let unsuitable = |reason| CacheError::Unsuitable { scheme: PLUS.to_owned(), reason };
        Ok(self.outcome_over(&tables, &self.spent(geometry).map_err(unsuitable)?, geometry))
    }

    fn outcome_over(&self, tables: &[Tables<'_>], spent: &[Vec<u8>], geometry: Geometry) -> Outcome {
        let channels = geometry.kv_heads * geometry.head_dim;
        let around = window_bytes(self.window(), self.context, channels, Reach::Full);
        let rows = tables.iter().zip(spent).map(|(tables, bits)| {
            let coordinates: usize = bits.iter().map(|&bits| usize::from(bits)).sum();
            (tables.overhead_bits() + coordinates).div_ceil(8)
        });
        let rows = rows.sum::<usize>() as f64 / (2 * channels * geometry.layers) as f64;
        // Of keys and of values each.
        let around = around as f64 / (self.context * channels) as f64;
        let lost = tables.iter().zip(spent).map(|(tables, bits)| allocation::loss(&tables.deviations(), bits)).sum();
        Outcome { bits: 8.0 * (rows + around), predicted_loss: lost }
    }
}

/// What a plan takes and loses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Bits per channel of a sequence of the plan's context, the windows included.
    pub bits: f64,
    /// KL in nats per token that the tables predict where every token that is read is coded.
    pub predicted_loss: f64,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::Device;

    use super::super::TABLES;
    use super::*;
    use crate::conformance::{self, Inputs, Setting};
    use crate::{Pattern, Rotary, SchemeContext, registry};

    const SETTING: Setting = Setting { batch: 1, heads: 4, kv_heads: 2, head_dim: 64 };

    /// Two layers, and the plan of `csr+@2` under the name `own`.
    fn context(edit: impl FnOnce(&mut BitPlan)) -> (SchemeContext, BitPlan) {
        let cx = SchemeContext::untrained(SETTING.geometry(2), 16);
        let mut plan = BitPlan::of(cx.codebooks(TABLES, "csr+@2").unwrap(), cx.geometry(), 2.0, 4096).unwrap();
        edit(&mut plan);
        (cx.with_plan("own", plan.clone()), plan)
    }

    fn refusal(edit: impl FnOnce(&mut BitPlan)) -> String {
        registry::build("csr+@2(plan=own)", &context(edit).0).map(drop).unwrap_err().to_string()
    }

    #[test]
    fn the_plan_of_the_market_codes_as_the_market_does() {
        let (cx, plan) = context(|_| ());
        let (x, rotary) = (Inputs::random(SETTING, 200).unwrap(), Rotary::new(64, 1e4, 512, &Device::Cpu).unwrap());
        let last = |name: &str| {
            let mut cache = registry::build(name, &cx).unwrap().empty(1).unwrap();
            x.feed(cache.as_mut(), &rotary, Pattern::default(), 0..190).unwrap();
            x.feed(cache.as_mut(), &rotary, Pattern::default(), 190..200).unwrap()
        };
        assert_eq!(conformance::largest_difference(&last("csr+@2"), &last("csr+@2(plan=own)")).unwrap(), 0.0);
        let outcome = plan.outcome(cx.codebooks(TABLES, "csr+@2").unwrap(), cx.geometry()).unwrap();
        assert!((1.95..=2.005).contains(&outcome.bits), "{outcome:?}");
    }

    #[test]
    fn an_edited_plan_is_followed_and_must_keep_to_its_bits() {
        // A bit from some coordinates of layer 0, none to others.
        let (cx, plan) = context(|plan| plan.layers[0] = [0, 0, 0, 0, 0, 0, 0, 40]);
        let set = cx.codebooks(TABLES, "csr+@2").unwrap();
        let bought = super::super::predicted_loss(set, cx.geometry(), 2.0, 4096).unwrap();
        assert!(plan.outcome(set, cx.geometry()).unwrap().predicted_loss > bought);
        assert!(registry::build("csr+@2(plan=own)", &cx).is_ok());
        let takes_more = refusal(|plan| plan.layers[0] = [256, 0, 0, 0, 0, 0, 0, 0]);
        assert!(takes_more.contains("bits per channel: give bits to fewer"), "{takes_more}");
    }

    #[test]
    fn a_plan_that_does_not_fit_is_refused() {
        for (error, expected) in [
            (refusal(|plan| plan.layers[1][7] = 1000), "256 coordinates of layer 1"),
            (refusal(|plan| plan.layers[1] = [usize::MAX; WIDEST]), "256 coordinates of layer 1"),
            (refusal(|plan| plan.layers.truncate(1)), "1 layers, the model has 2"),
            (refusal(|plan| plan.context = 0), "context is 0"),
            (refusal(|plan| plan.recent = usize::MAX), "above 2^24"),
        ] {
            assert!(error.contains(expected), "{error}");
        }
        let bare = SchemeContext::untrained(SETTING.geometry(2), 16);
        let build = |name: &str| registry::build(name, &bare).map(drop).unwrap_err().to_string();
        assert!(build("csr+@2(plan=own)").contains("needs the plan `own`"));
        assert!(build("csr+@2(plan=../own)").contains("not the name of a plan"));
        assert!(build("csr+@2(plan=own,context=512)").contains("the plan says"));
        assert!(build("csr+@2(plan=own)+window").contains("the plan says"));
    }
}
