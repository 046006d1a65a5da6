//! Every scheme on the same prompts: rows per document, and what a table says of a scheme at a context length.

use kvcsr_records::heldout::ALL;
pub use kvcsr_records::{CompareDocument, CompareRow, OverallRow};

use crate::{
    grouping::{distinct, grouped},
    table::{Cells, Table},
};

/// Ends of an interval, or nothing.
pub type Ends = Option<(f64, f64)>;

/// Summarises documents by scheme, context and domain, `all` first, in order of appearance. `interval` is given a number
/// per document and returns the ends of the interval of its mean.
///
/// The perplexity of a row is compared with `dense` on the same documents; without such rows the ratio is not a number.
pub fn summarise(rows: &[CompareDocument], interval: impl Fn(&[f64]) -> Ends) -> Vec<CompareRow> {
    let of = |whole: bool| {
        rows.iter().map(move |row| (row.context, if whole { ALL } else { &row.domain }, row.scheme.as_str()))
    };
    let mut keys: Vec<(usize, &str, &str)> = distinct(of(true).chain(of(false)));
    keys.sort_by_key(|key| key.0);
    keys.into_iter().map(|key| summary(rows, key, &interval)).collect()
}

fn summary(
    rows: &[CompareDocument],
    (context, domain, scheme): (usize, &str, &str),
    interval: &impl Fn(&[f64]) -> Ends,
) -> CompareRow {
    let of = |scheme: &str| -> Vec<&CompareDocument> {
        rows.iter()
            .filter(|r| r.context == context && r.scheme == scheme && (domain == ALL || r.domain == domain))
            .collect()
    };
    let (own, dense) = (of(scheme), of("dense"));
    let n = own.len() as f64;
    let scored: f64 = own.iter().map(|r| r.scored as f64).sum();
    let per_token =
        |value: fn(&CompareDocument) -> f64| -> Vec<f64> { own.iter().map(|r| value(r) / r.scored as f64).collect() };
    let mean = |value: fn(&CompareDocument) -> f64| own.iter().map(|r| value(r)).sum::<f64>() / n;
    let total = |value: fn(&CompareDocument) -> f64| own.iter().map(|r| value(r)).sum::<f64>() / scored;
    let (kl, agree) = (per_token(|r| r.kl_sum), per_token(|r| r.top1_agree as f64));
    // Paired: the same document under both schemes.
    let worse: Vec<f64> = own
        .iter()
        .filter_map(|r| {
            let same = dense.iter().find(|d| d.id == r.id && d.domain == r.domain)?;
            Some((r.nll_sum - same.nll_sum) / r.scored as f64)
        })
        .collect();
    let ratio = if worse.len() == own.len() { worse.iter().sum::<f64>() / n } else { f64::NAN };
    let (kl_ends, agree_ends, worse_ends) = (interval(&kl), interval(&agree), interval(&worse));
    CompareRow {
        scheme: scheme.to_owned(),
        domain: domain.to_owned(),
        context,
        n: own.len(),
        scored: own.iter().map(|r| r.scored).sum(),
        nominal_bits: mean(|r| r.nominal_bits),
        measured_bits: mean(|r| r.measured_bits),
        kl: total(|r| r.kl_sum),
        kl_low: kl_ends.map(|e| e.0),
        kl_high: kl_ends.map(|e| e.1),
        top1: total(|r| r.top1_agree as f64),
        top1_low: agree_ends.map(|e| e.0),
        top1_high: agree_ends.map(|e| e.1),
        ppl: total(|r| r.nll_sum).exp(),
        ppl_ratio: ratio.exp(),
        ppl_ratio_low: worse_ends.map(|e| e.0.exp()),
        ppl_ratio_high: worse_ends.map(|e| e.1.exp()),
        task_score: None,
        task_n: None,
        task_difference: None,
        task_difference_low: None,
        task_difference_high: None,
        shared_bytes: own.iter().map(|r| r.shared_bytes).max().unwrap_or(0),
        encode_ms: mean(|r| r.encode_ms),
        decode_ms_per_token: mean(|r| r.decode_ms_per_token),
    }
}

/// Puts the scores that schemes had on tasks into the rows of all domains; they are the same for every context.
pub fn add_tasks(rows: &mut [CompareRow], scores: &[OverallRow]) {
    for row in rows.iter_mut().filter(|row| row.domain == ALL) {
        let Some(score) = scores.iter().find(|score| score.scheme == row.scheme) else { continue };
        row.task_score = Some(score.task_mean);
        row.task_n = Some(score.n);
        (row.task_difference, row.task_difference_low, row.task_difference_high) =
            (score.difference, score.low, score.high);
    }
}

/// The schemes that no other beats: least KL for their measured bits or fewer, from few bits to many.
pub fn frontier(rows: &[CompareRow]) -> Vec<&CompareRow> {
    let mut order: Vec<&CompareRow> = rows.iter().collect();
    order.sort_by(|a, b| a.measured_bits.total_cmp(&b.measured_bits).then(a.kl.total_cmp(&b.kl)));
    let mut best = f64::INFINITY;
    order.retain(|row| {
        let better = row.kl < best;
        best = best.min(row.kl);
        better
    });
    order
}

