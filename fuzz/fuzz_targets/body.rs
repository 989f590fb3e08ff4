#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| replicator::testing::fuzz("body", data));
