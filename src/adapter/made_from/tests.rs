use super::super::replace::BaseRecord;
use super::super::testing::{adapter, checkpoint, factors, provenance, try_write, write_tensors};
use super::super::{
    AdaptedWeight, Base, Contents, FileRecord, Format, Outcome, PeftContents, RECORD_FILE, Staged,
    Verification, default_base, recorded_layer, verify,
};
use super::*;
use crate::element::Element;
use crate::factors::Factors;
use crate::storage::{Problems, Source, snapshot};
use expect_test::expect;
use faer::Mat;
use std::fs;
use std::path::Path;

fn of(values: &[f64], element: Element, piece: std::ops::Range<u64>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_tensors(&path, &[("w", element, vec![values.len() as u64], values.to_vec())]);
    weight_fingerprint(&checkpoint(&path), &Piece::of("w", piece)).unwrap()
}

/// Numbers that a narrow format holds have the same fingerprint in every format.
#[test]
fn fingerprints_are_those_of_numbers() {
    let values: Vec<f64> = (0..40).map(|i| f64::from(i % 17) / 4.0 - 2.0).collect();
    let plain = of(&values, Element::F32, 0..40);
    assert_eq!(plain.len(), 32);
    for element in [Element::F64, Element::F16, Element::Bf16] {
        assert_eq!(of(&values, element, 0..40), plain);
    }
    assert_ne!(of(&values, Element::F32, 0..39), plain);
    assert_ne!(of(&values, Element::F32, 1..40), of(&values, Element::F32, 0..39));
    for at in 0..40 {
        let mut other = values.clone();
        other[at] += 0.25;
        assert_ne!(of(&other, Element::F32, 0..40), plain, "{at}");
    }
}

/// Of a large weight, runs from the first to the last number count.
#[test]
fn large_weights_are_sampled_from_end_to_end() {
    let count = 40_000;
    let values = |change: &dyn Fn(usize) -> f64| (0..count).map(change).collect::<Vec<f64>>();
    let of = |values: &[f64]| of(values, Element::F32, 0..count as u64);
    let plain = of(&values(&|_| 1.0));
    assert_eq!(plain, of(&values(&|_| 1.0)));
    assert_ne!(plain, of(&values(&|i| if i == 0 { 2.0 } else { 1.0 })));
    assert_ne!(plain, of(&values(&|i| if i == count - 1 { 2.0 } else { 1.0 })));
    assert_ne!(plain, of(&values(&|i| if i % 1000 == 0 { 2.0 } else { 1.0 })));
}

/// The values of a weight of 4 outputs and 3 inputs.
fn values(seed: u32) -> Vec<f64> {
    (0..12).map(|i| f64::from((i * 7 + seed * 5) % 16) / 8.0 - 1.0).collect()
}

/// Writes a model of one file with these weights.
fn model(folder: &Path, element: Element, weights: &[(&str, u32)]) -> Checkpoint {
    fs::create_dir_all(folder).unwrap();
    let tensors: Vec<_> =
        weights.iter().map(|&(name, seed)| (name, element, vec![4, 3], values(seed))).collect();
    write_tensors(&folder.join("model.safetensors"), &tensors);
    checkpoint(folder)
}

/// A record of an adapter that was made from a model.
fn record_of(
    model: &Checkpoint,
    start: &str,
    layers: &[(&str, &str)],
) -> serde_json::Map<String, serde_json::Value> {
    let mut record = provenance(start, &[]);
    if start == "update" {
        // The factors of these tests are not balanced.
        record.remove("method");
    }
    let layers = layers.iter().map(|(module, tensor)| {
        let fingerprint = weight_fingerprint(model, &model.whole(tensor).unwrap()).unwrap();
        recorded_layer(module, tensor, None, &[fingerprint])
    });
    record.insert("layers".into(), layers.collect());
    record.insert("model".into(), "the/model".into());
    record
}

/// Writes an adapter of `q` and `v` that was made from a model.
fn adapter_of(folder: &Path, model: &Checkpoint) {
    let adapter = adapter([("q", factors(4, 3, 1)), ("v", factors(4, 3, 1))]);
    let record = record_of(model, "update", &[("q", "m.q.weight"), ("v", "m.v.weight")]);
    try_write(folder, &adapter, Element::F32, &record, Format::Peft).unwrap();
}

fn outcome(verification: &Verification) -> &Outcome {
    &verification.checks.last().unwrap().outcome
}

const WEIGHTS: [(&str, u32); 3] = [("m.q.weight", 1), ("m.v.weight", 2), ("m.o.weight", 3)];

