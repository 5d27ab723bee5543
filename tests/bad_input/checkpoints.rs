//! Checkpoints in shards, and weights that get no adapter.

use super::{matrix, safetensors};
use crate::small::{Small, names};
use expect_test::expect;
use serde_json::Value;
use std::fs;

/// Writes a folder with two shards and this index.
fn write_shards(small: &Small, index: &str) {
    let folder = small.path("model");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("1.safetensors"), matrix("block.mlp.weight", 24, &[1.0; 24])).unwrap();
    fs::write(folder.join("2.safetensors"), matrix("block.query.weight", 24, &[1.0; 24])).unwrap();
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
}

/// Refuses shards that are missing, in another folder, or of another version.
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
                  help: this shard is listed in model/model.safetensors.index.json: download the checkpoint again
            "#]],
        ),
        (
            map(r#""a":"1.safetensors""#),
            1,
            expect![[r#"
                error: model/1.safetensors: tensor "a": model.safetensors.index.json lists the tensor, but this file does not contain it
                  help: shards and index have different versions: download the checkpoint again
            "#]],
        ),
        (
            map(r#""a":"../model.safetensors""#),
            1,
            expect![[r#"
                error: model/model.safetensors.index.json: shards must be in the folder of the index, but it has the path "../model.safetensors"
                  help: move the shards beside the index, and use their file names in it
            "#]],
        ),
        (
            map(r#""a":"/etc/passwd""#),
            1,
            expect![[r#"
                error: model/model.safetensors.index.json: shards must be in the folder of the index, but it has the path "/etc/passwd"
                  help: move the shards beside the index, and use their file names in it
            "#]],
        ),
        (
            map(r#""a":"1.safetensors","a":"2.safetensors""#),
            1,
            expect![[r#"
                error: model/model.safetensors.index.json: invalid index of shards: duplicate key "a" at line 1 column 55
                  help: download the file again
            "#]],
        ),
        (
            map(""),
            1,
            expect![[r#"
                error: model/model.safetensors.index.json: weight_map is empty
            "#]],
        ),
        (
            "[]".into(),
            1,
            expect![[r#"
                error: model/model.safetensors.index.json: invalid index of shards: invalid length 0, expected an object with weight_map at line 1 column 2
                  help: download the file again
            "#]],
        ),
        (
            "".into(),
            1,
            expect![[r#"
                error: model/model.safetensors.index.json: invalid index of shards: EOF while parsing a value at line 1 column 0
                  help: download the file again
            "#]],
        ),
    ] {
        write_shards(&small, &index);
        small.refused("plan model -a target --rank 2", code, message);
    }
    let both = r#""block.mlp.weight":"1.safetensors","block.query.weight":"2.safetensors""#;
    write_shards(&small, &map(both));
    small.succeed("plan model -a target --rank 1 --target block.mlp,block.query");
    fs::copy(small.path("model/1.safetensors"), small.path("model/2.safetensors")).unwrap();
    small.refused("plan model -a target --rank 2", 1, expect![[r#"
        error: model/2.safetensors: tensor "block.query.weight": model.safetensors.index.json lists the tensor, but this file does not contain it
          help: shards and index have different versions: download the checkpoint again
        error: model/2.safetensors: tensor "block.mlp.weight": the tensor is also in model/1.safetensors
          help: shards have different versions: download the checkpoint again
        2 problems were found
    "#]]);
}

/// A configuration with a hundred thousand brackets does not overflow the stack.
#[test]
fn deep_json_is_refused() {
    let small = Small::new();
    fs::write(small.path("config.json"), "[".repeat(100_000)).unwrap();
    small.refused(
        "plan model.safetensors -a target",
        1,
        expect![[r#"
            error: config.json: invalid model configuration: recursion limit exceeded at line 1 column 128
              help: download the file again
        "#]],
    );
}

/// Weights that cannot have an adapter are left out and listed. A `--target` that names such a weight is refused.
#[test]
fn weights_of_other_kinds_are_listed() {
    let small = Small::new();
    for (dtype, shape, bytes, message) in [
        (
            "I8",
            "[40,24]",
            960,
            expect![[r#"
                error: odd.safetensors: module "block.mlp" cannot be adapted: its weight has the format "I8", not F64, F32, F16 or BF16
                  help: remove it from --target, or add it to --exclude
            "#]],
        ),
        (
            "F8_E4M3",
            "[40,24]",
            960,
            expect![[r#"
                error: odd.safetensors: module "block.mlp" cannot be adapted: its weight has the format "F8_E4M3", not F64, F32, F16 or BF16
                  help: remove it from --target, or add it to --exclude
            "#]],
        ),
        (
            "F4",
            "[40,24]",
            480,
            expect![[r#"
                error: odd.safetensors: module "block.mlp" cannot be adapted: its weight has the format "F4", not F64, F32, F16 or BF16
                  help: remove it from --target, or add it to --exclude
            "#]],
        ),
        (
            "BOOL",
            "[40,24]",
            960,
            expect![[r#"
                error: odd.safetensors: module "block.mlp" cannot be adapted: its weight has the format "BOOL", not F64, F32, F16 or BF16
                  help: remove it from --target, or add it to --exclude
            "#]],
        ),
        (
            "F32",
            "[2,20,24]",
            3840,
            expect![[r#"
                error: odd.safetensors: module "block.mlp" cannot be adapted: its weight has several matrices, but is not a parameter of fused experts
                  help: remove it from --target, or add it to --exclude
            "#]],
        ),
        (
            "F32",
            "[]",
            4,
            expect![[r#"
                error: odd.safetensors: module "block.mlp" cannot be adapted: its weight has the shape [], which is neither a linear layer nor a convolution
                  help: remove it from --target, or add it to --exclude
            "#]],
        ),
        (
            "F32",
            "[0,24]",
            0,
            expect![[r#"
                error: odd.safetensors: module "block.mlp" cannot be adapted: its weight has 0 outputs
                  help: remove it from --target, or add it to --exclude
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
        let refused = small.refused("plan odd.safetensors -a target --target mlp", 1, message);
        assert!(refused.contains(plan["skipped"][0]["reason"].as_str().unwrap()), "{plan}");
    }
}

/// Activations of another model and files with different widths are refused before any rows are read or any file is written.
#[test]
fn widths_must_agree() {
    let small = Small::new();
    let before = names(&small.path(""));
    fs::create_dir(small.path("other")).unwrap();
    fs::write(small.path("other/0.safetensors"), matrix("block.mlp", 23, &[1.0; 23])).unwrap();
    let words = "init model.safetensors -a other -o out";
    small.refused(words, 1, expect![[r#"
        error: model.safetensors: tensor "block.mlp.weight": module "block.mlp" has a weight of shape [40, 24]: expected 24 numbers in each row of site "block.mlp", found 23
          help: use the checkpoint that the activations were recorded from, or correct the names with --rename
    "#]]);
    fs::write(small.path("other/1.safetensors"), matrix("block.mlp", 24, &[1.0; 24])).unwrap();
    small.refused(words, 1, expect![[r#"
        error: other/1.safetensors: tensor "block.mlp": expected rows of 23 numbers as in "other/0.safetensors", found rows of 24
    "#]]);
    fs::remove_dir_all(small.path("other")).unwrap();
    assert_eq!(names(&small.path("")), before);
}
