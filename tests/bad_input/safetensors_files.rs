//! Bad files whose names end in `.safetensors`.

use super::{activations_refused, safetensors};
use crate::small::Small;
use expect_test::expect;

/// The message distinguishes remains of failed downloads and files of other kinds from damaged files.
#[test]
fn other_kinds_of_files_are_recognized() {
    let small = Small::new();
    for (bytes, message) in [
        (
            b"".as_slice(),
            expect![[r#"
            error: a.safetensors: the file has 0 bytes, but a safetensors file has at least 10
              help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        "#]],
        ),
        (
            b"\x02",
            expect![[r#"
            error: a.safetensors: the file has 1 bytes, but a safetensors file has at least 10
              help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        "#]],
        ),
        (
            b"\x02\0\0\0\0\0\0\0{",
            expect![[r#"
            error: a.safetensors: the file has 9 bytes, but a safetensors file has at least 10
              help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        "#]],
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            expect![[r#"
                error: a.safetensors: expected a safetensors file, found a Git LFS pointer in place of the file
                  help: run `git lfs pull` in its repository
            "#]],
        ),
        (
            b"<!DOCTYPE html><html><body>403 Forbidden</body></html>",
            expect![[r#"
                error: a.safetensors: expected a safetensors file, found a web page, perhaps an error page of the download server
                  help: download it again
            "#]],
        ),
        (
            b"\x1f\x8b\x08\0\0\0\0\0\0\x03\0\0",
            expect![[r#"
            error: a.safetensors: expected a safetensors file, found a gzip archive
              help: unpack it first
        "#]],
        ),
        (
            b"PK\x03\x04\x14\0\0\0\0\0\0\0",
            expect![[r#"
            error: a.safetensors: expected a safetensors file, found a zip archive, such as an .npz file or a PyTorch checkpoint
              help: unpack an .npz file into its .npy files; save a PyTorch checkpoint as safetensors
        "#]],
        ),
        (
            b"\x80\x02}q\0X\x01\0\0\0aq\x01.",
            expect![[r#"
                error: a.safetensors: expected a safetensors file, found a Python pickle, which can run arbitrary code when it is loaded
                  help: save the tensors as safetensors
            "#]],
        ),
        (
            b"\x93NUMPY\x01\0\x76\0{'descr'",
            expect![[r#"
                error: a.safetensors: expected a safetensors file, found a NumPy array
                  help: rename it to end in .npy
            "#]],
        ),
    ] {
        activations_refused(&small, "a.safetensors", bytes, message);
    }
}

/// Refuses headers with a wrong length or text. The tool allocates no memory for bytes that the file does not have.
#[test]
fn bad_headers_are_refused() {
    let small = Small::new();
    let claiming = |length: u64, text: &[u8]| [&length.to_le_bytes(), text].concat();
    let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(200_000), "]".repeat(200_000));
    let deep_objects = format!("{}1{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
    for (bytes, message) in [
        (
            claiming(u64::MAX, b"{}"),
            expect![[r#"
                error: a.safetensors: the header has 18446744073709551615 bytes, the limit is 268435456
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            claiming(100_000_001, b"{}"),
            expect![[r#"
                error: a.safetensors: the header should have 100000001 bytes, but only 2 bytes follow its length
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            claiming(3, b"{}"),
            expect![[r#"
                error: a.safetensors: the header should have 3 bytes, but only 2 bytes follow its length
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            safetensors(b"{\"\xff\":1}", 0),
            expect![[r#"
                error: a.safetensors: the header is not valid UTF-8 at byte 10
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            safetensors("{broken}", 0),
            expect![[r#"
                error: a.safetensors: invalid safetensors header: key must be a string at line 1 column 2
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            safetensors(&deep, 0),
            expect![[r#"
                error: a.safetensors: invalid safetensors header: "a": invalid type: sequence, expected an object with dtype, shape and data_offsets at line 1 column 5
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            safetensors(&deep_objects, 0),
            expect![[r#"
                error: a.safetensors: invalid safetensors header: "a": unknown field `a`, expected one of `dtype`, `shape`, `data_offsets` at line 1 column 9
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            safetensors("\u{feff}{}", 0),
            expect![[r#"
                error: a.safetensors: not a safetensors file: its header does not begin with "{" at byte 8
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            safetensors(" {}", 0),
            expect![[r#"
                error: a.safetensors: not a safetensors file: its header does not begin with "{" at byte 8
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            safetensors("{}\n", 0),
            expect![[r#"
                error: a.safetensors: the header does not end with "}" and spaces
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            safetensors("{}", 0),
            expect![[r#"
                error: a.safetensors: the files contain no tensors
            "#]],
        ),
    ] {
        activations_refused(&small, "a.safetensors", &bytes, message);
    }
}

/// Refuses offsets, shapes and keys that contradict each other. The message names the tensor and both numbers.
#[test]
fn inconsistent_headers_are_refused() {
    let small = Small::new();
    let a = r#""a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}"#;
    let b = |begin: u64, end: u64| {
        format!(r#"{{{a},"b":{{"dtype":"F32","shape":[2,2],"data_offsets":[{begin},{end}]}}}}"#)
    };
    let one = |shape: &str, end: u64| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
    };
    for (header, zeros, message) in [
        (
            b(8, 24),
            24,
            expect![[r#"
                error: a.safetensors: tensor "b": data begin at 8 and overlap with "a", which ends at 16
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            b(20, 36),
            36,
            expect![[r#"
                error: a.safetensors: tensor "b": data begin at 20, but the data before them end at 16
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            b(16, 32),
            33,
            expect![[r#"
                error: a.safetensors: the file is too long: its tensors have 32 bytes, but 33 follow the header
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            b(16, 32),
            31,
            expect![[r#"
                error: a.safetensors: the file is truncated: its tensors have 32 bytes, but 31 follow the header
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            b(32, 16),
            32,
            expect![[r#"
                error: a.safetensors: tensor "b": data_offsets decrease from 32 to 16
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            b(u64::MAX - 16, u64::MAX),
            16,
            expect![[r#"
                error: a.safetensors: tensor "b": data begin at 18446744073709551599, but the data before them end at 16
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            one("[2,2]", 12),
            12,
            expect![[r#"
                error: a.safetensors: tensor "a": F32 of shape [2, 2] needs 16 bytes, but data_offsets span 12
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            one("[4294967296,4294967296]", 0),
            0,
            expect![[r#"
                error: a.safetensors: tensor "a": shape [4294967296, 4294967296] is too large for a file
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            one("[18446744073709551616]", 0),
            0,
            expect![[r#"
                error: a.safetensors: invalid safetensors header: "a": invalid type: floating point `1.8446744073709552e+19`, expected u64 at line 1 column 49
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            one("[-1]", 0),
            0,
            expect![[r#"
                error: a.safetensors: invalid safetensors header: "a": invalid value: integer `-1`, expected u64 at line 1 column 31
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            format!("{{{a},{a}}}"),
            16,
            expect![[r#"
                error: a.safetensors: invalid safetensors header: duplicate key "a" at line 1 column 113
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            format!(r#"{{"__metadata__":{{"k":1}},{a}}}"#),
            16,
            expect![[r#"
                error: a.safetensors: invalid safetensors header: "__metadata__": "k": invalid type: integer `1`, expected a string at line 1 column 22
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
    ] {
        activations_refused(&small, "a.safetensors", &safetensors(header, zeros), message);
    }
}

/// Refuses number formats and shapes that cannot be rows of activations.
#[test]
fn tensors_that_are_no_activations_are_refused() {
    let small = Small::new();
    for (dtype, shape, bytes, message) in [
        (
            "I8",
            "[2,24]",
            48,
            expect![[r#"
            error: a.safetensors: tensor "block.mlp": expected F64, F32, F16 or BF16 numbers, found "I8"
              help: record activations as floating-point numbers, and keep other tensors in another file
        "#]],
        ),
        (
            "BOOL",
            "[2,24]",
            48,
            expect![[r#"
            error: a.safetensors: tensor "block.mlp": expected F64, F32, F16 or BF16 numbers, found "BOOL"
              help: record activations as floating-point numbers, and keep other tensors in another file
        "#]],
        ),
        (
            "F8_E4M3",
            "[2,24]",
            48,
            expect![[r#"
            error: a.safetensors: tensor "block.mlp": expected F64, F32, F16 or BF16 numbers, found "F8_E4M3"
              help: record activations as floating-point numbers, and keep other tensors in another file
        "#]],
        ),
        (
            "F4",
            "[2,24]",
            24,
            expect![[r#"
            error: a.safetensors: tensor "block.mlp": expected F64, F32, F16 or BF16 numbers, found "F4"
              help: record activations as floating-point numbers, and keep other tensors in another file
        "#]],
        ),
        (
            "F33",
            "[2,24]",
            198,
            expect![[r#"
                error: a.safetensors: tensor "block.mlp": unknown number format "F33": expected one of safetensors, such as F32 or BF16
                  help: the file is damaged or incomplete: download it again, or write it with a safetensors library
            "#]],
        ),
        (
            "F32",
            "[]",
            4,
            expect![[r#"
            error: a.safetensors: tensor "block.mlp": expected the shape [rows, width] or [..., width], found a single number
              help: the last axis must be the input features of the module
        "#]],
        ),
        (
            "F32",
            "[24]",
            96,
            expect![[r#"
                error: a.safetensors: tensor "block.mlp": all token counts are zero in all files
            "#]],
        ),
        (
            "C64",
            "[24]",
            192,
            expect![[r#"
                error: a.safetensors: tensor "block.mlp": a tensor with one axis contains token counts: expected a format of numbers, found "C64"
                  help: record them as I64, and keep other tensors in another file
            "#]],
        ),
        (
            "F32",
            "[0]",
            0,
            expect![[r#"
            error: a.safetensors: tensor "block.mlp": expected the shape [rows, width] or [..., width], found [0]
              help: the last axis must be the input features of the module
        "#]],
        ),
        (
            "F32",
            "[2,0]",
            0,
            expect![[r#"
            error: a.safetensors: tensor "block.mlp": expected the shape [rows, width] or [..., width], found [2, 0]
              help: the last axis must be the input features of the module
        "#]],
        ),
        (
            "F32",
            "[0,24]",
            0,
            expect![[r#"
                error: a.safetensors: tensor "block.mlp": this site has no rows in any file
            "#]],
        ),
    ] {
        let header =
            format!(r#"{{"block.mlp":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{bytes}]}}}}"#);
        activations_refused(&small, "a.safetensors", &safetensors(header, bytes), message);
    }
}

/// The tool does not guess the meaning of a later version.
#[test]
fn metadata_of_a_newer_version_is_refused() {
    let small = Small::new();
    let metadata = r#"{\"format\":\"activations\",\"version\":2}"#;
    let header = format!(
        r#"{{"__metadata__":{{"cntlora":"{metadata}"}},"a":{{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}}}"#
    );
    activations_refused(
        &small,
        "a.safetensors",
        &safetensors(header, 4),
        expect![[r#"
            error: a.safetensors: unsupported version 2 of the activation metadata: the newest known version is 1
              help: use the version of cntlora that wrote it, or a newer one
        "#]],
    );
}
