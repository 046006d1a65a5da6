//! Two runs on one folder at once.

use std::process::Output;

use crate::home::{Home, Undisturbed, refused, text, wait_until};

/// Starts both, one right after the other.
fn both(home: &Home, first: &str, second: &str) -> [Output; 2] {
    let [a, b] = [first, second].map(|stage| home.command(stage, &[]).spawn().unwrap());
    [a, b].map(|child| child.wait_with_output().unwrap())
}

#[test]
fn of_two_runs_of_one_stage_one_makes_it_and_the_other_says_so() {
    let Some(all) = Undisturbed::run("of_two_runs_of_one_stage_one_makes_it_and_the_other_says_so") else { return };
    let home = all.copy();
    let made = all.of("train");
    home.forget(made.stage);
    let mut first = home.command(made.stage, &[]).spawn().unwrap();
    assert!(wait_until(&mut first, || home.partial(made.stage).exists()), "train ended before it began");
    let said = refused(&home.command(made.stage, &[]).output().unwrap());
    assert!(said.contains("another process is making") && said.contains("train"), "{said}");
    assert!(said.contains("wait until it is done, or stop it"), "{said}");
    let out = first.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    home.check_finished(made, &text(&out));
}

#[test]
fn runs_that_start_at_once_leave_right_outputs() {
    let Some(all) = Undisturbed::run("runs_that_start_at_once_leave_right_outputs") else { return };
    let home = all.copy();
    // The same stage, and stages that read the same outputs.
    for (first, second) in
        [("merge", "merge"), ("report", "report"), ("train-plus", "calibrate-peers"), ("train-best", "train-rope")]
    {
        home.forget(first);
        if second != first {
            home.forget(second);
        }
        let outs = both(&home, first, second);
        assert!(outs.iter().any(|out| out.status.success()), "{first} and {second}: {}", text(&outs[0]));
        for (stage, out) in [first, second].iter().zip(&outs) {
            if !out.status.success() {
                assert!(refused(out).contains("another process is making"), "{}", text(out));
            }
            home.check(all.of(stage));
        }
    }
}

#[test]
fn a_report_beside_a_replacement_of_what_it_shows_is_right_in_the_end() {
    let Some(all) = Undisturbed::run("a_report_beside_a_replacement_of_what_it_shows_is_right_in_the_end") else {
        return;
    };
    let home = all.copy();
    for _ in 0..3 {
        home.forget("report");
        let replacing = home.command("train", &["--force"]).spawn().unwrap();
        let out = home.command("report", &[]).output().unwrap();
        // The report sees the old outputs or the new ones. In the moment between there are none: then it fails with an error.
        if !out.status.success() {
            refused(&out);
        }
        let replaced = replacing.wait_with_output().unwrap();
        assert!(replaced.status.success(), "{}", text(&replaced));
        home.check(all.of("train"));
        home.check(all.of("report"));
        let page = std::fs::read_to_string(home.data.join("runs/smoke/report/report.md")).unwrap();
        assert!(!page.contains("Not run: train"), "{page}");
    }
}
