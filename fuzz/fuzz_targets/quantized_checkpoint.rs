#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cntlora_fuzz::quantized_checkpoint(bytes));
