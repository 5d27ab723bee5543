//! Before the work: dry runs, options from environment variables, and warnings about what a run will do.

mod small;

use cntlora::element::Element;
use cntlora::storage::{Access, Checkpoint, safetensors};
use expect_test::expect;
use serde_json::Value;
use small::{Small, names, on_any_machine};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Output;

const INIT: &str = "init model.safetensors --activations target --rank 4 --threads 1 --progress none";

fn text(bytes: &[u8]) -> String {
    on_any_machine(&String::from_utf8_lossy(bytes))
}

/// All files below a folder, with their bytes.
fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => drop(found.insert(path.clone(), fs::read(&path).unwrap())),
            }
        }
    }
    found
}

/// Writes the model again, with every tensor in another format.
fn convert_model(small: &Small, name: &str, element: Element) {
    convert_tensors(small, name, element, |_| true);
}

/// As [`convert_model`], with some of the tensors.
fn convert_tensors(small: &Small, name: &str, element: Element, keep: impl Fn(&str) -> bool) {
    let model = Checkpoint::open(&small.path("model.safetensors"), Access::Auto).unwrap();
    let tensors = model.names().filter(|tensor| keep(tensor)).map(|tensor| {
        let stored = &model.get(tensor).unwrap().tensor;
        let mut numbers = vec![0.0; stored.length as usize / 4];
        Element::F32.decode_f64(&model.read(tensor).unwrap(), &mut numbers);
        let mut bytes = Vec::new();
        element.encode(numbers, &mut bytes);
        (tensor.to_owned(), (element.name().to_owned(), stored.shape.clone(), bytes))
    });
    let mut file = File::create(small.path(name)).unwrap();
    safetensors::write(&mut file, &BTreeMap::new(), &tensors.collect()).unwrap();
}

