//! Figures of schemes: quality, bits, time.

use kvcsr_report::{
    DictionarySource, HeldoutRow, ReportError, RetrievalRow, SchemeSummary, SweepRow,
    aggregate::{self, Statistics},
    figures::{Frontier, QualityBits, RetrievalGrid, SweepQuality, TimeLength},
    save::{self, Figure},
};

use kvcsr_stats::Bootstrap;

use crate::{check, wobble};

/// A document. A scheme with a mean KL of `kl` loses about the same fraction of its far context.
fn row(context: usize, kl: f64, spread: f64) -> HeldoutRow {
    let scored = 512;
    HeldoutRow {
        id: String::new(),
        domain: "play".to_owned(),
        scheme: String::new(),
        dictionary: DictionarySource::None,
        context,
        windows: 1,
        scored,
        nll_sum: scored as f64 * (2.5 + kl),
        kl_sum: scored as f64 * kl * spread,
        kl_tail: 10.0 * kl,
        top1_agree: (scored as f64 / (1.0 + kl)) as usize,
        far: 40,
        far_kl_sum: 40.0 * kl * spread,
        hidden_kl_sum: 40.0,
        nominal_bits: 2.0,
        measured_bits: 2.0,
        shared_bytes: 0,
        stored_bytes: 0,
        channels: 11_520,
        encode_ms: 120.0,
        decode_ms_per_token: Some(30.0),
    }
}

fn heldout() -> Vec<HeldoutRow> {
    let schemes = [
        ("dense", DictionarySource::None, 16.0, 16.0, 0.0),
        ("csr-4", DictionarySource::NeuralDict, 2.0, 2.6, 0.21),
        ("csr-6", DictionarySource::NeuralDict, 3.0, 3.6, 0.11),
        ("csr-8", DictionarySource::NeuralDict, 4.0, 4.6, 0.06),
        ("csr-16", DictionarySource::NeuralDict, 8.0, 8.6, 0.014),
        ("csr-4", DictionarySource::KMeans, 2.0, 2.6, 0.29),
        ("csr-6", DictionarySource::KMeans, 3.0, 3.6, 0.15),
        ("csr-8", DictionarySource::KMeans, 4.0, 4.6, 0.075),
        ("csr-16", DictionarySource::KMeans, 8.0, 8.6, 0.0135),
        ("kivi-2", DictionarySource::None, 2.5, 2.75, 0.12),
        ("kivi-4", DictionarySource::None, 4.5, 4.75, 0.011),
    ];
    let mut rows = Vec::new();
    for (index, (scheme, dictionary, nominal_bits, measured_bits, kl)) in schemes.into_iter().enumerate() {
        for document in 0..8 {
            let spread = 0.5 + wobble(index, document);
            rows.push(HeldoutRow {
                id: format!("doc-{document}"),
                domain: ["paper", "source", "play", "manual"][document % 4].to_owned(),
                scheme: scheme.to_owned(),
                dictionary,
                nominal_bits,
                measured_bits,
                shared_bytes: 94_371_840,
                ..row(1024, kl, spread)
            });
        }
    }
    rows
}

#[test]
fn quality_bits() {
    let rows = heldout();
    let svg = check::<QualityBits>(
        &rows,
        &["csr, NeuralDict", "csr, k-means", "kivi-2", "dense", "measured bits per channel", "far context lost"],
    );
    assert_eq!(svg.matches("csr-16\n").count(), 2, "one label per scheme and dictionary");
    let caption = QualityBits::caption(&rows);
    assert!(caption.contains("8 long documents, 1024 tokens"), "{caption}");
    let dense_only: Vec<HeldoutRow> = rows.into_iter().filter(|row| row.scheme == "dense").collect();
    assert!(matches!(save::svg::<QualityBits>(&dense_only), Err(ReportError::Empty { .. })));
}

