//! Every figure from made-up rows: what it must say, that it is not blank, and that files appear whole.
//!
//! `KVCSR_FIGURES=<folder> cargo test -p kvcsr-report --test figures` keeps the pictures for a look.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{env, fs, path::PathBuf};

use kvcsr_codec::Footprint;
use kvcsr_report::{
    CoefficientRow, CompareDocument, DictionarySource, DivergenceRow, EpochRow, FootprintRow, HeldoutRow, Kind,
    PatternRow, ReconstructionRow, ReportError, RetrievalRow, ScatterRow, SweepRow, UsageRow, compare,
    figures::{
        AtomUsage, CoefficientHistogram, FootprintLength, Frontier, LayerDivergence, LayerError, MemoryLength,
        PromptScatter, QualityBits, RetrievalGrid, RotaryScatter, SparsityError, SparsityPattern, SweepQuality,
        TimeLength, TrainingLoss,
    },
    memory,
    save::{self, Figure},
};

/// A number in 0..1 that depends on its arguments only.
fn wobble(a: usize, b: usize) -> f64 {
    let x = (a as f64 * 12.9898 + b as f64 * 78.233).sin() * 43758.5453;
    x - x.floor()
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
            let (context, scored) = (1024, 512);
            let spread = 0.5 + wobble(index, document);
            rows.push(HeldoutRow {
                id: format!("doc-{document}"),
                domain: ["wiki", "code", "papers", "chat"][document % 4].to_owned(),
                scheme: scheme.to_owned(),
                dictionary,
                context,
                scored,
                nll_sum: scored as f64 * (2.5 + kl),
                kl_sum: scored as f64 * kl * spread,
                top1_agree: (scored as f64 * (1.0 - kl)) as usize,
                nominal_bits,
                measured_bits,
                shared_bytes: 94_371_840,
                encode_ms: 120.0,
                score_ms: 900.0,
            });
        }
    }
    rows
}

fn by_layer() -> Vec<ReconstructionRow> {
    let mut rows = Vec::new();
    for layer in 0..30 {
        for (kind, chunks, base) in [(Kind::Key, 1, 0.12), (Kind::Value, 2, 0.45)] {
            for level in [4, 6, 8, 16] {
                for (dictionary, factor) in [(DictionarySource::NeuralDict, 1.0), (DictionarySource::KMeans, 1.15)] {
                    let relative = base * factor * (4.0 / level as f64).powf(0.8) * (0.8 + 0.4 * wobble(layer, chunks));
                    rows.push(ReconstructionRow {
                        layer,
                        kind,
                        dictionary,
                        sparsity: level / chunks,
                        chunks,
                        relative,
                        mse: relative,
                        vectors: 4096,
                    });
                }
            }
        }
    }
    rows
}

fn by_sparsity() -> Vec<ReconstructionRow> {
    let mut rows = Vec::new();
    for (kind, chunks, base) in [(Kind::Key, 1, 0.4), (Kind::Value, 2, 0.8)] {
        for sparsity in [1, 2, 3, 4, 6, 8, 12, 16, 24, 32] {
            for (dictionary, power) in [(DictionarySource::NeuralDict, 0.9), (DictionarySource::KMeans, 0.8)] {
                let relative = base * (sparsity as f64).powf(-power);
                rows.push(ReconstructionRow {
                    layer: 12,
                    kind,
                    dictionary,
                    sparsity,
                    chunks,
                    relative,
                    mse: relative,
                    vectors: 4096,
                });
            }
        }
    }
    rows
}

fn epochs() -> Vec<EpochRow> {
    let mut rows = Vec::new();
    for (kind, base) in [(Kind::Key, 0.12), (Kind::Value, 0.42)] {
        for group in 0..12 {
            let start = base * (0.7 + 0.6 * wobble(group, 5));
            for epoch in 0..=20 {
                let heldout_relative = start * (0.8 + 0.2 * (-(epoch as f64) / 5.0).exp());
                rows.push(EpochRow {
                    group: format!("{kind}-{group}"),
                    kind,
                    layers: vec![2 * group, 2 * group + 1],
                    epoch,
                    mse: 1.0,
                    diversity: 0.01,
                    beta: 1.0,
                    train_relative: heldout_relative * 0.95,
                    heldout_relative,
                    dead_atoms: 3,
                    usage_entropy: 6.0,
                    seconds: 4.0,
                });
            }
        }
    }
    rows
}

