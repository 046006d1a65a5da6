//! What the measurements show about a scheme compared with deletion and with other schemes.
//!
//! Recovery and differences of recovery are ratios of sums. The denominator `hidden` is the KL at far tokens of the model with
//! the far context hidden. Their intervals are those of the linearised ratio. The term of document `i` is `(d_i - r hidden_i) / H`,
//! with the ratio `r` and the mean `H` of `hidden`. For recovery, `d_i` is `hidden_i - kl_i`. For the difference of two schemes
//! it is `kl_b,i - kl_a,i`, since both read the same documents.

use kvcsr_records::{HeldoutRow, SchemeSummary};
use kvcsr_stats::{Interval, mean_of_means};

use crate::group::{Group, Statistics};

/// Whether this is the scheme that deletes, with any options.
fn deletes(scheme: &str) -> bool {
    is(scheme, "evict")
}

/// Whether a scheme's name is `method`, alone or with options.
fn is(scheme: &str, method: &str) -> bool {
    scheme.strip_prefix(method).is_some_and(|rest| rest.is_empty() || rest.starts_with('('))
}

/// Bits within this factor count as equal.
const EQUAL_BITS: f64 = 1.005;

/// A number and its interval, if they can be computed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Estimate {
    pub value: Option<f64>,
    pub ends: Option<Interval>,
}

/// The ratio of the gain to `hidden`. `gains` has for each domain the pairs (gain, hidden) of its documents.
fn share_of_hidden(gains: &[Vec<(f64, f64)>], statistics: Statistics) -> Estimate {
    let values = |of: &dyn Fn(&(f64, f64)) -> f64| -> Vec<Vec<f64>> {
        gains.iter().map(|documents| documents.iter().map(of).collect()).collect()
    };
    let hidden = mean_of_means(&values(&|&(_, hidden)| hidden));
    if hidden.is_nan() || hidden <= 0.0 {
        return Estimate::default();
    }
    let share = mean_of_means(&values(&|&(gain, _)| gain)) / hidden;
    let residuals = values(&|&(gain, own)| (gain - share * own) / hidden);
    let around = |i: Interval| Interval { difference: share, low: share + i.low, high: share + i.high };
    Estimate { value: Some(share), ends: statistics.bootstrap.interval(&residuals).map(around) }
}

/// Far-context recovery.
pub(crate) fn recovery(group: &Group<'_>, statistics: Statistics) -> Estimate {
    let gain = |row: &&HeldoutRow| (row.hidden_kl_sum - row.far_kl_sum, row.hidden_kl_sum);
    let gains: Vec<Vec<_>> = group.strata.iter().map(|rows| rows.iter().map(gain).collect()).collect();
    share_of_hidden(&gains, statistics)
}

/// Recovery of `group` minus that of `other`, and the number of documents on which both were scored. None if `other` does not
/// have one of the documents.
pub(crate) fn difference(group: &Group<'_>, other: &Group<'_>, statistics: Statistics) -> Option<(Estimate, usize)> {
    let pairs = group.paired(other)?;
    let gain = |(own, other): &(&HeldoutRow, &HeldoutRow)| (other.far_kl_sum - own.far_kl_sum, own.hidden_kl_sum);
    let gains: Vec<Vec<_>> = pairs.iter().map(|pairs| pairs.iter().map(gain).collect()).collect();
    Some((share_of_hidden(&gains, statistics), gains.iter().map(Vec::len).sum()))
}

/// Recovery minus that of deletion at equal measured bits, interpolated between the two nearest rows of deletion. A scheme with
/// fewer bits than all of these rows is compared with the smallest row, and one with more bits with the largest. There is no
/// estimate for deletion itself and for uncompressed caches.
pub(crate) fn over_deletion(group: &Group<'_>, all: &[Group<'_>], statistics: Statistics) -> Estimate {
    let own = group.bits();
    let mut controls: Vec<&Group<'_>> = all.iter().filter(|other| deletes(&other.first.scheme)).collect();
    controls.sort_by(|a, b| a.bits().total_cmp(&b.bits()));
    if controls.is_empty() || deletes(&group.first.scheme) || keeps_everything(&group.first.scheme) {
        return Estimate::default();
    }
    let last = controls.len() - 1;
    let (low, high) = match controls.iter().position(|control| control.bits() >= own) {
        Some(above) => (controls[above.saturating_sub(1)], controls[above]),
        None => (controls[last], controls[last]),
    };
    let share = match high.bits() - low.bits() {
        apart if apart > 0.0 => (own - low.bits()) / apart,
        _ => 1.0,
    };
    let (Some(below), Some(above)) = (group.paired(low), group.paired(high)) else { return Estimate::default() };
    let gains: Vec<Vec<_>> = below
        .iter()
        .zip(&above)
        .map(|(below, above)| {
            let deleted = |((own, below), (_, above)): (&(&HeldoutRow, &HeldoutRow), &(&HeldoutRow, &HeldoutRow))| {
                let lost = (1.0 - share) * below.far_kl_sum + share * above.far_kl_sum;
                (lost - own.far_kl_sum, own.hidden_kl_sum)
            };
            below.iter().zip(above).map(deleted).collect()
        })
        .collect();
    share_of_hidden(&gains, statistics)
}

