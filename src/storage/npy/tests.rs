//! What numpy writes, byte by byte; refusals one by one, each with its words; then what must hold of any
//! bytes.

use super::super::Category;
use super::*;
use npyz::{NpyFile, Order, WriterBuilder};
use quickcheck::quickcheck;

fn read(bytes: impl Into<Vec<u8>>) -> Result<Header, Problem> {
    Header::read(&Source::from_bytes("x.npy", bytes.into()))
}

/// A file of version 1 with this dictionary and this many bytes of data.
fn file(dictionary: &str, data: usize) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\0".to_vec();
    bytes.extend((dictionary.len() as u16 + 1).to_le_bytes());
    bytes.extend(dictionary.as_bytes());
    bytes.push(b'\n');
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn of_shape(shape: &str, data: usize) -> Vec<u8> {
    file(&format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"), data)
}

fn of_descr(descr: &str, data: usize) -> Vec<u8> {
    file(&format!("{{'descr': {descr}, 'fortran_order': False, 'shape': (1, 1), }}"), data)
}

#[track_caller]
fn refused(bytes: impl Into<Vec<u8>>, words: &str) {
    let problem = read(bytes).expect_err(words);
    assert!(problem.to_string().contains(words), "expected {words:?} in: {problem}");
    assert!(problem.to_string().starts_with("x.npy: "), "{problem}");
    assert_eq!(problem.category(), Category::Data);
    assert!(problem.next_step().is_some(), "{problem}");
}

#[test]
fn all_versions_are_read() {
    let dictionary = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }  \n";
    let expected = |offset| Header {
        number: Number::Float(Element::F32),
        big_endian: false,
        fortran_order: false,
        shape: vec![1, 2],
        offset,
    };
    let data = b"\0\0\x80\x3f\0\0\0\x40".as_slice();
    let file = |start: &[u8]| [start, dictionary, data].concat();
    assert_eq!(read(file(b"\x93NUMPY\x01\0\x3e\0")).unwrap(), expected(72));
    assert_eq!(read(file(b"\x93NUMPY\x02\0\x3e\0\0\0")).unwrap(), expected(74));
    assert_eq!(read(file(b"\x93NUMPY\x03\0\x3e\0\0\0")).unwrap(), expected(74));
}

