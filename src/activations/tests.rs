//! Compares the stream of a site with the stored numbers, and all messages with snapshots.

mod refusals;

use super::*;
use crate::element::Element;
use crate::moments::RowsOrTokens;
use crate::simd::Values;
use crate::storage::shown;
use crate::storage::{Access, Category, Problems, ReadAt, Source, safetensors};
use expect_test::{Expect, expect};
use npyz::{Order, WriterBuilder};
use quickcheck::quickcheck;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

const ELEMENTS: [Element; 4] = [Element::F64, Element::F32, Element::F16, Element::Bf16];

/// A safetensors file whose tensors hold 0, 1, 2, …
fn tensors(metadata: Option<&str>, tensors: &[(&str, &str, &[u64])]) -> Vec<u8> {
    let counted = tensors.iter().map(|&(name, dtype, shape)| {
        let count = shape.iter().product::<u64>();
        let mut data = Vec::new();
        Element::from_name(dtype).unwrap_or(Element::F64).encode((0..count).map(|at| at as f64), &mut data);
        (name.to_owned(), (dtype.to_owned(), shape.to_vec(), data))
    });
    written(metadata, counted.collect())
}

fn written(metadata: Option<&str>, tensors: BTreeMap<String, (String, Vec<u64>, Vec<u8>)>) -> Vec<u8> {
    let metadata = metadata.map(|text| ("cntlora".to_owned(), text.to_owned())).into_iter().collect();
    let mut bytes = Vec::new();
    safetensors::write(&mut bytes, &metadata, &tensors).unwrap();
    bytes
}

