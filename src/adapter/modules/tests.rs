use super::super::names::{A_SUFFIX, B_SUFFIX, PREFIX};
use super::super::testing::{adapter, factors, provenance, try_write};
use super::super::{CONFIG_FILE, Format, PeftAdapter, TENSORS_FILE, verify};
use super::*;
use crate::element::Element;
use crate::factors::LayerName;
use crate::storage::snapshot;
use expect_test::expect;
use quickcheck::quickcheck;
use safetensors::SafeTensors;
use std::fs;
use std::path::Path;

fn experts(count: usize) -> LayerShape {
    LayerShape::Expert { count, transposed: false }
}

/// An adapter with modules of several blocks and a linear layer. The factors of all blocks differ.
fn in_blocks(modules: &[(&str, LayerShape, usize, usize, usize)]) -> Adapter {
    let mut adapter = adapter([("linear", factors(4, 4, 3))]);
    for (module, shape, outputs, inputs, rank) in modules {
        for block in 0..shape.blocks().unwrap() {
            let mut factors = factors(*outputs, *inputs, *rank);
            factors.a[(0, 0)] = block as f32;
            factors.b[(outputs - 1, rank - 1)] = -1.0 - block as f32;
            let name = LayerName::of_block(*module, block);
            adapter.shapes.insert(name.clone(), shape.clone());
            adapter.layers.insert(name, factors);
        }
    }
    adapter
}

fn write(folder: &Path, adapter: &Adapter) -> Result<(), Problems> {
    let mut record = provenance("update", &[]);
    // These factors are not balanced.
    record.remove("method");
    try_write(folder, adapter, Element::F32, &record, Format::Peft)
}

quickcheck! {
    /// For all numbers of blocks, ranks and modules, the blocks are read back exactly.
    fn blocks_are_read_back(count: u8, rank: u8, both: bool, groups: u8) -> bool {
        let (count, rank, groups) = (1 + usize::from(count) % 12, 1 + usize::from(rank) % 3, 2 + usize::from(groups) % 3);
        let mut modules = vec![
            ("mlp.experts.down_proj", experts(count), 5, 4, rank),
            ("depthwise", LayerShape::Group { count: groups, kernel: vec![3] }, 2, 3 * groups, rank),
        ];
        modules.extend(both.then(|| ("mlp.experts.gate_up_proj", experts(count), 8, 6, rank + 1)));
        let adapter = in_blocks(&modules);
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &adapter).unwrap();
        let read = PeftAdapter::open(folder.path()).unwrap();
        assert!(verify(folder.path(), None, &BTreeMap::new()).is_ok_and(|found| found.layers as usize == adapter.layers.len()));
        read.layers().keys().eq(adapter.layers.keys())
            && read.layers().iter().all(|(name, layer)| {
                let (wanted, found) = (&adapter.layers[name], read.factors(layer).unwrap());
                layer.shape == *adapter.shape(name)
                    && (layer.scale - adapter.scale).abs() < 1e-12
                    && found.a == wanted.a
                    && found.b == wanted.b
            })
    }
}

/// The oracle is the einsum of PEFT: `o r e, e r i -> e o i`, with B as `[out, r, experts]` and A as `[experts, r, in]`. The parameter
/// that comes first in the model is the innermost of the wrapped ones.
#[test]
fn experts_have_the_layout_of_peft() {
    let (count, rank, outputs, inputs) = (3, 2, 5, 4);
    let adapter = in_blocks(&[
        ("mlp.experts.gate_up_proj", experts(count), outputs, inputs, rank),
        ("mlp.experts.down_proj", experts(count), 4, 3, 1),
    ]);
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &adapter).unwrap();
    let bytes = fs::read(folder.path().join(TENSORS_FILE)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let values = |key: &str, suffix: &str| -> (Vec<usize>, Vec<f32>) {
        let tensor = tensors.tensor(&format!("{PREFIX}{key}{suffix}")).unwrap();
        let number = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
        (tensor.shape().to_vec(), tensor.data().chunks(4).map(number).collect())
    };
    let (shape, a) = values("mlp.experts.base_layer", A_SUFFIX);
    assert_eq!(shape, [count * rank, inputs]);
    let (shape, b) = values("mlp.experts.base_layer", B_SUFFIX);
    assert_eq!(shape, [outputs, rank * count]);
    for expert in 0..count {
        let Factors { a: wanted_a, b: wanted_b } =
            &adapter.layers[&LayerName::of_block("mlp.experts.gate_up_proj", expert)];
        let wanted = wanted_b * wanted_a;
        for (o, i) in (0..outputs).flat_map(|o| (0..inputs).map(move |i| (o, i))) {
            let product: f32 = (0..rank)
                .map(|r| b[(o * rank + r) * count + expert] * a[(expert * rank + r) * inputs + i])
                .sum();
            assert!((product - wanted[(o, i)]).abs() < 1e-5, "{expert} {o} {i}");
        }
    }
    assert_eq!(values("mlp.experts", A_SUFFIX).0, [count, 3]);

    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.path().join(CONFIG_FILE)).unwrap()).unwrap();
    assert_eq!(config["target_modules"], serde_json::json!(["linear"]));
    let parameters = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"];
    assert_eq!(config["target_parameters"], serde_json::json!(parameters));
    // `r` is the rank of parameters, because PEFT warns about patterns for them.
    assert_eq!(config["r"], 2);
}

