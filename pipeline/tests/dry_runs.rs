//! Dry runs of the paper's profiles, so that a mistyped name is found now and not after twenty hours on a GPU. Every stage runs
//! on a model of the true shape, with two layers and random weights. Schemes, tasks, chat settings and thresholds are the
//! profile's; only sizes are lowered.
//!
//! A short form runs with the other tests and needs the downloaded texts (`just fetch`). `just dry-run` runs the long one, which
//! downloads what it needs.
#![allow(clippy::unwrap_used)]

mod checkpoints;
mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use checkpoints::Published;
use common::is_fetched;
use serde_json::{Value, json};

/// The variable that asks for the long form and names its profiles: one or more, or `all`.
const ASKED: &str = "KVCSR_DRY_RUN";

/// Sizes of both forms.
const SMALL: &str = "resamples=50 merge.sample=1024 calibrate.tokens=256 calibrate.heldout_tokens=128 calibrate.sequence=128 \
     train.atoms=128 train.epochs=1 train.kmeans_iterations=2 train.batch=1024 \
     allocate.documents=1 allocate.check_documents=1 allocate.context=16 allocate.continuation=3 \
     train_plus.atoms=32 train_plus.iterations=2 train_plus.trial_context=16 train_plus.trial_continuation=3 \
     calibrate_peers.tokens=256 calibrate_peers.cq_iterations=2 calibrate_peers.lexico_atoms=64 calibrate_peers.lexico_tokens=256 \
     calibrate_peers.lexico_epochs=1 report.memory_tokens=4000";

/// The form that runs with the other tests: the dictionaries, every task of LongBench under two schemes, and every scheme of the
/// profile on one task. Single long documents cost at least 256 tokens for each scheme, so they are left to the long form.
const SHORT: Form = Form {
    set: "heldout.domains=[\"play\"]",
    commands: &[
        &["reproduce", "--to", "train"],
        &["longbench", "longbench.schemes=[\"dense\",\"csr-4+online\"]", "longbench.max_prompt_tokens=48"],
    ],
    records: 1,
};

/// The form that is asked for: every stage with a section in the report, on the smallest documents and answers that the schemes
/// allow. For example, `asymkv-30-0(window=512)` has nothing to compress in contexts of 512 tokens.
const LONG: Form = Form {
    set: "heldout.domains=[\"play\"] heldout.scored=4 heldout.repeats=0 evaluate.contexts=[264] evaluate.documents=1 \
          evaluate.reconstruction=[4] compare.contexts=[768] compare.documents=1 compare.decode=1 \
          compare.tasks=[\"contract_terms\"] compare.task_limit=1 compare.task_prompt_tokens=128 compare.task_lengths=[] \
          suite.tasks=[\"contract_terms\",\"passkey\"] suite.limit=1 suite.lengths=[128] suite.depths=[0.5] \
          suite.max_prompt_tokens=128 at_rest.contexts=[264] at_rest.documents=1 ablate.layers=[1] ablate.option_layers=[1] \
          ablate.table_atoms=[32] ablate.options_atoms=32 ablate.merged_atoms=16 ablate.merged_vectors=512 ablate.vectors=1024 \
          ablate.epochs=1",
    commands: &[
        &["reproduce"],
        &["reproduce", "--to", "compare"],
        &["reproduce", "--to", "at-rest"],
        &["ablate"],
        &["longbench", "--shard", "1/2", PROMPT],
        &["longbench", "--shard", "2/2", PROMPT],
        &["longbench", "--merge", "2", PROMPT],
        &["report"],
    ],
    records: 2,
};

/// Prompts that are longer than what the online part samples, so that its guard has atoms too.
const PROMPT: &str = "longbench.max_prompt_tokens=136";

struct Form {
    set: &'static str,
    commands: &'static [&'static [&'static str]],
    /// Records of each task of LongBench.
    records: usize,
}

/// What the short form needs.
const TEXTS: [&str; 2] = ["wiki", "plays/"];

/// The task that every scheme answers in the short form. The run has the same name.
const ONCE: &str = "lcc";

/// A profile over the defaults, as the program reads it.
fn settings(profile: &str) -> toml::Table {
    let read = |name: &str| -> toml::Table {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("profiles/{name}.toml"));
        fs::read_to_string(path).unwrap().parse().unwrap()
    };
    let mut all = read("defaults");
    for (section, values) in read(profile) {
        match (all.get_mut(&section), values) {
            (Some(toml::Value::Table(known)), toml::Value::Table(own)) => known.extend(own),
            (_, own) => drop(all.insert(section, own)),
        }
    }
    all
}

