//! An input that is truncated while it is being read.

use super::npy;
use crate::small::{Small, WIDTH};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

/// With the default reader it ends in an error that says so, not in a signal, and nothing is written.
///
/// The events of the run tell when it has begun to read. Should it have read everything before the file was cut, a larger file is tried.
#[test]
fn a_truncated_input_is_an_error_and_no_signal() {
    let small = Small::new();
    let path = small.path("block.mlp.npy");
    for rows in [1 << 19, 1 << 21, 1 << 23] {
        let dictionary =
            format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {WIDTH}), }}\n");
        let header = npy(&dictionary, 0);
        let mut file = File::create(&path).unwrap();
        file.write_all(&header).unwrap();
        // The first row is not zero; the others are a hole in the file.
        file.write_all(&1.0_f32.to_le_bytes()).unwrap();
        file.set_len((header.len() + 4 * rows * WIDTH) as u64).unwrap();

        let mut init = small.command("init model.safetensors -a block.mlp.npy --rank 4 --events - -o out");
        let mut run = init.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut events = BufReader::new(run.stdout.take().unwrap()).lines().map(Result::unwrap);
        let begun = events.any(|event| event.contains(r#""event":"rows-added""#));
        file.set_len(header.len() as u64 + 1000).unwrap();
        assert!(begun, "it ended before it read anything");
        events.for_each(drop);
        let mut stderr = String::new();
        run.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let status = run.wait().unwrap();
        let complete = small.path("out/adapter_config.json").exists();
        // A run that had read every row before finds a file that has changed, or nothing at all.
        if stderr.contains("was it truncated during the run?") {
            assert_eq!(status.code(), Some(3), "{stderr}");
            assert!(!complete);
            return;
        }
        assert!(matches!(status.code(), Some(0 | 1)), "{status}: {stderr}");
        let _ = fs::remove_dir_all(small.path("out"));
    }
    panic!("no run was caught in the middle");
}
