//! Tests of every method on every kind of layer in every format. The written adapter must add the computed update. The residual base
//! plus the update must equal the model.

use cntlora::adapter::{
    AdaptedWeight, Component, Contents, Format, PeftAdapter, PeftContents, SingleFile, verify, write_adapter,
    write_residual_base,
};
use cntlora::element::Element;
use cntlora::factors::{Factors, LayerName, LayerShape, Start};
use cntlora::method::{Method, Options};
use cntlora::plan::{self, Request};
use cntlora::random::gaussian;
use cntlora::rank::{Limits, Policy};
use cntlora::run;
use cntlora::storage::{Access, Checkpoint, Piece, safetensors};
use faer::Mat;
use serde_json::{Map, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

/// A layer with its name, the name and the shape of its weight, and the shape of its activations.
struct Layer {
    module: &'static str,
    tensor: &'static str,
    weight: &'static [u64],
    rows: &'static [u64],
}

const fn layer(
    module: &'static str,
    tensor: &'static str,
    weight: &'static [u64],
    rows: &'static [u64],
) -> Layer {
    Layer { module, tensor, weight, rows }
}

/// A model with some weights that are stored as `[inputs, outputs]`.
const GPT2: [Layer; 4] = [
    layer("h.0.attn.c_attn", "h.0.attn.c_attn.weight", &[5, 15], &[40, 5]),
    layer("h.0.attn.c_proj", "h.0.attn.c_proj.weight", &[5, 5], &[40, 5]),
    layer("head", "head.weight", &[6, 7], &[10, 4, 7]),
    layer("patches", "patches.weight", &[6, 2, 3, 2], &[4, 2, 5, 5]),
];
/// A model with experts that are stored in one parameter, experts that are stored one by one, and a convolution in groups.
const EXPERTS: [Layer; 5] = [
    layer("layers.0.mlp.experts.gate_up_proj", "layers.0.mlp.experts.gate_up_proj", &[3, 8, 6], &[40, 6]),
    layer("layers.0.mlp.experts.down_proj", "layers.0.mlp.experts.down_proj", &[3, 6, 4], &[40, 4]),
    layer("layers.1.mlp.experts.gate_up_proj", "layers.1.mlp.experts.0.gate_proj.weight", &[5, 6], &[40, 6]),
    layer("", "layers.1.mlp.experts.0.up_proj.weight", &[5, 6], &[]),
    layer("patches", "patches.weight", &[6, 2, 3, 2], &[4, 4, 5, 5]),
];

/// A model with convolutions of one and three dimensions, and with one weight whose halves are two layers.
const OTHERS: [Layer; 4] = [
    layer("layer.0.mlp.gate_proj", "layer.0.mlp.weights_in.weight", &[12, 6], &[40, 6]),
    layer("layer.0.mlp.up_proj", "", &[], &[40, 6]),
    layer("samples", "samples.weight", &[6, 2, 4], &[9, 2, 10]),
    layer("tubelets", "tubelets.weight", &[6, 2, 2, 2, 1], &[4, 2, 4, 3, 2]),
];
/// Experts that are stored as `[inputs, outputs]`.
const TRANSPOSED_EXPERTS: [Layer; 2] = [
    layer("layers.0.mlp.experts.gate_up_proj", "layers.0.mlp.experts.gate_up_proj", &[3, 6, 8], &[40, 6]),
    layer("layers.0.mlp.experts.down_proj", "layers.0.mlp.experts.down_proj", &[3, 4, 6], &[40, 4]),
];

/// A model with an embedding. The activations of the embedding are the counts of the tokens.
const EMBEDDING: [Layer; 2] =
    [layer("head", "head.weight", &[6, 5], &[40, 5]), layer("wte", "wte.weight", &[9, 5], &[9])];

fn write<'a>(
    path: &Path,
    metadata: Option<String>,
    seed: u64,
    tensors: impl Iterator<Item = (&'a str, &'a [u64])>,
) {
    let tensors = tensors.map(|(name, shape)| {
        let count = shape.iter().product::<u64>() as usize;
        let values = gaussian::<f64>(count, 1, seed, &format!("{name} {shape:?}"));
        let value = |i: usize| match shape {
            [_] => (4.0 * values[(i, 0)].abs()).floor(),
            _ => values[(i, 0)],
        };
        let mut bytes = Vec::new();
        Element::F32.encode((0..count).map(value), &mut bytes);
        (name.to_owned(), ("F32".to_owned(), shape.to_vec(), bytes))
    });
    let tensors = tensors.collect();
    let metadata = metadata.map(|text| ("cntlora".to_owned(), text)).into_iter().collect();
    safetensors::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

/// Writes a model, its activations, and pre-training activations.
fn write_model(folder: &Path, layers: &[Layer]) {
    std::fs::create_dir(folder.join("model")).unwrap();
    let weights = layers.iter().filter(|layer| !layer.tensor.is_empty());
    let weights = weights.map(|layer| (layer.tensor, layer.weight));
    write(&folder.join("model/model.safetensors"), None, 3, weights);
    let convolutions: Map<String, serde_json::Value> = [
        ("patches", json!({ "kernel": [3, 2], "stride": [1, 2], "padding": [1, 0] })),
        ("samples", json!({ "kernel": [4], "stride": [2], "padding": [1] })),
        ("tubelets", json!({ "kernel": [2, 2, 1], "stride": [2, 1, 1], "padding": [0, 0, 0] })),
    ]
    .into_iter()
    .filter(|(module, _)| layers.iter().any(|layer| layer.module == *module))
    .map(|(module, convolution)| (module.to_owned(), convolution))
    .collect();
    let metadata =
        json!({ "format": "activations", "version": 1, "sites": {}, "convolutions": convolutions });
    let sites = layers.iter().filter(|layer| !layer.rows.is_empty()).map(|layer| (layer.module, layer.rows));
    for (name, seed) in [("activations", 3), ("source", 4)] {
        let path = folder.join(format!("{name}.safetensors"));
        write(&path, Some(metadata.to_string()), seed, sites.clone());
    }
}

fn request(folder: &Path, method: Method) -> Request {
    let options = Options {
        method,
        start: method.starts()[0],
        ranks: Policy::Fixed(4),
        limits: Limits { min: 0, max: 4, multiple: 1 },
        scale: 2.0,
        ..Options::default()
    };
    let files = |is_read: bool, name: &str| if is_read { vec![folder.join(name)] } else { Vec::new() };
    let activations = files(!method.reads_only_source(), "activations.safetensors");
    let source = files(method.needs_source(), "source.safetensors");
    Request { method: options, source, ..Request::new(folder.join("model"), activations) }
}

/// Returns `s B A` in the order in which the weight is stored.
fn stored_update(factors: &Factors, shape: &LayerShape, scale: f64) -> Mat<f32> {
    let Factors { a, b } = shape.of_stored_weight(factors);
    b * a * faer::Scale(scale as f32)
}

/// Returns the numbers of a weight in the order in which they are stored.
fn weight(checkpoint: &Checkpoint, pieces: &[Piece]) -> Vec<f32> {
    let bytes: Vec<u8> = pieces.iter().flat_map(|piece| checkpoint.read_piece(piece).unwrap()).collect();
    let mut values = vec![0.0; bytes.len() / 4];
    Element::F32.decode_f32(&bytes, &mut values);
    values
}

#[test]
fn methods_work_on_linear_transposed_and_convolution_layers() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), &GPT2);
    std::fs::write(folder.path().join("model/config.json"), r#"{"model_type":"gpt2"}"#).unwrap();
    let kernel = LayerShape::Convolution(vec![3, 2]);
    let shapes = [LayerShape::Transposed, LayerShape::Transposed, LayerShape::Linear, kernel];
    check_methods(folder.path(), |_| shapes.to_vec(), &ALL_FORMATS);
}

