//! Tests of the command line: the real binary, its output streams and its exit codes.

use assert_cmd::Command;
use cntlora::adapter::{PeftAdapter, Verification};
use cntlora::method::Method;
use cntlora::plan::Plan;
use cntlora::report::Report;
use expect_test::expect;
use std::fs;
use std::path::Path;

/// The exit code and the output of one run of the tool.
struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

/// Runs the tool with these arguments in a folder.
fn cntlora(folder: &Path, words: &[&str]) -> Run {
    let mut command = Command::cargo_bin("cntlora").unwrap();
    let output = command.current_dir(folder).env("NO_COLOR", "1").args(words).output().unwrap();
    Run {
        code: output.status.code().expect("it was not killed"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs the tool with these arguments in the current folder.
fn here(words: &[&str]) -> Run {
    cntlora(Path::new("."), words)
}

/// Runs the demo in a temporary folder and returns the folder.
fn demo() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let run = cntlora(folder.path(), &["demo"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    folder
}

/// The help of each command lists all of its options, an example and the exit codes.
#[test]
fn help_lists_options_examples_and_exit_codes() {
    let global = "--json --verbose --quiet --color --progress";
    let saved = "--checkpoint-every --restart";
    let job = "--activations --moments --source --source-moments --rename --io --nonfinite --precision --target --include --exclude --method --coupling --preserve \
               --ridge --channel-scale --shrinkage --norm --max-shift --strength --start --seed --rank --energy --budget --rho --min-rank --max-rank \
               --rank-multiple --scale --out --dtype --format --component --uniform-rank --modules-to-save --task-type --base-name --residual --base-out --report --force --threads --events --strict";
    for (command, options) in [
        ("init", job),
        ("plan", job),
        ("init", saved),
        ("init", "--shard"),
        ("plan", "--nodes"),
        ("moments", "--shard"),
        ("moments", saved),
        ("moments", "--out --include --exclude --io --nonfinite --threads --precision --force"),
        ("merge", "--out --force"),
        ("inspect", "--values"),
        ("verify", "--base"),
        ("report", "--out --force"),
        ("convert", "--init --rank --base --out --dtype --format --component --uniform-rank --force"),
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

/// The short help fits on one screen, has an example, and names the command that prints the long help.
#[test]
fn short_help_fits_a_screen() {
    for command in
        ["init", "plan", "moments", "merge", "inspect", "verify", "report", "convert", "demo", "generate"]
    {
        let help = here(&[command, "-h"]).stdout;
        let (lines, width) = (help.lines().count(), help.lines().map(|line| line.chars().count()).max());
        assert!(lines <= 40 && width <= Some(100), "{command}: {lines} lines of {width:?} columns\n{help}");
        assert!(
            help.contains("Example: cntlora") && help.contains(&format!("cntlora {command} --help")),
            "{help}"
        );
    }
    let help = here(&["init", "-h"]).stdout;
    for option in ["<MODEL>", "--activations", "--target", "--rank", "--out"] {
        assert!(help.contains(option), "{option} is missing from\n{help}");
    }
}

/// An unknown option is a usage error. The message suggests the option that the user probably meant.
#[test]
fn unknown_options_are_usage_errors() {
    let run = here(&["plan", "model", "--activation", "x"]);
    assert_eq!((run.code, run.stdout.as_str()), (2, ""));
    assert!(run.stderr.contains("--activations"), "{}", run.stderr);
    assert_eq!(here(&[]).code, 2);
}

/// The command of the Python package is refused with the way to get it, whatever its options.
#[test]
fn recording_needs_the_python_package() {
    for words in [&["record"][..], &["record", "model", "--text", "a.txt"]] {
        let run = here(words);
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{words:?}");
        assert_eq!(
            run.stderr,
            "error: `cntlora record` runs a model, so it needs the Python package\n  help: install the package with `pip install \
             ./python` in the folder of the project, and give the same command again\n"
        );
    }
    let help = here(&["record", "--help"]);
    assert!(help.code == 0 && help.stdout.contains("Python package"), "{}", help.stdout);
}

/// A missing file gives the exit code of an I/O error, and the tool creates no files.
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

/// One run reports all problems that headers and options show. The user does not need five runs to find five problems.
#[test]
fn one_run_reports_all_problems() {
    let demo = demo();
    let words = "init cntlora-demo/model -a cntlora-demo/activations -o cntlora-demo/adapter --base-out b \
                 --include ( --ridge=-1 --scale 0";
    let run = cntlora(demo.path(), &words.split_whitespace().collect::<Vec<_>>());
    assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{}", run.stderr);
    let errors = run.stderr.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 5, "{}", run.stderr);
    assert!(run.stderr.ends_with("\n5 problems were found\n"), "{}", run.stderr);
}

/// The demo makes an adapter that passes `verify`. It suggests a next command, and this command works.
#[test]
fn the_demo_suggests_a_command_that_works() {
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

/// `--json` prints one object with exactly the fields of the public types, and prints nothing else on stdout.
#[test]
fn json_output_matches_the_public_types() {
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

/// The same inputs and options give the same files with any number of threads.
#[test]
fn the_number_of_threads_does_not_change_the_adapter() {
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
    let expected =
        ["README.md", "adapter_config.json", "adapter_model.safetensors", "cntlora.json", "report.json"];
    assert_eq!(names, expected);
    // The report contains the duration of the run, and both it and the card contain the command, so they differ.
    for name in names.into_iter().filter(|name| name != "report.json" && name != "README.md") {
        let read = |out: &str| fs::read(folder.join(out).join(&name)).unwrap();
        assert!(read("one") == read("three"), "{name:?} differs");
    }
}

/// The residual base is written into the output folder, and the configuration of the adapter names it.
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

/// `--method` alone selects the method. Each method gives an adapter that passes the checks of this method. Methods that use only
/// weights need no activations.
#[test]
fn every_method_runs_and_verifies() {
    let demo = demo();
    let folder = demo.path().join("cntlora-demo");
    for method in Method::ALL {
        let name = method.name();
        let target: &[&str] = if method.reads_only_source() { &[] } else { &["-a", "activations"] };
        let source: &[&str] = if method.needs_source() { &["--source", "activations-source"] } else { &[] };
        let all = ["init", "model", "--method", name, "-o", name, "--rank", "4", "-q"];
        let run = cntlora(&folder, &[&all, target, source].concat());
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{name}");
        let run = cntlora(&folder, &["verify", name, "--base", "model"]);
        assert_eq!(run.code, 0, "{name}: {}", run.stderr);
        assert!(!run.stdout.contains("not made"), "{name}: {}", run.stdout);
        let record = fs::read_to_string(folder.join(name).join("cntlora.json")).unwrap();
        assert!(record.contains(&format!("\"method\": \"{name}\"")), "{record}");

        let out = format!("{name}-without");
        let words =
            ["init", "model", "--method", name, "-o", &out, "--target", "all-linear", "--rank", "4", "-q"];
        let run = cntlora(&folder, &words);
        if method.reads_activations() {
            assert_eq!(run.code, 2, "{name}");
            let wanted = match method.reads_only_source() {
                true => "needs pre-training activations",
                false => "give files or folders with --activations",
            };
            assert!(run.stderr.contains(wanted), "{}", run.stderr);
        } else {
            assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{name}");
            let tensors = |out: &str| fs::read(folder.join(out).join("adapter_model.safetensors")).unwrap();
            assert!(tensors(name) == tensors(&out), "{name}: activations matter");
        }
    }
    let run = cntlora(&folder, &["plan", "model", "--method", "pissa"]);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("give --target q_proj,v_proj"), "{}", run.stderr);
    let words = ["plan", "model", "-a", "activations", "--method", "eva", "--source", "activations-source"];
    let run = cntlora(&folder, &words);
    assert!(run.stderr.contains("the method eva does not use pre-training activations"), "{}", run.stderr);
    let refused = |words: &str| {
        let words = format!("plan model {words}");
        let run = cntlora(&folder, &words.split(' ').collect::<Vec<_>>());
        format!("{}\n{}", run.code, run.stderr)
    };
    let texts = [
        "-a activations --method sc-lora",
        "--method lora-null",
        "-a activations --method lora-null",
        "-a activations --method lora-null --source activations-source",
        "-a activations --source activations-source --method sc-lora --beta 1.5",
        "-a activations --source activations-source --method sc-lora --beta nan",
        "-a activations --method astra --source activations-source",
    ]
    .map(refused);
    expect![[r#"
        2
        error: the method sc-lora needs pre-training activations
          help: give them with --source or --source-moments
        2
        error: the method lora-null needs pre-training activations
          help: give them with --source or --source-moments
        2
        error: the method lora-null does not use fine-tuning activations
          help: remove --activations or --moments, and give pre-training activations with --source or --source-moments
        2
        error: the method lora-null does not use fine-tuning activations
          help: remove --activations or --moments, and give pre-training activations with --source or --source-moments
        2
        error: beta is 1.5, but must be from 0 to 1
        2
        error: beta is NaN, but must be from 0 to 1
        2
        error: the method astra does not use pre-training activations
          help: remove --source
    "#]].assert_eq(&texts.concat());
}

/// If `convert --init` subtracts an initial adapter from itself, the update on the original base is zero. `convert --rank` without
/// `--init` reports the loss. Conversions that cannot work are refused.
#[test]
fn adapters_are_converted() {
    let demo = demo();
    let folder = demo.path().join("cntlora-demo");
    for words in [
        "init model -a activations --method pissa --rank 4 -o start -q",
        "init model -a activations --start update --rank 8 -o update -q",
    ] {
        assert_eq!(cntlora(&folder, &words.split(' ').collect::<Vec<_>>()).code, 0);
    }
    let run = cntlora(&folder, &["convert", "start", "--init", "start", "--out", "plain", "--json"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let converted: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(converted["base"], "model");
    assert!(converted["layers"].as_array().unwrap().iter().all(|layer| layer["rank"] == 8));
    let run = cntlora(&folder, &["verify", "plain", "--base", "model", "--json"]);
    let verified: Verification = serde_json::from_str(&run.stdout).unwrap();
    assert!(verified.largest_relative_update.unwrap() < 1e-6);

    let run = cntlora(&folder, &["convert", "update", "--rank", "2", "--out", "cut"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stdout.contains("of the squared norm of an update is lost"), "{}", run.stdout);
    assert_eq!(cntlora(&folder, &["verify", "cut"]).code, 0);

    for (words, complaint) in [
        (
            "convert adapter --out new",
            "nothing to do: give --init, --rank, --uniform-rank, --adapter-name-rename",
        ),
        ("convert adapter --init adapter --out new", "but this one has --start zero"),
        ("convert start --rank 2 --out start --force", "holds an input"),
        ("convert start --rank 2 --out plain", "--force"),
    ] {
        let run = cntlora(&folder, &words.split(' ').collect::<Vec<_>>());
        assert_eq!(run.code, 2, "{words}: {}", run.stderr);
        assert!(run.stderr.contains(complaint), "{words}: {}", run.stderr);
    }
}

/// `--residual anchor` writes two adapters instead of a changed base. Their updates cancel on the unchanged model.
#[test]
fn an_anchor_cancels_the_update() {
    let demo = demo();
    let folder = demo.path().join("cntlora-demo");
    let words = "init model -a activations -o anchored --method pissa --residual anchor --rank 4";
    let run = cntlora(&folder, &words.split(' ').collect::<Vec<_>>());
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stderr.contains("set_adapter([\"default\", \"anchor\"])"), "{}", run.stderr);
    assert!(!folder.join("anchored/base").exists());
    let open = |path: &str| PeftAdapter::open(&folder.join(path)).unwrap();
    let (adapter, anchor) = (open("anchored"), open("anchored/anchor"));
    assert_eq!(adapter.config().unwrap().base_model_name_or_path.as_deref(), Some("model"));
    for (module, layer) in adapter.layers() {
        let (one, other) =
            (adapter.factors(layer).unwrap(), anchor.factors(&anchor.layers()[module]).unwrap());
        assert!(
            one.a == other.a && one.b == -other.b && layer.scale == anchor.layers()[module].scale,
            "{module}"
        );
    }
    for path in ["anchored", "anchored/anchor"] {
        let run = cntlora(&folder, &["verify", path, "--base", "model"]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert!(run.stdout.contains("load this adapter together with its anchor"), "{}", run.stdout);
    }
}

/// Adapters in single-file formats are written, inspected, verified, and converted to and from PEFT.
#[test]
fn single_file_formats_are_written_and_converted() {
    let demo = demo();
    let folder = demo.path().join("cntlora-demo");
    for (format, file) in [("diffusers", "pytorch_lora_weights.safetensors"), ("kohya", "lora.safetensors")] {
        let words = ["init", "model", "-a", "activations", "--rank", "4", "--scale", "2", "-q"];
        let run = cntlora(&folder, &[&words[..], &["-o", format, "--format", format]].concat());
        assert_eq!((run.code, run.stderr.as_str()), (0, ""));
        assert!(folder.join(format).join(file).is_file());
        let run = cntlora(&folder, &["verify", format, "--base", "model"]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert!(run.stdout.contains("12 layers"), "{}", run.stdout);
        let run = cntlora(&folder, &["inspect", format]);
        assert!(run.code == 0 && run.stdout.contains("blocks.0.attention.query"), "{}", run.stdout);

        let back = format!("{format}-back");
        let run = cntlora(&folder, &["convert", format, "--rank", "4", "--out", &back]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        let run = cntlora(&folder, &["verify", &back, "--base", "model"]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        let run =
            cntlora(&folder, &["convert", "adapter", "--format", format, "--out", &format!("{format}-too")]);
        assert_eq!(run.code, 0, "{}", run.stderr);
    }
}

/// The tool never overwrites its inputs, even with `--force`.
#[test]
fn inputs_are_never_overwritten() {
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

/// Manual pages and shell completions are generated from the same description as the help.
#[test]
fn manuals_and_completions_are_generated() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(cntlora(folder.path(), &["generate", "man", "--out", "man"]).code, 0);
    let page = fs::read_to_string(folder.path().join("man/cntlora-init.1")).unwrap();
    assert!(page.contains("rank\\-multiple") && page.contains("Exit codes"), "{page}");
    assert!(here(&["generate", "man"]).stdout.contains("cntlora\\-init(1)"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(here(&["generate", "completions", shell]).stdout.contains("rank-multiple"), "{shell}");
    }
}

/// `plan --nodes --json` prints one object that contains the plan and its division.
#[test]
fn a_plan_for_several_nodes_contains_the_plan_and_its_division() {
    let demo = demo();
    let words = "plan cntlora-demo/model -a cntlora-demo/activations --rank 8 --nodes 3";
    let run = cntlora(demo.path(), &words.split(' ').collect::<Vec<_>>());
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stdout.contains("\nphase ") && run.stdout.contains("\nmoments      3 "), "{}", run.stdout);
    let run = cntlora(demo.path(), &format!("{words} --json").split(' ').collect::<Vec<_>>());
    let divided: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let plan: Plan = serde_json::from_value(divided["plan"].clone()).unwrap();
    let division: cntlora::plan::Division = serde_json::from_value(divided["division"].clone()).unwrap();
    assert!(division.nodes == 3 && division.moments.operations < plan.work.moments);
}

/// The tool exits without an error if the reader closes stdout early, as `head` does.
#[test]
#[cfg(unix)]
fn a_closed_stdout_is_no_error() {
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

/// `--report`, which the demo uses, writes a page. `report.json` in the adapter folder has the same content as the output of
/// `--json`. The `report` command makes the same page from it.
#[test]
fn reports_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let run = cntlora(folder.path(), &["demo", "d", "--json"]);
    let saved = fs::read_to_string(folder.path().join("d/adapter/report.json")).unwrap();
    assert_eq!(saved.trim_end(), run.stdout.trim_end());
    let report: Report = serde_json::from_str(&saved).unwrap();
    assert!(report.command.is_some_and(|command| command.starts_with("cntlora init d/model")));
    assert!(report.inputs.checkpoint[0].sha256.is_some());

    let run = cntlora(folder.path(), &["report", "d/adapter", "--out", "pages/again.html"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let page = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    assert!(page("d/report.html") == page("pages/again.html"));
    assert_eq!(cntlora(folder.path(), &["report", "d/adapter", "--out", "pages/again.html"]).code, 2);
    assert_eq!(cntlora(folder.path(), &["report", "d/model", "--out", "b.html"]).code, 3);
    assert!(
        cntlora(folder.path(), &["inspect", "d/adapter/report.json"]).stdout.starts_with("report of a run")
    );
}

/// `inspect` shows the spectrum of an adapter in numbers and as bars. The bars use ASCII characters if the locale has no block
/// characters.
#[test]
fn inspect_shows_spectra() {
    let demo = demo();
    let run = cntlora(demo.path(), &["inspect", "cntlora-demo/adapter"]);
    assert!(run.stdout.contains("they are zero, as before training"), "{}", run.stdout);
    let words = "init cntlora-demo/model -a cntlora-demo/activations --start update --rank 8 -o update -q";
    assert_eq!(cntlora(demo.path(), &words.split(' ').collect::<Vec<_>>()).code, 0);
    let inspect = |locale: &str| {
        let mut command = Command::cargo_bin("cntlora").unwrap();
        let words = ["inspect", "update/adapter_model.safetensors"];
        let output = command.current_dir(demo.path()).env("LC_ALL", locale).args(words).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let (blocks, letters) = (inspect("C.UTF-8"), inspect("C"));
    assert!(blocks.contains("PEFT adapter") && blocks.contains('█'), "{blocks}");
    assert!(!letters.contains('█') && letters.contains('@'), "{letters}");
    assert!(blocks.lines().skip(1).all(|line| line.chars().count() <= 80), "{blocks}");

    let run = cntlora(demo.path(), &["inspect", "update", "--json"]);
    let found: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let report = fs::read_to_string(demo.path().join("update/report.json")).unwrap();
    let report: Report = serde_json::from_str(&report).unwrap();
    for (shown, layer) in found["layers"].as_array().unwrap().iter().zip(report.layers) {
        assert_eq!(shown["module"], layer.module);
        assert_eq!(shown["singular_values"].as_array().unwrap().len(), layer.rank);
    }
    let run = cntlora(demo.path(), &["inspect", "cntlora-demo/model/model.safetensors", "--values"]);
    assert!(run.stdout.contains(": norm "), "{}", run.stdout);
}

/// `--events` writes one JSON object per line, so that programs can follow a run. The last line says how the run ended.
#[test]
fn events_are_lines_of_json() {
    let demo = demo();
    let folder = demo.path().join("cntlora-demo");
    let init = |out: &str, options: &[&str]| {
        cntlora(&folder, &[&["init", "model", "-a", "activations", "-o", out], options].concat())
    };
    let run = init("one", &["--events", "-"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let lines: Vec<serde_json::Value> =
        run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sum = |event: &str| -> u64 {
        lines.iter().filter(|line| line["event"] == event).map(|line| line["rows"].as_u64().unwrap()).sum()
    };
    assert_eq!(lines[0]["event"], "started");
    assert_eq!(lines[0]["rows"], sum("site-started"));
    assert_eq!(lines[0]["rows"], sum("rows-added"));
    let decomposed = lines.iter().filter(|line| line["event"] == "layer-decomposed").count();
    assert_eq!(lines[0]["layers"], decomposed);
    let last = lines.last().unwrap();
    assert_eq!(last["event"], "finished");
    serde_json::from_value::<Report>(last["report"].clone()).unwrap();

    assert_eq!(init("two", &["--events", "-", "--json"]).code, 2);
    assert_eq!(init("two", &["--events", "no/such/folder"]).code, 3);
    // The last number of the last row becomes NaN.
    let part = folder.join("activations/target-00002-of-00002.safetensors");
    let mut bytes = fs::read(&part).unwrap();
    let end = bytes.len() - 2;
    bytes[end..].copy_from_slice(&0x7fc0u16.to_le_bytes());
    fs::write(&part, bytes).unwrap();
    let run = init("three", &["--events", "log"]);
    assert_eq!(run.code, 1, "{}", run.stderr);
    let log = fs::read_to_string(folder.join("log")).unwrap();
    assert!(log.lines().last().unwrap().contains("\"event\":\"failed\""), "{log}");
}

/// `--color` and the environment variables for colors apply to the help and to error messages.
#[test]
fn colors_follow_the_option_and_the_environment() {
    let coloured = |words: &[&str], variables: &[(&str, &str)]| {
        let mut command = Command::cargo_bin("cntlora").unwrap();
        command.env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE").envs(variables.iter().copied());
        let output = command.args(words).output().unwrap();
        [output.stdout, output.stderr].concat().contains(&0x1b)
    };
    assert!(!coloured(&["--help"], &[]), "not to a pipe");
    assert!(coloured(&["--help", "--color", "always"], &[("NO_COLOR", "1")]));
    assert!(coloured(&["verify", "nothing", "--color=always"], &[]));
    assert!(coloured(&["--help"], &[("CLICOLOR_FORCE", "1")]));
    assert!(coloured(&["verify", "nothing"], &[("CLICOLOR_FORCE", "1")]));
    for words in [["--help", "--color=never"], ["verify", "--color=never"]] {
        assert!(!coloured(&words, &[("CLICOLOR_FORCE", "1")]));
    }
    assert!(!coloured(&["verify", "nothing"], &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
}

/// The long help has one or two lines per option.
#[test]
fn long_help_is_compact() {
    for command in ["init", "plan", "moments", "merge", "inspect", "verify", "report", "convert", "demo"] {
        let help = here(&[command, "--help"]).stdout;
        let (lines, width) = (help.lines().count(), help.lines().map(|line| line.chars().count()).max());
        assert!(lines <= 150 && width <= Some(100), "{command}: {lines} lines of {width:?} columns\n{help}");
    }
}

/// `-v` logs files, sites, dampings and times. `-vv` logs more. Without them, the tool logs nothing. The written files stay the same.
#[test]
fn verbosity_is_logged_to_stderr() {
    let demo = demo();
    let init = |out: &str, verbosity: &[&str]| {
        let job =
            format!("init cntlora-demo/model -a cntlora-demo/activations --rank 8 -o {out} --progress none");
        let words: Vec<&str> = job.split(' ').chain(verbosity.iter().copied()).collect();
        let run = cntlora(demo.path(), &words);
        assert_eq!(run.code, 0, "{}", run.stderr);
        let kinds = ["INFO", "DEBUG"]
            .map(|level| run.stderr.lines().filter(|line| line.trim_start().starts_with(level)).count());
        (run, kinds)
    };
    let (_, kinds) = init("silent", &[]);
    assert_eq!(kinds, [0, 0]);
    let (run, [info, debug]) = init("some", &["-v"]);
    assert!(info > 0 && debug == 0, "{}", run.stderr);
    for line in [
        "opened file=\"cntlora-demo/model/model.safetensors\" bytes=",
        "opened file=\"cntlora-demo/activations/target-00001-of-00002.safetensors\" bytes=",
        "planned site=\"blocks.0.attention.input\" width=128 rows=2048 layers=3",
        "planned the run sites=8 threads=",
        "chose kernels instructions=",
        "damped site=\"blocks.0.attention.input\" matrix=",
        "measured site=\"blocks.0.attention.input\" rows=2048 skipped_rows=0 seconds=",
        "decomposed layer=\"blocks.0.attention.query\" seconds=",
        "wrote file=\"some/adapter_model.safetensors\" bytes=",
    ] {
        assert!(run.stderr.contains(line), "{line} is missing from\n{}", run.stderr);
    }
    let (run, [_, debug]) = init("more", &["-vv"]);
    assert!(
        debug > 0 && run.stderr.contains("planned layer=\"blocks.0.attention.query\" tensor="),
        "{}",
        run.stderr
    );
    for file in ["adapter_model.safetensors", "adapter_config.json", "cntlora.json"] {
        let [silent, more] =
            ["silent", "more"].map(|out| fs::read(demo.path().join(out).join(file)).unwrap());
        assert!(silent == more, "{file} differs");
    }
}
