//! Replays the inputs under `fuzz/corpus` through the functions of the fuzz targets, so that fixed bugs stay fixed.

use std::fs;
use std::path::Path;

#[path = "../fuzz/src/lib.rs"]
mod targets;

/// Runs a fuzz target on every input of its corpus. The library must return a value or an error for all bytes.
fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{target} has no corpus");
    for path in paths {
        println!("{}", path.display());
        run(&fs::read(path).unwrap());
    }
}

#[test]
fn npy_headers_do_not_panic() {
    replay("npy_header", targets::npy_header);
}

#[test]
fn safetensors_headers_do_not_panic() {
    replay("safetensors_header", targets::safetensors_header);
}

#[test]
fn checkpoint_indexes_do_not_panic() {
    replay("checkpoint_index", targets::checkpoint_index);
}

#[test]
fn quantized_checkpoints_do_not_panic() {
    replay("quantized_checkpoint", targets::quantized_checkpoint);
}

#[test]
fn rename_rules_do_not_panic() {
    replay("rename_rules", targets::rename_rules);
}

#[test]
fn activation_sets_do_not_panic() {
    replay("activation_set", targets::activation_set);
}

#[test]
fn moments_files_do_not_panic() {
    replay("moments_file", targets::moments_file);
}

#[test]
fn saved_runs_do_not_panic() {
    replay("saved_run", targets::saved_run);
}

#[test]
fn adapter_configurations_do_not_panic() {
    replay("adapter_config", targets::adapter_config);
}

#[test]
fn adapter_records_do_not_panic() {
    replay("adapter_record", targets::adapter_record);
}

#[test]
fn single_file_adapters_do_not_panic() {
    replay("single_file_adapter", targets::single_file_adapter);
}

#[test]
fn converted_adapters_do_not_panic() {
    replay("converted_adapter", targets::converted_adapter);
}
