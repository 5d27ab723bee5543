//! Refusals one by one, each with its words; then what must hold of any layout and of any bytes.

use super::super::{Category, Source};
use super::*;
use ::safetensors::{Dtype, SafeTensors, tensor::TensorView};
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

#[track_caller]
fn refused(bytes: impl Into<Vec<u8>>, words: &str) {
    let problem = read(bytes).expect_err(words);
    assert!(problem.to_string().contains(words), "expected {words:?} in: {problem}");
    assert!(problem.to_string().starts_with("x.safetensors: "), "{problem}");
    assert_eq!(problem.category(), Category::Data);
    assert!(problem.next_step().is_some(), "{problem}");
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
fn files_too_short_for_a_header() {
    refused(b"", "the file has 0 bytes, but a safetensors file has at least 10");
    refused(b"\0", "the file has 1 bytes");
    refused(b"\x02\0\0\0\0\0\0\0", "the file has 8 bytes");
    refused(b"\x02\0\0\0\0\0\0\0{", "the file has 9 bytes");
}

#[test]
fn header_lengths_that_cannot_be() {
    refused(b"\x03\0\0\0\0\0\0\0{}", "has 3 bytes, but only 2 bytes follow");
    refused(b"\x01\xe1\xf5\x05\0\0\0\0{}", "has 100000001 bytes, but the limit is 100000000");
    refused(b"\xff\xff\xff\xff\xff\xff\xff\xff{}", "has 18446744073709551615 bytes, but the limit");
    refused(b"\0\0\0\0\0\0\0\0{}", "does not end with \"}\"");
}

#[test]
fn headers_that_are_not_an_object_in_utf8() {
    refused(b"\x03\0\0\0\0\0\0\0 {}", "begins with \"{\" at byte 8");
    refused(b"\x05\0\0\0\0\0\0\0\xef\xbb\xbf{}", "begins with \"{\" at byte 8");
    refused(b"\x02\0\0\0\0\0\0\0[]", "begins with \"{\" at byte 8");
    refused(b"\x03\0\0\0\0\0\0\0{}\n", "does not end with \"}\" and padding by spaces");
    refused(b"\x03\0\0\0\0\0\0\0{}\0", "does not end with \"}\" and padding by spaces");
    refused(b"\x06\0\0\0\0\0\0\0{\"\xff\":}", "not UTF-8 at byte 10");
    refused(file("{}}", 0), "trailing characters");
    refused(file(r#"{"a":1,}"#, 0), "\"a\": invalid type: integer `1`, expected an object with dtype");
    refused(file("{test}", 0), "key must be a string");
    refused(file(&format!("{{\"a\":{}}}", "[".repeat(1_000_000)), 0), "invalid type: sequence");
    refused(file(&format!("{{\"a\":{}1}}", "{\"a\":".repeat(1_000_000)), 0), "unknown field `a`");
}

#[test]
fn duplicates_in_every_object() {
    let entry = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    refused(file(&format!(r#"{{"a":{entry},"a":{entry}}}"#), 1), "duplicate key \"a\"");
    refused(file(&format!(r#"{{"a":{entry},"\u0061":{entry}}}"#), 1), "duplicate key \"a\"");
    refused(file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), "duplicate field `__metadata__`");
    refused(file(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0), "\"__metadata__\": duplicate key \"k\"");
    let twice = r#"{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#;
    refused(file(twice, 1), "\"a\": duplicate field `dtype`");
}

#[test]
fn entries_of_another_form() {
    refused(file(r#"{"a":["U8",[1],[0,1]]}"#, 1), "\"a\": invalid type: sequence, expected an object");
    refused(file(r#"{"a":{"dtype":"U8","shape":[1]}}"#, 1), "\"a\": missing field `data_offsets`");
    let more = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"layout":0}}"#;
    refused(file(more, 1), "\"a\": unknown field `layout`");
    let entry = |shape: &str, offsets: &str| {
        file(&format!(r#"{{"a":{{"dtype":"U8","shape":{shape},"data_offsets":{offsets}}}}}"#), 1)
    };
    refused(entry("[-1]", "[0,1]"), "\"a\": invalid value: integer `-1`");
    refused(entry("[1.0]", "[0,1]"), "\"a\": invalid type: floating point `1.0`");
    refused(entry("[18446744073709551616]", "[0,1]"), "expected u64");
    refused(entry("[1]", "[0]"), "\"a\": invalid length 1");
    refused(entry("[1]", "[0,1,1]"), "\"a\": ");
    refused(entry("[1]", "[0,-1]"), "\"a\": invalid value: integer `-1`");
    refused(
        file(r#"{"__metadata__":{"k":1}}"#, 0),
        "\"__metadata__\": \"k\": invalid type: integer `1`, expected a string",
    );
    refused(file(r#"{"__metadata__":{"k":null}}"#, 0), "\"__metadata__\": \"k\": invalid type: null");
    refused(file(r#"{"__metadata__":null}"#, 0), "\"__metadata__\": invalid type: null");
}

#[test]
fn lengths_that_disagree() {
    let entry = |dtype: &str, shape: &str, offsets: &str, data| {
        file(&format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#), data)
    };
    refused(entry("F33", "[1]", "[0,4]", 4), "tensor \"a\": expected a number format of safetensors");
    refused(entry("F32", "[2]", "[0,4]", 4), "F32 of shape [2] has 8 bytes, but its data_offsets span 4");
    refused(entry("F32", "[1]", "[4,0]", 4), "its data_offsets decrease from 4 to 0");
    refused(entry("F32", "[4294967296,4294967296]", "[0,4]", 4), "more bytes than any file has");
    refused(entry("F4", "[3]", "[0,2]", 2), "12 bits of F4");
    refused(
        entry("U8", "[2305843009213693951]", "[0,2305843009213693951]", 4),
        "its tensors have 2305843009213693951 bytes, but 4 follow the header: the file ends too early",
    );
    refused(
        entry("F32", "[1]", "[0,4]", 3),
        "have 4 bytes, but 3 follow the header: the file ends too early",
    );
    refused(entry("F32", "[1]", "[0,4]", 5), "have 4 bytes, but 5 follow the header: bytes follow");
    refused(entry("F32", "[1]", "[1,5]", 5), "its data begin at 1, but the data before end at 0");
    refused(
        entry("U8", "[1]", "[18446744073709551614,18446744073709551615]", 5),
        "begin at 18446744073709551614",
    );
}

#[test]
fn data_that_overlap_or_leave_a_hole() {
    let two = |first: &str, second: &str| {
        let entry = |offsets: &str| format!(r#"{{"dtype":"U8","shape":[2],"data_offsets":{offsets}}}"#);
        file(&format!(r#"{{"a":{},"b":{}}}"#, entry(first), entry(second)), 4)
    };
    assert!(read(two("[0,2]", "[2,4]")).is_ok());
    assert!(read(two("[2,4]", "[0,2]")).is_ok());
    refused(two("[0,2]", "[1,3]"), "tensor \"b\": its data begin at 1, within \"a\", which ends at 2");
    refused(two("[0,2]", "[0,2]"), "tensor \"b\": its data begin at 0, within \"a\"");
    refused(two("[0,2]", "[3,5]"), "tensor \"b\": its data begin at 3, but the data before end at 2");
}

#[test]
fn strangers_are_called_by_their_name() {
    refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "found a Git LFS pointer");
    refused(b"<!DOCTYPE html><html></html>", "found a web page");
    refused(b"\x93NUMPY\x01\0\x76\0{'descr'", "found a NumPy array");
    refused(b"PK\x03\x04\x14\0\0\0\0\0\0\0", "found a zip archive");
    refused(b"\x1f\x8b", "found a gzip archive");
    refused(b"{\"weight_map\":{}}", "found JSON text");
}

/// The first two bytes of these lengths are those of a gzip and of a pickle file.
#[test]
fn header_lengths_that_look_like_magic_are_read() {
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

/// Tensors with data, of the formats that the `safetensors` crate and this one share.
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

/// What a header and its file say, in the form of `Content::tensors`.
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

    /// Damage reaches deeper than noise does.
    fn damaged_files_never_panic(content: Content, at: usize, byte: u8, length: usize) -> bool {
        let mut bytes = written(&content);
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = read(bytes.clone());
        bytes.truncate(length % (bytes.len() + 1));
        let _ = read(bytes);
        true
    }

    fn what_is_written_reads_back(content: Content) -> bool {
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

    /// Readers that map a file want numbers where their processor can load them.
    fn tensors_are_aligned(content: Content) -> bool {
        let header = read(written(&content)).unwrap();
        header.tensors.values().all(|tensor| tensor.offset.is_multiple_of(dtype::alignment(&tensor.dtype)))
    }

    /// The oracle reads what we write.
    fn the_safetensors_crate_reads_what_is_written(content: Content) -> bool {
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

    /// We read what the oracle writes; but for files without tensors, whose header is no JSON when it has no metadata either.
    fn what_the_safetensors_crate_writes_is_read(content: Content) -> bool {
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

    /// What the residual base relies on: head and tensors in file order are the whole file.
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
fn data_of_another_length_are_refused_before_anything_is_written() {
    let tensors = BTreeMap::from([("x".into(), ("F32".into(), vec![2], vec![0; 7]))]);
    let mut out = Vec::new();
    let error = write(&mut out, &BTreeMap::new(), &tensors).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    assert!(error.to_string().contains("expected 8 bytes, found 7"), "{error}");
    assert!(out.is_empty());
}

#[test]
#[should_panic(expected = "\"F33\"")]
fn a_layout_of_an_unknown_format_panics() {
    Layout::new(&BTreeMap::new(), &BTreeMap::from([("x".into(), ("F33".into(), vec![2]))]));
}
