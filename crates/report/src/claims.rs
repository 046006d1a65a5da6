//! The paper's claims, each compared with what this run measured: recovery of the far context on the same documents, in pairs.

use kvcsr_records::heldout::{ALL, REPEAT};
use kvcsr_records::{HeldoutRow, SchemeSummary};
use kvcsr_stats::Interval;
use serde::{Deserialize, Serialize};

use crate::evidence::{self, Estimate};
use crate::group::{Group, Statistics};
use crate::grouping::distinct;
use crate::table::Table;

/// A claim of the paper that one scheme is at least as good as another.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// The claim in words.
    pub claim: &'static str,
    /// What the paper reports.
    pub paper: &'static str,
    /// The scheme that should not be worse.
    pub ours: &'static str,
    /// The scheme it is compared with, or `evict` for deletion at the same bits.
    pub other: &'static str,
    /// True if the claim is that ours is better, false if it is that ours is about as good.
    pub better: bool,
}

/// Stands for the rows of deletion with bits near those of the scheme.
const DELETION: &str = "evict";

/// By how much recovery may be lower if a claim says "about as good".
pub const NEAR: f64 = 0.02;

/// The claims that can be tested by comparing schemes on the same documents.
pub const CLAIMS: &[Claim] = &[
    Claim {
        claim: "CSR-8 is about as good as KIVI-2",
        paper: "LongBench 36.93 against 37.17 (Table 1), both counted as 2 bits",
        ours: "csr-8",
        other: "kivi-2",
        better: false,
    },
    Claim {
        claim: "CSR-8 with its online part is about as good as KIVI-2",
        paper: "the same; the paper's method has the online part",
        ours: "csr-8+online",
        other: "kivi-2",
        better: false,
    },
    Claim {
        claim: "CSR-16 is about as good as KIVI-4",
        paper: "LongBench 37.36 against 37.19 (Table 1), both counted as 4 bits",
        ours: "csr-16",
        other: "kivi-4",
        better: false,
    },
    Claim {
        claim: "CSR-16 with its online part is about as good as KIVI-4",
        paper: "the same",
        ours: "csr-16+online",
        other: "kivi-4",
        better: false,
    },
    Claim {
        claim: "CSR-8 is about as good as KIVI-2 where both keep 4 first and 128 last tokens exact",
        paper: "no such window there: ours",
        ours: "csr-8+window",
        other: "kivi-2(window=0)+window",
        better: false,
    },
    Claim {
        claim: "CSR-16 is about as good as KIVI-4 where both keep 4 first and 128 last tokens exact",
        paper: "no such window there: ours",
        ours: "csr-16+window",
        other: "kivi-4(window=0)+window",
        better: false,
    },
    Claim {
        claim: "CSR-16 is about as good as GEAR",
        paper: "LongBench 37.36 against 37.42 (Table 1)",
        ours: "csr-16",
        other: "gear-4",
        better: false,
    },
    Claim {
        claim: "More atoms are better: CSR-8 over CSR-4",
        paper: "LongBench 36.93 against 35.13 (Table 1)",
        ours: "csr-8",
        other: "csr-4",
        better: true,
    },
    Claim {
        claim: "CSR-4 beats deleting the context at equal bits",
        paper: "not compared there",
        ours: "csr-4",
        other: DELETION,
        better: true,
    },
    Claim {
        claim: "The online part helps: CSR-4",
        paper: "Figure 2a and section 3",
        ours: "csr-4+online",
        other: "csr-4",
        better: true,
    },
    Claim {
        claim: "The online part helps: CSR-8",
        paper: "Figure 2a and section 3",
        ours: "csr-8+online",
        other: "csr-8",
        better: true,
    },
    Claim {
        claim: "NeuralDict is better than k-means: CSR-8",
        paper: "section 3.3, without a number",
        ours: "csr-8",
        other: "csr-8@kmeans",
        better: true,
    },
    Claim {
        claim: "NeuralDict is better than k-means: CSR-4",
        paper: "section 3.3, without a number",
        ours: "csr-4",
        other: "csr-4@kmeans",
        better: true,
    },
    Claim {
        claim: "Keys are better coded before position embedding: CSR-8",
        paper: "Figure 2b, without a number",
        ours: "csr-8",
        other: "csr-8+rope@neuraldict-rope",
        better: true,
    },
];

/// A claim and the measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClaimRow {
    /// The claim in words.
    pub claim: String,
    /// What the paper reports.
    pub paper: String,
    /// The scheme that should not be worse.
    pub ours: String,
    /// Its measured bits per channel.
    pub our_bits: Option<f64>,
    /// The scheme it is compared with.
    pub other: String,
    /// Its measured bits per channel.
    pub other_bits: Option<f64>,
    /// Number of tokens of the contexts.
    pub context: usize,
    /// Number of documents on which both were scored.
    pub n: usize,
    /// Recovery of ours minus that of the other, with a paired 95 % interval.
    pub difference: Option<f64>,
    /// Lower end of the interval.
    pub low: Option<f64>,
    /// Upper end of the interval.
    pub high: Option<f64>,
    /// `holds`, `does not hold`, `open` or `not run`.
    pub verdict: String,
}

