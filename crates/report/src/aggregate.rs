//! From rows to what tables and figures say about a scheme. Sums run in the rows' order, so equal files give equal bits.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::{
    error::ReportError,
    records::{DictionarySource, HeldoutRow, Kind, ReconstructionRow},
};

/// One scheme over all documents, or over those of one domain.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SchemeSummary {
    /// The domain; `None` for all documents.
    pub domain: Option<String>,
    /// The scheme.
    pub scheme: String,
    /// Its dictionary.
    pub dictionary: DictionarySource,
    /// Documents.
    pub documents: usize,
    /// Tokens compressed, summed over documents.
    pub context: usize,
    /// Tokens scored, summed over documents.
    pub scored: usize,
    /// `exp(sum nll / sum scored)`.
    pub perplexity: f64,
    /// Mean KL to the uncompressed model per scored token, in nats.
    pub kl: f64,
    /// Scored tokens whose most likely token is the uncompressed model's, in percent.
    pub top1_percent: f64,
    /// Nominal bits per channel, mean weighted by compressed tokens.
    pub nominal_bits: f64,
    /// Measured bits per channel, mean weighted by compressed tokens: all bytes over all channels.
    pub measured_bits: f64,
    /// Bytes of the shared dictionaries, counted once (the largest seen).
    pub shared_bytes: usize,
    /// Compression time per 1000 tokens, in milliseconds.
    pub encode_ms_per_1k: f64,
    /// Time per scored token, in milliseconds.
    pub score_ms_per_token: f64,
}

/// Summaries over all documents, one per (scheme, dictionary) in order of appearance.
pub fn overall(rows: &[HeldoutRow]) -> Result<Vec<SchemeSummary>, ReportError> {
    summarise(rows, |_| None)
}

/// Summaries per domain, one per (domain, scheme, dictionary) in order of appearance.
pub fn by_domain(rows: &[HeldoutRow]) -> Result<Vec<SchemeSummary>, ReportError> {
    summarise(rows, |row| Some(row.domain.as_str()))
}

fn summarise<'r>(
    rows: &'r [HeldoutRow],
    domain: impl Fn(&'r HeldoutRow) -> Option<&'r str>,
) -> Result<Vec<SchemeSummary>, ReportError> {
    let mut seen = HashSet::new();
    let mut place: HashMap<(Option<&str>, &str, DictionarySource), usize> = HashMap::new();
    let mut groups: Vec<Vec<&HeldoutRow>> = Vec::new();
    for row in rows {
        if !seen.insert((&row.domain, &row.id, &row.scheme, row.dictionary, row.context)) {
            return Err(ReportError::Duplicate { id: row.id.clone(), scheme: row.scheme.clone() });
        }
        let at = *place.entry((domain(row), &row.scheme, row.dictionary)).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[at].push(row);
    }
    Ok(groups.iter().filter_map(|group| group.first().map(|first| summary(domain(first), first, group))).collect())
}

fn summary(domain: Option<&str>, first: &HeldoutRow, rows: &[&HeldoutRow]) -> SchemeSummary {
    let total = |of: fn(&HeldoutRow) -> f64| rows.iter().map(|row| of(row)).sum::<f64>();
    let context = total(|row| row.context as f64);
    let scored = total(|row| row.scored as f64);
    SchemeSummary {
        domain: domain.map(str::to_owned),
        scheme: first.scheme.clone(),
        dictionary: first.dictionary,
        documents: rows.len(),
        context: rows.iter().map(|row| row.context).sum(),
        scored: rows.iter().map(|row| row.scored).sum(),
        perplexity: (total(|row| row.nll_sum) / scored).exp(),
        kl: total(|row| row.kl_sum) / scored,
        top1_percent: 100.0 * total(|row| row.top1_agree as f64) / scored,
        nominal_bits: total(|row| row.nominal_bits * row.context as f64) / context,
        measured_bits: total(|row| row.measured_bits * row.context as f64) / context,
        shared_bytes: rows.iter().map(|row| row.shared_bytes).max().unwrap_or(0),
        encode_ms_per_1k: 1000.0 * total(|row| row.encode_ms) / context,
        score_ms_per_token: total(|row| row.score_ms) / scored,
    }
}

