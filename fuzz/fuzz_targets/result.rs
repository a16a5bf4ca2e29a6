#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| orchestra_fuzz::result(data));
