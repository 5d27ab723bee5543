use super::super::testing::{checkpoint, factors, files, write_tensors};
use super::*;
use crate::adapter::{Staged, write_residual_base};
use crate::storage::{
    Category,
    safetensors::{self, Header},
    snapshot,
};
use expect_test::expect;
use faer::Mat;
use quickcheck::quickcheck;
use std::collections::BTreeSet;
use std::fs;

const FORMATS: [Element; 4] = [Element::F64, Element::F32, Element::F16, Element::Bf16];

/// Weights that are complete tensors, and their factors.
fn whole(checkpoint: &Checkpoint, layers: &[(&str, &Factors)]) -> Vec<AdaptedWeight> {
    let adapted = |&(name, factors): &(&str, &Factors)| AdaptedWeight {
        pieces: vec![checkpoint.whole(name).unwrap_or_else(|| Piece::of(name, 0..6))],
        factors: factors.clone(),
    };
    layers.iter().map(adapted).collect()
}

fn weights(count: usize) -> Vec<f64> {
    (0..count).map(|i| ((i * 29 + 7) % 101) as f64 / 10.1 - 5.0).collect()
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f64> {
    let element = Element::from_name(&checkpoint.get(name).unwrap().tensor.dtype).unwrap();
    let bytes = checkpoint.read(name).unwrap();
    let mut values = vec![0.0; bytes.len() / element.size()];
    element.decode_f64(&bytes, &mut values);
    values
}

/// Half of the distance between adjacent numbers near `value`.
fn rounding(element: Element, value: f64) -> f64 {
    let digits = match element {
        Element::F64 => 53,
        Element::F32 => 24,
        Element::F16 => 11,
        Element::Bf16 => 8,
    };
    value.abs() * 2f64.powi(-digits) + 1e-7 * f64::from(element == Element::F16)
}

quickcheck! {
    /// The base plus the update of PEFT is the old weight, up to one rounding to the format of the weight. This holds also if the format
    /// of the adapter is coarser than the factors.
    fn the_adapter_on_the_residual_base_is_the_model(shape: (u8, u8, u8), formats: (u8, u8)) -> bool {
        let (outputs, inputs) = (1 + usize::from(shape.0) % 9, 1 + usize::from(shape.1) % 9);
        let rank = 1 + usize::from(shape.2) % 4;
        let format = FORMATS[usize::from(formats.0) % 4];
        let stored_as = FORMATS[1 + usize::from(formats.1) % 3];
        let mut factors = factors(outputs, inputs, rank);
        factors.a[(0, 0)] = 0.1;
        let (model, output) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = model.path().join("model.safetensors");
        let shape = vec![outputs as u64, inputs as u64];
        write_tensors(&path, &[("q.weight", format, shape, weights(outputs * inputs))]);
        let old = checkpoint(&path);
        let layers = whole(&old, &[("q.weight", &factors)]);
        write_residual_base(output.path(), &old, &layers, 0.75, stored_as).unwrap();
        let new = checkpoint(output.path());
        let [a, b] = [&factors.a, &factors.b].map(|factor| rounded(factor.as_ref(), stored_as).unwrap());
        let (old, new) = (values(&old, "q.weight"), values(&new, "q.weight"));
        (0..outputs * inputs).all(|index| {
            let (i, j) = (index / inputs, index % inputs);
            let update: f64 = (0..rank).map(|k| 0.75 * b[i * rank + k] * a[k * inputs + j]).sum();
            let difference = (new[index] + update - old[index]).abs();
            difference <= rounding(format, new[index]) + 1e-14 * (old[index].abs() + 10.0)
        })
    }
}

/// Writes a model of two shards with an index and other usual files.
fn sharded_model(folder: &Path) {
    let shape = vec![3, 2];
    write_tensors(
        &folder.join("model-00001-of-00002.safetensors"),
        &[
            ("a.weight", Element::F32, shape.clone(), weights(6)),
            ("b.weight", Element::Bf16, shape.clone(), weights(6)),
            ("b.bias", Element::F32, vec![3], vec![1.0, f64::NAN, 3.0]),
            ("c.weight", Element::F16, shape.clone(), weights(6)),
        ],
    );
    write_tensors(
        &folder.join("model-00002-of-00002.safetensors"),
        &[("d.weight", Element::F64, shape, weights(6))],
    );
    let index = r#"{"metadata": {"total_size": 84}, "weight_map": {
        "a.weight": "model-00001-of-00002.safetensors", "b.weight": "model-00001-of-00002.safetensors",
        "b.bias": "model-00001-of-00002.safetensors", "c.weight": "model-00001-of-00002.safetensors",
        "d.weight": "model-00002-of-00002.safetensors"}}"#;
    fs::write(folder.join(USUAL_INDEX), index).unwrap();
    fs::write(folder.join("config.json"), "{}").unwrap();
    fs::write(folder.join("vocab.txt"), "words").unwrap();
    for old_weights in ["pytorch_model.bin", "model.ONNX", "pytorch_model.bin.index.json", "copy.safetensors"]
    {
        fs::write(folder.join(old_weights), "weights").unwrap();
    }
    fs::create_dir(folder.join("1_Pooling")).unwrap();
}

