//! A small real run that is killed and continues: needs the downloaded model and text (`just fetch`).
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{MODEL_AND_TEXT, is_fetched};

/// Overrides that make every stage take seconds.
const SMALL: &str = "corpora=[\"wiki\"] merge.sample=256 calibrate.tokens=512 calibrate.heldout_tokens=256 calibrate.sequence=256 train.atoms=64 \
     train.epochs=1 train.kmeans_iterations=2 evaluate.schemes=[\"dense\",\"csr-4\",\"csr-8\",\"csr-4@kmeans\"] evaluate.contexts=[264] \
     evaluate.documents=7 heldout.domains=[\"play\"] heldout.scored=16 heldout.repeats=1";

/// An ablation of a few vectors.
const ABLATE: &str = "ablate.layers=[3] ablate.option_layers=[3] ablate.table_atoms=[32] ablate.table_sparsity=[2] \
     ablate.table_chunks=[1,2] ablate.options=[\"kmeans\",\"mod\",\"attention\"] ablate.options_atoms=32 ablate.merged_atoms=16 \
     ablate.merged_vectors=64 ablate.vectors=512 ablate.epochs=1";

fn kvcsr(data: &Path, stage: &str, set: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvcsr"));
    command
        .args([stage, "profile=smoke", &format!("set={set}")])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .env("KVCSR_DATA", data);
    command
}

