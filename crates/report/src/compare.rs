//! Tables that compare all schemes on the same documents at one context length.

use kvcsr_records::heldout::{ALL, REPEAT};
pub use kvcsr_records::{OverallRow, SchemeSummary};

use crate::evidence::{is_reference, not_shown_better_than_deletion};
use crate::figures::listed;
use crate::grouping::{distinct, grouped};
use crate::table::{Cells, Table};

/// Adds the task scores of the schemes to the rows over all domains. The scores are the same for every context.
pub fn add_tasks(rows: &mut [SchemeSummary], scores: &[OverallRow]) {
    for row in rows.iter_mut().filter(|row| row.domain == ALL) {
        let label = row.label();
        let Some(score) = scores.iter().find(|score| score.scheme == label) else { continue };
        row.task_score = Some(score.task_mean);
        row.task_bits = Some(score.measured_bits);
        row.task_n = Some(score.n);
        (row.task_difference, row.task_difference_low, row.task_difference_high) =
            (score.difference, score.low, score.high);
    }
}

/// The rows over all documents, sorted by rising measured bits.
fn by_bits(rows: &[SchemeSummary]) -> Vec<&SchemeSummary> {
    let mut rows: Vec<&SchemeSummary> = rows.iter().filter(|row| row.domain == ALL).collect();
    rows.sort_by(|a, b| a.measured_bits.total_cmp(&b.measured_bits));
    rows
}

/// A number with `decimals` decimals, and its interval if there is one.
fn with_ends(value: Option<f64>, ends: (Option<f64>, Option<f64>), decimals: usize) -> String {
    match (value, ends) {
        (None, _) => String::new(),
        (Some(value), (Some(low), Some(high))) => {
            format!("{value:.decimals$} ({low:.decimals$} to {high:.decimals$})")
        }
        (Some(value), _) => format!("{value:.decimals$}"),
    }
}

/// Marks a scheme that is not shown to be better than deletion at equal bits.
pub const MARK: &str = "†";

/// Explains the marks of [`markdown`].
pub const LEGEND: &str = "Far-context recovery: 0 as deleting all but 4 sinks and the last 256 tokens, 1 as the exact cache, over the \
     positions where deletion changes the model. Bold: no scheme of at most as many measured bits recovers more, as far as the paired \
     95 % interval can tell; to win, another scheme must also lose less by more than the noise of training, \
     `heldout.training_noise`. Bits are those of a sequence; what sequences share is in the next table. \
     †: not shown to be better than deletion of the StreamingLLM kind (`evict`) at equal \
     measured bits: the paired interval of the difference reaches 0. The other deletion, `snapkv`, has rows of its own.";

/// The name of the scheme in a table: bold on the frontier, with [`MARK`] if it is not shown to be better than deletion.
fn name(row: &SchemeSummary) -> String {
    let mark = if not_shown_better_than_deletion(row) { MARK } else { "" };
    let label = row.label();
    if row.frontier && !is_reference(row) { format!("**{label}**{mark}") } else { format!("{label}{mark}") }
}

/// The task score and the bits it took there. Prompts of tasks are shorter than the context, so windows take more bits per
/// channel.
fn task_cell(row: &SchemeSummary) -> String {
    match (row.task_score, row.task_bits) {
        (None, _) => "not run".to_owned(),
        (Some(score), None) => format!("{score:.1}"),
        (Some(score), Some(bits)) => format!("{score:.1} at {bits:.1} bits"),
    }
}

