//! The stream of a site against the numbers that were stored, and every complaint with its words.

use super::*;
use crate::simd::Values;
use crate::storage::{Category, ReadAt, safetensors};
use npyz::{Order, WriterBuilder};
use quickcheck::quickcheck;
use std::fs;
use std::io;

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

/// What npyz makes of numbers that are given in C order.
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

/// A site whose parts have these numbers of rows, in no file.
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
    let recorded = Recorded::Rows(rows.iter().map(part).collect());
    Site { name: "q".into(), width: 1, modules: Vec::new(), recorded, first_file: 0 }
}

quickcheck! {
    /// Begun at any row, the stream is the rest of the whole, and the files are told that hold those rows.
    fn streams_begin_at_any_row(splits: Vec<u8>, first: u64, block: u8) -> bool {
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

    /// Whatever the formats and the blocks, and however the rows are split into files, the rows come out as they went in.
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
fn blocks_say_where_they_are_from() {
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

/// One complaint for these files, with these words, and of this category.
#[track_caller]
fn refused(files: &[(&str, Vec<u8>)], words: &str) {
    let problems = set(files).expect_err(words);
    assert_eq!(problems.0.len(), 1, "{problems}");
    assert!(problems.to_string().contains(words), "expected {words:?} in: {problems}");
    assert_eq!(problems.category(), Category::Data);
}

#[test]
fn shapes_and_number_formats_are_checked() {
    let one = |dtype: &str, shape: &[u64]| vec![("a", tensors(None, &[("q", dtype, shape)]))];
    refused(&one("I64", &[2, 2]), r#"tensor "q": expected F64, F32, F16 or BF16 numbers, found "I64""#);
    refused(&one("F32", &[0]), "expected the shape [rows, width] or [..., width], found [0]");
    refused(&one("F32", &[]), "found a single number");
    refused(&one("F32", &[4, 0]), "found [4, 0]");
    refused(&one("F32", &[0, 1 << 40, 1 << 40]), "expected at least one row");
    refused(&one("F32", &[0, 4]), "expected at least one row in all files together, found none");
    refused(&[("a", tensors(None, &[]))], "expected activations, found no tensor in any file");
    refused(
        &[("a", tensors(None, &[("q", "F32", &[1, 2])])), ("b", tensors(None, &[("q", "F32", &[1, 3])]))],
        r#"b: tensor "q": expected rows of 2 numbers as in "a", found rows of 3"#,
    );
    let header = r"{'descr': '<f4', 'fortran_order': True, 'shape': (1, 1, 1), }";
    let mut bytes = b"\x93NUMPY\x01\0".to_vec();
    bytes.extend((header.len() as u16 + 1).to_le_bytes());
    bytes.extend(header.bytes().chain(*b"\n\0\0\0\0"));
    refused(&[("q.npy", bytes)], "expected two axes in Fortran order, found the shape [1, 1, 1]");
}

#[test]
fn metadata_is_checked() {
    let q = |metadata: &str| tensors(Some(metadata), &[("q", "F32", &[1, 2])]);
    let one = |metadata: &str| vec![("a", q(metadata))];
    refused(&one("{"), r#"a: the metadata entry "cntlora" cannot be understood"#);
    refused(&one("[]"), "cannot be understood");
    refused(&one(r#"{"format":"activations","version":-1,"sites":{}}"#), "cannot be understood");
    refused(&one(r#"{"format":"activations","version":2}"#), "found 2: it was written by a newer version");
    refused(&one(r#"{"format":"activations","version":0}"#), "expected version 1");
    refused(
        &one(r#"{"format":"moments","version":1}"#),
        r#"expected a file of activations, found one of "moments""#,
    );
    refused(&one(&sites(r#"{"q":["a"],"q":["b"]}"#)), r#"duplicate key "q""#);
    refused(&one(&sites(r#"{"q":[]}"#)), r#"names no module for site "q""#);
    refused(&one(&sites(r#"{"p":["a"]}"#)), r#"names the site "p", but no file has such a tensor"#);
    refused(
        &[("a", q(&sites(r#"{"q":["a","b"]}"#))), ("b", q(&sites(r#"{"q":["a","c"]}"#)))],
        r#"b: expected the modules "a", "b" of site "q" as in "a", found "a", "c""#,
    );
    refused(
        &[(
            "a",
            tensors(Some(&sites(r#"{"q":["q","k"]}"#)), &[("q", "F32", &[1, 2]), ("k", "F32", &[1, 2])]),
        )],
        r#"the module "k" is named by two sites, "k" and "q", but has one input"#,
    );
    // What a later release may add at the same version is no reason to refuse.
    let more = r#"{"format":"activations","version":1,"sites":{"q":["m"]},"recorded_with":"x"}"#;
    assert_eq!(set(&one(more)).unwrap().site("q").unwrap().modules, ["m"]);
}

/// One axis is how often each token was met, whatever the format, and files add up.
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
    let expected = "tensor \"e\": expected how often each token was met, whole numbers from 0 on, since it has one axis, found";
    refused(&floats(&[2.0, 0.5]), &format!("{expected} 0.5 for token 1"));
    refused(&floats(&[-2.0]), &format!("{expected} -2 for token 0"));
    refused(
        &floats(&[0.0, 0.0]),
        "expected at least one token in all files together, found none that was met",
    );
    let negative = [5_i32, -1].iter().flat_map(|count| count.to_le_bytes()).collect();
    refused(&[("a", integers("I32", negative, 2))], &format!("{expected} -1 for token 1"));
    refused(&[("a", integers("BOOL", vec![1], 1))], "expected counts of tokens as whole numbers");
    refused(&[("e.npy", npy_of("<i2", &[2], &[1, 0, 0xff, 0xff]))], "found -1 for token 1");
    refused(&[("e.npy", npy_of("<i2", &[2, 1], &[1, 0, 2, 0]))], "found descr <i2, integers");
    let longer = ("b", integers("U8", vec![1, 1], 2));
    refused(
        &[("a", integers("I64", wide.clone(), 3)), longer],
        "expected counts of 3 tokens as in \"a\", found counts of 2",
    );
    let rows = ("b", tensors(None, &[("e", "F32", &[2, 3])]));
    refused(
        &[("a", integers("I64", wide, 3)), rows],
        "expected rows of 3 numbers as in \"b\", found counts of tokens",
    );
    let many = || tensors(None, &[("e", "F16", &[(1 << 24) + 1])]);
    refused(
        &[("a", many())],
        "tensor \"e\": expected counts of at most 16777216 tokens, since it has one axis, found 16777217 numbers",
    );
    let huge: Vec<u8> = [u64::MAX, 0].iter().flat_map(|count| count.to_le_bytes()).collect();
    let one = ("b", integers("U8", vec![1, 0], 2));
    refused(&[("a", integers("U64", huge.clone(), 2)), one], "are too large to be added");
    let one = ("b", integers("U8", vec![0, 1], 2));
    refused(&[("a", integers("U64", huge, 2)), one], "the number of tokens is 18446744073709552000");
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
fn complaints_of_all_files_come_together() {
    let problems = set(&[
        ("a", tensors(None, &[("p", "I64", &[1, 1]), ("q", "F32", &[0])])),
        ("b.npy", b"no numpy file".to_vec()),
        ("c", tensors(Some("?"), &[("q", "U64", &[8, 1])])),
    ])
    .unwrap_err();
    assert_eq!(problems.0.len(), 5, "{problems}");
}

#[test]
fn folders_are_searched_and_read_in_order() {
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

#[test]
fn paths_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("empty")).unwrap();
    fs::write(path("q.safetensors"), tensors(None, &[("q", "F32", &[1, 1])])).unwrap();
    fs::write(path("q.txt"), "text").unwrap();
    std::os::unix::fs::symlink("q.safetensors", path("again.safetensors")).unwrap();
    let problem = |paths: &[&str]| {
        let paths: Vec<_> = paths.iter().map(|name| path(name)).collect();
        let problems = ActivationSet::open(&paths, Access::Auto).unwrap_err();
        assert_eq!(problems.0.len(), 1, "{problems}");
        (problems.to_string(), problems.category())
    };
    for (paths, words, category) in [
        (&[][..], "expected at least one file or folder", Category::Usage),
        (&["empty"], "expected .safetensors or .npy files in the folder, found none", Category::Usage),
        (&["q.txt"], "expected a folder, a .safetensors file or a .npy file", Category::Usage),
        (&["missing"], "cannot open", Category::Io),
        (&["q.safetensors", "q.safetensors"], "the same file is given twice", Category::Usage),
        (&["q.safetensors", "again.safetensors"], "the same file is given twice", Category::Usage),
    ] {
        let (text, found) = problem(paths);
        assert!(text.contains(words), "expected {words:?} in: {text}");
        assert_eq!(found, category, "{text}");
    }
}

/// Patches that are unfolded while they are read are those that the metadata describes, whatever the blocks and the files.
#[test]
fn inputs_of_convolutions_are_unfolded_while_they_are_read() {
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

    for (convolutions, complaint) in [
        (r#"{"c":{"kernel":[2],"stride":[1],"padding":[1],"dilation":[2]}}"#, "dilation [2]"),
        (r#"{"c":{"kernel":[2,2],"stride":[1,1],"padding":[0,0]}}"#, "2 axes of space], found [2, 2, 3]"),
        (r#"{"d":{"kernel":[2],"stride":[1],"padding":[1]}}"#, r#"describes the convolution "d""#),
        (r#"{"c":{"kernel":[2]}}"#, "missing field `stride`"),
    ] {
        let file = tensors(Some(&metadata(convolutions)), &[("c", "F32", &[2, 2, 3])]);
        let problems = set(&[("a.safetensors", file)]).unwrap_err();
        assert!(problems.to_string().contains(complaint), "{problems}");
        assert_eq!(problems.category(), Category::Data);
    }
}

#[test]
fn a_failure_of_reading_names_file_and_tensor() {
    struct BadSector(Vec<u8>);
    impl ReadAt for BadSector {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            // Only the last number cannot be read: the header can.
            if offset + 4 == ReadAt::len(self) {
                return Err(io::Error::other("bad sector"));
            }
            self.0.read_exact_at(buffer, offset)
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
