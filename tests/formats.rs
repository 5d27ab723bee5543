//! Adapters for other programs, from the command line: one rank, mlx-lm, what loaders are told, the model card, and components.

mod small;

use expect_test::expect;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use small::{Small, names};
use std::fs;

const INIT: &str = "init model.safetensors -a target";

fn config(small: &Small, folder: &str) -> Value {
    serde_json::from_slice(&fs::read(small.path(folder).join("adapter_config.json")).unwrap()).unwrap()
}

/// With a budget, layers have ranks of their own. Padded, all have one rank and one scale, and the adapter still passes the checks of its
/// start.
#[test]
fn budgets_are_padded_to_one_rank() {
    let small = Small::new();
    let budget = format!("{INIT} --rank 5 --budget --scale 2");
    let plain = small.succeed(&format!("{budget} -o plain"));
    let hint = String::from_utf8(plain.stderr).unwrap();
    assert!(
        hint.contains("the next limit that vLLM takes is") && hint.contains("give --uniform-rank"),
        "{hint}"
    );
    let largest = config(&small, "plain")["r"].as_u64().unwrap();
    assert!(!config(&small, "plain")["rank_pattern"].as_object().unwrap().is_empty(), "the ranks differ");
    small.succeed(&format!("{budget} --uniform-rank -o padded"));
    small.succeed("convert plain --uniform-rank=30 -o converted");
    for (folder, rank) in [("padded", largest), ("converted", 30)] {
        let config = config(&small, folder);
        assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(rank), &json!(2 * rank)), "{folder}");
        assert_eq!((&config["rank_pattern"], &config["alpha_pattern"]), (&json!({}), &json!({})), "{folder}");
        small.succeed(&format!("verify {folder} --base model.safetensors"));
    }
    // Parts of a divided run keep the option.
    small.succeed(&format!("{budget} --uniform-rank --shard 0/1 -o parts"));
    small.succeed("merge parts -o joined");
    assert_eq!(small.bytes("joined"), small.bytes("padded"));
    for method in [
        "pissa --start mirrored",
        "pissa",
        "eva",
        "lora",
        "orthogonal",
        "olora",
        "corda-ipm --start mirrored",
    ] {
        small.succeed(&format!("{INIT} --method {method} --rank 6 --uniform-rank=12 -o out --force"));
        let base = if method == "pissa" || method == "olora" { "out/base" } else { "model.safetensors" };
        small.succeed(&format!("verify out --base {base}"));
    }
}

