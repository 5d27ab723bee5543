//! Tests that a user can follow the advice of each error message while the progress of the failed run is still there.

#[path = "small/progress.rs"]
mod progress;
mod small;

use cntlora::element::Element;
use cntlora::random::gaussian;
use cntlora::storage::safetensors;
use expect_test::{Expect, expect};
use progress::leave_progress;
use serde_json::Value;
use small::{Small, WIDTH};
use std::collections::BTreeMap;
use std::fs::{self, File};

const INIT: &str = "init model.safetensors -a target --rank 4 --checkpoint-every 0 -o out";

/// Writes the model of [`Small`] with a changed weight of `block.mlp`.
fn write_model(small: &Small, name: &str, change: fn(f64) -> f64) {
    let tensors = [("block.query", 20), ("block.value", 12), ("block.mlp", 40)].map(|(name, outputs)| {
        let weight = gaussian::<f32>(outputs, WIDTH, 5, name);
        let numbers = (0..outputs * WIDTH).map(|i| f64::from(weight[(i / WIDTH, i % WIDTH)]));
        let numbers = numbers.map(|number| if name == "block.mlp" { change(number) } else { number });
        let mut bytes = Vec::new();
        Element::F32.encode(numbers, &mut bytes);
        (format!("{name}.weight"), ("F32".to_owned(), vec![outputs as u64, WIDTH as u64], bytes))
    });
    let mut file = File::create(small.path(name)).unwrap();
    safetensors::write(&mut file, &BTreeMap::new(), &BTreeMap::from(tensors)).unwrap();
}

/// Writes the recording `zeros`. All rows of `block.mlp` are zero. The rows of the other sites are random.
fn write_zeros(small: &Small) {
    fs::create_dir(small.path("zeros")).unwrap();
    for name in ["block.query", "block.value", "block.mlp"] {
        let rows = gaussian::<f32>(600, WIDTH, 3, name);
        let scale = if name == "block.mlp" { 0.0 } else { 1.0 };
        let numbers = (0..600 * WIDTH).map(|i| scale * f64::from(rows[(i / WIDTH, i % WIDTH)]));
        let mut bytes = Vec::new();
        Element::F32.encode(numbers, &mut bytes);
        let tensors = BTreeMap::from([(name.to_owned(), ("F32".to_owned(), vec![600, WIDTH as u64], bytes))]);
        let mut file = File::create(small.path(&format!("zeros/{name}.safetensors"))).unwrap();
        safetensors::write(&mut file, &BTreeMap::new(), &tensors).unwrap();
    }
}

/// Runs a command that must fail with this advice, then runs the command that follows the advice. The progress of the failed
/// command is still there.
#[track_caller]
fn follow(small: &Small, failing: &str, code: i32, advice: Expect, followed: &str) {
    let said = small.refused(failing, code, advice);
    assert!(said.contains("The progress is kept in \"out.partial\""), "{said}");
    assert!(small.path("out.partial/job.json").exists());
    small.succeed(followed);
    assert!(!small.path("out.partial").exists());
    fs::remove_dir_all(small.path("out")).unwrap();
}

/// Returns the text between two marks.
fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    text.split_once(start)
        .and_then(|(_, rest)| rest.split_once(end))
        .map(|(found, _)| found)
        .expect("is said")
}

