//! Files and folders that already exist in the place of an output.

use super::npy;
use crate::small::{Small, names};
use expect_test::expect;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

const INIT: &str = "init model.safetensors -a target --rank 4 -o out";

fn limited(small: &Small, blocks: u32, words: &str) -> (Option<i32>, String) {
    let tool = env!("CARGO_BIN_EXE_cntlora");
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec {tool} {words}");
    let output = Command::new("sh").current_dir(small.path("")).args(["-c", &script]).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// A run removes the old adapter together with its base. It is refused if that base is the model of the run, even with `--force` and
/// under another name.
#[test]
fn a_base_that_is_an_input_is_not_removed() {
    let small = Small::new();
    small.succeed(&format!("{INIT} --start residual"));
    symlink("out/base", small.path("same")).unwrap();
    let model = fs::read(small.path("out/base/model.safetensors")).unwrap();
    let commands = ["out/base", "same", "out/base/model.safetensors"]
        .map(|name| format!("init {name} -a target --rank 4 -o out --force"));
    small.all_refused(
        commands,
        2,
        expect![[r#"
            $ cntlora init out/base -a target --rank 4 -o out --force
            error: out/base: this folder is or holds an input, out/base
              help: write to another folder
            $ cntlora init same -a target --rank 4 -o out --force
            error: out/base: this folder is or holds an input, same
              help: write to another folder
            $ cntlora init out/base/model.safetensors -a target --rank 4 -o out --force
            error: out/base: this folder is or holds an input, out/base/model.safetensors
              help: write to another folder
        "#]],
    );
    small.succeed("init out/base -a target --rank 4 -o parts --shard 0/1");
    small.refused(
        "merge parts -o out --force",
        2,
        expect![[r#"
            error: out/base: this folder is or holds an input, out/base
              help: write to another folder
        "#]],
    );
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::remove_file(small.path("out").join(name)).unwrap();
    }
    small.refused(
        "init out/base -a target --rank 4 -o out",
        2,
        expect![[r#"
            error: out/base: this folder is or holds an input, out/base
              help: write to another folder
        "#]],
    );
    assert!(fs::read(small.path("out/base/model.safetensors")).unwrap() == model);
}

/// If a new adapter cannot be written, the old adapter stays complete. The test limits the size of files, and raises the limit by one
/// block in each round.
#[test]
fn a_full_disk_leaves_the_old_adapter() {
    let small = Small::new();
    small.succeed(&format!("{INIT} --start residual"));
    // After this refused run, everything except the adapter is on the disk.
    let words = format!("{INIT} --force --start mirrored --scale 1e-14");
    small.refused(&format!("{words} --dtype f16"), 1, expect![[r#"
        3 layers at 2 sites, 787.2 kB of activations to read, about [size] of memory
        error: tensor "base_model.model.block.mlp.lora_A.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.mlp.lora_B.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.query.lora_A.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.query.lora_B.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.value.lora_A.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.value.lora_B.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        6 problems were found
    "#]]);
    let mut refused = 0;
    for blocks in 2.. {
        let (code, stderr) = limited(&small, blocks, &words);
        if code == Some(0) {
            break;
        }
        assert_eq!(code, Some(3), "{stderr}");
        assert!(stderr.contains("File too large"), "{stderr}");
        refused += u32::from(stderr.contains("error: out/"));
        assert!(small.path("out/base/model.safetensors").exists());
        small.succeed("verify out --base out/base");
    }
    assert!(refused > 0, "the adapter was always small enough");
    assert!(!small.path("out/base").exists());
}

/// A run locks its output, under every name of the output, even if it saves no progress.
#[test]
fn outputs_are_locked() {
    let small = Small::new();
    small.succeed(INIT);
    small.succeed("moments target -o m.moments.safetensors");
    small.succeed("init model.safetensors -a target --rank 4 -o parts --shard 0/1");
    fs::create_dir(small.path("other")).unwrap();
    symlink("other", small.path("link")).unwrap();
    let held = |name: &str| {
        let folder = small.path(&format!("{name}.partial"));
        fs::create_dir_all(&folder).unwrap();
        let lock = File::create(folder.join("lock")).unwrap();
        lock.lock().unwrap();
        lock
    };
    let other = "init model.safetensors -a target --rank 4 --force";
    for (name, words) in [
        ("other", "convert out --rank 2 -o other --force"),
        ("other", "merge m.moments.safetensors -o other --force"),
        ("other", "merge parts -o other"),
        ("other", &format!("{other} -o link")),
        ("other", &format!("{other} -o third --start residual --base-out other")),
        ("other", &format!("{other} -o third --start residual --base-out link")),
        ("page.html", &format!("{other} -o third --report page.html")),
    ] {
        if words.starts_with("merge m") {
            fs::remove_dir(small.path("other")).unwrap();
        }
        let lock = held(name);
        let output = small.run(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(3) && stderr.contains(&format!("{name}.partial: ")), "{stderr}");
        drop(lock);
        fs::create_dir_all(small.path("other")).unwrap();
        assert!(names(&small.path("other")).is_empty() && !small.path("third").exists(), "{words}");
        assert!(!small.path("third.partial").exists(), "{words}");
    }
    let lock = held("other");
    let here = small
        .command("init ../model.safetensors -a ../target --rank 4 -o .")
        .current_dir(small.path("other"))
        .output()
        .unwrap();
    assert_eq!(here.status.code(), Some(3), "{}", String::from_utf8_lossy(&here.stderr));
    drop(lock);
    assert!(names(&small.path("other")).is_empty());
    small.succeed("convert out --rank 2 -o other");
    assert!(!small.path("other.partial").exists(), "nothing is left of a lock");
}

/// A refused run does not write its events file. An events file never replaces an input.
#[test]
fn events_files_do_not_replace_inputs_or_other_files() {
    let small = Small::new();
    fs::create_dir(small.path("out.partial")).unwrap();
    fs::write(small.path("run.jsonl"), "of the first run").unwrap();
    let lock = File::create(small.path("out.partial/lock")).unwrap();
    lock.lock().unwrap();
    small.refused(
        &format!("{INIT} --events run.jsonl"),
        3,
        expect![[r#"
            3 layers at 2 sites, 787.2 kB of activations to read, about [size] of memory
            error: out.partial: another run is using this output
              help: wait until it ends, or choose another name for the output
        "#]],
    );
    assert_eq!(fs::read(small.path("run.jsonl")).unwrap(), b"of the first run");
    drop(lock);
    let model = fs::read(small.path("model.safetensors")).unwrap();
    symlink("model.safetensors", small.path("soft.jsonl")).unwrap();
    fs::hard_link(small.path("model.safetensors"), small.path("hard.jsonl")).unwrap();
    small.refused(
        &format!("{INIT} --events soft.jsonl"),
        2,
        expect![[r#"
            error: soft.jsonl: this file exists, and its name does not end in .jsonl
              help: give --events a new name, or one that ends in .jsonl, or - for stdout
        "#]],
    );
    let commands = ["", " --shard 0/2"].map(|options| format!("{INIT}{options} --events hard.jsonl"));
    small.all_refused(
        commands,
        2,
        expect![[r#"
            $ cntlora init model.safetensors -a target --rank 4 -o out --events hard.jsonl
            error: hard.jsonl: the events file is an input
              help: give --events a new name, or - for stdout
            $ cntlora init model.safetensors -a target --rank 4 -o out --shard 0/2 --events hard.jsonl
            error: hard.jsonl: the events file is an input
              help: give --events a new name, or - for stdout
        "#]],
    );
    assert!(fs::read(small.path("model.safetensors")).unwrap() == model);
    small.succeed(&format!("{INIT} --events run.jsonl"));
    assert!(fs::read_to_string(small.path("run.jsonl")).unwrap().starts_with('{'));
}

/// A run removes the temporary files that a killed process left in the output folders. Files of the user stay.
#[test]
fn leftover_temporary_files_are_removed() {
    let small = Small::new();
    let left = [
        "out/.cntlora.json.tmpAbC123",
        "out/base/.model.safetensors.tmpAbC123",
        "out/anchor/.lora.safetensors.tmpAbC123",
        "changed/.model.safetensors.tmpAbC123",
        ".page.html.tmpAbC123",
    ];
    let notes = ["out/.notes.tmp", "changed/notes", ".other.html.tmpAbC123"];
    for name in left.into_iter().chain(notes) {
        let path = small.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    small.succeed(&format!("{INIT} --start residual --base-out changed --report page.html"));
    assert!(left.iter().all(|name| !small.path(name).exists()));
    assert!(notes.iter().all(|name| small.path(name).exists()));
    fs::write(small.path("out/.adapter_model.safetensors.tmpAbC123"), "").unwrap();
    small.succeed("convert out --init out --rank 2 -o cut");
    small.succeed("convert cut --rank 1 -o out --force");
    assert!(!small.path("out/.adapter_model.safetensors.tmpAbC123").exists());
}

/// An adapter that replaces another one removes all files of the old adapter. Files of the user stay.
#[test]
fn all_files_of_a_replaced_adapter_are_removed() {
    let small = Small::new();
    small.succeed("init model.safetensors -a target --rank 4 -o plain");
    for options in ["--start residual", "--start residual --residual anchor", "--format kohya"] {
        small.succeed(&format!("{INIT} {options} --force"));
        fs::write(small.path("out/notes"), "mine").unwrap();
        small.succeed("convert plain --rank 2 -o out --force");
        let left = ["README.md", "adapter_config.json", "adapter_model.safetensors", "cntlora.json", "notes"];
        assert_eq!(names(&small.path("out")), left, "{options}");
        assert_eq!(small.run("report out --out page.html").status.code(), Some(3), "{options}");
    }
    small.refused(
        "report out --out page.html",
        3,
        expect![[r#"
        error: out/report.json: cannot open: No such file or directory (os error 2)
          help: check the path
    "#]],
    );
}

/// If a file, pipe or device is in the place of an output and cannot be replaced, the command is refused before the work.
#[test]
fn outputs_that_cannot_replace_a_file_are_refused_early() {
    let small = Small::new();
    fs::write(small.path("file"), "mine").unwrap();
    assert!(Command::new("mkfifo").arg(small.path("pipe")).status().unwrap().success());
    symlink("pipe", small.path("pipe.html")).unwrap();
    for (words, code, message) in [
        (
            "init model.safetensors -a target --rank 4 -o file --force",
            3,
            expect![[r#"
                error: file: the output folder exists and is not a folder
                  help: choose another name
            "#]],
        ),
        (
            "convert target --rank 2 -o file --force",
            3,
            expect![[r#"
                error: file: the output folder exists and is not a folder
                  help: choose another name
                error: target: the folder has no adapter_config.json, and several files that could be the adapter: "0.safetensors", "1.safetensors", "2.safetensors"
                  help: give one of the files
                2 problems were found
            "#]],
        ),
        (
            "moments target -o pipe --force",
            2,
            expect![[r#"
                error: pipe: the output file is a pipe or a device
                  help: choose another name
            "#]],
        ),
        (
            "moments target -o /dev/stdout --force",
            2,
            expect![[r#"
                error: /dev/stdout: the output file is a pipe or a device
                  help: choose another name
            "#]],
        ),
        (
            "init model.safetensors -a target --rank 4 -o out --report pipe.html --force",
            2,
            expect![[r#"
                error: pipe.html: the output file is a pipe or a device
                  help: choose another name
            "#]],
        ),
    ] {
        small.refused(words, code, message);
        assert!(!small.path("file.partial").exists() && !small.path("pipe.partial").exists(), "{words}");
    }
    // A pipe in the place of a record does not block the run.
    fs::create_dir_all(small.path("out/base")).unwrap();
    fs::rename(small.path("pipe"), small.path("out/base/cntlora.json")).unwrap();
    small.refused(
        INIT,
        3,
        expect![[r#"
            3 layers at 2 sites, 787.2 kB of activations to read, about [size] of memory
            error: out/base/cntlora.json: not a regular file but a pipe
              help: give the path of a regular file
        "#]],
    );
}

/// Runs a command and changes an input while the output `made` is being written. The command must be refused and leave no output.
fn changed_meanwhile(small: &Small, words: &str, input: &str) {
    let written = || names(&small.path("")).iter().any(|name| name.starts_with(".made.tmp"));
    for _ in 0..200 {
        let mut command = small.command(words);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        while !written() && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_micros(50));
        }
        let _ = kill_process(pid, Signal::STOP);
        let met = written();
        if met {
            let input = File::options().append(true).open(small.path(input)).unwrap();
            input.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        }
        let _ = kill_process(pid, Signal::CONT);
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        if met && !output.status.success() {
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            assert!(
                stderr.contains("file changed while it was read: its time of modification changed"),
                "{stderr}"
            );
            return;
        }
        let renew = File::options().append(true).open(small.path(input)).unwrap();
        renew.set_modified(std::time::SystemTime::now()).unwrap();
        let out = small.path("made");
        let _ = if out.is_dir() { fs::remove_dir_all(out) } else { fs::remove_file(out) };
    }
    panic!("{words}: every run ended before its input was changed");
}

/// If an input changes while the output is being written, the run is refused before the output is renamed to its place.
#[test]
fn inputs_that_change_during_writing_are_refused() {
    let small = Small::new();
    fs::create_dir(small.path("wide")).unwrap();
    let dictionary = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1500), }\n";
    fs::write(small.path("wide/a.npy"), npy(dictionary, 2 * 1500 * 4)).unwrap();
    small.succeed("moments wide -o m.moments.safetensors");
    changed_meanwhile(&small, "merge m.moments.safetensors -o made", "m.moments.safetensors");
    assert!(!Path::new(&small.path("made")).exists());
    small.succeed(INIT);
    let (words, input) = ("convert out --rank 2 -o made", "out/adapter_model.safetensors");
    changed_meanwhile(&small, words, input);
    assert!(!small.path("made").exists());
}
