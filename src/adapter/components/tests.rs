//! Tests of names for other formats.

use super::super::convert;
use super::super::testing::{factors, provenance, rows, try_write, write_tensors};
use super::*;
use crate::element::Element;
use crate::storage::snapshot;
use expect_test::expect;
use safetensors::SafeTensors;
use std::fs;
use tempfile::TempDir;

/// A file with the factors of these modules, as another program writes it.
fn file(folder: &Path, format: SingleFile, modules: &[&str]) {
    let suffixes = match format {
        SingleFile::Diffusers => [".lora_A.weight", ".lora_B.weight"],
        SingleFile::Kohya => [".lora_down.weight", ".lora_up.weight"],
    };
    let names: Vec<[String; 2]> =
        modules.iter().map(|module| suffixes.map(|suffix| format!("{module}{suffix}"))).collect();
    let mut tensors = Vec::new();
    for (at, [down, up]) in names.iter().enumerate() {
        let numbers = |count: usize| (0..count).map(|number| (number + at) as f64).collect();
        tensors.push((down.as_str(), Element::F32, vec![2, 3], numbers(6)));
        tensors.push((up.as_str(), Element::F32, vec![4, 2], numbers(8)));
    }
    fs::create_dir_all(folder).unwrap();
    write_tensors(&folder.join(format.file_name()), &tensors);
}

/// A checkpoint with these modules.
fn model(folder: &Path, modules: &[&str]) {
    let names: Vec<String> = modules.iter().map(|module| format!("{module}.weight")).collect();
    let tensors: Vec<_> =
        names.iter().map(|name| (name.as_str(), Element::F32, vec![4, 3], vec![1.0; 12])).collect();
    fs::create_dir_all(folder).unwrap();
    write_tensors(&folder.join("model.safetensors"), &tensors);
}

const TWO: [&str; 2] = ["unet.down.0.to_q", "text_encoder.text_model.encoder.layers.0.fc1"];
const TWO_FLAT: [&str; 2] = ["lora_unet_down_0_to_q", "lora_te_text_model_encoder_layers_0_fc1"];
const DIFFUSERS: Format = Format::SingleFile(SingleFile::Diffusers, Component::Unet);
const KOHYA: Format = Format::SingleFile(SingleFile::Kohya, Component::Unet);

/// A folder with files of two components, a pipeline and its UNet.
fn inputs() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    file(&path("two"), SingleFile::Diffusers, &TWO);
    file(&path("flat"), SingleFile::Kohya, &TWO_FLAT);
    file(&path("unet"), SingleFile::Kohya, &TWO_FLAT[..1]);
    file(&path("text"), SingleFile::Diffusers, &TWO[1..]);
    file(&path("other"), SingleFile::Kohya, &[TWO_FLAT[0], "lora_te3_encoder_block_0"]);
    model(&path("pipeline/unet"), &["down.0.to_q", "down.0.to_k"]);
    model(&path("pipeline/text_encoder"), &["text_model.encoder.layers.0.fc1"]);
    model(&path("ambiguous"), &["down.0.to_q", "down_0.to_q"]);
    folder
}

/// Converts an adapter of the inputs to a format. Returns the folder that was written, and the number of layers that were left out.
fn converted(
    inputs: &TempDir,
    name: &str,
    format: Format,
    component: Option<Component>,
    base: Option<&str>,
) -> Result<(TempDir, usize), Problems> {
    let read = PeftAdapter::open(&inputs.path().join(name))?;
    let mut adapter = convert(&read, None, None)?.adapter;
    let base = base.map(|base| inputs.path().join(base));
    let Named { format, left_out, old } =
        named(&mut adapter, &read, Naming { format, component, base: base.as_deref() })?;
    assert!(
        old.keys().eq(adapter.layers.keys()) && old.values().all(|name| read.layers().contains_key(name))
    );
    let out = tempfile::tempdir().unwrap();
    try_write(out.path(), &adapter, Element::F32, &provenance("update", &[]), format)?;
    Ok((out, left_out))
}

/// The names of the tensors of an adapter, read with the parser of the safetensors project.
fn tensors(folder: &TempDir) -> Vec<String> {
    let files = ["pytorch_lora_weights.safetensors", "lora.safetensors", "adapter_model.safetensors"];
    let file = files.iter().map(|file| folder.path().join(file)).find(|file| file.exists()).unwrap();
    let bytes = fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut names: Vec<String> = tensors.names().into_iter().map(|name| name.to_owned()).collect();
    names.retain(|name| {
        !name.ends_with(".alpha") && !name.contains("B.weight") && !name.contains("up.weight")
    });
    names.sort();
    names
}

