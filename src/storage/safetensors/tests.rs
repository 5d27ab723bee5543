//! Refused files with their messages, and properties of arbitrary layouts and bytes.

use super::super::{Category, Source, snapshot};
use super::header::METADATA;
use super::*;
use ::safetensors::{Dtype, SafeTensors, tensor::TensorView};
use expect_test::expect;
use quickcheck::{Arbitrary, Gen, quickcheck};
use std::collections::BTreeMap;

fn read(bytes: impl Into<Vec<u8>>) -> Result<Header, super::super::Problem> {
    Header::read(&Source::from_bytes("x.safetensors", bytes.into()))
}

fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// The message for a file that must be refused, and the next step.
#[track_caller]
fn refused(bytes: impl Into<Vec<u8>>) -> String {
    let problem = read(bytes).expect_err("must be refused");
    assert_eq!(problem.category(), Category::Data);
    assert!(problem.next_step().is_some(), "{problem}");
    snapshot(problem)
}

#[test]
fn a_file_of_the_specification_is_read() {
    let bytes = b"\x5b\0\0\0\0\0\0\0\
        {\"a\":{\"dtype\":\"F16\",\"shape\":[1,2],\"data_offsets\":[0,4]},\"__metadata__\":{\"format\":\"pt\"}}\
        \x20   \x01\x02\x03\x04";
    let header = read(bytes).unwrap();
    assert_eq!(header.metadata, BTreeMap::from([("format".into(), "pt".into())]));
    let tensor = Tensor { dtype: "F16".into(), shape: vec![1, 2], offset: 99, length: 4 };
    assert_eq!(header.tensors, BTreeMap::from([("a".into(), tensor)]));
    assert_eq!(header.data_start, 99);
}

#[test]
fn no_tensors_empty_tensors_and_single_numbers_are_read() {
    assert!(read(b"\x02\0\0\0\0\0\0\0{}").unwrap().tensors.is_empty());
    let text = r#"{"b":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
        "a":{"dtype":"F32","shape":[0,3],"data_offsets":[4,4]},"c":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#;
    let header = read(file(text, 4)).unwrap();
    let order: Vec<_> = header.in_file_order().into_iter().map(|(name, _)| name).collect();
    assert_eq!(order, ["c", "b", "a"]);
}