/// Every command with --dry-run prints its outputs, and leaves all files as they are. The commands without it then succeed.
#[test]
fn dry_runs_write_nothing() {
    let small = Small::new();
    let mut shown = String::new();
    let commands = [
        format!("{INIT} --start residual --report page.html --out adapter"),
        format!("{INIT} --shard 0/2 --out parts"),
        format!("{INIT} --shard 1/2 --out parts"),
        "moments target --threads 1 --progress none --out one.moments.safetensors".to_owned(),
        "moments source --threads 1 --progress none --out two.moments.safetensors".to_owned(),
        "merge one.moments.safetensors two.moments.safetensors --out both.moments.safetensors".to_owned(),
        "merge parts --out joined".to_owned(),
        "convert adapter --rank 2 --out smaller".to_owned(),
    ];
    for command in commands {
        let before = tree(small.path("").as_path());
        let output = small.succeed(&format!("{command} --dry-run"));
        assert_eq!(tree(small.path("").as_path()), before, "{command}");
        let lines = text(&output.stdout);
        let (_, writes) = lines.split_once("Dry run:").unwrap_or_else(|| panic!("{command}: {lines}"));
        shown += &format!("$ {command}\nDry run:{writes}");
        small.succeed(&command);
    }
    expect![[r#"
        $ init model.safetensors --activations target --rank 4 --threads 1 --progress none --start residual --report page.html --out adapter
        Dry run: nothing was written. Without --dry-run, the command would write
          adapter
          adapter/base
          page.html
        $ init model.safetensors --activations target --rank 4 --threads 1 --progress none --shard 0/2 --out parts
        Dry run: nothing was written. Without --dry-run, the command would write
          parts/part-00000-of-00002
        $ init model.safetensors --activations target --rank 4 --threads 1 --progress none --shard 1/2 --out parts
        Dry run: nothing was written. Without --dry-run, the command would write
          parts/part-00001-of-00002
        $ moments target --threads 1 --progress none --out one.moments.safetensors
        Dry run: nothing was written. Without --dry-run, the command would write
          one.moments.safetensors
        $ moments source --threads 1 --progress none --out two.moments.safetensors
        Dry run: nothing was written. Without --dry-run, the command would write
          two.moments.safetensors
        $ merge one.moments.safetensors two.moments.safetensors --out both.moments.safetensors
        Dry run: nothing was written. Without --dry-run, the command would write
          both.moments.safetensors
        $ merge parts --out joined
        Dry run: nothing was written. Without --dry-run, the command would write
          joined
        $ convert adapter --rank 2 --out smaller
        Dry run: nothing was written. Without --dry-run, the command would write
          smaller
    "#]].assert_eq(&shown);
    let json = small.succeed("convert adapter --rank 2 --out smaller --force --dry-run --json").stdout;
    let json: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["writes"], serde_json::json!([{ "path": "smaller", "exists": true }]));
    assert_eq!(json["plan"]["layers"][0]["rank"], 2);
}

/// A dry run makes the checks of the run.
#[test]
fn dry_runs_find_problems() {
    let small = Small::new();
    small.succeed(&format!("{INIT} --out adapter"));
    small.all_refused(
        [
            format!("{INIT} --out adapter --dry-run"),
            "init model.safetensors -a target --rank 99 --start mirrored --out other --report page.txt --dry-run".to_owned(),
            "init model.safetensors -a target --rank 4 --out other --events target/0.safetensors --dry-run".to_owned(),
            "moments target --out target/m.moments.safetensors --dry-run".to_owned(),
            "merge adapter --out target --dry-run".to_owned(),
            "convert adapter --rank 2 --out adapter --dry-run".to_owned(),
        ],
        2,
        expect![[r#"
            $ cntlora init model.safetensors --activations target --rank 4 --threads 1 --progress none --out adapter --dry-run
            error: adapter: output folder already contains an adapter or a model: "adapter_config.json"
              help: choose another folder, or give --force to replace it
            $ cntlora init model.safetensors -a target --rank 99 --start mirrored --out other --report page.txt --dry-run
            error: page.txt: the name of a page must end in .html
              help: give a name such as report.html
            error: rank 99 is odd, but the mirrored start needs an even rank
              help: give --rank 98 or 100
            2 problems were found
            $ cntlora init model.safetensors -a target --rank 4 --out other --events target/0.safetensors --dry-run
            error: target/0.safetensors: this file exists, and its name does not end in .jsonl
              help: give --events a new name, or one that ends in .jsonl, or - for stdout
            $ cntlora moments target --out target/m.moments.safetensors --dry-run
            error: target/m.moments.safetensors: the output file is in a folder of inputs: the next run would read it as an input
              help: write to another folder
            $ cntlora merge adapter --out target --dry-run
            error: target: the output file is a folder
              help: choose another name
            error: adapter: the folder contains no files with names that end in .moments.safetensors
              help: give the moments files themselves
            2 problems were found
            $ cntlora convert adapter --rank 2 --out adapter --dry-run
            error: adapter: this folder is or holds an input, adapter
              help: write to another folder
            error: adapter: output folder already contains an adapter or a model: "adapter_config.json"
              help: choose another folder, or give --force to replace it
            2 problems were found
        "#]],
    );
}

/// Runs the tool with variables.
fn with(small: &Small, words: &str, variables: &[(&str, &str)]) -> Output {
    small.command(words).envs(variables.iter().copied()).output().unwrap()
}

/// A run with variables is the run with the options. The report names the variables.
#[test]
fn variables_give_the_same_adapter_as_options() {
    let small = Small::new();
    small.succeed(&format!("{INIT} --start residual --out options"));
    let variables = [("CNTLORA_RANK", "4"), ("CNTLORA_START", "residual"), ("CNTLORA_THREADS", "1")];
    let output = with(&small, "init model.safetensors -a target --out variables --progress none", &variables);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let files = |folder: &str| {
        let mut files = small.bytes(folder);
        files.remove("adapter_config.json");
        files
    };
    assert_eq!(files("variables"), files("options"));
    let report: Value =
        serde_json::from_slice(&fs::read(small.path("variables/report.json")).unwrap()).unwrap();
    let command = report["command"].as_str().unwrap();
    assert!(command.starts_with("CNTLORA_START=residual CNTLORA_RANK=4 CNTLORA_THREADS=1 /"), "{command}");
    // The same variables change no other command.
    let output = with(&small, "convert options --init options --out plain", &variables);
    assert_eq!(
        output.status.code(),
        with(&small, "convert options --init options --out plain2", &[]).status.code()
    );
    let output = with(&small, "verify options --base model.safetensors", &variables);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn wrong_variables_are_refused_by_name() {
    let small = Small::new();
    let refused = |words: &str, variables: &[(&str, &str)]| {
        let output = with(&small, words, variables);
        assert_eq!(output.status.code(), Some(2), "{words}");
        text(&output.stderr)
    };
    let init = "init model.safetensors -a target --out adapter --progress none";
    let texts = [
        refused(init, &[("CNTLORA_THREADS", "many")]),
        refused(init, &[("CNTLORA_RANK", "4"), ("CNTLORA_ENERGY", "0.5")]),
        refused(init, &[("CNTLORA_RIDGE", "-1")]),
        refused(init, &[("CNTLORA_STRICT", "perhaps")]),
    ];
    expect![[r#"
        error: invalid value 'many' for '--threads <N>': invalid digit found in string

        For more information, try '--help'.

          help: --threads comes from the variable CNTLORA_THREADS
        ----
        error: the argument '--rank <R>' cannot be used with '--energy <SHARE>'

        Usage: cntlora init --out <DIR> --activations <PATH>... --progress <HOW> --rank <R> <MODEL>

        For more information, try '--help'.

          help: --rank comes from the variable CNTLORA_RANK, --energy comes from the variable CNTLORA_ENERGY
        ----
        error: the ridge is -1, but must be above 0 and at most 1
        error: rank 16 is over the limit of "block.value"
          help: the largest rank that is possible for all layers is 12: give --rank 12, or exclude layers with --exclude
        2 problems were found
          help: --ridge comes from the variable CNTLORA_RIDGE
        ----
        error: the variable CNTLORA_STRICT: expected true or false for --strict, found "perhaps"
    "#]].assert_eq(&texts.join("----\n"));
    // A typing error in a name is told.
    let output = with(&small, &format!("{init} --rank 4"), &[("CNTLORA_THREDS", "2")]);
    let told = text(&output.stderr);
    assert!(
        told.starts_with("warning: CNTLORA_THREDS has no effect; a similar variable is CNTLORA_THREADS\n"),
        "{told}"
    );
}

/// A changed base in BF16 is rounded: told by plan and init, unless the base is written in F32.
#[test]
fn a_rounded_base_is_told_before_the_work() {
    let small = Small::new();
    convert_model(&small, "half.safetensors", Element::Bf16);
    let options =
        "half.safetensors --activations target --rank 4 --threads 1 --progress none --start residual";
    let told =
        |words: &str| text(&small.succeed(words).stderr).contains("warning: the changed base is rounded");
    assert!(told(&format!("plan {options}")));
    assert!(told(&format!("init {options} --out rounded")));
    for rest in ["--base-dtype f32 --out wide", "--residual anchor --out anchored"] {
        assert!(!told(&format!("init {options} {rest}")), "{rest}");
    }
    // The wide base and its adapter give the model almost exactly.
    let tensor = |path: &str, name: &str| {
        let file = Checkpoint::open(&small.path(path), Access::Auto).unwrap();
        let stored = &file.get(name).unwrap().tensor;
        let element = Element::from_name(&stored.dtype).unwrap();
        let mut numbers = vec![0.0; stored.length as usize / element.size()];
        element.decode_f64(&file.read(name).unwrap(), &mut numbers);
        (stored.shape.clone(), numbers)
    };
    let error = |folder: &str| {
        let (_, model) = tensor("half.safetensors", "block.query.weight");
        let (shape, base) = tensor(&format!("{folder}/base/half.safetensors"), "block.query.weight");
        let [a, b] = ["A", "B"].map(|side| {
            let name = format!("base_model.model.block.query.lora_{side}.weight");
            tensor(&format!("{folder}/adapter_model.safetensors"), &name).1
        });
        let (rank, inputs) = (4, shape[1] as usize);
        let difference = |at: usize| {
            let (i, j) = (at / inputs, at % inputs);
            let update: f64 = (0..rank).map(|k| b[i * rank + k] * a[k * inputs + j]).sum();
            (base[at] + update - model[at]).abs()
        };
        (0..model.len()).map(difference).fold(0.0, f64::max)
    };
    let (rounded, wide) = (error("rounded"), error("wide"));
    assert!(wide < 1e-6 && rounded > 1e-4, "{wide} {rounded}");
    for words in [
        "verify rounded --base rounded/base",
        "verify wide --base wide/base",
        "verify wide --base half.safetensors",
    ] {
        small.succeed(words);
    }
    small.all_refused(
        [
            "init model.safetensors -a target --rank 4 --base-dtype f32 --out x",
            "init model.safetensors -a target --rank 4 --start residual --residual anchor --base-dtype f32 --out x",
        ],
        2,
        expect![[r#"
            $ cntlora init model.safetensors -a target --rank 4 --base-dtype f32 --out x
            error: --base-dtype has no effect with --start zero: it needs --start residual
              help: remove --base-dtype, or give --start residual
            $ cntlora init model.safetensors -a target --rank 4 --start residual --residual anchor --base-dtype f32 --out x
            error: --base-dtype has no effect with --residual anchor, which keeps the base as it is
              help: remove --base-dtype, or give --residual checkpoint
        "#]],
    );
}

/// The old code passed with any model of the same shapes.
#[test]
fn verify_refuses_the_wrong_base() {
    let small = Small::new();
    small.succeed(&format!("{INIT} --out adapter"));
    let verified = small.succeed("verify adapter --base model.safetensors");
    assert!(text(&verified.stdout).contains("passed    the base is the one that the adapter was made from"));
    convert_model(&small, "other.safetensors", Element::F16);
    small.refused("verify adapter --base other.safetensors", 1, expect![[r#"
        error: other.safetensors: tensor "block.mlp.weight": module "block.mlp": the base has another weight than the one that the adapter was made from: 3 of 3 adapted weights differ
          help: give "model.safetensors" as the base
    "#]]);
    // Conversions keep the fingerprints, and the name of the base.
    small.succeed("convert adapter --rank 2 --format mlx --out mlx");
    small.succeed("convert mlx --format peft --out peft");
    let verified = small.succeed("verify peft --base model.safetensors");
    assert!(text(&verified.stdout).contains("passed    the base is the one that the adapter was made from"));
    small.refused("verify peft --base other.safetensors", 1, expect![[r#"
        error: other.safetensors: tensor "block.mlp.weight": module "block.mlp": the base has another weight than the one that the adapter was made from: 3 of 3 adapted weights differ
          help: give "model.safetensors" as the base
    "#]]);
}

/// 192 of 256 rows of padding: told by init, by moments and from moments, and in the reports.
#[test]
fn rows_of_zeros_are_told_with_their_share() {
    let small = Small::new();
    fs::create_dir(small.path("padded")).unwrap();
    let numbers = (0..256 * small::WIDTH).map(|at| match at / small::WIDTH % 4 {
        0 => ((at * at + 7 * at) % 23) as f64 - 11.0,
        _ => 0.0,
    });
    let mut bytes = Vec::new();
    Element::F32.encode(numbers, &mut bytes);
    let tensors = [("block.query".to_owned(), ("F32".to_owned(), vec![256, small::WIDTH as u64], bytes))];
    let mut file = File::create(small.path("padded/0.safetensors")).unwrap();
    safetensors::write(&mut file, &BTreeMap::new(), &tensors.into()).unwrap();
    let told = "1 of 1 sites have fine-tuning rows that are all zero, such as the padding of batches, and these rows distort the statistics; \
                the worst is site \"block.query\": 192 of 256 rows (75.0 %). Record only the rows of real tokens";
    let options = "--rank 4 --threads 1 --progress none";
    let run = |words: &str| {
        let output = small.succeed(words);
        assert!(text(&output.stderr).contains(&format!("warning: {told}\n")), "{}", text(&output.stderr));
        assert!(text(&output.stdout).replace('\n', " ").contains(told), "{}", text(&output.stdout));
    };
    run(&format!("init model.safetensors -a padded {options} --report page.html --out adapter"));
    let page = fs::read_to_string(small.path("page.html")).unwrap();
    assert!(page.contains("192 of 256 rows (75.0 %)"));
    let report: Value =
        serde_json::from_slice(&fs::read(small.path("adapter/report.json")).unwrap()).unwrap();
    assert_eq!(report["sites"][0]["zero_rows"], 192);

    let measured = small.succeed("moments padded --threads 1 --progress none --out m.moments.safetensors");
    assert!(text(&measured.stderr).contains("192 of 256 rows (75.0 %)"), "{}", text(&measured.stderr));
    run(&format!("init model.safetensors --moments m.moments.safetensors {options} --out from-moments"));
    assert!(names(&small.path("from-moments")).contains(&"adapter_model.safetensors".to_owned()));
}

/// A rename leads two recorded modules to one tensor. The old code changed it for both without a word.
#[test]
fn a_changed_base_is_refused_where_two_modules_share_a_weight() {
    let small = Small::new();
    convert_tensors(&small, "tied.safetensors", Element::F32, |name| name != "block.value.weight");
    let options = "tied.safetensors -a target --rank 4 --threads 1 --progress none --target block.value --rename ^block.value$=block.query";
    let refused =
        ["plan", "init --out adapter"].map(|command| format!("{command} {options} --start residual"));
    small.all_refused(refused, 2, expect![[r#"
        $ cntlora plan tied.safetensors -a target --rank 4 --threads 1 --progress none --target block.value --rename ^block.value$=block.query --start residual
        error: tied.safetensors: tensor "block.query.weight": the module "block.query" uses the weight of "block.value" too: a changed base would change both
          help: give --start mirrored or --residual anchor, which do not change the base, or exclude the layer with --exclude
        $ cntlora init --out adapter tied.safetensors -a target --rank 4 --threads 1 --progress none --target block.value --rename ^block.value$=block.query --start residual
        error: tied.safetensors: tensor "block.query.weight": the module "block.query" uses the weight of "block.value" too: a changed base would change both
          help: give --start mirrored or --residual anchor, which do not change the base, or exclude the layer with --exclude
    "#]]);
    small.succeed(&format!("init {options} --out adapter"));
    small.succeed(&format!("init {options} --start residual --residual anchor --out anchored"));
}