#[test]
fn spelling_is_free_within_the_format() {
    let header = read(file(r#"{"shape":( 2,3,),"fortran_order":True ,  "descr":">f8"}"#, 48)).unwrap();
    let found = (header.number, header.big_endian, header.fortran_order);
    assert_eq!(found, (Number::Float(Element::F64), true, true));
    assert_eq!(header.shape, [2, 3]);
}

#[test]
fn number_formats() {
    for (descr, element, big_endian) in [
        ("'<f8'", Element::F64, false),
        ("'<f4'", Element::F32, false),
        ("'<f2'", Element::F16, false),
        ("'>f8'", Element::F64, true),
        ("'>f4'", Element::F32, true),
        ("'>f2'", Element::F16, true),
        ("'=f4'", Element::F32, cfg!(target_endian = "big")),
        ("'<V2'", Element::Bf16, false),
        ("'|V2'", Element::Bf16, false),
    ] {
        let header = read(of_descr(descr, element.size())).unwrap();
        assert_eq!((header.number, header.big_endian), (Number::Float(element), big_endian), "{descr}");
    }
}

/// Whole numbers count something, which has one axis.
#[test]
fn integers_have_one_axis() {
    for (descr, name, big_endian) in [
        ("|u1", "U8", false),
        ("|i1", "I8", false),
        ("<i2", "I16", false),
        (">u2", "U16", true),
        (">i4", "I32", true),
        ("<u4", "U32", false),
        ("<i8", "I64", false),
        (">u8", "U64", true),
    ] {
        let number = Number::from_name(name).unwrap();
        let of_shape = |shape: &str| {
            let dictionary = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
            file(&dictionary, number.size())
        };
        let header = read(of_shape("(1,)")).unwrap();
        assert_eq!((header.number, header.big_endian), (number, big_endian), "{descr}");
        refused(of_shape("(1, 1)"), &format!("found descr {descr}, integers"));
    }
}

#[test]
fn other_number_formats_are_named() {
    refused(of_descr("'|O'", 8), "found descr |O, Python objects");
    refused(of_descr("'<i8'", 8), "found descr <i8, integers");
    refused(of_descr("'|u1'", 1), "found descr |u1, integers");
    refused(of_descr("'|b1'", 1), "found descr |b1, truth values");
    refused(of_descr("'<c8'", 8), "found descr <c8, complex numbers");
    refused(of_descr("'<U3'", 12), "found descr <U3, text");
    refused(of_descr("'<M8[s]'", 8), "found descr <M8[s], times");
    refused(of_descr("'<f16'", 16), "found descr <f16");
    refused(of_descr("'>V2'", 2), "found descr >V2");
    refused(of_descr("'|V4'", 4), "found descr |V4");
    refused(of_descr("'|f4'", 4), "found descr |f4");
    refused(of_descr("'f4'", 4), "found descr f4");
    refused(of_descr("'é'", 4), "found descr é");
    refused(of_descr("''", 4), "found descr");
    refused(of_descr("[('a', '<f4')]", 4), "found descr [('a', '<f4')]");
    refused(of_descr("('<f4', (2,))", 8), ", a structured type");
    let help = read(of_descr("'<i8'", 8)).unwrap_err();
    assert!(help.next_step().unwrap().contains(".astype(\"float32\")"));
}

/// Such a header ends a process whose reader calls itself for every bracket.
#[test]
fn nested_tuples_need_no_stack() {
    let nested = format!("{}{}", "(".repeat(4000), ")".repeat(4000));
    refused(of_descr(&nested, 0), "a structured type");
    refused(of_shape(&nested, 0), "expected the length of an axis");
    refused(file(&nested, 0), "expected \"{\" at byte 10");
    let mut bytes = b"\x93NUMPY\x02\0\0\0\x10\0{'descr': ".to_vec();
    bytes.resize(12 + (1 << 20), b'[');
    refused(bytes, "a structured type");
}

#[test]
fn shapes() {
    assert_eq!(read(of_shape("(3,)", 12)).unwrap().shape, [3]);
    assert_eq!(read(of_shape("(0, 3)", 0)).unwrap().shape, [0, 3]);
    assert_eq!(read(of_shape("(2, 1, 3)", 24)).unwrap().shape, [2, 1, 3]);
    refused(of_shape("()", 4), "expected an array with at least one axis");
    refused(of_shape("(3)", 12), "without which it is no tuple");
    refused(of_shape("3", 12), "expected a tuple at byte");
    refused(of_shape("[3]", 12), "expected a tuple at byte");
    refused(of_shape("(-1,)", 0), "expected the length of an axis, from 0 to 2^63 - 1, at byte");
    refused(of_shape("(1.0,)", 4), "found \".\"");
    refused(of_shape("(03,)", 12), "expected the length of an axis");
    refused(of_shape("(3L,)", 12), "found \"L\"");
    refused(of_shape("(1_0,)", 40), "found \"_\"");
    refused(of_shape("(,)", 0), "expected the length of an axis");
    refused(of_shape("(3,,)", 12), "expected the length of an axis");
    refused(of_shape("(3 4)", 48), "found \"4\"");
    refused(of_shape("(3, 4", 48), "found \"}\"");
    refused(of_shape("(9223372036854775808,)", 0), "from 0 to 2^63 - 1");
    refused(of_shape("(99999999999999999999999,)", 0), "from 0 to 2^63 - 1");
    refused(of_shape("(9223372036854775807,)", 0), "asks for more bytes than any file has");
    refused(of_shape("(4294967296, 4294967296)", 0), "asks for more bytes than any file has");
}

#[test]
fn data_of_another_length() {
    let words = "asks for 24 bytes, but 12 follow the header: expected 2 rows, found 1";
    refused(of_shape("(2, 3)", 12), words);
    refused(of_shape("(2, 3)", 36), "asks for 24 bytes, but 36 follow the header: expected 2 rows, found 3");
    refused(of_shape("(2, 3)", 23), "expected 2 rows, found 1 and 11 bytes");
    refused(of_shape("(2, 3)", 25), "expected 2 rows, found 2 and 1 bytes");
    refused(of_shape("(0, 3)", 1), "expected 0 rows, found 0 and 1 bytes");
    refused(of_shape("(3, 0)", 1), "asks for 0 bytes, but 1 follow the header");
}

#[test]
fn keys() {
    let descr = "'descr': '<f4'";
    let order = "'fortran_order': False";
    let shape = "'shape': (1,)";
    refused(file("{}", 4), "expected a dictionary with descr");
    refused(file(&format!("{{{descr}, {shape}}}"), 4), "expected a dictionary with fortran_order");
    refused(file(&format!("{{{descr}, {order}}}"), 4), "expected a dictionary with shape");
    refused(file(&format!("{{{descr}, {order}, {shape}, {descr}}}"), 4), "expected each key once");
    refused(file(&format!("{{{descr}, {order}, {shape}, {shape}}}"), 4), "expected each key once");
    refused(file(&format!("{{{descr}, {order}, {order}, {shape}}}"), 4), "expected each key once");
    refused(file(&format!("{{{descr}, {order}, {shape}, 'x': 1}}"), 4), "expected one of the keys descr");
    refused(file(&format!("{{{descr}, {order}, {shape}, 1: 1}}"), 4), "expected a quoted key");
    refused(file(&format!("{{{descr} {order}, {shape}}}"), 4), "expected \",\" or \"}\"");
    refused(file(&format!("{{'descr' '<f4', {order}, {shape}}}"), 4), "expected \":\"");
    refused(file(&format!("{{'descr': '<f4, {order}, {shape}}}"), 4), "expected");
    refused(file("{'descr': '<f4", 4), "expected a string to end in its quote");
    refused(
        file(&format!("{{'descr': '\\x3cf4', {order}, {shape}}}"), 4),
        "expected a string to end in its quote",
    );
    refused(file(&format!("{{'descr': f4, {order}, {shape}}}"), 4), "expected a quoted descr");
    refused(file(&format!("{{{descr}, 'fortran_order': 0, {shape}}}"), 4), "expected True or False");
    refused(
        file(&format!("{{{descr}, {order}, {shape}}} x"), 4),
        "expected spaces and one newline to the end",
    );
    refused(
        file(&format!("{{{descr}, {order}, {shape}}}\n"), 4),
        "expected spaces and one newline to the end",
    );
}

#[test]
fn a_missing_newline() {
    refused(
        b"\x93NUMPY\x01\0\x3a\0{'descr': '<f4', 'fortran_order': False, 'shape': (0,), } ".as_slice(),
        "found its end",
    );
}

#[test]
fn starts_that_are_cut_off_or_wrong() {
    refused(b"", "found an empty one");
    refused(b"\x93NUM", "begins with \"\\x93NUMPY\"");
    refused(b"\x93NUMPX\x01\0\x02\0{}", "begins with \"\\x93NUMPY\"");
    refused(b"\x93NUMPY", "the file has 6 bytes, but its header has at least 10");
    refused(b"\x93NUMPY\x01\0\x02", "the file has 9 bytes, but its header has at least 10");
    refused(b"\x93NUMPY\x02\0\x02\0\0", "the file has 11 bytes, but its header has at least 12");
    refused(b"\x93NUMPY\x01\0\x76\0{'descr'", "the file has 18 bytes, but its header has at least 128");
    refused(b"\x93NUMPY\x04\0\x02\0{}", "found 4.0");
    refused(b"\x93NUMPY\0\0\x02\0{}", "found 0.0");
    refused(b"\x93NUMPY\x01\x01\x02\0{}", "found 1.1");
    refused(b"\x93NUMPY\x01\0\0\0", "expected \"{\" at byte 10 of the header, found its end");
}

/// Refused before memory is asked for: the file has 14 bytes.
#[test]
fn huge_header_lengths() {
    refused(b"\x93NUMPY\x01\0\x11\x27{}", "has 10001 bytes, but the limit is 10000");
    refused(b"\x93NUMPY\x02\0\xff\xff\xff\xff{}", "has 4294967295 bytes, but the limit is 1048576");
    refused(b"\x93NUMPY\x03\0\x01\0\x10\0{}", "has 1048577 bytes, but the limit is 1048576");
}

#[test]
fn strangers_are_called_by_their_name() {
    refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "found a Git LFS pointer");
    refused(b"PK\x03\x04\x14\0\0\0\0\0\0\0", "such as an .npz file");
    refused(b"\x80\x04\x95\x0b", "found a Python pickle");
    refused(b"\x1f\x8b\x08", "found a gzip archive");
    refused(b"\x02\0\0\0\0\0\0\0{}", "found a safetensors file");
    refused(b"<html>", "found a web page");
}

fn written_by_npyz(shape: &[u64], order: Order, descr: &str) -> Vec<u8> {
    let count: u64 = shape.iter().product();
    let mut bytes = Vec::new();
    let mut writer = npyz::WriteOptions::new()
        .dtype(npyz::DType::Plain(descr.parse().unwrap()))
        .shape(shape)
        .order(order)
        .writer(&mut bytes)
        .begin_nd()
        .unwrap();
    writer.extend((0..count).map(|value| value as f32)).unwrap();
    writer.finish().unwrap();
    bytes
}

/// What is read of a header with one byte changed, the oracle reads too, and both say the same.
#[test]
fn npyz_agrees_on_every_changed_byte_of_a_header() {
    let sound = written_by_npyz(&[2, 3], Order::C, "<f4");
    let data_start = sound.len() - 24;
    for (at, byte) in (0..data_start).flat_map(|at| (0..=255).map(move |byte| (at, byte))) {
        let mut bytes = sound.clone();
        bytes[at] = byte;
        let Ok(ours) = read(bytes.clone()) else { continue };
        // It does not know "=", the byte order of the machine.
        let Ok(theirs) = NpyFile::new(bytes.as_slice()) else {
            assert_eq!(byte, b'=');
            continue;
        };
        assert_eq!(ours.shape, theirs.shape());
        assert_eq!(ours.fortran_order, theirs.order() == Order::Fortran);
    }
}

quickcheck! {
    /// The oracle writes, and where the data begin the numbers are found.
    fn what_npyz_writes_is_read(axes: Vec<u8>, fortran_order: bool, big_endian: bool) -> bool {
        let more = axes.into_iter().take(3).map(|length| u64::from(length % 5));
        let shape: Vec<u64> = [3].into_iter().chain(more).collect();
        let order = if fortran_order { Order::Fortran } else { Order::C };
        let bytes = written_by_npyz(&shape, order, if big_endian { ">f4" } else { "<f4" });
        let header = read(bytes.clone()).unwrap();
        let mut data = bytes[header.offset as usize..].to_vec();
        if header.big_endian {
            Element::F32.swap_bytes(&mut data);
        }
        let mut values = vec![0.0; data.len() / 4];
        Element::F32.decode_f32(&data, &mut values);
        header.shape == shape
            && header.number == Number::Float(Element::F32)
            && header.fortran_order == fortran_order
            && header.big_endian == big_endian
            && values.iter().enumerate().all(|(at, &value)| value == at as f32)
    }

    fn arbitrary_bytes_never_panic(version: u8, length: u16, text: Vec<u8>) -> bool {
        let _ = read(text.clone());
        let mut bytes = [b"\x93NUMPY".as_slice(), &[version % 4, 0]].concat();
        bytes.extend(length.to_le_bytes());
        bytes.extend(&text);
        let _ = read(bytes);
        let mut bytes = [b"\x93NUMPY\x01\0".as_slice(), &(text.len() as u16).to_le_bytes()].concat();
        bytes.extend(&text);
        let _ = read(bytes);
        true
    }

    /// Damage reaches deeper than noise does.
    fn damaged_files_never_panic(at: usize, byte: u8, length: usize) -> bool {
        let mut bytes = of_shape("(2, 3)", 24);
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(length % (bytes.len() + 1));
        let _ = read(bytes);
        true
    }
}
