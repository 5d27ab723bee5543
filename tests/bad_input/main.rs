//! Tests of the real binary with faulty inputs, options and environments. Each run fails with the right exit code and message, or it
//! succeeds.
//!
//! Other tests check read and write errors at every operation, and runs that are killed, stopped or damaged: `src/run/faults.rs`,
//! `src/adapter/faults.rs` and `tests/resume.rs`.

#[path = "../small/progress.rs"]
mod progress;
#[path = "../small/mod.rs"]
mod small;

mod checkpoints;
mod npy_files;
mod options;
mod outputs;
mod safetensors_files;
mod surroundings;
mod truncation;
mod values;

use expect_test::Expect;
use small::Small;
use std::fs;

/// Runs `plan` with these bytes as the activations of `block.mlp`. The command must be refused with this message.
#[track_caller]
fn activations_refused(small: &Small, name: &str, bytes: &[u8], message: Expect) {
    fs::write(small.path(name), bytes).unwrap();
    small.refused(&format!("plan model.safetensors -a {name} --rank 4"), 1, message);
    fs::remove_file(small.path(name)).unwrap();
}

/// Returns a safetensors file with this header, followed by zeros.
fn safetensors(header: impl AsRef<[u8]>, zeros: usize) -> Vec<u8> {
    let header = header.as_ref();
    [&(header.len() as u64).to_le_bytes(), header, &vec![0; zeros]].concat()
}

/// Returns a safetensors file with one F32 matrix.
fn matrix(name: &str, columns: usize, values: &[f32]) -> Vec<u8> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let header = serde_json::json!({ name: {
        "dtype": "F32", "shape": [values.len() / columns, columns], "data_offsets": [0, bytes.len()],
    }});
    [safetensors(header.to_string(), 0), bytes].concat()
}

/// Returns a `.npy` file of version 1 with this dictionary, followed by zeros.
fn npy(dictionary: &str, zeros: usize) -> Vec<u8> {
    let length = (dictionary.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\0", &length[..], dictionary.as_bytes(), &vec![0; zeros]].concat()
}