/// Schemes with their measured bits and KL. As in a real comparison, many are within a factor of two of each other.
const COMPARED: [(&str, f64, f64); 33] = [
    ("dense", 32.0, 0.0),
    ("dense-bf16", 16.0, 2e-5),
    ("dense-f16", 16.0, 1e-6),
    ("fp8", 8.03, 0.0066),
    ("q8_0", 8.53, 0.0003),
    ("q4_0", 4.53, 0.052),
    ("q4_0+hadamard", 4.53, 0.027),
    ("kivi-4", 5.8, 0.0035),
    ("kivi-2", 3.9, 0.136),
    ("gear-4", 5.9, 0.0094),
    ("gear-2", 4.3, 0.128),
    ("asymkv-16-0", 3.2, 3.95),
    ("vidkv-1.5-1.58", 2.4, 0.35),
    ("turboquant-4", 4.28, 0.039),
    ("turboquant-3.5", 3.8, 0.103),
    ("turboquant-3", 3.28, 0.195),
    ("turboquant-2.5", 2.8, 0.406),
    ("turboquant-2", 2.28, 0.998),
    ("svdq-2", 10.1, 0.051),
    ("svdq-2(values=kivi-2)", 4.4, 0.083),
    ("lexico-8", 4.7, 0.2),
    ("lexico-16", 7.3, 0.031),
    ("cq-8c8b", 1.03, 1.35),
    ("cq-8c8b+window", 3.0, 0.315),
    ("commvq-k-1", 8.6, 0.387),
    ("commvq-k-2", 9.2, 0.262),
    ("csr-4", 2.03, 0.976),
    ("csr-8", 4.03, 0.279),
    ("csr-16", 8.03, 0.047),
    ("csr-8+online", 8.5, 0.18),
    ("csr-4+window", 4.8, 0.279),
    ("csr-8+window", 6.6, 0.065),
    ("csr-8+fp8", 2.28, 0.306),
];

#[test]
fn frontier() {
    let mut rows = Vec::new();
    for (scheme, measured_bits, kl) in COMPARED {
        for document in 0..4 {
            let spread = 0.7 + 0.6 * wobble(document, scheme.len());
            rows.push(HeldoutRow {
                id: format!("doc-{document}"),
                scheme: scheme.to_owned(),
                nominal_bits: measured_bits,
                measured_bits,
                ..row(4096, kl, spread)
            });
        }
    }
    let bootstrap = Bootstrap { resamples: 200, level: 0.95, seed: 1 };
    let mut rows = aggregate::summarise(&rows, Statistics { bootstrap, noise: 0.0 }).unwrap();
    rows.retain(|row| row.domain == "all");
    let names: Vec<&str> = COMPARED.iter().map(|(scheme, ..)| *scheme).collect();
    let svg = check::<Frontier>(&rows, &names);
    let lossy = COMPARED.iter().filter(|(scheme, ..)| !scheme.starts_with("dense")).count();
    assert_eq!(svg.matches("<circle").count(), lossy, "a dot for every scheme that loses anything");
    assert!(Frontier::caption(&rows).contains("33 schemes on the same 4 long documents, 4096 tokens compressed"));
    assert!(matches!(save::svg::<Frontier>(&rows[..1]), Err(ReportError::Empty { .. })));
}

#[test]
fn retrieval_grid() {
    let mut rows = Vec::new();
    for task in ["passkey", "needle"] {
        for (place, scheme) in ["dense", "csr-4", "csr-8", "csr-16", "csr-8+window"].into_iter().enumerate() {
            for tokens in [512, 1024, 2048] {
                for depth in [0.0, 0.5, 1.0] {
                    let score = if place == 0 { 1.0 } else { wobble(tokens + place, (10.0 * depth) as usize) };
                    rows.push(RetrievalRow { task: task.into(), scheme: scheme.into(), tokens, depth, n: 2, score });
                }
            }
        }
    }
    rows.pop();
    let svg = check::<RetrievalGrid>(&rows, &["passkey", "needle", "csr-8+window", "50 %", "tokens", "2048", "depth"]);
    assert!(svg.matches("\n100\n").count() >= 18, "a full cell of the dense cache each");
    assert!(RetrievalGrid::caption(&rows).contains("n = 2 prompts per cell"));
    assert!(RetrievalGrid::caption(&rows).contains("dense 100 %"));
    assert!(matches!(save::svg::<RetrievalGrid>(&[]), Err(ReportError::Empty { .. })));
}