/// Tests every claim on the first of `runs` that has both schemes. A run is the documents of one stage.
pub fn test(runs: &[&[HeldoutRow]], statistics: Statistics) -> Vec<ClaimRow> {
    CLAIMS.iter().map(|claim| one(claim, runs, statistics)).collect()
}

fn one(claim: &Claim, runs: &[&[HeldoutRow]], statistics: Statistics) -> ClaimRow {
    let mut row = ClaimRow {
        claim: claim.claim.to_owned(),
        paper: claim.paper.to_owned(),
        ours: claim.ours.to_owned(),
        our_bits: None,
        other: claim.other.to_owned(),
        other_bits: None,
        context: 0,
        n: 0,
        difference: None,
        low: None,
        high: None,
        verdict: "not run".to_owned(),
    };
    for rows in runs {
        // Use the longest context, where the cache matters most.
        let Some(context) = rows.iter().map(|row| row.context).max() else { continue };
        let of = |label: &str| -> Vec<&HeldoutRow> {
            let own = |row: &&HeldoutRow| row.context == context && row.domain != REPEAT && row.label() == label;
            rows.iter().filter(own).collect()
        };
        let ours = of(claim.ours);
        if ours.is_empty() {
            continue;
        }
        let ours = Group::new(ALL, &ours);
        let others: Vec<Vec<&HeldoutRow>> = if claim.other == DELETION {
            let labels = distinct(rows.iter().map(HeldoutRow::label).filter(|label| label.starts_with(DELETION)));
            labels.iter().map(|label| of(label)).filter(|rows| !rows.is_empty()).collect()
        } else {
            vec![of(claim.other)]
        };
        if others.iter().all(Vec::is_empty) {
            continue;
        }
        let others: Vec<Group<'_>> = others.iter().map(|rows| Group::new(ALL, rows)).collect();
        let n = ours.strata.iter().map(Vec::len).sum();
        // Deletion is not trained, so the noise is that of our scheme.
        let noise_of = |group: &Group<'_>| statistics.noise * group.lost() / group.hidden();
        let compared = if claim.other == DELETION {
            // Do not extrapolate deletion beyond its rows.
            let least = others.iter().map(Group::bits).fold(f64::INFINITY, f64::min);
            let most = others.iter().map(Group::bits).fold(0.0, f64::max);
            Some((
                evidence::over_deletion(&ours, &others, statistics),
                n,
                ours.bits().clamp(least, most),
                noise_of(&ours),
            ))
        } else {
            let other = &others[0];
            evidence::difference(&ours, other, statistics).map(|(of, n)| (of, n, other.bits(), noise_of(other)))
        };
        let Some((Estimate { value: Some(value), ends }, n, other_bits, noise)) = compared else { continue };
        row.context = context;
        row.n = n;
        (row.our_bits, row.other_bits) = (Some(ours.bits()), Some(other_bits));
        row.difference = Some(value);
        (row.low, row.high) = (ends.map(|ends| ends.low), ends.map(|ends| ends.high));
        row.verdict = verdict(claim, ends, noise).to_owned();
        break;
    }
    row
}

/// The verdict that an interval gives for a claim. A gain within the noise of training does not count.
fn verdict(claim: &Claim, ends: Option<Interval>, noise: f64) -> &'static str {
    let (above, below) = if claim.better { (noise, 0.0) } else { (-NEAR, -NEAR) };
    match ends {
        Some(ends) if ends.low > above => "holds",
        Some(ends) if ends.high < below => "does not hold",
        _ => "open",
    }
}

/// Fractions of the uncompressed task score that the paper reports for CSR levels.
const SHARES: [(&str, f64); 4] = [("csr-4", 0.943), ("csr-6", 0.977), ("csr-8", 0.991), ("csr-16", 1.003)];

