//! Models, recordings and adapters of other programs, as people have them: names with wrappers, other file names, more than factors.

mod small;

use cntlora::adapter::PeftAdapter;
use cntlora::storage::safetensors;
use expect_test::expect;
use faer::Mat;
use small::Small;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

/// Tensors of F32 with the numbers 0, 1, 2, …
fn write(path: &Path, tensors: &[(&str, &[u64])]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let tensors: BTreeMap<_, _> = tensors
        .iter()
        .map(|(name, shape)| {
            let values = (0..shape.iter().product::<u64>()).map(|value| value as f32 / 8.0);
            let bytes = values.flat_map(f32::to_le_bytes).collect();
            ((*name).to_owned(), ("F32".to_owned(), shape.to_vec(), bytes))
        })
        .collect();
    safetensors::write(&mut File::create(path).unwrap(), &BTreeMap::new(), &tensors).unwrap();
}

/// The products `s B A` of an adapter, by module.
fn products(path: &Path) -> Vec<(String, Mat<f32>)> {
    let adapter = PeftAdapter::open(path).unwrap();
    let product = |(name, layer): (&cntlora::LayerName, &_)| {
        let factors = adapter.factors(layer).unwrap();
        (name.to_string(), factors.b * factors.a * faer::Scale(layer.scale as f32))
    };
    adapter.layers().iter().map(product).collect()
}

