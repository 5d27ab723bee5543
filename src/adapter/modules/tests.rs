use super::super::testing::{adapter, factors, provenance, try_write};
use super::super::{A_SUFFIX, B_SUFFIX, CONFIG_FILE, Format, PREFIX, PeftAdapter, TENSORS_FILE, verify};
use super::*;
use crate::element::Element;
use crate::factors::block_name;
use quickcheck::quickcheck;
use safetensors::SafeTensors;
use std::fs;
use std::path::Path;

fn experts(count: usize) -> LayerShape {
    LayerShape::Expert { count, transposed: false }
}

/// An adapter of modules in blocks, and of a linear layer beside them. The factors of all blocks differ.
fn in_blocks(modules: &[(&str, LayerShape, usize, usize, usize)]) -> Adapter {
    let mut adapter = adapter([("linear", factors(4, 4, 3))]);
    for (module, shape, outputs, inputs, rank) in modules {
        for block in 0..shape.blocks().unwrap() {
            let mut factors = factors(*outputs, *inputs, *rank);
            factors.a[(0, 0)] = block as f32;
            factors.b[(outputs - 1, rank - 1)] = -1.0 - block as f32;
            let name = block_name(module, block);
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
    /// Whatever the numbers of blocks, ranks and modules, what is read back is what was written, block by block.
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

/// The layout of PEFT, of which the oracle is its own einsum: `o r e, e r i -> e o i`, over B seen as `[out, r, experts]` and A as
/// `[experts, r, in]`; and the parameter that comes first in the model is the innermost of the wrapped ones.
#[test]
fn experts_are_laid_out_as_peft_has_them() {
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
            &adapter.layers[&format!("mlp.experts.gate_up_proj.{expert}")];
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
    // The rank of parameters is the usual one, because PEFT warns of patterns for them.
    assert_eq!(config["r"], 2);
}

/// Each group's part of B reads its own part of what A gives, and the rank is that of all groups together.
#[test]
fn groups_are_laid_out_as_peft_has_them() {
    let shape = LayerShape::Group { count: 2, kernel: vec![3, 1] };
    let adapter = in_blocks(&[("depthwise", shape, 3, 12, 2)]);
    let modules = modules(&adapter).unwrap();
    let module = &modules["depthwise"];
    assert_eq!(module.rank(), 4);
    assert_eq!(module.shape_of(Side::Down), [4, 4, 3, 1]);
    assert_eq!(module.shape_of(Side::Up), [6, 2, 1, 1]);
    let (a, b) = (module.factor(Side::Down), module.factor(Side::Up));
    for group in 0..2 {
        let wanted = &adapter.layers[&block_name("depthwise", group)];
        assert_eq!(a.subrows(2 * group, 2), wanted.a);
        assert_eq!(b.subrows(3 * group, 3), wanted.b);
    }
}

/// Blocks that were cut to smaller ranks are filled up with zeros, which add nothing.
#[test]
fn blocks_of_smaller_rank_are_filled_up() {
    let mut adapter = in_blocks(&[("experts.w", experts(2), 3, 4, 2)]);
    adapter.layers.insert("experts.w.1".into(), factors(3, 4, 1));
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &adapter).unwrap();
    let read = PeftAdapter::open(folder.path()).unwrap();
    let found = read.factors(&read.layers()["experts.w.1"]).unwrap();
    let wanted = &adapter.layers["experts.w.1"];
    assert_eq!(found.a.nrows(), 2);
    assert_eq!(&found.b * &found.a, &wanted.b * &wanted.a);
}

#[test]
fn what_makes_no_module_is_refused() {
    let refused = |adapter: &Adapter| {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), adapter).unwrap_err().to_string()
    };
    let whole = || in_blocks(&[("mlp.experts.down_proj", experts(3), 5, 4, 1)]);
    let mut adapter = whole();
    adapter.layers.remove("mlp.experts.down_proj.1");
    let text = refused(&adapter);
    assert!(
        text.contains("module \"mlp.experts.down_proj\": expected all of its 3 blocks, found 2"),
        "{text}"
    );

    let mut adapter = whole();
    adapter.layers.insert("mlp.experts.down_proj.1".into(), factors(6, 4, 1));
    assert!(refused(&adapter).contains("expected blocks of one shape"));

    let mut adapter = whole();
    adapter.shapes.insert("linear".into(), LayerShape::Transposed);
    assert!(refused(&adapter).contains("PEFT loads no adapter of both"));

    let adapter = in_blocks(&[("e.w1", experts(1), 5, 4, 1), ("e.w2", experts(1), 5, 4, 1)]);
    assert!(
        refused(&adapter)
            .contains("expected one parameter of experts, or gate_up_proj or up_proj and down_proj")
    );
}

/// A configuration and tensors that do not belong together.
#[test]
fn parameters_that_do_not_fit_their_tensors_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &in_blocks(&[("mlp.experts.down_proj", experts(3), 5, 4, 2)])).unwrap();
    let path = folder.path().join(CONFIG_FILE);
    let text = fs::read_to_string(&path).unwrap();
    let refused = |from: &str, to: &str| {
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replace(from, to)).unwrap();
        verify(folder.path(), None, &BTreeMap::new()).unwrap_err().to_string()
    };
    let further = refused("\"mlp.experts.down_proj\"", "\"mlp.experts.down_proj\", \"x.y\"");
    assert!(
        further.contains("expected tensors for every name in target_parameters, found none for \"x.y\""),
        "{further}"
    );
    let rank = refused("\"r\": 2", "\"r\": 4");
    assert!(rank.contains("expected rank 4, as adapter_config.json says, found 6"), "{rank}");
    let wrapped =
        refused("\"mlp.experts.down_proj\"", "\"mlp.experts.down_proj\", \"mlp.experts.gate_up_proj\"");
    assert!(wrapped.contains("found none for \"mlp.experts.gate_up_proj\""), "{wrapped}");
}
