//! Every scheme on the same prompts: rows per document, and what a table says of a scheme at a context length.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::csv::{CsvRow, number_or_empty};
use crate::longbench::AverageCell;

/// One document under one scheme; sums, as in [`crate::HeldoutRow`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompareDocument {
    /// The document.
    pub id: String,
    /// What it is text of.
    pub domain: String,
    /// The scheme, with its artefacts where they are not the usual ones.
    pub scheme: String,
    /// Tokens compressed.
    pub context: usize,
    /// Tokens scored.
    pub scored: usize,
    /// Negative log likelihood of the scored tokens, summed, in nats.
    pub nll_sum: f64,
    /// KL(uncompressed || this scheme), summed over scored tokens, in nats.
    pub kl_sum: f64,
    /// Scored positions where the most likely token is the uncompressed model's.
    pub top1_agree: usize,
    /// Bits per channel as the method's paper counts them.
    pub nominal_bits: f64,
    /// Bits per channel from every byte held after `context` tokens.
    pub measured_bits: f64,
    /// Bytes of offline artefacts, shared by all sequences and not in `measured_bits`.
    pub shared_bytes: usize,
    /// Time to compress the context, in milliseconds.
    pub encode_ms: f64,
    /// Time per token of decoding one by one after the continuation, in milliseconds.
    pub decode_ms_per_token: f64,
}

/// A scheme over the documents of one context length: of one domain, or of all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompareRow {
    /// The scheme.
    pub scheme: String,
    /// The domain, or `all`.
    pub domain: String,
    /// Tokens compressed per document.
    pub context: usize,
    /// Documents.
    pub n: usize,
    /// Tokens scored, over all documents.
    pub scored: usize,
    /// Bits per channel as the method's paper counts them.
    pub nominal_bits: f64,
    /// Bits per channel from every byte held at this context, mean over documents.
    pub measured_bits: f64,
    /// Mean KL to the uncompressed model per token, in nats.
    pub kl: f64,
    /// Ends of its bootstrap interval over documents; none for fewer than two.
    #[serde(deserialize_with = "number_or_empty")]
    pub kl_low: Option<f64>,
    /// See `kl_low`.
    #[serde(deserialize_with = "number_or_empty")]
    pub kl_high: Option<f64>,
    /// Share of tokens whose most likely successor is the uncompressed model's.
    pub top1: f64,
    /// See `kl_low`.
    #[serde(deserialize_with = "number_or_empty")]
    pub top1_low: Option<f64>,
    /// See `kl_low`.
    #[serde(deserialize_with = "number_or_empty")]
    pub top1_high: Option<f64>,
    /// Perplexity of the scored tokens.
    pub ppl: f64,
    /// Perplexity over the uncompressed model's on the same documents.
    pub ppl_ratio: f64,
    /// Ends of its paired interval.
    #[serde(deserialize_with = "number_or_empty")]
    pub ppl_ratio_low: Option<f64>,
    /// See `ppl_ratio_low`.
    #[serde(deserialize_with = "number_or_empty")]
    pub ppl_ratio_high: Option<f64>,
    /// Mean score over the suite's tasks, 0 to 100, whatever the context; none where they have not been run, and for a single
    /// domain.
    #[serde(deserialize_with = "number_or_empty")]
    pub task_score: Option<f64>,
    /// Prompts answered.
    #[serde(deserialize_with = "number_or_empty")]
    pub task_n: Option<usize>,
    /// `task_score` less the uncompressed cache's, over the same prompts.
    #[serde(deserialize_with = "number_or_empty")]
    pub task_difference: Option<f64>,
    /// Ends of its paired interval.
    #[serde(deserialize_with = "number_or_empty")]
    pub task_difference_low: Option<f64>,
    /// See `task_difference_low`.
    #[serde(deserialize_with = "number_or_empty")]
    pub task_difference_high: Option<f64>,
    /// Bytes of offline artefacts, shared by all sequences.
    pub shared_bytes: usize,
    /// Time to compress a context, in milliseconds, mean over documents.
    pub encode_ms: f64,
    /// Time to decode a token, in milliseconds, mean over documents.
    pub decode_ms_per_token: f64,
}

impl From<&crate::HeldoutRow> for CompareDocument {
    /// A document of the evaluation, which decodes nothing token by token: that time is 0.
    fn from(row: &crate::HeldoutRow) -> Self {
        let scheme = match row.dictionary.as_str() {
            "" | "neuraldict" => row.scheme.clone(),
            dictionary => format!("{}@{dictionary}", row.scheme),
        };
        Self {
            id: row.id.clone(),
            domain: row.domain.clone(),
            scheme,
            context: row.context,
            scored: row.scored,
            nll_sum: row.nll_sum,
            kl_sum: row.kl_sum,
            top1_agree: row.top1_agree,
            nominal_bits: row.nominal_bits,
            measured_bits: row.measured_bits,
            shared_bytes: row.shared_bytes,
            encode_ms: row.encode_ms,
            decode_ms_per_token: 0.0,
        }
    }
}

