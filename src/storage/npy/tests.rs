//! Files as numpy writes them, refused files with their messages, and properties of arbitrary bytes.

use super::super::Category;
use super::super::number::Number;
use super::super::{Problem, Source, snapshot};
use super::*;
use crate::element::Element;
use expect_test::expect;
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

/// The message for a file that must be refused, and the next step.
#[track_caller]
fn refused(bytes: impl Into<Vec<u8>>) -> String {
    let problem = read(bytes).expect_err("must be refused");
    assert_eq!(problem.category(), Category::Data);
    assert!(problem.next_step().is_some(), "{problem}");
    snapshot(problem)
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

/// Integers are counts, and counts have one axis.
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
        assert!(refused(of_shape("(1, 1)")).contains(&format!("{descr} (integers)")));
    }
}

#[test]
fn other_number_formats_are_refused() {
    let formats = [
        "'|O'", "'<i8'", "'|b1'", "'<c8'", "'<U3'", "'<M8[s]'", "'<f16'", "'>V2'", "'|V4'", "'|f4'", "'f4'",
        "'é'",
    ];
    let more = ["''", "[('a', '<f4')]", "('<f4', (2,))"];
    let texts: String = formats.into_iter().chain(more).map(|descr| refused(of_descr(descr, 8))).collect();
    expect![[r#"
        x.npy: the array holds Python objects, such as rows of different lengths, and not numbers; help: join them into one array of numbers before numpy.save: numpy.concatenate(list(array)).astype("float32")
        x.npy: unsupported number format (descr) <i8 (integers): expected f8, f4, f2, or V2 for bfloat16; help: convert the array with .astype("float32") before numpy.save
        x.npy: unsupported number format (descr) |b1 (booleans): expected f8, f4, f2, or V2 for bfloat16; help: convert the array with .astype("float32") before numpy.save
        x.npy: unsupported number format (descr) <c8 (complex numbers): expected f8, f4, f2, or V2 for bfloat16; help: convert the array with .astype("float32") before numpy.save
        x.npy: unsupported number format (descr) <U3 (text): expected f8, f4, f2, or V2 for bfloat16; help: convert the array with .astype("float32") before numpy.save
        x.npy: unsupported number format (descr) <M8[s] (dates or times): expected f8, f4, f2, or V2 for bfloat16; help: convert the array with .astype("float32") before numpy.save
        x.npy: unsupported number format (descr) <f16: expected f8, f4, f2, or V2 for bfloat16; help: convert the array with .astype("float32") before numpy.save
        x.npy: unsupported number format (descr) >V2: expected f8, f4, f2, or V2 for bfloat16; help: convert the array with .astype("float32") before numpy.save
        x.npy: unsupported number format (descr) |V4: expected f8, f4, f2, or V2 for bfloat16; help: convert the array with .astype("float32") before numpy.save
        x.npy: unsupported number format (descr) |f4: expected f8, f4, f2, or V2 for bfloat16; help: convert the array with .astype("float32") before numpy.save
        x.npy: unsupported number format (descr) f4: expected f8, f4, f2, or V2 for bfloat16; help: convert the array with .astype("float32") before numpy.save
        x.npy: unsupported number format (descr) é: expected f8, f4, f2, or V2 for bfloat16; help: convert the array with .astype("float32") before numpy.save
        x.npy: unsupported number format (descr) : expected f8, f4, f2, or V2 for bfloat16; help: convert the array with .astype("float32") before numpy.save
        x.npy: the array holds elements of a structured type, with several fields each, and not numbers; help: save one field, array["NAME"], or numpy.lib.recfunctions.structured_to_unstructured(array)
        x.npy: the array holds elements of a structured type, with several fields each, and not numbers; help: save one field, array["NAME"], or numpy.lib.recfunctions.structured_to_unstructured(array)
    "#]].assert_eq(&texts);
}

/// `numpy.save` appends to an open file, and `numpy.load` reads only the first array.
#[test]
fn files_with_two_arrays_are_refused() {
    let one = of_shape("(2, 3)", 24);
    let two = [one.clone(), one.clone()].concat();
    expect![[r#"
        x.npy: the file holds another array after the first one, whose shape is [2, 3]; help: numpy.save was called several times with one open file: save each array to a file of its own, MODULE.0.npy, MODULE.1.npy
    "#]].assert_eq(&refused(two));
    // Other bytes at the end are no array.
    assert!(!refused([one, vec![0; 30]].concat()).contains("another array"));
}

/// A recursive parser would overflow the stack with such a header.
#[test]
fn nested_tuples_need_no_stack() {
    let nested = format!("{}{}", "(".repeat(4000), ")".repeat(4000));
    let mut bytes = b"\x93NUMPY\x02\0\0\0\x10\0{'descr': ".to_vec();
    bytes.resize(12 + (1 << 20), b'[');
    for text in [refused(of_descr(&nested, 0)), refused(bytes)] {
        assert!(text.contains("of a structured type"), "{text}");
    }
    let texts = [refused(of_shape(&nested, 0)), refused(file(&nested, 0))];
    expect![[r#"
        x.npy: expected the length of an axis (0 to 2^63 - 1) at byte 61 of the header, found "("; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected "{" at byte 10 of the header, found "("; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
    "#]].assert_eq(&texts.concat());
}

#[test]
fn shapes_are_checked() {
    assert_eq!(read(of_shape("(3,)", 12)).unwrap().shape, [3]);
    assert_eq!(read(of_shape("(0, 3)", 0)).unwrap().shape, [0, 3]);
    assert_eq!(read(of_shape("(2, 1, 3)", 24)).unwrap().shape, [2, 1, 3]);
    let malformed =
        ["(3)", "3", "[3]", "(-1,)", "(1.0,)", "(03,)", "(3L,)", "(1_0,)", "(,)", "(3,,)", "(3 4)", "(3, 4"];
    let large = ["(9223372036854775808,)", "(9223372036854775807,)", "(4294967296, 4294967296)"];
    let texts: String = malformed.iter().chain(&large).map(|shape| refused(of_shape(shape, 12))).collect();
    expect![[r#"
        x.npy: the file contains a single number, not an array with axes; help: save an array of shape (rows, columns)
        x.npy: expected "," in a tuple with one element at byte 62 of the header, found ")"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected a tuple at byte 60 of the header, found "3"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected a tuple at byte 60 of the header, found "["; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected the length of an axis (0 to 2^63 - 1) at byte 61 of the header, found "-"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected "," in a tuple with one element at byte 62 of the header, found "."; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected the length of an axis (0 to 2^63 - 1) at byte 61 of the header, found "0"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected "," in a tuple with one element at byte 62 of the header, found "L"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected "," in a tuple with one element at byte 62 of the header, found "_"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected the length of an axis (0 to 2^63 - 1) at byte 61 of the header, found ","; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected the length of an axis (0 to 2^63 - 1) at byte 63 of the header, found ","; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected "," in a tuple with one element at byte 63 of the header, found "4"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected the length of an axis (0 to 2^63 - 1) at byte 67 of the header, found "}"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected the length of an axis (0 to 2^63 - 1) at byte 61 of the header, found "9"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: shape [9223372036854775807] is too large for a file; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: shape [4294967296, 4294967296] is too large for a file; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
    "#]].assert_eq(&(refused(of_shape("()", 4)) + &texts));
}

#[test]
fn data_of_a_wrong_length_are_refused() {
    let cases =
        [("(2, 3)", 12), ("(2, 3)", 36), ("(2, 3)", 23), ("(2, 3)", 25), ("(0, 3)", 1), ("(3, 0)", 1)];
    expect![[r#"
        x.npy: shape [2, 3] needs 24 bytes, but 12 bytes follow the header: expected 2 rows, found 1; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: shape [2, 3] needs 24 bytes, but 36 bytes follow the header: expected 2 rows, found 3; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: shape [2, 3] needs 24 bytes, but 23 bytes follow the header: expected 2 rows, found 1 and 11 bytes; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: shape [2, 3] needs 24 bytes, but 25 bytes follow the header: expected 2 rows, found 2 and 1 bytes; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: shape [0, 3] needs 0 bytes, but 1 bytes follow the header: expected 0 rows, found 0 and 1 bytes; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: shape [3, 0] needs 0 bytes, but 1 bytes follow the header; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
    "#]].assert_eq(&cases.map(|(shape, data)| refused(of_shape(shape, data))).concat());
}

#[test]
fn keys_are_checked() {
    let (descr, order, shape) = ("'descr': '<f4'", "'fortran_order': False", "'shape': (1,)");
    let dictionaries = [
        "{}".to_owned(),
        format!("{{{descr}, {shape}}}"),
        format!("{{{descr}, {order}}}"),
        format!("{{{descr}, {order}, {shape}, {descr}}}"),
        format!("{{{descr}, {order}, {shape}, {shape}}}"),
        format!("{{{descr}, {order}, {order}, {shape}}}"),
        format!("{{{descr}, {order}, {shape}, 'x': 1}}"),
        format!("{{{descr}, {order}, {shape}, 1: 1}}"),
        format!("{{{descr} {order}, {shape}}}"),
        format!("{{'descr' '<f4', {order}, {shape}}}"),
        format!("{{'descr': '<f4, {order}, {shape}}}"),
        "{'descr': '<f4".to_owned(),
        format!("{{'descr': '\\x3cf4', {order}, {shape}}}"),
        format!("{{'descr': f4, {order}, {shape}}}"),
        format!("{{{descr}, 'fortran_order': 0, {shape}}}"),
        format!("{{{descr}, {order}, {shape}}} x"),
        format!("{{{descr}, {order}, {shape}}}\n"),
    ];
    expect![[r#"
        x.npy: expected a dictionary with descr at byte 12 of the header, found "\n"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected a dictionary with fortran_order at byte 41 of the header, found "\n"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected a dictionary with shape at byte 50 of the header, found "\n"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected no duplicate key at byte 66 of the header, found "\'"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected no duplicate key at byte 66 of the header, found "\'"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected no duplicate key at byte 51 of the header, found "\'"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected one of the keys descr, fortran_order and shape at byte 66 of the header, found "\'"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected a quoted key at byte 66 of the header, found "1"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected "," or "}" at byte 26 of the header, found "\'"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected ":" at byte 19 of the header, found "\'"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected "," or "}" at byte 27 of the header, found "f"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected the closing quote of a string at byte 24 of the header, found "\n"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected the closing quote of a string at byte 21 of the header, found "\\"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected a quoted descr at byte 20 of the header, found "f"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected True or False at byte 44 of the header, found "0"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected spaces and one newline to the end at byte 66 of the header, found "x"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        x.npy: expected spaces and one newline to the end at byte 65 of the header, found "\n"; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
    "#]].assert_eq(&dictionaries.map(|dictionary| refused(file(&dictionary, 4))).concat());
}

#[test]
fn a_missing_newline_is_refused() {
    let texts = [refused(
        b"\x93NUMPY\x01\0\x3a\0{'descr': '<f4', 'fortran_order': False, 'shape': (0,), } ".as_slice(),
    )];
    expect![[r#"
        x.npy: expected spaces and one newline to the end at byte 68 of the header, found the end; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
    "#]].assert_eq(&texts.concat());
}

#[test]
fn truncated_or_wrong_starts_are_refused() {
    let texts = [
        refused(b""),
        refused(b"\x93NUM"),
        refused(b"\x93NUMPX\x01\0\x02\0{}"),
        refused(b"\x93NUMPY"),
        refused(b"\x93NUMPY\x01\0\x02"),
        refused(b"\x93NUMPY\x02\0\x02\0\0"),
        refused(b"\x93NUMPY\x01\0\x76\0{'descr'"),
        refused(b"\x93NUMPY\x04\0\x02\0{}"),
        refused(b"\x93NUMPY\0\0\x02\0{}"),
        refused(b"\x93NUMPY\x01\x01\x02\0{}"),
        refused(b"\x93NUMPY\x01\0\0\0"),
    ];
    expect![[r#"
        x.npy: the file is empty; help: write it with numpy.save, or download it again
        x.npy: not a .npy file: it does not begin with "\x93NUMPY"; help: write it with numpy.save, or download it again
        x.npy: not a .npy file: it does not begin with "\x93NUMPY"; help: write it with numpy.save, or download it again
        x.npy: the file has 6 bytes, but its header needs at least 10 bytes; help: write it with numpy.save, or download it again
        x.npy: the file has 9 bytes, but its header needs at least 10 bytes; help: write it with numpy.save, or download it again
        x.npy: the file has 11 bytes, but its header needs at least 12 bytes; help: write it with numpy.save, or download it again
        x.npy: the file has 18 bytes, but its header needs at least 128 bytes; help: write it with numpy.save, or download it again
        x.npy: unsupported version 4.0 of the npy format: expected 1.0, 2.0 or 3.0; help: write it with numpy.save, or download it again
        x.npy: unsupported version 0.0 of the npy format: expected 1.0, 2.0 or 3.0; help: write it with numpy.save, or download it again
        x.npy: unsupported version 1.1 of the npy format: expected 1.0, 2.0 or 3.0; help: write it with numpy.save, or download it again
        x.npy: expected "{" at byte 10 of the header, found the end; help: the file is damaged or incomplete: write it again with numpy.save, or download it again
    "#]].assert_eq(&texts.concat());
}

/// The file has 14 bytes, so it must be refused before memory is allocated.
#[test]
fn huge_header_lengths_are_refused() {
    let texts = [
        refused(b"\x93NUMPY\x01\0\x11\x27{}"),
        refused(b"\x93NUMPY\x02\0\xff\xff\xff\xff{}"),
        refused(b"\x93NUMPY\x03\0\x01\0\x10\0{}"),
    ];
    expect![[r#"
        x.npy: the header has 10001 bytes, the limit is 10000; help: write it with numpy.save, or download it again
        x.npy: the header has 4294967295 bytes, the limit is 1048576; help: write it with numpy.save, or download it again
        x.npy: the header has 1048577 bytes, the limit is 1048576; help: write it with numpy.save, or download it again
    "#]].assert_eq(&texts.concat());
}

#[test]
fn files_of_other_kinds_are_named() {
    let texts = [
        refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        refused(b"PK\x03\x04\x14\0\0\0\0\0\0\0"),
        refused(b"\x80\x04\x95\x0b"),
        refused(b"\x1f\x8b\x08"),
        refused(b"\x02\0\0\0\0\0\0\0{}"),
        refused(b"<html>"),
    ];
    expect![[r#"
        x.npy: expected a .npy file, found a Git LFS pointer in place of the file; help: run `git lfs pull` in its repository
        x.npy: expected a .npy file, found a zip archive, such as an .npz file or a PyTorch checkpoint; help: unpack an .npz file into its .npy files; save a PyTorch checkpoint as safetensors
        x.npy: expected a .npy file, found a Python pickle, which can run arbitrary code when it is loaded; help: save the tensors as safetensors
        x.npy: expected a .npy file, found a gzip archive; help: unpack it first
        x.npy: expected a .npy file, found a safetensors file; help: rename it to end in .safetensors
        x.npy: expected a .npy file, found a web page, perhaps an error page of the download server; help: download it again
    "#]].assert_eq(&texts.concat());
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

/// If a header with one changed byte is accepted, the oracle accepts it too, with the same content.
#[test]
fn npyz_agrees_on_every_changed_byte_of_a_header() {
    let sound = written_by_npyz(&[2, 3], Order::C, "<f4");
    let data_start = sound.len() - 24;
    for (at, byte) in (0..data_start).flat_map(|at| (0..=255).map(move |byte| (at, byte))) {
        let mut bytes = sound.clone();
        bytes[at] = byte;
        let Ok(ours) = read(bytes.clone()) else { continue };
        // The oracle does not know "=", the byte order of the machine.
        let Ok(theirs) = NpyFile::new(bytes.as_slice()) else {
            assert_eq!(byte, b'=');
            continue;
        };
        assert_eq!(ours.shape, theirs.shape());
        assert_eq!(ours.fortran_order, theirs.order() == Order::Fortran);
    }
}

quickcheck! {
    /// The numbers that the oracle writes are found at the offset.
    fn files_written_by_npyz_are_read(axes: Vec<u8>, fortran_order: bool, big_endian: bool) -> bool {
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

    /// Damaged files get further in the parser than random bytes.
    fn damaged_files_never_panic(at: usize, byte: u8, length: usize) -> bool {
        let mut bytes = of_shape("(2, 3)", 24);
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(length % (bytes.len() + 1));
        let _ = read(bytes);
        true
    }
}