/// Components stay apart in both formats of single files. Reading gives the names and products again.
#[test]
fn components_keep_their_names() {
    let inputs = inputs();
    let suffixed = |names: &[&str], suffix: &str| -> Vec<String> {
        let mut names: Vec<String> = names.iter().map(|name| format!("{name}{suffix}")).collect();
        names.sort();
        names
    };
    let (out, left_out) = converted(&inputs, "two", DIFFUSERS, None, None).unwrap();
    assert_eq!(left_out, 0);
    assert_eq!(tensors(&out), suffixed(&TWO, ".lora_A.weight"));
    let (out, _) = converted(&inputs, "two", KOHYA, None, None).unwrap();
    assert_eq!(tensors(&out), suffixed(&TWO_FLAT, ".lora_down.weight"));

    let (before, after) =
        (PeftAdapter::open(&inputs.path().join("two")).unwrap(), PeftAdapter::open(out.path()).unwrap());
    assert!(before.layers().keys().eq(after.layers().keys()), "{:?}", after.layers().keys());
    for (name, layer) in after.layers() {
        let original = before.layers()[name].clone();
        assert_eq!(layer.component, original.component);
        let (found, wanted) = (after.factors(layer).unwrap(), before.factors(&original).unwrap());
        assert_eq!((rows(&found.a), rows(&found.b)), (rows(&wanted.a), rows(&wanted.b)), "{name}");
    }
    // Two text encoders: kohya's scripts number both.
    file(&inputs.path().join("both"), SingleFile::Diffusers, &["text_encoder.a.b", "text_encoder_2.a.b"]);
    let (out, _) = converted(&inputs, "both", KOHYA, None, None).unwrap();
    assert_eq!(tensors(&out), suffixed(&["lora_te1_a_b", "lora_te2_a_b"], ".lora_down.weight"));
}

/// The component of the names in the file is the default. A component that the user names is kept alone.
#[test]
fn a_component_is_taken_from_the_names_or_chosen() {
    let inputs = inputs();
    let (out, _) = converted(&inputs, "text", DIFFUSERS, None, None).unwrap();
    assert_eq!(tensors(&out), ["text_encoder.text_model.encoder.layers.0.fc1.lora_A.weight"]);
    let (out, left_out) = converted(&inputs, "two", Format::Peft, Some(Component::Unet), None).unwrap();
    assert_eq!(tensors(&out), ["base_model.model.down.0.to_q.lora_A.weight"]);
    assert_eq!(left_out, 1);
    // The prefix of kohya's format stands for the UNet or a transformer.
    let transformer = Some(Component::Transformer);
    let (out, _) = converted(&inputs, "unet", DIFFUSERS, transformer, Some("pipeline/unet")).unwrap();
    assert_eq!(tensors(&out), ["transformer.down.0.to_q.lora_A.weight"]);
}

/// The modules of the base resolve names in which `_` stands for `.`.
#[test]
fn flattened_names_are_resolved_with_the_base() {
    let inputs = inputs();
    let (out, _) = converted(&inputs, "flat", DIFFUSERS, None, Some("pipeline")).unwrap();
    let mut expected = TWO.map(|name| format!("{name}.lora_A.weight"));
    expected.sort();
    assert_eq!(tensors(&out), expected);
    for base in ["pipeline", "pipeline/unet"] {
        let (out, _) = converted(&inputs, "unet", Format::Peft, None, Some(base)).unwrap();
        assert_eq!(tensors(&out), ["base_model.model.down.0.to_q.lora_A.weight"]);
        let config = fs::read_to_string(out.path().join("adapter_config.json")).unwrap();
        assert!(config.contains("pipeline/unet\""), "{config}");
    }
    let (out, _) = converted(&inputs, "flat", KOHYA, None, None).unwrap();
    assert_eq!(tensors(&out).len(), 2);
}

/// Names of transformers since 5.6 have no `text_model.`, but both formats of single files have it.
#[test]
fn text_encoders_resolve_with_their_names_of_today() {
    let inputs = inputs();
    model(&inputs.path().join("today"), &["encoder.layers.0.fc1"]);
    file(&inputs.path().join("te"), SingleFile::Kohya, &TWO_FLAT[1..]);
    let (out, _) = converted(&inputs, "te", Format::Peft, None, Some("today")).unwrap();
    assert_eq!(tensors(&out), ["base_model.model.encoder.layers.0.fc1.lora_A.weight"]);
    let (out, _) = converted(&inputs, "te", DIFFUSERS, None, Some("today")).unwrap();
    assert_eq!(tensors(&out), ["text_encoder.text_model.encoder.layers.0.fc1.lora_A.weight"]);
}