const ALL_FORMATS: [Format; 3] = [
    Format::Peft,
    Format::SingleFile(SingleFile::Diffusers, Component::Unet),
    Format::SingleFile(SingleFile::Kohya, Component::TextEncoder),
];

#[test]
fn methods_work_on_other_convolutions_and_halves_of_weights() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), &OTHERS);
    let convolution = |kernel: &[u64]| LayerShape::Convolution(kernel.to_vec());
    let shapes = [LayerShape::Linear, LayerShape::Linear, convolution(&[4]), convolution(&[2, 2, 1])];
    check_methods(folder.path(), |_| shapes.to_vec(), &ALL_FORMATS);
}

/// gpt-oss has such experts.
#[test]
fn methods_work_on_transposed_experts() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), &TRANSPOSED_EXPERTS);
    std::fs::write(folder.path().join("model/config.json"), r#"{"model_type":"gpt_oss"}"#).unwrap();
    let shapes = vec![LayerShape::Expert { count: 3, transposed: true }; 6];
    check_methods(folder.path(), |_| shapes.clone(), &[Format::Peft]);
}

/// Only the PEFT format supports experts and groups.
#[test]
fn methods_work_on_experts_and_groups() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), &EXPERTS);
    let expert = |count| LayerShape::Expert { count, transposed: false };
    let group = LayerShape::Group { count: 2, kernel: vec![3, 2] };
    let shapes = [vec![expert(3); 6], vec![expert(1)], vec![group; 2]].concat();
    check_methods(folder.path(), |_| shapes.clone(), &[Format::Peft]);
}

