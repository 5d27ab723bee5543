//! Checkpoints in shards, and weights that get no adapter.

use super::{matrix, safetensors};
use crate::small::{Small, names};
use expect_test::expect;
use serde_json::Value;
use std::fs;

/// A folder of two shards, with this index.
fn write_shards(small: &Small, index: &str) {
    let folder = small.path("model");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("1.safetensors"), matrix("block.mlp.weight", 24, &[1.0; 24])).unwrap();
    fs::write(folder.join("2.safetensors"), matrix("block.query.weight", 24, &[1.0; 24])).unwrap();
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
}

/// Shards that are missing, elsewhere or of another version.
#[test]
fn shards_and_their_index_must_agree() {
    let small = Small::new();
    let map = |entries: &str| format!(r#"{{"weight_map":{{{entries}}}}}"#);
    for (index, code, message) in [
        (
            map(r#""a":"3.safetensors""#),
            3,
            expect![[r#"
            error: model/3.safetensors: cannot open: No such file or directory (os error 2)
              help: model/model.safetensors.index.json names this shard: download the checkpoint again
        "#]],
        ),
        (
            map(r#""a":"1.safetensors""#),
            1,
            expect![[r#"
            error: model/1.safetensors: tensor "a": model.safetensors.index.json says that it is in this file, but it is not
              help: shards and index are of different versions: download the checkpoint again
        "#]],
        ),
        (
            map(r#""a":"../model.safetensors""#),
            1,
            expect![[r#"
            error: model/model.safetensors.index.json: expected shards within its own folder, found the path "../model.safetensors"
              help: put the shards beside the index, and their names into it
        "#]],
        ),
        (
            map(r#""a":"/etc/passwd""#),
            1,
            expect![[r#"
            error: model/model.safetensors.index.json: expected shards within its own folder, found the path "/etc/passwd"
              help: put the shards beside the index, and their names into it
        "#]],
        ),
        (
            map(r#""a":"1.safetensors","a":"2.safetensors""#),
            1,
            expect![[r#"
            error: model/model.safetensors.index.json: expected an index of shards, an object with weight_map, found: duplicate key "a" at line 1 column 55
              help: download the file again
        "#]],
        ),
        (
            map(""),
            1,
            expect![[r#"
            error: model/model.safetensors.index.json: its weight_map names no tensor
        "#]],
        ),
        (
            "[]".into(),
            1,
            expect![[r#"
            error: model/model.safetensors.index.json: expected an index of shards, an object with weight_map, found: invalid length 0, expected struct Index with 1 element at line 1 column 2
              help: download the file again
        "#]],
        ),
        (
            "".into(),
            1,
            expect![[r#"
            error: model/model.safetensors.index.json: expected an index of shards, an object with weight_map, found: EOF while parsing a value at line 1 column 0
              help: download the file again
        "#]],
        ),
    ] {
        write_shards(&small, &index);
        small.refused("plan model -a target --rank 2", code, message);
    }
    let both = r#""block.mlp.weight":"1.safetensors","block.query.weight":"2.safetensors""#;
    write_shards(&small, &map(both));
    small.succeed("plan model -a target --rank 2 --target block.mlp,block.query");
    fs::copy(small.path("model/1.safetensors"), small.path("model/2.safetensors")).unwrap();
    small.refused("plan model -a target --rank 2", 1, expect![[r#"
        error: model/2.safetensors: tensor "block.query.weight": model.safetensors.index.json says that it is in this file, but it is not
          help: shards and index are of different versions: download the checkpoint again
        error: model/2.safetensors: tensor "block.mlp.weight": expected each tensor in one file, found it also in model/1.safetensors
          help: shards of different versions seem to be mixed: download the checkpoint again
        2 problems were found
    "#]]);
}

/// A configuration of a hundred thousand brackets does not exhaust the stack.
#[test]
fn deep_json_is_refused() {
    let small = Small::new();
    fs::write(small.path("config.json"), "[".repeat(100_000)).unwrap();
    small.refused(
        "plan model.safetensors -a target",
        1,
        expect![[r#"
        error: config.json: expected JSON, found: recursion limit exceeded at line 1 column 128
          help: download the file again
    "#]],
    );
}

/// Weights that cannot have an adapter are left out and listed; whoever names them is told.
#[test]
fn weights_of_other_kinds_are_listed() {
    let small = Small::new();
    for (dtype, shape, bytes, reason, message) in [
        (
            "I8",
            "[40,24]",
            960,
            r#"its weight holds "I8" and not F64, F32, F16 or BF16 numbers"#,
            expect![[r#"
            error: odd.safetensors: module "block.mlp" cannot be adapted: its weight holds "I8" and not F64, F32, F16 or BF16 numbers
              help: leave it out of --target, or name it to --exclude
        "#]],
        ),
        (
            "F8_E4M3",
            "[40,24]",
            960,
            r#"its weight holds "F8_E4M3" and not"#,
            expect![[r#"
            error: odd.safetensors: module "block.mlp" cannot be adapted: its weight holds "F8_E4M3" and not F64, F32, F16 or BF16 numbers
              help: leave it out of --target, or name it to --exclude
        "#]],
        ),
        (
            "F4",
            "[40,24]",
            480,
            r#"its weight holds "F4" and not"#,
            expect![[r#"
            error: odd.safetensors: module "block.mlp" cannot be adapted: its weight holds "F4" and not F64, F32, F16 or BF16 numbers
              help: leave it out of --target, or name it to --exclude
        "#]],
        ),
        (
            "BOOL",
            "[40,24]",
            960,
            r#"its weight holds "BOOL" and not"#,
            expect![[r#"
            error: odd.safetensors: module "block.mlp" cannot be adapted: its weight holds "BOOL" and not F64, F32, F16 or BF16 numbers
              help: leave it out of --target, or name it to --exclude
        "#]],
        ),
        (
            "F32",
            "[2,20,24]",
            3840,
            "it holds several matrices, and is no parameter of fused experts",
            expect![[r#"
                error: odd.safetensors: module "block.mlp" cannot be adapted: it holds several matrices, and is no parameter of fused experts
                  help: leave it out of --target, or name it to --exclude
            "#]],
        ),
        (
            "F32",
            "[]",
            4,
            "its weight has the shape [], and is none of a linear layer or a convolution",
            expect![[r#"
                error: odd.safetensors: module "block.mlp" cannot be adapted: its weight has the shape [], and is none of a linear layer or a convolution
                  help: leave it out of --target, or name it to --exclude
            "#]],
        ),
        (
            "F32",
            "[0,24]",
            0,
            "its weight has 0 outputs",
            expect![[r#"
            error: odd.safetensors: module "block.mlp" cannot be adapted: its weight has 0 outputs
              help: leave it out of --target, or name it to --exclude
        "#]],
        ),
    ] {
        let begin = bytes;
        let end = begin + 4 * 24 * 20;
        let header = format!(
            r#"{{"block.mlp.weight":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{begin}]}},
                "block.query.weight":{{"dtype":"F32","shape":[20,24],"data_offsets":[{begin},{end}]}}}}"#
        );
        fs::write(small.path("odd.safetensors"), safetensors(header, end)).unwrap();
        let plan = small.succeed("plan odd.safetensors -a target --rank 4 --exclude value --json");
        let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
        assert_eq!(plan["skipped"][0]["name"], "block.mlp");
        let said = plan["skipped"][0]["reason"].as_str().unwrap();
        assert!(said.contains(reason), "expected {reason:?} in: {said}");
        small.refused("plan odd.safetensors -a target --target mlp", 1, message);
    }
}

/// Activations of another model, and files that disagree, are refused before anything is read or written.
#[test]
fn widths_must_agree() {
    let small = Small::new();
    let before = names(&small.path(""));
    fs::create_dir(small.path("other")).unwrap();
    fs::write(small.path("other/0.safetensors"), matrix("block.mlp", 23, &[1.0; 23])).unwrap();
    let words = "init model.safetensors -a other -o out";
    small.refused(words, 1, expect![[r#"
        error: model.safetensors: tensor "block.mlp.weight": module "block.mlp" has a weight of shape [40, 24]: expected 24 numbers in each row of site "block.mlp", found 23
          help: give the checkpoint that the activations were recorded from, or correct the names with --rename
    "#]]);
    fs::write(small.path("other/1.safetensors"), matrix("block.mlp", 24, &[1.0; 24])).unwrap();
    small.refused(words, 1, expect![[r#"
        error: other/1.safetensors: tensor "block.mlp": expected rows of 23 numbers as in "other/0.safetensors", found rows of 24
    "#]]);
    fs::remove_dir_all(small.path("other")).unwrap();
    assert_eq!(names(&small.path("")), before);
}
