use super::super::testing::{adapter, factors, rows, write, write_tensors};
use super::*;
use crate::storage::{Category, snapshot};
use expect_test::expect;
use std::fs;

const CONFIG: &str = r#"{"peft_type":"LORA","r":1,"target_modules":["q"]}"#;

fn a() -> (&'static str, Element, Vec<u64>, Vec<f64>) {
    ("base_model.model.q.lora_A.weight", Element::F32, vec![1, 2], vec![1.0, 2.0])
}

fn b() -> (&'static str, Element, Vec<u64>, Vec<f64>) {
    ("base_model.model.q.lora_B.weight", Element::F32, vec![3, 1], vec![3.0, 4.0, 5.0])
}

fn opened(config: &str, tensors: &[(&str, Element, Vec<u64>, Vec<f64>)]) -> Result<PeftAdapter, Problems> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(CONFIG_FILE), config).unwrap();
    write_tensors(&folder.path().join(TENSORS_FILE), tensors);
    PeftAdapter::open(folder.path())
}

#[test]
fn a_peft_adapter_is_read() {
    let text = r#"{"peft_type":"LORA","r":8,"lora_alpha":4.0,"rank_pattern":{"q":1},"peft_version":"0.21.2",
        "target_modules":"all-linear","eva_config":null,"layers_pattern":null,"use_rslora":false}"#;
    let adapter = opened(text, &[a(), b()]).unwrap();
    let layer = &adapter.layers()[&"q".into()];
    assert_eq!((layer.rank, layer.inputs, layer.outputs, layer.scale), (1, 2, 3, 4.0));
    let factors = adapter.factors(layer).unwrap();
    assert_eq!((rows(&factors.a), rows(&factors.b)), (vec![1.0, 2.0], vec![3.0, 4.0, 5.0]));
}