/// The table of one context. `rows` are those of all its domains. Lines are sorted by rising measured bits.
pub fn markdown(rows: &[SchemeSummary]) -> String {
    let numbers = [
        "nominal bits",
        "measured bits",
        "far-context recovery, 95 %",
        "less deletion's at equal bits",
        "recovery of repeated passages",
        "KL (nats), 95 %",
        "KL, 99.9th percentile",
        "top-1 (%)",
        "perplexity / dense",
    ];
    let tasks = rows.iter().any(|row| row.task_score.is_some());
    let numbers = numbers.into_iter().chain(tasks.then_some("tasks (difference to dense, 95 %)"));
    let mut table = Table::of(["scheme"], numbers);
    for row in by_bits(rows) {
        let again = rows.iter().find(|other| other.domain == REPEAT && other.label() == row.label());
        let difference = match (row.task_difference, row.task_difference_low, row.task_difference_high) {
            (Some(points), Some(low), Some(high)) => format!(" ({points:+.1}, {low:+.1} to {high:+.1})"),
            _ => String::new(),
        };
        let cells = [
            name(row),
            format!("{:.2}", row.nominal_bits),
            format!("{:.2}", row.measured_bits),
            with_ends(row.recovery, (row.recovery_low, row.recovery_high), 3),
            with_ends(row.over_deletion, (row.over_deletion_low, row.over_deletion_high), 3),
            with_ends(again.and_then(|row| row.recovery), (None, None), 3),
            with_ends(Some(row.kl), (row.kl_low, row.kl_high), 4),
            format!("{:.3}", row.kl_tail),
            format!("{:.1}", 100.0 * row.top1),
            with_ends(row.ppl_ratio, (None, None), 3),
        ];
        table.row(cells.into_iter().chain(tasks.then(|| task_cell(row) + &difference)));
    }
    table.into_text()
}

/// The bytes that sequences share, and the bits including them, for one context.
pub fn memory_markdown(rows: &[SchemeSummary]) -> String {
    let numbers = [
        "measured bits",
        "shared MB, as held",
        "shared MB, as stored",
        "all-in bits, 1 sequence",
        "8 sequences",
        "64 sequences",
    ];
    let mut table = Table::of(["scheme"], numbers);
    for row in by_bits(rows) {
        table.row([
            row.label(),
            format!("{:.2}", row.measured_bits),
            format!("{:.1}", row.shared_bytes as f64 / 1e6),
            format!("{:.1}", row.stored_bytes as f64 / 1e6),
            format!("{:.2}", row.all_in_bits_1),
            format!("{:.2}", row.all_in_bits_8),
            format!("{:.2}", row.all_in_bits_64),
        ]);
    }
    table.into_text()
}

/// The schemes in the README's table: deletion as the control; CSR and CSR+ at several rates, with exact tokens and without;
/// peers as published, and our best variants of them at 2 to 5 bits; the uncompressed cache that most servers use.
const HEADLINE: [&str; 17] = [
    "evict(sinks=4,recent=508)",
    "csr-8",
    "csr-8+window",
    "csr+@1",
    "csr+@2",
    "csr+@2+window(sinks=0,recent=0)",
    "csr+@3",
    "csr+@4",
    "cq-4c8b+window",
    "svdq-2(values=kivi-2)",
    "turboquant-3+centre+window",
    "turboquant-4",
    "nsnquant-2",
    "q4_0+hadamard+window",
    "kivi-2",
    "kivi-4",
    "dense-f16",
];

/// Families that keep a buffer of the newest tokens, as published: how their labels begin, and their names for readers.
const BUFFERED: [(&str, &str); 8] = [
    ("kivi", "KIVI"),
    ("gear", "GEAR"),
    ("asymkv", "AsymKV"),
    ("vidkv", "VidKV"),
    ("nsnquant", "NSNQuant"),
    ("svdq", "SVDq"),
    ("commvq", "CommVQ"),
    ("lexico", "Lexico"),
];

/// Says which of these schemes keep tokens exact, and which tokens.
pub fn exact_tokens<'a>(rows: impl IntoIterator<Item = &'a SchemeSummary>) -> String {
    let labels: Vec<String> = rows.into_iter().map(SchemeSummary::label).collect();
    let any = |start: &str| labels.iter().any(|label| label.starts_with(start));
    let mut sentences = Vec::new();
    if any("csr+@") {
        sentences.push(
            "`csr+@B` keeps the first 4 and the last 32 (below 1.75 bits: the last 16, and 112 more at 4 bits)."
                .to_owned(),
        );
    }
    if labels.iter().any(|label| label.contains("+window")) {
        sentences.push("`+window` keeps the first 4 and the last 128, or as many as it names.".to_owned());
    }
    let buffered: Vec<String> =
        BUFFERED.iter().filter(|(start, _)| any(start)).map(|(_, name)| (*name).to_owned()).collect();
    if !buffered.is_empty() {
        let keep = if buffered.len() == 1 { "keeps" } else { "keep" };
        sentences.push(format!("{} {keep} a buffer of the newest tokens, as published.", listed(&buffered)));
    }
    if any("evict") || any("snapkv") {
        sentences.push("`evict` and `snapkv` keep all that they do not delete.".to_owned());
    }
    sentences.push("Other schemes that compress keep none.".to_owned());
    format!("Exact tokens: {}", sentences.join(" "))
}

