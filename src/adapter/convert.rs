//! Converts a trained adapter for the original base, and truncates it to a smaller rank.
//!
//! An adapter with a residual start belongs to the base `W − s B₀ A₀` that was written with it. After training to `B A`, its update for
//! the original base is `s (B A − B₀ A₀)`, with twice the rank. PEFT computes the same with
//! `path_initial_model_for_weight_conversion`.

use super::numbers::in_module;
use super::{Adapter, Carried, PeftAdapter, PeftLayer};
use crate::factors::{Factors, LayerName, LayerShape, combine};
use crate::rank::least_common_multiple;
use crate::storage::{Problem, Problems, quoted};
use std::collections::BTreeMap;

/// The result of a conversion.
pub struct Conversion<'a> {
    /// The adapter for the original base.
    pub adapter: Adapter,
    /// The tensors of the trained adapter that are not factors. Copies of base weights belong to the base of the trained adapter, so they
    /// are left out if the base changes.
    pub carried: Carried<'a>,
    /// Share of the squared norm of each layer's update that is left after truncation.
    pub kept: BTreeMap<LayerName, f64>,
}

/// Subtracts the initial adapter from the trained one, if it is given, and truncates the result to a rank, if it is given. The groups of
/// a convolution share its rank.
///
/// The scale is the common scale of all layers of the trained adapter. If they differ, the scale is 1, and the up matrices are
/// multiplied by the old scales.
///
/// # Errors
/// - Usage: a rank that is not divisible by the number of groups of a convolution.
/// - Data: a layer that is missing in the initial adapter or has another shape there; values that are not finite.
/// - I/O: problems of reading.
pub fn convert<'a>(
    trained: &'a PeftAdapter,
    initial: Option<&PeftAdapter>,
    rank: Option<usize>,
) -> Result<Conversion<'a>, Problems> {
    let mut problems = Problems::default();
    problems.collect(rank.map_or(Ok(()), |rank| check_rank(trained, rank)));
    let scale = trained.common_scale(0.0).filter(|&scale| scale > 0.0).unwrap_or(1.0);
    let mut adapter = Adapter {
        layers: BTreeMap::new(),
        shapes: BTreeMap::new(),
        components: BTreeMap::new(),
        scale,
        base: trained.config().and_then(|config| config.base_model_name_or_path.clone()).unwrap_or_default(),
    };
    let mut kept = BTreeMap::new();
    for (name, layer) in trained.layers() {
        let converted = difference(trained, name, layer, initial, scale).and_then(|factors| match rank {
            None => Ok((factors, 1.0)),
            Some(rank) => combine::truncated(&factors, rank / layer.shape.parts())
                .map_err(|error| in_module(name, error).in_file(trained.source().path())),
        });
        if let Some((factors, share)) = problems.collect(converted) {
            adapter.layers.insert(name.clone(), factors);
            kept.insert(name.clone(), share);
            if layer.shape != LayerShape::Linear {
                adapter.shapes.insert(name.clone(), layer.shape.clone());
            }
        }
    }
    let factor = |name: &LayerName| trained.layers().get(name).map_or(1.0, |layer| layer.scale / scale);
    let carried = trained.carried(initial.is_some(), factor);
    problems.or_ok(Conversion { adapter, carried, kept })
}

/// Checks that the rank is divisible by the numbers of groups of all convolutions.
fn check_rank(adapter: &PeftAdapter, rank: usize) -> Result<(), Problem> {
    let parts = |layer: &PeftLayer| layer.shape.parts();
    let step = adapter.layers().values().map(parts).fold(1, least_common_multiple);
    let Some((name, layer)) = adapter.layers().iter().find(|(_, layer)| !rank.is_multiple_of(parts(layer)))
    else {
        return Ok(());
    };
    let what = format!(
        "rank {rank} is not divisible by the {1} groups of the convolution {0}",
        quoted(&name.module),
        parts(layer)
    );
    let nearest = rank.next_multiple_of(step);
    Err(Problem::usage(what).in_file(adapter.source().path()).help(format!("give --rank {nearest}")))
}

