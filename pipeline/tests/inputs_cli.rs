//! `generate` and `longbench` from the command line, on small models and records like those that other programs meet.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/inputs")
}

fn generate(args: &[&str], stdin: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvcsr"));
    command.args(["generate", "--threads", "1"]).args(args).current_dir(data());
    if !args.contains(&"--scheme") {
        command.args(["--scheme", "dense"]);
    }
    let stdin_of = if stdin.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = command.stdin(stdin_of).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    if let Some(text) = stdin {
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    }
    child.wait_with_output().unwrap()
}

fn said(out: &Output) -> String {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn refused(out: &Output) -> String {
    assert!(!out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn a_chat_ends_with_the_turn() {
    let text = said(&generate(&["--model", "chat.gguf", "--chat", "--prompt", "hi", "--max-new", "12"], None));
    assert_eq!(text.lines().next(), Some("Ab"), "{text}");
}

#[test]
fn prompts_come_from_files_and_standard_input_and_are_measured_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompt.txt");
    let file = path.to_str().unwrap();
    fn run(args: &[&str], stdin: Option<&str>) -> Output {
        generate(&[&["--model", "model"], args].concat(), stdin)
    }

    fs::write(&path, "x".repeat(140)).unwrap();
    let by_argument = said(&run(&["--prompt", &"x".repeat(140)], None));
    assert!(by_argument.contains("140 prompt tokens"), "{by_argument}");
    assert!(said(&run(&["--prompt-file", file], None)).contains("140 prompt tokens"));
    assert!(said(&run(&["--prompt", "-"], Some("xyz"))).contains("3 prompt tokens"));

    // A byte-order mark is not part of the text, and UTF-16 is refused.
    fs::write(&path, "\u{feff}xyz").unwrap();
    assert!(said(&run(&["--prompt-file", file], None)).contains("3 prompt tokens"));
    assert!(said(&run(&["--prompt", "-"], Some("\u{feff}xyz"))).contains("3 prompt tokens"));
    fs::write(&path, "xyz".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>()).unwrap();
    assert!(refused(&run(&["--prompt-file", file], None)).contains("it is UTF-16; save it as UTF-8"));

    // Longer than an argument may be, and longer than the context.
    fs::write(&path, "x".repeat(140_000)).unwrap();
    for (error, from) in [
        (refused(&run(&["--prompt-file", file], None)), "--prompt-file"),
        (refused(&run(&["--prompt", "-"], Some(&"x".repeat(140_000)))), "--prompt -"),
    ] {
        assert!(error.contains("140000 tokens") && error.contains("2048 positions") && error.contains(from), "{error}");
    }
    let long = refused(&run(&["--prompt", &"x".repeat(5000)], None));
    assert!(long.contains("--prompt: ") && long.contains("5000 tokens") && long.contains("2048 positions"), "{long}");
    let cut = run(&["--prompt", &"x".repeat(2040), "--max-new", "20"], None);
    let warning = String::from_utf8_lossy(&cut.stderr).into_owned();
    assert!(cut.status.success() && warning.contains("2040 prompt tokens and --max-new 20"), "{warning}");

    assert!(refused(&run(&["--prompt-file", "nowhere.txt"], None)).contains("nowhere.txt"));
    assert!(refused(&run(&["--prompt", ""], None)).contains("at least one token"));
    assert!(refused(&run(&[], None)).contains("--prompt"));
    assert!(refused(&run(&["--prompt", "a", "--prompt-file", file], None)).contains("cannot be used with"));
}

#[test]
fn bits_of_a_model_with_a_sliding_window_are_of_what_that_holds() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(data().join("model").join(name), folder.path().join(name)).unwrap();
    }
    let config = fs::read_to_string(folder.path().join("config.json")).unwrap();
    let config = config.replace(r#""model_type": "llama""#, r#""model_type": "mistral", "sliding_window": 256"#);
    fs::write(folder.path().join("config.json"), config).unwrap();
    let (windowed, prompt) = (folder.path().to_str().unwrap(), "x".repeat(1024));
    // Keys and values of one head of 16 channels.
    for (model, tokens) in [("model", 1024), (windowed, 256)] {
        for (scheme, bytes) in [("dense", 4), ("dense-f16", 2)] {
            let args = ["--model", model, "--scheme", scheme, "--prompt", &prompt, "--max-new", "1"];
            let text = said(&generate(&args, None));
            let (bits, half) = (8 * bytes, tokens * 2 * 16 * 2);
            assert!(text.contains(&format!("{bits}.00 measured (f16: 16)")), "{text}");
            let share = format!("{} bytes, {}.0 % of the {half} that f16 takes", half * bytes / 2, 50 * bytes);
            assert!(text.contains(&share), "{text}");
        }
    }
}

#[test]
fn what_is_no_model_is_named_once_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let of = |model: &str| refused(&generate(&["--model", model, "--prompt", "a"], None));
    assert!(
        of(path).contains("no config.json in it (it holds no files): give the folder that holds config.json"),
        "{}",
        of(path)
    );
    let config = of("model/config.json");
    assert!(config.contains("expected a GGUF file, found a JSON file: give the checkpoint's folder"), "{config}");
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(data().join("model").join(name), folder.path().join(name)).unwrap();
    }
    let index = r#"{"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}"#;
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let shard = of(path);
    assert!(
        shard.contains("model-00001-of-00002.safetensors") && shard.matches("No such file").count() == 1,
        "{shard}"
    );
}

