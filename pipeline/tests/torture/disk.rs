//! Disks that are too small, become full, or refuse large files.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::home::{Undisturbed, is_long, is_root, refused, text, wait_until};

/// A file system of its own, until it is dropped.
pub struct Mount {
    folder: tempfile::TempDir,
}

impl Mount {
    /// A file system in memory with this many MB. If it cannot be made, returns none, and `test` is skipped.
    pub fn tmpfs(test: &str, megabytes: usize) -> Option<Self> {
        Self::new(test, &["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
    }

    /// A folder mounted at a second place.
    pub fn bind(test: &str, folder: &Path) -> Option<Self> {
        Self::new(test, &["--bind", folder.to_str().unwrap()])
    }

    fn new(test: &str, arguments: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let out = is_root().then(|| Command::new("mount").args(arguments).arg(folder.path()).output().unwrap());
        if out.is_some_and(|out| out.status.success()) {
            return Some(Self { folder });
        }
        kvcsr_fixtures::skip(test, "file systems cannot be mounted here (root is needed)");
        None
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Changes its options: `ro`, `rw`.
    pub fn remount(&self, options: &str) {
        let options = format!("remount,bind,{options}");
        let status = Command::new("mount").args(["-o", &options]).arg(self.path()).status().unwrap();
        assert!(status.success(), "{options}");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.folder.path()).status();
    }
}

/// Fills the disk of a folder with one file, until that file is removed. Returns its path.
fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("ballast");
    let mut file = File::create(&path).unwrap();
    // Whole pages, then what is left.
    for size in [1 << 20, 1 << 12] {
        while file.write_all(&vec![0u8; size]).is_ok() {}
    }
    path
}

#[test]
fn a_disk_that_becomes_full_ends_a_stage_with_the_way_out_and_nothing_is_lost() {
    let test = "a_disk_that_becomes_full_ends_a_stage_with_the_way_out_and_nothing_is_lost";
    let Some(all) = Undisturbed::run(test) else { return };
    let Some(disk) = Mount::tmpfs(test, 64) else { return };
    let home = all.copy_in(disk.path());
    let stages: &[&str] = if is_long() {
        &[
            "calibrate",
            "train",
            "train-best",
            "allocate",
            "calibrate-peers",
            "ablate",
            "evaluate",
            "compare",
            "suite",
            "report",
        ]
    } else {
        &["train", "evaluate", "report"]
    };
    let mut full = 0;
    for stage in stages {
        let made = all.of(stage);
        let mut child = home.command(stage, &["--force"]).spawn().unwrap();
        wait_until(&mut child, || home.partial(stage).join("recipe.json").is_file());
        let ballast = fill(disk.path());
        let out = child.wait_with_output().unwrap();
        if !out.status.success() {
            full += 1;
            let said = refused(&out);
            assert!(said.contains("No space left on device"), "{said}");
            assert!(said.contains(stage) && said.contains(disk.path().to_str().unwrap()), "{said}");
            assert!(said.contains("free some space") && said.contains("KVCSR_DATA"), "{said}");
            // Reading finished outputs needs no free disk.
            assert!(home.run(stage).contains("up to date"), "{stage}: finished outputs were lost");
        }
        fs::remove_file(ballast).unwrap();
        home.run_with(stage, &["--force"]);
        home.check(made);
    }
    assert!(full >= stages.len() / 2, "{full} of {} stages ran out of disk", stages.len());
}

#[test]
fn a_disk_that_is_surely_too_small_is_refused_before_anything_is_written() {
    let test = "a_disk_that_is_surely_too_small_is_refused_before_anything_is_written";
    let Some(all) = Undisturbed::run(test) else { return };
    let Some(disk) = Mount::tmpfs(test, 64) else { return };
    let home = all.copy_in(disk.path());
    home.forget("calibrate");
    let more = ["calibrate.tokens=1048576"];
    let out = home.command("calibrate", &more).output().unwrap();
    let said = refused(&out);
    for part in ["calibrate needs", "MB are free", "calibrate.tokens", "KVCSR_DATA", disk.path().to_str().unwrap()] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert!(!home.partial("calibrate").exists());
    home.check(all.of("calibrate"));
}

#[test]
fn a_limit_on_the_size_of_files_ends_a_stage_with_the_way_out() {
    let Some(all) = Undisturbed::run("a_limit_on_the_size_of_files_ends_a_stage_with_the_way_out") else { return };
    let home = all.copy();
    let made = all.of("train");
    home.forget(made.stage);
    // SIGXFSZ is ignored, so that writing fails as on a full disk instead of ending the program.
    let shell = ["sh", "-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "sh"];
    let said = refused(&home.under(&shell, made.stage, &[]).output().unwrap());
    assert!(said.contains("train") && said.contains("ulimit -f"), "{said}");
    home.check(made);
}

#[test]
fn a_read_only_disk_keeps_what_is_up_to_date_and_refuses_the_rest() {
    let test = "a_read_only_disk_keeps_what_is_up_to_date_and_refuses_the_rest";
    let Some(all) = Undisturbed::run(test) else { return };
    let home = all.copy();
    let Some(disk) = Mount::bind(test, home.data.parent().unwrap()) else { return };
    let there = home.at(disk.path().join("data"));
    disk.remount("ro");
    for made in &all.made {
        let said = there.run(made.stage);
        assert!(said.contains("up to date"), "{}: {said}", made.stage);
    }
    for stage in ["train", "report"] {
        let said = refused(&there.command(stage, &["--force"]).output().unwrap());
        assert!(said.contains("Read-only file system") && said.contains(disk.path().to_str().unwrap()), "{said}");
        assert!(said.contains("KVCSR_DATA"), "{said}");
    }
    disk.remount("rw");
    for stage in ["train", "report"] {
        let out = there.command(stage, &["--force"]).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        there.check(all.of(stage));
    }
}