/// Saves the figure, checks its files and returns the SVG.
fn check<F: Figure>(rows: &[F::Row], words: &[&str]) -> String {
    let scratch = tempfile::tempdir().unwrap();
    let folder = env::var_os("KVCSR_FIGURES").map_or_else(|| scratch.path().join("new folder"), PathBuf::from);
    let saved = save::figure::<F>(&folder, rows).unwrap();

    let svg = fs::read_to_string(&saved.svg).unwrap();
    for word in words {
        assert!(svg.contains(word), "{}: `{word}` is missing from the SVG", F::NAME);
    }
    let (width, height) = F::SIZE;
    assert!(svg.starts_with(&format!(
        "<svg width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {} {}\"",
        4 * width,
        4 * height
    )));

    let png = fs::read(&saved.png).unwrap();
    assert_eq!(&png[1..4], b"PNG");
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    assert_eq!((number(16), number(20)), (2 * width, 2 * height), "{}: size in the PNG's header", F::NAME);

    let (pixels, size) = save::raster::<F>(rows).unwrap();
    let inked = pixels.chunks_exact(3).filter(|pixel| pixel.iter().any(|&channel| channel < 200)).count();
    let share = inked as f64 / f64::from(size.0 * size.1);
    assert!((0.005..0.5).contains(&share), "{}: {share} of the pixels are inked", F::NAME);
    let stride = size.0 as usize * 3;
    let clean = |edge: &[u8]| edge.iter().all(|&channel| channel == 255);
    assert!(clean(&pixels[..stride]), "{}: ink at the upper edge", F::NAME);
    assert!(clean(&pixels[pixels.len() - stride..]), "{}: ink at the lower edge", F::NAME);
    let right_is_clean = pixels.chunks_exact(stride).all(|row| clean(&row[stride - 3..]));
    assert!(right_is_clean, "{}: ink at the right edge, a label is cut off", F::NAME);

    let csv = fs::read_to_string(&saved.csv).unwrap();
    assert_eq!(csv.lines().count(), rows.len() + 1, "{}: lines of the CSV", F::NAME);
    if env::var_os("KVCSR_FIGURES").is_none() {
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3, "{}: a temporary file was left behind", F::NAME);
    }
    svg
}

#[test]
fn quality_bits() {
    let rows = heldout();
    let svg = check::<QualityBits>(
        &rows,
        &["csr, NeuralDict", "csr, k-means", "kivi-2", "dense: KL 0", "measured bits per channel", "nats per token"],
    );
    assert_eq!(svg.matches("csr-16\n").count(), 2, "one label per scheme and dictionary");
    let caption = QualityBits::caption(&rows);
    assert!(caption.contains("8 held-out documents, 1024 tokens"), "{caption}");
    let dense_only: Vec<HeldoutRow> = rows.into_iter().filter(|row| row.scheme == "dense").collect();
    assert!(matches!(save::svg::<QualityBits>(&dense_only), Err(ReportError::Empty { .. })));
}

#[test]
fn layer_error() {
    let rows = by_layer();
    let svg = check::<LayerError>(
        &rows,
        &["Keys", "Values", "NeuralDict", "k-means only", "layer", "relative squared error"],
    );
    assert_eq!(svg.matches("CSR-16\n").count(), 2, "keys (16, 1) and values (8, 2) are one level");
    assert!(LayerError::caption(&rows).contains("240 of 240 pairs"));
}

#[test]
fn training_loss() {
    let rows = epochs();
    check::<TrainingLoss>(&rows, &["Keys, 12 groups", "Values, 12 groups", "median", "epoch"]);
    assert!(TrainingLoss::caption(&rows).contains("at epoch 20"));
}

#[test]
fn memory_length() {
    let rows = memory::paper_points();
    check::<MemoryLength>(
        &rows,
        &["Llama2-7B", "Llama3-8B", "SmolLM2-135M", "FP16", "CSR-4", "GB (log)", "30\u{2009}000"],
    );
}

#[test]
fn footprint_length() {
    let mut rows = Vec::new();
    for (model, bytes) in [("llama2-7b-chat", 524_288), ("llama3-8b-instruct", 131_072)] {
        for (scheme, share, dictionaries) in [("dense-f16", 16, 0), ("kivi-2", 3, 0), ("csr-4", 1, 100_663_296)] {
            rows.extend((1..=30).map(|thousand| {
                let footprint = Footprint { dense: bytes * thousand * 1000 * share / 16, ..Footprint::default() };
                FootprintRow {
                    tokens: thousand * 1000,
                    batch: 1,
                    nominal_bits: share as f64,
                    measured_bits: share as f64,
                    dictionaries,
                    ..FootprintRow::of(model, scheme, &footprint)
                }
            }));
        }
    }
    check::<FootprintLength>(&rows, &["llama2-7b-chat", "llama3-8b-instruct", "kivi-2", "csr-4", "GB", "tokens"]);
    assert!(matches!(save::svg::<FootprintLength>(&[]), Err(ReportError::Empty { .. })));
}