/// The rows that the README shows, sorted by rising measured bits.
pub fn headline(rows: &[SchemeSummary]) -> Vec<&SchemeSummary> {
    by_bits(rows).into_iter().filter(|row| HEADLINE.contains(&row.label().as_str())).collect()
}

/// The README's table of one context: some of the schemes and the most important numbers, sorted by rising measured bits.
pub fn headline_markdown(rows: &[SchemeSummary]) -> String {
    let rows = headline(rows);
    let tasks = rows.iter().any(|row| row.task_score.is_some());
    let numbers = ["measured bits per channel", "far-context recovery, 95 %", "KL (nats)"];
    let numbers = numbers.into_iter().chain(tasks.then_some("tasks (0 to 100)"));
    let columns = numbers.map(|number| (number.to_owned(), Cells::Number));
    let mut table = Table::new([("scheme".to_owned(), Cells::Text)].into_iter().chain(columns));
    for row in rows {
        let score = || task_cell(row);
        let cells = [
            format!("`{}`", row.label()),
            format!("{:.2}", row.measured_bits),
            with_ends(row.recovery, (row.recovery_low, row.recovery_high), 3),
            format!("{:.4}", row.kl),
        ];
        table.row(cells.into_iter().chain(tasks.then(score)));
    }
    table.into_text()
}

type Time = fn(&SchemeSummary) -> Option<f64>;

/// The times of a row, each with its heading and number of decimals.
const TIMES: [(&str, Time, usize); 2] =
    [("encode", |row| Some(row.encode_ms), 0), ("decode", |row| row.decode_ms_per_token, 1)];