/// True if no scheme with at most as many measured bits recovers significantly more. Significant means: by the paired
/// interval, and by more than the noise of training.
pub(crate) fn on_frontier(group: &Group<'_>, all: &[Group<'_>], statistics: Statistics) -> bool {
    let own_loss = group.lost();
    let beats = |other: &Group<'_>| {
        let ends = difference(other, group, statistics).and_then(|(difference, _)| difference.ends);
        ends.is_some_and(|ends| ends.low > statistics.noise * own_loss / group.hidden())
    };
    let could = |other: &Group<'_>| other.bits() <= EQUAL_BITS * group.bits() && other.lost() < own_loss;
    !all.iter().any(|other| could(other) && beats(other))
}

/// Whether a scheme is a control: it deletes tokens and does not encode any.
pub fn is_control(row: &SchemeSummary) -> bool {
    deletes(&row.scheme) || is(&row.scheme, "snapkv")
}

/// Whether a scheme is not shown to be better than deletion at equal measured bits. The paired interval then includes 0 or
/// lower values, or there are too few documents for an interval.
pub fn not_shown_better_than_deletion(row: &SchemeSummary) -> bool {
    row.over_deletion.is_some() && row.over_deletion_low.is_none_or(|low| low <= 0.0)
}

/// Whether a cache is uncompressed. Such a cache is not compared with those that compress.
pub fn is_reference(row: &SchemeSummary) -> bool {
    keeps_everything(&row.scheme)
}