/// An adapter that a compiled model saved. `verify` refuses it, because PEFT would start from random factors, and `convert` gives it the
/// names that PEFT finds, with the same products.
#[test]
fn wrapped_adapters_are_refused_and_converted() {
    let small = Small::new();
    let (a, b) = ("block.query.lora_A.weight", "block.query.lora_B.weight");
    let [wrapped_a, wrapped_b] = [a, b].map(|name| format!("base_model.model._orig_mod.{name}"));
    let tensors: [(&str, &[u64]); 2] = [(&wrapped_a, &[2, 24]), (&wrapped_b, &[20, 2])];
    write(&small.path("wrapped/adapter_model.safetensors"), &tensors);
    let config = r#"{"peft_type":"LORA","r":2,"lora_alpha":6,"target_modules":["query"]}"#;
    fs::write(small.path("wrapped/adapter_config.json"), config).unwrap();
    small.refused("verify wrapped", 1, expect![[r#"
        error: wrapped/adapter_model.safetensors: 2 tensor names have parts of a wrapper, so that PEFT and diffusers do not find the modules and start from random factors: "base_model.model._orig_mod.block.query.lora_A.weight" must be "base_model.model.block.query.lora_A.weight"
          help: write the adapter with the right names: cntlora convert "wrapped" --out NEW
    "#]]);
    let converted = small.succeed("convert wrapped --out plain");
    expect![[r#"
        note: parts of wrappers are left out of the names of 2 tensors: "base_model.model._orig_mod.block.query.lora_A.weight" is "base_model.model.block.query.lora_A.weight" here
    "#]].assert_eq(&String::from_utf8_lossy(&converted.stderr));
    small.succeed("verify plain --base model.safetensors");
    assert_eq!(products(&small.path("plain")), products(&small.path("wrapped")));
    let inspected = small.succeed("inspect wrapped");
    let text = String::from_utf8_lossy(&inspected.stdout).into_owned();
    expect![[r#"note: parts of wrappers are left out of the names of 2 tensors: "base_model.model._orig_mod.block.query.lora_A.weight" is "base_model.model.block.query.lora_A.weight" here"#]].assert_eq(text.lines().last().unwrap());
    // There is nothing left to change, except the names that the user wants.
    small.refused(
        "convert plain --out again",
        2,
        expect![[r#"
            error: nothing to do: give --init, --rank, --uniform-rank, --adapter-name-rename or another --format
              help: --init takes the adapter that the training started from
        "#]],
    );
    small.succeed("convert plain --adapter-name-rename ^block=model.block --out again");
    assert_eq!(products(&small.path("again"))[0].0, "model.block.query");
    small.refused("convert plain --adapter-name-rename ^.*$= --out empty", 2, expect![[r#"
        error: plain/adapter_model.safetensors: --adapter-name-rename turns the module "block.query" into an empty name, or one of more than 4096 bytes
          help: correct the replacement
    "#]]);
}

/// A recording and a checkpoint with wrappers give the adapter of a recording and a checkpoint without them, byte by byte.
#[test]
fn wrapped_models_give_the_same_adapter() {
    let small = Small::new();
    let sites =
        r#"{"format":"activations","version":1,"sites":{"in":["PREFIXblock.query","PREFIXblock.value"]}}"#;
    for (folder, prefix) in [("plain", ""), ("wrapped", "module._orig_mod.")] {
        let tensors = ["block.query", "block.value"].map(|name| format!("{prefix}{name}.weight"));
        write(
            &small.path(&format!("{folder}.safetensors")),
            &[(&tensors[0], &[20, 24]), (&tensors[1], &[12, 24])],
        );
        let metadata = BTreeMap::from([("cntlora".to_owned(), sites.replace("PREFIX", prefix))]);
        let bytes: Vec<u8> =
            (0..200 * 24).flat_map(|i| (((i * i + 7 * i) % 23) as f32 - 11.0).to_le_bytes()).collect();
        let rows = BTreeMap::from([("in".to_owned(), ("F32".to_owned(), vec![200, 24], bytes))]);
        let file = small.path(&format!("{folder}-rows.safetensors"));
        safetensors::write(&mut File::create(file).unwrap(), &metadata, &rows).unwrap();
        small
            .succeed(&format!("init {folder}.safetensors -a {folder}-rows.safetensors --rank 4 -o {folder}"));
    }
    let tensors = |folder: &str| fs::read(small.path(folder).join("adapter_model.safetensors")).unwrap();
    assert_eq!(tensors("plain"), tensors("wrapped"));
    small.succeed("verify wrapped --base wrapped.safetensors");
    let plan = small.succeed("plan wrapped.safetensors -a wrapped-rows.safetensors --rank 4");
    let text = String::from_utf8_lossy(&plan.stdout).into_owned();
    let notes: Vec<&str> = text.lines().filter(|line| line.starts_with("note: ")).collect();
    expect![[r#"
        note: parts of wrappers are left out of the names of 2 recorded modules: "module._orig_mod.block.query" is "block.query" here
        note: parts of wrappers are left out of the names of 2 tensors of the checkpoint: "module._orig_mod.block.query.weight" is "block.query.weight" here"#]].assert_eq(&notes.join("\n"));
    let renamed = "init plain.safetensors -a plain-rows.safetensors --rank 4 -o renamed --adapter-name-rename ^block=model.block";
    small.succeed(renamed);
    let names: Vec<String> = products(&small.path("renamed")).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["model.block.query", "model.block.value"]);
}

/// A model is named as on the hub, and is in the local cache. The adapter gets this name, with which PEFT finds its base.
#[test]
fn models_are_found_in_the_cache_of_the_hub() {
    let small = Small::new();
    let model = small.path("home/hub/models--org--name");
    fs::create_dir_all(model.join("refs")).unwrap();
    fs::create_dir_all(model.join("snapshots/abc")).unwrap();
    fs::write(model.join("refs/main"), "abc").unwrap();
    fs::copy(small.path("model.safetensors"), model.join("snapshots/abc/model.safetensors")).unwrap();
    let run = |words: &str| {
        let mut command = small.command(words);
        command
            .env_remove("HF_HUB_CACHE")
            .env_remove("HUGGINGFACE_HUB_CACHE")
            .env("HF_HOME", small.path("home"));
        command.output().unwrap()
    };
    let done = run("init org/name -a target --rank 4 -o adapter");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let config = fs::read_to_string(small.path("adapter/adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["base_model_name_or_path"], "org/name");
    assert!(run("verify adapter --base org/name").status.success());
    assert!(run("inspect org/name").status.success());
    small.succeed("init model.safetensors -a target --rank 4 -o expected");
    let tensors = |folder: &str| fs::read(small.path(folder).join("adapter_model.safetensors")).unwrap();
    assert_eq!(tensors("adapter"), tensors("expected"));
    let missing = run("init org/other -a target --rank 4 -o other");
    assert_eq!(missing.status.code(), Some(3));
    expect![[r#"
        error: org/other: nothing exists at this path, and the local cache of the Hugging Face hub has no model of this name
          help: check the path, or download the model first: hf download org/other. This program uses no network
    "#]].assert_eq(&String::from_utf8_lossy(&missing.stderr));
}

/// Single files of image models, under any name, in the formats of several programs. The format of the result is compared with that of
/// the file.
#[test]
fn single_files_are_inspected_verified_and_converted() {
    let small = Small::new();
    for (file, down, up) in [
        ("old diffusers", "unet.a.to_q.lora.down.weight", "unet.a.to_q.lora.up.weight"),
        ("new-diffusers", "unet.a.to_q.lora_A.weight", "unet.a.to_q.lora_B.weight"),
        ("kohya", "lora_unet_a_to_q.lora_down.weight", "lora_unet_a_to_q.lora_up.weight"),
    ] {
        let path = small.path(&format!("{file}.safetensors"));
        write(&path, &[(down, &[2, 6]), (up, &[4, 2])]);
        let conversion = ["convert FILE --format peft --out OUT", "verify OUT"];
        // Names of kohya's format do not tell the modules.
        let conversion = if file == "kohya" { &[][..] } else { &conversion };
        for words in ["inspect FILE", "verify FILE"].iter().chain(conversion) {
            let arguments: Vec<String> = words
                .split(' ')
                .map(|word| {
                    word.replace("FILE", &path.display().to_string()).replace("OUT", &format!("{file} out"))
                })
                .collect();
            let run = small.command("").args(&arguments).output().unwrap();
            assert!(run.status.success(), "{file} {words}: {}", String::from_utf8_lossy(&run.stderr));
        }
        if !conversion.is_empty() {
            let out = small.path(&format!("{file} out"));
            let [before, after] = [path, out].map(|path| products(&path)[0].1.clone());
            assert!((before - after).norm_max() < 1e-6, "{file}");
        }
    }
    let inspected = small.succeed("inspect kohya.safetensors");
    expect![[r#"
        kohya.safetensors: PEFT adapter, 264 B in F32, 1 layer

        module  shape  rank  scale   norm  spectrum
        a_to_q    4×6     2  1.000  3.849  █▁

        norm and spectrum are those of the product that each layer adds to its weight
    "#]]
    .assert_eq(&String::from_utf8_lossy(&inspected.stdout));
}

/// Files of other formats, and files that macOS adds, are named with the way out, or left out.
#[test]
fn other_formats_have_a_way_out() {
    let small = Small::new();
    fs::write(small.path("target/._0.safetensors"), "macOS").unwrap();
    small.succeed("init model.safetensors -a target --rank 4 -o adapter");
    fs::create_dir(small.path("archives")).unwrap();
    for name in ["rows.npz", "rows.pt", "archives/rows.pt"] {
        fs::write(small.path(name), "PK\u{3}\u{4}").unwrap();
    }
    let commands = [
        "init model.safetensors -a rows.npz -o out",
        "init model.safetensors -a rows.pt -o out",
        "init model.safetensors -a archives -o out",
        "init rows.pt -a target -o out",
        "inspect rows.npz",
        "verify rows.pt",
    ];
    small.all_refused(commands, 1, expect![[r#"
        $ cntlora init model.safetensors -a rows.npz -o out
        error: rows.npz: an .npz archive is not read
          help: unpack it into .npy files, which are read: python -m zipfile -e FILE.npz FOLDER
        $ cntlora init model.safetensors -a rows.pt -o out
        error: rows.pt: a file of PyTorch is not read, because it can run arbitrary code
          help: save its tensors as safetensors in Python: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "NEW.safetensors")
        $ cntlora init model.safetensors -a archives -o out
        error: archives/rows.pt: a file of PyTorch is not read, because it can run arbitrary code
          help: save its tensors as safetensors in Python: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "NEW.safetensors")
        $ cntlora init rows.pt -a target -o out
        error: rows.pt: a file of PyTorch is not read, because it can run arbitrary code
          help: save its tensors as safetensors in Python: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "NEW.safetensors")
        $ cntlora inspect rows.npz
        error: rows.npz: an .npz archive is not read
          help: unpack it into .npy files, which are read: python -m zipfile -e FILE.npz FOLDER
        $ cntlora verify rows.pt
        error: rows.pt: a file of PyTorch is not read, because it can run arbitrary code
          help: save its tensors as safetensors in Python: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "NEW.safetensors")
    "#]]);
}

/// An adapter for classification: a head, and biases. `convert` carries them through, and says so.
#[test]
fn heads_are_carried_through() {
    let small = Small::new();
    write(
        &small.path("trained/adapter_model.safetensors"),
        &[
            ("base_model.model.block.query.lora_A.weight", &[4, 24]),
            ("base_model.model.block.query.lora_B.weight", &[20, 4]),
            ("base_model.model.score.weight", &[2, 24]),
        ],
    );
    let config = r#"{"peft_type":"LORA","r":4,"lora_alpha":4,"target_modules":["query"],"task_type":"SEQ_CLS","modules_to_save":["score"]}"#;
    fs::write(small.path("trained/adapter_config.json"), config).unwrap();
    let verified = small.succeed("verify trained");
    let text = String::from_utf8_lossy(&verified.stdout).into_owned();
    expect![[
        r#"besides the factors, the adapter has 1 tensor of a whole module: "base_model.model.score.weight""#
    ]]
    .assert_eq(text.lines().last().unwrap());
    let converted = small.succeed("convert trained --rank 2 --out cut");
    expect![[r#"
        note: besides the factors, the adapter has 1 tensor of a whole module: "base_model.model.score.weight"
    "#]]
    .assert_eq(&String::from_utf8_lossy(&converted.stderr));
    let tensor = |folder: &str| {
        let bytes = fs::read(small.path(folder).join("adapter_model.safetensors")).unwrap();
        let read = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        read.tensor("base_model.model.score.weight").unwrap().data().to_vec()
    };
    assert_eq!(tensor("cut"), tensor("trained"));
    small.refused("convert trained --format diffusers --out one", 2, expect![[r#"
        error: this format has no place for tensors that are not factors: the adapter has 1, such as "base_model.model.score.weight"
          help: give --format peft
    "#]]);
}
