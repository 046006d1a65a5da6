//! Estimates what each layer's keys and values cost when all of them are coded, from weighings that vary all of them at once.
//!
//! A slot is one layer's keys or values. Every weighing of the design restores each slot at one of two levels. A column of a
//! Sylvester-Hadamard matrix says which: every slot is at the low level in half of the weighings. In this weighing design, the
//! effect of every slot is estimated from all weighings, not only from two. If one slot varied at a time, its effect would be lost
//! in the noise of the others; and if the others were exact, their influence on it would be missed. Every second text is weighed
//! with the opposite of every row. A Hadamard design cannot tell the product of two slots' effects from the effect of a third
//! slot; with the opposite rows these products cancel.

use kvcsr_cache::Sensitivity;
use kvcsr_codec::Kind;

/// Number of weighings for `slots` slots: a power of two, so that every slot has a column of its own and none has the constant one.
pub fn weighings(slots: usize) -> usize {
    (slots + 1).next_power_of_two()
}

/// Whether `slot` is restored at the high level in `weighing` of the text numbered `text`.
pub fn is_high(text: usize, weighing: usize, slot: usize) -> bool {
    let even = (weighing & (slot + 1)).count_ones().is_multiple_of(2);
    even == text.is_multiple_of(2)
}

/// One layer's keys or values, with its squared error by level, relative to the spread of its vectors around their mean.
pub struct Slot {
    pub layer: usize,
    pub kind: Kind,
    /// Levels are multiples of this.
    pub chunks: usize,
    /// Level and relative squared error, the levels in rising order.
    pub errors: Vec<(usize, f64)>,
}

impl Slot {
    /// Its relative error at one of its levels.
    pub fn error(&self, level: usize) -> f64 {
        self.errors.iter().find(|(l, _)| *l == level).map_or(f64::NAN, |(_, e)| *e)
    }
}

/// A slot's cost, with the measurements behind it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Fall of KL from the low level to the high one, in nats per token: the mean of the texts.
    pub fall: f64,
    /// Its standard error, pooled over all slots.
    pub standard_error: f64,
    /// Nats per token and unit of error (the relative squared error raised to the power), as measured.
    pub raw: f64,
    /// The same, shrunk towards the mean of its kind by the share of the difference that noise explains.
    pub per_error: f64,
}

/// The cost of every slot from `kl[text][weighing]`, mean KL per token.
///
/// The model of KL is the sum over slots of a cost times the slot's relative squared error raised to the `power`. Texts count
/// equally, whatever their KL: each is scaled to the mean of all. Costs of a kind are shrunk towards their mean by empirical Bayes
/// (DerSimonian and Laird's moment estimate of how much they truly differ), and are at least a tenth of it.
pub fn costs(slots: &[Slot], kl: &[Vec<f64>], [low, high]: [usize; 2], power: f64) -> Vec<Cost> {
    let texts = kl.len();
    let of_text: Vec<f64> = kl.iter().map(|kl| kl.iter().sum::<f64>() / kl.len() as f64).collect();
    let overall = of_text.iter().sum::<f64>() / texts as f64;
    let scales: Vec<f64> = of_text.iter().map(|mean| if *mean > 0.0 { overall / mean } else { 1.0 }).collect();
    let falls: Vec<Vec<f64>> = (0..slots.len())
        .map(|slot| {
            kl.iter().zip(&scales).enumerate().map(|(text, (kl, scale))| scale * fall(text, kl, slot)).collect()
        })
        .collect();
    let means: Vec<f64> = falls.iter().map(|falls| falls.iter().sum::<f64>() / texts as f64).collect();
    let squares: f64 =
        falls.iter().zip(&means).map(|(f, mean)| f.iter().map(|x| (x - mean).powi(2)).sum::<f64>()).sum();
    let freedom = (slots.len() * texts.saturating_sub(1)).max(1);
    let variance = squares / freedom as f64 / texts as f64;
    let gap = |slot: &Slot| (slot.error(low).powf(power) - slot.error(high).powf(power)).max(1e-9);
    let mut costs: Vec<Cost> = slots
        .iter()
        .zip(&means)
        .map(|(slot, &fall)| {
            let raw = fall / gap(slot);
            Cost { fall, standard_error: variance.sqrt(), raw, per_error: raw }
        })
        .collect();
    for kind in Kind::ALL {
        let of_kind: Vec<usize> = (0..slots.len()).filter(|&i| slots[i].kind == kind).collect();
        let weights: Vec<f64> = of_kind.iter().map(|&i| gap(&slots[i]).powi(2) / variance.max(1e-18)).collect();
        let raw: Vec<f64> = of_kind.iter().map(|&i| costs[i].raw).collect();
        for (&i, shrunk) in of_kind.iter().zip(shrink(&raw, &weights)) {
            costs[i].per_error = shrunk;
        }
    }
    costs
}

