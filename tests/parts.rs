//! A run that is divided among processes gives the same adapter as an undivided run.

mod small;

use expect_test::{Expect, expect};
use serde_json::Value;
use small::{Small, names};
use std::collections::BTreeSet;
use std::fs;

/// Makes all parts, starting with the last. The parts use different numbers of threads.
fn make(small: &Small, words: &str, count: usize) {
    let mut layers = BTreeSet::new();
    for index in (0..count).rev() {
        let threads = index % 2 + 1;
        let output =
            small.succeed(&format!("{words} --shard {index}/{count} -o parts --threads {threads} --json"));
        let part: Value = serde_json::from_slice(&output.stdout).unwrap();
        for layer in part["layers"].as_array().unwrap() {
            assert!(layers.insert(layer.to_string()), "{layer} is in two parts");
        }
    }
    assert_eq!(layers.len(), 3);
}

/// Joined parts have the same bytes as the undivided run, for every number of parts. The cases include ranks that depend on all spectra,
/// a changed base, and other methods and formats.
#[test]
fn joined_parts_equal_the_undivided_run() {
    for options in [
        "--rank 4 --budget",
        "--energy 0.6 --source source",
        "--rank 4 --start residual --dtype bf16",
        "--method eva --rank 4",
        "--method pissa --rank 4 --residual anchor --format kohya --component text-encoder",
    ] {
        let small = Small::new();
        let words = format!("init model.safetensors -a target {options}");
        // There may be more parts than sites.
        for count in [1, 2, 3] {
            make(&small, &words, count);
            small.succeed("merge parts -o adapter");
            let joined = small.bytes("adapter");
            fs::remove_dir_all(small.path("adapter")).unwrap();
            small.succeed(&format!("{words} -o adapter"));
            assert!(joined == small.bytes("adapter"), "{options} in {count} parts");
            fs::remove_dir_all(small.path("adapter")).unwrap();
            fs::remove_dir_all(small.path("parts")).unwrap();
        }
    }
}

