//! Budgets of atoms per layer and kind, and the allocator that computes them from sensitivities.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use kvcsr_codec::Kind;
use serde::{Deserialize, Serialize};

/// Atoms per head vector for each layer: for keys, and for values over all their chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// One level per layer.
    pub keys: Vec<usize>,
    /// One level per layer.
    pub values: Vec<usize>,
}

impl Budget {
    /// The level of one layer and kind.
    #[must_use]
    pub fn level(&self, layer: usize, kind: Kind) -> Option<usize> {
        match kind {
            Kind::Key => self.keys.get(layer).copied(),
            Kind::Value => self.values.get(layer).copied(),
        }
    }

    /// Checks that the budget spends no more than CSR-`level`: one level of 1 to 255 per layer and kind, and at most
    /// `2 level` atoms per layer on average.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn check(&self, level: usize, layers: usize) -> Result<(), String> {
        if (self.keys.len(), self.values.len()) != (layers, layers) {
            let found = (self.keys.len(), self.values.len());
            return Err(format!("it has levels for {found:?} layers of keys and values, the model has {layers}"));
        }
        let levels = || self.keys.iter().chain(&self.values);
        if let Some(level) = levels().find(|level| !(1..=255).contains(*level)) {
            return Err(format!("a level of {level}; 1 to 255 atoms are possible"));
        }
        let spent: usize = levels().sum();
        if spent > 2 * level * layers {
            return Err(format!(
                "it spends {spent} atoms per token and head, level {level} has {}",
                2 * level * layers
            ));
        }
        Ok(())
    }
}

/// Budgets, by the level whose number of atoms they spend.
pub type Budgets = BTreeMap<usize, Budget>;

/// How much loss it causes to code the vectors of one layer and kind, at several levels. The loss is, for example, the
/// layer's part of a KL divergence in nats.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensitivity {
    /// The layer.
    pub layer: usize,
    /// Keys or values.
    pub kind: Kind,
    /// Levels must be multiples of this: the number of chunks that share one level.
    pub chunks: usize,
    /// Levels with their losses, in order of rising level. At least one.
    pub measured: Vec<(usize, f64)>,
}

impl Sensitivity {
    /// The loss at `level`. Between two measured levels, the logarithm of the loss is linear in the level. Outside the
    /// measured range, the nearest line is continued. The loss never rises with the level.
    fn at(&self, level: usize) -> f64 {
        // A loss of zero has no logarithm.
        let log = |loss: f64| loss.max(1e-12).ln();
        let points = &self.measured;
        let after = points.iter().position(|&(l, _)| l >= level).unwrap_or(points.len() - 1).max(1);
        let &[(l0, y0), (l1, y1)] = &points[after.min(points.len() - 1).saturating_sub(1)..][..2.min(points.len())]
        else {
            return points[0].1;
        };
        let slope = ((log(y1) - log(y0)) / (l1 as f64 - l0 as f64)).min(0.0);
        (log(y0) + slope * (level as f64 - l0 as f64)).exp()
    }
}