/// Methods that do not adapt embeddings skip them and give a reason. The formats of image models have no names for embeddings.
#[test]
fn methods_work_on_embeddings_or_skip_them() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), &EMBEDDING);
    let shapes = |method: Method| match method.reason_against(&LayerShape::Embedding) {
        None => vec![LayerShape::Linear, LayerShape::Embedding],
        Some(reason) => {
            let (plan, _) = plan::plan(&request(folder.path(), method)).unwrap();
            assert_eq!(plan.skipped.len(), 1, "{}", method.name());
            assert!(plan.skipped[0].name == "wte" && plan.skipped[0].reason.ends_with(reason));
            vec![LayerShape::Linear]
        }
    };
    check_methods(folder.path(), shapes, &[Format::Peft]);
}

/// Checks every method with every start on a model, in these formats. `expected` returns the shapes of the planned layers, if the method
/// adapts all of them.
fn check_methods(folder: &Path, expected: impl Fn(Method) -> Vec<LayerShape>, formats: &[Format]) {
    let path = |name: &str| folder.join(name);
    let model = Checkpoint::open(&path("model"), Access::Auto).unwrap();
    let starts =
        Method::ALL.into_iter().flat_map(|method| method.starts().iter().map(move |start| (method, *start)));
    for (method, start) in starts {
        let name = format!("{}-{}", method.name(), start.name());
        let mut expected = expected(method);
        let all = expected.len();
        expected.retain(|shape| method.reason_against(shape).is_none());
        assert!(expected.len() == all || method == Method::Mica, "{name}");
        let mut request = request(folder, method);
        request.method.start = start;
        let planned = plan::plan(&request);
        if expected.is_empty() {
            let refused = planned.map(drop).unwrap_err().to_string();
            assert!(refused.contains("the method mica does not adapt"), "{refused}");
            continue;
        }
        let (plan, inputs) = planned.unwrap();
        let shapes: Vec<LayerShape> = plan.layers().map(|layer| layer.shape.clone()).collect();
        assert_eq!(shapes, expected, "{name}");
        let adapter = run::run(&plan, &inputs, &()).unwrap().adapter;
        assert_eq!(adapter.layers.len(), expected.len(), "{name}");

        for (at, &format) in formats.iter().enumerate() {
            let out = path(&format!("{name}-{at}"));
            let contents = Contents {
                adapter: &adapter,
                element: Element::F32,
                provenance: &record(&plan),
                other_modules: &BTreeSet::new(),
                beside: &[],
                peft: PeftContents::default(),
            };
            write_adapter(&out, &contents, format).unwrap();
            let weights: BTreeMap<LayerName, Vec<Piece>> =
                plan.layers().map(|layer| (layer.name.clone(), layer.weight.clone())).collect();
            let verified = verify(&out, Some(&model), &weights);
            assert!(verified.is_ok(), "{name} {format:?}: {}", verified.unwrap_err());
            let read = PeftAdapter::open(&out).unwrap();
            assert!(read.layers().keys().eq(adapter.layers.keys()), "{name} {format:?}");
            for (module, layer) in read.layers() {
                let wanted = &adapter.layers[module];
                let wanted = &wanted.b * &wanted.a * faer::Scale(adapter.scale as f32);
                let found = read.factors(layer).unwrap();
                let found = found.b * found.a * faer::Scale(layer.scale as f32);
                assert!((found - &wanted).norm_max() < 1e-5, "{name} {format:?} {module}");
                assert_eq!(
                    read.factors(layer).unwrap().is_mirrored(),
                    start == Start::Mirrored,
                    "{name} {module}"
                );
            }
        }

        if plan.method.start == Start::Residual {
            // A convolution in groups minus its update has no groups. Only an anchor can hold the difference.
            let layers = || plan.layers().filter(|layer| !matches!(layer.shape, LayerShape::Group { .. }));
            let adapted: Vec<AdaptedWeight> = layers()
                .map(|layer| AdaptedWeight {
                    pieces: layer.weight.clone(),
                    factors: layer.shape.of_stored_weight(&adapter.layers[&layer.name]),
                })
                .collect();
            let base = path(&format!("{name}-base"));
            write_residual_base(&base, &model, &adapted, adapter.scale, Element::F32).unwrap();
            let base = Checkpoint::open(&base, Access::Auto).unwrap();
            for layer in layers() {
                let update = stored_update(&adapter.layers[&layer.name], &layer.shape, adapter.scale);
                let (old, new) = (weight(&model, &layer.weight), weight(&base, &layer.weight));
                let columns = update.ncols();
                let differs = (0..old.len())
                    .any(|i| (new[i] + update[(i / columns, i % columns)] - old[i]).abs() > 1e-5);
                assert!(!differs && old != new, "{name} {}", layer.name);
            }
        }
    }
}

