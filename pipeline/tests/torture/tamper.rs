//! Outputs, records and locks that are cut, changed, swapped or removed: every kind of file of every stage.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::home::{Home, Made, Undisturbed, is_long, refused, text};

/// A stage that reads what another makes.
fn reader_of(stage: &str) -> Option<&'static str> {
    Some(match stage {
        "calibrate" => "merge",
        "merge" => "train",
        "train" => "train-best",
        "allocate" => "train-plus",
        "train-plus" => "at-rest",
        "calibrate-peers" => "compare",
        "evaluate" | "compare" | "at-rest" | "suite" | "ablate" => "report",
        _ => return None,
    })
}

/// The stage's outputs by kind: by their names without numbers; pages and figures by their endings.
fn kinds(home: &Home, stage: &str) -> BTreeMap<String, Vec<PathBuf>> {
    let record = home.record(stage).unwrap();
    let mut kinds: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for output in record["outputs"].as_array().unwrap() {
        let file = output["file"].as_str().unwrap();
        let drawn =
            [".svg", ".png", ".csv", ".parquet", ".md", ".html"].into_iter().find(|ending| file.ends_with(ending));
        let kind = drawn.map(str::to_owned).unwrap_or_else(|| {
            file.replace(|c: char| c.is_ascii_digit(), "#").replace("keys", "*").replace("values", "*")
        });
        kinds.entry(kind).or_default().push(home.stage(stage).join(file));
    }
    kinds
}

/// Whether a run of the stage says `expected` when it begins. It is killed as soon as it does; what it began is removed.
fn says(home: &Home, stage: &str, expected: &str) -> bool {
    let mut child = home.command(stage, &[]).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = lines.map_while(Result::ok).any(|line| line.contains(expected));
    child.kill().unwrap();
    child.wait().unwrap();
    let _ = fs::remove_dir_all(home.partial(stage));
    said
}

/// Damaged contents of a file (none if it is removed), and what the program must say about each.
fn damages(whole: &[u8], other: &[u8]) -> Vec<(Option<Vec<u8>>, &'static str)> {
    let changed = "was changed since it was made";
    let mut damages = vec![(None, "is missing"), (Some(whole[..whole.len() / 2].to_vec()), changed)];
    if let Some(middle) = whole.len().checked_sub(1).map(|last| last / 2) {
        let mut flipped = whole.to_vec();
        flipped[middle] ^= 1;
        damages.push((Some(flipped), changed));
    }
    if other != whole {
        damages.push((Some(other.to_vec()), changed));
    }
    damages.retain(|(bytes, _)| bytes.as_deref() != Some(whole));
    damages
}

fn put(path: &Path, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => fs::write(path, bytes).unwrap(),
        None => fs::remove_file(path).unwrap(),
    }
}

/// Checks that every damage to one file of each kind is seen by the stage and refused by a stage that reads it. Returns the
/// number of damages.
fn tampered(home: &Home, made: &Made) -> usize {
    let mut count = 0;
    let kinds = kinds(home, made.stage);
    let any: Vec<&PathBuf> = kinds.values().flatten().collect();
    for (kind, files) in &kinds {
        let victim = &files[0];
        let name = victim.strip_prefix(home.stage(made.stage)).unwrap().to_str().unwrap().to_owned();
        // Another file of its kind, or of the stage.
        let other =
            files.last().filter(|file| *file != victim).or_else(|| any.iter().copied().find(|file| *file != victim));
        let whole = fs::read(victim).unwrap();
        let other = other.map_or_else(Vec::new, |file| fs::read(file).unwrap());
        for (at, (bytes, expected)) in damages(&whole, &other).into_iter().enumerate() {
            put(victim, bytes.as_deref());
            assert!(
                says(home, made.stage, &format!("{name} {expected}")),
                "{}, {kind}: damage {at} was not seen",
                made.stage
            );
            if let Some(reader) = reader_of(made.stage).filter(|_| at < 2 || is_long()) {
                let said = refused(&home.command(reader, &[]).output().unwrap());
                let remedy = format!("`just {} profile=smoke` makes it again", made.stage);
                assert!(said.contains(&format!("{name} {expected}")) && said.contains(&remedy), "{reader}: {said}");
            }
            count += 1;
            put(victim, Some(&whole));
        }
        if is_long() {
            put(victim, Some(&other));
            home.check(made);
        }
    }
    count
}