#[test]
fn all_bytes_except_adapted_weights_are_copied() {
    let (model, output) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sharded_model(model.path());
    let old = checkpoint(model.path());
    let factors = factors(3, 2, 1);
    let layers = whole(&old, &[("a.weight", &factors), ("c.weight", &factors)]);
    let left_out = write_residual_base(output.path(), &old, &layers, 1.0, Element::F32).unwrap();
    assert_eq!(
        left_out,
        ["1_Pooling", "copy.safetensors", "model.ONNX", "pytorch_model.bin", "pytorch_model.bin.index.json"]
    );
    fs::remove_dir(model.path().join("1_Pooling")).unwrap();
    let (before, mut after) = (files(model.path()), files(output.path()));
    after.remove(RECORD_FILE).expect("the record of the base");
    let expected: BTreeSet<&String> = before.keys().filter(|name| !left_out.contains(name)).collect();
    assert_eq!(after.keys().collect::<BTreeSet<_>>(), expected);
    let changed: Vec<&String> = after.keys().filter(|name| before[*name] != after[*name]).collect();
    assert_eq!(changed, ["model-00001-of-00002.safetensors"]);

    let source = Source::open(&model.path().join(changed[0]), Access::Read).unwrap();
    let header = Header::read(&source).unwrap();
    let (before, after) = (&before[changed[0]], &after[changed[0]]);
    assert_eq!(before.len(), after.len());
    let adapted = ["a.weight", "c.weight"].map(|name| &header.tensors[name]);
    for (index, (before, after)) in before.iter().zip(after).enumerate() {
        let inside = |tensor: &&safetensors::Tensor| {
            (tensor.offset..tensor.offset + tensor.length).contains(&(index as u64))
        };
        assert!(before == after || adapted.iter().any(inside), "byte {index} changed");
    }
    for tensor in adapted {
        let range = tensor.offset as usize..(tensor.offset + tensor.length) as usize;
        assert_ne!(before[range.clone()], after[range]);
    }
}

#[test]
fn a_model_of_one_file_gives_a_folder_with_a_file_of_the_same_name() {
    let (model, parent) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = model.path().join("unet.safetensors");
    write_tensors(&path, &[("q.weight", Element::F32, vec![3, 2], weights(6))]);
    fs::write(model.path().join("config.json"), "{}").unwrap();
    let factors = factors(3, 2, 1);
    let output = parent.path().join("base");
    let layers = whole(&checkpoint(&path), &[("q.weight", &factors)]);
    let left_out = write_residual_base(&output, &checkpoint(&path), &layers, 1.0, Element::F32).unwrap();
    assert!(left_out.is_empty());
    assert_eq!(files(&output).keys().collect::<Vec<_>>(), [RECORD_FILE, "unet.safetensors"]);
}