#[test]
fn files_too_short_for_a_header_are_refused() {
    let file = b"\x02\0\0\0\0\0\0\0{";
    expect![[r#"
        x.safetensors: the file has 0 bytes, but a safetensors file has at least 10; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: the file has 1 bytes, but a safetensors file has at least 10; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: the file has 8 bytes, but a safetensors file has at least 10; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: the file has 9 bytes, but a safetensors file has at least 10; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
    "#]].assert_eq(&[0, 1, 8, 9].map(|length| refused(&file[..length])).concat());
}

#[test]
fn impossible_header_lengths_are_refused() {
    let texts = [
        refused(b"\x03\0\0\0\0\0\0\0{}"),
        refused(b"\x01\0\0\x10\0\0\0\0{}"),
        refused(b"\xff\xff\xff\xff\xff\xff\xff\xff{}"),
        refused(b"\0\0\0\0\0\0\0\0{}"),
    ];
    expect![[r#"
        x.safetensors: the header should have 3 bytes, but only 2 bytes follow its length; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: the header has 268435457 bytes, the limit is 268435456; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: the header has 18446744073709551615 bytes, the limit is 268435456; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: the header does not end with "}" and spaces; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
    "#]].assert_eq(&texts.concat());
}

#[test]
fn headers_that_are_not_an_object_in_utf8_are_refused() {
    let texts = [
        refused(b"\x03\0\0\0\0\0\0\0 {}"),
        refused(b"\x05\0\0\0\0\0\0\0\xef\xbb\xbf{}"),
        refused(b"\x02\0\0\0\0\0\0\0[]"),
        refused(b"\x03\0\0\0\0\0\0\0{}\n"),
        refused(b"\x03\0\0\0\0\0\0\0{}\0"),
        refused(b"\x06\0\0\0\0\0\0\0{\"\xff\":}"),
        refused(file("{}}", 0)),
        refused(file(r#"{"a":1,}"#, 0)),
        refused(file("{test}", 0)),
        refused(file(&format!("{{\"a\":{}}}", "[".repeat(1_000_000)), 0)),
        refused(file(&format!("{{\"a\":{}1}}", "{\"a\":".repeat(1_000_000)), 0)),
    ];
    expect![[r#"
        x.safetensors: not a safetensors file: its header does not begin with "{" at byte 8; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: not a safetensors file: its header does not begin with "{" at byte 8; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: not a safetensors file: its header does not begin with "{" at byte 8; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: the header does not end with "}" and spaces; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: the header does not end with "}" and spaces; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: the header is not valid UTF-8 at byte 10; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: invalid safetensors header: trailing characters at line 1 column 3; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: invalid safetensors header: "a": invalid type: integer `1`, expected an object with dtype, shape and data_offsets at line 1 column 6; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: invalid safetensors header: key must be a string at line 1 column 2; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: invalid safetensors header: "a": invalid type: sequence, expected an object with dtype, shape and data_offsets at line 1 column 5; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: invalid safetensors header: "a": unknown field `a`, expected one of `dtype`, `shape`, `data_offsets` at line 1 column 9; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
    "#]].assert_eq(&texts.concat());
}

#[test]
fn duplicate_keys_in_any_object_are_refused() {
    let entry = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    let texts = [
        refused(file(&format!(r#"{{"a":{entry},"a":{entry}}}"#), 1)),
        refused(file(&format!(r#"{{"a":{entry},"\u0061":{entry}}}"#), 1)),
        refused(file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0)),
        refused(file(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0)),
        refused(file(r#"{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#, 1)),
    ];
    expect![[r#"
        x.safetensors: invalid safetensors header: duplicate key "a" at line 1 column 105; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: invalid safetensors header: duplicate key "a" at line 1 column 110; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: invalid safetensors header: duplicate field `__metadata__` at line 1 column 37; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: invalid safetensors header: "__metadata__": duplicate key "k" at line 1 column 33; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: invalid safetensors header: "a": duplicate field `dtype` at line 1 column 26; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
    "#]].assert_eq(&texts.concat());
}

#[test]
fn malformed_entries_are_refused() {
    let texts = [
        r#"{"a":["U8",[1],[0,1]]}"#,
        r#"{"a":{"dtype":"U8","shape":[1]}}"#,
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"layout":0}}"#,
        r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}}"#,
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}}"#,
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,-1]}}"#,
        r#"{"__metadata__":{"k":1}}"#,
        r#"{"__metadata__":{"k":null}}"#,
        r#"{"__metadata__":null}"#,
    ];
    expect![[r#"
        x.safetensors: invalid safetensors header: "a": invalid type: sequence, expected an object with dtype, shape and data_offsets at line 1 column 5; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: invalid safetensors header: "a": missing field `data_offsets` at line 1 column 31; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: invalid safetensors header: "a": unknown field `layout`, expected one of `dtype`, `shape`, `data_offsets` at line 1 column 60; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: invalid safetensors header: "a": invalid value: integer `-1`, expected u64 at line 1 column 30; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: invalid safetensors header: "a": invalid type: floating point `1.0`, expected u64 at line 1 column 31; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: invalid safetensors header: "a": invalid type: floating point `1.8446744073709552e+19`, expected u64 at line 1 column 48; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: invalid safetensors header: "a": invalid length 1, expected an array of length 2 at line 1 column 49; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: invalid safetensors header: "a": trailing characters at line 1 column 52; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: invalid safetensors header: "a": invalid value: integer `-1`, expected u64 at line 1 column 51; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: invalid safetensors header: "__metadata__": "k": invalid type: integer `1`, expected a string at line 1 column 22; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: invalid safetensors header: "__metadata__": "k": invalid type: null, expected a string at line 1 column 25; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: invalid safetensors header: "__metadata__": invalid type: null, expected an object at line 1 column 20; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
    "#]].assert_eq(&texts.map(|header| refused(file(header, 1))).concat());
}

#[test]
fn inconsistent_lengths_are_refused() {
    let entry = |dtype: &str, shape: &str, offsets: &str, data| {
        file(&format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#), data)
    };
    let texts = [
        refused(entry("F33", "[1]", "[0,4]", 4)),
        refused(entry("F32", "[2]", "[0,4]", 4)),
        refused(entry("F32", "[1]", "[4,0]", 4)),
        refused(entry("F32", "[4294967296,4294967296]", "[0,4]", 4)),
        refused(entry("F4", "[3]", "[0,2]", 2)),
        refused(entry("U8", "[2305843009213693951]", "[0,2305843009213693951]", 4)),
        refused(entry("F32", "[1]", "[0,4]", 3)),
        refused(entry("F32", "[1]", "[0,4]", 5)),
        refused(entry("F32", "[1]", "[1,5]", 5)),
        refused(entry("U8", "[1]", "[18446744073709551614,18446744073709551615]", 5)),
    ];
    expect![[r#"
        x.safetensors: tensor "a": unknown number format "F33": expected one of safetensors, such as F32 or BF16; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: tensor "a": F32 of shape [2] needs 8 bytes, but data_offsets span 4; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: tensor "a": data_offsets decrease from 4 to 0; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: tensor "a": shape [4294967296, 4294967296] is too large for a file; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: tensor "a": 12 bits of F4 are not a whole number of bytes; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: the file is truncated: its tensors have 2305843009213693951 bytes, but 4 follow the header; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: the file is truncated: its tensors have 4 bytes, but 3 follow the header; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: the file is too long: its tensors have 4 bytes, but 5 follow the header; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: tensor "a": data begin at 1, but the data before them end at 0; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: tensor "a": data begin at 18446744073709551614, but the data before them end at 0; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
    "#]].assert_eq(&texts.concat());
}

#[test]
fn overlaps_and_gaps_are_refused() {
    let two = |first: &str, second: &str| {
        let entry = |offsets: &str| format!(r#"{{"dtype":"U8","shape":[2],"data_offsets":{offsets}}}"#);
        file(&format!(r#"{{"a":{},"b":{}}}"#, entry(first), entry(second)), 4)
    };
    assert!(read(two("[0,2]", "[2,4]")).is_ok());
    assert!(read(two("[2,4]", "[0,2]")).is_ok());
    let texts =
        [refused(two("[0,2]", "[1,3]")), refused(two("[0,2]", "[0,2]")), refused(two("[0,2]", "[3,5]"))];
    expect![[r#"
        x.safetensors: tensor "b": data begin at 1 and overlap with "a", which ends at 2; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: tensor "b": data begin at 0 and overlap with "a", which ends at 2; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
        x.safetensors: tensor "b": data begin at 3, but the data before them end at 2; help: the file is damaged or incomplete: download it again, or write it with a safetensors library
    "#]].assert_eq(&texts.concat());
}

#[test]
fn files_of_other_kinds_are_named() {
    let texts = [
        refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        refused(b"<!DOCTYPE html><html></html>"),
        refused(b"\x93NUMPY\x01\0\x76\0{'descr'"),
        refused(b"PK\x03\x04\x14\0\0\0\0\0\0\0"),
        refused(b"\x1f\x8b"),
        refused(b"{\"weight_map\":{}}"),
    ];
    expect![[r#"
        x.safetensors: expected a safetensors file, found a Git LFS pointer in place of the file; help: run `git lfs pull` in its repository
        x.safetensors: expected a safetensors file, found a web page, perhaps an error page of the download server; help: download it again
        x.safetensors: expected a safetensors file, found a NumPy array; help: rename it to end in .npy
        x.safetensors: expected a safetensors file, found a zip archive, such as an .npz file or a PyTorch checkpoint; help: unpack an .npz file into its .npy files; save a PyTorch checkpoint as safetensors
        x.safetensors: expected a safetensors file, found a gzip archive; help: unpack it first
        x.safetensors: expected a safetensors file, found JSON text; help: give the file that contains the tensors, or its folder
    "#]].assert_eq(&texts.concat());
}

/// The first two bytes of these lengths are those of a gzip and of a pickle file.
#[test]
fn header_lengths_that_look_like_magic_bytes_are_read() {
    for length in [0x8b1f, 0x0280] {
        assert!(read(file(&format!("{{}}{}", " ".repeat(length - 2)), 0)).is_ok());
    }
}

#[test]
fn control_characters_of_names_are_escaped() {
    let text = r#"{"\u001b[31m":{"dtype":"\u0007","shape":[],"data_offsets":[0,0]}}"#;
    let problem = read(file(text, 0)).unwrap_err().to_string();
    assert!(!problem.contains(char::is_control), "{problem:?}");
}

/// Tensors with data, in formats that the `safetensors` crate has too.
#[derive(Clone, Debug)]
struct Content {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, (String, Vec<u64>, Vec<u8>)>,
}

impl Arbitrary for Content {
    fn arbitrary(gen_: &mut Gen) -> Self {
        let names: Vec<String> = Vec::arbitrary(gen_);
        let tensors = names.into_iter().filter(|name| name != METADATA).map(|name| {
            let (dtype, size) = *gen_
                .choose(&[("F64", 8), ("F32", 4), ("BF16", 2), ("F16", 2), ("I64", 8), ("BOOL", 1)])
                .unwrap();
            let shape: Vec<u64> =
                (0..u8::arbitrary(gen_) % 4).map(|_| u64::from(u8::arbitrary(gen_) % 5)).collect();
            let length = shape.iter().product::<u64>() * size;
            (name, (dtype.to_owned(), shape, (0..length).map(|_| u8::arbitrary(gen_)).collect()))
        });
        Self { tensors: tensors.collect(), metadata: BTreeMap::arbitrary(gen_) }
    }
}

fn written(content: &Content) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes, &content.metadata, &content.tensors).unwrap();
    bytes
}

/// The content of a file, in the form of `Content::tensors`.
fn content_of(header: &Header, bytes: &[u8]) -> BTreeMap<String, (String, Vec<u64>, Vec<u8>)> {
    let data = |tensor: &Tensor| bytes[tensor.offset as usize..][..tensor.length as usize].to_vec();
    let entry = |tensor: &Tensor| (tensor.dtype.clone(), tensor.shape.clone(), data(tensor));
    header.tensors.iter().map(|(name, tensor)| (name.clone(), entry(tensor))).collect()
}

quickcheck! {
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) -> bool {
        let _ = read(bytes);
        true
    }

    /// Damaged files get further in the parser than random bytes.
    fn damaged_files_never_panic(content: Content, at: usize, byte: u8, length: usize) -> bool {
        let mut bytes = written(&content);
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = read(bytes.clone());
        bytes.truncate(length % (bytes.len() + 1));
        let _ = read(bytes);
        true
    }

    fn written_files_are_read_back(content: Content) -> bool {
        let bytes = written(&content);
        let header = read(bytes.clone()).unwrap();
        let shape_of = |(dtype, shape, _): &(String, Vec<u64>, _)| (dtype.clone(), shape.clone());
        let shapes = content.tensors.iter().map(|(name, tensor)| (name.clone(), shape_of(tensor))).collect();
        let layout = Layout::new(&content.metadata, &shapes);
        header.metadata == content.metadata
            && content_of(&header, &bytes) == content.tensors
            && header.data_start.is_multiple_of(8)
            && layout.tensors() == &header.tensors
            && layout.header() == &bytes[..header.data_start as usize]
            && layout.file_length() == bytes.len() as u64
    }

    /// Readers that map a file need aligned numbers.
    fn tensors_are_aligned(content: Content) -> bool {
        let header = read(written(&content)).unwrap();
        header.tensors.values().all(|tensor| tensor.offset.is_multiple_of(dtype::alignment(&tensor.dtype)))
    }

    /// The oracle reads our files.
    fn the_safetensors_crate_reads_written_files(content: Content) -> bool {
        let bytes = written(&content);
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let theirs = SafeTensors::deserialize(&bytes).unwrap();
        let metadata: BTreeMap<_, _> = metadata.metadata().clone().unwrap_or_default().into_iter().collect();
        metadata == content.metadata
            && theirs.len() == content.tensors.len()
            && content.tensors.iter().all(|(name, (dtype, shape, data))| {
                let tensor = theirs.tensor(name).unwrap();
                tensor.dtype().to_string() == *dtype
                    && tensor.shape().iter().map(|&length| length as u64).eq(shape.iter().copied())
                    && tensor.data() == data
            })
    }

    /// Files of the oracle are read. Files without tensors are left out: without metadata too, the oracle writes a header that is not JSON.
    fn files_written_by_the_safetensors_crate_are_read(content: Content) -> bool {
        if content.tensors.is_empty() {
            return true;
        }
        let views = content.tensors.iter().map(|(name, (dtype, shape, data))| {
            let dtype: Dtype = serde_json::from_value(dtype.as_str().into()).unwrap();
            let shape = shape.iter().map(|&length| length as usize).collect();
            (name, TensorView::new(dtype, shape, data).unwrap())
        });
        let metadata = Some(content.metadata.clone().into_iter().collect());
        let bytes = ::safetensors::serialize(views, metadata).unwrap();
        let header = read(bytes.clone()).unwrap();
        header.metadata == content.metadata && content_of(&header, &bytes) == content.tensors
    }

    /// The writer of the residual base relies on this.
    fn head_and_tensors_in_file_order_make_up_the_file(content: Content) -> bool {
        let bytes = written(&content);
        let header = read(bytes.clone()).unwrap();
        let mut copy = bytes[..header.data_start as usize].to_vec();
        for (_, tensor) in header.in_file_order() {
            copy.extend(&bytes[tensor.offset as usize..][..tensor.length as usize]);
        }
        copy == bytes
    }
}

#[test]
fn the_bytes_of_a_file_are_fixed() {
    let metadata = BTreeMap::from([("b".into(), "2".into()), ("a".into(), "1".into())]);
    let tensors = BTreeMap::from([
        ("w".into(), ("U8".into(), vec![3], vec![1, 2, 3])),
        ("x".into(), ("F32".into(), vec![1, 1], vec![4, 5, 6, 7])),
    ]);
    let text = concat!(
        r#"{"__metadata__":{"a":"1","b":"2"},"w":{"dtype":"U8","shape":[3],"data_offsets":[4,7]},"#,
        r#""x":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}"#,
    );
    let mut expected = file(&format!("{text:144}"), 0);
    expected.extend([4, 5, 6, 7, 1, 2, 3]);
    assert_eq!(written(&Content { metadata, tensors }), expected);
}

#[test]
fn data_of_a_wrong_length_are_refused_before_writing() {
    let tensors = BTreeMap::from([("x".into(), ("F32".into(), vec![2], vec![0; 7]))]);
    let mut out = Vec::new();
    let error = write(&mut out, &BTreeMap::new(), &tensors).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    assert!(error.to_string().contains("expected 8 bytes, found 7"), "{error}");
    assert!(out.is_empty());
}

#[test]
#[should_panic(expected = "\"F33\"")]
fn a_layout_with_an_unknown_number_format_panics() {
    Layout::new(&BTreeMap::new(), &BTreeMap::from([("x".into(), ("F33".into(), vec![2]))]));
}
