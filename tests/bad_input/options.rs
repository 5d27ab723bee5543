//! Options with values that are not valid or have no effect.

use super::matrix;
use crate::small::Small;
use expect_test::expect;
use std::fs;

/// The message lists the valid values, or similar names.
#[test]
fn messages_about_bad_options_list_the_valid_values() {
    let small = Small::new();
    for (options, message) in [
        (
            "--rank 13 --start mirrored",
            expect![[r#"
            error: rank 13 is odd, but the mirrored start needs an even rank
              help: give --rank 12 or 14
        "#]],
        ),
        (
            "--rank 14",
            expect![[r#"
                error: rank 14 is over the limit of "block.value"
                  help: the largest rank that is possible for all layers is 12: give --rank 12, or exclude layers with --exclude
            "#]],
        ),
        (
            "--rank 6 --rank-multiple 4",
            expect![[r#"
            error: rank 6 must be from 0 to 6, in steps of 4
              help: give --rank 4, or change the limits
        "#]],
        ),
        (
            "--rank 0",
            expect![[r#"
            error: the rank is 0, but must be at least 1
            error: the largest rank is 0, but must be at least 1
            2 problems were found
        "#]],
        ),
        (
            "--budget=1",
            expect![[r#"
                error: a budget of 1 parameters is too small for the smallest ranks
                  help: give --budget=36 or more
            "#]],
        ),
        (
            "--rank 4 --scale NaN",
            expect![[r#"
            error: the scale is NaN, but must be a positive number
        "#]],
        ),
        (
            "--rank 4 --scale -1",
            expect![[r#"
            error: the scale is -1, but must be a positive number
        "#]],
        ),
        (
            "--rank 4 --ridge NaN",
            expect![[r#"
            error: the ridge is NaN, but must be above 0 and at most 1
        "#]],
        ),
        (
            "--energy 1.5",
            expect![[r#"
            error: the energy share is 1.5, but must be above 0 and at most 1
        "#]],
        ),
        (
            "--rank 4 --target mpl",
            expect![[r#"
                error: --target: no module is named "mpl"; similar names are "mlp", "value", "query"
                  help: give the name of a module, or the end of its name, such as q_proj or self_attn.q_proj
            "#]],
        ),
        (
            "--rank 4 --include nothing",
            expect![[r#"
                error: no module is selected: --target, --include and --exclude together exclude all 3 modules
                  help: relax one of them
            "#]],
        ),
        (
            "--rank 4 --include (",
            expect![[r#"
                error: --include: "(" is not a regular expression: unclosed group
                  help: write a backslash before a literal dot or bracket
            "#]],
        ),
        (
            "--rank 4 --coupling paired",
            expect![[r#"
                error: the coupling paired needs pre-training activations, one row for each fine-tuning row
                  help: give them with --source, or choose --coupling uncorrelated
            "#]],
        ),
        (
            "--rank 4 --coupling transport --max-memory 1MiB",
            expect![[r#"
                error: the run needs at least 81 MiB of memory, but the limit is 1 MiB
                  help: give --max-memory [size] or more; --coupling uncorrelated and smaller ranks need less
            "#]],
        ),
        (
            "--rank 4 --coupling uncorrelated --max-memory 1MiB",
            expect![[r#"
                error: the run needs at least 81 MiB of memory, but the limit is 1 MiB
                  help: give --max-memory [size] or more; smaller ranks need less
            "#]],
        ),
        (
            "--method pissa --rank 4 --max-memory 1MiB",
            expect![[r#"
                error: the run needs at least 81 MiB of memory, but the limit is 1 MiB
                  help: give --max-memory [size] or more; smaller ranks need less
            "#]],
        ),
        (
            "--rank 4 --threads 0",
            expect![[r#"
            error: invalid value '0' for '--threads <N>': number would be zero for non-zero type

            For more information, try '--help'.
        "#]],
        ),
    ] {
        small.refused(&format!("plan model.safetensors -a target {options}"), 2, message);
    }
}

/// Rename rules that double a name again and again are refused before they fill the memory.
#[test]
fn renames_cannot_fill_the_memory() {
    let small = Small::new();
    let rules = "--rename ^(.*)$=$1$1 ".repeat(50);
    fs::write(small.path("a.safetensors"), matrix("q", 24, &[1.0; 24])).unwrap();
    let words = format!("plan model.safetensors -a a.safetensors --rank 2 {rules}");
    small.refused(
        &words,
        2,
        expect![[r#"
            error: model.safetensors: --rename turns the module "q" into a name of more than 4096 bytes
              help: remove rules that repeat the matched text
        "#]],
    );
}

/// A report page describes a whole adapter. `--report` is refused for parts and moments, because it would have no effect.
#[test]
fn report_pages_exist_only_for_whole_adapters() {
    let small = Small::new();
    let words = "init model.safetensors -a target --rank 4 --shard 0/1 -o parts";
    small.refused(
        &format!("{words} --report page.html"),
        2,
        expect![[r#"
            error: --report has no effect with --shard: the page is about all parts together
              help: remove --report, and give it to the `cntlora merge` that joins the parts
        "#]],
    );
    small.succeed(words);
    small.succeed("merge parts -o adapter --report page.html");
    assert!(fs::read_to_string(small.path("page.html")).unwrap().contains("block.mlp"));
    small.succeed("moments target -o t.moments.safetensors");
    let words = "merge t.moments.safetensors -o both.moments.safetensors --report moments.html";
    small.refused(
        words,
        2,
        expect![[r#"
            error: --report has no effect: only adapters have a report, and these files are moments
              help: remove --report
        "#]],
    );
}

/// Refuses a command without inputs, and an input that is given twice.
#[test]
fn missing_and_repeated_inputs_are_refused() {
    let small = Small::new();
    fs::create_dir(small.path("empty")).unwrap();
    fs::hard_link(small.path("target/0.safetensors"), small.path("again.safetensors")).unwrap();
    for (words, message) in [
        (
            "plan model.safetensors",
            expect![[r#"
                error: no files or folders with activations were given
                  help: give files or folders with --activations
            "#]],
        ),
        (
            "plan model.safetensors -a empty",
            expect![[r#"
                error: empty: the folder contains no .safetensors or .npy files
                  help: give the folder that directly contains the files: folders inside it are not searched
            "#]],
        ),
        (
            "plan model.safetensors -a target target",
            expect![[r#"
                error: target/0.safetensors: the same file is given twice, also as "target/0.safetensors"
                  help: remove one of the two
                error: target/1.safetensors: the same file is given twice, also as "target/1.safetensors"
                  help: remove one of the two
                error: target/2.safetensors: the same file is given twice, also as "target/2.safetensors"
                  help: remove one of the two
                3 problems were found
            "#]],
        ),
        (
            "plan model.safetensors -a target again.safetensors",
            expect![[r#"
                error: target/0.safetensors: the same file is given twice, also as "again.safetensors"
                  help: remove one of the two
            "#]],
        ),
    ] {
        small.refused(words, 2, message);
    }
    fs::copy(small.path("target/0.safetensors"), small.path("copy.safetensors")).unwrap();
    let commands = [
        "plan model.safetensors --rank 4 -a target copy.safetensors",
        "plan model.safetensors --rank 4 -a target --source source copy.safetensors target/0.safetensors",
        "init model.safetensors --rank 4 -a target copy.safetensors -o out",
        "moments target copy.safetensors -o out",
    ];
    small.all_refused(commands, 1, expect![[r#"
        $ cntlora plan model.safetensors --rank 4 -a target copy.safetensors
        error: target/0.safetensors: its rows would count twice: it is a copy of "copy.safetensors"
          help: remove one of the two
        $ cntlora plan model.safetensors --rank 4 -a target --source source copy.safetensors target/0.safetensors
        error: target/0.safetensors: its rows would count twice: it is a copy of "copy.safetensors"
          help: remove one of the two
        $ cntlora init model.safetensors --rank 4 -a target copy.safetensors -o out
        error: target/0.safetensors: its rows would count twice: it is a copy of "copy.safetensors"
          help: remove one of the two
        $ cntlora moments target copy.safetensors -o out
        error: target/0.safetensors: its rows would count twice: it is a copy of "copy.safetensors"
          help: remove one of the two
    "#]]);
}

/// A run with more threads than processors and sites warns about this, but changes no bit. A run on a single processor also changes no
/// bit.
#[test]
fn many_threads_change_nothing() {
    let small = Small::new();
    let words = "init model.safetensors -a target --rank 4";
    small.succeed(&format!("{words} --threads 1 -o one"));
    let output = small.succeed(&format!("{words} --threads 1000 -o many"));
    let told = String::from_utf8_lossy(&output.stderr).contains("--threads 1000 is more than the ");
    assert_eq!(told, std::thread::available_parallelism().unwrap().get() < 1000);
    assert!(small.bytes("one") == small.bytes("many"));
    if cfg!(target_os = "linux") {
        let mut bound = std::process::Command::new("taskset");
        bound.current_dir(small.path("")).args(["-c", "0", env!("CARGO_BIN_EXE_cntlora")]);
        assert!(bound.args(words.split(' ')).args(["-o", "bound"]).output().unwrap().status.success());
        assert!(small.bytes("one") == small.bytes("bound"));
    }
}

/// If a site is too wide for the memory, the plan refuses it from the headers and gives the memory that it needs. The memory is not
/// allocated.
#[test]
fn wide_sites_are_refused_from_headers() {
    const WIDTH: u64 = 28_672;
    let small = Small::new();
    let sparse = |file: &str, tensor: &str, rows: u64| {
        let length = 4 * rows * WIDTH;
        let header = format!(
            r#"{{"{tensor}":{{"dtype":"F32","shape":[{rows},{WIDTH}],"data_offsets":[0,{length}]}}}}"#
        );
        let header = crate::safetensors(header, 0);
        fs::write(small.path(file), &header).unwrap();
        let file = fs::File::options().write(true).open(small.path(file)).unwrap();
        file.set_len(header.len() as u64 + length).unwrap();
    };
    sparse("wide.safetensors", "mlp.weight", 8192);
    sparse("rows.safetensors", "mlp", 1_000_000);
    let words = "plan wide.safetensors -a rows.safetensors --rank 4 --json";
    let plan = small.succeed(words);
    let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
    let gram = 8 * WIDTH * (WIDTH + 1) / 2;
    assert!(plan["peak_memory"].as_u64().is_some_and(|memory| memory > gram), "{plan}");
    small.refused(
        &format!("{words} --coupling transport --max-memory 2GiB"),
        2,
        expect![[r#"
            error: the run needs at least 57193 MiB of memory, but the limit is 2048 MiB
              help: give --max-memory [size] or more; --coupling uncorrelated and smaller ranks need less
        "#]],
    );
}

/// Experts and groups of convolutions are written in the formats that support them. For other formats, the command is refused before
/// the work.
#[test]
fn formats_without_experts_or_groups_refuse_them() {
    let small = Small::new();
    let header = |tensors: &[(&str, &[usize])]| {
        let mut end = 0;
        let entries: serde_json::Map<String, serde_json::Value> = tensors
            .iter()
            .map(|(name, shape)| {
                let begin = end;
                end += 4 * shape.iter().product::<usize>();
                let entry =
                    serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, end] });
                ((*name).to_owned(), entry)
            })
            .collect();
        crate::safetensors(serde_json::Value::Object(entries).to_string(), end)
    };
    fs::write(small.path("experts.safetensors"), header(&[("mlp.experts.down_proj", &[2, 6, 4])])).unwrap();
    fs::write(small.path("expert-rows.safetensors"), header(&[("mlp.experts.down_proj", &[9, 4])])).unwrap();
    fs::write(small.path("groups.safetensors"), header(&[("patches.weight", &[4, 2, 3])])).unwrap();
    fs::write(small.path("group-rows.safetensors"), header(&[("patches", &[9, 12])])).unwrap();
    let told = |words: &str| String::from_utf8(small.succeed(words).stdout).unwrap();
    let experts = "init experts.safetensors -a expert-rows.safetensors --method lora --rank 2 -o";
    small.refused(
        &format!("{experts} a --format kohya"),
        2,
        expect![[r#"
            error: this format does not support module "mlp.experts.down_proj.0": it is one of several fused experts
              help: give --format peft, or leave the module out with --exclude
        "#]],
    );
    small.succeed(&format!("{experts} a"));
    small.refused(
        "convert a --format diffusers -o c",
        2,
        expect![[r#"
            error: this format does not support module "mlp.experts.down_proj.0": it is one of several fused experts
              help: give --format peft, or leave the module out with --exclude
        "#]],
    );
    small.succeed("convert a --rank 1 -o c");
    assert!(told("inspect c").contains("mlp.experts.down_proj.1"));
    let groups = "init groups.safetensors -a group-rows.safetensors --rank 2 -o";
    small.refused(
        &format!("{groups} b --format diffusers --method lora"),
        2,
        expect![[r#"
            error: this format does not support module "patches.0": it is a group of a convolution
              help: give --format peft, or leave the module out with --exclude
        "#]],
    );
    small.refused(&format!("{groups} b --method olora"), 2, expect![[r#"
        error: "patches.0": a changed base cannot hold the update of a convolution in groups, because the update reads the channels of all groups
          help: give --residual anchor, or leave the layer out with --exclude
    "#]]);
    small.refused(
        "init groups.safetensors -a group-rows.safetensors --rank 3 -o b --method lora --target patches",
        1,
        expect![[r#"
            error: groups.safetensors: module "patches" cannot be adapted: it is a convolution in 2 groups: its rank must be a multiple of 2 and at most 4
              help: remove it from --target, or add it to --exclude
        "#]],
    );
    assert!(!small.path("b").exists());
    let orthogonal = "init groups.safetensors -a group-rows.safetensors --rank 2 -o b --method orthogonal";
    small.refused(&format!("{orthogonal} --target patches"), 1, expect![[r#"
        error: groups.safetensors: module "patches" cannot be adapted: it is a convolution in 2 groups: its rank must be a multiple of 4 and at most 4, because each group needs an even rank
          help: remove it from --target, or add it to --exclude
    "#]]);
    small.succeed(&format!("{groups} b --method lora"));
    small.refused(
        "convert b --format kohya -o d",
        2,
        expect![[r#"
            error: this format does not support module "patches.0": it is a group of a convolution
              help: give --format peft, or leave the module out with --exclude
        "#]],
    );
    small.refused("convert b --rank 1 -o d", 2, expect![[r#"
        error: b/adapter_model.safetensors: rank 1 is not divisible by the 2 groups of the convolution "patches"
          help: give --rank 2
    "#]]);
    assert!(!small.path("d").exists());
    small.succeed("convert b --rank 2 -o d");
    assert!(told("inspect d").contains("patches.1"));
}