/// An expert gets the factors of a linear layer with the same weight. A group gets the factors of a convolution that reads all
/// channels, with zero weights for the channels of the other group.
#[test]
fn experts_and_groups_get_the_factors_of_separate_layers() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), &EXPERTS);
    let factors = |request: &Request| {
        let (plan, inputs) = plan::plan(request).unwrap();
        run::run(&plan, &inputs, &()).unwrap().adapter.layers
    };
    let mut request = request(folder.path(), Method::Cntlora);
    request.method.start = Start::Residual;
    let blocks = factors(&request);
    let model = Checkpoint::open(&folder.path().join("model"), Access::Auto).unwrap();
    for (block, module, outputs, inputs, rank) in [
        (1, "layers.0.mlp.experts.gate_up_proj", 8, 6, 4),
        (0, "layers.1.mlp.experts.gate_up_proj", 10, 6, 4),
        (1, "patches", 3, 24, 2),
    ] {
        let block = LayerName::of_block(module, block);
        let (plan, _) = plan::plan(&request).unwrap();
        let planned = plan.layers().find(|layer| layer.name == block).unwrap();
        let numbers = weight(&model, &planned.weight);
        // The channels of the second group come after the channels of the first group.
        let own = numbers.len() / outputs;
        let at =
            |i: usize, j: usize| if j < inputs - own { 0.0 } else { numbers[i * own + j - (inputs - own)] };
        let mut bytes = Vec::new();
        Element::F32.encode((0..outputs * inputs).map(|k| f64::from(at(k / inputs, k % inputs))), &mut bytes);
        let linear = folder.path().join("linear.safetensors");
        let shape = match module {
            "patches" => vec![outputs as u64, 4, 3, 2],
            _ => vec![outputs as u64, inputs as u64],
        };
        let tensors = BTreeMap::from([(format!("{module}.weight"), ("F32".to_owned(), shape, bytes))]);
        safetensors::write(&mut File::create(&linear).unwrap(), &BTreeMap::new(), &tensors).unwrap();
        let mut alone = Request { model: linear, ..request.clone() };
        alone.selection.targets = vec![module.into()];
        alone.method.ranks = Policy::Fixed(rank);
        let (found, wanted) = (&blocks[&block], &factors(&alone)[&module.into()]);
        let difference = &found.b * &found.a - &wanted.b * &wanted.a;
        let size = (&wanted.b * &wanted.a).norm_l2();
        assert!(size > 0.0 && difference.norm_l2() < 1e-4 * size, "{block}: {}", difference.norm_l2() / size);
    }
}

/// Returns the record that `verify` needs.
fn record(plan: &plan::Plan) -> Map<String, serde_json::Value> {
    let record = json!({ "format": "cntlora-adapter", "version": 1, "method": plan.method });
    record.as_object().cloned().unwrap()
}

/// Patches can be unfolded while they are read, or before. Both give factors with the same bits.
#[test]
fn unfolding_while_reading_does_not_change_the_factors() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    write_model(folder.path(), &GPT2);
    let mut request = request(folder.path(), Method::Cntlora);
    request.selection.targets = vec!["patches".into()];
    let factors = |request: &Request| {
        let (plan, inputs) = plan::plan(request).unwrap();
        run::run(&plan, &inputs, &()).unwrap().adapter.layers.remove(&"patches".into()).unwrap()
    };
    let streamed = factors(&request);

    let image = gaussian::<f64>(4 * 2 * 5 * 5, 1, 3, "patches [4, 2, 5, 5]");
    let at = |n: usize, c: usize, i: usize, j: usize| match i {
        1..=5 => image[(((n * 2 + c) * 5 + i - 1) * 5 + j, 0)],
        _ => 0.0,
    };
    let mut bytes = Vec::new();
    for n in 0..4 {
        for (i, j) in (0..5).flat_map(|i| [0, 2].map(|j| (i, j))) {
            let entries = (0..12).map(|k| at(n, k / 6, i + k % 6 / 2, j + k % 2));
            Element::F32.encode(entries, &mut bytes);
        }
    }
    let tensors = BTreeMap::from([("patches".to_owned(), ("F32".to_owned(), vec![40, 12], bytes))]);
    let file = path("unfolded.safetensors");
    safetensors::write(&mut File::create(&file).unwrap(), &BTreeMap::new(), &tensors).unwrap();
    request.activations = vec![file];
    let unfolded = factors(&request);
    assert!(streamed.a == unfolded.a && streamed.b == unfolded.b);
}
