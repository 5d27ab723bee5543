//! The writer of PEFT folders.

use super::config::to_json;
use super::contents::{Contents, pretty, write_tensors_file};
use super::folder::{OutputFolder, write_all};
use super::modules::{Module, Side, keys, modules};
use super::staged::StagedAdapter;
use super::{Adapter, CONFIG_FILE, PREFIX, TENSORS_FILE, check_shapes, encode, suffixes};
use crate::element::Element;
use crate::storage::safetensors::Layout;
use crate::storage::{Checkpoint, Problem, Problems, quoted};
use faer::MatRef;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Writes a PEFT folder up to the point where old files change: `adapter_model.safetensors`, `cntlora.json`, what is beside them, and
/// `adapter_config.json` last.
pub(super) fn stage<'a>(folder: &'a Path, contents: &Contents<'_>) -> Result<StagedAdapter<'a>, Problems> {
    let Contents { adapter, element, other_modules, .. } = *contents;
    check(adapter, element)?;
    let output = OutputFolder::open(folder)?;

    let modules = modules(adapter)?;
    let tensors = tensors(&modules)?;
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let shapes = tensors
        .iter()
        .map(|(key, (module, side))| (key.clone(), (element.name().to_owned(), module.shape_of(*side))));
    let layout = Layout::new(&metadata, &shapes.collect());
    let bytes = tensors
        .iter()
        .map(|(key, (module, side))| (key, finite_bytes(module.factor(*side).as_ref(), element)));
    let (tensors_file, hashing) = write_tensors_file(&output, TENSORS_FILE, &layout, bytes)?;
    let mut files = vec![tensors_file];
    files.extend(contents.write_beside(&output, TENSORS_FILE, hashing)?);
    let mut config_file = output.create(CONFIG_FILE)?;
    write_all(&mut config_file, pretty(&to_json(adapter, &modules, other_modules)).as_bytes())?;
    files.push(config_file);
    Ok(StagedAdapter::new(files, output)?)
}

/// The modules of a checkpoint, other than those of the adapted tensors, that have a weight.
///
/// They go by their checkpoint names, which for some models differ from the runtime names.
pub fn other_modules(checkpoint: &Checkpoint, adapted: &BTreeSet<&str>) -> BTreeSet<String> {
    let others = checkpoint.names().filter(|name| !adapted.contains(name));
    others.filter_map(|name| name.strip_suffix(".weight")).map(str::to_owned).collect()
}

/// The tensors by name, whose order is that of the file.
fn tensors<'a>(
    modules: &'a BTreeMap<&str, Module<'_>>,
) -> Result<BTreeMap<String, (&'a Module<'a>, Side)>, Problem> {
    let mut tensors = BTreeMap::new();
    for (name, key) in keys(modules)? {
        let module = &modules[name];
        let [a_suffix, b_suffix] = suffixes(module.shape());
        tensors.insert(format!("{PREFIX}{key}{a_suffix}"), (module, Side::Down));
        tensors.insert(format!("{PREFIX}{key}{b_suffix}"), (module, Side::Up));
    }
    Ok(tensors)
}

pub(super) fn check(adapter: &Adapter, element: Element) -> Result<(), Problems> {
    let mut problems = Problems::default();
    if element == Element::F64 {
        problems.push(Problem::usage("expected F32, F16 or BF16 as the format of the factors, found F64"));
    }
    if !(adapter.scale > 0.0 && adapter.scale.is_finite()) {
        let found = adapter.scale;
        problems.push(Problem::usage(format!("expected a positive scale, found {found}")));
    }
    if adapter.layers.is_empty() {
        problems.push(
            Problem::data("expected at least one layer with a rank of 1 or more, found none")
                .help("select more layers, or allow larger ranks"),
        );
    }
    for (module, factors) in &adapter.layers {
        if let Err(problem) = check_shapes(factors) {
            problems.push(Problem::data(format!("module {}: {problem}", quoted(module))));
        }
    }
    problems.or_ok(())
}