fn keeps_everything(scheme: &str) -> bool {
    scheme.starts_with("dense")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kvcsr_records::DictionarySource;
    use kvcsr_stats::Bootstrap;

    use super::*;
    use crate::aggregate::summarise;

    const STATISTICS: Statistics =
        Statistics { bootstrap: Bootstrap { resamples: 500, level: 0.95, seed: 3 }, noise: 0.0 };

    /// Twelve documents in two domains. A scheme loses about the fraction `share` of their far context.
    fn rows(scheme: &str, measured_bits: f64, share: impl Fn(f64) -> f64) -> Vec<HeldoutRow> {
        let of = |i: usize| {
            let hidden = 20.0 + (i * 5 % 7) as f64;
            HeldoutRow {
                id: i.to_string(),
                domain: ["play", "source"][i % 2].to_owned(),
                scheme: scheme.to_owned(),
                dictionary: DictionarySource::None,
                context: 1000,
                windows: 1,
                scored: 500,
                nll_sum: 900.0,
                kl_sum: 30.0,
                kl_tail: 2.0,
                top1_agree: 400,
                far: 40,
                far_kl_sum: share(i as f64) * hidden,
                hidden_kl_sum: hidden,
                nominal_bits: 2.0,
                measured_bits,
                shared_bytes: 0,
                stored_bytes: 0,
                channels: 10,
                encode_ms: 1.0,
                decode_ms_per_token: None,
            }
        };
        (0..12).map(of).collect()
    }

    fn all(rows: &[HeldoutRow], statistics: Statistics) -> Vec<SchemeSummary> {
        summarise(rows, statistics).unwrap().into_iter().filter(|row| row.domain == "all").collect()
    }

    #[test]
    fn deletion_is_known_with_and_without_options() {
        for (scheme, control) in
            [("evict", true), ("evict(sinks=4,recent=8)", true), ("snapkv", true), ("snapkv(w=1)", true)]
                .into_iter()
                .chain([("evicted", false), ("csr-8", false), ("dense", false)])
        {
            let of = all(&[rows(scheme, 1.0, |_| 1.0)].concat(), STATISTICS);
            assert_eq!(is_control(&of[0]), control, "{scheme}");
        }
    }

    #[test]
    fn deletion_recovers_nothing_and_intervals_hold_the_ratio() {
        let wobble = |i: f64| 0.3 + 0.02 * (i % 3.0 - 1.0);
        let found =
            all(&[rows("evict(sinks=4,recent=256)", 1.0, |_| 1.0), rows("a-2", 2.0, wobble)].concat(), STATISTICS);
        assert_eq!((found[0].recovery, found[0].over_deletion), (Some(0.0), None));
        let a = &found[1];
        let (low, value, high) = (a.recovery_low.unwrap(), a.recovery.unwrap(), a.recovery_high.unwrap());
        assert!(low < value && value < high && (value - 0.7).abs() < 0.02 && high - low < 0.1, "{low} {value} {high}");
        assert!((a.loss().unwrap() + value - 1.0).abs() < 1e-12);
    }

    #[test]
    fn deletion_at_equal_bits_lies_between_its_rows() {
        let rows = [
            rows("evict(sinks=4,recent=100)", 1.0, |_| 1.0),
            rows("evict(sinks=4,recent=300)", 3.0, |i| 0.6 + 0.01 * (i % 2.0)),
            rows("better", 2.0, |i| 0.5 + 0.01 * (i % 3.0)),
            rows("worse", 2.0, |i| 0.9 + 0.01 * (i % 3.0)),
            rows("tiny", 0.5, |i| 0.9 + 0.01 * (i % 3.0)),
            rows("large", 9.0, |_| 0.0),
            rows("large, bad", 9.0, |_| 4.0),
            rows("dense", 32.0, |_| 0.0),
        ]
        .concat();
        let found = all(&rows, STATISTICS);
        let of = |name: &str| found.iter().find(|row| row.scheme == name).unwrap();
        // At 2 bits deletion loses about 0.8.
        assert!((of("better").over_deletion.unwrap() - 0.3).abs() < 0.02, "{:?}", of("better").over_deletion);
        assert!(!not_shown_better_than_deletion(of("better")) && not_shown_better_than_deletion(of("worse")));
        assert!((of("tiny").over_deletion.unwrap() - 0.09).abs() < 0.02);
        // It has more bits than any deletion, so it is compared with the largest.
        assert!((of("large").over_deletion.unwrap() - 0.605).abs() < 0.01);
        assert!(!not_shown_better_than_deletion(of("large")) && not_shown_better_than_deletion(of("large, bad")));
        assert_eq!(of("dense").over_deletion, None);
    }

    #[test]
    fn against_what_is_hidden_alone_a_difference_is_recovery_itself() {
        let rows = [rows("evict(sinks=4,recent=256)", 1.0, |_| 1.0), rows("a-2", 1.0, |i| 0.3 + 0.1 * (i % 3.0))];
        let found = all(&rows.concat(), STATISTICS);
        let a = found.iter().find(|row| row.scheme == "a-2").unwrap();
        let close = |x: Option<f64>, y: Option<f64>| (x.unwrap() - y.unwrap()).abs() < 1e-12;
        assert!(close(a.recovery, a.over_deletion), "{a:?}");
        assert!(close(a.recovery_low, a.over_deletion_low) && close(a.recovery_high, a.over_deletion_high), "{a:?}");
    }

    #[test]
    fn losses_that_go_with_what_is_hidden_are_told_apart_however_documents_differ() {
        // Each document loses the same fraction of its 20 to 26 nats.
        let found = all(&[rows("a", 2.0, |_| 0.5), rows("b", 2.0, |_| 0.501)].concat(), STATISTICS);
        let frontier: Vec<&str> = found.iter().filter(|row| row.frontier).map(|row| row.scheme.as_str()).collect();
        assert_eq!(frontier, ["a"]);
    }

    #[test]
    fn the_frontier_is_what_no_other_beats_beyond_doubt() {
        let rows = [
            rows("a", 2.0, |i| 0.50 + 0.01 * (i % 3.0)),
            rows("as good", 2.0, |i| 0.50 + 0.01 * ((i + 1.0) % 3.0)),
            rows("more bits", 3.0, |i| 0.52 + 0.01 * (i % 3.0)),
            rows("best", 4.0, |i| 0.1 + 0.01 * (i % 3.0)),
        ]
        .concat();
        let frontier = |statistics| -> Vec<String> {
            let found = all(&rows, statistics);
            found.into_iter().filter(|row| row.frontier).map(|row| row.scheme).collect()
        };
        assert_eq!(frontier(STATISTICS), ["a", "as good", "best"]);
        // A difference that training with another seed can cause does not count.
        assert_eq!(frontier(Statistics { noise: 0.05, ..STATISTICS }), ["a", "as good", "more bits", "best"]);
    }
}
