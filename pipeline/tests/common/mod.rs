//! What the tests that need downloads share.

use std::process::Command;

/// What the stages of the profile `smoke` need as far as these tests run them.
#[allow(dead_code, reason = "not every test file runs those stages")]
pub const MODEL_AND_TEXT: [&str; 3] = [MODEL, "wiki", "plays/"];
/// The embedded model.
pub const MODEL: &str = "smollm2-135m-instruct";

/// Whether `just fetch` has brought all of `wanted`; if not, `test` is skipped.
pub fn is_fetched(test: &str, wanted: &[&str]) -> bool {
    let listed = Command::new(env!("CARGO_BIN_EXE_kvcsr"))
        .arg("data-verify")
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let is_there = |id: &&str| listed.lines().any(|line| line.starts_with(*id) && line.ends_with(" ok"));
    let fetched = wanted.iter().all(is_there);
    if !fetched {
        kvcsr_fixtures::skip(test, &format!("{} not fetched; run `just fetch`", wanted.join(", ")));
    }
    fetched
}
