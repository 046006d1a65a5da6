//! What the tests that need downloads share.

use std::process::Command;

/// The downloads that these tests' stages of the profile `smoke` need.
#[allow(dead_code, reason = "not every test file runs those stages")]
pub const MODEL_AND_TEXT: [&str; 3] = [MODEL, "wiki", "plays/"];
/// The embedded model.
pub const MODEL: &str = "smollm2-135m-instruct";

/// Overrides that make every stage take a second or two.
#[allow(dead_code, reason = "not every test file runs stages")]
pub const SMALL: &str = "corpora=[\"wiki\"] merge.sample=256 calibrate.tokens=512 calibrate.heldout_tokens=256 calibrate.sequence=256 \
     train.atoms=64 train.epochs=2 train.kmeans_iterations=2 train.batch=256 train.checkpoint_seconds=0 train_best.epochs=1 \
     allocate.documents=1 allocate.check_documents=1 allocate.context=64 allocate.continuation=33 allocate.budgets=[8] \
     train_plus.atoms=16 train_plus.iterations=2 train_plus.trial=[3.0] train_plus.trial_context=320 train_plus.trial_continuation=17 calibrate_peers.tokens=256 calibrate_peers.cq_iterations=2 \
     calibrate_peers.methods=[\"svdq\",\"cq\",\"lexico\"] calibrate_peers.lexico_atoms=32 calibrate_peers.lexico_tokens=256 \
     heldout.domains=[\"play\"] heldout.scored=16 heldout.repeats=1 \
     evaluate.schemes=[\"dense\",\"csr-8\",\"csr-8@kmeans\",\"csr+@2\"] evaluate.contexts=[264] evaluate.documents=2 \
     compare.schemes=[\"dense\",\"kivi-2\",\"lexico-8\",\"cq-8c8b\",\"csr-8\"] compare.contexts=[264] compare.documents=2 \
     compare.tasks=[\"contract_terms\"] compare.task_limit=2 compare.decode=1 \
     at_rest.bits=[1.0] at_rest.contexts=[264] at_rest.documents=1 at_rest.schemes=[\"dense\"] \
     suite.tasks=[\"record_lookup\"] suite.schemes=[\"dense\",\"csr-8\"] \
     ablate.layers=[3] ablate.option_layers=[3] ablate.table_atoms=[32] ablate.table_sparsity=[2] ablate.table_chunks=[1] \
     ablate.options=[\"kmeans\",\"mod\"] ablate.options_atoms=32 ablate.merged_atoms=0 ablate.vectors=512 ablate.epochs=1";

/// Whether `just fetch` has fetched all of `wanted`; if not, `test` is skipped.
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