/// The table of one context over all texts, the least measured bits first.
pub fn markdown(rows: &[CompareRow]) -> String {
    let best: Vec<&str> = frontier(rows).iter().map(|row| row.scheme.as_str()).collect();
    let mut rows: Vec<&CompareRow> = rows.iter().collect();
    rows.sort_by(|a, b| a.measured_bits.total_cmp(&b.measured_bits));
    let numbers = [
        "nominal bits",
        "measured bits",
        "KL (nats), 95 % interval",
        "top-1 (%)",
        "perplexity",
        "perplexity / dense",
        "tasks (difference to dense, 95 %)",
        "encode (ms)",
        "decode (ms/token)",
    ];
    let mut table = Table::of(["scheme"], numbers);
    for row in rows {
        let ends = match (row.kl_low, row.kl_high) {
            (Some(low), Some(high)) => format!(" ({low:.4} to {high:.4})"),
            _ => String::new(),
        };
        let name = if best.contains(&row.scheme.as_str()) { format!("**{}**", row.scheme) } else { row.scheme.clone() };
        let difference = match (row.task_difference, row.task_difference_low, row.task_difference_high) {
            (Some(points), Some(low), Some(high)) => format!(" ({points:+.1}, {low:+.1} to {high:+.1})"),
            _ => String::new(),
        };
        table.row([
            name,
            format!("{:.2}", row.nominal_bits),
            format!("{:.2}", row.measured_bits),
            format!("{:.4}{ends}", row.kl),
            format!("{:.1}", 100.0 * row.top1),
            format!("{:.2}", row.ppl),
            format!("{:.3}", row.ppl_ratio),
            row.task_score.map_or_else(|| "not run".to_owned(), |score| format!("{score:.1}{difference}")),
            format!("{:.0}", row.encode_ms),
            format!("{:.1}", row.decode_ms_per_token),
        ]);
    }
    table.into_text()
}

/// The schemes of the README's table: CSR from few bits to many, KIVI at 2 and 4 bits, and the exact cache of most servers.
const HEADLINE: [&str; 8] =
    ["csr-4", "csr-8+budget+int6+refit", "csr-4+window", "kivi-2", "csr-8", "csr-8+window", "kivi-4", "dense-f16"];

/// The README's table of one context over all texts: a few schemes and the figures that matter most, the least measured bits first.
pub fn headline_markdown(rows: &[CompareRow]) -> String {
    let mut rows: Vec<&CompareRow> = rows.iter().filter(|row| HEADLINE.contains(&row.scheme.as_str())).collect();
    rows.sort_by(|a, b| a.measured_bits.total_cmp(&b.measured_bits));
    let numbers =
        ["measured bits per channel", "KL (nats)", "top-1 agreement (%)", "perplexity / dense", "tasks (0 to 100)"];
    let mut table = Table::of(["scheme"], numbers);
    for row in rows {
        table.row([
            format!("`{}`", row.scheme),
            format!("{:.2}", row.measured_bits),
            format!("{:.4}", row.kl),
            format!("{:.1}", 100.0 * row.top1),
            format!("{:.3}", row.ppl_ratio),
            row.task_score.map_or_else(|| "not run".to_owned(), |score| format!("{score:.1}")),
        ]);
    }
    table.into_text()
}

type Time = fn(&CompareRow) -> f64;

/// The times of a row, each with its heading and the decimals that it is shown to.
const TIMES: [(&str, Time, usize); 2] =
    [("encode", |row| row.encode_ms, 0), ("decode", |row| row.decode_ms_per_token, 1)];

