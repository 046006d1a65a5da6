//! SIGINT and SIGTERM: unfinished files are removed, the exit status tells the signal, and the next run continues.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use crate::home::{Home, Made, Undisturbed, can_run, is_long, leftovers, signal, text, wait_until};

/// Sends a signal by name.
pub fn send(child: &Child, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status().unwrap();
    assert!(sent.success(), "kill -{name}");
}

/// A command that sets signals to their defaults, even if this test runs in the background of a shell.
const DEFAULTS: [&str; 2] = ["env", "--default-signal=INT,TERM"];

/// Starts a stage without outputs, and waits until it has begun.
fn begun(home: &Home, made: &Made, more: &[&str]) -> Child {
    home.forget(made.stage);
    let mut child = home.under(&DEFAULTS, made.stage, more).spawn().unwrap();
    wait_until(&mut child, || home.partial(made.stage).join("recipe.json").is_file());
    child
}

/// Sends a signal to a stage in the middle of its work. Returns how the stage ended.
fn interrupted(home: &Home, made: &Made, name: &str) -> Output {
    let child = begun(home, made, &[]);
    std::thread::sleep(made.time / 4);
    send(&child, name);
    child.wait_with_output().unwrap()
}

#[test]
fn a_signal_ends_a_stage_cleanly_and_the_next_run_goes_on() {
    let test = "a_signal_ends_a_stage_cleanly_and_the_next_run_goes_on";
    let Some(all) = Undisturbed::run(test) else { return };
    if !can_run(test, "env", &["--default-signal=INT", "true"]) {
        return;
    }
    let home = all.copy();
    let stages = if is_long() { all.made.clone() } else { vec![all.of("train").clone(), all.of("evaluate").clone()] };
    let mut caught = 0;
    for made in &stages {
        for (name, number) in [("INT", 2), ("TERM", 15)] {
            let out = interrupted(&home, made, name);
            if out.status.success() {
                // The stage had ended before the signal.
                home.check(made);
                continue;
            }
            // A shell shows 130 and 143.
            assert_eq!(signal(out.status), Some(number), "{}: {}", made.stage, text(&out));
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(said.contains("interrupted; run the same command again to go on"), "{said}");
            assert!(!said.contains("error"), "{said}");
            let mut left = leftovers(&home.data);
            left.retain(|path| *path != home.partial(made.stage));
            left.extend(leftovers(&home.partial(made.stage)));
            assert!(left.is_empty(), "{}: left over {left:?}", made.stage);
            home.check(made);
            caught += 1;
        }
    }
    assert!(caught >= stages.len(), "{caught} of {} signals came before the stage had ended", 2 * stages.len());
}

#[test]
fn a_second_signal_ends_a_stage_at_once_and_the_next_run_goes_on() {
    let test = "a_second_signal_ends_a_stage_at_once_and_the_next_run_goes_on";
    let Some(all) = Undisturbed::run(test) else { return };
    if !can_run(test, "env", &["--default-signal=INT", "true"]) {
        return;
    }
    let home = all.copy();
    let made = all.of("train");
    let mut child = begun(&home, made, &["--set", "train.epochs=50"]);
    // The first signal's handler ends with a line on standard error. The pipe is full, so the handler waits.
    fill_stderr(&child);
    send(&child, "TERM");
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none(), "the first signal waits to say that it was there");
    send(&child, "TERM");
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("a second signal is ignored");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(signal(status), Some(15));
    home.check(made);
}

/// Fills the pipe that is the child's standard error.
fn fill_stderr(child: &Child) {
    // The number of O_NONBLOCK on Linux.
    let mut options = OpenOptions::new();
    let options = options.write(true).custom_flags(0o4000);
    let mut stderr = options.open(format!("/proc/{}/fd/2", child.id())).unwrap();
    for size in [4096, 1] {
        let bytes = vec![b'.'; size];
        let full = loop {
            if let Err(error) = stderr.write(&bytes) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
    }
}

#[test]
fn a_signal_that_the_caller_ignores_stays_ignored() {
    let Some(all) = Undisturbed::run("a_signal_that_the_caller_ignores_stays_ignored") else { return };
    let home = all.copy();
    let made = all.of("merge");
    home.forget(made.stage);
    // As a shell starts jobs in the background.
    let mut child = home.under(&["sh", "-c", "trap '' INT; exec \"$@\"", "sh"], made.stage, &[]).spawn().unwrap();
    wait_until(&mut child, || home.partial(made.stage).exists());
    send(&child, "INT");
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    home.check_finished(made, &text(&out));
}
