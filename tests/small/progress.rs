//! Runs that are killed after they saved progress.

use crate::small::{Small, names};
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

/// Starts a run and kills it as soon as it has saved progress. Tries again if the run ends first.
pub fn leave_progress(small: &Small, words: &str, out: &str) {
    let partial = small.path(&format!("{out}.partial"));
    let saved = || partial.is_dir() && names(&partial).iter().any(|name| name.ends_with(".safetensors"));
    for _ in 0..100 {
        let mut command = small.command(words);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while !saved() && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_micros(200));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if saved() {
            return;
        }
    }
    panic!("every run ended before it was killed");
}