/// Schemes with their measured bits and KL, as crowded as a real comparison: many within a factor of two of each other.
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
            rows.push(CompareDocument {
                id: format!("doc-{document}"),
                domain: "wiki".to_owned(),
                scheme: scheme.to_owned(),
                context: 4096,
                scored: 128,
                nll_sum: 128.0 * (2.5 + kl),
                kl_sum: 128.0 * kl * spread,
                top1_agree: 100,
                nominal_bits: measured_bits,
                measured_bits,
                shared_bytes: 0,
                encode_ms: 100.0,
                decode_ms_per_token: 30.0,
            });
        }
    }
    let mut rows = compare::summarise(&rows, |x| {
        let (low, high) = x.iter().fold((f64::MAX, f64::MIN), |(low, high), &x| (low.min(x), high.max(x)));
        Some((low, high))
    });
    rows.retain(|row| row.domain == "all");
    let names: Vec<&str> = COMPARED.iter().map(|(scheme, ..)| *scheme).collect();
    let svg = check::<Frontier>(&rows, &names);
    let lossy = COMPARED.iter().filter(|(scheme, ..)| !scheme.starts_with("dense")).count();
    assert_eq!(svg.matches("<circle").count(), lossy, "a dot for every scheme that loses anything");
    assert!(Frontier::caption(&rows).contains("33 schemes on the same 4 documents, 4096 tokens compressed"));
    assert!(matches!(save::svg::<Frontier>(&rows[..1]), Err(ReportError::Empty { .. })));
}

#[test]
fn sparsity_error() {
    let mut rows = by_sparsity();
    check::<SparsityError>(
        &rows,
        &["layer 12", "Keys", "Values, 2 chunks", "NeuralDict", "k-means", "non-zeros per chunk"],
    );
    rows.retain(|row| row.kind == Kind::Key);
    assert!(!save::svg::<SparsityError>(&rows).unwrap().contains("Values"));
    rows[0].layer = 3;
    assert!(matches!(save::svg::<SparsityError>(&rows), Err(ReportError::Mixed { field: "layer", .. })));
}

#[test]
fn a_failed_figure_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    assert!(save::figure::<LayerError>(folder.path(), &[]).is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// A glyph that the shipped font lacks is drawn as an empty box.
#[test]
fn the_shipped_font_has_every_character_that_numbers_use() {
    use ab_glyph::{Font, FontRef};
    let font = FontRef::try_from_slice(include_bytes!("../fonts/LiberationSans-Regular.ttf")).unwrap();
    for value in [0.0, 5.2e-7, 0.05, 2.5, 30_000.0, -40_000.0, 123_456_789.0] {
        for c in kvcsr_report::ticks::number(value).chars() {
            assert_ne!(font.glyph_id(c).0, 0, "{c:?} of {value}");
        }
    }
}

#[test]
fn layer_divergence() {
    let rows: Vec<DivergenceRow> = Kind::ALL
        .into_iter()
        .flat_map(|kind| {
            (0..12).flat_map(move |layer| {
                (0..12).map(move |other| DivergenceRow {
                    kind,
                    layer,
                    other,
                    group: if kind == Kind::Key { layer / 3 } else { layer },
                    divergence: (layer.abs_diff(other) as f64 / 11.0).sqrt() * 0.69,
                })
            })
        })
        .collect();
    let svg = check::<LayerDivergence>(&rows, &["Keys: 4 groups", "Values: 12 groups", "nothing in common"]);
    // Only groups of several layers are boxed.
    assert_eq!(svg.matches("#D55E00").count(), 4);
    assert!(LayerDivergence::caption(&rows).contains("4 groups of keys, 12 of values"));
    assert!(matches!(save::svg::<LayerDivergence>(&[]), Err(ReportError::Empty { .. })));
}

fn scattered(panels: &[&str], groups: usize, label: &str) -> Vec<ScatterRow> {
    let mut rows = Vec::new();
    for (number, panel) in panels.iter().enumerate() {
        for group in 0..groups {
            for point in 0..60 {
                rows.push(ScatterRow {
                    panel: (*panel).to_owned(),
                    group,
                    label: format!("{label} {group}"),
                    x: wobble(point, group) + group as f64 * 0.2,
                    y: 40.0 * wobble(number, point),
                    variance: 0.25,
                });
            }
        }
    }
    rows
}

#[test]
fn prompt_scatter() {
    let panels = ["keys, layer 5", "values, layer 5", "keys, layer 28", "values, layer 28"];
    let svg = check::<PromptScatter>(&scattered(&panels, 6, "prompt"), &panels);
    // Six in the key, sixty each in four panels.
    assert_eq!(svg.matches("<circle").count(), 6 + 4 * 6 * 60);
    assert!(matches!(save::svg::<PromptScatter>(&[]), Err(ReportError::Empty { .. })));
}

#[test]
fn rotary_scatter() {
    let panels = ["before", "after"];
    let rows = scattered(&panels, 8, "positions");
    let svg = check::<RotaryScatter>(&rows, &["before", "after", "positions 7", "first component"]);
    assert_eq!(svg.matches("<circle").count(), 8 + 2 * 8 * 60);
    assert!(RotaryScatter::caption(&rows).contains("25 % (before), 25 % (after)"));
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
fn sparsity_pattern() {
    let mut rows = Vec::new();
    for (kind, chunks) in [(Kind::Key, 1), (Kind::Value, 2)] {
        for token in 0..96 {
            for rank in 0..8 {
                rows.push(PatternRow {
                    layer: 15,
                    kind,
                    head: 1,
                    token,
                    chunk: rank % chunks,
                    atom: (wobble(token * chunks, rank) * 512.0) as usize / 4 * 2,
                    atoms: 512,
                    coefficient: (8.0 - rank as f32) * if rank % 3 == 0 { -1.0 } else { 1.0 },
                });
            }
        }
    }
    let svg = check::<SparsityPattern>(&rows, &["layer 15, head 1", "Keys", "Values", "token", "atom"]);
    assert_eq!(svg.matches("#D55E00").count(), 2 * 96 * 3, "one dot for each negative coefficient");
    let caption = SparsityPattern::caption(&rows);
    assert!(
        caption.contains("96 tokens") && caption.contains("of 512 atoms") && caption.contains("Chunks"),
        "{caption}"
    );
    rows[0].head = 0;
    assert!(matches!(save::svg::<SparsityPattern>(&rows), Err(ReportError::Mixed { field: "head", .. })));
}

#[test]
fn atom_usage() {
    let row =
        |kind, layer, atom: usize| UsageRow { kind, layer, atom, uses: if atom < 250 { 4000 / (atom + 1) } else { 0 } };
    let rows: Vec<UsageRow> = Kind::ALL
        .into_iter()
        .flat_map(|kind| [3, 20].into_iter().flat_map(move |layer| (0..256).map(move |atom| row(kind, layer, atom))))
        .collect();
    check::<AtomUsage>(&rows, &["layer 3", "layer 20", "share of all picks", "Keys", "Values"]);
    let caption = AtomUsage::caption(&rows);
    assert!(caption.contains("6 of 256 atoms unused") && caption.contains("of 5.5"), "{caption}");
    assert!(matches!(save::svg::<AtomUsage>(&[]), Err(ReportError::Empty { .. })));
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
                top1_percent: 60.0,
            });
        }
    }
    let svg = check::<SweepQuality>(&rows, &["train.atoms", "1024", "2048", "csr-8@neuraldict"]);
    assert!(!svg.contains("dense"), "a scheme without loss has no place on a logarithmic axis");
    let caption = SweepQuality::caption(&rows);
    assert!(caption.contains("3 points") && caption.contains("csr-8@neuraldict at train.atoms = 2048"), "{caption}");
}

