//! Tables of a sweep: scores at every point, and how much they vary.

use crate::{grouping::distinct, records::SweepRow, table::Table};

/// Scores of every scheme at every point.
pub fn scores_markdown(rows: &[SweepRow]) -> String {
    let numbers = [
        "nominal bits",
        "measured bits",
        "shared bytes",
        "perplexity",
        "KL (nats)",
        "far-context recovery",
        "top-1 agreement (%)",
    ];
    let mut table = Table::of(["point", "scheme"], numbers);
    for r in rows {
        table.row([
            r.point.clone(),
            r.scheme.clone(),
            format!("{:.2}", r.nominal_bits),
            format!("{:.2}", r.measured_bits),
            r.shared_bytes.to_string(),
            format!("{:.2}", r.perplexity),
            format!("{:.4}", r.kl),
            r.recovery.map_or_else(String::new, |recovery| format!("{recovery:.3}")),
            format!("{:.1}", r.top1_percent),
        ]);
    }
    table.into_text()
}

/// How much a scheme's scores vary over the points, relative to their mean: the KL, and `1 - recovery`. If the points are seeds of
/// training, this is the noise of training. None for a single point, and for schemes that lose nothing.
pub fn spread_markdown(rows: &[SweepRow]) -> Option<String> {
    let numbers = ["points", "KL, least", "KL, most", "apart (% of mean)", "1 - recovery, mean", "apart (% of mean)"];
    let mut table = Table::of(["scheme"], numbers);
    let mut any = false;
    for scheme in distinct(rows.iter().map(|row| row.scheme.as_str())) {
        let of_scheme = || rows.iter().filter(|row| row.scheme == scheme);
        let Some(kl) = Spread::of(of_scheme().map(|row| Some(row.kl))) else { continue };
        let lost = Spread::of(of_scheme().map(|row| row.recovery.map(|recovery| 1.0 - recovery)));
        let share = |spread: &Spread| format!("{:.1}", spread.percent());
        table.row([
            scheme.to_owned(),
            of_scheme().count().to_string(),
            format!("{:.4}", kl.least),
            format!("{:.4}", kl.most),
            share(&kl),
            lost.as_ref().map_or_else(String::new, |lost| format!("{:.4}", lost.mean)),
            lost.as_ref().map_or_else(String::new, share),
        ]);
        any = true;
    }
    any.then(|| table.into_text())
}

/// Several values of one quantity. Their mean is above 0.
struct Spread {
    least: f64,
    most: f64,
    mean: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = Option<f64>>) -> Option<Self> {
        let values: Vec<f64> = values.collect::<Option<_>>()?;
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let [least, most] = [f64::min, f64::max].map(|pick| values.iter().copied().fold(mean, pick));
        (values.len() > 1 && mean > 0.0).then_some(Self { least, most, mean })
    }

    fn percent(&self) -> f64 {
        100.0 * (self.most - self.least) / self.mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(point: &str, scheme: &str, kl: f64, recovery: Option<f64>) -> SweepRow {
        SweepRow {
            point: point.to_owned(),
            scheme: scheme.to_owned(),
            nominal_bits: 4.0,
            measured_bits: 4.03,
            shared_bytes: 100,
            perplexity: 10.0,
            kl,
            recovery,
            top1_percent: 90.0,
        }
    }

    #[test]
    fn the_spread_is_of_lossy_schemes_at_several_points() {
        let rows = [
            row("train.seed = 1", "dense", 0.0, Some(1.0)),
            row("train.seed = 1", "csr-8", 0.3, Some(0.5)),
            row("train.seed = 2", "dense", 0.0, Some(1.0)),
            row("train.seed = 2", "csr-8", 0.5, Some(0.3)),
        ];
        let spread = spread_markdown(&rows).unwrap_or_default();
        assert!(spread.ends_with("| csr-8 | 2 | 0.3000 | 0.5000 | 50.0 | 0.6000 | 33.3 |\n"), "{spread}");
        assert!(!spread.contains("dense"));
        assert_eq!(spread_markdown(&rows[..2]), None, "one point has no spread");
        assert_eq!(scores_markdown(&rows).lines().count(), 2 + 4);
        let unknown = [row("a", "csr-8", 0.3, None), row("b", "csr-8", 0.3, Some(0.1))];
        assert!(spread_markdown(&unknown).is_some_and(|text| text.ends_with("| 0.0 |  |  |\n")));
    }
}