fn run(data: &Path, stage: &str, set: &str) -> String {
    let out = kvcsr(data, stage, set).output().unwrap();
    assert!(out.status.success(), "{stage}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Rows without their times, which differ from run to run.
fn rows(path: &PathBuf) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    let timeless = |line: &str| {
        let mut row: serde_json::Value = serde_json::from_str(line).unwrap();
        let row = row.as_object_mut().unwrap();
        row.remove("encode_ms");
        row.remove("decode_ms_per_token");
        serde_json::to_string(row).unwrap()
    };
    text.lines().map(timeless).collect()
}

/// Kills a stage as soon as `some` of it is made.
fn kill_with_some_made(data: &Path, stage: &str, set: &str, some: impl Fn() -> bool) {
    let mut child = kvcsr(data, stage, set).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while !some() {
        assert!(child.try_wait().unwrap().is_none(), "{stage} ended before it could be killed");
        assert!(started.elapsed() < Duration::from_secs(120), "nothing of {stage} after two minutes");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Lines of a file that may not be there yet.
fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

#[test]
fn a_killed_evaluation_goes_on_to_the_same_rows_and_only_what_changed_runs_again() {
    if !is_fetched("a_killed_evaluation_goes_on_to_the_same_rows_and_only_what_changed_runs_again", &MODEL_AND_TEXT) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    run(data, "calibrate", SMALL);
    run(data, "merge", SMALL);
    run(data, "train", SMALL);

    let partial = data.join("runs/smoke/evaluate.partial/heldout.jsonl");
    kill_with_some_made(data, "evaluate", SMALL, || lines(&partial) >= 5);
    assert!(!data.join("runs/smoke/evaluate").exists(), "an unfinished stage must not look finished");

    assert!(run(data, "evaluate", SMALL).contains("going on where an unfinished run stopped"));
    let finished = data.join("runs/smoke/evaluate/heldout.jsonl");
    let resumed = rows(&finished);
    assert_eq!(resumed.len(), 32);
    assert_eq!(resumed.iter().collect::<BTreeSet<_>>().len(), 32, "a row was repeated");
    assert!(run(data, "evaluate", SMALL).contains("up to date"));

    let mut forced = kvcsr(data, "evaluate", SMALL);
    assert!(forced.arg("force").output().unwrap().status.success());
    assert_eq!(rows(&finished), resumed, "an uninterrupted run gives the same rows");

    let changed = SMALL.replace("train.atoms=64", "train.atoms=80");
    assert!(run(data, "calibrate", &changed).contains("up to date"));
    assert!(run(data, "train", &changed).contains("train.atoms 64 -> 80"));
    assert!(run(data, "evaluate", &changed).contains("input train changed"));

    let sweep = format!("{changed} sweep={{\"train.atoms\"=[80,96]}}");
    let told = run(data, "sweep", &sweep);
    let shared = told.matches("the same as in profile `smoke`").count();
    assert_eq!(shared, 6, "four stages of the first point and two of the second are the profile's own:\n{told}");
    let rows = std::fs::read_to_string(data.join("runs/smoke/sweep/sweep.csv")).unwrap();
    assert_eq!(rows.lines().count(), 1 + 2 * 4, "{rows}");
    assert!(!data.join("runs/smoke+train.atoms-80").exists() && data.join("runs/smoke+train.atoms-96/train").is_dir());
    let told = run(data, "sweep", &sweep);
    assert!(told.contains("train      up to date") && !told.contains("done in"), "{told}");

    let told = plain(data, &["diff-runs", "smoke", "smoke+train.atoms-96"]);
    let line = |name: &str| told.lines().find(|l| l.trim_start().starts_with(name)).unwrap().to_owned();
    let words: Vec<String> = line("train.atoms").split_whitespace().map(str::to_owned).collect();
    assert_eq!(words[1..], ["80", "96"]);
    assert!(line("csr-8 KL").contains("("), "{told}");

    plain(data, &["keep", "smoke", "before"]);
    assert!(run(data, "train", &SMALL.replace("train.atoms=64", "train.atoms=72")).contains("train.atoms 80 -> 72"));
    let told = plain(data, &["diff-runs", "smoke+before", "smoke"]);
    assert!(told.lines().any(|l| l.split_whitespace().eq(["train.atoms", "80", "72"])), "{told}");
}

/// A comparison of schemes that need no training.
const COMPARE: &str = "corpora=[\"wiki\"] calibrate.tokens=256 calibrate.heldout_tokens=256 calibrate.sequence=256 \
     compare.schemes=[\"dense\",\"q4_0\",\"evict(sinks=4,recent=256)\"] compare.contexts=[264,300] compare.documents=1 compare.decode=1 \
     heldout.domains=[\"play\"] heldout.scored=9 heldout.repeats=1 resamples=50 \
     compare.tasks=[\"record_lookup\"] compare.task_limit=3 compare.task_prompt_tokens=192";

/// Answers without their times.
fn answers(folder: &Path) -> BTreeSet<String> {
    let mut answers = BTreeSet::new();
    for scheme in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let file = scheme.path().join("record_lookup.jsonl");
        for line in std::fs::read_to_string(file).unwrap_or_default().lines() {
            let Ok(row) = serde_json::from_str::<serde_json::Value>(line) else { continue };
            let words = ["_id", "scheme", "pred", "score"].map(|key| row[key].to_string());
            assert!(answers.insert(words.join(" ")), "an answer was repeated");
        }
    }
    answers
}

#[test]
fn a_killed_comparison_goes_on_and_the_report_shows_it() {
    if !is_fetched("a_killed_comparison_goes_on_and_the_report_shows_it", &MODEL_AND_TEXT) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let partial = data.join("runs/smoke/compare.partial");
    kill_with_some_made(data, "compare", COMPARE, || !answers(&partial.join("tasks/predictions")).is_empty());
    let before = std::fs::read_to_string(partial.join("heldout.jsonl")).unwrap();
    assert!(run(data, "compare", COMPARE).contains("going on where an unfinished run stopped"));
    let stage = data.join("runs/smoke/compare");
    assert_eq!(std::fs::read_to_string(stage.join("heldout.jsonl")).unwrap(), before, "documents were scored again");
    // A document and a passage that comes back, at two contexts.
    assert_eq!(before.lines().count(), 3 * 2 * 2);
    assert_eq!(answers(&stage.join("tasks/predictions")).len(), 3 * 3);

    // If a scheme is added, only that scheme runs.
    let more = COMPARE.replace("\"q4_0\",", "\"q4_0\",\"q8_0\",");
    assert!(run(data, "compare", &more).contains("what was made before is kept"));
    let grown = rows(&stage.join("heldout.jsonl"));
    let without: Vec<String> = grown.iter().filter(|row| !row.contains("\"q8_0\"")).cloned().collect();
    assert_eq!((grown.len(), without.len()), (4 * 4, 3 * 4));
    let old = data.join("before.jsonl");
    std::fs::write(&old, &before).unwrap();
    assert_eq!(without, rows(&old), "the rows that were there are kept, in their order");
    run(data, "compare", COMPARE);

    run(data, "calibrate", COMPARE);
    run(data, "report", COMPARE);
    let report = data.join("runs/smoke/report");
    let rows: Vec<kvcsr_report::SchemeSummary> = kvcsr_report::csv::read(&report.join("compare.csv")).unwrap();
    // Over all documents, over the only domain's and over passages that come back, at two contexts.
    assert_eq!(rows.len(), 3 * 2 * 3);
    assert!(
        rows.iter()
            .filter(|row| row.scheme.starts_with("evict") && row.domain == "play")
            .all(|row| row.recovery == Some(0.0))
    );
    let all: Vec<_> = rows.iter().filter(|row| row.domain == "all").collect();
    assert!(all.iter().all(|row| row.task_n == Some(3) && row.task_score.is_some()), "{all:?}");
    let interval = |scheme: &str| {
        let row = all.iter().find(|row| row.scheme == scheme).unwrap();
        (row.task_difference_low.is_some(), row.task_difference_high.is_some())
    };
    assert_eq!((interval("dense"), interval("q4_0")), ((false, false), (true, true)));
    let html = std::fs::read_to_string(report.join("report.html")).unwrap();
    assert!(html.contains("Every scheme on the same documents") && html.contains("record_lookup (3)"));
    let readme = std::fs::read_to_string(report.join("results-compare.md")).unwrap();
    assert!(readme.contains("300 tokens prefilled exactly") && readme.contains("q4_0"), "{readme}");
    assert!(report.join("frontier-264.svg").is_file() && report.join("frontier-300.png").is_file());
}

/// A command without a profile's overrides.
fn plain(data: &Path, args: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_kvcsr"))
        .args(args)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .env("KVCSR_DATA", data)
        .output()
        .unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Groups that hold a checkpoint and are not finished.
fn under_way(parts: &Path) -> usize {
    std::fs::read_dir(parts)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|group| group.join("checkpoint.safetensors").is_file() && !group.join("epochs.jsonl").is_file())
        .count()
}

#[test]
fn training_killed_at_random_moments_ends_with_the_same_dictionaries() {
    if !is_fetched("training_killed_at_random_moments_ends_with_the_same_dictionaries", &MODEL_AND_TEXT) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let set = format!("{SMALL} train.epochs=4 train.batch=128 train.checkpoint_seconds=0");
    run(data, "calibrate", &set);
    run(data, "merge", &set);
    run(data, "train", &set);
    let stage = data.join("runs/smoke/train");
    let bytes = || ["dictionaries.safetensors", "kmeans.safetensors"].map(|f| std::fs::read(stage.join(f)).unwrap());
    let whole = bytes();
    std::fs::remove_dir_all(&stage).unwrap();

    let parts = data.join("runs/smoke/train.partial/groups");
    let clock = || std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    let mut kills = 0;
    let started = Instant::now();
    while kills < 3 {
        assert!(started.elapsed() < Duration::from_secs(120), "{kills} kills in two minutes");
        let mut child = kvcsr(data, "train", &set).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while under_way(&parts) == 0 {
            assert!(child.try_wait().unwrap().is_none(), "the training ended before it could be killed");
        }
        std::thread::sleep(Duration::from_micros(u64::from(clock() % 30_000)));
        // SIGKILL on Unix: no handler runs.
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!stage.exists(), "an unfinished stage must not look finished");
        kills += usize::from(under_way(&parts) > 0);
    }
    assert!(run(data, "train", &set).contains("goes on at epoch"));
    assert!(bytes() == whole, "a killed and resumed training ends with other bytes");

    // On the same vectors: an ablation killed after its first rows makes every row once.
    let set = format!("{set} {ABLATE}");
    let partial = data.join("runs/smoke/ablate.partial/ablation.jsonl");
    kill_with_some_made(data, "ablate", &set, || lines(&partial) >= 3);
    assert!(run(data, "ablate", &set).contains("going on where an unfinished run stopped"));
    let rows = std::fs::read_to_string(data.join("runs/smoke/ablate/ablation.jsonl")).unwrap();
    let names: BTreeSet<String> = rows
        .lines()
        .map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            ["section", "name", "layer", "kind", "atoms", "chunks"].map(|key| row[key].to_string()).join(" ")
        })
        .collect();
    // Two chunk counts and three options for keys and values, five ways to serve all 30 layers.
    assert_eq!((rows.lines().count(), names.len()), (2 * (2 + 3) + 2 * 5 * 30, 2 * (2 + 3) + 2 * 5 * 30));
    let page = std::fs::read_to_string(data.join("runs/smoke/ablation/ablation.md")).unwrap();
    for text in [
        "| 32 | 2 |",
        "| 8192 | 4 |  |  |  |  |  |  |",
        "Covered: 2 cells each for keys and values, N = 32, s = 2, s_n = 1, 2, layers 3. Of the paper's 12",
        "- keys, as many atoms each: ",
        "| mod |",
        "30, one per layer",
        "merged at delta_2",
        "rotary-scatter.svg",
    ] {
        assert!(page.contains(text), "{text} is missing in\n{page}");
    }

    // The report shows it. It also shows the results of another project's learner on the same vectors, as soon as they are there.
    let report = || std::fs::read_to_string(data.join("runs/smoke/report/report.md")).unwrap();
    run(data, "report", &set);
    assert!(report().contains("| mod |") && report().contains("![") && !report().contains("| SPAMS |"), "{}", report());
    let row = rows.lines().find(|line| line.contains("\"options\"")).unwrap();
    let peer = row.replace("\"kmeans\"", "\"SPAMS\"");
    assert_ne!(peer, row);
    std::fs::write(data.join("runs/smoke/peers.jsonl"), format!("{peer}\n")).unwrap();
    run(data, "report", &set);
    assert!(report().contains("| SPAMS |"), "{}", report());

    // The better of two dictionaries for each group, and a scheme that uses them.
    let set = format!(
        "{set} train_best.epochs=1 evaluate.schemes=[\"dense\",\"csr-8\",\"csr-8@best\"] evaluate.documents=1 heldout.repeats=0 evaluate.reconstruction=[8]"
    );
    // Without that scheme first: the evaluation then grows by it, and by its dictionaries.
    run(data, "evaluate", &set.replace(",\"csr-8@best\"", ""));
    let refused = kvcsr(data, "evaluate", &set).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("just train-best"), "{refused:?}");
    assert!(run(data, "train-best", &set).contains("the better of each group"));
    assert!(run(data, "evaluate", &set).contains("what was made before is kept"));
    let scored = std::fs::read_to_string(data.join("runs/smoke/evaluate/heldout.jsonl")).unwrap();
    assert!(scored.contains("\"dictionary\":\"best\""), "{scored}");
    let sum = |dictionary: &str| -> f64 {
        std::fs::read_to_string(data.join("runs/smoke/evaluate/reconstruction.jsonl"))
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .filter(|row| row["dictionary"] == dictionary)
            .map(|row| row["relative"].as_f64().unwrap())
            .sum()
    };
    assert!(sum("best") > 0.0 && sum("best") <= sum("neuraldict"), "{} {}", sum("best"), sum("neuraldict"));

    // CSR+: what errors cost, tables that are the same whenever they are made, and schemes that use them.
    let set = format!(
        "{set} allocate.documents=1 allocate.check_documents=1 allocate.context=64 allocate.continuation=33 allocate.budgets=[8] \
         train_plus.atoms=16 train_plus.iterations=2 train_plus.trial=[3.0] train_plus.trial_context=320 train_plus.trial_continuation=17 evaluate.schemes=[\"dense\",\"csr-8\",\"csr+@2\",\"csr+@4\"]"
    );
    let refused = kvcsr(data, "evaluate", &set).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("just train-plus"), "{refused:?}");
    run(data, "allocate", &set);
    run(data, "train-plus", &set);
    let tables = || std::fs::read(data.join("runs/smoke/train-plus/csr-plus.safetensors")).unwrap();
    let made = tables();
    std::fs::remove_dir_all(data.join("runs/smoke/train-plus")).unwrap();
    run(data, "train-plus", &format!("{set} threads=1"));
    assert!(tables() == made, "the tables depend on the number of threads");
    run(data, "evaluate", &set);
    let kl_of = |stage: &str, scheme: &str| -> f64 {
        let of_scheme = |line: &&str| line.contains(&format!("\"scheme\":\"{scheme}\""));
        let all = std::fs::read_to_string(data.join(format!("runs/smoke/{stage}/heldout.jsonl"))).unwrap();
        let found: Vec<serde_json::Value> =
            all.lines().filter(of_scheme).map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(!found.is_empty(), "{scheme}: {all}");
        found.iter().map(|row| row["kl_sum"].as_f64().unwrap()).sum()
    };
    let kl = |scheme: &str| kl_of("evaluate", scheme);
    assert!(
        kl("csr+@4") < kl("csr+@2") && kl("csr+@2") < kl("csr-8"),
        "{} {} {}",
        kl("csr+@4"),
        kl("csr+@2"),
        kl("csr-8")
    );

    // Prompts as files: measured, and used.
    let set = format!(
        "{set} at_rest.bits=[1.0,4.0] at_rest.contexts=[320] at_rest.documents=1 at_rest.schemes=[\"dense\",\"csr+@2\"]"
    );
    assert!(run(data, "at-rest", &set).contains("restored in"));
    let (few, many) = (kl_of("at-rest", "rest@1"), kl_of("at-rest", "rest@4"));
    assert!(many < few && many < kl_of("at-rest", "csr+@2"), "{few} {many}");
    let file = data.join("prompt.kvc");
    let generate = |extra: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_kvcsr"))
            .args(["generate", "--profile", "smoke", "--max-new", "6"])
            .args(extra)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .env("KVCSR_DATA", data)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (out.status.success(), text(out.stdout), text(out.stderr))
    };
    let path = file.to_str().unwrap();
    let prompt = "The three primary colours are red, yellow and";
    let (saved, _, said) =
        generate(&["--scheme", "dense", "--prompt", prompt, "--save-cache", path, "--cache-bits", "7"]);
    assert!(saved && said.contains("bits per channel"), "{said}");
    // The prompt is so short that all of its tokens are in the second scheme's window.
    let texts = ["dense", "csr+@4+window(sinks=4,recent=64)"].map(|scheme| {
        let (loaded, text, said) = generate(&["--scheme", scheme, "--load-cache", path]);
        assert!(loaded && text.contains("restored"), "{said}{text}");
        text.lines().next().unwrap_or_default().to_owned()
    });
    assert_eq!(texts[0], texts[1]);
    let (loaded, text, _) = generate(&["--scheme", "dense", "--load-cache", path, "--prompt", " blue. The"]);
    assert!(loaded && text.contains("restored"), "{text}");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (loaded, _, said) = generate(&["--scheme", "dense", "--load-cache", path]);
    assert!(!loaded && said.contains("prompt.kvc") && said.contains("changed"), "{said}");
}