#[test]
fn every_kind_of_output_that_was_damaged_is_seen_and_made_again() {
    let Some(all) = Undisturbed::run("every_kind_of_output_that_was_damaged_is_seen_and_made_again") else { return };
    let home = all.copy();
    let mut count = 0;
    for made in &all.made {
        count += tampered(&home, made);
        // For one damaged file, the stage runs to its end.
        let victim = kinds(&home, made.stage).into_values().flatten().next_back().unwrap();
        put(&victim, Some(b"damaged"));
        home.check(made);
    }
    println!("{count} outputs damaged");
    assert!(count >= 100, "{count}");
}

#[test]
fn a_record_that_was_damaged_is_seen_and_the_stage_made_again() {
    let Some(all) = Undisturbed::run("a_record_that_was_damaged_is_seen_and_the_stage_made_again") else { return };
    let home = all.copy();
    for stage in ["merge", "train-plus", "report"] {
        let made = all.of(stage);
        let path = home.stage(stage).join("manifest.json");
        let whole = fs::read_to_string(&path).unwrap();
        let hash = home.record(stage).unwrap()["outputs"][0]["blake3"].as_str().unwrap().to_owned();
        let changed_hash = whole.replace(&hash, &blake3::hash(b"").to_hex());
        let changed_digest = whole.replace(&made.digest, &blake3::hash(b"").to_hex());
        let others = fs::read_to_string(home.stage("calibrate/manifest.json")).unwrap();
        let damaged = "manifest.json: not the record of a finished stage";
        for (text, expected) in [
            (changed_hash.as_str(), damaged),
            (&changed_digest, damaged),
            (&whole[..whole.len() / 2], damaged),
            ("", damaged),
            ("not JSON", damaged),
            ("{}", damaged),
            (&others, "manifest.json: the record of stage `calibrate`"),
        ] {
            if text == whole {
                continue;
            }
            fs::write(&path, text).unwrap();
            assert!(says(&home, stage, expected), "{stage}: {text:.60}");
            if let Some(reader) = reader_of(stage) {
                let said = refused(&home.command(reader, &[]).output().unwrap());
                assert!(
                    said.contains("manifest.json") && said.contains(&format!("just {stage} profile=smoke")),
                    "{said}"
                );
            }
        }
        home.check(made);
        fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
        home.check(made);
    }
}

#[test]
fn a_lock_file_that_was_damaged_stops_nothing_that_can_go_on() {
    let Some(all) = Undisturbed::run("a_lock_file_that_was_damaged_stops_nothing_that_can_go_on") else { return };
    let home = all.copy();
    let made = all.of("merge");
    let lock = home.stage(".merge.lock");
    assert!(lock.is_file());
    for bytes in [None, Some(&b"what a lock file never holds"[..])] {
        put(&lock, bytes);
        home.run_with("merge", &["--force"]);
        home.check(made);
    }
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    let said = refused(&home.command("merge", &["--force"]).output().unwrap());
    assert!(said.contains(&format!("lock file {}", lock.display())), "{said}");
    home.run("merge");
    fs::remove_dir(&lock).unwrap();
    home.check(made);
}

#[test]
fn a_stage_in_the_making_that_was_damaged_is_named_or_made_anew() {
    let Some(all) = Undisturbed::run("a_stage_in_the_making_that_was_damaged_is_named_or_made_anew") else { return };
    let home = all.copy();
    for stage in ["train", "evaluate", "calibrate-peers"] {
        let made = all.of(stage);
        home.forget(stage);
        let mut child = home.command(stage, &[]).spawn().unwrap();
        std::thread::sleep(made.time / 2);
        child.kill().unwrap();
        child.wait().unwrap();
        let partial = home.partial(stage);
        let recipe = partial.join("recipe.json");
        if !recipe.exists() {
            home.check(made);
            continue;
        }
        // If the recipe is damaged, the stage is made anew. If another file cannot be read, it is named, with the folder to remove.
        for file in files(&partial).into_iter().filter(|file| *file != recipe) {
            fs::write(&file, "damaged\n").unwrap();
        }
        let out = home.command(stage, &[]).output().unwrap();
        if !out.status.success() {
            let said = text(&out);
            assert!(said.contains("damaged") || said.contains(partial.to_str().unwrap()), "{said}");
            assert!(said.contains(&format!("remove {}", partial.display())), "{said}");
            fs::write(&recipe, "damaged").unwrap();
        }
        home.check(made);
    }
}

/// The files of a folder and below.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}