/// Time to compress a context and to decode a token after it: one line per scheme, and two columns per context.
pub fn times_markdown(rows: &[SchemeSummary]) -> String {
    let contexts = distinct(rows.iter().map(|row| row.context));
    let heading = |what: &str, context: usize| (format!("{what} {context} tokens (ms)"), Cells::Number);
    let columns = TIMES.iter().flat_map(|(what, ..)| contexts.iter().map(move |&context| heading(what, context)));
    let mut table = Table::new([("scheme".to_owned(), Cells::Text)].into_iter().chain(columns));
    for (scheme, own) in grouped(rows, |row| row.label()) {
        let time = |of: Time, decimals: usize, context: usize| {
            let row = own.iter().find(|row| row.context == context);
            row.and_then(|row| of(row)).map_or_else(String::new, |ms| format!("{ms:.decimals$}"))
        };
        let times = TIMES.iter().flat_map(|&(_, of, decimals)| contexts.iter().map(move |&c| (of, decimals, c)));
        table.row([scheme].into_iter().chain(times.map(|(of, decimals, context)| time(of, decimals, context))));
    }
    table.into_text()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kvcsr_records::{DictionarySource, HeldoutRow, csv};
    use kvcsr_stats::Bootstrap;

    use super::*;
    use crate::aggregate::{Statistics, summarise};

    fn document(id: &str, scheme: &str, far_kl_sum: f64, measured_bits: f64) -> HeldoutRow {
        HeldoutRow {
            id: id.to_owned(),
            domain: id.split('-').next().unwrap().to_owned(),
            scheme: scheme.to_owned(),
            dictionary: DictionarySource::None,
            context: 100,
            windows: 1,
            scored: 10,
            nll_sum: 20.0,
            kl_sum: far_kl_sum + 1.0,
            kl_tail: 0.5,
            top1_agree: 9,
            far: 4,
            far_kl_sum,
            hidden_kl_sum: 10.0,
            nominal_bits: 2.0,
            measured_bits,
            shared_bytes: 3_000_000,
            stored_bytes: 1_000_000,
            channels: 1000,
            encode_ms: 3.0,
            decode_ms_per_token: (scheme != "dense").then_some(1.5),
        }
    }

    fn summaries() -> Vec<SchemeSummary> {
        let of = |scheme: &str, loss: f64, bits: f64| {
            ["play-0", "play-1", "source-0", "source-1", "repeat-0"]
                .iter()
                .enumerate()
                .map(|(i, id)| document(id, scheme, loss + 0.01 * i as f64, bits))
                .collect::<Vec<_>>()
        };
        let rows = [
            of("dense", 0.0, 32.0),
            of("evict(sinks=4,recent=256)", 10.0, 1.0),
            of("evict(sinks=4,recent=512)", 2.0, 4.0),
            of("kivi-2", 1.001, 3.25),
            of("bad", 8.0, 3.5),
        ];
        let bootstrap = Bootstrap { resamples: 300, level: 0.95, seed: 1 };
        summarise(&rows.concat(), Statistics { bootstrap, noise: 0.0 }).unwrap()
    }

    #[test]
    fn exact_tokens_are_told_of_the_schemes_that_are_shown() {
        let told = |names: &[&str]| {
            let rows: Vec<HeldoutRow> = names.iter().map(|name| document("a-1", name, 1.0, 2.0)).collect();
            let statistics = Statistics { bootstrap: Bootstrap { resamples: 10, level: 0.95, seed: 1 }, noise: 0.0 };
            exact_tokens(&summarise(&rows, statistics).unwrap())
        };
        let all = told(&["dense", "evict(sinks=4,recent=8)", "kivi-2", "lexico-8", "gear-4", "csr+@2", "csr-8+window"]);
        for part in ["`csr+@B` keeps", "`+window` keeps", "KIVI, GEAR and Lexico keep a buffer", "`evict`"] {
            assert!(all.contains(part), "{all}");
        }
        assert!(!all.contains("SVDq"), "{all}");
        assert_eq!(told(&["dense", "csr-8"]), "Exact tokens: Other schemes that compress keep none.");
        assert!(told(&["dense", "svdq-2"]).contains("SVDq keeps a buffer"));
    }

    #[test]
    fn tables_lead_with_recovery_and_mark_what_is_not_shown_to_beat_deletion() {
        let mut rows = summaries();
        let table = markdown(&rows);
        let line =
            |start: &str| table.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{table}"));
        assert!(line("| **kivi-2** |").contains("| 2.00 | 3.25 | 0.898 ("), "{table}");
        assert!(line("| bad† |").contains(" | 0.196 | "), "{table}");
        assert!(!table.contains("tasks ("), "a column for what was not run");
        assert!(table.find("| **evict").unwrap() < table.find("| **kivi-2").unwrap(), "the least bits first");

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
        let table = markdown(&rows);
        assert!(table.contains("| 31.2 at 3.0 bits (-2.5, -4.0 to +0.5) |"), "{table}");
        assert!(table.contains("| not run |\n"), "{table}");
        let of = |domain: &str| rows.iter().find(|r| r.scheme == "kivi-2" && r.domain == domain).unwrap();
        assert_eq!((of("all").task_score, of("all").task_n, of("play").task_score), (Some(31.25), Some(12), None));

        let memory = memory_markdown(&rows);
        // 1 MB over 1000 channels and 100 tokens is 80 bits.
        assert!(memory.contains("| kivi-2 | 3.25 | 3.0 | 1.0 | 83.25 | 13.25 | 4.50 |"), "{memory}");
        let headline = headline_markdown(&rows);
        assert!(headline.contains("| `kivi-2` | 3.25 | 0.898 ("), "{headline}");

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("compare.csv");
        csv::write(&path, &rows).unwrap();
        assert_eq!(csv::read::<SchemeSummary>(&path).unwrap(), rows, "empty fields are nothing");
    }

    #[test]
    fn times_stand_by_context() {
        let rows: Vec<SchemeSummary> = summaries().into_iter().filter(|row| row.domain == ALL).collect();
        let (dense, kivi) = (&rows[0], rows.iter().find(|row| row.scheme == "kivi-2").unwrap());
        let longer = SchemeSummary { context: 200, encode_ms: 7.0, ..kivi.clone() };
        let table = times_markdown(&[dense.clone(), kivi.clone(), longer]);
        assert!(table.contains("| encode 200 tokens (ms) | decode 100 tokens (ms) |"), "{table}");
        assert!(table.contains("| dense | 3 |  |  |  |\n| kivi-2 | 3 | 7 | 1.5 | 1.5 |"), "{table}");
    }
}