/// The table. If tasks were run, the fractions of the task average that CSR keeps follow below it.
pub fn markdown(rows: &[ClaimRow], tasks: &[SchemeSummary]) -> String {
    let mut table = Table::of(
        ["claim", "the paper's number", "schemes (measured bits)", "verdict"],
        ["n", "difference of recovery, 95 %"],
    );
    let bits = |bits: Option<f64>| bits.map_or_else(String::new, |bits| format!(" ({bits:.2})"));
    for row in rows {
        let ends = match (row.difference, row.low, row.high) {
            (Some(value), Some(low), Some(high)) => format!("{value:+.3} ({low:+.3} to {high:+.3})"),
            (Some(value), ..) => format!("{value:+.3}"),
            _ => String::new(),
        };
        let schemes = format!("`{}`{} against `{}`{}", row.ours, bits(row.our_bits), row.other, bits(row.other_bits));
        table.row([row.claim.clone(), row.paper.clone(), schemes, row.verdict.clone(), row.n.to_string(), ends]);
    }
    let mut text = table.into_text();
    let score = |label: &str| {
        tasks
            .iter()
            .find(|row| row.domain == ALL && row.label() == label)
            .and_then(|row| Some((row.task_score?, row.task_n?)))
    };
    let Some((exact, n)) = score("dense").filter(|(exact, _)| *exact > 0.0) else { return text };
    let mut shares =
        Table::of(["level"], ["share of the uncompressed LongBench average, paper", "share of our tasks' average"]);
    let mut any = false;
    for (level, paper) in SHARES {
        if let Some((own, _)) = score(level) {
            any = true;
            shares.row([
                format!("`{level}`"),
                format!("{:.1} %", 100.0 * paper),
                format!("{:.1} %", 100.0 * own / exact),
            ]);
        }
    }
    if any {
        text += &format!(
            "\nThe share of the task average that a level keeps (n = {n} prompts of our suite, which is not LongBench; intervals are in \
             the table of the comparison and are wide):\n\n{}",
            shares.into_text()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kvcsr_records::DictionarySource;
    use kvcsr_stats::Bootstrap;

    use super::*;

    const STATISTICS: Statistics =
        Statistics { bootstrap: Bootstrap { resamples: 2000, level: 0.95, seed: 1 }, noise: 0.0 };

    fn rows(scheme: &str, lost: f64) -> Vec<HeldoutRow> {
        let row = |i: usize| HeldoutRow {
            id: format!("{i}"),
            domain: if i.is_multiple_of(2) { "paper" } else { "play" }.to_owned(),
            scheme: scheme.to_owned(),
            dictionary: DictionarySource::None,
            context: 4096,
            windows: 1,
            scored: 100,
            nll_sum: 100.0,
            kl_sum: lost,
            kl_tail: lost,
            top1_agree: 90,
            far: 10,
            far_kl_sum: lost + 0.01 * (i % 5) as f64,
            hidden_kl_sum: 1.0,
            nominal_bits: 2.0,
            measured_bits: 2.0,
            shared_bytes: 0,
            stored_bytes: 0,
            channels: 100,
            encode_ms: 1.0,
            decode_ms_per_token: None,
        };
        (0..12).map(row).collect()
    }

    #[test]
    fn deletion_is_compared_at_equal_bits() {
        let at = |rows: Vec<HeldoutRow>, bits: f64| -> Vec<HeldoutRow> {
            rows.into_iter().map(|row| HeldoutRow { measured_bits: bits, ..row }).collect()
        };
        let all = [
            rows("csr-4", 0.5),
            at(rows("evict(sinks=4,recent=256)", 0.8), 1.0),
            at(rows("evict(sinks=4,recent=1020)", 0.4), 3.0),
        ];
        let tested = test(&[&all.concat()], STATISTICS);
        let found = tested.iter().find(|row| row.other == DELETION).unwrap();
        // At 2 bits deletion loses 0.6.
        assert!((found.difference.unwrap() - 0.1).abs() < 1e-9, "{found:?}");
        assert_eq!((found.other_bits, found.n, found.verdict.as_str()), (Some(2.0), 12, "holds"));
    }

    #[test]
    fn a_gain_within_the_noise_of_training_is_none() {
        let all = [rows("csr-8", 0.50), rows("csr-4", 0.52)].concat();
        let judged = |noise: f64| {
            let tested = test(&[&all], Statistics { noise, ..STATISTICS });
            tested.iter().find(|row| (&*row.ours, &*row.other) == ("csr-8", "csr-4")).unwrap().verdict.clone()
        };
        assert_eq!((judged(0.0).as_str(), judged(0.05).as_str()), ("holds", "open"));
    }

    #[test]
    fn claims_are_judged_by_their_interval() {
        let all =
            [rows("kivi-2", 0.3), rows("csr-8", 0.5), rows("csr-4", 0.9), rows("gear-4", 0.1), rows("csr-16", 0.105)];
        let tested = test(&[&all.concat()], STATISTICS);
        let of =
            |ours: &str, other: &str| tested.iter().find(|row| (&*row.ours, &*row.other) == (ours, other)).unwrap();
        let lost = of("csr-8", "kivi-2");
        assert_eq!((lost.verdict.as_str(), lost.n), ("does not hold", 12));
        assert!((lost.difference.unwrap() + 0.2).abs() < 1e-9);
        assert_eq!(of("csr-8", "csr-4").verdict, "holds");
        // 0.5 points lower is about as good.
        assert_eq!(of("csr-16", "gear-4").verdict, "holds");
        assert_eq!(of("csr-8", "csr-8@kmeans").verdict, "not run");
        assert_eq!(of("csr-4", DELETION).verdict, "not run");
        let text = markdown(&tested, &[]);
        assert!(text.contains("| does not hold | 12 | -0.200 ("), "{text}");
    }
}
