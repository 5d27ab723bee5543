use super::super::testing::{adapter, factors, rows, write, write_tensors};
use super::*;
use crate::storage::{Category, snapshot};
use expect_test::expect;

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
        FOLDER/adapter_model.safetensors: tensor "base_model.model.q.lora_magnitude_vector": unsupported tensor name: expected base_model.model.MODULE.lora_A.weight or base_model.model.MODULE.lora_B.weight of a linear layer, convolution or embedding
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
    for wrong in [folder.path().join("missing"), folder.path().join("adapter_model.bin")] {
        let problems = PeftAdapter::open(&wrong).unwrap_err();
        assert_eq!(problems.category(), Category::Io);
        texts += &snapshot(problems);
    }
    expect![[r#"
        FOLDER/adapter_config.json: the configuration of the PEFT adapter is missing; help: this file is written last: if the other files are present, writing was interrupted, so write the adapter again
        FOLDER/adapter_model.safetensors: the tensors of the PEFT adapter are missing; help: adapter_model.bin is not read, because it can run arbitrary code: save the adapter as safetensors
        FOLDER/missing: cannot open the folder: No such file or directory (os error 2)
        FOLDER/adapter_model.bin: the path of an adapter must be a folder; help: give the folder that contains adapter_config.json
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
    let metadata = BTreeMap::from([(MODULES_KEY.to_owned(), "[]".to_owned())]);
    let mut file = fs::File::create(folder.path().join(SingleFile::Kohya.file_name())).unwrap();
    crate::storage::safetensors::write(&mut file, &metadata, &BTreeMap::new()).unwrap();
    expect![[r#"
        FOLDER/lora.safetensors: invalid metadata entry "cntlora_modules": invalid type: sequence, expected an object at line 1 column 0; help: write the adapter again
    "#]].assert_eq(&snapshot(PeftAdapter::open(folder.path()).unwrap_err()));
}