/// Each group has its own rows of A and B. The rank is the sum over all groups.
#[test]
fn groups_have_the_layout_of_peft() {
    let shape = LayerShape::Group { count: 2, kernel: vec![3, 1] };
    let adapter = in_blocks(&[("depthwise", shape, 3, 12, 2)]);
    let modules = modules(&adapter).unwrap();
    let module = &modules["depthwise"];
    assert_eq!(module.rank(), 4);
    assert_eq!(module.shape_of(Side::Down), [4, 4, 3, 1]);
    assert_eq!(module.shape_of(Side::Up), [6, 2, 1, 1]);
    let (a, b) = (module.factor(Side::Down), module.factor(Side::Up));
    for group in 0..2 {
        let wanted = &adapter.layers[&LayerName::of_block("depthwise", group)];
        assert_eq!(a.subrows(2 * group, 2), wanted.a);
        assert_eq!(b.subrows(3 * group, 3), wanted.b);
    }
}

#[test]
fn blocks_of_smaller_rank_are_padded_with_zeros() {
    let mut adapter = in_blocks(&[("experts.w", experts(2), 3, 4, 2)]);
    let second = LayerName::of_block("experts.w", 1);
    adapter.layers.insert(second.clone(), factors(3, 4, 1));
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &adapter).unwrap();
    let read = PeftAdapter::open(folder.path()).unwrap();
    let found = read.factors(&read.layers()[&second]).unwrap();
    let wanted = &adapter.layers[&second];
    assert_eq!(found.a.nrows(), 2);
    assert_eq!(&found.b * &found.a, &wanted.b * &wanted.a);
}

#[test]
fn invalid_modules_are_refused() {
    let refused = |adapter: &Adapter| {
        let folder = tempfile::tempdir().unwrap();
        snapshot(write(folder.path(), adapter).unwrap_err())
    };
    let whole = || in_blocks(&[("mlp.experts.down_proj", experts(3), 5, 4, 1)]);
    let second = || LayerName::of_block("mlp.experts.down_proj", 1);
    let [mut incomplete, mut uneven, mut mixed] = [whole(), whole(), whole()];
    incomplete.layers.remove(&second());
    uneven.layers.insert(second(), factors(6, 4, 1));
    mixed.shapes.insert("linear".into(), LayerShape::Transposed);
    let unknown = in_blocks(&[("e.w1", experts(1), 5, 4, 1), ("e.w2", experts(1), 5, 4, 1)]);
    expect![[r#"
        module "mlp.experts.down_proj": expected 3 blocks, found 2
        module "mlp.experts.down_proj": its blocks have different shapes
        PEFT cannot load an adapter with both fused experts and weights stored as [inputs, outputs]; help: write one adapter per kind, with --target or --exclude
        experts with several parameters may have only gate_up_proj, up_proj and down_proj, found "e.w1"; help: write one adapter per parameter, with --target
    "#]].assert_eq(&[incomplete, uneven, mixed, unknown].each_ref().map(refused).concat());
}

#[test]
fn tensors_of_more_parameters_than_in_the_configuration_are_refused() {
    let both =
        [("mlp.experts.gate_up_proj", experts(3), 5, 4, 2), ("mlp.experts.down_proj", experts(3), 4, 3, 1)];
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &in_blocks(&both)).unwrap();
    let path = folder.path().join(CONFIG_FILE);
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["target_parameters"] = serde_json::json!(["mlp.experts.down_proj"]);
    fs::write(&path, config.to_string()).unwrap();
    expect![[r#"
        FOLDER/adapter_model.safetensors: target_parameters in adapter_config.json has 1 of the parameters of "mlp.experts", but there are tensors for more
    "#]].assert_eq(&snapshot(PeftAdapter::open(folder.path()).err().unwrap()));
}

#[test]
fn parameters_that_do_not_fit_their_tensors_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &in_blocks(&[("mlp.experts.down_proj", experts(3), 5, 4, 2)])).unwrap();
    let path = folder.path().join(CONFIG_FILE);
    let text = fs::read_to_string(&path).unwrap();
    let refused = |(from, to): (&str, &str)| {
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replace(from, to)).unwrap();
        snapshot(verify(folder.path(), None, &BTreeMap::new()).unwrap_err())
    };
    let texts = [
        ("\"mlp.experts.down_proj\"", "\"mlp.experts.down_proj\", \"x.y\""),
        ("\"r\": 2", "\"r\": 4"),
        ("\"mlp.experts.down_proj\"", "\"mlp.experts.down_proj\", \"mlp.experts.gate_up_proj\""),
    ];
    expect![[r#"
        FOLDER/adapter_config.json: target_parameters has the name "x.y", but there are no tensors for it
        FOLDER/adapter_model.safetensors: tensor "base_model.model.mlp.experts.lora_A.weight": A has rank 6, but adapter_config.json says 4
        FOLDER/adapter_config.json: target_parameters has the name "mlp.experts.down_proj", but there are no tensors for it
        FOLDER/adapter_config.json: target_parameters has the name "mlp.experts.gate_up_proj", but there are no tensors for it
    "#]].assert_eq(&texts.map(refused).concat());
}
