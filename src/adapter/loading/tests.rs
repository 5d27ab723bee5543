//! Tests of what loaders are told.

use super::super::testing::{adapter, checkpoint, factors, provenance, write_tensors};
use super::super::{CONFIG_FILE, Contents, Format, PeftAdapter, PeftContents, TENSORS_FILE, write_adapter};
use super::*;
use crate::element::Element;
use crate::storage::snapshot;
use expect_test::expect;
use safetensors::SafeTensors;
use std::fs;
use std::path::Path;

fn model(folder: &Path, config: &str) -> Checkpoint {
    let ones = |name, shape: Vec<u64>| {
        let count = shape.iter().product::<u64>() as usize;
        (name, Element::Bf16, shape, vec![1.0; count])
    };
    let tensors = [
        ones("bert.q.weight", vec![4, 3]),
        ones("classifier.dense.weight", vec![4, 4]),
        ones("classifier.out_proj.weight", vec![2, 4]),
        ones("classifier.out_proj.bias", vec![2]),
        ones("bert.classifiers.weight", vec![1, 2]),
    ];
    write_tensors(&folder.join("model.safetensors"), &tensors);
    fs::write(folder.join("config.json"), config).unwrap();
    checkpoint(folder)
}

fn loading(task: Option<&str>, saved: &[&str]) -> Loading {
    Loading {
        task: task.map(str::to_owned),
        modules_to_save: saved.iter().map(|&name| name.to_owned()).collect(),
        ..Loading::default()
    }
}

/// The adapter holds the head as the checkpoint has it, under the names that PEFT reads, and its configuration names it.
#[test]
fn heads_are_written_as_they_are_stored() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = model(folder.path(), r#"{"architectures":["BertForSequenceClassification"]}"#);
    for (given, saved) in
        [(loading(Some("SEQ_CLS"), &[]), "classifier"), (loading(None, &["out_proj"]), "out_proj")]
    {
        let (found, wholes) = given.of_checkpoint(&checkpoint).unwrap();
        let out = tempfile::tempdir().unwrap();
        let adapter = adapter([("bert.q", factors(4, 3, 2))]);
        let peft = PeftContents { loading: Some(&found), wholes: Some(&wholes), ..PeftContents::default() };
        let contents = Contents {
            adapter: &adapter,
            element: Element::F32,
            provenance: &provenance("update", &[]),
            other_modules: &BTreeSet::new(),
            beside: &[],
            peft,
        };
        write_adapter(out.path(), &contents, Format::Peft).unwrap();
        let bytes = fs::read(out.path().join(TENSORS_FILE)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let bias = tensors.tensor("base_model.model.classifier.out_proj.bias").unwrap();
        assert_eq!((bias.dtype(), bias.shape()), (safetensors::Dtype::BF16, &[2][..]));
        assert_eq!(bias.data(), checkpoint.read("classifier.out_proj.bias").unwrap());
        let dense = tensors.tensor("base_model.model.classifier.dense.weight");
        assert_eq!(dense.is_ok(), saved == "classifier");
        let config = fs::read_to_string(out.path().join(CONFIG_FILE)).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["modules_to_save"], json!([saved]));
        // An adapter has a task or a class.
        let class =
            json!({"base_model_class": "BertForSequenceClassification", "parent_library": "transformers"});
        let expected = match given.task {
            Some(task) => (json!(task), None),
            None => (Value::Null, Some(&class)),
        };
        assert_eq!((config["task_type"].clone(), config.get("auto_mapping")), expected);
    }
}

#[test]
fn heads_that_are_not_in_the_checkpoint_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = model(folder.path(), "{}");
    let given = loading(Some("QUESTION_ANS"), &["score", "classifier"]);
    expect![[r#"
        FOLDER: the checkpoint has no tensors of module "score" of --modules-to-save, and PEFT loads them from the adapter; help: load the model with this head, save it with model.save_pretrained(FOLDER), and give FOLDER: see docs/training.md
        FOLDER: the checkpoint has no tensors of the head of --task-type QUESTION_ANS, "qa_outputs", and PEFT loads them from the adapter; help: load the model with this head, save it with model.save_pretrained(FOLDER), and give FOLDER: see docs/training.md
    "#]]
    .assert_eq(&snapshot(given.of_checkpoint(&checkpoint).err().unwrap()));
    assert!(loading(Some("CAUSAL_LM"), &[]).of_checkpoint(&checkpoint).is_ok());
}

/// PEFT keeps `B` as it is if the configuration says so, and the program itself reads that back. The old configurations train both factors.
#[test]
fn the_configuration_tells_peft_to_keep_b() {
    for keeps_up in [false, true] {
        let loading = Loading { keeps_up, ..Loading::default() };
        let folder = tempfile::tempdir().unwrap();
        let contents = Contents {
            adapter: &adapter([("q", factors(4, 3, 2))]),
            element: Element::F32,
            provenance: &provenance("zero", &[]),
            other_modules: &BTreeSet::new(),
            beside: &[],
            peft: PeftContents { loading: Some(&loading), ..PeftContents::default() },
        };
        write_adapter(&folder.path().join("out"), &contents, Format::Peft).unwrap();
        let read = PeftAdapter::open(&folder.path().join("out")).unwrap();
        let config = read.config().unwrap();
        assert_eq!(config.keeps_up(), keeps_up);
        let wanted = if keeps_up { json!("mica") } else { json!(true) };
        assert_eq!(config.init_lora_weights, Some(wanted));
        // Saved outputs that were written without the field keep their meaning.
        let saved = serde_json::to_value(&loading).unwrap();
        assert_eq!(saved.get("keeps_up").is_some(), keeps_up);
        assert_eq!(serde_json::from_value::<Loading>(saved).unwrap(), loading);
    }
}

/// A class that is not in a library cannot be imported by its name.
#[test]
fn the_class_comes_from_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let class = |config| {
        let (loading, _) = Loading::default()
            .of_checkpoint(&model(folder.path(), config))
            .map(|(loading, _)| (loading, ()))
            .unwrap();
        loading.auto_mapping.map(|class| class.to_string())
    };
    let own = r#"{"architectures":["OwnModel"],"auto_map":{"AutoModel":"modeling.OwnModel"}}"#;
    assert_eq!([r#"{"architectures":[]}"#, r#"{"architectures":7}"#, own].map(class), [None, None, None]);
    expect![[r#"{"base_model_class":"UNet2DConditionModel","parent_library":"diffusers"}"#]]
        .assert_eq(&class(r#"{"_class_name":"UNet2DConditionModel"}"#).unwrap());
}