/// NeuralDict and k-means side by side under equal conditions. Lower is better for every metric here.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Where: `all`, a domain, or a layer and kind.
    pub place: String,
    /// The scheme, `CSR-n` for reconstruction rows.
    pub scheme: String,
    /// `KL` or `relative error`.
    pub metric: &'static str,
    /// NeuralDict's figure.
    pub neuraldict: f64,
    /// The figure of k-means alone.
    pub kmeans: f64,
}

impl Comparison {
    /// Whether NeuralDict is strictly better. Equality and NaN are not.
    pub fn neuraldict_wins(&self) -> bool {
        self.neuraldict < self.kmeans
    }
}

/// Pairs summaries of the same place and scheme by their KL. Schemes with only one of the two dictionaries have no pair.
pub fn compare_heldout(summaries: &[SchemeSummary]) -> Vec<Comparison> {
    pairs(summaries, |s| s.dictionary, |s| (s.domain.clone(), s.scheme.clone()))
        .map(|(neuraldict, kmeans)| Comparison {
            place: neuraldict.domain.clone().unwrap_or_else(|| "all".to_owned()),
            scheme: neuraldict.scheme.clone(),
            metric: "KL",
            neuraldict: neuraldict.kl,
            kmeans: kmeans.kl,
        })
        .collect()
}

/// Pairs reconstruction rows of the same layer, kind, sparsity and chunks by their relative error.
pub fn compare_reconstruction(rows: &[ReconstructionRow]) -> Vec<Comparison> {
    pairs(rows, |r| r.dictionary, |r| (r.layer, r.kind, r.sparsity, r.chunks))
        .map(|(neuraldict, kmeans)| Comparison {
            place: format!("layer {} {}", neuraldict.layer, neuraldict.kind),
            scheme: format!("CSR-{}", neuraldict.level()),
            metric: "relative error",
            neuraldict: neuraldict.relative,
            kmeans: kmeans.relative,
        })
        .collect()
}

/// The comparisons that NeuralDict does not win. A report lists them rather than averaging them away.
pub fn not_better(comparisons: &[Comparison]) -> Vec<&Comparison> {
    comparisons.iter().filter(|comparison| !comparison.neuraldict_wins()).collect()
}

fn pairs<'a, R, K: Eq + std::hash::Hash>(
    rows: &'a [R],
    dictionary: impl Fn(&R) -> DictionarySource + 'a,
    key: impl Fn(&R) -> K + 'a,
) -> impl Iterator<Item = (&'a R, &'a R)> {
    let kmeans: HashMap<K, &R> =
        rows.iter().filter(|row| dictionary(row) == DictionarySource::KMeans).map(|row| (key(row), row)).collect();
    rows.iter()
        .filter(move |row| dictionary(row) == DictionarySource::NeuralDict)
        .filter_map(move |row| kmeans.get(&key(row)).map(|&other| (row, other)))
        .collect::<Vec<_>>()
        .into_iter()
}

/// The kinds that occur, keys first.
pub(crate) fn kinds<R>(rows: &[R], kind: impl Fn(&R) -> Kind) -> Vec<Kind> {
    Kind::ALL.into_iter().filter(|wanted| rows.iter().any(|row| kind(row) == *wanted)).collect()
}

