//! Every method on every kind of layer, in every format: what is written adds what was computed, and the residual base with it is
//! the model.

use cntlora::adapter::{
    Component, Format, PeftAdapter, SingleFile, verify, write_adapter, write_residual_base,
};
use cntlora::element::Element;
use cntlora::factors::{Factors, LayerShape, Start};
use cntlora::method::{Method, Options};
use cntlora::plan::{self, Request};
use cntlora::random::gaussian;
use cntlora::rank::{Limits, Policy};
use cntlora::run;
use cntlora::storage::{Access, Checkpoint, safetensors};
use faer::Mat;
use serde_json::{Map, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

/// Name, shape of the weight, and shape of the activations of each layer.
type Layers = [(&'static str, &'static [u64], &'static [u64]); 4];
const LAYERS: Layers = [
    ("h.0.attn.c_attn", &[5, 15], &[40, 5]),
    ("h.0.attn.c_proj", &[5, 5], &[40, 5]),
    ("head", &[6, 7], &[10, 4, 7]),
    ("patches", &[6, 2, 3, 2], &[4, 2, 5, 5]),
];

fn write(
    path: &Path,
    metadata: Option<String>,
    shape_of: impl Fn(&(&str, &'static [u64], &'static [u64])) -> &'static [u64],
) {
    let tensors = LAYERS.iter().map(|layer| {
        let shape = shape_of(layer);
        let count = shape.iter().product::<u64>() as usize;
        let values = gaussian::<f64>(count, 1, 3, &format!("{} {shape:?}", layer.0));
        let mut bytes = Vec::new();
        Element::F32.encode((0..count).map(|i| values[(i, 0)]), &mut bytes);
        let name = if metadata.is_some() { layer.0.to_owned() } else { format!("{}.weight", layer.0) };
        (name, ("F32".to_owned(), shape.to_vec(), bytes))
    });
    let tensors = tensors.collect();
    let metadata = metadata.map(|text| ("cntlora".to_owned(), text)).into_iter().collect();
    safetensors::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

fn request(folder: &Path, method: Method) -> Request {
    let options = Options {
        method,
        start: method.starts()[0],
        ranks: Policy::Fixed(2),
        limits: Limits { min: 0, max: 2, multiple: 1 },
        scale: 2.0,
        ..Options::default()
    };
    let activations = vec![folder.join("activations.safetensors")];
    Request { method: options, ..Request::new(folder.join("model"), activations) }
}

/// `s B A` in the order in which the weight is stored.
fn stored_update(factors: &Factors, shape: &LayerShape, scale: f64) -> Mat<f32> {
    let Factors { a, b } = shape.of_stored_weight(factors);
    b * a * faer::Scale(scale as f32)
}

/// The numbers of a weight, in the order in which they are stored.
fn weight(checkpoint: &Checkpoint, tensor: &str) -> Vec<f32> {
    let bytes = checkpoint.read(tensor).unwrap();
    let mut values = vec![0.0; bytes.len() / 4];
    Element::F32.decode_f32(&bytes, &mut values);
    values
}

#[test]
fn methods_layers_and_formats() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("model")).unwrap();
    std::fs::write(path("model/config.json"), r#"{"model_type":"gpt2"}"#).unwrap();
    write(&path("model/model.safetensors"), None, |(_, weight, _)| weight);
    let convolution = json!({ "kernel": [3, 2], "stride": [1, 2], "padding": [1, 0] });
    let metadata = json!({ "format": "activations", "version": 1, "sites": {}, "convolutions": { "patches": convolution } });
    write(&path("activations.safetensors"), Some(metadata.to_string()), |(_, _, rows)| rows);
    let model = Checkpoint::open(&path("model"), Access::Auto).unwrap();

    for method in Method::ALL {
        let name = method.name();
        let (plan, inputs) = plan::plan(&request(folder.path(), method)).unwrap();
        let shapes: Vec<LayerShape> = plan.layers().map(|layer| layer.shape.clone()).collect();
        let kernel = LayerShape::Convolution(vec![3, 2]);
        assert_eq!(shapes, [LayerShape::Transposed, LayerShape::Transposed, LayerShape::Linear, kernel]);
        let adapter = run::run(&plan, &inputs, &()).unwrap().adapter;
        assert_eq!(adapter.layers.len(), 4, "{name}");

        for (at, format) in [
            Format::Peft,
            Format::SingleFile(SingleFile::Diffusers, Component::Unet),
            Format::SingleFile(SingleFile::Kohya, Component::TextEncoder),
        ]
        .into_iter()
        .enumerate()
        {
            let out = path(&format!("{name}-{at}"));
            write_adapter(&out, &adapter, Element::F32, &record(&plan), &BTreeSet::new(), &[], format)
                .unwrap();
            let tensors: BTreeMap<String, String> =
                plan.layers().map(|layer| (layer.module.clone(), layer.tensor.clone())).collect();
            let verified = verify(&out, (format == Format::Peft).then_some(&model), &tensors);
            assert!(verified.is_ok(), "{name} {format:?}: {}", verified.unwrap_err());
            let read = PeftAdapter::open(&out).unwrap();
            for (module, layer) in read.layers() {
                let wanted = &adapter.layers[module];
                let wanted = &wanted.b * &wanted.a * faer::Scale(adapter.scale as f32);
                let found = read.factors(layer).unwrap();
                let found = found.b * found.a * faer::Scale(layer.scale as f32);
                assert!((found - &wanted).norm_max() < 1e-5, "{name} {format:?} {module}");
            }
        }

        if plan.method.start == Start::Residual {
            let stored: BTreeMap<String, Factors> = plan
                .layers()
                .map(|layer| {
                    (layer.tensor.clone(), layer.shape.of_stored_weight(&adapter.layers[&layer.module]))
                })
                .collect();
            let by_name = stored.iter().map(|(tensor, factors)| (tensor.clone(), factors)).collect();
            let base = path(&format!("{name}-base"));
            write_residual_base(&base, &model, &by_name, adapter.scale, Element::F32).unwrap();
            let base = Checkpoint::open(&base, Access::Auto).unwrap();
            for layer in plan.layers() {
                let update = stored_update(&adapter.layers[&layer.module], &layer.shape, adapter.scale);
                let (old, new) = (weight(&model, &layer.tensor), weight(&base, &layer.tensor));
                let columns = update.ncols();
                let differs = (0..old.len())
                    .any(|i| (new[i] + update[(i / columns, i % columns)] - old[i]).abs() > 1e-5);
                assert!(!differs && old != new, "{name} {}", layer.module);
            }
        }
    }
}

/// What the check of an adapter needs to know.
fn record(plan: &plan::Plan) -> Map<String, serde_json::Value> {
    let record = json!({ "format": "cntlora-adapter", "version": 1, "method": plan.method });
    record.as_object().cloned().unwrap()
}

/// Patches that are unfolded while they are read give the factors of patches that were unfolded before, bit for bit.
#[test]
fn unfolding_does_not_change_the_factors() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("model")).unwrap();
    write(&path("model/model.safetensors"), None, |(_, weight, _)| weight);
    let convolution = json!({ "kernel": [3, 2], "stride": [1, 2], "padding": [1, 0] });
    let metadata = json!({ "format": "activations", "version": 1, "sites": {}, "convolutions": { "patches": convolution } });
    write(&path("activations.safetensors"), Some(metadata.to_string()), |(_, _, rows)| rows);
    let mut request = request(folder.path(), Method::Cntlora);
    request.selection.targets = vec!["patches".into()];
    let factors = |request: &Request| {
        let (plan, inputs) = plan::plan(request).unwrap();
        run::run(&plan, &inputs, &()).unwrap().adapter.layers.remove("patches").unwrap()
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