/// PEFT saves the base weights of adapted embeddings and output heads beside their factors.
#[test]
fn copies_of_base_weights_are_ignored() {
    let tensor = |name, shape: [u64; 2]| {
        (name, Element::F32, shape.to_vec(), vec![1.0; (shape[0] * shape[1]) as usize])
    };
    let copy = tensor("base_model.model.e.base_layer.weight", [4, 3]);
    let head = tensor("base_model.model.q.base_layer.weight", [3, 2]);
    let embedding = [
        tensor("base_model.model.e.lora_embedding_A", [1, 4]),
        tensor("base_model.model.e.lora_embedding_B", [3, 1]),
    ];
    let all = [a(), b(), copy.clone(), head].into_iter().chain(embedding).collect::<Vec<_>>();
    let adapter = opened(CONFIG, &all).unwrap();
    assert!(adapter.layers().keys().eq(&["e", "q"].map(LayerName::of_module)));
    // Without factors of the module, the tensor is unknown.
    let problems = opened(CONFIG, &[a(), b(), copy]).unwrap_err();
    expect![[r#"
        FOLDER/adapter_model.safetensors: tensor "base_model.model.e.base_layer.weight": unsupported tensor name: expected base_model.model.MODULE.lora_A.weight or base_model.model.MODULE.lora_B.weight of a linear layer, convolution or embedding
    "#]].assert_eq(&snapshot(problems));
}

#[test]
fn invalid_adapters_are_refused() {
    let mut flat = a();
    flat.2 = vec![2];
    let mut empty = a();
    (empty.2, empty.3) = (vec![1, 0], vec![]);
    let mut wide = b();
    (wide.2, wide.3) = (vec![3, 2], vec![0.0; 6]);
    let mut half = b();
    half.1 = Element::F16;
    let unprefixed = ("q.lora_A.weight", Element::F32, vec![1, 2], vec![0.0; 2]);
    let token = ("base_model.model.q.lora_embedding_A", Element::F32, vec![1, 2], vec![0.0; 2]);
    let mut deep = token.clone();
    (deep.0, deep.2) = ("base_model.model.e.lora_embedding_A", vec![1, 2, 1]);
    let deep_up = ("base_model.model.e.lora_embedding_B", Element::F32, vec![3, 1, 1], vec![0.0; 3]);
    let token_up = ("base_model.model.q.lora_embedding_B", Element::F32, vec![3, 1], vec![0.0; 3]);
    let magnitude = ("base_model.model.q.lora_magnitude_vector", Element::F32, vec![3], vec![0.0; 3]);
    let no_rank = r#"{"peft_type":"LORA"}"#;
    let cases = [
        (CONFIG, vec![a()]),
        (CONFIG, vec![b()]),
        (CONFIG, vec![flat, b()]),
        (CONFIG, vec![empty, b()]),
        (CONFIG, vec![a(), wide]),
        (CONFIG, vec![a(), half]),
        (CONFIG, vec![a(), b(), unprefixed]),
        (CONFIG, vec![a(), b(), token.clone()]),
        (CONFIG, vec![a(), b(), token, token_up]),
        (CONFIG, vec![deep, deep_up]),
        (CONFIG, vec![a(), b(), magnitude]),
        (no_rank, vec![a(), b()]),
        (r#"{"peft_type":"LOHA"}"#, vec![a(), b()]),
        ("{", vec![a(), b()]),
    ];
    let texts = cases.map(|(config, tensors)| {
        let problems = opened(config, &tensors).unwrap_err();
        assert_eq!((problems.0.len(), problems.category()), (1, Category::Data), "{problems}");
        snapshot(problems)
    });
    expect![[r#"
        FOLDER/adapter_model.safetensors: tensor "base_model.model.q.lora_B.weight": the tensor is missing, but others of the same layer are present
        FOLDER/adapter_model.safetensors: tensor "base_model.model.q.lora_A.weight": the tensor is missing, but others of the same layer are present
        FOLDER/adapter_model.safetensors: tensor "base_model.model.q.lora_A.weight": A must have shape [rank, inputs], found [2]
        FOLDER/adapter_model.safetensors: tensor "base_model.model.q.lora_A.weight": A must have shape [rank, inputs], found [1, 0]
        FOLDER/adapter_model.safetensors: tensor "base_model.model.q.lora_B.weight": A has rank 1, but B has 2 columns
        FOLDER/adapter_model.safetensors: tensor "base_model.model.q.lora_B.weight": B has number format "F16", but A has "F32"
        FOLDER/adapter_model.safetensors: tensor "q.lora_A.weight": unsupported tensor name: expected base_model.model.MODULE.lora_A.weight or base_model.model.MODULE.lora_B.weight of a linear layer, convolution or embedding
        FOLDER/adapter_model.safetensors: tensor "base_model.model.q.lora_embedding_B": the tensor is missing, but others of the same layer are present
        FOLDER/adapter_model.safetensors: tensor "q": the module has factors of an embedding and of another layer
        FOLDER/adapter_model.safetensors: tensor "base_model.model.e.lora_embedding_A": A of an embedding must have shape [rank, tokens], found [1, 2, 1]
        FOLDER/adapter_model.safetensors: this is a DoRA adapter: magnitudes rescale the sum of weight and product (the tensor "base_model.model.q.lora_magnitude_vector"); help: merge it into the model with the program that made it, or train with use_dora=False
        FOLDER/adapter_model.safetensors: tensor "base_model.model.q.lora_A.weight": A has rank 1, but adapter_config.json says 8
        FOLDER/adapter_config.json: unsupported peft_type "LOHA": expected "LORA"
        FOLDER/adapter_config.json: invalid configuration of a PEFT adapter: EOF while parsing an object at line 1 column 1
    "#]].assert_eq(&texts.concat());
}

#[test]
fn integer_tensors_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(CONFIG_FILE), CONFIG).unwrap();
    let integer = |name: &str, shape: Vec<u64>, length| (name.into(), ("I32".into(), shape, vec![0; length]));
    let tensors = BTreeMap::from([integer(a().0, vec![1, 2], 8), integer(b().0, vec![3, 1], 12)]);
    let mut file = fs::File::create(folder.path().join(TENSORS_FILE)).unwrap();
    crate::storage::safetensors::write(&mut file, &BTreeMap::new(), &tensors).unwrap();
    let problems = PeftAdapter::open(folder.path()).unwrap_err();
    expect![[r#"
        FOLDER/adapter_model.safetensors: tensor "base_model.model.q.lora_A.weight": unsupported number format "I32": expected F64, F32, F16 or BF16
    "#]].assert_eq(&snapshot(problems));
}

#[test]
fn missing_files_are_reported_together() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("adapter_model.bin"), b"").unwrap();
    let problems = PeftAdapter::open(folder.path()).unwrap_err();
    assert_eq!(problems.category(), Category::Data);
    let mut texts = snapshot(problems);
    fs::write(folder.path().join("notes.txt"), b"").unwrap();
    for (wrong, category) in
        [("missing", Category::Io), ("notes.txt", Category::Io), ("adapter_model.bin", Category::Data)]
    {
        let problems = PeftAdapter::open(&folder.path().join(wrong)).unwrap_err();
        assert_eq!(problems.category(), category);
        texts += &snapshot(problems);
    }
    expect![[r#"
        FOLDER/adapter_model.bin: a file of PyTorch is not read, because it can run arbitrary code; help: save its tensors as safetensors in Python: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "NEW.safetensors")
        FOLDER/missing: cannot open the folder: No such file or directory (os error 2)
        FOLDER/notes.txt: the path of an adapter must be a folder or a .safetensors file; help: give the folder that contains adapter_config.json, or the file with the tensors
        FOLDER/adapter_model.bin: a file of PyTorch is not read, because it can run arbitrary code; help: save its tensors as safetensors in Python: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "NEW.safetensors")
    "#]].assert_eq(&texts);
}

/// A header must not make us allocate more memory than the file has bytes.
#[test]
fn truncated_tensors_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &adapter([("q", factors(4, 4, 2))]));
    let path = folder.path().join(TENSORS_FILE);
    let bytes = fs::read(&path).unwrap();
    for length in [0, 7, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        assert_eq!(PeftAdapter::open(folder.path()).unwrap_err().category(), Category::Data);
    }
}

#[test]
fn invalid_convolutions_and_scales_are_refused() {
    let zeros = |name, shape: &[u64]| {
        (name, Element::F32, shape.to_vec(), vec![0.0; shape.iter().product::<u64>() as usize])
    };
    let (down, up) = ("base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight");
    let kernel = opened(CONFIG, &[zeros(down, &[1, 2, 3]), zeros(up, &[4, 1])]).unwrap_err();
    let folder = tempfile::tempdir().unwrap();
    let (down, up) = ("lora_unet_q.lora_down.weight", "lora_unet_q.lora_up.weight");
    let tensors = [zeros(down, &[1, 2]), zeros(up, &[4, 1]), zeros("lora_unet_q.alpha", &[2])];
    write_tensors(&folder.path().join(SingleFile::Kohya.file_name()), &tensors);
    let alpha = PeftAdapter::open(folder.path()).unwrap_err();
    expect![[r#"
        FOLDER/adapter_model.safetensors: tensor "base_model.model.q.lora_B.weight": B must have shape [outputs, rank, 1], found [4, 1]
        FOLDER/lora.safetensors: tensor "lora_unet_q": alpha must be a single number, found shape [2]
    "#]].assert_eq(&(snapshot(kernel) + &snapshot(alpha)));
}

#[test]
fn invalid_module_names_in_the_metadata_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let metadata = BTreeMap::from([(super::super::single_file::MODULES_KEY.to_owned(), "[]".to_owned())]);
    let mut file = fs::File::create(folder.path().join(SingleFile::Kohya.file_name())).unwrap();
    crate::storage::safetensors::write(&mut file, &metadata, &BTreeMap::new()).unwrap();
    expect![[r#"
        FOLDER/lora.safetensors: invalid metadata entry "cntlora_modules": invalid type: sequence, expected an object at line 1 column 0; help: write the adapter again
    "#]].assert_eq(&snapshot(PeftAdapter::open(folder.path()).unwrap_err()));
}

/// Names with the parts of wrappers, as training programs save them, are read without these parts, with a note.
#[test]
fn wrappers_are_left_out_of_names() {
    let names = |prefix: &str, end: &str| {
        let tensor = |side: &str, shape: Vec<u64>, values: Vec<f64>| {
            (format!("{prefix}q{end}.lora_{side}.weight"), Element::F32, shape, values)
        };
        [tensor("A", vec![1, 2], vec![1.0, 2.0]), tensor("B", vec![3, 1], vec![3.0; 3])]
    };
    for (prefix, end) in [
        ("base_model.model.", ""),
        ("base_model.model._orig_mod.", ""),
        ("_orig_mod.base_model.model.", ""),
        ("module.base_model.model.", ""),
        ("base_model.model.module.", ""),
        ("base_model.model._fsdp_wrapped_module.", ""),
        ("base_model.model.base_model.model.", ""),
        ("base_model.model.0.auto_model.", ""),
        ("base_model.model.", ".base_layer"),
    ] {
        let tensors = names(prefix, end);
        let tensors = tensors
            .each_ref()
            .map(|(name, element, shape, values)| (name.as_str(), *element, shape.clone(), values.clone()));
        let adapter = opened(CONFIG, &tensors).unwrap();
        assert!(adapter.layers().keys().eq(&[LayerName::of_module("q")]), "{prefix}q{end}");
        assert_eq!(adapter.has_other_names(), (prefix, end) != ("base_model.model.", ""), "{prefix}q{end}");
    }
    let wrapped = names("base_model.model._orig_mod.model.", "");
    let wrapped = wrapped
        .each_ref()
        .map(|(name, element, shape, values)| (name.as_str(), *element, shape.clone(), values.clone()));
    let config = r#"{"peft_type":"LORA","r":8,"rank_pattern":{"^_orig_mod\\.model\\.q":1},"lora_alpha":4,"target_modules":["q"]}"#;
    let adapter = opened(config, &wrapped).unwrap();
    assert_eq!(adapter.layers()[&"model.q".into()].scale, 4.0);
    expect![[r#"parts of wrappers are left out of the names of 2 tensors: "base_model.model._orig_mod.model.q.lora_A.weight" is "base_model.model.model.q.lora_A.weight" here"#]].assert_eq(&adapter.notes().join("\n"));
}

/// States of running models have the name of the adapter in their names. PEFT loads such adapters, so this is no reason to refuse them.
#[test]
fn the_name_of_the_adapter_is_left_out_of_names() {
    let names = ["base_model.model.q.lora_A.default.weight", "base_model.model.q.lora_B.default.weight"];
    let (_folder, adapter) = with_counted(CONFIG, &[(names[0], &[1, 2]), (names[1], &[3, 1])]);
    let adapter = adapter.unwrap();
    assert!(adapter.layers().contains_key(&"q".into()) && adapter.has_other_names());
    assert!(adapter.wrapped().found().is_none());
    expect![[r#"the name of the adapter, default, is left out of the names of 2 tensors: "base_model.model.q.lora_A.default.weight" is "base_model.model.q.lora_A.weight" here; PEFT reads both"#]].assert_eq(&adapter.notes().join("\n"));
}

/// The values `1, 2, …` in a tensor of F32.
fn counted(name: &str, shape: &[u64]) -> (String, Element, Vec<u64>, Vec<f64>) {
    let numbers = shape.iter().product::<u64>();
    (name.to_owned(), Element::F32, shape.to_vec(), (1..=numbers).map(|value| value as f64).collect())
}

fn with_counted(
    config: &str,
    tensors: &[(&str, &[u64])],
) -> (tempfile::TempDir, Result<PeftAdapter, Problems>) {
    let folder = tempfile::tempdir().unwrap();
    if !config.is_empty() {
        fs::write(folder.path().join(CONFIG_FILE), config).unwrap();
    }
    let tensors: Vec<_> = tensors.iter().map(|(name, shape)| counted(name, shape)).collect();
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, element, shape, values)| (name.as_str(), *element, shape.clone(), values.clone()))
        .collect();
    let name = if config.is_empty() { "any name.safetensors" } else { TENSORS_FILE };
    write_tensors(&folder.path().join(name), &tensors);
    let adapter = PeftAdapter::open(folder.path());
    (folder, adapter)
}

const A: (&str, &[u64]) = ("base_model.model.q.lora_A.weight", &[1, 2]);
const B: (&str, &[u64]) = ("base_model.model.q.lora_B.weight", &[3, 1]);

/// Heads, resized embeddings, trained tokens and biases do not change the products, so the adapter is read, and they are named.
#[test]
fn tensors_that_are_not_factors_are_named() {
    let (_folder, adapter) = with_counted(
        CONFIG,
        &[
            A,
            B,
            ("base_model.model.q.lora_B.bias", &[3]),
            ("base_model.model.score.weight", &[2, 3]),
            ("base_model.model.score.bias", &[2]),
            ("base_model.model.model.embed_tokens.weight", &[5, 2]),
            ("base_model.model.e.token_adapter.trainable_tokens_delta", &[1, 2]),
            ("base_model.model.q.base_layer.weight", &[3, 2]),
        ],
    );
    let adapter = adapter.unwrap();
    assert!(adapter.layers().keys().eq(&[LayerName::of_module("q")]));
    expect![[r#"
        besides the factors, the adapter has 3 tensors of whole modules, such as "base_model.model.model.embed_tokens.weight"
        besides the factors, the adapter has 1 copy of a base weight: "base_model.model.q.base_layer.weight"
        besides the factors, the adapter has 1 tensor of trained tokens: "base_model.model.e.token_adapter.trainable_tokens_delta"
        besides the factors, the adapter has 1 bias of B (lora_bias): "base_model.model.q.lora_B.bias""#]].assert_eq(&adapter.notes().join("\n"));
}

/// The update of these adapters is no product of two factors. They are named once, however many tensors they have.
#[test]
fn other_kinds_of_adapters_are_named_once() {
    let peft = |name: &'static str| {
        with_counted(CONFIG, &[A, B, (name, &[3]), ("base_model.model.v.lora_magnitude_vector", &[3])]).1
    };
    let kohya = |names: &[&'static str]| {
        let factors: [(&str, &[u64]); 2] =
            [("lora_unet_q.lora_down.weight", &[1, 2]), ("lora_unet_q.lora_up.weight", &[3, 1])];
        let more = names.iter().map(|name| (*name, [3].as_slice()));
        with_counted("", &factors.into_iter().chain(more).collect::<Vec<_>>()).1
    };
    let texts = [
        peft("base_model.model.q.lora_magnitude_vector"),
        kohya(&["lora_unet_q.dora_scale"]),
        kohya(&["lora_unet_c.lora_mid.weight", "lora_unet_d.lora_mid.weight"]),
        kohya(&["lora_unet_c.hada_w1_a", "lora_unet_c.hada_w1_b"]),
    ]
    .map(|adapter| {
        let problems = adapter.unwrap_err();
        assert_eq!(problems.0.len(), 1, "{problems}");
        snapshot(problems)
    });
    expect![[r#"
        FOLDER/adapter_model.safetensors: this is a DoRA adapter: magnitudes rescale the sum of weight and product (2 tensors, such as "base_model.model.q.lora_magnitude_vector"); help: merge it into the model with the program that made it, or train with use_dora=False
        FOLDER/any name.safetensors: this is a DoRA adapter: magnitudes rescale the sum of weight and product (the tensor "lora_unet_q.dora_scale"); help: merge it into the model with the program that made it, or train with use_dora=False
        FOLDER/any name.safetensors: this is a CP decomposition (Tucker): a third tensor is between the factors of convolutions (2 tensors, such as "lora_unet_c.lora_mid.weight"); help: train it without use_cp or use_tucker, or merge it into the model with the program that made it
        FOLDER/any name.safetensors: this is an adapter of LyCORIS, such as LoHa or LoKr, and not LoRA (2 tensors, such as "lora_unet_c.hada_w1_a"); help: merge it into the model with the program that made it, or train LoRA
    "#]].assert_eq(&texts.concat());
}

/// DeepSpeed ZeRO-3 leaves placeholders of shape `[0]`.
#[test]
fn empty_adapters_have_a_way_out() {
    let tensors: [(&str, &[u64]); 2] = [(A.0, &[0]), (B.0, &[0])];
    let (_folder, adapter) = with_counted(CONFIG, &tensors);
    expect![[r#"
        FOLDER/adapter_model.safetensors: the adapter is empty: 2 tensors, such as "base_model.model.q.lora_A.weight" of shape [0]; help: DeepSpeed ZeRO-3 saves such adapters if it does not gather the parameters: set stage3_gather_16bit_weights_on_model_save, or save with state_dict=accelerator.get_state_dict(model)
    "#]].assert_eq(&snapshot(adapter.unwrap_err()));
}

/// A single file of any name, in the formats of several programs.
#[test]
fn single_files_of_any_name_are_read() {
    for (down, up, module) in [
        ("unet.a.to_q.lora.down.weight", "unet.a.to_q.lora.up.weight", "a.to_q"),
        ("unet.a.processor.to_out_lora.down.weight", "unet.a.processor.to_out_lora.up.weight", "a.to_out.0"),
        ("transformer._orig_mod.a.lora_A.weight", "transformer._orig_mod.a.lora_B.weight", "a"),
        ("lora_unet_a_to_q.lora_down.weight", "lora_unet_a_to_q.lora_up.weight", "a_to_q"),
    ] {
        let tensors: [(&str, &[u64]); 2] = [(down, &[1, 2]), (up, &[3, 1])];
        let (folder, adapter) = with_counted("", &tensors);
        let adapter = adapter.unwrap();
        assert!(
            adapter.layers().keys().eq(&[LayerName::of_module(module)]),
            "{down}: {:?}",
            adapter.layers().keys()
        );
        let file = PeftAdapter::open(&folder.path().join("any name.safetensors")).unwrap();
        assert!(file.layers().keys().eq(adapter.layers().keys()));
        // Files of macOS are no second adapter.
        fs::write(folder.path().join("._any name.safetensors"), "x").unwrap();
        assert!(PeftAdapter::open(folder.path()).is_ok());
    }
}

/// diffusers stores the scale in the metadata, if it is not 1.
#[test]
fn the_scale_in_the_metadata_of_diffusers_counts() {
    let folder = tempfile::tempdir().unwrap();
    let metadata =
        r#"{"unet.r":1,"unet.lora_alpha":4,"unet.rank_pattern":{},"unet.alpha_pattern":{"^b$":8}}"#;
    let metadata = BTreeMap::from([("lora_adapter_metadata".to_owned(), metadata.to_owned())]);
    let tensor =
        |shape: [u64; 2]| ("F32".to_owned(), shape.to_vec(), vec![0; 4 * (shape[0] * shape[1]) as usize]);
    let names = ["a", "b"].into_iter().flat_map(|module| {
        let name = |side: &str| format!("unet.{module}.lora_{side}.weight");
        [(name("A"), tensor([1, 2])), (name("B"), tensor([3, 1]))]
    });
    let mut file = fs::File::create(folder.path().join("pytorch_lora_weights.safetensors")).unwrap();
    crate::storage::safetensors::write(&mut file, &metadata, &names.collect()).unwrap();
    let adapter = PeftAdapter::open(folder.path()).unwrap();
    let scales: Vec<f64> = adapter.layers().values().map(|layer| layer.scale).collect();
    assert_eq!(scales, [4.0, 8.0]);
}

#[test]
fn files_that_cannot_be_an_adapter_have_a_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (_other, peft) = with_counted("", &[A, B]);
    fs::write(path("lora.pt"), "").unwrap();
    let mut texts = snapshot(peft.unwrap_err());
    texts += &snapshot(PeftAdapter::open(folder.path()).unwrap_err());
    texts += &snapshot(PeftAdapter::open(&path("lora.pt")).unwrap_err());
    for name in ["a.safetensors", "b.safetensors"] {
        write_tensors(&path(name), &[a(), b()]);
    }
    texts += &snapshot(PeftAdapter::open(folder.path()).unwrap_err());
    expect![[r#"
        FOLDER/any name.safetensors: the tensors have the names of a PEFT adapter, but there is no adapter_config.json with its scale; help: put adapter_config.json beside it, name the file adapter_model.safetensors, and give the folder
        FOLDER/lora.pt: a file of PyTorch is not read, because it can run arbitrary code; help: save its tensors as safetensors in Python: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "NEW.safetensors")
        FOLDER/lora.pt: a file of PyTorch is not read, because it can run arbitrary code; help: save its tensors as safetensors in Python: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "NEW.safetensors")
        FOLDER: the folder has no adapter_config.json, and several files that could be the adapter: "a.safetensors", "b.safetensors"; help: give one of the files
    "#]].assert_eq(&texts);
}

/// Two tensors that are one factor, or that have one name without wrappers, are no guess.
#[test]
fn tensors_with_one_meaning_are_refused() {
    let twice: [(&str, &[u64]); 3] = [
        ("unet.a.lora_A.weight", &[1, 2]),
        ("unet.a.lora.down.weight", &[1, 2]),
        ("unet.a.lora_B.weight", &[3, 1]),
    ];
    let layers: [(&str, &[u64]); 4] = [
        A,
        B,
        ("module.base_model.model.q.lora_A.weight", &[1, 2]),
        ("base_model.model.module.q.lora_B.weight", &[3, 1]),
    ];
    let heads: [(&str, &[u64]); 4] = [
        A,
        B,
        ("base_model.model.score.weight", &[2, 3]),
        ("base_model.model._orig_mod.score.weight", &[2, 3]),
    ];
    let missing: [(&str, &[u64]); 1] = [("unet.a.lora.down.weight", &[1, 2])];
    let texts = [("", &twice[..]), (CONFIG, &layers), (CONFIG, &heads), ("", &missing)]
        .map(|(config, tensors)| snapshot(with_counted(config, tensors).1.unwrap_err()));
    expect![[r#"
        FOLDER/any name.safetensors: tensor "unet.a.lora_A.weight": another tensor, "unet.a.lora.down.weight", is the same factor of the same layer
        FOLDER/adapter_model.safetensors: tensor "module.base_model.model.q.lora_A.weight": another tensor, "base_model.model.q.lora_A.weight", is the same factor of the same layer
        FOLDER/adapter_model.safetensors: tensor "base_model.model.module.q.lora_A.weight": the tensor is missing, but others of the same layer are present
        FOLDER/adapter_model.safetensors: tensor "base_model.model.score.weight": another tensor has the same name without the parts of wrappers, or after the renames
        FOLDER/any name.safetensors: tensor "unet.a.lora_B.weight": the tensor is missing, but others of the same layer are present
    "#]].assert_eq(&texts.concat());
}