#[test]
fn sweep_quality() {
    let mut rows = Vec::new();
    for (index, atoms) in [512, 1024, 2048].into_iter().enumerate() {
        for (scheme, kl) in [("dense", 0.0), ("csr-4@neuraldict", 0.9), ("csr-8@neuraldict", 0.3)] {
            rows.push(SweepRow {
                point: format!("train.atoms = {atoms}"),
                scheme: scheme.to_owned(),
                nominal_bits: 2.0,
                measured_bits: 2.1,
                shared_bytes: 9,
                perplexity: 14.0,
                kl: kl * 0.8_f64.powi(index as i32),
                recovery: None,
                top1_percent: 60.0,
            });
        }
    }
    let svg = check::<SweepQuality>(&rows, &["train.atoms", "1024", "2048", "csr-8@neuraldict"]);
    assert!(!svg.contains("dense"), "a scheme without loss has no place on a logarithmic axis");
    let caption = SweepQuality::caption(&rows);
    assert!(caption.contains("3 points") && caption.contains("csr-8@neuraldict at train.atoms = 2048"), "{caption}");
}

fn timed(scheme: &str, context: usize, encode_ms: f64, decode_ms_per_token: f64) -> HeldoutRow {
    HeldoutRow {
        scheme: scheme.to_owned(),
        encode_ms,
        decode_ms_per_token: Some(decode_ms_per_token),
        ..row(context, 0.1, 1.0)
    }
}

#[test]
fn time_length() {
    let schemes = [
        "dense-f16",
        "fp8",
        "q8_0",
        "q4_0",
        "q4_0+hadamard",
        "kivi-4",
        "kivi-2",
        "gear-4",
        "gear-2",
        "asymkv-16-0",
        "vidkv-1.5-1.58",
        "turboquant-4",
        "turboquant-3.5",
        "turboquant-3",
        "turboquant-2.5",
        "turboquant-2",
        "svdq-2",
        "svdq-2(values=kivi-2)",
        "lexico-8",
        "lexico-16",
        "cq-8c8b",
        "cq-8c8b+window",
        "commvq-k-1",
        "commvq-k-2",
        "csr-4",
        "csr-8",
        "csr-16",
        "csr-8+online",
        "csr-4+window",
        "csr-8+window",
        "csr-8+fp8",
    ];
    let mut documents = Vec::new();
    for context in [1024, 4096, 7936] {
        let t = context as f64;
        documents.push(timed("dense", context, 0.0, 20.0 + t / 100.0));
        for (index, scheme) in schemes.iter().enumerate() {
            let (a, b) = (wobble(index, 1), wobble(index, 2));
            documents.push(timed(scheme, context, t * (0.01 + a * a), 15.0 + t * (0.002 + 0.02 * b)));
        }
    }
    let rows: Vec<SchemeSummary> = aggregate::summarise(&documents, Statistics::MEANS).unwrap();
    let svg = check::<TimeLength>(
        &rows,
        &["csr-8", "milliseconds (log)", "Compressing the context", "Decoding one token after it"],
    );
    // An uncompressed cache takes no time to compress, so it is not in the left panel. Rows of single domains are not drawn.
    let count = |text: &str| svg.lines().filter(|line| line.trim() == text).count();
    assert_eq!((count("csr-8"), count("dense")), (2, 1));
    assert!(TimeLength::caption(&rows).contains("32 schemes at 1024, 4096 and 7936 tokens"));
    assert!(matches!(save::svg::<TimeLength>(&[]), Err(ReportError::Empty { .. })));
}