/// The weight is larger than one block.
#[test]
fn a_weight_of_many_blocks_is_written_completely() {
    let (model, output) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = model.path().join("model.safetensors");
    let (outputs, inputs) = (700, 1000);
    let shape = vec![outputs as u64, inputs as u64];
    write_tensors(&path, &[("q.weight", Element::F32, shape, weights(outputs * inputs))]);
    let old = checkpoint(&path);
    let factors = Factors { a: Mat::full(1, inputs, 0.5), b: Mat::from_fn(outputs, 1, |i, _| i as f32) };
    let layers = whole(&old, &[("q.weight", &factors)]);
    write_residual_base(output.path(), &old, &layers, 2.0, Element::F32).unwrap();
    let (old, new) = (values(&old, "q.weight"), values(&checkpoint(output.path()), "q.weight"));
    for (index, (old, new)) in old.iter().zip(&new).enumerate() {
        assert_eq!(*new, f64::from((old - (index / inputs) as f64) as f32));
    }
}

#[test]
fn the_folder_of_the_model_is_refused() {
    let model = tempfile::tempdir().unwrap();
    let path = model.path().join("model.safetensors");
    write_tensors(&path, &[("q.weight", Element::F32, vec![3, 2], weights(6))]);
    let before = files(model.path());
    let link = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(model.path(), link.path().join("model")).unwrap();
    let factors = factors(3, 2, 1);
    let layers = whole(&checkpoint(&path), &[("q.weight", &factors)]);
    let mut texts = BTreeSet::new();
    for checkpoint in [checkpoint(&path), checkpoint(model.path())] {
        for folder in [model.path(), &model.path().join("."), &link.path().join("model")] {
            let problems = write_residual_base(folder, &checkpoint, &layers, 1.0, Element::F32).unwrap_err();
            assert_eq!(problems.category(), Category::Usage);
            texts.insert(snapshot(problems).replace("/./", "/").replace("/model", ""));
        }
        assert!(refuse_model_folder(link.path(), &checkpoint).is_ok());
        assert!(refuse_model_folder(&link.path().join("missing"), &checkpoint).is_ok());
    }
    assert_eq!(files(model.path()), before);
    expect![[r#"
        FOLDER/.: the residual base would overwrite the weights of the model; help: choose another folder for the residual base
        FOLDER: the residual base would overwrite the weights of the model; help: choose another folder for the residual base
    "#]].assert_eq(&Vec::from_iter(texts).concat());
}

#[test]
fn weights_that_do_not_fit_are_refused_before_writing() {
    let (model, parent) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sharded_model(model.path());
    let old = checkpoint(model.path());
    let (good, large) = (factors(3, 2, 1), factors(4, 2, 1));
    let uneven = Factors { a: factors(3, 2, 2).a, b: factors(3, 2, 1).b };
    let layers = whole(
        &old,
        &[
            ("a.weight", &large),
            ("b.bias", &good),
            ("c.weight", &uneven),
            ("d.weight", &good),
            ("e\n.weight", &good),
        ],
    );
    let output = parent.path().join("base");
    let problems = write_residual_base(&output, &old, &layers, 1.0, Element::F32).unwrap_err();
    assert_eq!(problems.category(), Category::Data);
    expect![[r#"
        FOLDER: tensor "a.weight": the weight has shape [3, 2], but its factors need [4, 2]
        FOLDER: tensor "b.bias": the weight has shape [3], but its factors need [3, 2]
        FOLDER: tensor "c.weight": factors need the shapes A (rank, inputs) and B (outputs, rank) with a rank of at least 1, found (2, 2) and (3, 1)
        FOLDER: tensor "e\n.weight": the checkpoint has no such tensor
    "#]].assert_eq(&snapshot(problems));
    assert!(!output.exists());
}

#[test]
fn values_that_are_or_become_not_finite_are_refused() {
    let (model, parent) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = model.path().join("model.safetensors");
    let infinite = vec![0.0, 0.0, 0.0, f64::INFINITY];
    write_tensors(
        &path,
        &[
            ("q.weight", Element::F16, vec![2, 2], vec![0.0, 0.0, -65000.0, 0.0]),
            ("v.weight", Element::F32, vec![2, 2], infinite),
        ],
    );
    let old = checkpoint(&path);
    let factors = Factors { a: Mat::full(1, 2, 1.0), b: Mat::full(2, 1, 1000.0) };
    let output = parent.path().join("base");
    let mut texts = String::new();
    for name in ["q.weight", "v.weight"] {
        let layers = whole(&old, &[(name, &factors)]);
        let problems = write_residual_base(&output, &old, &layers, 1.0, Element::F32).unwrap_err();
        assert_eq!(problems.category(), Category::Data);
        assert!(!output.exists());
        texts += &snapshot(problems);
    }
    expect![[r#"
        FOLDER/model.safetensors: tensor "q.weight": row 1, column 0: expected a finite F16 number after subtracting the update, found -inf
        FOLDER/model.safetensors: tensor "v.weight": row 1, column 1: expected a finite F32 number, found inf
    "#]].assert_eq(&texts);
}

/// The last file cannot be replaced, so the first must not be put in place.
#[test]
fn a_failure_before_the_files_are_complete_leaves_nothing() {
    let (model, output) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sharded_model(model.path());
    let blocked = output.path().join("vocab.txt");
    fs::create_dir(&blocked).unwrap();
    let old = checkpoint(model.path());
    let problems = write_residual_base(output.path(), &old, &[], 1.0, Element::F32).unwrap_err();
    assert_eq!(problems.category(), Category::Io);
    fs::remove_dir(blocked).unwrap();
    assert!(files(output.path()).is_empty());
}

/// Experts share a tensor, and a matrix has two tensors: each piece gets its own part of the update, and no other number changes.
#[test]
fn pieces_of_tensors_get_their_part_of_the_update() {
    let (model, output) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = model.path().join("model.safetensors");
    let matrix = |name, rows: u64| (name, Element::F32, vec![rows, 2], weights(2 * rows as usize));
    write_tensors(
        &path,
        &[
            ("experts", Element::F32, vec![3, 4, 2], weights(24)),
            matrix("gate", 2),
            matrix("other", 2),
            matrix("up", 3),
        ],
    );
    let old = checkpoint(&path);
    let (expert, joined) = (factors(4, 2, 1), factors(5, 2, 2));
    let layers = [
        AdaptedWeight { pieces: vec![Piece::of("experts", 16..24)], factors: expert.clone() },
        AdaptedWeight { pieces: vec![Piece::of("experts", 0..8)], factors: expert.clone() },
        AdaptedWeight {
            pieces: vec![Piece::of("gate", 0..4), Piece::of("up", 0..6)],
            factors: joined.clone(),
        },
    ];
    write_residual_base(output.path(), &old, &layers, 1.0, Element::F32).unwrap();
    let new = checkpoint(output.path());
    let taken = |name: &str| -> Vec<f64> {
        values(&old, name).iter().zip(values(&new, name)).map(|(old, new)| old - new).collect()
    };
    let update = |factors: &Factors| -> Vec<f64> {
        let product = &factors.b * &factors.a;
        (0..product.nrows() * 2).map(|i| f64::from(product[(i / 2, i % 2)])).collect()
    };
    let close = |found: &[f64], wanted: &[f64]| {
        found.len() == wanted.len() && found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-5)
    };
    let (of_expert, of_joined) = (update(&expert), update(&joined));
    assert!(close(&taken("experts"), &[of_expert.clone(), vec![0.0; 8], of_expert].concat()));
    assert!(close(&taken("gate"), &of_joined[..4]));
    assert!(close(&taken("up"), &of_joined[4..]));
    assert_eq!(taken("other"), [0.0; 4]);

    let beyond = [AdaptedWeight { pieces: vec![Piece::of("experts", 20..28)], factors: expert }];
    let problems = write_residual_base(output.path(), &old, &beyond, 1.0, Element::F32).unwrap_err();
    expect![[r#"
        FOLDER/model.safetensors: tensor "experts": the weight has shape [3, 4, 2], but its factors need [4, 2]
    "#]].assert_eq(&snapshot(problems));
}

/// A wide base holds `W − s B A` without rounding to BF16, also for a part of a tensor. Other tensors keep their bytes, and the files
/// beside the weights name the new format.
#[test]
fn a_wide_base_is_not_rounded() {
    let (model, output) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let numbers: Vec<f64> = (0..12).map(|i| f64::from(i * 29 % 101) / 8.0 - 5.0).collect();
    let tensor = |name, element| (name, element, vec![4, 3], numbers.clone());
    let tensors = [tensor("other", Element::Bf16), tensor("q", Element::Bf16), tensor("wide", Element::F64)];
    write_tensors(&model.path().join("one.safetensors"), &tensors);
    let index = r#"{"metadata":{"total_size":144},"weight_map":{"other":"one.safetensors","q":"one.safetensors","wide":"one.safetensors"}}"#;
    fs::write(model.path().join(USUAL_INDEX), index).unwrap();
    let config = r#"{"dtype":"bfloat16","text_config":{"torch_dtype":"float16","dtype":null}}"#;
    fs::write(model.path().join("config.json"), config).unwrap();
    let old = checkpoint(model.path());
    let mut pair = factors(2, 3, 1);
    pair.a[(0, 1)] = 0.001;
    let whole_pair = factors(4, 3, 1);
    // Rows 1 and 2 of `q`, and all of `wide`.
    let layers = [
        AdaptedWeight { pieces: vec![Piece::of("q", 3..9)], factors: pair.clone() },
        AdaptedWeight { pieces: old.whole("wide").into_iter().collect(), factors: whole_pair },
    ];
    let folder = output.path().join("base");
    let mut staged = Staged::create(&[&folder]).unwrap();
    staged
        .base(Base { folder: &folder, format: BaseFormat::F32 }, &old, &layers, (0.75, Element::F32), None)
        .unwrap();
    staged.commit().unwrap();

    let new = checkpoint(&folder);
    let format = |name: &str| new.get(name).unwrap().tensor.dtype.clone();
    assert_eq!(["other", "q", "wide"].map(format), ["BF16", "F32", "F64"]);
    assert_eq!(new.read("other").unwrap(), old.read("other").unwrap());
    let found = values(&new, "q");
    for (index, before) in numbers.iter().enumerate() {
        let (row, column) = (index / 3, index % 3);
        let update = match row {
            1 | 2 => 0.75 * f64::from(pair.b[(row - 1, 0)]) * f64::from(pair.a[(0, column)]),
            _ => 0.0,
        };
        assert_eq!(found[index], f64::from((before - update) as f32), "{index}");
    }
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap()
    };
    // 12 numbers of 2, 4 and 8 bytes.
    assert_eq!(read(USUAL_INDEX)["metadata"]["total_size"], 12 * 14);
    let config =
        serde_json::json!({ "dtype": "float32", "text_config": { "torch_dtype": "float32", "dtype": null } });
    assert_eq!(read("config.json"), config);
}

/// The index of a variant has its name in another place. The old code copied it with the length of the narrow weights.
#[test]
fn the_index_of_a_variant_gets_the_length_of_the_new_weights() {
    let (model, output) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let numbers: Vec<f64> = (0..12).map(f64::from).collect();
    write_tensors(&model.path().join("x.fp16.safetensors"), &[("q", Element::F16, vec![4, 3], numbers)]);
    let index = r#"{"metadata":{"total_size":24},"weight_map":{"q":"x.fp16.safetensors"}}"#;
    let name = "x.safetensors.index.fp16.json";
    fs::write(model.path().join(name), index).unwrap();
    let old = checkpoint(model.path());
    let pair = factors(4, 3, 1);
    let layers = whole(&old, &[("q", &pair)]);
    let folder = output.path().join("base");
    let mut staged = Staged::create(&[&folder]).unwrap();
    let base = Base { folder: &folder, format: BaseFormat::F32 };
    staged.base(base, &old, &layers, (1.0, Element::F32), None).unwrap();
    staged.commit().unwrap();
    let index: serde_json::Value = serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap();
    assert_eq!(
        (&index["metadata"]["total_size"], &index["weight_map"]["q"]),
        (&48.into(), &"x.fp16.safetensors".into())
    );
    assert_eq!(checkpoint(&folder).get("q").unwrap().tensor.dtype, "F32");
}

/// Descriptions of parts of earlier versions say true or false.
#[test]
fn formats_of_bases_stay_readable() {
    for (format, text) in
        [(BaseFormat::Model, "false"), (BaseFormat::F32, "true"), (BaseFormat::Bf16, "\"bf16\"")]
    {
        assert_eq!(serde_json::to_string(&format).unwrap(), text);
        assert_eq!(serde_json::from_str::<BaseFormat>(text).unwrap(), format);
    }
    assert!(serde_json::from_str::<BaseFormat>("\"f16\"").is_err());
}