/// The bytes of a factor, all of them finite numbers.
pub(super) fn finite_bytes(factor: MatRef<'_, f32>, element: Element) -> Result<Vec<u8>, Problem> {
    let bytes = encode(factor, element);
    let mut rounded = vec![0.0; bytes.len() / element.size()];
    element.decode_f32(&bytes, &mut rounded);
    match rounded.iter().position(|value| !value.is_finite()) {
        None => Ok(bytes),
        Some(index) => {
            let (row, column) = (index / factor.ncols(), index % factor.ncols());
            let value = factor[(row, column)];
            let found = format!("row {row}, column {column}: expected a finite {} number", element.name());
            Err(if value.is_finite() {
                Problem::data(format!("{found}, found {value:e}, which is too large for it"))
                    .help("write the factors as f32 or bf16")
            } else {
                Problem::data(format!("{found}, found {value}"))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        AnyLayers, adapter, checkpoint, factors, files, provenance, rows, try_write, write, write_tensors,
    };
    use super::super::{A_SUFFIX, B_SUFFIX, FileRecord, Format, PeftAdapter, RECORD_FILE};
    use super::*;
    use crate::factors::{Factors, LayerShape};
    use crate::storage::{Category, Source};
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
        /// Whatever the names and ranks, the reader finds the factors that were written, and their scale.
        fn what_was_written_is_read_back(layers: AnyLayers, format: u8) -> bool {
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
    fn the_record_is_what_was_given_and_the_hash_of_the_tensors() {
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

    /// The shapes that PEFT gives the factors of a convolution, and the flag that it wants for weights that are stored
    /// transposed, come back as the kinds of layers.
    #[test]
    fn kinds_of_layers_are_written_and_read_back() {
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
            let layer = &read.layers()[module];
            assert_eq!((&layer.shape, layer.outputs, layer.inputs, layer.rank), (&shape, 5, 12, 2));
            assert_eq!(read.factors(layer).unwrap().a, adapter.layers[module].a);
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
        let found = rows(&read.factors(&read.layers()["q"]).unwrap().a);
        assert_eq!(found[..2], [1.0, 1.0 + 4.0 / 256.0]);
        assert!((found[2] - 1e-30).abs() < 1e-32);
    }

    #[test]
    fn files_are_readable_as_the_umask_allows() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("plain"), b"").unwrap();
        write(folder.path(), &adapter([("q", factors(2, 3, 1))]));
        let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        for name in [TENSORS_FILE, RECORD_FILE, CONFIG_FILE] {
            assert_eq!(mode(name), mode("plain"), "{name}");
        }
    }

    #[test]
    fn an_adapter_is_replaced_whole() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(old.path(), &adapter([("q", factors(2, 3, 1)), ("v", factors(2, 3, 2))]));
        let replacement = adapter([("k", factors(5, 4, 3))]);
        write(old.path(), &replacement);
        write(new.path(), &replacement);
        assert_eq!(files(old.path()), files(new.path()));
    }

    #[test]
    fn a_file_or_nothing_in_place_of_the_parent_is_a_problem_of_the_environment() {
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

    /// Something that cannot be replaced stands where the last file goes: the others must not have been touched.
    #[test]
    fn a_failure_before_the_files_are_complete_leaves_the_folder_as_it_was() {
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
    fn all_values_that_do_not_fit_the_format_are_named() {
        let with = |value: f32| {
            let mut factors = factors(2, 3, 1);
            factors.b[(1, 0)] = value;
            factors
        };
        let adapter = adapter([("q", with(65520.0)), ("k", with(65519.0)), ("v", with(-1e30))]);
        let problems = refused(&adapter, Element::F16);
        let texts: Vec<String> = problems.0.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 2);
        assert!(texts[0].contains("base_model.model.q.lora_B.weight") && texts[1].contains("model.v.lora_B"));
        assert!(
            texts[0].contains("row 1, column 0: expected a finite F16 number, found 6.552e4"),
            "{}",
            texts[0]
        );
        assert_eq!(problems.0[0].next_step(), Some("write the factors as f32 or bf16"));
        assert_eq!(problems.category(), Category::Data);

        let problems = refused(&super::super::testing::adapter([("q", with(f32::NAN))]), Element::F32);
        assert!(problems.to_string().ends_with("found NaN"), "{problems}");
    }

    #[test]
    fn what_makes_no_adapter_is_refused() {
        let good = || factors(2, 3, 1);
        let other_rank = Factors { a: good().a, b: factors(2, 3, 2).b };
        for (layers, scale, element, complaint) in [
            (vec![], 1.0, Element::F32, "expected at least one layer"),
            (vec![("q", good())], f64::NAN, Element::F32, "expected a positive scale, found NaN"),
            (vec![("q", good())], 0.0, Element::F32, "expected a positive scale, found 0"),
            (vec![("q", good())], 1.0, Element::F64, "expected F32, F16 or BF16"),
            (vec![("q", factors(2, 3, 0))], 1.0, Element::F32, "module \"q\": expected factors"),
            (vec![("a\nb", other_rank)], 1.0, Element::F32, "module \"a\\nb\": expected factors"),
        ] {
            let problems = refused(&Adapter { scale, ..adapter(layers) }, element);
            assert!(problems.to_string().contains(complaint), "{problems}");
        }
    }

    #[test]
    fn other_modules_are_the_weights_that_are_not_adapted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let one = |name| (name, Element::F32, vec![1], vec![0.0]);
        write_tensors(&path, &[one("a.q.weight"), one("a.q.bias"), one("b.q.weight"), one("scale")]);
        let others = other_modules(&checkpoint(&path), &BTreeSet::from(["a.q.weight"]));
        assert_eq!(others, BTreeSet::from(["b.q".to_owned()]));
    }
}
