use super::super::testing::{adapter, factors, rows, write, write_tensors};
use super::*;
use crate::storage::Category;

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
fn an_adapter_of_peft_is_read() {
    let text = r#"{"peft_type":"LORA","r":8,"lora_alpha":4.0,"rank_pattern":{"q":1},"peft_version":"0.21.2",
        "target_modules":"all-linear","eva_config":null,"layers_pattern":null,"use_rslora":false}"#;
    let adapter = opened(text, &[a(), b()]).unwrap();
    let layer = &adapter.layers()["q"];
    assert_eq!((layer.rank, layer.inputs, layer.outputs, layer.scale), (1, 2, 3, 4.0));
    let factors = adapter.factors(layer).unwrap();
    assert_eq!((rows(&factors.a), rows(&factors.b)), (vec![1.0, 2.0], vec![3.0, 4.0, 5.0]));
}

/// PEFT saves the base weights of adapted embeddings and output heads beside their factors.
#[test]
fn copies_of_base_weights_are_passed_over() {
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
    assert!(adapter.layers().keys().eq(["e", "q"]));
    // Without factors beside it, it is a weight that is not understood.
    let problems = opened(CONFIG, &[a(), b(), copy]).unwrap_err();
    assert_eq!(problems.0.len(), 1, "{problems}");
    assert!(problems.to_string().contains("e.base_layer.weight\": expected a name like"), "{problems}");
}

#[test]
fn every_complaint_names_the_file_and_what_was_found() {
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
    for (config, tensors, complaint) in [
        (CONFIG, vec![a()], "lora_B.weight\": expected this tensor beside"),
        (CONFIG, vec![b()], "lora_A.weight\": expected this tensor beside"),
        (CONFIG, vec![flat, b()], "expected A, of shape [rank, inputs], found shape [2]"),
        (CONFIG, vec![empty, b()], "expected A, of shape [rank, inputs], found shape [1, 0]"),
        (CONFIG, vec![a(), wide], "expected 1 columns, one per row of its A, found 2"),
        (CONFIG, vec![a(), half], "expected the format of its A, \"F32\", found \"F16\""),
        (CONFIG, vec![a(), b(), unprefixed], "tensor \"q.lora_A.weight\": expected a name like"),
        (CONFIG, vec![a(), b(), token.clone()], "lora_embedding_B\": expected this tensor beside"),
        (CONFIG, vec![a(), b(), token, token_up], "those of an embedding and those of another layer"),
        (CONFIG, vec![deep, deep_up], "expected A, of shape [rank, tokens], found shape [1, 2, 1]"),
        (
            CONFIG,
            vec![a(), b(), magnitude],
            "only adapters of linear layers, convolutions and embeddings are read",
        ),
        (r#"{"peft_type":"LORA"}"#, vec![a(), b()], "expected rank 8, as adapter_config.json says, found 1"),
        (r#"{"peft_type":"LOHA"}"#, vec![a(), b()], "expected peft_type \"LORA\", found \"LOHA\""),
        ("{", vec![a(), b()], "expected the configuration of a PEFT adapter as JSON"),
    ] {
        let problems = opened(config, &tensors).unwrap_err();
        assert_eq!(problems.0.len(), 1, "{problems}");
        assert!(problems.to_string().contains(complaint), "{problems}");
        assert!(problems.to_string().contains("adapter_"), "the file is named: {problems}");
        assert_eq!(problems.category(), Category::Data);
    }
}

#[test]
fn integers_are_no_factors() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(CONFIG_FILE), CONFIG).unwrap();
    let integer = |name: &str, shape: Vec<u64>, length| (name.into(), ("I32".into(), shape, vec![0; length]));
    let tensors = BTreeMap::from([integer(a().0, vec![1, 2], 8), integer(b().0, vec![3, 1], 12)]);
    let mut file = fs::File::create(folder.path().join(TENSORS_FILE)).unwrap();
    crate::storage::safetensors::write(&mut file, &BTreeMap::new(), &tensors).unwrap();
    let problems = PeftAdapter::open(folder.path()).unwrap_err();
    assert!(problems.to_string().contains("expected F32, F16, BF16 or F64, found \"I32\""), "{problems}");
}

#[test]
fn missing_files_are_reported_together() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("adapter_model.bin"), b"").unwrap();
    let problems = PeftAdapter::open(folder.path()).unwrap_err();
    assert_eq!(problems.0.len(), 2, "{problems}");
    assert!(problems.0[0].next_step().unwrap().contains("written last"));
    assert!(problems.0[1].next_step().unwrap().contains("adapter_model.bin is not read"));
    assert_eq!(problems.category(), Category::Data);

    for wrong in [folder.path().join("missing"), folder.path().join("adapter_model.bin")] {
        assert_eq!(PeftAdapter::open(&wrong).unwrap_err().category(), Category::Io);
    }
}

/// Protects memory against a header that promises more than the file holds.
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