/// The fall of KL from low to high of one slot on one text.
fn fall(text: usize, kl: &[f64], slot: usize) -> f64 {
    let signed = |(weighing, kl): (usize, &f64)| if is_high(text, weighing, slot) { -kl } else { *kl };
    2.0 * kl.iter().enumerate().map(signed).sum::<f64>() / kl.len() as f64
}

/// `values` with precisions `weights`, shrunk towards their weighted mean.
fn shrink(values: &[f64], weights: &[f64]) -> Vec<f64> {
    let total: f64 = weights.iter().sum();
    let mean = values.iter().zip(weights).map(|(x, w)| x * w).sum::<f64>() / total;
    let spread: f64 = values.iter().zip(weights).map(|(x, w)| w * (x - mean).powi(2)).sum();
    let scale = total - weights.iter().map(|w| w * w).sum::<f64>() / total;
    let between = ((spread - (values.len() as f64 - 1.0)) / scale.max(f64::MIN_POSITIVE)).max(0.0);
    let least = 0.1 * mean.max(1e-9);
    let drawn = |(x, w): (&f64, &f64)| (mean + between / (between + 1.0 / w) * (x - mean)).max(least);
    values.iter().zip(weights).map(drawn).collect()
}

/// The losses that the allocator compares: cost times error raised to the power.
pub fn sensitivities(slots: &[Slot], costs: &[Cost], power: f64) -> Vec<Sensitivity> {
    let sensitivity = |(slot, cost): (&Slot, &Cost)| {
        let measured = slot.errors.iter().map(|&(level, error)| (level, cost.per_error * error.powf(power))).collect();
        Sensitivity { layer: slot.layer, kind: slot.kind, chunks: slot.chunks, measured }
    };
    slots.iter().zip(costs).map(sensitivity).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn slots(n: usize) -> Vec<Slot> {
        let slot = |i: usize| Slot {
            layer: i / 2,
            kind: Kind::ALL[i % 2],
            chunks: 1 + i % 2,
            errors: [2, 4, 8, 12].map(|level| (level, (-(level as f64) / (4.0 + i as f64)).exp())).to_vec(),
        };
        (0..n).map(slot).collect()
    }

    /// KL of every weighing, if it were `costs x errors` plus products of neighbours' errors.
    fn simulated(slots: &[Slot], true_costs: &[f64], texts: usize, product: f64, noise: f64) -> Vec<Vec<f64>> {
        let mut state = 7u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / f64::from(1u32 << 31) - 0.5
        };
        let mut weigh = |text: usize, weighing: usize| {
            let errors: Vec<f64> = slots
                .iter()
                .enumerate()
                .map(|(i, s)| s.error(if is_high(text, weighing, i) { 12 } else { 4 }))
                .collect();
            let sum: f64 = errors.iter().zip(true_costs).map(|(e, c)| e * c).sum();
            sum + product * errors.windows(2).map(|e| e[0] * e[1]).sum::<f64>() + noise * random()
        };
        (0..texts).map(|text| (0..weighings(slots.len())).map(|w| weigh(text, w)).collect()).collect()
    }

    #[test]
    fn every_slot_is_high_in_half_of_the_weighings_and_no_two_agree() {
        for n in [1, 2, 3, 7, 8, 120] {
            let all = weighings(n);
            assert!(all > n && all <= 2 * n.max(1) + 1, "{n}");
            for text in [0, 1] {
                for a in 0..n {
                    assert_eq!((0..all).filter(|&r| is_high(text, r, a)).count(), all / 2);
                    for b in 0..a {
                        let agree = (0..all).filter(|&r| is_high(text, r, a) == is_high(text, r, b)).count();
                        assert_eq!(agree, all / 2, "{a} {b}");
                    }
                }
            }
        }
        assert!(is_high(0, 5, 3) != is_high(1, 5, 3));
    }

    #[test]
    fn costs_are_found_exactly_without_noise() {
        let slots = slots(12);
        let true_costs: Vec<f64> = (0..12).map(|i| 0.01 * (1.0 + (i * 5 % 7) as f64)).collect();
        let costs = costs(&slots, &simulated(&slots, &true_costs, 2, 0.0, 0.0), [4, 12], 1.0);
        for (cost, truth) in costs.iter().zip(&true_costs) {
            assert!((cost.raw - truth).abs() < 1e-9 && (cost.per_error - truth).abs() < 1e-6, "{cost:?} {truth}");
        }
    }

    #[test]
    fn opposite_texts_cancel_the_products_of_others() {
        let slots = slots(7);
        let true_costs = [0.05; 7];
        let kl = simulated(&slots, &true_costs, 2, 0.03, 0.0);
        let off = |kl: &[Vec<f64>]| -> f64 {
            // A slot's own products with its neighbours' means belong to its cost here; the first and last have one neighbour.
            costs(&slots, kl, [4, 12], 1.0).iter().map(|c| c.raw).fold(0.0, |worst: f64, c| worst.max((c - 0.05).abs()))
        };
        assert!(off(&kl) < 0.035, "{}", off(&kl));
        let mean = |i: usize| (slots[i].error(4) + slots[i].error(12)) / 2.0;
        let expected = |i: usize| {
            0.05 + 0.03 * (i.checked_sub(1).map_or(0.0, mean) + if i + 1 < slots.len() { mean(i + 1) } else { 0.0 })
        };
        for (i, cost) in costs(&slots, &kl, [4, 12], 1.0).iter().enumerate() {
            assert!((cost.raw - expected(i)).abs() < 1e-9, "{i}: {cost:?}");
        }
    }

    #[test]
    fn noise_draws_costs_to_their_mean_and_none_falls_below_a_tenth_of_it() {
        let slots = slots(20);
        let kl = simulated(&slots, &[0.02; 20], 4, 0.0, 0.2);
        let costs = costs(&slots, &kl, [4, 12], 1.0);
        let spread = |f: fn(&Cost) -> f64| {
            let keys: Vec<f64> = costs.iter().step_by(2).map(f).collect();
            keys.iter().copied().fold(f64::MIN, f64::max) - keys.iter().copied().fold(f64::MAX, f64::min)
        };
        assert!(spread(|c| c.per_error) < 0.6 * spread(|c| c.raw), "{costs:?}");
        assert!(costs.iter().all(|c| c.per_error > 0.0 && c.standard_error > 0.0));
    }

    /// A text ten times as hard has ten times the noise, too.
    #[test]
    fn texts_count_alike_whatever_their_kl() {
        let slots = slots(6);
        let kl = simulated(&slots, &[0.02, 0.01, 0.03, 0.02, 0.05, 0.01], 2, 0.0, 0.0);
        let harder: Vec<Vec<f64>> = kl
            .iter()
            .enumerate()
            .map(|(t, kl)| kl.iter().map(|x| if t == 1 { 10.0 * x } else { *x }).collect())
            .collect();
        for (a, b) in costs(&slots, &kl, [4, 12], 1.0).iter().zip(costs(&slots, &harder, [4, 12], 1.0)) {
            assert!((5.5 * a.raw - b.raw).abs() < 1e-9, "{a:?} {b:?}");
        }
    }

    #[test]
    fn a_higher_power_makes_low_levels_dearer() {
        let slots = slots(4);
        let kl = simulated(&slots, &[0.02; 4], 2, 0.0, 0.0);
        let ratio = |power: f64| {
            let losses = &sensitivities(&slots, &costs(&slots, &kl, [4, 12], power), power)[0].measured;
            let at = |level: usize| losses.iter().find(|(l, _)| *l == level).unwrap().1;
            assert!(
                (at(4) - at(12) - 0.02 * (slots[0].error(4) - slots[0].error(12))).abs() < 1e-9,
                "what was measured"
            );
            (at(2) - at(4)) / (at(4) - at(12))
        };
        assert!(ratio(2.0) > 1.2 * ratio(1.0));
    }
}
