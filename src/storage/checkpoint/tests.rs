//! Valid and invalid checkpoints on disk.

use super::super::{Access, Problems, safetensors, snapshot};
use super::super::{Category, write_atomically};
use super::Checkpoint;
use super::listing::{INDEX, SINGLE};
use super::open::CONFIG;
use expect_test::expect;
use quickcheck::quickcheck;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use tempfile::TempDir;

/// A file of tensors of one byte, each holding the length of its name.
fn weights(names: &[&str]) -> Vec<u8> {
    let tensor = |name: &&str| ((*name).to_owned(), ("U8".to_owned(), vec![1], vec![name.len() as u8]));
    let mut bytes = Vec::new();
    safetensors::write(&mut bytes, &BTreeMap::new(), &names.iter().map(tensor).collect()).unwrap();
    bytes
}

/// A folder with these files.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        write_atomically(&folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn open(path: &Path) -> Result<Checkpoint, Problems> {
    Checkpoint::open(path, Access::Auto)
}

/// The problems of a folder with these files and the next steps, one per line.
fn refused(files: &[(&str, &[u8])]) -> String {
    let folder = folder(files);
    snapshot(open(folder.path()).expect_err("must be refused"))
}

fn index(entries: &str) -> Vec<u8> {
    format!(r#"{{"metadata":{{"total_size":3}},"weight_map":{{{entries}}}}}"#).into_bytes()
}

fn names(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.names().collect()
}

#[test]
fn files_and_folders_with_one_file_are_read() {
    let bytes = weights(&["b", "aa"]);
    for name in [SINGLE, "other.safetensors"] {
        let folder = folder(&[(name, &bytes), ("._x.safetensors", b"")]);
        let of_folder = open(folder.path()).unwrap();
        let of_file = open(&folder.path().join(name)).unwrap();
        for checkpoint in [&of_folder, &of_file] {
            assert_eq!(names(checkpoint), ["aa", "b"]);
            assert_eq!(checkpoint.read("aa").unwrap(), [2]);
            assert_eq!(checkpoint.get("b").unwrap().tensor.shape, [1]);
            assert_eq!(checkpoint.source(checkpoint.get("b").unwrap()).path(), folder.path().join(name));
            assert!(checkpoint.config().is_none());
        }
        assert_eq!(of_folder.path(), folder.path());
        assert_eq!(of_folder.folder(), Some(folder.path()));
        assert_eq!(of_file.folder(), None);
    }
}

#[test]
fn shards_are_sorted_and_may_contain_more_than_the_index() {
    let folder = folder(&[
        (INDEX, &index(r#""b":"2.safetensors","aa":"1.safetensors""#)),
        ("2.safetensors", &weights(&["b"])),
        ("1.safetensors", &weights(&["aa", "ccc"])),
        ("unused.safetensors", &weights(&["d"])),
        (CONFIG, br#"{"model_type":"bert"}"#),
    ]);
    let checkpoint = open(folder.path()).unwrap();
    assert_eq!(names(&checkpoint), ["aa", "b", "ccc"]);
    assert_eq!(checkpoint.read("ccc").unwrap(), [3]);
    assert_eq!(checkpoint.read("b").unwrap(), [1]);
    let files: Vec<_> =
        checkpoint.files().iter().map(|(source, _)| source.path().file_name().unwrap()).collect();
    assert_eq!(files, ["1.safetensors", "2.safetensors"]);
    assert_eq!(checkpoint.config().unwrap()["model_type"], "bert");
}

/// In the cache of the hub, every file of a snapshot is a link to a blob elsewhere.
#[test]
fn snapshots_of_links_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (folder.path().join("blobs"), folder.path().join("snapshots"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    for (name, blob, bytes) in [
        (INDEX, "aaaa", index(r#""b":"1.safetensors""#)),
        ("1.safetensors", "bbbb", weights(&["b"])),
        (CONFIG, "cccc", b"{}".to_vec()),
    ] {
        fs::write(blobs.join(blob), bytes).unwrap();
        symlink(Path::new("../blobs").join(blob), snapshot.join(name)).unwrap();
    }
    assert_eq!(open(&snapshot).unwrap().read("b").unwrap(), [1]);
    fs::remove_file(blobs.join("bbbb")).unwrap();
    assert_eq!(open(&snapshot).unwrap_err().category(), Category::Io);
}

#[test]
fn folders_without_weights_are_refused() {
    let texts = [
        refused(&[]),
        refused(&[("pytorch_model.bin", b"\x80\x02")]),
        refused(&[("pytorch_model-00001-of-00002.bin", b"")]),
        refused(&[("b.safetensors", &weights(&["x"])), ("a.safetensors", &weights(&["y"]))]),
    ];
    expect![[r#"
        FOLDER: the folder has no .safetensors file; help: give the folder that contains the weights, or a .safetensors file
        FOLDER: the folder has only pytorch_model.bin, a pickle that can run arbitrary code; help: convert it to safetensors in Python: AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER, safe_serialization=True)
        FOLDER: the folder has only pytorch_model.bin, a pickle that can run arbitrary code; help: convert it to safetensors in Python: AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER, safe_serialization=True)
        FOLDER: the folder has several .safetensors files, and none with a usual name such as model.safetensors, nor an index: "a.safetensors", "b.safetensors"; help: give one of the files, or add the index
    "#]].assert_eq(&texts.concat());
    let missing = open(Path::new("/missing/model")).unwrap_err();
    assert!(missing.to_string().starts_with("/missing/model: cannot open: "));
    assert_eq!(missing.category(), Category::Io);
}

#[test]
fn indexes_that_do_not_match_their_shards_are_refused() {
    let shard = weights(&["b"]);
    let texts = [
        refused(&[(INDEX, &index(r#""b":"1.safetensors""#))]),
        refused(&[
            (INDEX, &index(r#""a":"1.safetensors","c":"1.safetensors","b":"1.safetensors""#)),
            ("1.safetensors", &shard),
        ]),
        refused(&[
            (INDEX, &index(r#""b":"1.safetensors","x":"2.safetensors""#)),
            ("1.safetensors", &shard),
            ("2.safetensors", &weights(&["b", "x"])),
        ]),
    ];
    expect![[r#"
        FOLDER/1.safetensors: cannot open: No such file or directory (os error 2); help: this shard is listed in FOLDER/model.safetensors.index.json: download the checkpoint again
        FOLDER/1.safetensors: tensor "a": model.safetensors.index.json lists the tensor, but this file does not contain it; 1 more are missing too; help: shards and index have different versions: download the checkpoint again
        FOLDER/2.safetensors: tensor "b": the tensor is also in FOLDER/1.safetensors; help: shards have different versions: download the checkpoint again
    "#]].assert_eq(&texts.concat());
}

#[test]
fn malformed_indexes_are_refused() {
    let of_index = |bytes: &[u8]| refused(&[(INDEX, bytes), ("1.safetensors", &weights(&["b"]))]);
    let deep = format!(r#"{{"metadata":{},"weight_map":{{}}}}"#, "[".repeat(1_000_000));
    let indexes: [&[u8]; 8] = [
        b"",
        b"[]",
        b"{}",
        br#"{"weight_map":{"b":1}}"#,
        br#"{"weight_map":{"b":"1.safetensors","b":"1.safetensors"}}"#,
        br#"{"weight_map":{},"weight_map":{}}"#,
        br#"{"weight_map":{}}"#,
        deep.as_bytes(),
    ];
    expect![[r#"
        FOLDER/model.safetensors.index.json: invalid index of shards: EOF while parsing a value at line 1 column 0; help: download the file again
        FOLDER/model.safetensors.index.json: invalid index of shards: invalid length 0, expected an object with weight_map at line 1 column 2; help: download the file again
        FOLDER/model.safetensors.index.json: invalid index of shards: missing field `weight_map` at line 1 column 2; help: download the file again
        FOLDER/model.safetensors.index.json: invalid index of shards: "b": invalid type: integer `1`, expected a string at line 1 column 20; help: download the file again
        FOLDER/model.safetensors.index.json: invalid index of shards: duplicate key "b" at line 1 column 55; help: download the file again
        FOLDER/model.safetensors.index.json: invalid index of shards: duplicate field `weight_map` at line 1 column 29; help: download the file again
        FOLDER/model.safetensors.index.json: weight_map is empty
        FOLDER/model.safetensors.index.json: invalid index of shards: expected value at line 1 column 1000013; help: download the file again
    "#]].assert_eq(&indexes.map(of_index).concat());
}

/// An index must not make us read files that the user did not point to.
#[test]
fn shards_outside_of_the_folder_are_refused() {
    let of_shard = |shard: &str| refused(&[(INDEX, &index(&format!(r#""b":"{shard}""#)))]);
    expect![[r#"
        FOLDER/model.safetensors.index.json: shards must be in the folder of the index, but it has the path "../x"; help: move the shards beside the index, and use their file names in it
        FOLDER/model.safetensors.index.json: shards must be in the folder of the index, but it has the path "/etc/passwd"; help: move the shards beside the index, and use their file names in it
        FOLDER/model.safetensors.index.json: shards must be in the folder of the index, but it has the path "sub/x"; help: move the shards beside the index, and use their file names in it
        FOLDER/model.safetensors.index.json: shards must be in the folder of the index, but it has the path "a\0b"; help: move the shards beside the index, and use their file names in it
    "#]].assert_eq(&["../x", "/etc/passwd", "sub/x", "a\\u0000b"].map(of_shard).concat());
}

#[test]
fn the_problems_of_all_files_are_reported_together() {
    expect![[r#"
        FOLDER/config.json: invalid model configuration: EOF while parsing an object at line 1 column 1; help: download the file again
        FOLDER/1.safetensors: expected a safetensors file, found a Git LFS pointer in place of the file; help: run `git lfs pull` in its repository
        FOLDER/2.safetensors: tensor "b": model.safetensors.index.json lists the tensor, but this file does not contain it; help: shards and index have different versions: download the checkpoint again
        FOLDER/3.safetensors: cannot open: No such file or directory (os error 2); help: this shard is listed in FOLDER/model.safetensors.index.json: download the checkpoint again
        FOLDER/4.safetensors: tensor "x": the tensor is also in FOLDER/2.safetensors; help: shards have different versions: download the checkpoint again
    "#]].assert_eq(&refused(&[
        (INDEX, &index(r#""a":"1.safetensors","b":"2.safetensors","c":"3.safetensors","d":"4.safetensors""#)),
        ("1.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        ("2.safetensors", &weights(&["x"])),
        ("4.safetensors", &weights(&["d", "x"])),
        (CONFIG, b"{"),
    ]));
}

#[test]
fn a_configuration_must_be_json() {
    let weights = weights(&["b"]);
    let deep = "[".repeat(1_000_000);
    let configs = [b"".as_slice(), b"{'a': 1}", b"{} {}", b"\xff", deep.as_bytes()];
    let texts = configs.map(|config| refused(&[(SINGLE, &weights), (CONFIG, config)]));
    expect![[r#"
        FOLDER/config.json: invalid model configuration: EOF while parsing a value at line 1 column 0; help: download the file again
        FOLDER/config.json: invalid model configuration: key must be a string at line 1 column 2; help: download the file again
        FOLDER/config.json: invalid model configuration: trailing characters at line 1 column 4; help: download the file again
        FOLDER/config.json: invalid model configuration: expected value at line 1 column 1; help: download the file again
        FOLDER/config.json: invalid model configuration: recursion limit exceeded at line 1 column 128; help: download the file again
    "#]].assert_eq(&texts.concat());
}

quickcheck! {
    fn arbitrary_indexes_never_panic(text: String, entries: Vec<(String, String)>) -> bool {
        let entries: BTreeMap<_, _> = entries.into_iter().collect();
        let sound = serde_json::to_vec(&serde_json::json!({ "weight_map": entries })).unwrap();
        [text.into_bytes(), sound].into_iter().all(|bytes| {
            let folder = folder(&[(INDEX, &bytes)]);
            open(folder.path()).is_err()
        })
    }
}

/// diffusers and Mistral have names of their own. Plain files come before their variants, and files of macOS do not count.
#[test]
fn folders_of_other_programs_are_read() {
    const DIFFUSERS: &str = "diffusion_pytorch_model.safetensors";
    let bytes = weights(&["b"]);
    let other = weights(&["other"]);
    for (files, expected) in [
        (vec![(DIFFUSERS, &bytes), ("diffusion_pytorch_model.fp16.safetensors", &other)], DIFFUSERS),
        (vec![("x.fp16.safetensors", &other), ("x.safetensors", &bytes)], "x.safetensors"),
        (vec![("model.fp16.safetensors", &bytes)], "model.fp16.safetensors"),
        (
            vec![("consolidated.safetensors", &bytes), ("params.safetensors", &other)],
            "consolidated.safetensors",
        ),
        (vec![(SINGLE, &bytes), ("consolidated.safetensors", &other)], SINGLE),
        (vec![("any.safetensors", &bytes), ("._any.safetensors", &other)], "any.safetensors"),
    ] {
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
        let folder = folder(&files);
        let checkpoint = open(folder.path()).unwrap();
        assert_eq!(names(&checkpoint), ["b"], "{expected}");
        assert_eq!(checkpoint.files()[0].0.path(), folder.path().join(expected));
        assert_eq!(
            Checkpoint::is_named_in(folder.path()),
            !expected.contains("any") && !expected.contains("x.") && !expected.contains("fp16")
        );
    }
}

/// Shards of diffusers with their index, of a variant with its index, and without an index.
#[test]
fn shards_of_other_programs_are_read() {
    let both = index(r#""aa":"1.safetensors","b":"2.safetensors""#);
    for name in [
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "any.fp16.safetensors.index.json",
    ] {
        let folder = folder(&[
            (name, &both),
            ("1.safetensors", &weights(&["aa"])),
            ("2.safetensors", &weights(&["b"])),
        ]);
        let checkpoint = open(folder.path()).unwrap();
        assert_eq!(names(&checkpoint), ["aa", "b"], "{name}");
        assert_eq!(checkpoint.index().unwrap(), name);
    }
    let shards = |numbers: &[&str]| {
        let files: Vec<(String, Vec<u8>)> = numbers
            .iter()
            .map(|number| (format!("x-{number}-of-00002.safetensors"), weights(&[*number])))
            .collect();
        let files: Vec<(&str, &[u8])> =
            files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        folder(&files)
    };
    assert_eq!(names(&open(shards(&["00001", "00002"]).path()).unwrap()), ["00001", "00002"]);
    expect![[r#"
        FOLDER: shard 1 of the 2 shards of "x" is missing; help: download the checkpoint again
    "#]]
    .assert_eq(&snapshot(open(shards(&["00002"]).path()).unwrap_err()));
}

/// Folders and files that are no checkpoint have a way out.
#[test]
fn other_folders_have_a_way_out() {
    let pipeline = folder(&[("model_index.json", b"{}")]);
    for (model, name) in
        [("unet", "diffusion_pytorch_model.safetensors"), ("vae", "diffusion_pytorch_model.safetensors")]
    {
        fs::create_dir(pipeline.path().join(model)).unwrap();
        write_atomically(&pipeline.path().join(model).join(name), &weights(&["b"])).unwrap();
    }
    let texts = [
        snapshot(open(pipeline.path()).unwrap_err()),
        refused(&[("model.ckpt", b"")]),
        refused(&[("consolidated.00.pth", b"")]),
        snapshot(open(Path::new("no-such-org/no-such-model")).unwrap_err()),
        snapshot(open(Path::new("no-such-folder/model.pt")).unwrap_err()),
    ];
    expect![[r#"
        FOLDER: the folder is a pipeline of diffusers, and not one model; help: give the folder of one of its models: "unet", "vae"
        FOLDER/model.ckpt: a file of PyTorch is not read, because it can run arbitrary code; help: save its tensors as safetensors in Python: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "NEW.safetensors")
        FOLDER/consolidated.00.pth: a file of PyTorch is not read, because it can run arbitrary code; help: save its tensors as safetensors in Python: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "NEW.safetensors")
        no-such-org/no-such-model: nothing exists at this path, and the local cache of the Hugging Face hub has no model of this name; help: check the path, or download the model first: hf download no-such-org/no-such-model. This program uses no network
        no-such-folder/model.pt: cannot open: No such file or directory (os error 2); help: check the path
    "#]].assert_eq(&texts.concat());
}