/// The factors of a layer for the original base. The adapter adds `scale` times their product.
fn difference(
    trained: &PeftAdapter,
    name: &LayerName,
    layer: &PeftLayer,
    initial: Option<&PeftAdapter>,
    scale: f64,
) -> Result<Factors, Problem> {
    let factors = with_scale(trained.factors(layer)?, layer.scale / scale);
    let Some(initial) = initial else { return Ok(factors) };
    let complain = |what: String| {
        Problem::data(what)
            .in_file(initial.source().path())
            .help("set --init to the adapter from which the training started")
    };
    let before = initial.layers().get(name).ok_or_else(|| {
        let module = quoted(&name.to_string());
        complain(format!("module {module} is missing, but the trained adapter has it"))
    })?;
    let shape = |layer: &PeftLayer| (layer.outputs, layer.inputs);
    if shape(before) != shape(layer) {
        let (expected, found) = (shape(layer), shape(before));
        return Err(complain(format!(
            "module {} has (outputs, inputs) {found:?}, but {expected:?} in the trained adapter",
            quoted(&name.to_string())
        )));
    }
    let before = with_scale(initial.factors(before)?, before.scale / scale);
    Ok(combine::difference(&factors, &before))
}

fn with_scale(factors: Factors, scale: f64) -> Factors {
    Factors { b: factors.b * faer::Scale(scale as f32), a: factors.a }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{adapter, factors, write};
    use super::*;
    use crate::storage::snapshot;
    use expect_test::expect;
    use faer::Mat;

    fn opened(layers: Vec<(&'static str, Factors)>, scale: f64) -> (tempfile::TempDir, PeftAdapter) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &Adapter { scale, ..adapter(layers) });
        let adapter = PeftAdapter::open(folder.path()).unwrap();
        (folder, adapter)
    }

    fn update(adapter: &Adapter, module: &str) -> Mat<f32> {
        let Factors { a, b } = &adapter.layers[&module.into()];
        b * a * faer::Scale(adapter.scale as f32)
    }

    /// The oracle computes both products. The initial adapter can have another scale and other ranks.
    #[test]
    fn the_initial_update_is_subtracted() {
        let trained = || vec![("q", factors(5, 4, 2)), ("v", factors(3, 4, 1))];
        let before = || vec![("q", factors(5, 4, 1)), ("v", factors(3, 4, 1))];
        let (_one, trained_adapter) = opened(trained(), 2.0);
        let (_two, initial) = opened(before(), 0.5);
        let converted = convert(&trained_adapter, Some(&initial), None).unwrap();
        assert_eq!(converted.adapter.scale, 2.0);
        assert_eq!(converted.kept.values().copied().collect::<Vec<_>>(), [1.0, 1.0]);
        for ((module, after), (_, before)) in trained().into_iter().zip(before()) {
            let wanted = after.b * after.a * faer::Scale(2.0f32) - before.b * before.a * faer::Scale(0.5f32);
            assert!((update(&converted.adapter, module) - wanted).norm_max() < 1e-5, "{module}");
        }
        assert_eq!(converted.adapter.layers[&"q".into()].a.nrows(), 3);
        let cut = convert(&trained_adapter, Some(&initial), Some(1)).unwrap();
        assert!(cut.adapter.layers.values().all(|factors| factors.a.nrows() == 1));
        assert!(cut.kept[&"q".into()] < 1.0 && cut.kept[&"q".into()] > 0.0);
    }

    /// The rank of a convolution is the sum of the ranks of its groups, before and after truncation.
    #[test]
    fn groups_share_the_rank() {
        let shape = LayerShape::Group { count: 2, kernel: vec![3] };
        let mut whole = adapter([("q", factors(5, 4, 3))]);
        for group in [0, 1].map(|group| LayerName::of_block("c", group)) {
            whole.layers.insert(group.clone(), factors(5, 12, 3));
            whole.shapes.insert(group, shape.clone());
        }
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &whole);
        let opened = PeftAdapter::open(folder.path()).unwrap();
        let cut = convert(&opened, None, Some(2)).unwrap();
        let ranks: Vec<usize> = cut.adapter.layers.values().map(|factors| factors.a.nrows()).collect();
        assert_eq!(ranks, [1, 1, 2]);
        assert_eq!(cut.adapter.shape(&LayerName::of_block("c", 1)), &shape);
        expect![[r#"
            FOLDER/adapter_model.safetensors: rank 3 is not divisible by the 2 groups of the convolution "c"; help: give --rank 4
        "#]].assert_eq(&snapshot(convert(&opened, None, Some(3)).err().unwrap()));
    }

    #[test]
    fn an_initial_adapter_of_another_model_is_refused() {
        let (_one, trained) = opened(vec![("q", factors(5, 4, 2)), ("v", factors(3, 4, 1))], 1.0);
        let (_two, initial) = opened(vec![("q", factors(5, 3, 2))], 1.0);
        expect![[r#"
            FOLDER/adapter_model.safetensors: module "q" has (outputs, inputs) (5, 3), but (5, 4) in the trained adapter; help: set --init to the adapter from which the training started
            FOLDER/adapter_model.safetensors: module "v" is missing, but the trained adapter has it; help: set --init to the adapter from which the training started
        "#]].assert_eq(&snapshot(convert(&trained, Some(&initial), None).err().unwrap()));
    }

    /// Heads and other tensors keep their bytes, and the configuration keeps the keys that belong to them. Biases of `B` are multiplied by
    /// the scale, so that the adapter stays the same if the scale of its file changes.
    #[test]
    fn tensors_that_are_not_factors_are_carried() {
        use super::super::testing::{provenance, write_tensors};
        use super::super::{
            CONFIG_FILE, Component, Contents, Format, PeftContents, SingleFile, TENSORS_FILE, write_adapter,
        };
        use crate::element::Element;
        use safetensors::SafeTensors;
        use std::collections::BTreeSet;
        use std::fs;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("old")).unwrap();
        let config = r#"{"peft_type":"LORA","r":1,"lora_alpha":2,"alpha_pattern":{"v":6},"target_modules":["q","v"],
            "lora_bias":true,"modules_to_save":["score"],"task_type":"SEQ_CLS","lora_dropout":0.5}"#;
        fs::write(at("old").join(CONFIG_FILE), config).unwrap();
        let factor = |name: &'static str, shape: [u64; 2]| {
            (name, Element::F32, shape.to_vec(), vec![0.5; (shape[0] * shape[1]) as usize])
        };
        let tensors = [
            factor("base_model.model.module.q.lora_A.weight", [1, 2]),
            factor("base_model.model.module.q.lora_B.weight", [3, 1]),
            factor("base_model.model.module.v.lora_A.weight", [1, 2]),
            factor("base_model.model.module.v.lora_B.weight", [3, 1]),
            ("base_model.model.module.v.lora_B.bias", Element::F32, vec![3], vec![1.0, 2.0, 3.0]),
            ("base_model.model.module.score.weight", Element::Bf16, vec![1, 2], vec![1.0, -2.0]),
            ("base_model.model.module.q.base_layer.weight", Element::F16, vec![1, 2], vec![3.0, 4.0]),
        ];
        write_tensors(&at("old").join(TENSORS_FILE), &tensors);
        let opened = PeftAdapter::open(&at("old")).unwrap();
        let converted = convert(&opened, None, None).unwrap();
        // The scales of q and v differ, so that of the file is 1.
        assert_eq!(converted.adapter.scale, 1.0);
        let contents = Contents {
            adapter: &converted.adapter,
            element: Element::F32,
            provenance: &provenance("update", &[]),
            other_modules: &BTreeSet::new(),
            beside: &[],
            peft: PeftContents { carried: Some(&converted.carried), ..PeftContents::default() },
        };
        write_adapter(&at("new"), &contents, Format::Peft).unwrap();
        let bytes = fs::read(at("new").join(TENSORS_FILE)).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let f32s = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(read.tensor("base_model.model.v.lora_B.bias").unwrap().data(), f32s(&[6.0, 12.0, 18.0]));
        let score = read.tensor("base_model.model.score.weight").unwrap();
        assert_eq!((score.dtype(), score.shape()), (safetensors::Dtype::BF16, &[1, 2][..]));
        assert_eq!(score.data(), [0x80, 0x3f, 0x00, 0xc0]);
        assert!(read.tensor("base_model.model.q.base_layer.weight").is_ok());
        let text = fs::read_to_string(at("new").join(CONFIG_FILE)).unwrap();
        let config: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(config["modules_to_save"], serde_json::json!(["score"]));
        assert_eq!((&config["task_type"], &config["lora_bias"]), (&"SEQ_CLS".into(), &true.into()));
        assert_eq!(config["lora_dropout"], 0.0);
        assert_eq!(PeftAdapter::open(&at("new")).unwrap().notes().len(), 3);
        // A copy of a base weight belongs to the changed base of the trained adapter.
        let differs = convert(&opened, Some(&opened), None).unwrap();
        assert!(differs.carried.tensors.keys().all(|key| !key.contains("base_layer")));
        let format = Format::SingleFile(SingleFile::Diffusers, Component::Unet);
        expect![[r#"
            this format has no place for tensors that are not factors: the adapter has 3, such as "base_model.model.q.base_layer.weight"; help: give --format peft
        "#]].assert_eq(&snapshot(write_adapter(&at("one"), &contents, format).unwrap_err()));
    }
}
