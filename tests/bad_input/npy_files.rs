//! Bad files whose names end in `.npy`.

use super::{activations_refused, npy};
use crate::small::{Small, WIDTH};
use expect_test::expect;
use std::fs;

/// If a file is not an array, the message names its real kind.
#[test]
fn other_kinds_of_files_are_recognized() {
    let small = Small::new();
    for (bytes, message) in [
        (
            b"".as_slice(),
            expect![[r#"
                error: block.mlp.npy: the file is empty
                  help: write it with numpy.save, or download it again
            "#]],
        ),
        (
            b"\x93",
            expect![[r#"
                error: block.mlp.npy: not a .npy file: it does not begin with "\x93NUMPY"
                  help: write it with numpy.save, or download it again
            "#]],
        ),
        (
            b"\x93NUMPY",
            expect![[r#"
                error: block.mlp.npy: the file has 6 bytes, but its header needs at least 10 bytes
                  help: write it with numpy.save, or download it again
            "#]],
        ),
        (
            b"\x93NUMPY\x01\0\x10",
            expect![[r#"
                error: block.mlp.npy: the file has 9 bytes, but its header needs at least 10 bytes
                  help: write it with numpy.save, or download it again
            "#]],
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            expect![[r#"
                error: block.mlp.npy: expected a .npy file, found a Git LFS pointer in place of the file
                  help: run `git lfs pull` in its repository
            "#]],
        ),
        (
            b"<html><body>404</body></html>",
            expect![[r#"
                error: block.mlp.npy: expected a .npy file, found a web page, perhaps an error page of the download server
                  help: download it again
            "#]],
        ),
        (
            b"\x1f\x8b\x08\0\0\0\0\0",
            expect![[r#"
            error: block.mlp.npy: expected a .npy file, found a gzip archive
              help: unpack it first
        "#]],
        ),
        (
            b"PK\x03\x04\x14\0\0\0",
            expect![[r#"
            error: block.mlp.npy: expected a .npy file, found a zip archive, such as an .npz file or a PyTorch checkpoint
              help: unpack an .npz file into its .npy files; save a PyTorch checkpoint as safetensors
        "#]],
        ),
        (
            b"\x80\x05\x95\0\0",
            expect![[r#"
                error: block.mlp.npy: expected a .npy file, found a Python pickle, which can run arbitrary code when it is loaded
                  help: save the tensors as safetensors
            "#]],
        ),
        (
            b"\x02\0\0\0\0\0\0\0{}",
            expect![[r#"
                error: block.mlp.npy: expected a .npy file, found a safetensors file
                  help: rename it to end in .safetensors
            "#]],
        ),
    ] {
        activations_refused(&small, "block.mlp.npy", bytes, message);
    }
    // The tool never opens an `.npz` archive, so archive bombs and paths inside it do no harm.
    fs::write(small.path("block.npz"), b"PK\x03\x04\x14\0\0\0").unwrap();
    let words = "plan model.safetensors -a block.npz";
    small.refused(
        words,
        1,
        expect![[r#"
            error: block.npz: an .npz archive is not read
              help: unpack it into .npy files, which are read: python -m zipfile -e FILE.npz FOLDER
        "#]],
    );
}

/// Refuses headers that numpy does not write, and headers that need more data than the file contains.
#[test]
fn bad_headers_are_refused() {
    let small = Small::new();
    let of = |descr: &str, shape: &str| {
        npy(&format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"), 192)
    };
    let four_gibibytes = [b"\x93NUMPY\x02\0\xff\xff\xff\xff{'descr': ", &[b'('; 100][..]].concat();
    let nested = format!("{}2{}", "(".repeat(9000), ",)".repeat(400));
    for (bytes, message) in [
        (
            four_gibibytes,
            expect![[r#"
                error: block.mlp.npy: the header has 4294967295 bytes, the limit is 1048576
                  help: write it with numpy.save, or download it again
            "#]],
        ),
        (
            b"\x93NUMPY\x04\0\x02\0{}".into(),
            expect![[r#"
                error: block.mlp.npy: unsupported version 4.0 of the npy format: expected 1.0, 2.0 or 3.0
                  help: write it with numpy.save, or download it again
            "#]],
        ),
        (
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 24), }", 0),
            expect![[r#"
                error: block.mlp.npy: expected spaces and one newline to the end at byte 70 of the header, found the end
                  help: the file is damaged or incomplete: write it again with numpy.save, or download it again
            "#]],
        ),
        (
            npy("{'descr': '<f4', 'descr': '<f4'}\n", 0),
            expect![[r#"
                error: block.mlp.npy: expected no duplicate key at byte 27 of the header, found "\'"
                  help: the file is damaged or incomplete: write it again with numpy.save, or download it again
            "#]],
        ),
        (
            npy("{'descr': '<f4', 'align': True}\n", 0),
            expect![[r#"
            error: block.mlp.npy: expected one of the keys descr, fortran_order and shape at byte 27 of the header, found "\'"
              help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        "#]],
        ),
        (
            npy("{'descr': '<f4', 'fortran_order': False}\n", 0),
            expect![[r#"
            error: block.mlp.npy: expected a dictionary with shape at byte 50 of the header, found "\n"
              help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        "#]],
        ),
        (
            of("'<f4'", &nested),
            expect![[r#"
                error: block.mlp.npy: expected the length of an axis (0 to 2^63 - 1) at byte 61 of the header, found "("
                  help: the file is damaged or incomplete: write it again with numpy.save, or download it again
            "#]],
        ),
        (
            of("'<f4'", "(-2, 24)"),
            expect![[r#"
                error: block.mlp.npy: expected the length of an axis (0 to 2^63 - 1) at byte 61 of the header, found "-"
                  help: the file is damaged or incomplete: write it again with numpy.save, or download it again
            "#]],
        ),
        (
            of("'<f4'", "(99999999999999999999, 24)"),
            expect![[r#"
                error: block.mlp.npy: expected the length of an axis (0 to 2^63 - 1) at byte 61 of the header, found "9"
                  help: the file is damaged or incomplete: write it again with numpy.save, or download it again
            "#]],
        ),
        (
            of("'<f4'", "(4611686018427387904, 24)"),
            expect![[r#"
                error: block.mlp.npy: shape [4611686018427387904, 24] is too large for a file
                  help: the file is damaged or incomplete: write it again with numpy.save, or download it again
            "#]],
        ),
        (
            of("'<f4'", "()"),
            expect![[r#"
                error: block.mlp.npy: the file contains a single number, not an array with axes
                  help: save an array of shape (rows, columns)
            "#]],
        ),
        (
            of("'<f4'", "(48,)"),
            expect![[r#"
                error: block.mlp.npy: tensor "block.mlp": all token counts are zero in all files
            "#]],
        ),
        (
            of("'|O'", "(2, 24)"),
            expect![[r#"
                error: block.mlp.npy: the array holds Python objects, such as rows of different lengths, and not numbers
                  help: join them into one array of numbers before numpy.save: numpy.concatenate(list(array)).astype("float32")
            "#]],
        ),
        (
            of("'<i4'", "(2, 24)"),
            expect![[r#"
                error: block.mlp.npy: unsupported number format (descr) <i4 (integers): expected f8, f4, f2, or V2 for bfloat16
                  help: convert the array with .astype("float32") before numpy.save
            "#]],
        ),
        (
            of("[('a', '<f4')]", "(2, 24)"),
            expect![[r#"
                error: block.mlp.npy: the array holds elements of a structured type, with several fields each, and not numbers
                  help: save one field, array["NAME"], or numpy.lib.recfunctions.structured_to_unstructured(array)
            "#]],
        ),
        (
            of("'<f4'", "(3, 24)"),
            expect![[r#"
                error: block.mlp.npy: shape [3, 24] needs 288 bytes, but 192 bytes follow the header: expected 3 rows, found 2
                  help: the file is damaged or incomplete: write it again with numpy.save, or download it again
            "#]],
        ),
        (
            of("'<f4'", "(1, 24)"),
            expect![[r#"
                error: block.mlp.npy: shape [1, 24] needs 96 bytes, but 192 bytes follow the header: expected 1 rows, found 2
                  help: the file is damaged or incomplete: write it again with numpy.save, or download it again
            "#]],
        ),
    ] {
        activations_refused(&small, "block.mlp.npy", &bytes, message);
    }
    let cube = "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 1, 24), }\n";
    activations_refused(
        &small,
        "block.mlp.npy",
        &npy(cube, 192),
        expect![[r#"
        error: block.mlp.npy: expected two axes in Fortran order, found the shape [2, 1, 24]
          help: save numpy.ascontiguousarray of it
    "#]],
    );
}

/// The same numbers give the same adapter in every layout that numpy can write.
#[test]
fn other_layouts_are_read() {
    let small = Small::new();
    const ROWS: usize = 50;
    // Every number format stores these numbers exactly.
    let value = |row: usize, column: usize| ((row * 7 + column * column * 3) % 23) as f32 - 11.0;
    let c_order = || (0..ROWS * WIDTH).map(|i| value(i / WIDTH, i % WIDTH));
    let fortran = (0..ROWS * WIDTH).map(|i| value(i % ROWS, i / ROWS));
    let little: Vec<u8> = c_order().flat_map(f32::to_le_bytes).collect();
    let big = c_order().flat_map(f32::to_be_bytes).collect();
    let wide = c_order().flat_map(|value| f64::from(value).to_le_bytes()).collect();
    let brain = c_order().flat_map(|value| half::bf16::from_f32(value).to_le_bytes()).collect();
    let columns = fortran.flat_map(f32::to_le_bytes).collect();
    let layouts: [(&[u8], &str, &str, Vec<u8>); 7] = [
        (b"\x01\0", "<f4", "False", little.clone()),
        (b"\x02\0", "<f4", "False", little.clone()),
        (b"\x03\0", "<f4", "False", little),
        (b"\x01\0", ">f4", "False", big),
        (b"\x01\0", "<f8", "False", wide),
        (b"\x01\0", "|V2", "False", brain),
        (b"\x01\0", "<f4", "True", columns),
    ];
    let mut first = None;
    for (index, (version, descr, order, data)) in layouts.iter().enumerate() {
        let dictionary =
            format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': ({ROWS}, {WIDTH}), }}\n");
        let length = (dictionary.len() as u32).to_le_bytes();
        let length = if version[0] == 1 { &length[..2] } else { &length };
        let bytes = [b"\x93NUMPY", *version, length, dictionary.as_bytes(), data].concat();
        fs::write(small.path("block.mlp.npy"), bytes).unwrap();
        let out = format!("out-{index}");
        small.succeed(&format!("init model.safetensors -a block.mlp.npy --rank 4 -o {out}"));
        let factors = small.bytes(&out).remove("adapter_model.safetensors").unwrap();
        assert!(factors == *first.get_or_insert(factors.clone()), "{descr}, Fortran order {order}");
    }
}
