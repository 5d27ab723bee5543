//! Paths, names and streams that are not what they should be.

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

/// What cannot be read at an offset is refused with what it is; nothing waits for a writer.
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
            error: pipe.npy: expected a regular file, found a pipe, which cannot be read at an offset
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
            error: device.npy: expected a regular file, found a device
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
    small.refused("plan model.npy -a target", 1, expect![[r#"
        error: model.npy: expected model.safetensors or model.safetensors.index.json, found no .safetensors file
          help: give the folder that holds the weights, or a .safetensors file
    "#]]);
    small.refused(
        "plan model.safetensors -a model.npy",
        2,
        expect![[r#"
        error: model.npy: expected .safetensors or .npy files in the folder, found none
          help: give the folder that holds the files themselves: folders in it are not searched
    "#]],
    );
    small.refused(
        "inspect pipe.npy",
        3,
        expect![[r#"
        error: pipe.npy: expected a regular file, found a pipe, which cannot be read at an offset
          help: give the path of a regular file
    "#]],
    );
    small.refused(
        "plan pipe.npy -a target",
        3,
        expect![[r#"
        error: pipe.npy: expected a regular file, found a pipe, which cannot be read at an offset
          help: give the path of a regular file
    "#]],
    );
}

/// Names from files reach the terminal without control characters, and long ones do no harm.
#[test]
fn names_cannot_take_over_the_terminal() {
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

/// A path of other bytes than UTF-8 is read, unless it has to name a module.
#[test]
#[cfg(target_os = "linux")]
fn paths_need_not_be_text() {
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
    assert!(text.contains("expected a file name of UTF-8 text, since it names the module"), "{text}");
}

/// No output takes the place of an input, by whatever name, or of something else without being told to.
#[test]
fn outputs_keep_off() {
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
            error: same: this folder holds an input, target
              help: write to a folder of its own
            error: rank 16 is over the limit of "block.value"
              help: the largest rank that all layers can have is 12: give --rank 12, or leave layers out with --exclude
            2 problems were found
        "#]],
        ),
        (
            "moments target/0.safetensors --out target/0.safetensors --force",
            2,
            expect![[r#"
            error: target/0.safetensors: the output is one of the inputs
              help: write to another file
        "#]],
        ),
        (
            "moments target/0.safetensors --out soft.safetensors --force",
            2,
            expect![[r#"
            error: soft.safetensors: the output is one of the inputs
              help: write to another file
        "#]],
        ),
        (
            "moments target/0.safetensors --out file",
            2,
            expect![[r#"
            error: file: is there already
              help: choose another name, or give --force to replace it
        "#]],
        ),
        (
            "moments target/0.safetensors --out source",
            2,
            expect![[r#"
            error: source: expected the name of a file to write, found a folder
              help: give the name of a file
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
            error: file: cannot look into this folder: Not a directory (os error 20)
              help: choose another name for the output
        "#]],
        ),
        (
            "init model.safetensors -a target --rank 4 -o /proc/adapter",
            3,
            expect![[r#"
            error: /proc: cannot write here: No such file or directory (os error 2)
              help: give a folder that can be written to
        "#]],
        ),
    ] {
        small.refused(words, code, message);
    }
    assert_eq!(fs::read(small.path("file")).unwrap(), b"mine");
    // A hard link is replaced by the output; the input of the other name stays.
    let input = fs::read(small.path("target/0.safetensors")).unwrap();
    small.succeed("moments target/0.safetensors --out hard.safetensors --force");
    assert!(fs::read(small.path("target/0.safetensors")).unwrap() == input);
}

/// An adapter that is replaced leaves no anchor beside one that needs none; files of the user stay.
#[test]
fn an_anchor_goes_with_its_adapter() {
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

/// A run that cannot save its progress says which file it was, and keeps what was saved before. Here files may not grow beyond a few
/// kilobytes, and the sums of pairs are larger.
#[test]
fn progress_that_cannot_be_saved_costs_nothing_of_what_was() {
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
    // Once with nothing to go on from, and once from sums.
    for blocks in [0, 1] {
        let before = if partial.exists() { saved() } else { Vec::new() };
        assert_eq!(before.is_empty(), blocks == 0);
        let output = limited(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{stderr}");
        assert!(stderr.contains("out.partial/") && stderr.contains("File too large"), "{stderr}");
        assert!(stderr.contains("what was saved before is kept: give the same command again"), "{stderr}");
        assert!(saved().is_empty() == before.is_empty() && !small.path("out").exists());
        if blocks == 0 {
            leave_progress(&small, words, "out");
        }
    }
    small.succeed(words);
    assert!(small.bytes("out") == whole.bytes("out"));
}

/// Results that cannot be printed are a failure, not a success without them.
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

/// Rows beyond the first four gibibytes of a file, and beyond 2^31 numbers, are the same as those of a small one.
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
