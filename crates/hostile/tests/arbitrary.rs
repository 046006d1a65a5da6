//! Inputs that proptest makes. If one breaks a promise, proptest looks for a smaller one.

#![allow(clippy::unwrap_used)]

use kvcsr_hostile::place::Place;
use kvcsr_hostile::{ALL, Target, allocation, corpus, run};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

#[global_allocator]
static ALLOCATOR: allocation::Counting = allocation::Counting;

/// The number of inputs of each target, for each of the two kinds.
const CASES: u32 = 256;

fn runner() -> TestRunner {
    TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() })
}

fn sound(target: &Target, input: &[u8], place: &Place) -> Result<(), TestCaseError> {
    let outcome = run::once(target, input, place);
    prop_assert!(outcome.find.is_none(), "{}: {:?} from {input:02x?}", target.name, outcome.find);
    Ok(())
}

/// One test for all targets, because memory is counted for the whole program.
#[test]
fn no_input_breaks_a_promise() {
    for target in ALL {
        let place = Place::new().unwrap();
        let files: Vec<Vec<u8>> = corpus::load(target.name).unwrap().into_iter().map(|(_, bytes)| bytes).collect();
        run::warm(target, &files, &place);
        let bytes = vec(any::<u8>(), 0..400);
        runner().run(&bytes, |bytes| sound(target, &bytes, &place)).unwrap();
        let edits = vec((any::<Index>(), any::<u8>()), 0..6);
        let changed = (any::<Index>(), edits, any::<Index>(), vec(any::<u8>(), 0..8), any::<bool>());
        let make = changed.prop_map(|(file, edits, cut, tail, is_cut)| {
            let mut bytes = file.get(&files).clone();
            for (at, byte) in edits.into_iter().filter(|_| !bytes.is_empty()).collect::<Vec<_>>() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if is_cut {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            [bytes, tail].concat()
        });
        runner().run(&make, |bytes| sound(target, &bytes, &place)).unwrap();
    }
}
