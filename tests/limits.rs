//! Tests of runs on a system that leaves little memory to the process (`ulimit`), or few processors.
#![cfg(target_os = "linux")]

mod small;

use cntlora::dense::workspace;
use expect_test::expect;
use regex::Regex;
use small::{Small, on_any_machine};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const MEBIBYTE: u64 = 1 << 20;

/// Runs the tool under `ulimit -v` or `-d`, with this number of bytes.
fn limited(small: &Small, option: &str, bytes: u64, words: &str) -> Output {
    let tool = small.command("");
    Command::new("sh")
        .args(["-c", &format!("ulimit {option} {} && exec \"$0\" \"$@\"", bytes / 1024)])
        .arg(tool.get_program())
        .args(words.split_whitespace())
        .current_dir(small.path("."))
        .env("NO_COLOR", "1")
        .output()
        .unwrap()
}

/// Limits from one at which the program just starts to one that is enough for everything.
fn limits() -> [u64; 9] {
    let workspace = workspace();
    [
        80 * MEBIBYTE,
        120 * MEBIBYTE,
        200 * MEBIBYTE,
        workspace + 64 * MEBIBYTE,
        workspace + 200 * MEBIBYTE,
        2 * workspace + 300 * MEBIBYTE,
        2 * workspace + 900 * MEBIBYTE,
        3 * workspace + 700 * MEBIBYTE,
        4 * workspace + 4096 * MEBIBYTE,
    ]
}

/// Whatever the limit is, a command succeeds, or ends with the exit code of the environment and a message. It never dies of a signal,
/// and leaves no half-written output: the same command succeeds afterwards.
#[test]
fn a_limit_on_memory_never_kills_a_command() {
    let small = Small::new();
    small.succeed("init model.safetensors -a target -o adapter --rank 4");
    small.succeed("moments target -o t.m");
    let commands = [
        "plan model.safetensors -a target --rank 4",
        "init model.safetensors -a target -o out --rank 4 --threads 2 --force",
        "init model.safetensors -a target -o out --rank 4 --threads 1 --start residual --force",
        "moments target -o m --threads 2 --force",
        "merge t.m -o merged --force",
        "inspect adapter",
        "verify adapter --base model.safetensors",
        "convert adapter --rank 2 -o converted --force",
        "report adapter -o page.html --force",
    ];
    for words in commands {
        for option in ["-v", "-d"] {
            let mut codes = Vec::new();
            for bytes in limits() {
                let output = limited(&small, option, bytes, words);
                let stderr = String::from_utf8_lossy(&output.stderr);
                let told = format!("ulimit {option} {}: {words}: {:?} {stderr}", bytes / 1024, output.status);
                assert_eq!(output.status.signal(), None, "{told}");
                let code = output.status.code().unwrap();
                assert!(code == 0 || (code == 3 && !stderr.is_empty()), "{told}");
                codes.push(code);
            }
            assert_eq!(codes.last(), Some(&0), "{words}: the largest of the limits is enough");
            assert!(
                codes[0] == 3 || !words.starts_with("init"),
                "{words}: the smallest of the limits is too small"
            );
        }
        small.succeed(words);
    }
}

/// Refusals before the work name the limit, the memory that is in use, and the remedy.
#[test]
fn refusals_name_the_limit_and_the_remedy() {
    let small = Small::new();
    small.succeed("init model.safetensors -a target -o adapter --rank 4");
    let refusals = [
        ("-v", "init model.safetensors -a target -o out --rank 4 --threads 2"),
        ("-d", "init model.safetensors -a target -o out --rank 4 --threads 1"),
        ("-v", "moments target -o m --threads 2"),
        ("-v", "convert adapter --rank 2 -o converted"),
        ("-v", "plan model.safetensors -a target --rank 4 --threads 2 --quiet"),
        ("-v", "plan model.safetensors -a target --rank 4 --threads 2"),
    ];
    let size = Regex::new(r"\d+ MiB").unwrap();
    let texts = refusals.map(|(option, words)| {
        let output = limited(&small, option, 200 * MEBIBYTE, words);
        let stderr = on_any_machine(&String::from_utf8(output.stderr).unwrap());
        format!("$ cntlora {words}: {:?}\n{}", output.status.code(), size.replace_all(&stderr, "[size]"))
    });
    expect![[r#"
        $ cntlora init model.safetensors -a target -o out --rank 4 --threads 2: Some(3)
        error: the run needs at least [size] of memory, but the address space of this process is limited to [size], [size] are in use, and its threads can reserve [size]
          help: raise the limit with `ulimit -v`, or give fewer --threads; smaller ranks need less
        $ cntlora init model.safetensors -a target -o out --rank 4 --threads 1: Some(3)
        error: the run needs at least [size] of memory, but the data size of this process is limited to [size], [size] are in use, and its threads can reserve [size]
          help: raise the limit with `ulimit -d`; smaller ranks need less
        $ cntlora moments target -o m --threads 2: Some(3)
        error: the run needs at least [size] of memory, but the address space of this process is limited to [size], [size] are in use, and its threads can reserve [size]
          help: raise the limit with `ulimit -v`, or give fewer --threads
        $ cntlora convert adapter --rank 2 -o converted: Some(3)
        error: this needs about [size] of memory, but the address space of this process is limited to [size], [size] are in use, and its threads can reserve [size]
          help: raise the limit with `ulimit -v`
        $ cntlora plan model.safetensors -a target --rank 4 --threads 2 --quiet: Some(0)
        $ cntlora plan model.safetensors -a target --rank 4 --threads 2: Some(0)
        warning: `cntlora init` would have less memory here: the address space of this process is limited to [size], [size] are in use, and its threads can reserve [size]; raise the limit with `ulimit -v`, or give fewer --threads
        A server with a limit on ranks, such as --max-lora-rank of vLLM, has to allow rank 4: the next limit that vLLM takes is 8.
    "#]].assert_eq(&texts.concat());
    assert!(!small.path("out").exists() && !small.path("m").exists(), "nothing is written");
}

/// Thousands of threads would take minutes for three small layers.
#[test]
fn threads_that_are_of_no_use_are_not_started() {
    let small = Small::new();
    let started = Instant::now();
    let output = small.succeed("init model.safetensors -a target -o out --rank 4 --threads 10000");
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    let stderr = String::from_utf8(output.stderr).unwrap();
    let warning = stderr.lines().find(|line| line.starts_with("warning: --threads")).unwrap();
    let warning =
        Regex::new("the [0-9]+ processors|only [0-9]+ threads").unwrap().replace_all(warning, "[number]");
    expect!["warning: --threads 10000 is more than [number] that this process may use: [number] are used, and they will wait for each other"].assert_eq(&warning);
    small.succeed("init model.safetensors -a target -o alone --rank 4 --threads 1");
    assert_eq!(small.bytes("out"), small.bytes("alone"));
}
