//! Unusual numbers in activations and weights.

use super::{matrix, npy, safetensors};
use crate::small::{ROWS, Small, WIDTH};
use expect_test::{Expect, expect};
use serde_json::Value;
use std::fs;

/// Returns rows that look random but are always the same.
fn rows(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count * WIDTH).map(|_| next()).collect()
}

/// Unusual activations give an adapter that `verify` accepts, and that is therefore finite, or the run is refused with a reason.
#[test]
fn unusual_activations_give_a_finite_adapter_or_a_reason() {
    let small = Small::new();
    let mut constant = rows(200);
    let mut doubled = rows(200);
    for (constant, doubled) in constant.chunks_mut(WIDTH).zip(doubled.chunks_mut(WIDTH)) {
        constant[3] = 5.0;
        doubled[3] = doubled[4];
    }
    let scaled = |factor: f32| rows(200).into_iter().map(|value| value * factor).collect();
    let cases: [(&str, Vec<f32>, Option<Expect>); 10] = [
        ("a column that never changes", constant, None),
        ("two columns alike", doubled, None),
        ("fewer rows than columns", rows(10), None),
        ("fewer rows than ranks", rows(2), None),
        (
            "one row",
            rows(1),
            Some(expect![[r#"
                1 layer at 1 site, 96 B of activations to read, about [size] of memory
                warning: left out: block.mlp: site block.mlp: all rows of activations are equal: there is nothing to initialize from
                error: tensor "block.mlp": all rows of activations are equal: there is nothing to initialize from
                  help: record more and different inputs
            "#]]),
        ),
        (
            "no rows",
            vec![],
            Some(expect![[r#"
                error: a.safetensors: tensor "block.mlp": this site has no rows in any file
            "#]]),
        ),
        (
            "nothing but zeros",
            vec![0.0; 50 * WIDTH],
            Some(expect![[r#"
                1 layer at 1 site, 4.8 kB of activations to read, about [size] of memory
                warning: left out: block.mlp: site block.mlp: all activations are zero: there is nothing to initialize from
                error: tensor "block.mlp": all activations are zero: there is nothing to initialize from
                  help: record more and different inputs
            "#]]),
        ),
        (
            "subnormal numbers",
            scaled(1e-40),
            Some(expect![[r#"
                1 layer at 1 site, 19.2 kB of activations to read, about [size] of memory
                warning: left out: block.mlp: site block.mlp: the squares of the activations are too small for f32: there is nothing to initialize from
                error: tensor "block.mlp": the squares of the activations are too small for f32: there is nothing to initialize from
                  help: record more and different inputs
            "#]]),
        ),
        (
            "squares beyond f32",
            scaled(1e25),
            Some(expect![[r#"
                1 layer at 1 site, 19.2 kB of activations to read, about [size] of memory
                warning: left out: block.mlp: site block.mlp: second moment of the activations holds a value that is not finite
                error: tensor "block.mlp": second moment of the activations holds a value that is not finite
                  help: inspect the recorded numbers with `cntlora inspect FILE --values`
            "#]]),
        ),
        (
            "infinity",
            scaled(f32::INFINITY),
            Some(expect![[r#"
                1 layer at 1 site, 19.2 kB of activations to read, about [size] of memory
                error: a.safetensors: tensor "block.mlp": row 0, column 0 is not a finite f32 number
                  help: record these activations again, or skip such rows with --nonfinite skip-rows; `cntlora inspect --values` counts such numbers
            "#]]),
        ),
    ];
    for (case, values, message) in cases {
        fs::write(small.path("a.safetensors"), matrix("block.mlp", WIDTH, &values)).unwrap();
        let words =
            "init model.safetensors -a a.safetensors --rank 4 --coupling transport --force --restart -o out";
        println!("{case}");
        if let Some(message) = message {
            small.refused(words, 1, message);
        } else {
            small.succeed(words);
            small.succeed("verify out --base model.safetensors");
        }
    }
}

/// A number beyond f32 counts as infinite, and so does a number that overflowed when it was recorded in f16. The message gives its row
/// and column.
#[test]
fn numbers_beyond_f32_are_refused_with_their_place() {
    let small = Small::new();
    for (format, number, message) in [
        (
            "<f8",
            &1e300_f64.to_le_bytes()[..],
            expect![[r#"
                1 layer at 1 site, 384 B of activations to read, about [size] of memory
                error: block.mlp.npy: tensor "block.mlp": row 1, column 23 is not a finite f32 number
                  help: record these activations again, or skip such rows with --nonfinite skip-rows; `cntlora inspect --values` counts such numbers
            "#]],
        ),
        (
            "<f2",
            &[0x00, 0x7c],
            expect![[r#"
                1 layer at 1 site, 96 B of activations to read, about [size] of memory
                error: block.mlp.npy: tensor "block.mlp": row 1, column 23 is not a finite f32 number
                  help: record these activations again, or skip such rows with --nonfinite skip-rows; `cntlora inspect --values` counts such numbers
            "#]],
        ),
    ] {
        let dictionary =
            format!("{{'descr': '{format}', 'fortran_order': False, 'shape': (2, {WIDTH}), }}\n");
        let mut bytes = npy(&dictionary, 2 * number.len() * WIDTH);
        let last = bytes.len() - number.len();
        bytes[last..].copy_from_slice(number);
        fs::write(small.path("block.mlp.npy"), bytes).unwrap();
        let words = "init model.safetensors -a block.mlp.npy --rank 4 --restart -o out";
        small.refused(words, 1, message);
    }
}

/// NaN ends the run with a message that gives its row and column. With `--nonfinite skip-rows`, rows with NaN are left out and counted.
#[test]
fn nan_is_refused_or_its_rows_are_left_out() {
    let small = Small::new();
    let mut values = rows(100);
    values[7 * WIDTH + 5] = f32::NAN;
    fs::write(small.path("target/9.safetensors"), matrix("block.mlp", WIDTH, &values)).unwrap();
    let words = "init model.safetensors -a target --target mlp --rank 4 -o out";
    small.refused(words, 1, expect![[r#"
        1 layer at 1 site, 403.2 kB of activations to read, about [size] of memory
        error: target/9.safetensors: tensor "block.mlp": row 7, column 5 is not a finite f32 number
          help: record these activations again, or skip such rows with --nonfinite skip-rows; `cntlora inspect --values` counts such numbers
    "#]]);
    assert!(!small.path("out/adapter_config.json").exists());
    let report = small.succeed(&format!("{words} --nonfinite skip-rows --restart --json"));
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    let site = &report["sites"][0];
    assert_eq!(site["skipped_rows"], 1);
    assert_eq!(site["rows"], ROWS.iter().sum::<usize>() + 99);
}

/// Refuses weights that are not finite, and factors that the format of the adapter cannot hold.
#[test]
fn weights_that_cannot_be_used_are_refused() {
    let small = Small::new();
    let values = |value: f32| {
        let mut values = rows(40);
        values[30] = value;
        values[99] = value;
        matrix("block.mlp.weight", WIDTH, &values)
    };
    for (value, message) in [
        (
            f32::NAN,
            expect![[r#"
                1 layer at 1 site, 393.6 kB of activations to read, about [size] of memory
                error: bad.safetensors: tensor "block.mlp.weight": the weight contains a value that is not finite: NaN in row 1, column 6 of module "block.mlp", and 1 more
                  help: download or convert the checkpoint again, or exclude this layer with --exclude '^block\.mlp$'
            "#]],
        ),
        (
            f32::NEG_INFINITY,
            expect![[r#"
                1 layer at 1 site, 393.6 kB of activations to read, about [size] of memory
                error: bad.safetensors: tensor "block.mlp.weight": the weight contains a value that is not finite: -inf in row 1, column 6 of module "block.mlp", and 1 more
                  help: download or convert the checkpoint again, or exclude this layer with --exclude '^block\.mlp$'
            "#]],
        ),
    ] {
        fs::write(small.path("bad.safetensors"), values(value)).unwrap();
        let words = "init bad.safetensors -a target --target mlp --rank 4 -o out";
        small.refused(words, 1, message);
    }
    fs::write(small.path("large.safetensors"), values(1e18)).unwrap();
    let words =
        "init large.safetensors -a target --target mlp --rank 4 --start mirrored --dtype f16 -o large";
    small.refused(words, 1, expect![[r#"
        1 layer at 1 site, 393.6 kB of activations to read, about [size] of memory
        error: tensor "base_model.model.block.mlp.lora_A.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.mlp.lora_B.weight": row 1, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        2 problems were found
    "#]]);
}

/// Files of one recording may have different number formats. Only the numbers matter.
#[test]
fn number_formats_may_differ_between_files() {
    let small = Small::new();
    let words = "init model.safetensors -a rows --rank 4 --force -o out";
    let values = rows(100);
    fs::create_dir(small.path("rows")).unwrap();
    fs::write(small.path("rows/0.safetensors"), matrix("block.mlp", WIDTH, &values)).unwrap();
    let values: Vec<f32> = values.iter().map(|value| -value).collect();
    fs::write(small.path("rows/1.safetensors"), matrix("block.mlp", WIDTH, &values)).unwrap();
    small.succeed(words);
    let alike = small.bytes("out").remove("adapter_model.safetensors");
    let data: Vec<u8> = values.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect();
    let header = format!(
        r#"{{"block.mlp":{{"dtype":"F64","shape":[100,{WIDTH}],"data_offsets":[0,{}]}}}}"#,
        data.len()
    );
    fs::write(small.path("rows/1.safetensors"), [safetensors(header, 0), data].concat()).unwrap();
    small.succeed(words);
    assert!(alike.is_some() && small.bytes("out").remove("adapter_model.safetensors") == alike);
}
