//! From rows to what tables and figures say about a scheme. Sums run in the rows' order, so equal files give equal bits.

use std::collections::{HashMap, HashSet};

use kvcsr_records::{Comparison, DictionarySource, HeldoutRow, ReconstructionRow, SchemeSummary, heldout::ALL};

use crate::{error::ReportError, grouping::grouped};

/// Summaries over all documents, one per (scheme, dictionary) in order of appearance.
pub fn overall(rows: &[HeldoutRow]) -> Result<Vec<SchemeSummary>, ReportError> {
    summarise(rows, |_| ALL)
}

/// Summaries per domain, one per (domain, scheme, dictionary) in order of appearance.
pub fn by_domain(rows: &[HeldoutRow]) -> Result<Vec<SchemeSummary>, ReportError> {
    summarise(rows, |row| row.domain.as_str())
}

fn summarise<'r>(
    rows: &'r [HeldoutRow],
    domain: impl Fn(&'r HeldoutRow) -> &'r str,
) -> Result<Vec<SchemeSummary>, ReportError> {
    let mut seen = HashSet::new();
    for row in rows {
        if !seen.insert((&row.domain, &row.id, &row.scheme, row.dictionary, row.context)) {
            return Err(ReportError::Duplicate { id: row.id.clone(), scheme: row.scheme.clone() });
        }
    }
    let groups = grouped(rows, |row| (domain(row), row.scheme.as_str(), row.dictionary));
    Ok(groups.iter().map(|(key, rows)| summary(*key, rows)).collect())
}

fn summary((domain, scheme, dictionary): (&str, &str, DictionarySource), rows: &[&HeldoutRow]) -> SchemeSummary {
    let total = |of: fn(&HeldoutRow) -> f64| rows.iter().map(|row| of(row)).sum::<f64>();
    let context = total(|row| row.context as f64);
    let scored = total(|row| row.scored as f64);
    SchemeSummary {
        domain: domain.to_owned(),
        scheme: scheme.to_owned(),
        dictionary,
        documents: rows.len(),
        context: rows.iter().map(|row| row.context).sum(),
        scored: rows.iter().map(|row| row.scored).sum(),
        nominal_bits: total(|row| row.nominal_bits * row.context as f64) / context,
        measured_bits: total(|row| row.measured_bits * row.context as f64) / context,
        shared_bytes: rows.iter().map(|row| row.shared_bytes).max().unwrap_or(0),
        perplexity: (total(|row| row.nll_sum) / scored).exp(),
        kl: total(|row| row.kl_sum) / scored,
        top1_percent: 100.0 * total(|row| row.top1_agree as f64) / scored,
        encode_ms_per_1k: 1000.0 * total(|row| row.encode_ms) / context,
        score_ms_per_token: total(|row| row.score_ms) / scored,
    }
}

/// Pairs summaries of the same place and scheme by their KL. Schemes with only one of the two dictionaries have no pair.
pub fn compare_heldout(summaries: &[SchemeSummary]) -> Vec<Comparison> {
    pairs(summaries, |s| s.dictionary, |s| (s.domain.clone(), s.scheme.clone()))
        .map(|(own, kmeans)| Comparison::new(own.domain.clone(), own.scheme.clone(), "KL", own.kl, kmeans.kl))
        .collect()
}

/// Pairs reconstruction rows of the same layer, kind, sparsity and chunks by their relative error.
pub fn compare_reconstruction(rows: &[ReconstructionRow]) -> Vec<Comparison> {
    pairs(rows, |r| r.dictionary, |r| (r.layer, r.kind, r.sparsity, r.chunks))
        .map(|(own, kmeans)| {
            let (place, scheme) = (format!("layer {} {}", own.layer, own.kind), format!("CSR-{}", own.level()));
            Comparison::new(place, scheme, "relative error", own.relative, kmeans.relative)
        })
        .collect()
}

/// The comparisons that NeuralDict does not win. A report lists them rather than averaging them away.
pub fn not_better(comparisons: &[Comparison]) -> Vec<&Comparison> {
    comparisons.iter().filter(|comparison| !comparison.neuraldict_wins).collect()
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use kvcsr_records::Kind;

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
        let kl: Vec<_> = summaries.iter().map(|s| (s.domain.as_str(), s.kl)).collect();
        assert_eq!(kl, [("wiki", 0.1), ("code", 0.2)]);
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
        assert!(!comparisons[0].neuraldict_wins);
    }
}