/// The names of a list of a section.
fn names(settings: &toml::Table, section: &str, key: &str) -> Vec<String> {
    settings[section][key].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// The tasks of the paper's tables, which is what `csr11` stands for.
const CSR11: [&str; 11] = [
    "2wikimqa",
    "hotpotqa",
    "musique",
    "trec",
    "narrativeqa",
    "qasper",
    "qmsum",
    "samsum",
    "lcc",
    "triviaqa",
    "multifieldqa_en",
];

/// Writes config and records in LongBench's layout. Prompts are longer than the dry run's limit, so that all lose their middle.
fn longbench(folder: &Path, records: usize) {
    let write = |name: String, text: String| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let all = |value: Value| -> Value { CSR11.iter().map(|task| ((*task).to_owned(), value.clone())).collect() };
    write("config/dataset2prompt.json".into(), all(json!("Read.\n{context}\nQuestion: {input}\nAnswer:")).to_string());
    write("config/dataset2maxlen.json".into(), all(json!(2)).to_string());
    write("config/model2maxlen.json".into(), "{}".into());
    for task in CSR11 {
        let record = |at: usize| {
            let code = task == "lcc";
            let classes = (task == "trec").then_some(["Food", "Date"]);
            json!({
                "input": "What is it?", "context": format!("the atoms of {task} are in dictionary {at}. ").repeat(60),
                "answers": ["Food"], "length": 480, "dataset": task, "language": if code { "code" } else { "en" },
                "all_classes": classes, "_id": format!("{task}-{at}"),
            })
        };
        write(format!("data/{task}.jsonl"), (0..records).map(|at| format!("{}\n", record(at))).collect());
    }
}

/// The rows of a file.
fn rows(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A folder with the model, LongBench, and the outputs of the stages. It is removed when this is dropped.
struct DryRun<'a> {
    model: &'a Published,
    form: &'a Form,
    folder: tempfile::TempDir,
}

impl<'a> DryRun<'a> {
    fn new(model: &'a Published, form: &'a Form) -> Self {
        let folder = tempfile::tempdir().unwrap();
        model.write(&folder.path().join("model"));
        longbench(&folder.path().join("longbench"), form.records);
        // Downloads are shared. The remembered hashes of the model are not: the model is removed again.
        let sources = kvcsr_fixtures::downloads();
        fs::create_dir_all(&sources).unwrap();
        fs::create_dir(folder.path().join("cache")).unwrap();
        std::os::unix::fs::symlink(sources, folder.path().join("cache/sources")).unwrap();
        Self { model, form, folder }
    }

    fn stage(&self, name: &str) -> PathBuf {
        self.folder.path().join("data/runs").join(self.model.profile).join(name)
    }

    /// Runs a command of `kvcsr`.
    fn run(&self, command: &[&str], more: &[&str]) {
        let started = Instant::now();
        let at = |name: &str| self.folder.path().join(name);
        let set = format!("set=model={} {SMALL} {}", at("model").display(), self.form.set);
        let out = Command::new(env!("CARGO_BIN_EXE_kvcsr"))
            .args(&command[..1])
            .args([&format!("profile={}", self.model.profile), &set])
            .args(&command[1..])
            .args(more)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .env("KVCSR_DATA", at("data"))
            .env("KVCSR_CACHE", at("cache"))
            .env("KVCSR_LONGBENCH", at("longbench"))
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (said, error) = (text(&out.stdout), text(&out.stderr));
        assert!(out.status.success(), "{}, {}: {error}\n{said}", self.model.profile, command.join(" "));
        println!("{}: {} in {:.1} s", self.model.profile, command.join(" "), started.elapsed().as_secs_f64());
    }

    /// Every scheme that the profile names, except the costliest, answers one record, in a run beside the profile's.
    fn answer_once(&self, settings: &toml::Table) {
        let all = ["longbench", "evaluate", "compare"].map(|section| names(settings, section, "schemes")).concat();
        // The axes of CSR+ span all channels of a token: finding them takes minutes for a layer with 32 key-value heads.
        let cheap = |name: &&String| !self.model.is_wide() || !name.starts_with("csr+@");
        let all: BTreeSet<&String> = all.iter().filter(cheap).collect();
        let schemes = format!("longbench.schemes={}", json!(all));
        let task = format!("longbench.tasks=[\"{ONCE}\"]");
        self.run(&["reproduce", "--to", "longbench", PROMPT], &[&format!("run={ONCE}"), &schemes, &task]);
        self.check_longbench(&self.beside(), &[ONCE], all.len(), settings);
    }

    /// The stage `longbench` of the run beside the profile's.
    fn beside(&self) -> PathBuf {
        self.stage(&format!("../{}+{ONCE}/longbench", self.model.profile))
    }

    /// Checks that every scheme of the profile has scored the same documents.
    fn check_documents(&self, stage: &str, schemes: &[String]) {
        let rows = rows(&self.stage(stage).join("heldout.jsonl"));
        let key = |row: &Value| (row["id"].to_string(), row["context"].to_string());
        let documents: BTreeSet<_> = rows.iter().map(key).collect();
        assert!(!documents.is_empty(), "{stage}: no documents");
        assert_eq!(rows.len(), documents.len() * schemes.len(), "{stage}: rows of {} schemes", schemes.len());
        assert!(rows.iter().all(|row| row["kl_sum"].as_f64().is_some_and(f64::is_finite)), "{stage}: no numbers");
    }

    /// Checks that this many schemes have answered every one of `tasks`, and that ours fill these columns of the paper's table of
    /// this model.
    fn check_longbench(&self, stage: &Path, tasks: &[&str], schemes: usize, settings: &toml::Table) {
        assert_eq!(rows(&stage.join("results.jsonl")).len(), tasks.len() * schemes, "{}", stage.display());
        let page = fs::read_to_string(stage.join("longbench.md")).unwrap();
        let model = settings["longbench"]["paper_model"].as_str().unwrap();
        let (_, table) = page.split_once(&format!(", {model}\n")).expect("the paper has a table of this model");
        let table = table.split("###").next().unwrap();
        let cells = |line: &str| -> Vec<String> { line.split('|').map(|cell| cell.trim().to_owned()).collect() };
        let mut lines = table.lines().filter(|line| line.starts_with('|')).map(cells);
        let head = lines.next().expect("a table");
        let ours: Vec<Vec<String>> = lines.filter(|cells| cells[2] == "ours" && cells[1] != "n").collect();
        assert!(ours.len() >= 5, "{table}");
        for task in tasks {
            let column = head.iter().position(|cell| cell == task).expect("a column for each task");
            assert!(
                ours.iter().all(|cells| !cells[column].is_empty()),
                "a line of the paper's table is not run: {table}"
            );
        }
    }

    fn check(&self, long: bool) {
        let settings = settings(self.model.profile);
        let schemes = |section: &str| names(&settings, section, "schemes");
        assert_eq!(names(&settings, "longbench", "tasks"), ["csr11"]);
        if !long {
            assert_eq!(rows(&self.stage("longbench/results.jsonl")).len(), 2 * CSR11.len());
            return self.answer_once(&settings);
        }
        self.check_longbench(&self.stage("longbench"), &CSR11, schemes("longbench").len(), &settings);
        self.check_documents("evaluate", &schemes("evaluate"));
        self.check_documents("compare", &schemes("compare"));
        let page = fs::read_to_string(self.stage("report").join("report.md")).unwrap();
        // `ceiling` finds the axes of all heads together, which takes hours for the shape of Llama 2.
        assert!(!page.replace("Not run: ceiling.", "").contains("Not run: "), "{page}");
    }

    /// Each stage's time and memory, from its record.
    fn print(&self) {
        let beside = self.stage(&format!("../{}+{ONCE}", self.model.profile));
        let stages = [self.stage(""), beside].into_iter().filter_map(|run| fs::read_dir(run).ok()).flatten();
        for stage in stages.map(|entry| entry.unwrap().path()) {
            let Ok(record) = fs::read_to_string(stage.join("manifest.json")) else { continue };
            let record: Value = serde_json::from_str(&record).unwrap();
            let memory = record["peak_memory_bytes"].as_f64().unwrap_or(0.0) / 1e9;
            let seconds = record["wall_seconds"].as_f64().unwrap_or(0.0);
            println!("  {}: {seconds:.1} s, {memory:.1} GB so far", stage.file_name().unwrap().display());
        }
    }
}

#[test]
fn the_papers_profiles_run_on_models_of_their_shapes() {
    let test = "the_papers_profiles_run_on_models_of_their_shapes";
    let asked = std::env::var(ASKED).ok();
    if asked.is_none() && !is_fetched(test, &TEXTS) {
        return;
    }
    let (long, form) = if asked.is_some() { (true, LONG) } else { (false, SHORT) };
    let asked = asked.as_deref().unwrap_or("all").replace("profile=", "");
    let asked: Vec<&str> = asked.split_whitespace().collect();
    let known: Vec<&str> = checkpoints::ALL.iter().map(|model| model.profile).chain(["all"]).collect();
    if let Some(unknown) = asked.iter().find(|name| !known.contains(name)) {
        panic!("`{unknown}` is no profile of the paper; there are {}", known.join(", "));
    }
    for model in checkpoints::ALL.iter().filter(|model| asked.contains(&"all") || asked.contains(&model.profile)) {
        let started = Instant::now();
        let dry_run = DryRun::new(model, &form);
        println!("{}: model written in {:.1} s", model.profile, started.elapsed().as_secs_f64());
        form.commands.iter().for_each(|command| dry_run.run(command, &[]));
        dry_run.check(long);
        dry_run.print();
        println!("{}: all in {:.0} s", model.profile, started.elapsed().as_secs_f64());
    }
}
