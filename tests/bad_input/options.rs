//! Options that cannot be carried out.

use super::matrix;
use crate::small::Small;
use std::fs;

/// Each is answered with what is legal, or with names that are similar.
#[test]
fn options_out_of_range_are_answered_with_what_is_legal() {
    let small = Small::new();
    for (options, message) in [
        ("--rank 13", "give --rank 12 or 14"),
        ("--rank 14", "give --rank 12, or leave layers out with"),
        ("--rank 6 --rank-multiple 4", "give --rank 4, or change the limits"),
        ("--rank 0", "the rank is 0, but must be at least 1"),
        ("--budget=1", "give --budget=72 or more"),
        ("--rank 4 --scale NaN", "the scale is NaN, but must be a positive number"),
        ("--rank 4 --scale -1", "the scale is -1, but must be a positive number"),
        ("--rank 4 --ridge NaN", "the ridge is NaN, but must be above 0 and at most 1"),
        ("--energy 1.5", "the energy share is 1.5, but must be above 0 and at most 1"),
        ("--rank 4 --target mpl", r#"no module is named "mpl"; the nearest names are "mlp""#),
        ("--rank 4 --include nothing", "together leave out all 3"),
        ("--rank 4 --include (", r#"--include: "(" is no regular expression"#),
        ("--rank 4 --coupling paired", "give them with --source, or choose --coupling uncorrelated"),
        (
            "--rank 4 --coupling transport --max-memory 1MiB",
            "MiB or more; --coupling uncorrelated and smaller ranks",
        ),
        ("--rank 4 --coupling uncorrelated --max-memory 1MiB", "MiB or more; smaller ranks need less"),
        ("--method pissa --rank 4 --max-memory 1MiB", "MiB or more; smaller ranks need less"),
        ("--rank 4 --threads 0", "invalid value '0' for '--threads <N>'"),
    ] {
        small.refused(&format!("plan model.safetensors -a target {options}"), 2, message);
    }
}

/// Rules that double a name end before memory does.
#[test]
fn renames_cannot_fill_the_memory() {
    let small = Small::new();
    let rules = "--rename ^(.*)$=$1$1 ".repeat(50);
    fs::write(small.path("a.safetensors"), matrix("q", 24, &[1.0; 24])).unwrap();
    let words = format!("plan model.safetensors -a a.safetensors --rank 2 {rules}");
    small.refused(&words, 2, r#"--rename makes a name of more than 4096 bytes of the module "q""#);
}

/// A page is about the whole: options that would have no effect are refused.
#[test]
fn pages_are_of_adapters() {
    let small = Small::new();
    let words = "init model.safetensors -a target --rank 4 --shard 0/1 -o parts";
    let message = "give --report to the `cntlora merge` that joins the parts";
    small.refused(&format!("{words} --report page.html"), 2, message);
    small.succeed(words);
    small.succeed("merge parts -o adapter --report page.html");
    assert!(fs::read_to_string(small.path("page.html")).unwrap().contains("block.mlp"));
    small.succeed("moments target -o t.moments.safetensors");
    let words = "merge t.moments.safetensors -o both.moments.safetensors --report moments.html";
    small.refused(words, 2, "--report is given, but only adapters have a page");
}

/// No inputs at all, and one that is given twice.
#[test]
fn inputs_must_be_there_once() {
    let small = Small::new();
    fs::create_dir(small.path("empty")).unwrap();
    fs::hard_link(small.path("target/0.safetensors"), small.path("again.safetensors")).unwrap();
    for (words, message) in [
        ("plan model.safetensors", "--activations"),
        ("plan model.safetensors -a empty", "expected .safetensors or .npy files in the folder, found none"),
        ("plan model.safetensors -a target target", "the same file is given twice"),
        ("plan model.safetensors -a target again.safetensors", "the same file is given twice"),
    ] {
        small.refused(words, 2, message);
    }
    fs::copy(small.path("target/0.safetensors"), small.path("copy.safetensors")).unwrap();
    for words in [
        "plan model.safetensors --rank 4 -a target copy.safetensors",
        "plan model.safetensors --rank 4 -a target --source source copy.safetensors target/0.safetensors",
        "init model.safetensors --rank 4 -a target copy.safetensors -o out",
        "moments target copy.safetensors -o out",
    ] {
        small.refused(words, 1, "its rows would count twice: it has the content of");
    }
}

/// More threads than processors, and than sites, change no bit, and are told of; nor does a single processor for all of them.
#[test]
fn many_threads_change_nothing() {
    let small = Small::new();
    let words = "init model.safetensors -a target --rank 4";
    small.succeed(&format!("{words} --threads 1 -o one"));
    let output = small.succeed(&format!("{words} --threads 1000 -o many"));
    let told = String::from_utf8_lossy(&output.stderr).contains("--threads 1000 is more than the processors");
    assert_eq!(told, std::thread::available_parallelism().unwrap().get() < 1000);
    assert!(small.bytes("one") == small.bytes("many"));
    if cfg!(target_os = "linux") {
        let mut bound = std::process::Command::new("taskset");
        bound.current_dir(small.path("")).args(["-c", "0", env!("CARGO_BIN_EXE_cntlora")]);
        assert!(bound.args(words.split(' ')).args(["-o", "bound"]).output().unwrap().status.success());
        assert!(small.bytes("one") == small.bytes("bound"));
    }
}

/// A site that is too wide for the memory is refused from headers, with the size that it needs; none is allocated.
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
        "or more; --coupling uncorrelated and smaller ranks need",
    );
}

/// Experts and groups of convolutions go where there is a place for them, and are refused before the work elsewhere.
#[test]
fn blocks_have_a_place_in_some_outputs() {
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
        "module \"mlp.experts.down_proj.0\" is one of fused experts, which have no place in this format",
    );
    small.succeed(&format!("{experts} a"));
    let no_place = "\"mlp.experts.down_proj.0\" is one of fused experts, which have no place in this format";
    small.refused("convert a --format diffusers -o c", 2, no_place);
    small.succeed("convert a --rank 1 -o c");
    assert!(told("inspect c").contains("mlp.experts.down_proj.1"));
    let groups = "init groups.safetensors -a group-rows.safetensors --rank 2 -o";
    small.refused(&format!("{groups} b --format diffusers --method lora"), 2, "have no place in this format");
    small.refused(&format!("{groups} b --method olora"), 2, "no base can hold what is left");
    small.refused(
        "init groups.safetensors -a group-rows.safetensors --rank 3 -o b --method lora --target patches",
        1,
        "whose rank must be a multiple of 2 and at most 4",
    );
    assert!(!small.path("b").exists());
    let orthogonal = "init groups.safetensors -a group-rows.safetensors --rank 2 -o b --method orthogonal";
    let even = "must be a multiple of 4 and at most 4, because each group needs an even rank";
    small.refused(&format!("{orthogonal} --target patches"), 1, even);
    small.succeed(&format!("{groups} b --method lora"));
    let no_place = "\"patches.0\" is one of the groups of a convolution, which have no place in this format";
    small.refused("convert b --format kohya -o d", 2, no_place);
    small.refused("convert b --rank 1 -o d", 2, "expected a rank that they can share, found 1");
    assert!(!small.path("d").exists());
    small.succeed("convert b --rank 2 -o d");
    assert!(told("inspect d").contains("patches.1"));
}
