//! Writes PEFT folders.

use super::card::{self, Author, CARD_FILE};
use super::config::to_json;
use super::contents::{Contents, Entries, Entry, PeftContents, Values, pretty};
use super::folder::OutputFolder;
use super::modules::{Module, Side, keys, modules};
use super::names::{PREFIX, suffixes};
use super::numbers::{check_shapes, in_module};
use super::{Adapter, CONFIG_FILE, FileRecord, Loading, TENSORS_FILE};
use crate::element::Element;
use crate::storage::{Checkpoint, NewFile, Problem, Problems, wrappers};
use std::collections::{BTreeMap, BTreeSet};

/// Writes a PEFT folder: `adapter_model.safetensors`, `cntlora.json`, the files beside them, the model card, and `adapter_config.json`,
/// which completes it. Returns the files and the hash of the tensors.
pub(super) fn write(
    output: &OutputFolder<'_>,
    contents: &Contents<'_>,
) -> Result<(Vec<NewFile>, FileRecord), Problems> {
    let Contents { adapter, element, other_modules, .. } = *contents;
    let PeftContents { loading, wholes, card, carried } = contents.peft;
    check(adapter, element)?;
    let modules = modules(adapter)?;
    let mut entries = entries(&modules, element)?;
    for (name, (source, tensor)) in wholes.into_iter().flatten() {
        let (shape, values) = (tensor.shape.clone(), Values::Copied(source, tensor));
        entries.insert(name.clone(), Entry { shape, values });
    }
    if let Some(carried) = carried {
        entries.extend(carried.entries(element)?);
    }
    let (mut files, hash) = contents.write(output, TENSORS_FILE, BTreeMap::new(), &entries)?;
    let usual = Loading::default();
    let loading = loading.unwrap_or(&usual);
    if let Some(body) = card
        && card::author(output.path())? != Author::Other
    {
        let base = loading.base_name.as_deref().unwrap_or(&adapter.base);
        files.push(output.write(CARD_FILE, card::card(base, body).as_bytes())?);
    }
    let mut config = to_json(adapter, &modules, other_modules, loading);
    for (key, value) in carried.iter().flat_map(|carried| &carried.config) {
        config[key] = value.clone();
    }
    let config = pretty(&config);
    files.push(output.write(CONFIG_FILE, config.as_bytes())?);
    Ok((files, hash))
}

/// The modules of a checkpoint with a weight that is not adapted.
///
/// The names are those in the checkpoint. For some models, they differ from the runtime names.
pub fn other_modules(checkpoint: &Checkpoint, adapted: &BTreeSet<&str>) -> BTreeSet<String> {
    let others = checkpoint.names().filter(|name| !adapted.contains(name));
    let modules = others.filter_map(|name| name.strip_suffix(".weight"));
    modules.map(|module| wrappers::of_recorded(module).into_owned()).collect()
}

/// The tensors by name.
fn entries<'a>(modules: &'a BTreeMap<&str, Module<'_>>, element: Element) -> Result<Entries<'a>, Problem> {
    let mut entries = Entries::new();
    for (name, key) in keys(modules)? {
        let module = &modules[name];
        for (suffix, side) in suffixes(module.shape()).into_iter().zip([Side::Down, Side::Up]) {
            let entry = Entry::factor(module.shape_of(side), element, move || module.factor(side));
            entries.insert(format!("{PREFIX}{key}{suffix}"), entry);
        }
    }
    Ok(entries)
}

/// Checks an adapter before it is written in any format.
pub(super) fn check(adapter: &Adapter, element: Element) -> Result<(), Problems> {
    let mut problems = Problems::default();
    if element == Element::F64 {
        problems.push(Problem::usage("factors cannot be written as F64: expected F32, F16 or BF16"));
    }
    if !(adapter.scale > 0.0 && adapter.scale.is_finite()) {
        let found = adapter.scale;
        problems.push(Problem::usage(format!("the scale must be positive and finite, found {found}")));
    } else if let Some(lost) = Element::F32.loses(adapter.scale) {
        let found = adapter.scale;
        problems.push(Problem::usage(format!("the scale {found:e} is {lost} in single precision")));
    }
    if adapter.layers.is_empty() {
        problems.push(
            Problem::data("the adapter has no layer with a rank of at least 1")
                .help("select more layers, or allow larger ranks"),
        );
    }
    for (name, factors) in &adapter.layers {
        if let Err(problem) = check_shapes(factors) {
            problems.push(in_module(name, problem));
        }
    }
    problems.or_ok(())
}

