//! The tool as users meet it: the real binary, its streams and its exit codes.

use assert_cmd::Command;
use cntlora::adapter::Verification;
use cntlora::plan::Plan;
use cntlora::report::Report;
use std::fs;
use std::path::Path;

/// What a run of the tool gave.
struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

fn cntlora(folder: &Path, words: &[&str]) -> Run {
    let mut command = Command::cargo_bin("cntlora").unwrap();
    let output = command.current_dir(folder).env("NO_COLOR", "1").args(words).output().unwrap();
    Run {
        code: output.status.code().expect("it was not killed"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn here(words: &[&str]) -> Run {
    cntlora(Path::new("."), words)
}

/// The demo in a folder of its own.
fn demo() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let run = cntlora(folder.path(), &["demo"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    folder
}

/// Help of a command names all of its options, an example and the exit codes.
#[test]
fn help_is_complete() {
    let global = "--json --verbose --quiet --color --progress";
    let job = "--activations --source --rename --io --nonfinite --precision --target --include --exclude --coupling --preserve \
               --ridge --norm --max-shift --strength --start --seed --rank --energy --budget --min-rank --max-rank \
               --rank-multiple --scale --out --dtype --base-out --force --threads";
    for (command, options) in [
        ("init", job),
        ("plan", job),
        ("inspect", ""),
        ("verify", "--base"),
        ("demo", "--force"),
        ("generate", ""),
    ] {
        let help = here(&[command, "--help"]);
        assert_eq!(help.code, 0);
        for option in options.split_whitespace().chain(global.split_whitespace()) {
            assert!(help.stdout.contains(option), "{command} does not mention {option}");
        }
        assert!(help.stdout.contains("Examples:") && help.stdout.contains("Exit codes:"), "{command}");
    }
    assert_eq!(here(&["--version"]).stdout, concat!("cntlora ", env!("CARGO_PKG_VERSION"), "\n"));
}

/// A slip of the fingers is answered with what was probably meant.
#[test]
fn unknown_options_are_usage_errors() {
    let run = here(&["plan", "model", "--activation", "x"]);
    assert_eq!((run.code, run.stdout.as_str()), (2, ""));
    assert!(run.stderr.contains("--activations"), "{}", run.stderr);
    assert_eq!(here(&[]).code, 2);
}

/// What is not there is a matter of the environment, and nothing is made in its place.
#[test]
fn missing_files_are_io_errors() {
    let folder = tempfile::tempdir().unwrap();
    let run = cntlora(folder.path(), &["init", "model", "-a", "activations", "-o", "adapter"]);
    assert_eq!(run.code, 3, "{}", run.stderr);
    assert!(run.stderr.contains("model") && run.stderr.contains("activations"), "{}", run.stderr);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    assert_eq!(cntlora(folder.path(), &["inspect", "nothing.npy"]).code, 3);
    assert_eq!(cntlora(folder.path(), &["verify", "nothing"]).code, 3);
}

/// Everything that headers and options can tell comes in one go: nobody mends five things in five runs.
#[test]
fn problems_come_together() {
    let demo = demo();
    let words = "init cntlora-demo/model -a cntlora-demo/activations -o cntlora-demo/adapter --base-out b \
                 --include ( --ridge=-1 --scale 0";
    let run = cntlora(demo.path(), &words.split_whitespace().collect::<Vec<_>>());
    assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{}", run.stderr);
    let errors = run.stderr.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 5, "{}", run.stderr);
    assert!(run.stderr.ends_with("\n5 problems were found\n"), "{}", run.stderr);
}

/// The demo makes an adapter that verifies, and says what to type next; what it says works.
#[test]
fn the_demo_leads_on() {
    let folder = tempfile::tempdir().unwrap();
    let run = cntlora(folder.path(), &["demo", "try"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(
        run.stdout.contains("12 layers") && run.stdout.contains("blocks.0.attention.query"),
        "{}",
        run.stdout
    );
    assert!(run.stdout.lines().all(|line| line.chars().count() <= 80), "{}", run.stdout);

    let verified = cntlora(folder.path(), &["verify", "try/adapter", "--base", "try/model"]);
    assert_eq!(verified.code, 0, "{}", verified.stderr);

    let next = run.stderr.lines().rev().find_map(|line| line.trim().strip_prefix("cntlora ")).unwrap();
    let next = cntlora(folder.path(), &next.split(' ').collect::<Vec<_>>());
    assert_eq!(next.code, 0, "{}", next.stderr);

    let again = cntlora(folder.path(), &["demo", "try"]);
    assert_eq!(again.code, 2, "a demo that is there is not overwritten");
    assert!(again.stderr.contains("--force"), "{}", again.stderr);
    assert_eq!(cntlora(folder.path(), &["demo", "try", "--force"]).code, 0);
}

/// `--json` is one object with exactly the fields of the public types, and nothing else is on stdout.
#[test]
fn json_parses_strictly() {
    let folder = tempfile::tempdir().unwrap();
    let run = cntlora(folder.path(), &["demo", "d", "--json"]);
    let report: Report = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report.layers.len(), 12);

    let run = cntlora(folder.path(), &["plan", "d/model", "-a", "d/activations", "--json"]);
    let plan: Plan = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(plan.sites.iter().map(|site| site.layers.len()).sum::<usize>(), 12);

    let run = cntlora(folder.path(), &["verify", "d/adapter", "--json"]);
    let verification: Verification = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(verification.layers, 12);

    for (path, kind) in
        [("d/adapter", "adapter"), ("d/model", "checkpoint"), ("d/activations", "activations")]
    {
        let run = cntlora(folder.path(), &["inspect", path, "--json"]);
        let inspection: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(inspection["kind"], kind);
    }
}

/// The same inputs and options give the same files, whatever the number of threads.
#[test]
fn adapters_are_reproducible() {
    let demo = demo();
    let folder = demo.path().join("cntlora-demo");
    for (threads, out) in [("1", "one"), ("3", "three")] {
        let words = ["init", "model", "-a", "activations", "-o", out, "--rank", "4", "--threads", threads];
        let run = cntlora(&folder, &words);
        assert_eq!(run.code, 0, "{}", run.stderr);
    }
    let mut names: Vec<_> =
        fs::read_dir(folder.join("one")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors", "cntlora.json"]);
    for name in names {
        let read = |out: &str| fs::read(folder.join(out).join(&name)).unwrap();
        assert!(read("one") == read("three"), "{name:?} differs");
    }
}

/// The residual base goes where it is told, and the adapter names it.
#[test]
fn the_residual_base_is_written() {
    let demo = demo();
    let folder = demo.path().join("cntlora-demo");
    let words = "init model -a activations -o residual --start residual --rank 4 -q";
    let run = cntlora(&folder, &words.split(' ').collect::<Vec<_>>());
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    assert!(folder.join("residual/base/model.safetensors").is_file());
    let config = fs::read_to_string(folder.join("residual/adapter_config.json")).unwrap();
    assert!(config.contains("residual/base"), "{config}");
}

/// Inputs are never written over, not even by force.
#[test]
fn outputs_keep_off_the_inputs() {
    let demo = demo();
    let folder = demo.path().join("cntlora-demo");
    for out in ["model", "activations", "../cntlora-demo/model"] {
        let run = cntlora(&folder, &["init", "model", "-a", "activations", "-o", out, "--force"]);
        assert_eq!(run.code, 2, "{}", run.stderr);
        assert!(run.stderr.contains("holds an input"), "{}", run.stderr);
    }
    let run = cntlora(&folder, &["init", "model", "-a", "activations", "-o", "adapter"]);
    assert_eq!(run.code, 2, "an adapter that is there needs --force");
    assert!(run.stderr.contains("--force"), "{}", run.stderr);
}

/// Manual pages and completions come from the same description as the help.
#[test]
fn manuals_are_generated() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(cntlora(folder.path(), &["generate", "man", "--out", "man"]).code, 0);
    let page = fs::read_to_string(folder.path().join("man/cntlora-init.1")).unwrap();
    assert!(page.contains("rank\\-multiple") && page.contains("Exit codes"), "{page}");
    assert!(here(&["generate", "man"]).stdout.contains("cntlora\\-init(1)"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(here(&["generate", "completions", shell]).stdout.contains("rank-multiple"), "{shell}");
    }
}

/// A reader that goes away, as `head` does, is no error.
#[test]
#[cfg(unix)]
fn a_closed_stdout_is_quiet() {
    use std::process::{Command, Stdio};
    let mut child = Command::new(env!("CARGO_BIN_EXE_cntlora"))
        .args(["generate", "completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &[][..]));
}
