//! Runs the tests of the scripts that unpack PyTorch before anything is built.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

#[test]
fn unpacking_refuses_what_leads_out_links_and_bombs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup");
    let ran = Command::new("python3")
        .args(["-B", "-m", "unittest", "discover", "-s"])
        .arg(&folder)
        .arg("-t")
        .arg(&folder)
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}
