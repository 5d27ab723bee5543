//! Checkpoints as they are met on disk, sound and unsound.

use super::super::{Category, write_atomically};
use super::*;
use quickcheck::quickcheck;
use std::os::unix::fs::symlink;
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

/// The complaints about a folder with these files, one per line.
fn refused(files: &[(&str, &[u8])]) -> String {
    let folder = folder(files);
    let problems = open(folder.path()).expect_err("must be refused");
    assert!(
        problems.0.iter().all(|problem| problem.to_string().starts_with(folder.path().to_str().unwrap()))
    );
    problems.to_string().replace(folder.path().to_str().unwrap(), "FOLDER")
}

fn index(entries: &str) -> Vec<u8> {
    format!(r#"{{"metadata":{{"total_size":3}},"weight_map":{{{entries}}}}}"#).into_bytes()
}

fn names(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.names().collect()
}

#[test]
fn a_file_and_the_folders_that_hold_one() {
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
        assert_eq!(of_folder.folder().as_deref(), Some(folder.path()));
        assert_eq!(of_file.folder(), None);
        let problem = of_file.read("c").unwrap_err();
        assert!(problem.to_string().ends_with("tensor \"c\": the checkpoint has no tensor of this name"));
    }
}

#[test]
fn shards_are_in_order_of_name_and_may_hold_more_than_the_index_says() {
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

/// The cache of the hub: every file of a snapshot is a link to a blob elsewhere.
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
fn folders_without_weights_say_what_is_needed() {
    assert_eq!(refused(&[]), format!("FOLDER: expected {SINGLE} or {INDEX}, found no .safetensors file"));
    assert!(refused(&[("pytorch_model.bin", b"\x80\x02")]).contains("found only pytorch_model.bin"));
    assert!(refused(&[("pytorch_model-00001-of-00002.bin", b"")]).contains("found only pytorch_model.bin"));
    let two = refused(&[("b.safetensors", &weights(&["x"])), ("a.safetensors", &weights(&["y"]))]);
    assert!(two.ends_with("found \"a.safetensors\", \"b.safetensors\""), "{two}");
    let missing = open(Path::new("missing/model")).unwrap_err();
    assert!(missing.to_string().starts_with("missing/model: cannot open: "));
    assert_eq!(missing.category(), Category::Io);
}

#[test]
fn indexes_that_disagree_with_their_shards() {
    let shard = weights(&["b"]);
    let missing_shard = refused(&[(INDEX, &index(r#""b":"1.safetensors""#))]);
    assert!(missing_shard.starts_with("FOLDER/1.safetensors: cannot open: No such file"), "{missing_shard}");
    let missing_tensors = refused(&[
        (INDEX, &index(r#""a":"1.safetensors","c":"1.safetensors","b":"1.safetensors""#)),
        ("1.safetensors", &shard),
    ]);
    let expected = format!(
        "FOLDER/1.safetensors: tensor \"a\": {INDEX} says that it is in this file, but it is not, nor 1 more"
    );
    assert_eq!(missing_tensors, expected);
    let twice = refused(&[
        (INDEX, &index(r#""b":"1.safetensors","x":"2.safetensors""#)),
        ("1.safetensors", &shard),
        ("2.safetensors", &weights(&["b", "x"])),
    ]);
    let expected = "FOLDER/2.safetensors: tensor \"b\": expected each tensor in one file, \
                    found it also in FOLDER/1.safetensors";
    assert_eq!(twice, expected);
}

#[test]
fn indexes_of_another_form() {
    let of_index = |bytes: &[u8]| refused(&[(INDEX, bytes), ("1.safetensors", &weights(&["b"]))]);
    let cases: [(&[u8], &str); 7] = [
        (b"", "EOF while parsing"),
        (b"[]", "expected an index of shards"),
        (b"{}", "missing field `weight_map`"),
        (br#"{"weight_map":{"b":1}}"#, "\"b\": invalid type: integer `1`"),
        (br#"{"weight_map":{"b":"1.safetensors","b":"1.safetensors"}}"#, "duplicate key \"b\""),
        (br#"{"weight_map":{},"weight_map":{}}"#, "duplicate field `weight_map`"),
        (br#"{"weight_map":{}}"#, "its weight_map names no tensor"),
    ];
    for (bytes, words) in cases {
        let found = of_index(bytes);
        assert!(found.contains(words) && found.starts_with(&format!("FOLDER/{INDEX}: ")), "{words}: {found}");
    }
    let deep = format!(r#"{{"metadata":{},"weight_map":{{}}}}"#, "[".repeat(1_000_000));
    assert!(of_index(deep.as_bytes()).contains("expected an index of shards"));
}

/// An index must not make us read files that the user did not point to.
#[test]
fn shards_are_confined_to_the_folder() {
    for shard in ["../x", "..", ".", "", "/etc/passwd", "sub/x", "./x", "x/", "..\\\\x", "C:x", "a\\u0000b"] {
        let found = refused(&[(INDEX, &index(&format!(r#""b":"{shard}""#)))]);
        assert!(found.contains("expected shards within its own folder, found the path"), "{shard}: {found}");
    }
    assert!(is_plain_name("model-00001-of-00002.safetensors") && is_plain_name("..x"));
}

#[test]
fn all_that_is_wrong_is_said_together() {
    let found = refused(&[
        (INDEX, &index(r#""a":"1.safetensors","b":"2.safetensors","c":"3.safetensors","d":"4.safetensors""#)),
        ("1.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        ("2.safetensors", &weights(&["x"])),
        ("4.safetensors", &weights(&["d", "x"])),
        (CONFIG, b"{"),
    ]);
    let found: Vec<_> = found.lines().map(|line| line.split(": ").next().unwrap()).collect();
    let files = ["config.json", "1.safetensors", "2.safetensors", "3.safetensors", "4.safetensors"];
    assert_eq!(found, files.map(|file| format!("FOLDER/{file}")));
}

#[test]
fn a_configuration_must_be_json() {
    let weights = weights(&["b"]);
    for config in [b"".as_slice(), b"{'a': 1}", b"{} {}", b"\xff", "[".repeat(1_000_000).as_bytes()] {
        let found = refused(&[(SINGLE, &weights), (CONFIG, config)]);
        assert!(found.starts_with("FOLDER/config.json: expected JSON, found: "), "{found}");
    }
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