#[test]
fn an_id_beyond_the_vocabulary_names_its_token() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(data().join("model").join(name), folder.path().join(name)).unwrap();
    }
    fs::write(folder.path().join("added_tokens.json"), r#"{"<|far|>": 266}"#).unwrap();
    let model = folder.path().to_str().unwrap();
    let error = refused(&generate(&["--model", model, "--prompt", "a<|far|>", "--max-new", "1"], None));
    for part in ["token `<|far|>` at index 1", "id 266", "266 ids"] {
        assert!(error.contains(part), "{error}");
    }
}

/// Runs `longbench` with LongBench's configuration and the records of the folder `records`, on a model, in a data folder of its
/// own.
fn longbench(records: &str, model: &str, more: &[&str]) -> (Output, tempfile::TempDir) {
    let own = tempfile::tempdir().unwrap();
    let bench = own.path().join("longbench");
    for (from, to) in [("longbench/config", "config"), (&format!("{records}/data"), "data")] {
        fs::create_dir_all(bench.join(to)).unwrap();
        for file in fs::read_dir(data().join(from)).unwrap().flatten() {
            fs::copy(file.path(), bench.join(to).join(file.file_name())).unwrap();
        }
    }
    let model = format!("model={}", data().join(model).display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvcsr"));
    command.args(["longbench", "--profile", "smoke", "--set", &model]);
    for set in [
        "longbench.tasks=[\"hotpotqa\"]",
        "longbench.schemes=[\"dense\"]",
        "longbench.limit=0",
        "report.publish=false",
        "threads=1",
    ] {
        command.args(["--set", set]);
    }
    command.args(more).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command.env("KVCSR_DATA", own.path().join("data")).env("KVCSR_CACHE", own.path().join("cache"));
    (command.env("KVCSR_LONGBENCH", &bench).output().unwrap(), own)
}

fn prediction(own: &Path) -> serde_json::Value {
    let path = own.join("data/runs/smoke/longbench/predictions/dense/hotpotqa.jsonl");
    serde_json::from_str(fs::read_to_string(path).unwrap().lines().next().unwrap()).unwrap()
}

#[test]
fn longbench_stops_where_the_checkpoint_says() {
    for model in ["folder", "same.gguf"] {
        let (out, own) = longbench("longbench", model, &[]);
        assert!(said(&out).contains("100.00"), "{model}: {}", said(&out));
        let row = prediction(own.path());
        assert_eq!(
            (row["pred"].as_str(), row["score"].as_f64(), row.get("cut")),
            (Some("Rome"), Some(1.0), None),
            "{model}"
        );
    }
}

#[test]
fn answers_that_the_context_cuts_are_foretold_and_counted() {
    let set = |tokens: usize| format!("longbench.max_prompt_tokens={tokens}");
    let (out, own) = longbench("longbench-ctx64", "ctx64.gguf", &["--set", &set(62)]);
    let text = said(&out);
    for part in
        ["1 of 1 prompts", "62 prompt tokens", "64 positions", "longbench.max_prompt_tokens = 57", "1 answer cut"]
    {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    let row = prediction(own.path());
    assert_eq!((row["pred"].as_str(), row["cut"].as_bool()), (Some("Rom"), Some(true)));
    let page = fs::read_to_string(own.path().join("data/runs/smoke/longbench/longbench.md")).unwrap();
    assert!(page.contains("context cut, which lowers scores: `dense` 1 of 1"), "{page}");

    let (out, own) = longbench("longbench-ctx64", "ctx64.gguf", &["--set", &set(56)]);
    let text = said(&out);
    assert!(!text.contains("warning") && !text.contains("cut by") && text.contains("100.00"), "{text}");
    assert_eq!(prediction(own.path())["pred"].as_str(), Some("Rome"));

    let (out, _own) = longbench("longbench-ctx64", "ctx64.gguf", &["--set", &set(100)]);
    let error = refused(&out);
    for part in ["lower longbench.max_prompt_tokens", "hotpotqa, record r0", "the model has 64 positions"] {
        assert!(error.contains(part), "{part} is missing in\n{error}");
    }
}

#[test]
fn going_on_over_nothing_sound_is_an_error() {
    let (out, _own) = longbench("longbench-null", "same.gguf", &["--keep-going"]);
    assert!(refused(&out).contains("hotpotqa has no sound record (2 of 2 left out)"), "{}", refused(&out));
}