/// The old code passed with any base of the right shapes.
#[test]
fn another_base_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let original = model(&path("model"), Element::F32, &WEIGHTS);
    adapter_of(&path("adapter"), &original);
    let verified = |base: &Checkpoint| verify(&path("adapter"), Some(base), &BTreeMap::new());
    assert_eq!(outcome(&verified(&original).unwrap()), &Outcome::Passed);

    let refused = |base: Checkpoint| snapshot(verified(&base).unwrap_err());
    let one = refused(model(&path("one"), Element::F32, &[("m.q.weight", 1), ("m.v.weight", 4)]));
    let swapped = refused(model(&path("swapped"), Element::F32, &[("m.q.weight", 2), ("m.v.weight", 1)]));
    expect![[r#"
        FOLDER/one: tensor "m.v.weight": module "v": the base has another weight than the one that the adapter was made from: 1 of 2 adapted weights differ; help: give "the/model" as the base
        FOLDER/swapped: tensor "m.q.weight": module "q": the base has another weight than the one that the adapter was made from: 2 of 2 adapted weights differ; help: give "the/model" as the base
    "#]].assert_eq(&(one + &swapped));
}

/// The same weights in other shards, under other names or in a wider format are the same base.
#[test]
fn the_same_weights_are_recognized_wherever_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let original = model(&path("model"), Element::Bf16, &WEIGHTS);
    adapter_of(&path("adapter"), &original);
    let same = |base: &Checkpoint| {
        let found = verify(&path("adapter"), Some(base), &BTreeMap::new()).unwrap();
        assert_eq!(outcome(&found), &Outcome::Passed);
        found.largest_relative_update.unwrap()
    };
    let share = same(&original);
    assert!(share > 0.0);
    assert_eq!(same(&model(&path("wide"), Element::F32, &WEIGHTS)), share);
    let renamed = [("n.a.weight", 3), ("n.b.weight", 2), ("n.c.weight", 1)];
    assert_eq!(same(&model(&path("renamed"), Element::Bf16, &renamed)), share);

    fs::create_dir(path("sharded")).unwrap();
    for (file, (name, seed)) in ["1.safetensors", "2.safetensors"].into_iter().zip(WEIGHTS) {
        write_tensors(&path("sharded").join(file), &[(name, Element::Bf16, vec![4, 3], values(seed))]);
    }
    let index = r#"{"weight_map":{"m.q.weight":"1.safetensors","m.v.weight":"2.safetensors"}}"#;
    fs::write(path("sharded/model.safetensors.index.json"), index).unwrap();
    assert_eq!(same(&checkpoint(&path("sharded"))), share);
}

/// Adapters of older versions, and of other programs, still verify. The check says why it was not made.
#[test]
fn adapters_without_fingerprints_still_verify() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let base = model(&path("model"), Element::F32, &[("q.weight", 1)]);
    let adapter = adapter([("q", factors(4, 3, 1))]);
    let mut record = provenance("update", &[("q", "q.weight")]);
    record.remove("method");
    try_write(&path("adapter"), &adapter, Element::F32, &record, Format::Peft).unwrap();
    let reason = || match verify(&path("adapter"), Some(&base), &BTreeMap::new()).unwrap().checks.pop() {
        Some(super::super::Check { outcome: Outcome::NotMade(reason), .. }) => reason,
        other => panic!("{other:?}"),
    };
    expect!["cntlora.json has no fingerprints of the weights"].assert_eq(&reason());
    fs::remove_file(path("adapter").join(RECORD_FILE)).unwrap();
    expect!["there is no cntlora.json"].assert_eq(&reason());
}

/// A residual adapter belongs to the changed base that was written with it, and to the original weights. Others are refused.
#[test]
fn a_changed_base_is_recognized_by_its_record() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("adapter");
    let original = model(&parent.path().join("model"), Element::F32, &[("q.weight", 1)]);
    // Balanced factors.
    let unit = |i: usize, j: usize| if i == j { 1.0 } else { 0.0 };
    let made = Factors { a: Mat::from_fn(1, 3, unit), b: Mat::from_fn(4, 1, unit) };
    let adapter = adapter([("q", made.clone())]);
    let record = record_of(&original, "residual", &[("q", "q.weight")]);
    let (other_modules, element) = (&Default::default(), Element::F32);
    let peft = PeftContents::default();
    let contents =
        Contents { adapter: &adapter, element, provenance: &record, other_modules, beside: &[], peft };
    let base = default_base(&folder);
    let mut staged = Staged::create(&[&folder, &base]).unwrap();
    let hash = staged.adapter(&folder, &contents, Format::Peft).unwrap();
    let weights = [AdaptedWeight { pieces: original.whole("q.weight").into_iter().collect(), factors: made }];
    staged
        .base(
            Base { folder: &base, format: Default::default() },
            &original,
            &weights,
            (2.0, element),
            Some(hash),
        )
        .unwrap();
    staged.commit_adapter(&folder).unwrap();

    let verified = |base: &Path| -> Result<Verification, Problems> {
        verify(&folder, Some(&checkpoint(base)), &BTreeMap::new())
    };
    assert_eq!(outcome(&verified(&base).unwrap()), &Outcome::Passed);
    assert_eq!(outcome(&verified(&parent.path().join("model")).unwrap()), &Outcome::Passed);
    let with_another = FileRecord::of(&Source::from_bytes("another", vec![0])).unwrap();
    let other = BaseRecord::new(vec!["model.safetensors".into()], Some(with_another));
    fs::write(base.join(RECORD_FILE), serde_json::to_vec(&other).unwrap()).unwrap();
    expect![[r#"
        FOLDER/adapter/base/cntlora.json: this base was written together with another adapter, according to both records; help: give the base of this adapter, or write both again
    "#]].assert_eq(&snapshot(verified(&base).unwrap_err()));
    fs::remove_file(base.join(RECORD_FILE)).unwrap();
    expect![[r#"
        FOLDER/adapter/base: tensor "q.weight": module "q": the base has another weight than the one that the adapter was made from; help: give "the/model" as the base, or the changed base that was written with it, with its cntlora.json
    "#]].assert_eq(&snapshot(verified(&base).unwrap_err()));
}