/// After a weight that is not finite, the printed `--exclude` option works.
#[test]
fn the_layer_of_a_nonfinite_weight_can_be_excluded() {
    let small = Small::new();
    write_model(&small, "model.safetensors", |_| f64::NAN);
    let said = small.refused(INIT, 1, expect![[r#"
        3 layers at 2 sites, 787.2 kB of activations to read, about [size] of memory
        error: model.safetensors: tensor "block.mlp.weight": the weight contains a value that is not finite: NaN in row 0, column 0 of module "block.mlp", and 959 more
          help: download or convert the checkpoint again, or exclude this layer with --exclude '^block\.mlp$'
    "#]]);
    let exclude = between(&said, "exclude this layer with --exclude '", "'").to_owned();
    assert_eq!(exclude, r"^block\.mlp$");
    follow(
        &small,
        INIT,
        1,
        expect![[r#"
            3 layers at 2 sites, 787.2 kB of activations to read, about [size] of memory
            Continuing from the progress in "out.partial"; --restart starts again
            error: model.safetensors: tensor "block.mlp.weight": the weight contains a value that is not finite: NaN in row 0, column 0 of module "block.mlp", and 959 more
              help: download or convert the checkpoint again, or exclude this layer with --exclude '^block\.mlp$'
        "#]],
        &format!("{INIT} --exclude {exclude}"),
    );
    // The run also continues after two changes at once: a repaired checkpoint and a larger ridge.
    small.refused(INIT, 1, expect![[r#"
        3 layers at 2 sites, 787.2 kB of activations to read, about [size] of memory
        error: model.safetensors: tensor "block.mlp.weight": the weight contains a value that is not finite: NaN in row 0, column 0 of module "block.mlp", and 959 more
          help: download or convert the checkpoint again, or exclude this layer with --exclude '^block\.mlp$'
    "#]]);
    write_model(&small, "model.safetensors", |number| number);
    small.succeed(&format!("{INIT} --ridge 1"));
}

/// After a failed run with `--strict`, each of three changes works: remove `--strict`, exclude the layer, or remove `--strict` and
/// give a larger ridge.
#[test]
fn a_failed_strict_run_can_continue_without_strict_or_without_the_layer() {
    let small = Small::new();
    write_zeros(&small);
    let words = "init model.safetensors -a zeros --rank 4 --checkpoint-every 0 -o out";
    let strict = format!("{words} --strict");
    follow(
        &small,
        &strict,
        1,
        expect![[r#"
            3 layers at 3 sites, 172.8 kB of activations to read, about [size] of memory
            error: tensor "block.mlp": all activations are zero: there is nothing to initialize from
              help: remove --strict to continue without this site, or record more and different inputs
        "#]],
        words,
    );
    follow(
        &small,
        &strict,
        1,
        expect![[r#"
            3 layers at 3 sites, 172.8 kB of activations to read, about [size] of memory
            error: tensor "block.mlp": all activations are zero: there is nothing to initialize from
              help: remove --strict to continue without this site, or record more and different inputs
        "#]],
        &format!("{strict} --exclude mlp"),
    );
    follow(
        &small,
        &strict,
        1,
        expect![[r#"
            3 layers at 3 sites, 172.8 kB of activations to read, about [size] of memory
            error: tensor "block.mlp": all activations are zero: there is nothing to initialize from
              help: remove --strict to continue without this site, or record more and different inputs
        "#]],
        &format!("{words} --ridge 1"),
    );
    // Other recordings have other sums, so the message names --restart.
    let said = small.refused(
        &strict,
        1,
        expect![[r#"
        3 layers at 3 sites, 172.8 kB of activations to read, about [size] of memory
        error: tensor "block.mlp": all activations are zero: there is nothing to initialize from
          help: remove --strict to continue without this site, or record more and different inputs
    "#]],
    );
    assert!(said.contains("for other activations give --restart"), "{said}");
    small.succeed("init model.safetensors -a target --rank 4 -o out --strict --restart");
}

/// After a row that is not finite, `--nonfinite skip-rows` works.
#[test]
fn nonfinite_rows_can_be_skipped() {
    let small = Small::new();
    let path = small.path("target/2.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(path, bytes).unwrap();
    follow(
        &small,
        INIT,
        1,
        expect![[r#"
            3 layers at 2 sites, 787.2 kB of activations to read, about [size] of memory
            error: target/2.safetensors: tensor "block.mlp": row 1899, column 23 is not a finite f32 number
              help: record these activations again, or skip such rows with --nonfinite skip-rows; `cntlora inspect --values` counts such numbers
        "#]],
        &format!("{INIT} --nonfinite skip-rows"),
    );
}

/// A run learns only at its end that all ranks are 0. After that, `--min-rank 1` works.
#[test]
fn the_minimum_rank_can_be_raised_when_all_ranks_are_zero() {
    let small = Small::new();
    write_model(&small, "model.safetensors", |_| 0.0);
    let words = "init model.safetensors -a target --target mlp --energy 0.5 --checkpoint-every 0 -o out";
    follow(
        &small,
        words,
        1,
        expect![[r#"
            1 layer at 1 site, 393.6 kB of activations to read, about [size] of memory
            error: all layers have rank 0, so there is no adapter to write
              help: give --min-rank 1, or a larger --energy, at most 1
        "#]],
        &format!("{words} --min-rank 1"),
    );
}

/// After factors that are too large for F16, another `--dtype` works.
#[test]
fn the_dtype_can_be_changed_when_factors_are_too_large() {
    let small = Small::new();
    let words = format!("{INIT} --start update --strength 1e12");
    follow(
        &small,
        &format!("{words} --dtype f16"),
        1,
        expect![[r#"
            3 layers at 2 sites, 787.2 kB of activations to read, about [size] of memory
            error: tensor "base_model.model.block.mlp.lora_A.weight": row 0, column 0: [number] is too large for F16
              help: write the factors as f32 or bf16
            error: tensor "base_model.model.block.mlp.lora_B.weight": row 0, column 0: [number] is too large for F16
              help: write the factors as f32 or bf16
            error: tensor "base_model.model.block.query.lora_A.weight": row 0, column 0: [number] is too large for F16
              help: write the factors as f32 or bf16
            error: tensor "base_model.model.block.query.lora_B.weight": row 0, column 0: [number] is too large for F16
              help: write the factors as f32 or bf16
            error: tensor "base_model.model.block.value.lora_A.weight": row 0, column 0: [number] is too large for F16
              help: write the factors as f32 or bf16
            error: tensor "base_model.model.block.value.lora_B.weight": row 0, column 0: [number] is too large for F16
              help: write the factors as f32 or bf16
            6 problems were found
        "#]],
        &format!("{words} --dtype bf16"),
    );
}

/// Some options are refused before any work. The values that these messages advise are accepted.
#[test]
fn advised_option_values_are_accepted() {
    let small = Small::new();
    let plan = "plan model.safetensors -a target";
    for (options, advice, followed) in [
        (
            "--rank 13 --start mirrored",
            expect![[r#"
            error: rank 13 is odd, but the mirrored start needs an even rank
              help: give --rank 12 or 14
        "#]],
            "--rank 12 --start mirrored",
        ),
        (
            "--rank 14",
            expect![[r#"
                error: rank 14 is over the limit of "block.value"
                  help: the largest rank that is possible for all layers is 12: give --rank 12, or exclude layers with --exclude
            "#]],
            "--rank 12",
        ),
        (
            "--rank 6 --rank-multiple 4",
            expect![[r#"
            error: rank 6 must be from 0 to 6, in steps of 4
              help: give --rank 4, or change the limits
        "#]],
            "--rank 4 --rank-multiple 4",
        ),
        (
            "--rank 2 --rank-multiple 4",
            expect![[r#"
            error: rank 2 must be from 0 to 2, in steps of 4
              help: give --rank 4 and --max-rank 4
        "#]],
            "--rank 4 --max-rank 4 --rank-multiple 4",
        ),
        (
            "--rank 6 --min-rank 6 --max-rank 8 --rank-multiple 4",
            expect![[r#"
                error: rank 6 must be from 6 to 8, in steps of 4
                  help: give --rank 8, or change the limits
            "#]],
            "--rank 8 --min-rank 6 --max-rank 8 --rank-multiple 4",
        ),
        (
            "--rank 16 --rank-multiple 16",
            expect![[r#"
                error: rank 16 is over the limit of "block.value"
                  help: the largest rank of one of them is 0: exclude it with --exclude, or change the limits
            "#]],
            "--rank 16 --rank-multiple 16 --exclude value",
        ),
        (
            "--budget=1",
            expect![[r#"
                error: a budget of 1 parameters is too small for the smallest ranks
                  help: give --budget=36 or more
            "#]],
            "--budget=72",
        ),
        (
            "--rank 4 --coupling paired",
            expect![[r#"
                error: the coupling paired needs pre-training activations, one row for each fine-tuning row
                  help: give them with --source, or choose --coupling uncorrelated
            "#]],
            "--rank 4 --coupling uncorrelated",
        ),
        (
            "--rank 4 --method olora --max-shift 0.1",
            expect![[r#"
                error: --max-shift has no effect with --start residual: it needs --start update
                  help: remove --max-shift; --method olora does not have this start
            "#]],
            "--rank 4 --method olora",
        ),
        (
            "--rank 4 --start zero --max-shift 0.1",
            expect![[r#"
                error: --max-shift has no effect with --start zero: it needs --start update
                  help: remove --max-shift, or give --start update
            "#]],
            "--rank 4 --start update --max-shift 0.1",
        ),
        (
            "--rank 4 --ridge 10",
            expect![[r#"
            error: the ridge is 10, but must be above 0 and at most 1
        "#]],
            "--rank 4 --ridge 1",
        ),
    ] {
        small.refused(&format!("{plan} {options}"), 2, advice);
        small.succeed(&format!("{plan} {followed}"));
    }
    for (options, message) in [
        (
            "",
            expect![[r#"
                error: the run needs at least 81 MiB of memory, but the limit is 0 MiB
                  help: give --max-memory [size] or more; smaller ranks need less
            "#]],
        ),
        (
            "--coupling transport",
            expect![[r#"
                error: the run needs at least 81 MiB of memory, but the limit is 0 MiB
                  help: give --max-memory [size] or more; --coupling uncorrelated and smaller ranks need less
            "#]],
        ),
        (
            "--method pissa",
            expect![[r#"
                error: the run needs at least 81 MiB of memory, but the limit is 0 MiB
                  help: give --max-memory [size] or more; smaller ranks need less
            "#]],
        ),
    ] {
        let said = small.refused(&format!("{plan} --rank 4 {options} --max-memory 1kB"), 2, message);
        let needed = between(&said, "give --max-memory ", " or more");
        small.succeed(&format!("{plan} --rank 4 {options} --max-memory {needed}"));
    }
    let said = small.refused(
        "moments target -o m --max-memory 1kB",
        2,
        expect![[r#"
            error: the run needs at least 81 MiB of memory, but the limit is 0 MiB
              help: give --max-memory [size] or more
        "#]],
    );
    assert!(!said.contains("--coupling") && !said.contains("ranks"), "{said}");
    let needed = between(&said, "give --max-memory ", " or more").to_owned();
    small.succeed(&format!("moments target -o m --max-memory {needed}"));
}

/// A budget can be too small for the smallest ranks. The advice works for both policies that use a budget.
#[test]
fn rank_options_can_be_changed_when_the_budget_is_too_small() {
    let small = Small::new();
    let budget = "--budget --min-rank 8 --max-rank 8";
    follow(
        &small,
        &format!("{INIT} {budget}"),
        2,
        expect![[r#"
            3 layers at 2 sites, 787.2 kB of activations to read, about [size] of memory
            error: the parameter budget is 576, but must be at least the cost of the least ranks
              help: give a larger --rank, or a smaller --min-rank
        "#]],
        &format!("{INIT} {budget}").replace("--rank 4", "--rank 8"),
    );
    let eva = INIT.replace("--rank 4", "--rank 2 --method eva --rho 4");
    follow(
        &small,
        &format!("{eva} --min-rank 5"),
        2,
        expect![[r#"
            3 layers at 2 sites, 787.2 kB of activations to read, about [size] of memory
            error: the parameter budget is 6, but must be at least the cost of the least ranks
              help: give a larger --rank, or a smaller --min-rank
        "#]],
        &format!("{eva} --min-rank 2"),
    );
}

/// A run with another ridge and another model reuses the sums that a failed run saved. It does not reuse layers that were
/// decomposed with other options.
#[test]
fn a_run_with_other_options_reuses_saved_sums_but_not_saved_layers() {
    let (small, whole) = (Small::new(), Small::new());
    write_model(&small, "model.safetensors", |_| f64::NAN);
    small.refused(INIT, 1, expect![[r#"
        3 layers at 2 sites, 787.2 kB of activations to read, about [size] of memory
        error: model.safetensors: tensor "block.mlp.weight": the weight contains a value that is not finite: NaN in row 0, column 0 of module "block.mlp", and 959 more
          help: download or convert the checkpoint again, or exclude this layer with --exclude '^block\.mlp$'
    "#]]);
    for folder in [&small, &whole] {
        write_model(folder, "model.safetensors", |number| number);
    }
    let other = format!("{INIT} --ridge 0.5 --events log.jsonl");
    let said = small.succeed(&other).stderr;
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("Decomposing again the layers that depend on these changes: "), "{said}");
    assert!(said.contains("options.method.ridge was 0.01 and is now 0.5"), "{said}");
    whole.succeed(&other);
    let weights = |small: &Small| small.bytes("out")["adapter_model.safetensors"].clone();
    assert!(weights(&small) == weights(&whole));
    let log = fs::read_to_string(small.path("log.jsonl")).unwrap();
    let rows = |kind: &str| -> u64 {
        let events = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let of_site = events.filter(|event| event["event"] == kind && event["site"] == "block.mlp");
        of_site.map(|event| event["rows"].as_u64().unwrap()).sum()
    };
    let all = small::ROWS.iter().sum::<usize>() as u64;
    assert_eq!((rows("resumed"), rows("rows-added")), (all, 0), "{log}");

    // Each run is killed, and then continued with other options.
    for options in
        ["--ridge 0.5", "--seed 7", "--exclude mlp", "--rank 6", "--coupling transport --preserve 1"]
    {
        let words = INIT.replace("--rank 4", "");
        fs::remove_dir_all(small.path("out")).unwrap();
        leave_progress(&small, INIT, "out");
        let rank = if options.contains("--rank") { "" } else { "--rank 4" };
        small.succeed(&format!("{words} {rank} {options}"));
        whole.succeed(&format!("{words} {rank} {options} --force"));
        assert!(weights(&small) == weights(&whole), "{options}");
    }
}