/// Ends of an interval, or nothing.
pub type Ends = Option<(f64, f64)>;

/// Summarises documents by scheme, context and domain, `all` first, in order of appearance. `interval` is given a number
/// per document and returns the ends of the interval of its mean.
///
/// The perplexity of a row is compared with `dense` on the same documents; without such rows the ratio is not a number.
pub fn summarise(rows: &[CompareDocument], interval: impl Fn(&[f64]) -> Ends) -> Vec<CompareRow> {
    let mut keys: Vec<(usize, &str, &str)> = Vec::new();
    for all in [true, false] {
        for row in rows {
            let key = (row.context, if all { "all" } else { row.domain.as_str() }, row.scheme.as_str());
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
    }
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
            .filter(|r| r.context == context && r.scheme == scheme && (domain == "all" || r.domain == domain))
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
pub fn add_tasks(rows: &mut [CompareRow], scores: &[AverageCell]) {
    for row in rows.iter_mut().filter(|row| row.domain == "all") {
        let Some(score) = scores.iter().find(|score| score.scheme == row.scheme) else { continue };
        row.task_score = Some(score.task_mean);
        row.task_n = Some(score.n);
        row.task_difference = score.difference.map(|d| d.points);
        row.task_difference_low = score.difference.map(|d| d.low);
        row.task_difference_high = score.difference.map(|d| d.high);
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

fn optional(x: Option<f64>) -> String {
    x.map(|x| x.to_string()).unwrap_or_default()
}

impl CsvRow for CompareRow {
    const HEADER: &'static [&'static str] = &[
        "scheme",
        "domain",
        "context",
        "n",
        "scored",
        "nominal_bits",
        "measured_bits",
        "kl",
        "kl_low",
        "kl_high",
        "top1",
        "top1_low",
        "top1_high",
        "ppl",
        "ppl_ratio",
        "ppl_ratio_low",
        "ppl_ratio_high",
        "task_score",
        "task_n",
        "task_difference",
        "task_difference_low",
        "task_difference_high",
        "shared_bytes",
        "encode_ms",
        "decode_ms_per_token",
    ];

    fn fields(&self) -> Vec<String> {
        vec![
            self.scheme.clone(),
            self.domain.clone(),
            self.context.to_string(),
            self.n.to_string(),
            self.scored.to_string(),
            self.nominal_bits.to_string(),
            self.measured_bits.to_string(),
            self.kl.to_string(),
            optional(self.kl_low),
            optional(self.kl_high),
            self.top1.to_string(),
            optional(self.top1_low),
            optional(self.top1_high),
            self.ppl.to_string(),
            self.ppl_ratio.to_string(),
            optional(self.ppl_ratio_low),
            optional(self.ppl_ratio_high),
            optional(self.task_score),
            self.task_n.map(|n| n.to_string()).unwrap_or_default(),
            optional(self.task_difference),
            optional(self.task_difference_low),
            optional(self.task_difference_high),
            self.shared_bytes.to_string(),
            self.encode_ms.to_string(),
            self.decode_ms_per_token.to_string(),
        ]
    }
}

#[cfg(feature = "tables")]
impl crate::tables::Tabular for CompareRow {
    fn frame(rows: &[Self]) -> Result<polars::prelude::DataFrame, crate::ReportError> {
        let text = |of: fn(&Self) -> &str| rows.iter().map(of).collect::<Vec<_>>();
        let count = |of: fn(&Self) -> usize| rows.iter().map(|r| of(r) as u64).collect::<Vec<_>>();
        let float = |of: fn(&Self) -> f64| rows.iter().map(of).collect::<Vec<_>>();
        let maybe = |of: fn(&Self) -> Option<f64>| rows.iter().map(of).collect::<Vec<_>>();
        let frame = polars::df![
            "scheme" => text(|r| &r.scheme),
            "domain" => text(|r| &r.domain),
            "context" => count(|r| r.context),
            "n" => count(|r| r.n),
            "scored" => count(|r| r.scored),
            "nominal_bits" => float(|r| r.nominal_bits),
            "measured_bits" => float(|r| r.measured_bits),
            "kl" => float(|r| r.kl),
            "kl_low" => maybe(|r| r.kl_low),
            "kl_high" => maybe(|r| r.kl_high),
            "top1" => float(|r| r.top1),
            "top1_low" => maybe(|r| r.top1_low),
            "top1_high" => maybe(|r| r.top1_high),
            "ppl" => float(|r| r.ppl),
            "ppl_ratio" => float(|r| r.ppl_ratio),
            "ppl_ratio_low" => maybe(|r| r.ppl_ratio_low),
            "ppl_ratio_high" => maybe(|r| r.ppl_ratio_high),
            "task_score" => maybe(|r| r.task_score),
            "task_n" => rows.iter().map(|r| r.task_n.map(|n| n as u64)).collect::<Vec<_>>(),
            "task_difference" => maybe(|r| r.task_difference),
            "task_difference_low" => maybe(|r| r.task_difference_low),
            "task_difference_high" => maybe(|r| r.task_difference_high),
            "shared_bytes" => count(|r| r.shared_bytes),
            "encode_ms" => float(|r| r.encode_ms),
            "decode_ms_per_token" => float(|r| r.decode_ms_per_token),
        ];
        frame.map_err(crate::ReportError::from)
    }
}

/// The table of one context over all texts, the least measured bits first.
pub fn markdown(rows: &[CompareRow]) -> String {
    let best: Vec<&str> = frontier(rows).iter().map(|row| row.scheme.as_str()).collect();
    let mut rows: Vec<&CompareRow> = rows.iter().collect();
    rows.sort_by(|a, b| a.measured_bits.total_cmp(&b.measured_bits));
    let mut table = String::from(
        "| scheme | nominal bits | measured bits | KL (nats), 95 % interval | top-1 (%) | perplexity | over dense | tasks (less dense, 95 %) | \
         encode (ms) | decode (ms/token) |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for row in rows {
        let ends = match (row.kl_low, row.kl_high) {
            (Some(low), Some(high)) => format!(" ({low:.4} to {high:.4})"),
            _ => String::new(),
        };
        let name = if best.contains(&row.scheme.as_str()) { format!("**{}**", row.scheme) } else { row.scheme.clone() };
        let less = match (row.task_difference, row.task_difference_low, row.task_difference_high) {
            (Some(points), Some(low), Some(high)) => format!(" ({points:+.1}, {low:+.1} to {high:+.1})"),
            _ => String::new(),
        };
        let tasks = row.task_score.map_or_else(|| "not run".to_owned(), |score| format!("{score:.1}{less}"));
        table += &format!(
            "| {name} | {:.2} | {:.2} | {:.4}{ends} | {:.1} | {:.2} | {:.3} | {tasks} | {:.0} | {:.1} |\n",
            row.nominal_bits,
            row.measured_bits,
            row.kl,
            100.0 * row.top1,
            row.ppl,
            row.ppl_ratio,
            row.encode_ms,
            row.decode_ms_per_token
        );
    }
    table
}

type Time = fn(&CompareRow) -> f64;

/// The times of a row, with the decimals that they are shown to.
const TIMES: [(Time, usize); 2] = [(|row| row.encode_ms, 0), (|row| row.decode_ms_per_token, 1)];

/// Time to compress a context and to decode a token after it, a line per scheme and a pair of columns per context.
pub fn times_markdown(rows: &[CompareRow]) -> String {
    let (mut schemes, mut contexts): (Vec<&str>, Vec<usize>) = (Vec::new(), Vec::new());
    for row in rows {
        if !schemes.contains(&row.scheme.as_str()) {
            schemes.push(&row.scheme);
        }
        if !contexts.contains(&row.context) {
            contexts.push(row.context);
        }
    }
    let mut table = String::from("| scheme |");
    for what in ["encode", "decode"] {
        for context in &contexts {
            // Writing to a string cannot fail.
            let _ = write!(table, " {what} {context} tokens (ms) |");
        }
    }
    let _ = write!(table, "\n|---|{}\n", "--:|".repeat(2 * contexts.len()));
    for scheme in schemes {
        let _ = write!(table, "| {scheme} |");
        for (time, decimals) in TIMES {
            for context in &contexts {
                let row = rows.iter().find(|row| row.scheme == scheme && row.context == *context);
                let cell = row.map_or_else(String::new, |row| format!("{:.decimals$}", time(row)));
                let _ = write!(table, " {cell} |");
            }
        }
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
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

        let scored = AverageCell {
            scheme: "kivi-2".to_owned(),
            rank: None,
            n: 12,
            nominal_bits: 2.0,
            measured_bits: 3.0,
            tokens: 900.0,
            encode_ms_per_1k: 1.0,
            decode_ms_per_token: 1.0,
            task_mean: 31.25,
            category_mean: 30.0,
            difference: Some(crate::longbench::Difference { points: -2.5, low: -4.0, high: 0.5 }),
        };
        add_tasks(&mut rows, &[scored]);
        let all: Vec<CompareRow> = rows.iter().filter(|r| r.domain == "all").cloned().collect();
        let table = markdown(&all);
        assert!(table.contains("| 31.2 (-2.5, -4.0 to +0.5) | 3 | 1.5 |"), "{table}");
        assert!(table.contains("| 1.000 | not run |"), "dense had no tasks: {table}");
        let (kivi, wiki) = (all.iter().find(|r| r.scheme == "kivi-2").unwrap(), rows.last().unwrap());
        let fields = kivi.fields();
        let at = |name: &str| &fields[CompareRow::HEADER.iter().position(|h| *h == name).unwrap()];
        assert_eq!((at("task_score").as_str(), at("task_n").as_str()), ("31.25", "12"));
        assert_eq!((at("task_difference").as_str(), at("task_difference_high").as_str()), ("-2.5", "0.5"));
        assert_eq!((wiki.domain != "all", wiki.task_score), (true, None));

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("compare.csv");
        crate::csv::write(&path, &rows).unwrap();
        assert_eq!(crate::csv::read::<CompareRow>(&path).unwrap(), rows, "empty fields are nothing");

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