/// Time to compress a context and to decode a token after it, a line per scheme and a pair of columns per context.
pub fn times_markdown(rows: &[CompareRow]) -> String {
    let contexts = distinct(rows.iter().map(|row| row.context));
    let heading = |what: &str, context: usize| (format!("{what} {context} tokens (ms)"), Cells::Number);
    let columns = TIMES.iter().flat_map(|(what, ..)| contexts.iter().map(move |&context| heading(what, context)));
    let mut table = Table::new([("scheme".to_owned(), Cells::Text)].into_iter().chain(columns));
    for (scheme, own) in grouped(rows, |row| row.scheme.as_str()) {
        let time = |of: Time, decimals: usize, context: usize| {
            let row = own.iter().find(|row| row.context == context);
            row.map_or_else(String::new, |row| format!("{:.decimals$}", of(row)))
        };
        let times = TIMES.iter().flat_map(|&(_, of, decimals)| contexts.iter().map(move |&c| (of, decimals, c)));
        table.row(
            [scheme.to_owned()].into_iter().chain(times.map(|(of, decimals, context)| time(of, decimals, context))),
        );
    }
    table.into_text()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kvcsr_records::csv;

    use super::*;

    fn document(id: &str, scheme: &str, nll_sum: f64, kl_sum: f64, measured_bits: f64) -> CompareDocument {
        CompareDocument {
            id: id.to_owned(),
            domain: id.split('-').next().unwrap().to_owned(),
            scheme: scheme.to_owned(),
            context: 100,
            scored: 10,
            nll_sum,
            kl_sum,
            top1_agree: 9,
            nominal_bits: 2.0,
            measured_bits,
            shared_bytes: 7,
            encode_ms: 3.0,
            decode_ms_per_token: 1.5,
        }
    }

    fn documents() -> Vec<CompareDocument> {
        vec![
            document("wiki-0", "dense", 20.0, 0.0, 32.0),
            document("wiki-0", "kivi-2", 21.0, 1.0, 3.0),
            document("code-0", "dense", 10.0, 0.0, 32.0),
            document("code-0", "kivi-2", 13.0, 3.0, 3.5),
        ]
    }

    #[test]
    fn documents_are_paired_with_dense() {
        let ends = |x: &[f64]| (x.len() > 1).then(|| (x[0].min(x[1]), x[0].max(x[1])));
        let mut rows = summarise(&documents(), ends);
        assert_eq!(rows.len(), 6, "two schemes, over all and in two domains");
        let all = rows.iter().find(|r| r.scheme == "kivi-2" && r.domain == "all").unwrap();
        assert_eq!((all.n, all.measured_bits, all.task_score), (2, 3.25, None));
        assert!((all.kl - 0.2).abs() < 1e-12 && (all.ppl - 1.7f64.exp()).abs() < 1e-9);
        assert!((all.ppl_ratio - 0.2f64.exp()).abs() < 1e-12);
        assert_eq!((all.kl_low, all.kl_high), (Some(0.1), Some(0.3)));
        assert!((all.ppl_ratio_high.unwrap() - 0.3f64.exp()).abs() < 1e-12);
        let wiki = rows.iter().find(|r| r.scheme == "kivi-2" && r.domain == "wiki").unwrap();
        assert_eq!((wiki.n, wiki.kl_low), (1, None));
        let table = markdown(&rows.iter().filter(|r| r.domain == "all").cloned().collect::<Vec<_>>());
        assert!(table.contains("| **kivi-2** | 2.00 | 3.25 | 0.2000 (0.1000 to 0.3000) | 90.0 |"), "{table}");
        assert!(table.contains("| not run | 3 | 1.5 |"), "{table}");

        let scored = OverallRow {
            scheme: "kivi-2".to_owned(),
            tasks: 2,
            rank: None,
            tied: false,
            n: 12,
            nominal_bits: 2.0,
            measured_bits: 3.0,
            tokens: 900.0,
            encode_ms_per_1k: 1.0,
            decode_ms_per_token: 1.0,
            task_mean: 31.25,
            category_mean: 30.0,
            difference: Some(-2.5),
            low: Some(-4.0),
            high: Some(0.5),
            cut: 0,
            best: false,
        };
        add_tasks(&mut rows, &[scored]);
        let all: Vec<CompareRow> = rows.iter().filter(|r| r.domain == "all").cloned().collect();
        let table = markdown(&all);
        assert!(table.contains("| 31.2 (-2.5, -4.0 to +0.5) | 3 | 1.5 |"), "{table}");
        assert!(table.contains("| 1.000 | not run |"), "dense had no tasks: {table}");
        let (kivi, wiki) = (all.iter().find(|r| r.scheme == "kivi-2").unwrap(), rows.last().unwrap());
        assert_eq!((kivi.task_score, kivi.task_n), (Some(31.25), Some(12)));
        assert_eq!((kivi.task_difference, kivi.task_difference_high), (Some(-2.5), Some(0.5)));
        assert_eq!((wiki.domain != "all", wiki.task_score), (true, None));

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("compare.csv");
        csv::write(&path, &rows).unwrap();
        assert_eq!(csv::read::<CompareRow>(&path).unwrap(), rows, "empty fields are nothing");

        let longer = CompareRow { context: 200, encode_ms: 7.0, ..all[0].clone() };
        let table = times_markdown(&[all[0].clone(), longer, all[1].clone()]);
        assert!(table.contains("| encode 200 tokens (ms) | decode 100 tokens (ms) |"), "{table}");
        assert!(table.contains("| dense | 3 | 7 | 1.5 | 1.5 |\n| kivi-2 | 3 |  | 1.5 |  |"), "{table}");
    }

    #[test]
    fn the_frontier_is_what_nothing_beats() {
        let base = summarise(&documents(), |_| None).remove(0);
        let row =
            |scheme: &str, measured_bits, kl| CompareRow { scheme: scheme.into(), measured_bits, kl, ..base.clone() };
        let rows =
            [row("a", 4.0, 0.1), row("b", 2.0, 0.5), row("c", 3.0, 0.6), row("d", 2.0, 0.7), row("e", 16.0, 0.1)];
        let names: Vec<&str> = frontier(&rows).iter().map(|r| r.scheme.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
    }
}