/// The budget with the smallest sum of losses that spends `2 level` atoms per layer on average, over the keys and
/// values of all layers. The result is exact: it is computed by dynamic programming over the number of atoms spent.
///
/// It assumes that the losses of several layers add up. This is true for small losses. Levels are multiples of a
/// vector's chunks, with at least one atom per chunk, and lie in `bounds`.
///
/// # Errors
/// A sentence, if there is not exactly one sensitivity per layer and kind, or if the level is too small.
pub fn allocate(sensitivities: &[Sensitivity], level: usize, bounds: RangeInclusive<usize>) -> Result<Budget, String> {
    let layers = sensitivities.len() / 2;
    if layers == 0 || !sensitivities.len().is_multiple_of(2) {
        return Err(format!(
            "{} sensitivities are not two per layer, one of keys and one of values",
            sensitivities.len()
        ));
    }
    let find = |layer: usize, kind: Kind| {
        let mut found = sensitivities.iter().filter(|s| (s.layer, s.kind) == (layer, kind) && !s.measured.is_empty());
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            _ => Err(format!("layer {layer}, {kind}s: expected one measured sensitivity")),
        }
    };
    let mut slots = Vec::with_capacity(2 * layers);
    for layer in 0..layers {
        for kind in Kind::ALL {
            slots.push(find(layer, kind)?);
        }
    }
    let total = 2 * level * layers;
    // best[spent] after the slots so far, and for each slot the level that leads there.
    let mut best = vec![f64::INFINITY; total + 1];
    best[0] = 0.0;
    let mut taken: Vec<Vec<u8>> = Vec::with_capacity(slots.len());
    for slot in &slots {
        let mut next = vec![f64::INFINITY; total + 1];
        let mut levels = vec![0u8; total + 1];
        let chunks = slot.chunks.max(1);
        let least = (*bounds.start()).max(1).next_multiple_of(chunks);
        for level in (least..=(*bounds.end()).min(255)).step_by(chunks) {
            let loss = slot.at(level);
            for spent in level..=total {
                let sum = best[spent - level] + loss;
                if sum < next[spent] {
                    next[spent] = sum;
                    levels[spent] = level as u8;
                }
            }
        }
        best = next;
        taken.push(levels);
    }
    let least = |a: &usize, b: &usize| best[*a].total_cmp(&best[*b]);
    let mut spent = (0..=total).min_by(least).filter(|&spent| best[spent].is_finite()).ok_or_else(|| {
        format!(
            "level {level} is too small: every vector takes at least {} atoms, one or more per chunk",
            bounds.start()
        )
    })?;
    let mut budget = Budget { keys: vec![0; layers], values: vec![0; layers] };
    for (slot, levels) in slots.iter().zip(&taken).rev() {
        let level = usize::from(levels[spent]);
        match slot.kind {
            Kind::Key => budget.keys[slot.layer] = level,
            Kind::Value => budget.values[slot.layer] = level,
        }
        spent -= level;
    }
    Ok(budget)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn slot(layer: usize, kind: Kind, chunks: usize, loss: impl Fn(f64) -> f64) -> Sensitivity {
        let measured = [2, 4, 8, 16].map(|level| (level, loss(level as f64))).to_vec();
        Sensitivity { layer, kind, chunks, measured }
    }

    #[test]
    fn losses_are_met_where_measured_and_lie_between_elsewhere() {
        let s = slot(0, Kind::Key, 1, |level| (-level / 4.0).exp());
        for level in 1..=20 {
            assert!((s.at(level) - (-(level as f64) / 4.0).exp()).abs() < 1e-9, "{level}");
        }
        let one = Sensitivity { measured: vec![(8, 0.5)], ..s.clone() };
        assert_eq!((one.at(2), one.at(30)), (0.5, 0.5));
        let rising = Sensitivity { measured: vec![(4, 0.1), (8, 0.2)], ..s };
        assert_eq!(rising.at(8), rising.at(4));
    }

    /// Tries every split of a small budget.
    #[test]
    fn the_allocation_is_the_best_there_is() {
        let slots = [
            slot(0, Kind::Key, 1, |l| 3.0 * (-l / 3.0).exp()),
            slot(0, Kind::Value, 2, |l| (-l / 6.0).exp()),
            slot(1, Kind::Key, 1, |l| 0.2 * (-l / 2.0).exp()),
            slot(1, Kind::Value, 2, |l| 0.7 / l),
        ];
        for level in [2, 3, 4, 7] {
            let budget = allocate(&slots, level, 1..=12).unwrap();
            budget.check(level, 2).unwrap();
            let loss = |b: &Budget| -> f64 { slots.iter().map(|s| s.at(b.level(s.layer, s.kind).unwrap())).sum() };
            let mut least = f64::INFINITY;
            for a in 1..=12usize {
                for b in (2..=12).step_by(2) {
                    for c in 1..=12 {
                        for d in (2..=12).step_by(2).filter(|d| a + b + c + d <= 4 * level) {
                            least = least.min(loss(&Budget { keys: vec![a, c], values: vec![b, d] }));
                        }
                    }
                }
            }
            assert!((loss(&budget) - least).abs() < 1e-12, "{level}: {budget:?}");
        }
        let bounded = allocate(&slots, 4, 3..=5).unwrap();
        assert!(bounded.keys.iter().chain(&bounded.values).all(|level| (3..=5).contains(level)), "{bounded:?}");
        assert!(bounded.values.iter().all(|level| *level == 4), "a multiple of the chunks: {bounded:?}");
        assert!(allocate(&slots, 2, 3..=5).unwrap_err().contains("at least 3"));
        assert!(allocate(&slots, 1, 1..=12).unwrap_err().contains("too small"));
        assert!(allocate(&slots[..3], 4, 1..=12).unwrap_err().contains("3 sensitivities"));
        assert!(allocate(&[], 4, 1..=12).is_err());
        let twice = [slots[0].clone(), slots[0].clone()];
        assert!(allocate(&twice, 4, 1..=12).unwrap_err().contains("layer 0, keys"));
    }

    #[test]
    fn budgets_that_are_none_are_named() {
        let budget = Budget { keys: vec![8, 12], values: vec![8, 4] };
        assert_eq!(budget.check(8, 2), Ok(()));
        assert!(budget.check(8, 3).unwrap_err().contains("the model has 3"));
        assert!(budget.check(7, 2).unwrap_err().contains("spends 32 atoms"));
        let none = Budget { keys: vec![0, 1], values: vec![1, 1] };
        assert!(none.check(8, 2).unwrap_err().contains("a level of 0"));
    }
}
