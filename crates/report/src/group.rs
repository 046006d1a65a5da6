//! The documents of one scheme at one context, and how schemes are told apart.

use std::collections::HashMap;

use kvcsr_records::HeldoutRow;
use kvcsr_stats::{Bootstrap, mean_of_means};

use crate::grouping::grouped;

/// How summaries tell schemes apart.
#[derive(Debug, Clone, Copy)]
pub struct Statistics {
    /// Draws, level and seed of all intervals.
    pub bootstrap: Bootstrap,
    /// Share of a scheme's loss that training with another seed may change: a smaller difference does not count as one.
    pub noise: f64,
}

impl Statistics {
    /// No intervals: for means alone.
    pub const MEANS: Self = Self { bootstrap: Bootstrap { resamples: 0, level: 0.95, seed: 0 }, noise: 0.0 };
}

/// One scheme's documents at one context, in strata: a domain each.
pub(crate) struct Group<'r> {
    /// Any of its rows: they agree in everything that names the scheme.
    pub first: &'r HeldoutRow,
    /// The domain, or [`ALL`](kvcsr_records::heldout::ALL).
    pub domain: &'r str,
    /// Its documents, by domain.
    pub strata: Vec<Vec<&'r HeldoutRow>>,
}

impl<'r> Group<'r> {
    /// The rows of one scheme in a domain, of which there is at least one.
    pub fn new(domain: &'r str, rows: &[&'r HeldoutRow]) -> Self {
        let strata = grouped(rows.iter().copied(), |row| row.domain.as_str());
        Self { first: rows[0], domain, strata: strata.into_iter().map(|(_, rows)| rows).collect() }
    }

    /// A number per document, by domain.
    pub fn values(&self, of: impl Fn(&HeldoutRow) -> f64) -> Vec<Vec<f64>> {
        self.strata.iter().map(|rows| rows.iter().map(|row| of(row)).collect()).collect()
    }

    /// The mean over domains of the mean over documents.
    pub fn mean(&self, of: impl Fn(&HeldoutRow) -> f64) -> f64 {
        mean_of_means(&self.values(of))
    }

    /// The same document's row among another scheme's, for every document; `None` if one is missing there.
    pub fn paired<'o>(&self, other: &Group<'o>) -> Option<Vec<Vec<(&'r HeldoutRow, &'o HeldoutRow)>>> {
        let rows: HashMap<(&str, &str), &'o HeldoutRow> =
            other.strata.iter().flatten().map(|row| ((row.domain.as_str(), row.id.as_str()), *row)).collect();
        let pair = |row: &&'r HeldoutRow| Some((*row, *rows.get(&(row.domain.as_str(), row.id.as_str()))?));
        self.strata.iter().map(|stratum| stratum.iter().map(pair).collect()).collect()
    }

    /// A number per document and its own row of another scheme, by domain; `None` if a document is missing there.
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

    /// KL summed over a document's far tokens.
    pub fn lost(&self) -> f64 {
        self.mean(|row| row.far_kl_sum)
    }

    /// The same with the rest hidden: what recovery is measured by. 0 where no token is far.
    pub fn hidden(&self) -> f64 {
        self.mean(|row| row.hidden_kl_sum)
    }
}
