//! Computes from rows what tables and figures show about a scheme. Sums are in the order of the rows, so equal files give equal
//! bits.

use std::collections::{HashMap, HashSet};

use kvcsr_records::heldout::{ALL, REPEAT};
use kvcsr_records::{Comparison, DictionarySource, HeldoutRow, ReconstructionRow, SchemeSummary};
use kvcsr_stats::Interval;

use crate::error::ReportError;
use crate::evidence;
use crate::group::Group;
pub use crate::group::Statistics;
use crate::grouping::{distinct, grouped};

/// Summaries over all documents without intervals, one per pair of scheme and dictionary and per context.
///
/// # Errors
/// [`ReportError::Duplicate`] if a document occurs twice.
pub fn overall(rows: &[HeldoutRow]) -> Result<Vec<SchemeSummary>, ReportError> {
    let all = summarise(rows, Statistics::MEANS)?;
    Ok(all.into_iter().filter(|summary| summary.domain == ALL).collect())
}

/// Summaries of every scheme. They are sorted by context, the shortest first. Within a context [`ALL`] comes first, then every
/// domain, in order of first appearance.
///
/// # Errors
/// [`ReportError::Duplicate`] if a document occurs twice.
pub fn summarise(rows: &[HeldoutRow], statistics: Statistics) -> Result<Vec<SchemeSummary>, ReportError> {
    let mut seen = HashSet::new();
    for row in rows {
        if !seen.insert((&row.domain, &row.id, &row.scheme, row.dictionary, row.context)) {
            return Err(ReportError::Duplicate { id: row.id.clone(), scheme: row.scheme.clone() });
        }
    }
    let mut contexts = distinct(rows.iter().map(|row| row.context));
    contexts.sort_unstable();
    let mut summaries = Vec::new();
    for context in contexts {
        let of_context = || rows.iter().filter(move |row| row.context == context);
        let domains = distinct(of_context().map(|row| row.domain.as_str()));
        for domain in [ALL].into_iter().chain(domains) {
            let within = |row: &&HeldoutRow| if domain == ALL { row.domain != REPEAT } else { row.domain == domain };
            let schemes = grouped(of_context().filter(within), |row| (row.scheme.as_str(), row.dictionary));
            let groups: Vec<Group<'_>> = schemes.iter().map(|(_, rows)| Group::new(domain, rows)).collect();
            summaries.extend(groups.iter().map(|group| summary(group, &groups, statistics)));
        }
    }
    Ok(summaries)
}

fn summary(group: &Group<'_>, all: &[Group<'_>], statistics: Statistics) -> SchemeSummary {
    let interval = |values: &[Vec<f64>]| statistics.bootstrap.interval(values);
    let low = |interval: &Option<Interval>| interval.map(|i| i.low);
    let high = |interval: &Option<Interval>| interval.map(|i| i.high);
    let per_token = |of: fn(&HeldoutRow) -> f64| move |row: &HeldoutRow| of(row) / row.scored as f64;
    let kl = per_token(|row| row.kl_sum);
    let nll = per_token(|row| row.nll_sum);
    let rows = || group.strata.iter().flatten();
    let HeldoutRow { context, shared_bytes, stored_bytes, channels, .. } = *group.first;
    let measured_bits = group.bits();
    let all_in = |sequences: usize| measured_bits + 8.0 * stored_bytes as f64 / (channels * context * sequences) as f64;
    let kl_ends = interval(&group.values(kl));
    let recovery = evidence::recovery(group, statistics);
    let over = evidence::over_deletion(group, all, statistics);
    let dense = all.iter().find(|other| other.first.scheme == "dense");
    let worse = dense.and_then(|dense| group.differences(dense, |own, exact| nll(own) - nll(exact)));
    let ratio = dense.filter(|_| worse.is_some()).map(|dense| group.mean(nll) - dense.mean(nll));
    let ratio_ends = worse.as_deref().and_then(interval);
    let decode: Vec<f64> = rows().filter_map(|row| row.decode_ms_per_token).collect();
    SchemeSummary {
        scheme: group.first.scheme.clone(),
        dictionary: group.first.dictionary,
        domain: group.domain.to_owned(),
        context,
        n: rows().count(),
        scored: rows().map(|row| row.scored).sum(),
        nominal_bits: group.mean(|row| row.nominal_bits),
        measured_bits,
        recovery: recovery.value,
        recovery_low: low(&recovery.ends),
        recovery_high: high(&recovery.ends),
        far_share: group.mean(|row| row.far as f64 / row.scored as f64),
        over_deletion: over.value,
        over_deletion_low: low(&over.ends),
        over_deletion_high: high(&over.ends),
        frontier: group.domain == ALL && evidence::on_frontier(group, all, statistics),
        kl: group.mean(kl),
        kl_low: low(&kl_ends),
        kl_high: high(&kl_ends),
        kl_tail: group.mean(|row| row.kl_tail),
        top1: group.mean(|row| row.top1_agree as f64 / row.scored as f64),
        ppl: group.mean(nll).exp(),
        ppl_ratio: ratio.map(f64::exp),
        ppl_ratio_low: low(&ratio_ends).map(f64::exp),
        ppl_ratio_high: high(&ratio_ends).map(f64::exp),
        task_score: None,
        task_bits: None,
        task_n: None,
        task_difference: None,
        task_difference_low: None,
        task_difference_high: None,
        shared_bytes,
        stored_bytes,
        all_in_bits_1: all_in(1),
        all_in_bits_8: all_in(8),
        all_in_bits_64: all_in(64),
        encode_ms: group.mean(|row| row.encode_ms),
        decode_ms_per_token: (!decode.is_empty()).then(|| decode.iter().sum::<f64>() / decode.len() as f64),
    }
}