/// Metadata with these sites, as JSON.
fn sites(json: &str) -> String {
    format!(r#"{{"format":"activations","version":1,"sites":{json}}}"#)
}

/// An array written by npyz, from numbers in C order.
fn npy(rows: usize, width: usize, order: Order, descr: &str, values: &[f64]) -> Vec<u8> {
    let at = |i: usize| match order {
        Order::C => i,
        Order::Fortran => i % rows * width + i / rows,
    };
    let stored = (0..values.len()).map(|i| values[at(i)]);
    let shape = [rows as u64, width as u64];
    if descr.ends_with('8') {
        written_by_npyz(&shape, order, descr, stored)
    } else {
        written_by_npyz(&shape, order, descr, stored.map(|value| value as f32))
    }
}

fn written_by_npyz<T: npyz::Serialize>(
    shape: &[u64],
    order: Order,
    descr: &str,
    numbers: impl Iterator<Item = T>,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let options = npyz::WriteOptions::new().dtype(npyz::DType::Plain(descr.parse().unwrap()));
    let mut writer = options.shape(shape).order(order).writer(&mut bytes).begin_nd().unwrap();
    writer.extend(numbers).unwrap();
    writer.finish().unwrap();
    bytes
}

fn set(files: &[(&str, Vec<u8>)]) -> Result<ActivationSet, Problems> {
    let sources = files.iter().map(|(name, bytes)| Source::from_bytes(name, bytes.clone()));
    ActivationSet::from_sources(sources.collect())
}

/// All numbers of a site, read in blocks of at most `rows` rows.
fn stream(set: &ActivationSet, site: &str, rows: usize) -> Vec<f64> {
    let site = set.site(site).unwrap();
    let spans: Vec<_> = site.spans(0..site.rows(), rows, Vec::new()).collect();
    let mut blocks = set.blocks(site, spans.clone().into_iter());
    let mut numbers = Vec::new();
    for span in spans {
        let block = blocks.next().unwrap().expect("a block for each span");
        assert_eq!(block.first_row, span.first_row);
        assert_eq!(
            (block.rows.rows, block.rows.width, block.rows.stride),
            (span.rows, site.width, site.width)
        );
        match block.rows.values {
            Values::F64(values) => numbers.extend(values),
            Values::F32(values) => numbers.extend(values.iter().map(|&value| f64::from(value))),
            Values::F16(values) => numbers.extend(values.iter().map(|value| value.to_f64())),
            Values::Bf16(values) => numbers.extend(values.iter().map(|value| value.to_f64())),
        }
    }
    assert!(blocks.next().unwrap().is_none());
    numbers
}

/// A site whose parts have these numbers of rows, without a file.
pub(super) fn site_of_parts(rows: &[u64]) -> Site {
    let part = |&rows: &u64| Part {
        file: 0,
        rows,
        element: Element::F32,
        tensor: "q".into(),
        offset: 0,
        big_endian: false,
        fortran_order: false,
        unfolding: None,
    };
    let recorded = RowsOrTokens::Rows(rows.iter().map(part).collect());
    Site { name: "q".into(), width: 1, modules: Vec::new(), recorded, first_file: 0 }
}

quickcheck! {
    /// A stream from any row is the rest of the whole stream, and `in_files` gives the files of these rows.
    fn streams_start_at_any_row(splits: Vec<u8>, first: u64, block: u8) -> bool {
        let splits: Vec<u64> = splits.into_iter().take(6).map(|rows| u64::from(rows % 7)).chain([3]).collect();
        let files: Vec<_> =
            splits.iter().map(|&rows| ("q.safetensors", tensors(None, &[("q", "F32", &[rows, 2])]))).collect();
        let set = set(&files).unwrap();
        let site = set.site("q").unwrap();
        let first = first % (site.rows() + 3);
        let numbers = |first: u64| {
            let spans = site.spans(first..site.rows(), usize::from(block % 4) + 1, Vec::new());
            let mut blocks = set.blocks(site, spans);
            let mut numbers: Vec<f32> = Vec::new();
            while let Some(block) = blocks.next().unwrap() {
                let Values::F32(values) = block.rows.values else { panic!("as stored") };
                numbers.extend(values);
            }
            numbers
        };
        let whole = numbers(0);
        let rest = whole.get(2 * first as usize..).unwrap_or_default();
        let rows: Vec<(usize, u64)> =
            site.in_files(first..site.rows()).into_iter().flat_map(|(file, rows)| rows.map(move |row| (file, row))).collect();
        let all = splits.iter().enumerate().flat_map(|(file, &rows)| (0..rows).map(move |row| (file, row)));
        numbers(first) == rest && rows == all.skip(first as usize).collect::<Vec<_>>()
    }

    /// The stream equals the stored rows, for all formats, sizes of blocks and divisions into files.
    fn the_stream_equals_the_data(splits: Vec<(u8, u8)>, width: u8, block: u8) -> bool {
        let width = usize::from(width % 5) + 1;
        let mut data: Vec<f64> = Vec::new();
        let mut files = vec![("first.safetensors", tensors(None, &[("q", "F32", &[1, width as u64])]))];
        data.extend((0..width).map(|at| at as f64));
        for (rows, format) in splits.into_iter().take(12) {
            let rows = usize::from(rows % 9);
            // Numbers up to 256 are exact in all formats.
            let values: Vec<f64> = (0..rows * width).map(|at| ((data.len() + at) % 257) as f64).collect();
            files.push(match format % 8 {
                order_and_bytes @ 0..4 if rows > 0 => {
                    let order = if order_and_bytes < 2 { Order::C } else { Order::Fortran };
                    let descr = ["<f4", ">f8", "<f8", ">f4"][usize::from(order_and_bytes)];
                    ("q.npy", npy(rows, width, order, descr, &values))
                }
                other => {
                    let element = ELEMENTS[usize::from(other % 4)];
                    let mut bytes = Vec::new();
                    element.encode(values.iter().copied(), &mut bytes);
                    let shape = vec![1, rows as u64, width as u64];
                    let tensor = (element.name().to_owned(), shape, bytes);
                    ("q.safetensors", written(None, [("q".to_owned(), tensor)].into()))
                }
            });
            data.extend(values);
        }
        let set = set(&files).unwrap();
        let site = set.site("q").unwrap();
        site.rows() * width as u64 == data.len() as u64
            && stream(&set, "q", usize::from(block % 10) + 1) == data
    }
}

#[test]
fn blocks_have_file_tensor_and_row() {
    let set = set(&[
        ("a.safetensors", tensors(None, &[("q", "F16", &[2, 3, 2]), ("r", "F32", &[0, 3])])),
        ("q.7.npy", npy(5, 2, Order::Fortran, ">f4", &[0.0; 10])),
        ("z.safetensors", tensors(None, &[("r", "F32", &[2, 3])])),
    ])
    .unwrap();
    let where_from = |site: &str| {
        let site = set.site(site).unwrap();
        let mut blocks = set.blocks(site, site.spans(0..site.rows(), 4, Vec::new()));
        let mut found = Vec::new();
        while let Some(block) = blocks.next().unwrap() {
            found.push((
                block.path.display().to_string(),
                block.tensor.to_owned(),
                block.first_row,
                block.rows.rows,
            ));
        }
        found
    };
    let expected = |path: &str, tensor: &str, first_row, rows| (path.into(), tensor.into(), first_row, rows);
    assert_eq!(
        where_from("q"),
        [
            expected("a.safetensors", "q", 0, 4),
            expected("a.safetensors", "q", 4, 2),
            expected("q.7.npy", "q.7", 0, 4),
            expected("q.7.npy", "q.7", 4, 1),
        ]
    );
    assert_eq!(where_from("r"), [expected("z.safetensors", "r", 0, 2)]);
    assert_eq!(set.site("q").unwrap().bytes(), 6 * 2 * 2 + 5 * 2 * 4);
}

#[test]
fn metadata_names_the_modules_for_all_files() {
    let named = sites(r#"{"in":["k","q","q"]}"#);
    let set = set(&[
        ("plain.safetensors", tensors(None, &[("in", "F32", &[1, 2]), ("out", "F32", &[1, 3])])),
        ("named.safetensors", tensors(Some(&named), &[("in", "BF16", &[1, 2])])),
        ("out.npy", npy(1, 3, Order::C, "<f8", &[1.0, 2.0, 3.0])),
    ])
    .unwrap();
    assert_eq!(set.site("in").unwrap().modules, ["k", "q"]);
    assert_eq!(set.site("out").unwrap().modules, ["out"]);
    assert_eq!(set.sites().map(|site| site.rows()).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(stream(&set, "out", 9), [0.0, 1.0, 2.0, 1.0, 2.0, 3.0]);
}

/// Compares the problems of these files with a snapshot.
#[track_caller]
fn refused(files: &[(&str, Vec<u8>)], expected: &Expect) {
    expected.assert_eq(&shown(&set(files).unwrap_err(), Path::new("-")));
}

/// Tensors with one axis are token counts, in all formats. Counts of several files add up.
#[test]
fn counts_of_tokens_are_read_and_added() {
    let integers = |dtype: &str, bytes: Vec<u8>, tokens| {
        let tensor = ("e".to_owned(), (dtype.to_owned(), vec![tokens], bytes));
        written(Some(&sites(r#"{"e":["wte"]}"#)), BTreeMap::from([tensor]))
    };
    let wide: Vec<u8> = [3_i64, 0, 7].iter().flat_map(|count| count.to_le_bytes()).collect();
    let narrow: Vec<u8> = [1_u16, 2, 3].iter().flat_map(|count| count.to_be_bytes()).collect();
    let files = [
        ("a.safetensors", integers("I64", wide.clone(), 3)),
        ("b.safetensors", integers("U8", vec![255, 0, 1], 3)),
        ("e.npy", npy_of(">u2", &[3], &narrow)),
        ("q.safetensors", tensors(None, &[("q", "F32", &[2, 3])])),
    ];
    let opened = set(&files).unwrap();
    let site = opened.site("e").unwrap();
    assert_eq!(site.counts().unwrap().counts(), [259, 2, 11]);
    assert_eq!(site.in_files(0..site.rows()), [(0, 0..10), (1, 0..256), (2, 0..6)]);
    assert_eq!(
        (site.width, site.rows(), site.bytes(), site.modules.as_slice()),
        (3, 272, 33, &["wte".to_owned()][..])
    );
    assert_eq!(opened.site("q").unwrap().counts(), None);

    let floats = |values: &[f64]| {
        let mut bytes = Vec::new();
        Element::F32.encode(values.iter().copied(), &mut bytes);
        vec![("a", integers("F32", bytes, values.len() as u64))]
    };
    assert_eq!(set(&floats(&[2.0, 0.0])).unwrap().site("e").unwrap().rows(), 2);
    refused(
        &floats(&[2.0, 0.5]),
        &expect![[r#"
            Data: a: tensor "e": a tensor with one axis contains token counts: expected whole numbers from 0, found 0.5 for token 1
                help: record numpy.bincount(ids, minlength=V) for an embedding of V tokens, and [rows, width] for other layers
        "#]],
    );
    refused(
        &floats(&[-2.0]),
        &expect![[r#"
            Data: a: tensor "e": a tensor with one axis contains token counts: expected whole numbers from 0, found -2 for token 0
                help: record numpy.bincount(ids, minlength=V) for an embedding of V tokens, and [rows, width] for other layers
        "#]],
    );
    refused(
        &floats(&[0.0, 0.0]),
        &expect![[r#"
            Data: a: tensor "e": all token counts are zero in all files
        "#]],
    );
    let negative = [5_i32, -1].iter().flat_map(|count| count.to_le_bytes()).collect();
    refused(
        &[("a", integers("I32", negative, 2))],
        &expect![[r#"
            Data: a: tensor "e": a tensor with one axis contains token counts: expected whole numbers from 0, found -1 for token 1
                help: record numpy.bincount(ids, minlength=V) for an embedding of V tokens, and [rows, width] for other layers
        "#]],
    );
    refused(
        &[("a", integers("BOOL", vec![1], 1))],
        &expect![[r#"
            Data: a: tensor "e": a tensor with one axis contains token counts: expected a format of numbers, found "BOOL"
                help: record them as I64, and keep other tensors in another file
        "#]],
    );
    refused(
        &[("e.npy", npy_of("<i2", &[2], &[1, 0, 0xff, 0xff]))],
        &expect![[r#"
            Data: e.npy: tensor "e": a tensor with one axis contains token counts: expected whole numbers from 0, found -1 for token 1
                help: record numpy.bincount(ids, minlength=V) for an embedding of V tokens, and [rows, width] for other layers
        "#]],
    );
    refused(
        &[("e.npy", npy_of("<i2", &[2, 1], &[1, 0, 2, 0]))],
        &expect![[r#"
            Data: e.npy: unsupported number format (descr) <i2 (integers): expected f8, f4, f2, or V2 for bfloat16
                help: convert the array with .astype("float32") before numpy.save
        "#]],
    );
    let longer = ("b", integers("U8", vec![1, 1], 2));
    refused(
        &[("a", integers("I64", wide.clone(), 3)), longer],
        &expect![[r#"
        Data: b: tensor "e": expected counts of 3 tokens as in "a", found counts of 2
    "#]],
    );
    let rows = ("b", tensors(None, &[("e", "F32", &[2, 3])]));
    refused(
        &[("a", integers("I64", wide, 3)), rows],
        &expect![[r#"
        Data: a: tensor "e": expected rows of 3 numbers as in "b", found counts of tokens
    "#]],
    );
    let many = || tensors(None, &[("e", "F16", &[(1 << 24) + 1])]);
    refused(
        &[("a", many())],
        &expect![[r#"
            Data: a: tensor "e": a tensor with one axis contains token counts: expected at most 16777216 tokens, found 16777217
                help: record rows as [rows, width], and keep other tensors in another file
        "#]],
    );
    let huge: Vec<u8> = [u64::MAX, 0].iter().flat_map(|count| count.to_le_bytes()).collect();
    let one = ("b", integers("U8", vec![1, 0], 2));
    refused(
        &[("a", integers("U64", huge.clone(), 2)), one],
        &expect![[r#"
            Data: b: tensor "e": the sum of its counts and those of other files is too large
        "#]],
    );
    let one = ("b", integers("U8", vec![0, 1], 2));
    refused(
        &[("a", integers("U64", huge, 2)), one],
        &expect![[r#"
        Data: a: tensor "e": the number of tokens is 18446744073709552000, but must be below 2^64
    "#]],
    );
}

/// A `.npy` file of these bytes.
fn npy_of(descr: &str, shape: &[u64], data: &[u8]) -> Vec<u8> {
    let shape: String = shape.iter().map(|length| format!("{length},")).collect();
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    text.push_str(&" ".repeat(118 - 1 - text.len()));
    text.push('\n');
    [b"\x93NUMPY\x01\x00".as_slice(), &118_u16.to_le_bytes(), text.as_bytes(), data].concat()
}

#[test]
fn files_of_folders_are_read_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("inside")).unwrap();
    fs::create_dir(path("inside/deeper")).unwrap();
    let row = |value| npy(1, 1, Order::C, "<f4", &[value]);
    fs::write(path("inside/q.10.npy"), row(3.0)).unwrap();
    fs::write(path("inside/q.9.npy"), row(2.0)).unwrap();
    fs::write(path("inside/notes.txt"), "ignored").unwrap();
    fs::write(path("inside/deeper/q.npy"), "ignored").unwrap();
    fs::write(path("a.safetensors"), tensors(None, &[("q", "BF16", &[2, 1])])).unwrap();
    let set = ActivationSet::open(&[path("inside"), path("a.safetensors")], Access::Auto).unwrap();
    assert_eq!(stream(&set, "q", 2), [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(set.files().len(), 3);
    set.check_unchanged().unwrap();
    fs::write(path("inside/q.9.npy"), "changed").unwrap();
    assert_eq!(set.check_unchanged().unwrap_err().0.len(), 1);
}

/// Images are unfolded as the metadata describes, for all sizes of blocks and divisions into files.
#[test]
fn inputs_of_convolutions_are_unfolded() {
    let metadata = |convolutions: &str| {
        let sites = r#"{"c":["c"]}"#;
        format!(r#"{{"format":"activations","version":1,"sites":{sites},"convolutions":{convolutions}}}"#)
    };
    let line = metadata(r#"{"c":{"kernel":[2],"stride":[1],"padding":[1]}}"#);
    let file = || tensors(Some(&line), &[("c", "BF16", &[2, 2, 3])]);
    let set_of = set(&[("a.safetensors", file()), ("b.safetensors", file())]).unwrap();
    let site = set_of.site("c").unwrap();
    assert_eq!((site.width, site.rows(), site.bytes()), (4, 16, 2 * 12 * 2));
    let image = |first: f64| {
        let at = |channel: f64, place: usize| match place {
            1..=3 => first + channel * 3.0 + place as f64 - 1.0,
            _ => 0.0,
        };
        let patch = move |place| [at(0.0, place), at(0.0, place + 1), at(1.0, place), at(1.0, place + 1)];
        (0..4).flat_map(patch).collect::<Vec<f64>>()
    };
    let expected = [image(0.0), image(6.0), image(0.0), image(6.0)].concat();
    for rows in [1, 3, 100] {
        assert_eq!(stream(&set_of, "c", rows), expected);
    }

    let padding = 1 << 28;
    let many = metadata(&format!(
        r#"{{"c":{{"kernel":[1,1,1],"stride":[1,1,1],"padding":[{padding},{padding},{padding}]}}}}"#
    ));
    refused(
        &[("a", tensors(Some(&many), &[("c", "F32", &[1, 1, 1, 1, 1])]))],
        &expect![[r#"
        Data: a: tensor "c": the shape [1, 1, 1, 1, 1] has too many patches
    "#]],
    );
    let problems = [
        r#"{"c":{"kernel":[2],"stride":[1],"padding":[1],"dilation":[2]}}"#,
        r#"{"c":{"kernel":[2,2],"stride":[1,1],"padding":[0,0]}}"#,
        r#"{"d":{"kernel":[2],"stride":[1],"padding":[1]}}"#,
        r#"{"c":{"kernel":[2]}}"#,
    ]
    .map(|convolutions| {
        let file = tensors(Some(&metadata(convolutions)), &[("c", "F32", &[2, 2, 3])]);
        shown(&set(&[("a.safetensors", file)]).unwrap_err(), Path::new("-"))
    });
    expect![[r#"
        Data: a.safetensors: tensor "c": convolutions with dilation [2] are not supported
            help: PEFT would adapt such a layer without the dilation, which is wrong: remove it from the recording
        Data: a.safetensors: tensor "c": expected [images, channels, 2 axes of space], found [2, 2, 3]
            help: record the input of the convolution unchanged, or unfolded patches without a metadata entry
        Data: a.safetensors: the metadata contains the convolution "d", but the file has no tensor with this name
        Data: a.safetensors: invalid activation metadata: "c": missing field `stride` at line 1 column 90
            help: write the metadata entry "cntlora" as {"format":"activations","version":1,"sites":{"<site>":["<module>", ...]}}
    "#]].assert_eq(&problems.concat());
}

#[test]
fn read_errors_name_file_and_tensor() {
    struct BadSector(Vec<u8>);
    impl ReadAt for BadSector {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            // Only the last number cannot be read.
            if offset + 4 == ReadAt::len(self) {
                return Err(io::Error::other("bad sector"));
            }
            buffer.copy_from_slice(&self.0[offset as usize..][..buffer.len()]);
            Ok(())
        }
    }
    let bytes = tensors(None, &[("q", "F32", &[5, 1])]);
    let source = Source::from_reader("a".into(), Box::new(BadSector(bytes)));
    let set = ActivationSet::from_sources(vec![source]).unwrap();
    let site = set.site("q").unwrap();
    let mut blocks = set.blocks(site, site.spans(0..site.rows(), 2, Vec::new()));
    assert!(blocks.next().unwrap().is_some());
    assert!(blocks.next().unwrap().is_some());
    let problem = blocks.next().unwrap_err();
    assert_eq!(problem.to_string(), r#"a: tensor "q": cannot read: bad sector"#);
    assert_eq!(problem.category(), Category::Io);
    assert!(blocks.next().unwrap().is_none());
}
