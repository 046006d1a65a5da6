//! What may be said of a scheme against deletion, and against the others.
//!
//! Recovery is a ratio of sums, so its interval is that of the linearised ratio: of document `i`, `(kl_i - r hidden_i) / H` with the
//! ratio `r` and the mean `H` of what is hidden. Differences of recovery are `(kl_a,i - kl_b,i) / H`: both schemes read the same
//! documents.

use kvcsr_records::{HeldoutRow, SchemeSummary};
use kvcsr_stats::{Interval, mean_of_means};

use crate::group::{Group, Statistics};

/// Whether this is the scheme that deletes, with whatever options.
fn deletes(scheme: &str) -> bool {
    is(scheme, "evict")
}

/// Whether a scheme's name is `method`, alone or with options.
fn is(scheme: &str, method: &str) -> bool {
    scheme.strip_prefix(method).is_some_and(|rest| rest.is_empty() || rest.starts_with('('))
}

/// Bits that count as equal, as a share.
const EQUAL_BITS: f64 = 1.005;

/// A number and its interval, where either can be had.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Estimate {
    pub value: Option<f64>,
    pub ends: Option<Interval>,
}

/// Far-context recovery.
pub(crate) fn recovery(group: &Group<'_>, statistics: Statistics) -> Estimate {
    let hidden = group.hidden();
    if hidden <= 0.0 {
        return Estimate::default();
    }
    let ratio = group.lost() / hidden;
    let residuals = group.values(|row| (ratio * row.hidden_kl_sum - row.far_kl_sum) / hidden);
    let around =
        |i: Interval| Interval { difference: 1.0 - ratio, low: 1.0 - ratio + i.low, high: 1.0 - ratio + i.high };
    Estimate { value: Some(1.0 - ratio), ends: statistics.bootstrap.interval(&residuals).map(around) }
}

/// Recovery less that of deletion at equal measured bits, between the two nearest rows of deletion. What has fewer bits than all of
/// these is held against the smallest of them. Nothing for deletion itself, and above the most bits that deletion was run with.
pub(crate) fn over_deletion(group: &Group<'_>, all: &[Group<'_>], statistics: Statistics) -> Estimate {
    let (own, hidden) = (group.bits(), group.hidden());
    let mut controls: Vec<&Group<'_>> = all.iter().filter(|other| deletes(&other.first.scheme)).collect();
    controls.sort_by(|a, b| a.bits().total_cmp(&b.bits()));
    let above = controls.iter().position(|control| control.bits() >= own);
    let (Some(above), false) = (above, deletes(&group.first.scheme)) else { return Estimate::default() };
    let (low, high) = (controls[above.saturating_sub(1)], controls[above]);
    let share = match high.bits() - low.bits() {
        apart if apart > 0.0 => (own - low.bits()) / apart,
        _ => 1.0,
    };
    let (Some(below), Some(above)) = (group.paired(low), group.paired(high)) else { return Estimate::default() };
    if hidden <= 0.0 {
        return Estimate::default();
    }
    let differences: Vec<Vec<f64>> = below
        .iter()
        .zip(&above)
        .map(|(below, above)| {
            let deleted = |((own, below), (_, above)): (&(&HeldoutRow, &HeldoutRow), &(&HeldoutRow, &HeldoutRow))| {
                ((1.0 - share) * below.far_kl_sum + share * above.far_kl_sum - own.far_kl_sum) / hidden
            };
            below.iter().zip(above).map(deleted).collect()
        })
        .collect();
    Estimate { value: Some(mean_of_means(&differences)), ends: statistics.bootstrap.interval(&differences) }
}

/// Whether no scheme of at most as many measured bits recovers more beyond doubt: by the paired interval, and by more than the noise
/// of training.
pub(crate) fn on_frontier(group: &Group<'_>, all: &[Group<'_>], statistics: Statistics) -> bool {
    let own_loss = group.lost();
    let beats = |other: &Group<'_>| {
        let differences = group.differences(other, |own, other| own.far_kl_sum - other.far_kl_sum);
        let interval = differences.and_then(|differences| statistics.bootstrap.interval(&differences));
        interval.is_some_and(|interval| interval.low > statistics.noise * own_loss)
    };
    let could = |other: &Group<'_>| other.bits() <= EQUAL_BITS * group.bits() && other.lost() < own_loss;
    !all.iter().any(|other| could(other) && beats(other))
}

/// Whether a scheme is a control: it deletes, and codes nothing.
pub fn is_control(row: &SchemeSummary) -> bool {
    deletes(&row.scheme) || is(&row.scheme, "snapkv")
}

/// Whether a scheme is not shown to do better than deletion at equal measured bits: the paired interval reaches 0 or below.
pub fn not_shown_better_than_deletion(row: &SchemeSummary) -> bool {
    row.over_deletion_low.is_some_and(|low| low <= 0.0)
}

/// Whether a cache keeps everything: it has no place among those that compress.
pub fn is_reference(row: &SchemeSummary) -> bool {
    row.scheme.starts_with("dense")
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

    /// Twelve documents in two domains, of which a scheme loses `share` of the far context, give or take.
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
        ]
        .concat();
        let found = all(&rows, STATISTICS);
        let of = |name: &str| found.iter().find(|row| row.scheme == name).unwrap();
        // At 2 bits deletion loses about 0.8.
        assert!((of("better").over_deletion.unwrap() - 0.3).abs() < 0.02, "{:?}", of("better").over_deletion);
        assert!(!not_shown_better_than_deletion(of("better")) && not_shown_better_than_deletion(of("worse")));
        assert!((of("tiny").over_deletion.unwrap() - 0.09).abs() < 0.02);
        assert_eq!(of("large").over_deletion, None);
        assert!(!not_shown_better_than_deletion(of("large")));
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
        // What training with another seed changes counts as no difference.
        assert_eq!(frontier(Statistics { noise: 0.05, ..STATISTICS }), ["a", "as good", "more bits", "best"]);
    }
}
