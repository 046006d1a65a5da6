//! The documents of one scheme at one context, and the statistics that decide whether schemes differ.

use std::collections::HashMap;

use kvcsr_records::HeldoutRow;
use kvcsr_stats::{Bootstrap, mean_of_means};

use crate::grouping::grouped;

/// The settings that decide whether schemes differ.
#[derive(Debug, Clone, Copy)]
pub struct Statistics {
    /// Number of draws, level and seed of all intervals.
    pub bootstrap: Bootstrap,
    /// Fraction of a scheme's loss that may change if training uses another seed. A smaller difference does not count.
    pub noise: f64,
}

impl Statistics {
    /// No intervals, for means only.
    pub const MEANS: Self = Self { bootstrap: Bootstrap { resamples: 0, level: 0.95, seed: 0 }, noise: 0.0 };
}

/// One scheme's documents at one context, in strata. Each domain is one stratum.
pub(crate) struct Group<'r> {
    /// One of the rows. All rows agree in the fields that identify the scheme.
    pub first: &'r HeldoutRow,
    /// The domain, or [`ALL`](kvcsr_records::heldout::ALL).
    pub domain: &'r str,
    /// The documents, by domain.
    pub strata: Vec<Vec<&'r HeldoutRow>>,
}

impl<'r> Group<'r> {
    /// The rows of one scheme in a domain. There must be at least one.
    pub fn new(domain: &'r str, rows: &[&'r HeldoutRow]) -> Self {
        let strata = grouped(rows.iter().copied(), |row| row.domain.as_str());
        Self { first: rows[0], domain, strata: strata.into_iter().map(|(_, rows)| rows).collect() }
    }

    /// A number for each document, by domain.
    pub fn values(&self, of: impl Fn(&HeldoutRow) -> f64) -> Vec<Vec<f64>> {
        self.strata.iter().map(|rows| rows.iter().map(|row| of(row)).collect()).collect()
    }

    /// The mean over domains of the means over documents.
    pub fn mean(&self, of: impl Fn(&HeldoutRow) -> f64) -> f64 {
        mean_of_means(&self.values(of))
    }

    /// Pairs each document with its row under another scheme. `None` if `other` does not have one of the documents.
    pub fn paired<'o>(&self, other: &Group<'o>) -> Option<Vec<Vec<(&'r HeldoutRow, &'o HeldoutRow)>>> {
        let rows: HashMap<(&str, &str), &'o HeldoutRow> =
            other.strata.iter().flatten().map(|row| ((row.domain.as_str(), row.id.as_str()), *row)).collect();
        let pair = |row: &&'r HeldoutRow| Some((*row, *rows.get(&(row.domain.as_str(), row.id.as_str()))?));
        self.strata.iter().map(|stratum| stratum.iter().map(pair).collect()).collect()
    }

    /// A number for each pair of a document's rows under both schemes, by domain. `None` if `other` does not have one of the
    /// documents.
    pub fn differences(
        &self,
        other: &Group<'_>,
        of: impl Fn(&HeldoutRow, &HeldoutRow) -> f64,
    ) -> Option<Vec<Vec<f64>>> {
        let pairs = self.paired(other)?;
        Some(pairs.iter().map(|stratum| stratum.iter().map(|(own, other)| of(own, other)).collect()).collect())
    }

    /// Measured bits per channel.
    pub fn bits(&self) -> f64 {
        self.mean(|row| row.measured_bits)
    }

    /// The KL summed over a document's far tokens, mean over documents.
    pub fn lost(&self) -> f64 {
        self.mean(|row| row.far_kl_sum)
    }

    /// The same for the model with the far context hidden. Recovery is relative to this value. It is 0 if no token is far.
    pub fn hidden(&self) -> f64 {
        self.mean(|row| row.hidden_kl_sum)
    }
}
