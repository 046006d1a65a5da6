#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| kvcsr_hostile::run::fuzz("plan", input));
