//! Messages about files that are refused.

use super::*;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

#[test]
fn shapes_and_number_formats_are_checked() {
    let one = |dtype: &str, shape: &[u64]| vec![("a", tensors(None, &[("q", dtype, shape)]))];
    refused(
        &one("I64", &[2, 2]),
        &expect![[r#"
        Data: a: tensor "q": expected F64, F32, F16 or BF16 numbers, found "I64"
            help: record activations as floating-point numbers, and keep other tensors in another file
    "#]],
    );
    refused(
        &one("F32", &[0]),
        &expect![[r#"
        Data: a: tensor "q": expected the shape [rows, width] or [..., width], found [0]
            help: the last axis must be the input features of the module
    "#]],
    );
    refused(
        &one("F32", &[]),
        &expect![[r#"
        Data: a: tensor "q": expected the shape [rows, width] or [..., width], found a single number
            help: the last axis must be the input features of the module
    "#]],
    );
    refused(
        &one("F32", &[4, 0]),
        &expect![[r#"
        Data: a: tensor "q": expected the shape [rows, width] or [..., width], found [4, 0]
            help: the last axis must be the input features of the module
    "#]],
    );
    refused(
        &one("F32", &[0, 1 << 40, 1 << 40]),
        &expect![[r#"
            Data: a: tensor "q": this site has no rows in any file
        "#]],
    );
    refused(
        &one("F32", &[0, 4]),
        &expect![[r#"
            Data: a: tensor "q": this site has no rows in any file
        "#]],
    );
    refused(
        &[("a", tensors(None, &[]))],
        &expect![[r#"
            Data: a: the files contain no tensors
        "#]],
    );
    refused(
        &[("a", tensors(None, &[("q", "F32", &[1, 2])])), ("b", tensors(None, &[("q", "F32", &[1, 3])]))],
        &expect![[r#"
            Data: b: tensor "q": expected rows of 2 numbers as in "a", found rows of 3
        "#]],
    );
    let header = r"{'descr': '<f4', 'fortran_order': True, 'shape': (1, 1, 1), }";
    let mut bytes = b"\x93NUMPY\x01\0".to_vec();
    bytes.extend((header.len() as u16 + 1).to_le_bytes());
    bytes.extend(header.bytes().chain(*b"\n\0\0\0\0"));
    refused(
        &[("q.npy", bytes)],
        &expect![[r#"
        Data: q.npy: expected two axes in Fortran order, found the shape [1, 1, 1]
            help: save numpy.ascontiguousarray of it
    "#]],
    );
    refused(
        &[("q.npy", npy_of("<i4", &[0], &[]))],
        &expect![[r#"
        Data: q.npy: expected floating-point numbers, found integers of shape [0]
    "#]],
    );
}

#[test]
fn metadata_is_checked() {
    let q = |metadata: &str| tensors(Some(metadata), &[("q", "F32", &[1, 2])]);
    let one = |metadata: &str| vec![("a", q(metadata))];
    refused(
        &one("{"),
        &expect![[r#"
            Data: a: invalid activation metadata: EOF while parsing an object at line 1 column 1
                help: write the metadata entry "cntlora" as {"format":"activations","version":1,"sites":{"<site>":["<module>", ...]}}
        "#]],
    );
    refused(
        &one("[]"),
        &expect![[r#"
            Data: a: invalid activation metadata: invalid length 0, expected an object with format and version at line 1 column 2
                help: write the metadata entry "cntlora" as {"format":"activations","version":1,"sites":{"<site>":["<module>", ...]}}
        "#]],
    );
    refused(
        &one(r#"{"format":"activations","version":-1,"sites":{}}"#),
        &expect![[r#"
            Data: a: invalid activation metadata: invalid value: integer `-1`, expected u64 at line 1 column 36
                help: write the metadata entry "cntlora" as {"format":"activations","version":1,"sites":{"<site>":["<module>", ...]}}
        "#]],
    );
    refused(
        &one(r#"{"format":"activations","version":2}"#),
        &expect![[r#"
            Data: a: unsupported version 2 of the activation metadata: the newest known version is 1
                help: use the version of cntlora that wrote it, or a newer one
        "#]],
    );
    refused(
        &one(r#"{"format":"activations","version":0}"#),
        &expect![[r#"
            Data: a: unsupported version 0 of the activation metadata: the newest known version is 1
                help: use the version of cntlora that wrote it, or a newer one
        "#]],
    );
    refused(
        &one(r#"{"format":"moments","version":1}"#),
        &expect![[r#"
            Data: a: invalid activation metadata: expected format "activations", found "moments"
                help: write the metadata entry "cntlora" as {"format":"activations","version":1,"sites":{"<site>":["<module>", ...]}}
        "#]],
    );
    refused(
        &one(&sites(r#"{"q":["a"],"q":["b"]}"#)),
        &expect![[r#"
            Data: a: invalid activation metadata: duplicate key "q" at line 1 column 65
                help: write the metadata entry "cntlora" as {"format":"activations","version":1,"sites":{"<site>":["<module>", ...]}}
        "#]],
    );
    refused(
        &one(&sites(r#"{"q":[]}"#)),
        &expect![[r#"
            Data: a: the metadata has no module for site "q"
                help: list the modules that read it, or remove the site from the metadata
        "#]],
    );
    refused(
        &one(&sites(r#"{"p":["a"]}"#)),
        &expect![[r#"
            Data: a: the metadata contains the site "p", but no file has a tensor with this name
                help: give all files that were recorded together
        "#]],
    );
    refused(
        &[("a", q(&sites(r#"{"q":["a","b"]}"#))), ("b", q(&sites(r#"{"q":["a","c"]}"#)))],
        &expect![[r#"
            Data: b: expected the modules "a", "b" of site "q" as in "a", found "a", "c"
        "#]],
    );
    refused(
        &[(
            "a",
            tensors(Some(&sites(r#"{"q":["q","k"]}"#)), &[("q", "F32", &[1, 2]), ("k", "F32", &[1, 2])]),
        )],
        &expect![[r#"
            Data: a: the module "k" belongs to two sites, "k" and "q", but it has only one input
        "#]],
    );
    // Unknown entries are ignored, so that a later release can add some.
    let more = r#"{"format":"activations","version":1,"sites":{"q":["m"]},"recorded_with":"x"}"#;
    assert_eq!(set(&one(more)).unwrap().site("q").unwrap().modules, ["m"]);
}

#[test]
fn names_that_are_not_utf8_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(OsStr::from_bytes(b"\xff.npy"));
    fs::write(&path, npy(1, 1, Order::C, "<f4", &[1.0])).unwrap();
    let problems = ActivationSet::open(&[path], Access::Auto).unwrap_err();
    expect![[r#"
        Data: �.npy: the file name is not valid UTF-8, but it must be the name of the module
            help: rename it to <module>.npy or <module>.<part>.npy
    "#]]
    .assert_eq(&shown(&problems, folder.path()));
}

#[test]
fn problems_of_all_files_are_reported_together() {
    let files = [
        ("a", tensors(None, &[("p", "I64", &[1, 1]), ("q", "F32", &[0])])),
        ("b.npy", b"no numpy file".to_vec()),
        ("c", tensors(Some("?"), &[("q", "U64", &[8, 1])])),
    ];
    refused(
        &files,
        &expect![[r#"
            Data: a: tensor "p": expected F64, F32, F16 or BF16 numbers, found "I64"
                help: record activations as floating-point numbers, and keep other tensors in another file
            Data: a: tensor "q": expected the shape [rows, width] or [..., width], found [0]
                help: the last axis must be the input features of the module
            Data: b.npy: not a .npy file: it does not begin with "\x93NUMPY"
                help: write it with numpy.save, or download it again
            Data: c: invalid activation metadata: expected value at line 1 column 1
                help: write the metadata entry "cntlora" as {"format":"activations","version":1,"sites":{"<site>":["<module>", ...]}}
            Data: c: tensor "q": expected F64, F32, F16 or BF16 numbers, found "U64"
                help: record activations as floating-point numbers, and keep other tensors in another file
        "#]],
    );
}

#[test]
fn paths_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("empty")).unwrap();
    fs::write(path("q.safetensors"), tensors(None, &[("q", "F32", &[1, 1])])).unwrap();
    fs::write(path("q.txt"), "text").unwrap();
    std::os::unix::fs::symlink("q.safetensors", path("again.safetensors")).unwrap();
    let problems = |paths: &[&str]| {
        let paths: Vec<_> = paths.iter().map(|name| path(name)).collect();
        shown(&ActivationSet::open(&paths, Access::Auto).unwrap_err(), folder.path())
    };
    let links = ["q.safetensors", "again.safetensors"];
    let all = [&[][..], &["empty"], &["q.txt"], &["missing"], &[links[0]; 2], &links].map(problems);
    expect![[r#"
        Usage: no files or folders with activations were given
            help: give files or folders with --activations
        Usage: empty: the folder contains no .safetensors or .npy files
            help: give the folder that directly contains the files: folders inside it are not searched
        Usage: q.txt: not a folder, a .safetensors file or a .npy file
            help: save the activations with safetensors' save_file or numpy's save
        Io: missing: cannot open: No such file or directory (os error 2)
            help: check the path
        Usage: q.safetensors: the same file is given twice, also as "q.safetensors"
            help: remove one of the two
        Usage: q.safetensors: the same file is given twice, also as "again.safetensors"
            help: remove one of the two
    "#]]
    .assert_eq(&all.concat());
}