#[cfg(test)]
mod tests {
    use super::super::names::{A_SUFFIX, B_SUFFIX};
    use super::super::testing::{
        AnyLayers, adapter, checkpoint, factors, files, provenance, rows, try_write, write, write_tensors,
    };
    use super::super::{Format, PeftAdapter, RECORD_FILE};
    use super::*;
    use crate::factors::{Factors, LayerShape};
    use crate::storage::{Category, Source, snapshot};
    use expect_test::expect;
    use faer::Mat;
    use quickcheck::quickcheck;
    use safetensors::SafeTensors;
    use serde_json::{Map, Value, json};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn refused(adapter: &Adapter, element: Element) -> Problems {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("adapter");
        let result = try_write(&folder, adapter, element, &Map::new(), Format::Peft);
        assert!(!folder.exists(), "a refused adapter must leave nothing behind");
        result.unwrap_err()
    }

    quickcheck! {
        /// For all names and ranks, the factors and the scale are read back exactly.
        fn written_adapters_are_read_back(layers: AnyLayers, format: u8) -> bool {
            let adapter = layers.adapter();
            let folder = tempfile::tempdir().unwrap();
            let element = [Element::F32, Element::F16, Element::Bf16][usize::from(format) % 3];
            try_write(folder.path(), &adapter, element, &Map::new(), Format::Peft).unwrap();
            let read = PeftAdapter::open(folder.path()).unwrap();
            read.layers().keys().eq(adapter.layers.keys())
                && read.layers().iter().all(|(module, layer)| {
                    let (expected, found) = (&adapter.layers[module], read.factors(layer).unwrap());
                    layer.element == element
                        && (layer.scale - adapter.scale).abs() < 1e-15
                        && (layer.outputs, layer.inputs) == (expected.b.nrows(), expected.a.ncols())
                        && found.a == expected.a
                        && found.b == expected.b
                })
        }

        /// The oracle is the parser of the safetensors project.
        fn the_reference_parser_reads_the_tensors(layers: AnyLayers) -> bool {
            let adapter = layers.adapter();
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), &adapter);
            let bytes = fs::read(folder.path().join(TENSORS_FILE)).unwrap();
            let read = SafeTensors::deserialize(&bytes).unwrap();
            read.len() == 2 * adapter.layers.len()
                && adapter.layers.iter().all(|(module, Factors { a, b })| {
                    [(A_SUFFIX, a), (B_SUFFIX, b)].into_iter().all(|(suffix, factor)| {
                        let tensor = read.tensor(&format!("{PREFIX}{module}{suffix}")).unwrap();
                        let data: Vec<u8> = rows(factor).into_iter().flat_map(f32::to_le_bytes).collect();
                        tensor.dtype() == safetensors::Dtype::F32
                            && tensor.shape() == [factor.nrows(), factor.ncols()]
                            && tensor.data() == data
                    })
                })
        }

        fn the_same_adapter_gives_the_same_bytes(layers: AnyLayers) -> bool {
            let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            write(one.path(), &layers.adapter());
            write(two.path(), &layers.adapter());
            files(one.path()) == files(two.path()) && files(one.path()).len() == 3
        }
    }

    #[test]
    fn the_record_has_the_provenance_and_the_hash_of_the_tensors() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &adapter([("q", factors(2, 3, 1))]));
        let bytes = fs::read(folder.path().join(TENSORS_FILE)).unwrap();
        let mut expected = provenance("update", &[]);
        let hash = FileRecord::of(&Source::from_bytes("tensors", bytes)).unwrap();
        expected.insert("files".into(), json!({ TENSORS_FILE: hash }));
        let text = fs::read_to_string(folder.path().join(RECORD_FILE)).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), Value::Object(expected));
        assert!(text.starts_with("{\n  \"files\"") && text.ends_with("}\n"), "{text}");
    }

    /// The shapes of factors follow PEFT. Transposed weights have a flag in the configuration.
    #[test]
    fn all_layer_shapes_are_written_and_read_back() {
        let shapes = [
            ("c", LayerShape::Convolution(vec![3, 2])),
            ("t", LayerShape::Transposed),
            ("e", LayerShape::Embedding),
        ];
        for (module, shape) in shapes {
            let folder = tempfile::tempdir().unwrap();
            let mut adapter = adapter([(module, factors(5, 12, 2))]);
            adapter.shapes.insert(module.into(), shape.clone());
            write(folder.path(), &adapter);
            let read = PeftAdapter::open(folder.path()).unwrap();
            let layer = &read.layers()[&module.into()];
            assert_eq!((&layer.shape, layer.outputs, layer.inputs, layer.rank), (&shape, 5, 12, 2));
            assert_eq!(read.factors(layer).unwrap().a, adapter.layers[&module.into()].a);
            assert_eq!(read.config().unwrap().fan_in_fan_out, shape == LayerShape::Transposed);
            let bytes = fs::read(folder.path().join(TENSORS_FILE)).unwrap();
            let stored = SafeTensors::deserialize(&bytes).unwrap();
            let shape_of =
                |suffix: &str| stored.tensor(&format!("{PREFIX}{module}{suffix}")).unwrap().shape().to_vec();
            match shape {
                LayerShape::Convolution(_) => {
                    assert_eq!(shape_of(A_SUFFIX), [2, 2, 3, 2]);
                    assert_eq!(shape_of(B_SUFFIX), [5, 2, 1, 1]);
                }
                LayerShape::Embedding => {
                    assert_eq!(shape_of(".lora_embedding_A"), [2, 12]);
                    assert_eq!(shape_of(".lora_embedding_B"), [5, 2]);
                }
                _ => assert_eq!((shape_of(A_SUFFIX), shape_of(B_SUFFIX)), (vec![2, 12], vec![5, 2])),
            }
        }
    }

    #[test]
    fn factors_are_rounded_to_nearest_even() {
        let folder = tempfile::tempdir().unwrap();
        let a = Mat::from_fn(1, 3, |_, j| [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1e-30][j]);
        let adapter = adapter([("q", Factors { a, b: Mat::full(1, 1, 3.0) })]);
        try_write(folder.path(), &adapter, Element::Bf16, &Map::new(), Format::Peft).unwrap();
        let read = PeftAdapter::open(folder.path()).unwrap();
        let found = rows(&read.factors(&read.layers()[&"q".into()]).unwrap().a);
        assert_eq!(found[..2], [1.0, 1.0 + 4.0 / 256.0]);
        assert!((found[2] - 1e-30).abs() < 1e-32);
    }

    #[test]
    fn the_modes_of_files_follow_the_umask() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("plain"), b"").unwrap();
        write(folder.path(), &adapter([("q", factors(2, 3, 1))]));
        let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        for name in [TENSORS_FILE, RECORD_FILE, CONFIG_FILE] {
            assert_eq!(mode(name), mode("plain"), "{name}");
        }
    }

    #[test]
    fn an_old_adapter_is_replaced_completely() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(old.path(), &adapter([("q", factors(2, 3, 1)), ("v", factors(2, 3, 2))]));
        let replacement = adapter([("k", factors(5, 4, 3))]);
        write(old.path(), &replacement);
        write(new.path(), &replacement);
        assert_eq!(files(old.path()), files(new.path()));
    }

    #[test]
    fn a_file_or_nothing_in_place_of_the_parent_is_an_io_problem() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("file");
        fs::write(&file, b"kept").unwrap();
        let adapter = adapter([("q", factors(2, 3, 1))]);
        for folder in [file.clone(), file.join("below"), parent.path().join("missing/adapter")] {
            let problems = try_write(&folder, &adapter, Element::F32, &Map::new(), Format::Peft).unwrap_err();
            assert_eq!(problems.category(), Category::Io, "{problems}");
        }
        assert_eq!(files(parent.path()), BTreeMap::from([("file".into(), b"kept".to_vec())]));
    }

    /// The last file cannot be replaced, so the others must stay.
    #[test]
    fn a_failure_before_the_files_are_complete_leaves_the_folder_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &adapter([("q", factors(2, 3, 1))]));
        let before = files(folder.path());
        fs::remove_file(folder.path().join(CONFIG_FILE)).unwrap();
        fs::create_dir(folder.path().join(CONFIG_FILE)).unwrap();
        let adapter = adapter([("v", factors(2, 3, 1))]);
        let problems =
            try_write(folder.path(), &adapter, Element::F32, &Map::new(), Format::Peft).unwrap_err();
        assert_eq!(problems.category(), Category::Io);
        fs::remove_dir(folder.path().join(CONFIG_FILE)).unwrap();
        let mut after = files(folder.path());
        after.insert(CONFIG_FILE.into(), before[CONFIG_FILE].clone());
        assert_eq!(after, before);
    }

    #[test]
    fn all_values_that_do_not_fit_the_number_format_are_reported() {
        let with = |value: f32| {
            let mut factors = factors(2, 3, 1);
            factors.b[(1, 0)] = value;
            factors
        };
        let adapter = adapter([("q", with(65520.0)), ("k", with(65519.0)), ("v", with(-1e30))]);
        let mut problems = refused(&adapter, Element::F16);
        assert_eq!(problems.category(), Category::Data);
        problems.0.extend(refused(&super::super::testing::adapter([("q", with(f32::NAN))]), Element::F32).0);
        expect![[r#"
            tensor "base_model.model.q.lora_B.weight": row 1, column 0: 6.552e4 is too large for F16; help: write the factors as f32 or bf16
            tensor "base_model.model.v.lora_B.weight": row 1, column 0: -1e30 is too large for F16; help: write the factors as f32 or bf16
            tensor "base_model.model.q.lora_B.weight": row 1, column 0: expected a finite number, found NaN
        "#]].assert_eq(&snapshot(problems));
    }

    #[test]
    fn invalid_adapters_are_refused() {
        let good = || factors(2, 3, 1);
        let other_rank = Factors { a: good().a, b: factors(2, 3, 2).b };
        let cases = [
            (vec![], 1.0, Element::F32),
            (vec![("q", good())], f64::NAN, Element::F32),
            (vec![("q", good())], 0.0, Element::F32),
            (vec![("q", good())], 1.0, Element::F64),
            (vec![("q", factors(2, 3, 0)), ("a\nb", other_rank)], 1.0, Element::F32),
        ];
        let texts = cases.map(|(layers, scale, element)| {
            snapshot(refused(&Adapter { scale, ..adapter(layers) }, element))
        });
        expect![[r#"
            the adapter has no layer with a rank of at least 1; help: select more layers, or allow larger ranks
            the scale must be positive and finite, found NaN
            the scale must be positive and finite, found 0
            factors cannot be written as F64: expected F32, F16 or BF16
            module "a\nb": factors need the shapes A (rank, inputs) and B (outputs, rank) with a rank of at least 1, found (1, 3) and (2, 2)
            module "q": factors need the shapes A (rank, inputs) and B (outputs, rank) with a rank of at least 1, found (0, 3) and (2, 0)
        "#]].assert_eq(&texts.concat());
    }

    #[test]
    fn other_modules_are_those_with_weights_that_are_not_adapted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let one = |name| (name, Element::F32, vec![1], vec![0.0]);
        write_tensors(&path, &[one("a.q.weight"), one("a.q.bias"), one("b.q.weight"), one("scale")]);
        let others = other_modules(&checkpoint(&path), &BTreeSet::from(["a.q.weight"]));
        assert_eq!(others, BTreeSet::from(["b.q".to_owned()]));
    }
}
