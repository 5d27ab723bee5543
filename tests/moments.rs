//! Tests of moments files with the real binary: measuring them, merging them, and initializing from them.

mod small;

use cntlora::moments_file::MomentsSet;
use cntlora::storage::Access;
use expect_test::expect;
use serde_json::Value;
use small::Small;
use std::fs;

fn json(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

/// An adapter from moments files has the same bits as one from activations. This holds for fine-tuning and pre-training activations,
/// and for every number of threads.
#[test]
fn moments_give_the_adapter_that_activations_give() {
    let small = Small::new();
    small.succeed("moments target -o t.moments.safetensors --threads 1");
    small.succeed("moments source -o s.moments.safetensors --threads 3");
    small.succeed("init model.safetensors -a target -o rows --rank 4 --start mirrored");
    small.succeed(
        "init model.safetensors --moments t.moments.safetensors -o moments --rank 4 --start mirrored",
    );
    small.succeed("init model.safetensors -a target --source source -o rows-source --rank 4 --preserve 0.1 --start mirrored");
    for (index, inputs) in [
        "--moments t.moments.safetensors --source source",
        "--moments t.moments.safetensors --source-moments s.moments.safetensors",
        "-a target --source-moments s.moments.safetensors",
    ]
    .into_iter()
    .enumerate()
    {
        small.succeed(&format!(
            "init model.safetensors {inputs} -o source-{index} --rank 4 --preserve 0.1 --start mirrored"
        ));
    }
    let same = |one: &str, other: &str| {
        let (mut one, mut other) = (small.bytes(one), small.bytes(other));
        // The records differ, because they name their inputs.
        assert!(one.remove("cntlora.json").is_some() && other.remove("cntlora.json").is_some());
        assert_eq!(one.len(), 2);
        assert!(one == other);
    };
    same("rows", "moments");
    (0..3).for_each(|index| same("rows-source", &format!("source-{index}")));
    let record: Value = serde_json::from_slice(&small.bytes("moments")["cntlora.json"]).unwrap();
    assert_eq!(record["moments"][0]["path"], "t.moments.safetensors");
    assert_eq!(record["activations"].as_array().unwrap().len(), 3, "where the moments came from");
    small.succeed("verify moments --base model.safetensors");
}

/// Merging adds the parts in the order given. Merging them in one step or in two steps gives the same moments.
#[test]
fn merging_adds_in_the_order_given() {
    let small = Small::new();
    for index in 0..3 {
        small.succeed(&format!("moments target/{index}.safetensors -o {index}.m"));
    }
    small.succeed("merge 0.m 1.m 2.m -o all.m");
    small.succeed("merge 0.m 1.m -o two.m");
    small.succeed("merge two.m 2.m -o again.m");
    assert!(small.bytes("all.m") == small.bytes("again.m"));
    small.succeed("init model.safetensors --moments 0.m 1.m 2.m -o parts --rank 4 --start mirrored");
    small.succeed("init model.safetensors --moments all.m -o all --rank 4 --start mirrored");
    assert!(
        small.bytes("parts")["adapter_model.safetensors"] == small.bytes("all")["adapter_model.safetensors"]
    );

    let merged = json(&small.succeed("merge 2.m 0.m 1.m -o other.m --json"));
    let inspected = json(&small.succeed("inspect other.m --json"));
    assert_eq!(inspected["kind"], "moments");
    assert_eq!(inspected["sites"], merged["sites"]);
    assert_eq!(merged["sites"][0]["rows"], small::ROWS.iter().sum::<usize>());
    assert_eq!(merged["sites"][0]["modules"], serde_json::json!(["block.query", "block.value"]));
    assert_eq!(merged["sources"].as_array().unwrap().len(), 3);
}

/// No row counts twice, even if its file is renamed or copied.
#[test]
fn rows_that_would_count_twice_are_refused() {
    let small = Small::new();
    small.succeed("moments target -o all.m");
    small.succeed("moments target/1.safetensors -o one.m");
    small.refused("merge all.m one.m -o sum.m", 1, expect![[r#"
        error: one.m: tensor "block.attention": rows 0 to 699 of the recording "target/1.safetensors" are counted twice, also in "all.m"
          help: remove one of the two: every row must count once
    "#]]);
    small.refused("init model.safetensors --moments all.m one.m -o adapter", 1, expect![[r#"
        error: one.m: tensor "block.attention": rows 0 to 699 of the recording "target/1.safetensors" are counted twice, also in "all.m"
          help: remove one of the two: every row must count once
    "#]]);
    small.refused("merge all.m all.m -o sum.m", 1, expect![[r#"
        error: all.m: tensor "block.attention": rows 0 to 1499 of the recording "target/0.safetensors" are counted twice, also in "all.m"
          help: remove one of the two: every row must count once
    "#]]);
    fs::rename(small.path("target/1.safetensors"), small.path("target/renamed.safetensors")).unwrap();
    small.succeed("moments target/renamed.safetensors -o renamed.m");
    small.refused("merge one.m renamed.m -o sum.m", 1, expect![[r#"
        error: renamed.m: tensor "block.attention": rows 0 to 699 of the recording "target/renamed.safetensors" are counted twice, also in "one.m"
          help: remove one of the two: every row must count once
    "#]]);
    fs::copy(small.path("target/renamed.safetensors"), small.path("target/copy.safetensors")).unwrap();
    small.refused("moments target -o copied.m", 1, expect![[r#"
        error: target/renamed.safetensors: its rows would count twice: it is a copy of "target/copy.safetensors"
          help: remove one of the two
    "#]]);
}

#[test]
fn commands_that_cannot_succeed_are_refused_before_any_work() {
    let small = Small::new();
    small.succeed("moments target -o t.m");
    small.refused(
        "moments target -o t.m",
        2,
        expect![[r#"
            error: t.m: this file exists
              help: choose another name, or give --force to replace it
        "#]],
    );
    small.refused(
        "merge t.m -o t.m --force",
        2,
        expect![[r#"
            error: t.m: the output file is an input
              help: write to another file
        "#]],
    );
    small.refused(
        "moments target -o target/m.safetensors",
        2,
        expect![[r#"
            error: target/m.safetensors: the output file is in a folder of inputs: the next run would read it as an input
              help: write to another folder
        "#]],
    );
    small.refused(
        "moments nowhere -o m",
        3,
        expect![[r#"
        error: nowhere: cannot open: No such file or directory (os error 2)
          help: check the path
    "#]],
    );
    small.refused(
        "moments target -o m --include nothing",
        2,
        expect![[r#"
            error: no site is selected: --include and --exclude together exclude all 2 sites
              help: relax one of them
        "#]],
    );
    small.refused(
        "moments target --checkpoint-every soon -o m",
        2,
        expect![[r#"
        error: invalid value 'soon' for '--checkpoint-every <SECONDS>': invalid digit found in string

        For more information, try '--help'.
    "#]],
    );
    small.refused(
        "merge model.safetensors -o m",
        1,
        expect![[r#"
        error: model.safetensors: not a moments file: the metadata entry "cntlora" is missing
          help: measure activations with `cntlora moments`
    "#]],
    );
    small.refused(
        "merge target/0.safetensors -o m",
        1,
        expect![[r#"
            error: target/0.safetensors: invalid moments metadata: expected format "moments", found "activations"
              help: measure activations with `cntlora moments`
        "#]],
    );
    small.refused(
        "init model.safetensors -a t.m -o a",
        2,
        expect![[r#"
            error: t.m: not a folder, a .safetensors file or a .npy file
              help: save the activations with safetensors' save_file or numpy's save
        "#]],
    );
    small.refused(
        "init model.safetensors --moments t.m --source source --coupling paired -o a",
        2,
        expect![[r#"
            error: the coupling paired needs the rows of both kinds of activations, not moments
              help: give the activations with --activations and --source, or choose --coupling uncorrelated
            error: rank 16 is over the limit of "block.value"
              help: the largest rank that is possible for all layers is 12: give --rank 12, or exclude layers with --exclude
            2 problems were found
        "#]],
    );
    small.refused("init model.safetensors --moments t.m --nonfinite skip-rows -o a", 2, expect![[r#"
        error: --nonfinite has no effect with --moments: no rows are read
          help: give --nonfinite to the `cntlora moments` that measures the moments
        error: rank 16 is over the limit of "block.value"
          help: the largest rank that is possible for all layers is 12: give --rank 12, or exclude layers with --exclude
        2 problems were found
    "#]]);
    small.refused("init model.safetensors --moments t.m --precision bf16 -o a", 2, expect![[r#"
        error: t.m: expected moments in precision bf16, found f32
          help: give --precision f32
        error: rank 16 is over the limit of "block.value"
          help: the largest rank that is possible for all layers is 12: give --rank 12, or exclude layers with --exclude
        2 problems were found
    "#]]);
    small.refused(
        "init model.safetensors --moments t.m -a target -o a",
        2,
        expect![[r#"
        error: the argument '--moments <FILE>...' cannot be used with '--activations <PATH>...'

        Usage: cntlora init --out <DIR> --moments <FILE>... <MODEL>

        For more information, try '--help'.
    "#]],
    );
    assert_eq!(small::names(&small.path("")), ["model.safetensors", "source", "t.m", "target"]);
}

/// The moments of parts add up to the moments of all rows. For a fixed number of parts, the bits are always the same, in whatever order
/// the parts were made and are given. For any number of parts, the error is at most 1e-12 of the largest value.
#[test]
fn parts_add_up_to_the_whole() {
    let small = Small::new();
    small.succeed("moments target -o whole.moments.safetensors");
    let whole = MomentsSet::open(&[small.path("whole.moments.safetensors")], Access::Auto).unwrap();
    for count in [1, 2, 3, 8, 30] {
        for (folder, threads) in [("parts", 1), ("again", 3)] {
            for index in (0..count).rev() {
                small.succeed(&format!(
                    "moments target --shard {index}/{count} -o {folder} --threads {threads}"
                ));
            }
        }
        let files = |folder: &str| small::names(&small.path(folder)).into_iter();
        let given: Vec<String> = files("again").rev().map(|name| format!("again/{name}")).collect();
        small.succeed(&format!("merge parts -o {count}.m"));
        small.succeed(&format!("merge {} -o again.m", given.join(" ")));
        assert!(small.bytes(&format!("{count}.m")) == small.bytes("again.m"));
        let parts = MomentsSet::open(&[small.path("parts")], Access::Auto).unwrap();
        for site in whole.content().sites.keys() {
            let (parts, whole) = (parts.read(site).unwrap(), whole.read(site).unwrap());
            assert_eq!((parts.count(), parts.abs_max()), (whole.count(), whole.abs_max()));
            for (a, b) in [(parts.sum(), whole.sum()), (parts.gram_triangle(), whole.gram_triangle())] {
                let largest = b.iter().fold(0.0f64, |largest, b| largest.max(b.abs()));
                let error = a.iter().zip(b).fold(0.0f64, |error, (a, b)| error.max((a - b).abs()));
                assert!(error <= 1e-12 * largest, "{site}: {error} of {largest} in {count} parts");
                assert!(count > 1 || error == 0.0);
            }
        }
        for name in ["parts", "again"] {
            fs::remove_dir_all(small.path(name)).unwrap();
        }
        fs::remove_file(small.path("again.m")).unwrap();
    }
    small.succeed("moments target --shard 0/2 -o parts");
    small.refused(
        "merge parts -o m",
        1,
        expect![[r#"
            error: 1 of 2 parts missing (numbered from 0): 1
              help: make the missing parts by the same command with --shard, and give all of them
        "#]],
    );
    small.refused(
        "init model.safetensors --moments parts -o a",
        1,
        expect![[r#"
            error: 1 of 2 parts missing (numbered from 0): 1
              help: make the missing parts by the same command with --shard, and give all of them
        "#]],
    );
    small.succeed("moments target --shard 1/2 -o parts --exclude mlp");
    small.refused("merge parts -o m", 1, expect![[r#"
        error: parts/part-00001-of-00002.moments.safetensors: is a part of another measurement than "parts/part-00000-of-00002.moments.safetensors"
          help: measure all parts of the same inputs with the same options and number of parts
    "#]]);
    small.refused("moments target --shard 2/2 -o parts", 2, expect![[r#"
        error: invalid value '2/2' for '--shard <I/N>': expected I/N with I from 0 to N - 1, for example 0/4, or auto

        For more information, try '--help'.
    "#]]);
    let mut auto = small.command("moments target --shard auto -o parts");
    assert!(
        auto.env("SLURM_ARRAY_TASK_ID", "1")
            .env("SLURM_ARRAY_TASK_COUNT", "2")
            .arg("--force")
            .status()
            .unwrap()
            .success()
    );
    small.succeed("init model.safetensors --moments parts -o a --rank 4");
}

/// A moments file may contain only some sites, and then serves only their layers. Files with different sites can be merged into one set.
#[test]
fn sites_can_be_measured_separately() {
    let small = Small::new();
    small.succeed("moments target -o mlp.m --include mlp");
    small.refused(
        "init model.safetensors --moments mlp.m -o a --target query",
        2,
        expect![[r#"
            error: --target: no module is named "query"; similar names are "mlp"
              help: give the name of a module, or the end of its name, such as q_proj or self_attn.q_proj
        "#]],
    );
    small.succeed("moments target -o rest.m --exclude mlp");
    small.succeed("moments target -o whole.m");
    small.succeed("merge mlp.m rest.m -o both.m");
    let (both, whole) =
        (json(&small.succeed("inspect both.m --json")), json(&small.succeed("inspect whole.m --json")));
    assert_eq!(both["sites"], whole["sites"]);
    assert!(small.bytes("both.m") == small.bytes("whole.m"));
}