#[test]
fn ranks_that_do_not_fit_are_refused_before_the_work() {
    let small = Small::new();
    small.succeed(&format!("{INIT} --rank 6 --budget -o mixed"));
    let commands = [
        "plan model.safetensors -a target --rank 8 --uniform-rank=4",
        "plan model.safetensors -a target --rank 4 --budget --uniform-rank=8",
        "plan model.safetensors -a target --rank 4 --budget --format mlx",
        "convert mixed --uniform-rank=2 -o out",
        "convert mixed --format mlx -o out",
    ];
    small.all_refused(
        commands,
        2,
        expect![[r#"
            $ cntlora plan model.safetensors -a target --rank 8 --uniform-rank=4
            error: --uniform-rank is 4, but module "block.mlp" has rank 8
              help: give --uniform-rank=8 or more, or a smaller rank
            $ cntlora plan model.safetensors -a target --rank 4 --budget --uniform-rank=8
            error: --uniform-rank is 8, but module "block.mlp" can get a rank of up to 16
              help: give --uniform-rank=16, or limit the ranks with --max-rank
            $ cntlora plan model.safetensors -a target --rank 4 --budget --format mlx
            error: mlx-lm takes one rank for all layers, but these options give layers ranks of their own
              help: give --uniform-rank
            $ cntlora convert mixed --uniform-rank=2 -o out
            error: --uniform-rank is 2, but module "block.query" has rank 8
              help: give --uniform-rank=8 or more, or a smaller rank
            $ cntlora convert mixed --format mlx -o out
            error: mlx-lm takes one rank for all layers, but the ranks are 4 to 8
              help: give --uniform-rank
        "#]],
    );
}

/// mlx-lm reads two files, and the tool reads them again.
#[test]
fn adapters_for_mlx_are_written_and_read() {
    let small = Small::new();
    let said = small.succeed(&format!("{INIT} --rank 4 --format mlx --base-name org/model -o out"));
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains("--resume-adapter-file \"out/adapters.safetensors\""), "{said}");
    let files = ["adapter_config.json", "adapters.safetensors", "cntlora.json", "report.json"];
    assert_eq!(names(&small.path("out")), files);
    assert_eq!(config(&small, "out")["model"], "org/model");
    small.succeed("verify out --base model.safetensors");
    small.succeed("inspect out");
    small.succeed("convert out --rank 2 --format mlx -o smaller");
    assert_eq!(config(&small, "smaller")["lora_parameters"]["rank"], 2);
    // Another format replaces all of its files.
    small.succeed("convert smaller --rank 1 -o out --force");
    let files = ["README.md", "adapter_config.json", "adapter_model.safetensors", "cntlora.json"];
    assert_eq!(names(&small.path("out")), files);
}

/// The head of the task is in the adapter, as the checkpoint has it, and gets no factors.
#[test]
fn heads_are_trained_whole() {
    let small = Small::new();
    fs::create_dir(small.path("model")).unwrap();
    fs::rename(small.path("model.safetensors"), small.path("model/model.safetensors")).unwrap();
    fs::write(small.path("model/config.json"), r#"{"architectures":["TinyModel"]}"#).unwrap();
    let init = "init model -a target --rank 4 -o out --force";
    small.succeed(&format!("{init} --modules-to-save mlp --base-name org/model"));
    let found = config(&small, "out");
    assert_eq!(found["modules_to_save"], json!(["mlp"]));
    assert_eq!(found["base_model_name_or_path"], "org/model");
    assert_eq!(found["target_modules"], json!(["block.query", "block.value"]));
    assert_eq!(found["auto_mapping"]["base_model_class"], "TinyModel");
    let stored = fs::read(small.path("model/model.safetensors")).unwrap();
    let adapter = fs::read(small.path("out/adapter_model.safetensors")).unwrap();
    let (stored, adapter) =
        (SafeTensors::deserialize(&stored).unwrap(), SafeTensors::deserialize(&adapter).unwrap());
    assert_eq!(
        adapter.tensor("base_model.model.block.mlp.weight").unwrap().data(),
        stored.tensor("block.mlp.weight").unwrap().data()
    );
    small.succeed(&format!("{init} --task-type CAUSAL_LM"));
    let found = config(&small, "out");
    assert_eq!((&found["task_type"], found.get("auto_mapping")), (&json!("CAUSAL_LM"), None));
    small.refused(
        &format!("{init} --modules-to-save classifier --task-type QUESTION_ANS"),
        1,
        expect![[r#"
            error: model: the checkpoint has no tensors of module "classifier" of --modules-to-save, and PEFT loads them from the adapter
              help: load the model with this head, save it with model.save_pretrained(FOLDER), and give FOLDER: see docs/training.md
            error: model: the checkpoint has no tensors of the head of --task-type QUESTION_ANS, "qa_outputs", and PEFT loads them from the adapter
              help: load the model with this head, save it with model.save_pretrained(FOLDER), and give FOLDER: see docs/training.md
            2 problems were found
        "#]],
    );
}

/// The card has the command as it was given. A README.md of the user stays.
#[test]
fn a_model_card_lies_beside_the_adapter() {
    let small = Small::new();
    small.succeed(&format!("{INIT} --rank 4 -o out --start residual --residual anchor"));
    let card = fs::read_to_string(small.path("out/README.md")).unwrap();
    let command =
        "cntlora init model.safetensors -a target --rank 4 -o out --start residual --residual anchor\n";
    assert!(
        card.starts_with("---\nbase_model: \"model.safetensors\"\nlibrary_name: peft\ntags:\n"),
        "{card}"
    );
    assert!(card.contains(command) && card.contains("| start | residual |"), "{card}");
    assert!(small.path("out/anchor/README.md").exists());
    small.succeed("convert out --rank 2 -o out2");
    let card = fs::read_to_string(small.path("out2/README.md")).unwrap();
    assert!(card.contains("cntlora convert out --rank 2 -o out2\n"), "{card}");

    fs::write(small.path("out/README.md"), "mine").unwrap();
    fs::write(small.path("out/anchor/README.md"), "mine").unwrap();
    for options in ["", "--format kohya"] {
        small.succeed(&format!("{INIT} --rank 4 -o out --force {options}"));
        assert_eq!(fs::read_to_string(small.path("out/README.md")).unwrap(), "mine", "{options}");
        assert_eq!(names(&small.path("out/anchor")), ["README.md"], "{options}");
    }
}

/// Two components stay apart when a file is converted.
#[test]
fn components_stay_apart() {
    let small = Small::new();
    fs::create_dir(small.path("two")).unwrap();
    let numbers = [0u8; 64];
    let view = |shape: Vec<usize>| {
        let bytes = 4 * shape.iter().product::<usize>();
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &numbers[..bytes]).unwrap()
    };
    let tensors =
        ["unet.down.0.to_q", "text_encoder.text_model.encoder.layers.0.fc1"].iter().flat_map(|module| {
            [
                (format!("{module}.lora_A.weight"), view(vec![2, 3])),
                (format!("{module}.lora_B.weight"), view(vec![4, 2])),
            ]
        });
    let bytes = safetensors::serialize(tensors.collect::<Vec<_>>(), None).unwrap();
    fs::write(small.path("two/pytorch_lora_weights.safetensors"), bytes).unwrap();
    small.succeed("convert two --rank 1 --format diffusers -o one");
    let bytes = fs::read(small.path("one/pytorch_lora_weights.safetensors")).unwrap();
    let found = SafeTensors::deserialize(&bytes).unwrap();
    let mut found = found.names();
    found.sort();
    assert_eq!(
        found,
        [
            "text_encoder.text_model.encoder.layers.0.fc1.lora_A.weight",
            "text_encoder.text_model.encoder.layers.0.fc1.lora_B.weight",
            "unet.down.0.to_q.lora_A.weight",
            "unet.down.0.to_q.lora_B.weight",
        ]
    );
    let said = small.succeed("convert two --component unet -o unet");
    assert!(String::from_utf8(said.stdout).unwrap().contains("left out: 1 layer of other components"));
    small.refused(
        "convert two --rank 1 -o refused",
        2,
        expect![[r#"
            error: two/pytorch_lora_weights.safetensors: this format holds one component of a pipeline, but the adapter has unet, text-encoder
              help: choose one with --component, and convert the others in further commands
        "#]],
    );
}