#[test]
fn names_that_cannot_be_written_are_refused() {
    let inputs = inputs();
    let unet = Some(Component::Unet);
    let cases = [
        ("two", Format::Peft, None, None),
        ("two", Format::Mlx, None, None),
        ("two", DIFFUSERS, Some(Component::TextEncoder2), None),
        ("text", DIFFUSERS, unet, None),
        ("text", Format::Peft, Some(Component::TextEncoder), None),
        ("flat", DIFFUSERS, None, None),
        ("unet", Format::Peft, None, None),
        ("flat", DIFFUSERS, None, Some("pipeline/unet")),
        ("unet", DIFFUSERS, None, Some("pipeline/text_encoder")),
        ("unet", DIFFUSERS, None, Some("ambiguous")),
        ("unet", KOHYA, None, Some("pipeline/unet")),
        ("two", DIFFUSERS, None, Some("pipeline")),
        ("other", KOHYA, None, None),
    ];
    let mut texts = String::new();
    for (name, format, component, base) in cases {
        let refused = converted(&inputs, name, format, component, base).err();
        texts += &refused.map_or_else(|| format!("{name} {format:?} is not refused\n"), snapshot);
    }
    // Beside layers that cannot be named, a component can be chosen.
    let (out, _) = converted(&inputs, "other", KOHYA, unet, None).unwrap();
    assert_eq!(tensors(&out), ["lora_unet_down_0_to_q.lora_down.weight"]);
    expect![[r#"
        FOLDER/two/pytorch_lora_weights.safetensors: this format holds one component of a pipeline, but the adapter has unet, text-encoder; help: choose one with --component, and convert the others in further commands
        FOLDER/two/pytorch_lora_weights.safetensors: this format holds one component of a pipeline, but the adapter has unet, text-encoder; help: choose one with --component, and convert the others in further commands
        FOLDER/two/pytorch_lora_weights.safetensors: the adapter has no layer of the text-encoder-2: it has unet, text-encoder; help: give one of these with --component
        FOLDER/text/pytorch_lora_weights.safetensors: the adapter has no layer of the unet: it has text-encoder; help: give one of these with --component
        --component has no effect: the adapter has only the text-encoder; help: remove --component
        FOLDER/flat/lora.safetensors: kohya's format writes `_` for `.` in the names of modules, and nothing tells the names in the model: "text_encoder.text_model_encoder_layers_0_fc1", "unet.down_0_to_q"; help: give the model with --base: its modules resolve these names
        FOLDER/unet/lora.safetensors: kohya's format writes `_` for `.` in the names of modules, and nothing tells the names in the model: "down_0_to_q"; help: give the model with --base: its modules resolve these names
        FOLDER/pipeline/unet: the adapter has several components, and this folder has no folder "unet"; help: give the folder of the pipeline, or choose one component with --component
        FOLDER/pipeline/unet: the adapter has several components, and this folder has no folder "text_encoder"; help: give the folder of the pipeline, or choose one component with --component
        FOLDER/pipeline/text_encoder: the base has no module for these names: "down_0_to_q"; help: give the model that the adapter was trained on, in the layout of diffusers or transformers
        FOLDER/ambiguous: the base has several modules for these names: "down_0_to_q (down.0.to_q or down_0.to_q)"; help: give the model that the adapter was trained on, in the layout of diffusers or transformers
        --base has no effect: kohya's format needs no other names; help: remove --base
        --base has no effect: all names are known; help: remove --base
        FOLDER/other/lora.safetensors: "lora_te3_encoder_block_0" belongs to none of the components that can be named, beside layers of unet; help: choose a component with --component: the others are left out
    "#]]
    .assert_eq(&texts.replace(inputs.path().to_str().unwrap(), "INPUTS"));
}

/// An adapter in the format of PEFT has no components.
#[test]
fn components_of_peft_adapters_are_chosen_by_the_user() {
    let folder = tempfile::tempdir().unwrap();
    let adapter = super::super::testing::adapter([("a.b", factors(4, 3, 2))]);
    try_write(folder.path(), &adapter, Element::F32, &provenance("update", &[]), Format::Peft).unwrap();
    let read = PeftAdapter::open(folder.path()).unwrap();
    let named = |format, component| {
        let mut adapter = convert(&read, None, None).unwrap().adapter;
        named(&mut adapter, &read, Naming { format, component, base: None })
    };
    assert_eq!(named(DIFFUSERS, None).unwrap().format, DIFFUSERS);
    let text = Format::SingleFile(SingleFile::Diffusers, Component::TextEncoder);
    assert_eq!(named(DIFFUSERS, Some(Component::TextEncoder)).unwrap().format, text);
    expect![[r#"
        --component has no effect: this format holds one component, and so does the adapter; help: remove --component
    "#]]
    .assert_eq(&snapshot(named(Format::Peft, Some(Component::Unet)).unwrap_err()));
}
