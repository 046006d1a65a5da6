//! Other machines: fewer threads, narrower instructions. Every stage ends with the same bytes.

use crate::home::{Undisturbed, text};

/// The stage whose bytes may differ: it shows times.
const REPORT: &str = "report";

#[test]
fn every_stage_has_the_same_bytes_on_one_thread_without_wide_instructions() {
    let test = "every_stage_has_the_same_bytes_on_one_thread_without_wide_instructions";
    let Some(all) = Undisturbed::run(test) else { return };
    let home = all.copy();
    for made in &all.made {
        home.forget(made.stage);
        let out = home
            .command(made.stage, &["--set", "threads=1"])
            .env("KVCSR_SIMD", "avx2")
            .env("ATEN_CPU_CAPABILITY", "default")
            .output()
            .unwrap();
        assert!(out.status.success(), "{}: {}", made.stage, text(&out));
        if made.stage != REPORT {
            assert_eq!(home.digest(made.stage).as_ref(), Some(&made.digest), "{}: other bytes", made.stage);
        }
    }
}
