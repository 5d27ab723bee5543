//! Files that are called `.safetensors`.

use super::{activations_refused, safetensors};
use crate::small::Small;

/// What a download leaves when it fails, and what has the wrong name, is told apart from damage.
#[test]
fn what_is_something_else_is_named() {
    let small = Small::new();
    for (bytes, message) in [
        (b"".as_slice(), "the file has 0 bytes, but a safetensors file has at least 10"),
        (b"\x02", "the file has 1 bytes, but a safetensors file has at least 10"),
        (b"\x02\0\0\0\0\0\0\0{", "the file has 9 bytes, but a safetensors file has at least 10"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>403 Forbidden</body></html>", "a web page"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03\0\0", "a gzip archive"),
        (b"PK\x03\x04\x14\0\0\0\0\0\0\0", "a zip archive"),
        (b"\x80\x02}q\0X\x01\0\0\0aq\x01.", "a Python pickle"),
        (b"\x93NUMPY\x01\0\x76\0{'descr'", "a NumPy array"),
    ] {
        activations_refused(&small, "a.safetensors", bytes, message);
    }
}

/// Lengths and texts of headers, without memory for what is not there.
#[test]
fn headers_that_cannot_be_read() {
    let small = Small::new();
    let claiming = |length: u64, text: &[u8]| [&length.to_le_bytes(), text].concat();
    let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(200_000), "]".repeat(200_000));
    let deep_objects = format!("{}1{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
    for (bytes, message) in [
        (claiming(u64::MAX, b"{}"), "its header has 18446744073709551615 bytes, but the limit is 100000000"),
        (claiming(100_000_001, b"{}"), "its header has 100000001 bytes, but the limit is 100000000"),
        (claiming(3, b"{}"), "its header has 3 bytes, but only 2 bytes follow"),
        (safetensors(b"{\"\xff\":1}", 0), "its header is not UTF-8 at byte 10"),
        (safetensors("{broken}", 0), "the header is not that of a safetensors file: key must be a string"),
        (safetensors(&deep, 0), "\"a\": invalid type: sequence, expected an object with dtype"),
        (safetensors(&deep_objects, 0), "\"a\": unknown field `a`"),
        (safetensors("\u{feff}{}", 0), "which begins with \"{\" at byte 8"),
        (safetensors(" {}", 0), "which begins with \"{\" at byte 8"),
        (safetensors("{}\n", 0), "its header does not end with \"}\" and padding by spaces"),
        (safetensors("{}", 0), "expected activations, found no tensor in any file"),
    ] {
        activations_refused(&small, "a.safetensors", &bytes, message);
    }
}

/// Offsets, shapes and keys that contradict each other: the tensor and the two numbers.
#[test]
fn headers_that_contradict_themselves() {
    let small = Small::new();
    let a = r#""a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}"#;
    let b = |begin: u64, end: u64| {
        format!(r#"{{{a},"b":{{"dtype":"F32","shape":[2,2],"data_offsets":[{begin},{end}]}}}}"#)
    };
    let one = |shape: &str, end: u64| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
    };
    for (header, zeros, message) in [
        (b(8, 24), 24, r#"tensor "b": its data begin at 8, within "a", which ends at 16"#),
        (b(20, 36), 36, r#"tensor "b": its data begin at 20, but the data before end at 16"#),
        (b(16, 32), 33, "its tensors have 32 bytes, but 33 follow the header: bytes follow"),
        (b(16, 32), 31, "its tensors have 32 bytes, but 31 follow the header: the file ends too early"),
        (b(32, 16), 32, r#"tensor "b": its data_offsets decrease from 32 to 16"#),
        (b(u64::MAX - 16, u64::MAX), 16, r#"tensor "b": its data begin at 18446744073709551599, but"#),
        (one("[2,2]", 12), 12, "F32 of shape [2, 2] has 16 bytes, but its data_offsets span 12"),
        (one("[4294967296,4294967296]", 0), 0, "asks for more bytes than any file has"),
        (one("[18446744073709551616]", 0), 0, "invalid type: floating point"),
        (one("[-1]", 0), 0, "invalid value: integer `-1`"),
        (format!("{{{a},{a}}}"), 16, r#"duplicate key "a""#),
        (format!(r#"{{"__metadata__":{{"k":1}},{a}}}"#), 16, r#""__metadata__": "k": invalid type: integer"#),
    ] {
        activations_refused(&small, "a.safetensors", &safetensors(header, zeros), message);
    }
}

/// Number formats and shapes that are no rows of activations.
#[test]
fn tensors_that_are_no_activations() {
    let small = Small::new();
    for (dtype, shape, bytes, message) in [
        ("I8", "[2,24]", 48, r#"expected F64, F32, F16 or BF16 numbers, found "I8""#),
        ("BOOL", "[2,24]", 48, r#"expected F64, F32, F16 or BF16 numbers, found "BOOL""#),
        ("F8_E4M3", "[2,24]", 48, r#"expected F64, F32, F16 or BF16 numbers, found "F8_E4M3""#),
        ("F4", "[2,24]", 24, r#"expected F64, F32, F16 or BF16 numbers, found "F4""#),
        (
            "F33",
            "[2,24]",
            198,
            r#"expected a number format of safetensors, such as F32 or BF16, found "F33""#,
        ),
        ("F32", "[]", 4, "expected the shape [rows, width] or [..., width], found a single number"),
        ("F32", "[24]", 96, "expected at least one token in all files together, found none that was met"),
        (
            "C64",
            "[24]",
            192,
            r#"expected counts of tokens as whole numbers, since it has one axis, found "C64""#,
        ),
        ("F32", "[0]", 0, "expected the shape [rows, width] or [..., width], found [0]"),
        ("F32", "[2,0]", 0, "expected the shape [rows, width] or [..., width], found [2, 0]"),
        ("F32", "[0,24]", 0, "expected at least one row in all files together, found none"),
    ] {
        let header =
            format!(r#"{{"block.mlp":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{bytes}]}}}}"#);
        activations_refused(&small, "a.safetensors", &safetensors(header, bytes), message);
    }
}

/// What a later version may mean is not guessed.
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
        "it was written by a newer version\n  help: update cntlora",
    );
}
