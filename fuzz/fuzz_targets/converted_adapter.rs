#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cntlora_fuzz::converted_adapter(bytes));