/// Pairs summaries of the same place and scheme and compares their KL. A scheme with only one of the two dictionaries has no
/// pair.
pub fn compare_heldout(summaries: &[SchemeSummary]) -> Vec<Comparison> {
    pairs(summaries, |s| s.dictionary, |s| (s.context, s.domain.clone(), s.scheme.clone()))
        .map(|(own, kmeans)| Comparison::new(own.domain.clone(), own.scheme.clone(), "KL", own.kl, kmeans.kl))
        .collect()
}

/// Pairs reconstruction rows of the same layer, kind, sparsity and chunks and compares their relative errors.
pub fn compare_reconstruction(rows: &[ReconstructionRow]) -> Vec<Comparison> {
    pairs(rows, |r| r.dictionary, |r| (r.layer, r.kind, r.sparsity, r.chunks))
        .map(|(own, kmeans)| {
            let (place, scheme) = (format!("layer {} {}", own.layer, own.kind), format!("CSR-{}", own.level()));
            Comparison::new(place, scheme, "relative error", own.relative, kmeans.relative)
        })
        .collect()
}

/// The comparisons in which NeuralDict is not better. A report lists them, so that a mean does not hide them.
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
    use kvcsr_stats::Bootstrap;

    use super::*;

    fn row(id: &str, domain: &str, dictionary: DictionarySource) -> HeldoutRow {
        HeldoutRow {
            id: id.to_owned(),
            domain: domain.to_owned(),
            scheme: "csr-4".to_owned(),
            dictionary,
            context: 100,
            windows: 1,
            scored: 10,
            nll_sum: 0.0,
            kl_sum: 0.0,
            kl_tail: 0.0,
            top1_agree: 0,
            far: 2,
            far_kl_sum: 0.0,
            hidden_kl_sum: 4.0,
            nominal_bits: 1.0,
            measured_bits: 0.0,
            shared_bytes: 70,
            stored_bytes: 50,
            channels: 8,
            encode_ms: 0.0,
            decode_ms_per_token: None,
        }
    }

    fn three_documents() -> Vec<HeldoutRow> {
        let wiki = HeldoutRow {
            nll_sum: 10.0,
            kl_sum: 1.0,
            top1_agree: 8,
            far_kl_sum: 1.0,
            measured_bits: 2.0,
            encode_ms: 30.0,
            ..row("a", "wiki", DictionarySource::NeuralDict)
        };
        let code = HeldoutRow {
            nll_sum: 60.0,
            kl_sum: 6.0,
            scored: 20,
            top1_agree: 15,
            far_kl_sum: 3.0,
            measured_bits: 1.0,
            encode_ms: 70.0,
            decode_ms_per_token: Some(4.0),
            ..row("b", "code", DictionarySource::NeuralDict)
        };
        vec![wiki, code.clone(), HeldoutRow { id: "c".into(), kl_sum: 12.0, ..code }]
    }

    #[test]
    fn every_domain_counts_equally() {
        let summaries = overall(&three_documents()).unwrap();
        let [all] = summaries.as_slice() else { panic!("one scheme, got {summaries:?}") };
        assert_eq!((all.n, all.scored, all.shared_bytes), (3, 50, 70));
        // Wiki 0.1; code (0.3 + 0.6) / 2.
        assert!((all.kl - (0.1 + 0.45) / 2.0).abs() < 1e-12, "{}", all.kl);
        assert!((all.ppl - ((1.0 + 3.0) / 2.0_f64).exp()).abs() < 1e-12);
        assert!((all.measured_bits - 1.5).abs() < 1e-15 && (all.encode_ms - 50.0).abs() < 1e-12);
        // The ratio of sums over far tokens, not a mean of ratios: 1 - ((1 + 3) / 2) / 4.
        assert!((all.recovery.unwrap() - 0.5).abs() < 1e-12);
        assert_eq!((all.decode_ms_per_token, all.ppl_ratio, all.recovery_low), (Some(4.0), None, None));
        // 50 bytes over 8 channels and 100 tokens.
        assert!((all.all_in_bits_1 - 2.0).abs() < 1e-12 && (all.all_in_bits_8 - 1.5625).abs() < 1e-12);
    }

    #[test]
    fn domains_are_kept_apart_and_passages_that_come_back_are_no_part_of_all() {
        let mut rows = three_documents();
        rows.push(HeldoutRow { id: "d".into(), domain: REPEAT.into(), kl_sum: 1e6, ..rows[0].clone() });
        let summaries = summarise(&rows, Statistics::MEANS).unwrap();
        let kl: Vec<_> = summaries.iter().map(|s| (s.domain.as_str(), s.n, s.kl)).collect();
        assert_eq!(kl[1], ("wiki", 1, 0.1));
        assert!((kl[2].0, kl[2].1) == ("code", 2) && (kl[2].2 - 0.45).abs() < 1e-12, "{:?}", kl[2]);
        assert_eq!((kl[0].0, kl[0].1, kl[3].0, kl[3].2), (ALL, 3, REPEAT, 1e5));
    }

    #[test]
    fn a_document_counted_twice_is_an_error() {
        let mut rows = three_documents();
        rows.push(rows[0].clone());
        assert!(matches!(overall(&rows), Err(ReportError::Duplicate { id, .. }) if id == "a"));
        rows[3].context = 50;
        assert!(overall(&rows).is_ok(), "another context length is another measurement");
    }

    #[test]
    fn perplexity_is_paired_with_the_exact_cache() {
        let mut rows = three_documents();
        let exact = |row: &HeldoutRow| HeldoutRow {
            scheme: "dense".into(),
            dictionary: DictionarySource::None,
            nll_sum: row.nll_sum - row.scored as f64,
            ..row.clone()
        };
        rows.extend(three_documents().iter().map(exact));
        let statistics = Statistics { bootstrap: Bootstrap { resamples: 200, level: 0.95, seed: 1 }, noise: 0.0 };
        let summaries = summarise(&rows, statistics).unwrap();
        let own = |domain: &str| summaries.iter().find(|s| s.domain == domain && s.scheme == "csr-4").unwrap();
        assert!((own(ALL).ppl_ratio.unwrap() - 1f64.exp()).abs() < 1e-9);
        // One nat per token in both documents, so there is no spread. A single document gives no interval. The mean over
        // domains then has none either.
        assert!((own("code").ppl_ratio_high.unwrap() - 1f64.exp()).abs() < 1e-9);
        assert_eq!((own("wiki").ppl_ratio_high, own(ALL).ppl_ratio_high), (None, None));
    }

    #[test]
    fn losses_to_kmeans_are_listed_ties_included() {
        let mut rows = three_documents();
        rows.truncate(2);
        // k-means is equal on wiki (0.1) and worse on code (0.45).
        for (index, kl_sum) in [(0, 1.0), (1, 9.0)] {
            rows.push(HeldoutRow { dictionary: DictionarySource::KMeans, kl_sum, ..rows[index].clone() });
        }
        let comparisons = compare_heldout(&summarise(&rows, Statistics::MEANS).unwrap());
        assert_eq!(comparisons.len(), 3, "over all, and in each domain");
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