#[test]
fn coefficient_histogram() {
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        for step in 1..=8 {
            for bin in 0..40 {
                let low = bin as f64 / 20.0 - 1.0;
                let size = (low + 0.025).abs();
                let share = (-(size - 0.6 / step as f64).powi(2) * 40.0).exp() / 10.0;
                rows.push(CoefficientRow { layer: 3, kind, step, low, high: low + 0.05, share });
            }
        }
    }
    check::<CoefficientHistogram>(&rows, &["step 1", "step 8", "Keys", "Values", "share of coefficients"]);
    assert!(CoefficientHistogram::caption(&rows).contains("(keys, step 4)"));
    assert!(matches!(save::svg::<CoefficientHistogram>(&[]), Err(ReportError::Empty { .. })));
}

fn timed(scheme: &str, context: usize, encode_ms: f64, decode_ms_per_token: f64) -> CompareDocument {
    CompareDocument {
        id: "wiki-0".to_owned(),
        domain: "wiki".to_owned(),
        scheme: scheme.to_owned(),
        context,
        scored: 10,
        nll_sum: 20.0,
        kl_sum: 1.0,
        top1_agree: 9,
        nominal_bits: 2.0,
        measured_bits: 2.0,
        shared_bytes: 0,
        encode_ms,
        decode_ms_per_token,
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
    let rows = compare::summarise(&documents, |_| None);
    let svg = check::<TimeLength>(
        &rows,
        &["csr-8", "milliseconds (log)", "Compressing the context", "Decoding one token after it"],
    );
    // An uncompressed cache takes no time to take its prefill over: it has no place on the left. Rows of single domains are not drawn.
    let count = |text: &str| svg.lines().filter(|line| line.trim() == text).count();
    assert_eq!((count("csr-8"), count("dense")), (2, 1));
    assert!(TimeLength::caption(&rows).contains("32 schemes at 1024, 4096 and 7936 tokens"));
    assert!(matches!(save::svg::<TimeLength>(&[]), Err(ReportError::Empty { .. })));
}