/// The median; the mean of the middle two for an even count. `None` for no values.
pub(crate) fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { (values[middle - 1] + upper) / 2.0 })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn row(id: &str, domain: &str, dictionary: DictionarySource, context: usize, scored: usize) -> HeldoutRow {
        HeldoutRow {
            id: id.to_owned(),
            domain: domain.to_owned(),
            scheme: "csr-4".to_owned(),
            dictionary,
            context,
            scored,
            nll_sum: 0.0,
            kl_sum: 0.0,
            top1_agree: 0,
            nominal_bits: 1.0,
            measured_bits: 0.0,
            shared_bytes: 0,
            encode_ms: 0.0,
            score_ms: 0.0,
        }
    }

    fn two_documents() -> Vec<HeldoutRow> {
        use DictionarySource::NeuralDict;
        vec![
            HeldoutRow {
                nll_sum: 10.0,
                kl_sum: 1.0,
                top1_agree: 8,
                measured_bits: 2.0,
                shared_bytes: 7,
                encode_ms: 30.0,
                score_ms: 5.0,
                ..row("a", "wiki", NeuralDict, 100, 10)
            },
            HeldoutRow {
                nll_sum: 50.0,
                kl_sum: 6.0,
                top1_agree: 15,
                measured_bits: 1.0,
                shared_bytes: 7,
                encode_ms: 70.0,
                score_ms: 25.0,
                ..row("b", "code", NeuralDict, 300, 30)
            },
        ]
    }

    #[test]
    fn sums_are_taken_before_ratios() {
        let summaries = overall(&two_documents()).unwrap();
        let [all] = summaries.as_slice() else { panic!("one scheme, got {summaries:?}") };
        assert_eq!((all.documents, all.context, all.scored, all.shared_bytes), (2, 400, 40, 7));
        assert!((all.perplexity - (60.0_f64 / 40.0).exp()).abs() < 1e-12);
        assert!((all.kl - 7.0 / 40.0).abs() < 1e-15);
        assert!((all.top1_percent - 57.5).abs() < 1e-12);
        // (2 x 100 + 1 x 300) / 400, not the plain mean 1.5.
        assert!((all.measured_bits - 1.25).abs() < 1e-15);
        assert!((all.encode_ms_per_1k - 250.0).abs() < 1e-12);
        assert!((all.score_ms_per_token - 0.75).abs() < 1e-15);
    }

    #[test]
    fn domains_are_kept_apart() {
        let summaries = by_domain(&two_documents()).unwrap();
        let kl: Vec<_> = summaries.iter().map(|s| (s.domain.as_deref(), s.kl)).collect();
        assert_eq!(kl, [(Some("wiki"), 0.1), (Some("code"), 0.2)]);
    }

    #[test]
    fn a_document_counted_twice_is_an_error() {
        let mut rows = two_documents();
        rows.push(rows[0].clone());
        assert!(matches!(overall(&rows), Err(ReportError::Duplicate { id, .. }) if id == "a"));
        rows[2].context = 50;
        assert!(overall(&rows).is_ok(), "another context length is another measurement");
    }

    #[test]
    fn losses_to_kmeans_are_listed_ties_included() {
        let mut rows = two_documents();
        // k-means ties on wiki (0.1) and is worse on code (0.3).
        for (index, kl_sum) in [(0, 1.0), (1, 9.0)] {
            rows.push(HeldoutRow { dictionary: DictionarySource::KMeans, kl_sum, ..rows[index].clone() });
        }
        let comparisons = compare_heldout(&by_domain(&rows).unwrap());
        assert_eq!(comparisons.len(), 2);
        let lost = not_better(&comparisons);
        assert_eq!(lost.len(), 1);
        assert_eq!((lost[0].place.as_str(), lost[0].neuraldict, lost[0].kmeans), ("wiki", 0.1, 0.1));
    }

    #[test]
    fn reconstruction_pairs_need_equal_conditions() {
        let row = |dictionary, sparsity, relative| ReconstructionRow {
            layer: 3,
            kind: Kind::Value,
            dictionary,
            sparsity,
            chunks: 2,
            relative,
            mse: 1.0,
            vectors: 9,
        };
        let rows = [
            row(DictionarySource::NeuralDict, 2, 0.3),
            row(DictionarySource::KMeans, 2, 0.2),
            row(DictionarySource::NeuralDict, 4, 0.1),
        ];
        let comparisons = compare_reconstruction(&rows);
        assert_eq!(comparisons.len(), 1);
        assert_eq!((comparisons[0].place.as_str(), comparisons[0].scheme.as_str()), ("layer 3 value", "CSR-4"));
        assert!(!comparisons[0].neuraldict_wins());
    }

    #[test]
    fn medians_of_odd_even_and_no_values() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&mut []), None);
    }
}
