//! Inputs that change while they are being read.

use super::{npy, safetensors};
use crate::small::{Small, WIDTH};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::process::Stdio;

/// Returns the header of a file with this number of rows.
type Header = fn(rows: usize) -> Vec<u8>;

fn npy_header(rows: usize) -> Vec<u8> {
    npy(&format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {WIDTH}), }}\n"), 0)
}

fn safetensors_header(rows: usize) -> Vec<u8> {
    let length = 4 * rows * WIDTH;
    let header =
        format!(r#"{{"block.mlp":{{"dtype":"F32","shape":[{rows},{WIDTH}],"data_offsets":[0,{length}]}}}}"#);
    safetensors(header, 0)
}

/// Changes a file while a run reads it. The run must end with this code and message, and without an output.
///
/// The events of the run show when it has begun to read. If it read everything before the file was changed, a larger file is tried.
#[track_caller]
fn caught(name: &str, header: Header, change: fn(&File), code: i32, message: &str) {
    let small = Small::new();
    for rows in [1 << 19, 1 << 21, 1 << 23] {
        let header = header(rows);
        let mut file = File::create(small.path(name)).unwrap();
        file.write_all(&header).unwrap();
        // The first number is not zero. The rest is a hole in the file.
        file.write_all(&1.0_f32.to_le_bytes()).unwrap();
        file.set_len((header.len() + 4 * rows * WIDTH) as u64).unwrap();

        let mut init = small.command(&format!("init model.safetensors -a {name} --rank 4 --events - -o out"));
        let mut run = init.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut events = BufReader::new(run.stdout.take().unwrap()).lines().map(Result::unwrap);
        let begun = events.any(|event| event.contains(r#""event":"rows-added""#));
        change(&file);
        assert!(begun, "it ended before it read anything");
        events.for_each(drop);
        let mut stderr = String::new();
        run.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let status = run.wait().unwrap();
        let complete = small.path("out/adapter_config.json").exists();
        if stderr.contains(message) {
            assert_eq!(status.code(), Some(code), "{stderr}");
            assert!(!complete);
            return;
        }
        // The run ended before the change, or it had read every row and then noticed that the file has changed.
        assert!(matches!(status.code(), Some(0 | 1)), "{status}: {stderr}");
        let _ = fs::remove_dir_all(small.path("out"));
    }
    panic!("no run was caught in the middle");
}

/// With the default reader, a truncated file causes an error with a clear message, not a signal.
#[test]
fn a_truncated_input_is_an_error_and_not_a_signal() {
    let cut = |file: &File| file.set_len(1000).unwrap();
    let message = "perhaps it was truncated during the run";
    caught("block.mlp.npy", npy_header, cut, 3, message);
    caught("rows.safetensors", safetensors_header, cut, 3, message);
}

/// The run is refused, because its adapter would mix old and new rows.
#[test]
fn an_input_that_is_written_to_is_an_error() {
    let write = |file: &File| file.write_all_at(&2.0_f32.to_le_bytes(), 4096).unwrap();
    let message = "file changed while it was read: its time of modification changed";
    caught("block.mlp.npy", npy_header, write, 1, message);
}