#[test]
fn parts_that_do_not_make_up_a_run_are_refused() {
    let small = Small::new();
    let words = "init model.safetensors -a target --rank 4 --start mirrored";
    small.succeed(&format!("{words} --shard 0/2 -o parts"));
    small.refused(
        "merge parts -o adapter",
        1,
        expect![[r#"
            error: 1 of 2 parts missing (numbered from 0): 1
              help: make the missing parts by the same command with --shard, and give all of them
        "#]],
    );
    small.refused(
        &format!("{words} --shard 0/2 -o parts"),
        2,
        expect![[r#"
            error: parts/part-00000-of-00002: this part exists
              help: choose another folder for the parts, or give --force to replace it
        "#]],
    );
    small.refused(
        "merge parts parts -o adapter",
        1,
        expect![[r#"
            error: parts/part-00000-of-00002: part 0/2 is given twice, also as "parts/part-00000-of-00002"
              help: remove one of the two
            error: 1 of 2 parts missing (numbered from 0): 1
              help: make the missing parts by the same command with --shard, and give all of them
            2 problems were found
        "#]],
    );
    small.succeed(&format!("{words} --shard 1/3 -o parts"));
    small.refused(
        "merge parts -o adapter",
        1,
        expect![[r#"
        error: parts/part-00001-of-00003: is part 1/3, but "parts/part-00000-of-00002" is one of 2 parts
    "#]],
    );
    fs::remove_dir_all(small.path("parts/part-00001-of-00003")).unwrap();
    small.succeed(&format!("{words} --ridge 0.5 --shard 1/2 -o parts"));
    small.refused("merge parts -o adapter", 1, expect![[r#"
        error: parts/part-00001-of-00002: is a part of another run than "parts/part-00000-of-00002": options.method.ridge was 0.01 and is now 0.5
    "#]]);
    for (options, difference) in [
        (
            "--format kohya",
            expect![[r#"
                error: parts/part-00001-of-00002: is a part of another run than "parts/part-00000-of-00002": writing.format was "peft" and is now {"single-file":["kohya","unet"]}
            "#]],
        ),
        (
            "--dtype bf16",
            expect![[r#"
                error: parts/part-00001-of-00002: is a part of another run than "parts/part-00000-of-00002": element was "F32" and is now "BF16"
            "#]],
        ),
    ] {
        small.succeed(&format!("{words} {options} --shard 1/2 -o parts --force"));
        small.refused("merge parts -o adapter", 1, difference);
    }
    small.succeed(&format!("{words} --shard 1/2 -o parts --force"));
    assert_eq!(names(&small.path("parts")), ["part-00000-of-00002", "part-00001-of-00002"]);

    let part = small.path("parts/part-00000-of-00002/part.json");
    let text = fs::read_to_string(&part).unwrap();
    let refused = |from: &str, to: &str, message: Expect| {
        assert!(text.contains(from), "{from} in {text}");
        fs::write(&part, text.replace(from, to)).unwrap();
        small.refused("merge parts -o adapter", 1, message);
    };
    refused(
        "\"version\": 1",
        "\"version\": 2",
        expect![[r#"
            error: parts/part-00000-of-00002/part.json: unsupported version 2 of the description of a part: the newest known version is 1
              help: use the version of cntlora that wrote it, or a newer one
        "#]],
    );
    refused(
        "\"index\": 0",
        "\"index\": 2",
        expect![[r#"
        error: parts/part-00000-of-00002/part.json: expected a part I/N with I below N, found 2/2
    "#]],
    );
    refused(
        "\"element\"",
        "\"elements\"",
        expect![[r#"
            error: parts/part-00000-of-00002/part.json: invalid description of a part: unknown field `elements`, expected one of `model`, `activations`, `moments`, `source`, `source_moments`, `selection`, `renames`, `adapter_renames`, `method`, `nonfinite`, `precision`, `element`, `access`, `threads`, `max_memory`, `strict` at line 48 column 14
              help: give the folders that `cntlora init --shard` wrote
        "#]],
    );
    fs::write(&part, text).unwrap();
    let layers = names(&small.path("parts/part-00000-of-00002"));
    let layers = layers.iter().find(|name| name.ends_with(".layers.safetensors")).unwrap();
    let layers = small.path(&format!("parts/part-00000-of-00002/{layers}"));
    fs::rename(&layers, small.path("away")).unwrap();
    small.refused(
        "merge parts -o adapter",
        1,
        expect![[r#"
            error: tensor "block.mlp": no part contains the layers of this site
              help: remove this part, make it again by the same command with --shard, and give all of them
        "#]],
    );
    fs::rename(small.path("away"), &layers).unwrap();
    let sound = fs::read(&layers).unwrap();
    fs::write(&layers, &sound[..sound.len() / 2]).unwrap();
    // The length of the file depends on the digits of the times in it.
    let output = small.run("merge parts -o adapter");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && stderr.contains("the file is truncated"), "{stderr}");
    fs::write(&layers, sound).unwrap();
    small.succeed("merge parts -o adapter");

    let touched = fs::File::options().append(true).open(small.path("target/1.safetensors")).unwrap();
    touched.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    small.refused("merge parts -o other", 1, expect![[r#"
        error: the inputs have changed since the parts were made: inputs.activations.target/1.safetensors.modified was "[time]" and is now "0"
          help: make the parts again
    "#]]);
    assert!(!small.path("other").exists());
}

/// A part reports only the events of its own sites.
#[test]
fn parts_report_the_events_of_their_sites() {
    let small = Small::new();
    let words = "init model.safetensors -a target --rank 4 --shard 0/2 -o parts";
    small.succeed(&format!("{words} --events part.jsonl"));
    let stdout = small.succeed(&format!("{words} --force --events -")).stdout;
    let lines =
        |text: &str| -> Vec<Value> { text.lines().map(|line| serde_json::from_str(line).unwrap()).collect() };
    for events in [
        lines(&fs::read_to_string(small.path("part.jsonl")).unwrap()),
        lines(std::str::from_utf8(&stdout).unwrap()),
    ] {
        let (first, last) = (&events[0], events.last().unwrap());
        assert_eq!((&first["event"], &first["sites"]), (&"started".into(), &1.into()));
        assert_eq!((&last["event"], &last["report"]["shard"]["index"]), (&"finished".into(), &0.into()));
        let told = events.iter().filter(|event| event["event"] == "layer-decomposed").count();
        assert!(told > 0 && last["report"]["layers"].as_array().unwrap().len() == told);
    }
    small.refused(
        &format!("{words} --json --events -"),
        2,
        expect![[r#"
            error: parts/part-00000-of-00002: this part exists
              help: choose another folder for the parts, or give --force to replace it
            error: --json and --events - both write to stdout
              help: remove --json: the last event holds the report
            2 problems were found
        "#]],
    );
}

/// A folder in the place of a part is not replaced if it is not a part.
#[test]
fn other_folders_are_not_replaced() {
    let small = Small::new();
    fs::create_dir_all(small.path("parts/part-00000-of-00001/mine")).unwrap();
    let words = "init model.safetensors -a target --rank 4 --shard 0/1 -o parts --force";
    small.refused(
        words,
        2,
        expect![[r#"
            error: parts/part-00000-of-00001: already exists, and is not a part of a run
              help: choose another folder for the parts
        "#]],
    );
    assert!(small.path("parts/part-00000-of-00001/mine").exists());
}
