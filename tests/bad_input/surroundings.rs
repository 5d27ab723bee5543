//! Unusual paths, names and streams.

use super::{matrix, safetensors};
use crate::progress::leave_progress;
use crate::small::{Small, names};
use expect_test::expect;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::process::Command;

/// Inputs that cannot be read at an offset are refused, and the message names their kind. The tool does not wait for the writer of a pipe.
#[test]
fn irregular_inputs_are_refused() {
    let small = Small::new();
    assert!(Command::new("mkfifo").arg(small.path("pipe.npy")).status().unwrap().success());
    symlink("circle.npy", small.path("circle.npy")).unwrap();
    symlink("/dev/null", small.path("device.npy")).unwrap();
    symlink("nowhere", small.path("broken.npy")).unwrap();
    for (name, code, message) in [
        (
            "pipe.npy",
            3,
            expect![[r#"
                error: pipe.npy: not a regular file but a pipe
                  help: give the path of a regular file
            "#]],
        ),
        (
            "circle.npy",
            3,
            expect![[r#"
            error: circle.npy: cannot open: Too many levels of symbolic links (os error 40)
        "#]],
        ),
        (
            "device.npy",
            3,
            expect![[r#"
                error: device.npy: not a regular file but a device
                  help: give the path of a regular file
            "#]],
        ),
        (
            "broken.npy",
            3,
            expect![[r#"
            error: broken.npy: cannot open: No such file or directory (os error 2)
              help: check the path
        "#]],
        ),
    ] {
        small.refused(&format!("plan model.safetensors -a {name}"), code, message);
    }
    fs::create_dir(small.path("model.npy")).unwrap();
    small.refused(
        "plan model.npy -a target",
        1,
        expect![[r#"
        error: model.npy: the folder has no .safetensors file
          help: give the folder that contains the weights, or a .safetensors file
    "#]],
    );
    small.refused(
        "plan model.safetensors -a model.npy",
        2,
        expect![[r#"
            error: model.npy: the folder contains no .safetensors or .npy files
              help: give the folder that directly contains the files: folders inside it are not searched
        "#]],
    );
    small.refused(
        "inspect pipe.npy",
        3,
        expect![[r#"
            error: pipe.npy: not a regular file but a pipe
              help: give the path of a regular file
        "#]],
    );
    small.refused(
        "plan pipe.npy -a target",
        3,
        expect![[r#"
            error: pipe.npy: not a regular file but a pipe
              help: give the path of a regular file
        "#]],
    );
}

/// Names from files are printed without control characters. Long names do no harm.
#[test]
fn names_are_printed_without_control_characters() {
    let small = Small::new();
    let long = "x".repeat(100_000);
    for name in ["\u{1b}[2J\u{7}evil", "a/../../b", "line\nbreak", &long] {
        fs::write(small.path("a.safetensors"), matrix(name, 24, &[1.0; 24])).unwrap();
        for words in ["plan model.safetensors -a a.safetensors --rank 2", "inspect a.safetensors"] {
            let output = small.run(words);
            let text = [output.stdout, output.stderr].concat();
            let code = output.status.code().unwrap();
            assert!(code < 2, "{words}: {}", String::from_utf8_lossy(&text));
            assert!(!text.iter().any(|&byte| byte == 0x1b || byte == 7), "{words}: {name:?}");
            assert!(!String::from_utf8(text).unwrap().contains("line\nbreak"), "{words}");
        }
    }
}

/// A path that is not UTF-8 can be read, unless it must be the name of a module.
#[test]
#[cfg(target_os = "linux")]
fn paths_need_not_be_utf8() {
    let small = Small::new();
    let folder = small.path("").join(OsStr::from_bytes(b"r\xf6ws"));
    fs::rename(small.path("target"), &folder).unwrap();
    let plan = |path: &OsStr| small.command("plan model.safetensors --rank 4 -a").arg(path).output().unwrap();
    assert!(plan(folder.as_os_str()).status.success());
    let unnamed = folder.join(OsStr::from_bytes(b"\xff.npy"));
    fs::write(&unnamed, b"").unwrap();
    let output = plan(unnamed.as_os_str());
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("the file name is not valid UTF-8, but it must be the name of the module"),
        "{text}"
    );
}

/// No output replaces an input, not even under another name of the input. An output replaces other files only with `--force`.
#[test]
fn outputs_do_not_replace_inputs_or_other_files() {
    let small = Small::new();
    symlink("target", small.path("same")).unwrap();
    fs::hard_link(small.path("target/0.safetensors"), small.path("hard.safetensors")).unwrap();
    symlink("target/0.safetensors", small.path("soft.safetensors")).unwrap();
    fs::write(small.path("file"), "mine").unwrap();
    for (words, code, message) in [
        (
            "init model.safetensors -a target -o same --force",
            2,
            expect![[r#"
                error: same: this folder is or holds an input, target
                  help: write to another folder
                error: rank 16 is over the limit of "block.value"
                  help: the largest rank that is possible for all layers is 12: give --rank 12, or exclude layers with --exclude
                2 problems were found
            "#]],
        ),
        (
            "moments target/0.safetensors --out target/0.safetensors --force",
            2,
            expect![[r#"
                error: target/0.safetensors: the output file is an input
                  help: write to another file
            "#]],
        ),
        (
            "moments target/0.safetensors --out soft.safetensors --force",
            2,
            expect![[r#"
                error: soft.safetensors: the output file is an input
                  help: write to another file
            "#]],
        ),
        (
            "moments target/0.safetensors --out file",
            2,
            expect![[r#"
                error: file: this file exists
                  help: choose another name, or give --force to replace it
            "#]],
        ),
        (
            "moments target/0.safetensors --out source",
            2,
            expect![[r#"
                error: source: the output file is a folder
                  help: choose another name
            "#]],
        ),
        (
            "moments target/0.safetensors --out file/moments",
            3,
            expect![[r#"
                2 sites, 288.0 kB of activations to read, about [size] of memory
                error: file: cannot make the folder: File exists (os error 17)
            "#]],
        ),
        (
            "init model.safetensors -a target --rank 4 -o file",
            3,
            expect![[r#"
                error: file: cannot list the folder: Not a directory (os error 20)
                  help: choose another name for the output
            "#]],
        ),
        (
            "init model.safetensors -a target --rank 4 -o /proc/adapter",
            3,
            expect![[r#"
                error: /proc: cannot write here: No such file or directory (os error 2)
                  help: choose a folder that you can write to
            "#]],
        ),
    ] {
        small.refused(words, code, message);
    }
    assert_eq!(fs::read(small.path("file")).unwrap(), b"mine");
    // The output replaces a hard link. The input, which has the other name, stays.
    let input = fs::read(small.path("target/0.safetensors")).unwrap();
    small.succeed("moments target/0.safetensors --out hard.safetensors --force");
    assert!(fs::read(small.path("target/0.safetensors")).unwrap() == input);
}

/// If a new adapter needs no anchor, the anchor of the old adapter is removed. Files of the user stay.
#[test]
fn the_anchor_of_a_replaced_adapter_is_removed() {
    let small = Small::new();
    let words = "init model.safetensors -a target --rank 4 -o out";
    let anchored = format!("{words} --force --start residual --residual anchor");
    small.succeed(&anchored);
    assert!(small.path("out/anchor/adapter_config.json").exists());
    small.succeed(&format!("{words} --force"));
    assert!(!small.path("out/anchor").exists());
    small.succeed(&format!("{anchored} --format kohya"));
    fs::write(small.path("out/anchor/notes"), "mine").unwrap();
    small.succeed(&format!("{words} --force --start residual"));
    assert_eq!(names(&small.path("out/anchor")), ["notes"]);
}

/// A run that cannot save its progress names the file and keeps the progress that was saved before. The test limits files to a few
/// kilobytes, and the sums of pairs are larger.
#[test]
fn a_failed_save_keeps_the_earlier_progress() {
    let words = "init model.safetensors -a target --source source --coupling paired --rank 4 -o out --checkpoint-every 0";
    let whole = Small::new();
    whole.succeed(words);
    let small = Small::new();
    let limited = |words: &str| {
        let mut shell = Command::new("sh");
        let tool = env!("CARGO_BIN_EXE_cntlora");
        let script = format!("trap '' XFSZ; ulimit -f 10; exec {tool} {words}");
        shell.current_dir(small.path("")).args(["-c", &script]).output().unwrap()
    };
    let partial = small.path("out.partial");
    let saved = || {
        let names = names(&partial).into_iter().filter(|name| name.ends_with(".safetensors"));
        names.map(|name| fs::read(partial.join(name)).unwrap()).collect::<Vec<_>>()
    };
    // The first round has no saved progress. The second round continues from saved sums.
    for blocks in [0, 1] {
        let before = if partial.exists() { saved() } else { Vec::new() };
        assert_eq!(before.is_empty(), blocks == 0);
        let output = limited(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{stderr}");
        assert!(stderr.contains("out.partial/") && stderr.contains("File too large"), "{stderr}");
        assert!(
            stderr.contains("the saved progress is kept: correct this and give the same command again"),
            "{stderr}"
        );
        assert!(saved().is_empty() == before.is_empty() && !small.path("out").exists());
        if blocks == 0 {
            leave_progress(&small, words, "out");
        }
    }
    small.succeed(words);
    assert!(small.bytes("out") == whole.bytes("out"));
}

/// A command fails if it cannot print its results.
#[test]
#[cfg(target_os = "linux")]
fn a_full_stdout_is_an_io_error() {
    let small = Small::new();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut plan = small.command("plan model.safetensors -a target --rank 4");
    let output = plan.stdout(full).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("No space left on device"), "{text}");
}

/// Rows beyond the first four gibibytes of a file, and beyond 2^31 numbers, give the same result as the rows of a small file.
#[test]
fn offsets_beyond_32_bits_are_exact() {
    const HOLE: u64 = 9 << 30;
    let small = Small::new();
    let values: Vec<f32> = (0..24 * 50).map(|i| (i * i % 97) as f32).collect();
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let (rows, end) = (HOLE / 4096, HOLE + data.len() as u64);
    let header = format!(
        r#"{{"a":{{"dtype":"F32","shape":[{rows},1024],"data_offsets":[0,{HOLE}]}},
            "block.mlp":{{"dtype":"F32","shape":[50,24],"data_offsets":[{HOLE},{end}]}}}}"#
    );
    let header = safetensors(header, 0);
    let mut file = File::create(small.path("large.safetensors")).unwrap();
    file.write_all(&header).unwrap();
    file.seek(SeekFrom::Start(header.len() as u64 + HOLE)).unwrap();
    file.write_all(&data).unwrap();
    fs::write(small.path("little.safetensors"), matrix("block.mlp", 24, &values)).unwrap();
    for name in ["large", "little"] {
        small.succeed(&format!(
            "init model.safetensors -a {name}.safetensors --target mlp --rank 4 -o {name}"
        ));
    }
    let factors = |name: &str| small.bytes(name).remove("adapter_model.safetensors").unwrap();
    assert!(factors("large") == factors("little"));
}
