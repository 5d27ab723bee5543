//! Files that are called `.npy`.

use super::{activations_refused, npy};
use crate::small::{Small, WIDTH};
use expect_test::expect;
use std::fs;

/// What stands in the place of an array is named.
#[test]
fn what_is_something_else_is_named() {
    let small = Small::new();
    for (bytes, message) in [
        (
            b"".as_slice(),
            expect![[r#"
            error: block.mlp.npy: expected a .npy file, found an empty one
              help: write it with numpy.save, or download it again
        "#]],
        ),
        (
            b"\x93",
            expect![[r#"
            error: block.mlp.npy: expected a .npy file, which begins with "\x93NUMPY"
              help: write it with numpy.save, or download it again
        "#]],
        ),
        (
            b"\x93NUMPY",
            expect![[r#"
            error: block.mlp.npy: the file has 6 bytes, but its header has at least 10
              help: write it with numpy.save, or download it again
        "#]],
        ),
        (
            b"\x93NUMPY\x01\0\x10",
            expect![[r#"
            error: block.mlp.npy: the file has 9 bytes, but its header has at least 10
              help: write it with numpy.save, or download it again
        "#]],
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            expect![[r#"
            error: block.mlp.npy: expected a .npy file, found a Git LFS pointer, not the file it stands for
              help: run `git lfs pull` in its repository
        "#]],
        ),
        (
            b"<html><body>404</body></html>",
            expect![[r#"
            error: block.mlp.npy: expected a .npy file, found a web page, perhaps the message of a server that refused the download
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
            error: block.mlp.npy: expected a .npy file, found a Python pickle, which could run any code when it is loaded
              help: save the tensors as safetensors
        "#]],
        ),
        (
            b"\x02\0\0\0\0\0\0\0{}",
            expect![[r#"
            error: block.mlp.npy: expected a .npy file, found a safetensors file
              help: give it the extension .safetensors
        "#]],
        ),
    ] {
        activations_refused(&small, "block.mlp.npy", bytes, message);
    }
    // By its name, an archive of arrays is not opened at all: neither bombs nor paths in it matter.
    fs::write(small.path("block.npz"), b"PK\x03\x04\x14\0\0\0").unwrap();
    let words = "plan model.safetensors -a block.npz";
    small.refused(
        words,
        2,
        expect![[r#"
        error: block.npz: expected a folder, a .safetensors file or a .npy file
          help: save the activations with safetensors' save_file or numpy's save
    "#]],
    );
}

/// Headers that numpy does not write, or that ask for what is not there.
#[test]
fn headers_that_cannot_be_read() {
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
            error: block.mlp.npy: its header has 4294967295 bytes, but the limit is 1048576
              help: write it with numpy.save, or download it again
        "#]],
        ),
        (
            b"\x93NUMPY\x04\0\x02\0{}".into(),
            expect![[r#"
            error: block.mlp.npy: expected version 1.0, 2.0 or 3.0 of the format, found 4.0
              help: write it with numpy.save, or download it again
        "#]],
        ),
        (
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 24), }", 0),
            expect![[r#"
            error: block.mlp.npy: expected spaces and one newline to the end at byte 70 of the header, found its end
              help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        "#]],
        ),
        (
            npy("{'descr': '<f4', 'descr': '<f4'}\n", 0),
            expect![[r#"
            error: block.mlp.npy: expected each key once at byte 27 of the header, found "\'"
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
            error: block.mlp.npy: expected the length of an axis, from 0 to 2^63 - 1, at byte 61 of the header, found "("
              help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        "#]],
        ),
        (
            of("'<f4'", "(-2, 24)"),
            expect![[r#"
            error: block.mlp.npy: expected the length of an axis, from 0 to 2^63 - 1, at byte 61 of the header, found "-"
              help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        "#]],
        ),
        (
            of("'<f4'", "(99999999999999999999, 24)"),
            expect![[r#"
            error: block.mlp.npy: expected the length of an axis, from 0 to 2^63 - 1, at byte 61 of the header, found "9"
              help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        "#]],
        ),
        (
            of("'<f4'", "(4611686018427387904, 24)"),
            expect![[r#"
            error: block.mlp.npy: its shape [4611686018427387904, 24] asks for more bytes than any file has
              help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        "#]],
        ),
        (
            of("'<f4'", "()"),
            expect![[r#"
            error: block.mlp.npy: expected an array with at least one axis, found a single number
              help: save an array of shape (rows, columns)
        "#]],
        ),
        (
            of("'<f4'", "(48,)"),
            expect![[r#"
            error: block.mlp.npy: tensor "block.mlp": expected at least one token in all files together, found none that was met
        "#]],
        ),
        (
            of("'|O'", "(2, 24)"),
            expect![[r#"
            error: block.mlp.npy: expected floating point numbers (descr f8, f4, f2, or V2 for bfloat16), found descr |O, Python objects
              help: convert the array with .astype("float32") before numpy.save
        "#]],
        ),
        (
            of("'<i4'", "(2, 24)"),
            expect![[r#"
            error: block.mlp.npy: expected floating point numbers (descr f8, f4, f2, or V2 for bfloat16), found descr <i4, integers
              help: convert the array with .astype("float32") before numpy.save
        "#]],
        ),
        (
            of("[('a', '<f4')]", "(2, 24)"),
            expect![[r#"
            error: block.mlp.npy: expected floating point numbers (descr f8, f4, f2, or V2 for bfloat16), found descr [('a', '<f4')], 'fortran_order': False, 'shape': (2, 24), }, a structured type
              help: convert the array with .astype("float32") before numpy.save
        "#]],
        ),
        (
            of("'<f4'", "(3, 24)"),
            expect![[r#"
            error: block.mlp.npy: its shape [3, 24] asks for 288 bytes, but 192 follow the header: expected 3 rows, found 2
              help: the file is damaged or incomplete: write it again with numpy.save, or download it again
        "#]],
        ),
        (
            of("'<f4'", "(1, 24)"),
            expect![[r#"
            error: block.mlp.npy: its shape [1, 24] asks for 96 bytes, but 192 follow the header: expected 1 rows, found 2
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

/// The same numbers, in every way in which numpy may lay them out, give the same adapter.
#[test]
fn other_layouts_are_read() {
    let small = Small::new();
    const ROWS: usize = 50;
    // Numbers that are the same in every format.
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
