use super::super::testing::{adapter, checkpoint, factors, provenance, try_write, write, write_tensors};
use super::super::{Adapter, Format, TENSORS_FILE};
use super::*;
use crate::factors::mirrored;
use crate::storage::Category;
use std::fs;
use tempfile::TempDir;

/// `B A` of rank 2 whose factors are balanced, and whose `A` has orthonormal rows.
fn balanced() -> Factors {
    let unit = |i: usize, j: usize| if i == j { 1.0 } else { 0.0 };
    Factors { a: Mat::from_fn(2, 3, unit), b: Mat::from_fn(4, 2, unit) }
}

fn written(adapter: &Adapter, element: Element, start: &str, layers: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    try_write(folder.path(), adapter, element, &provenance(start, layers), Format::Peft).unwrap();
    folder
}

fn verified(folder: &Path) -> Result<Verification, Problems> {
    verify(folder, None, &BTreeMap::new())
}

fn refused(folder: &Path) -> Vec<String> {
    let problems = verified(folder).unwrap_err();
    assert_eq!(problems.category(), Category::Data, "{problems}");
    problems.0.iter().map(ToString::to_string).collect()
}

fn assert_only(texts: &[String], complaint: &str) {
    assert!(texts.len() == 1 && texts[0].contains(complaint), "expected {complaint:?}, found {texts:?}");
}

fn not_made(verification: &Verification) -> Vec<&str> {
    let reasons = verification.checks.iter().filter_map(|check| match &check.outcome {
        Outcome::Passed => None,
        Outcome::NotMade(reason) => Some(reason.as_str()),
    });
    reasons.collect()
}

#[test]
fn an_adapter_as_it_was_written_passes_with_its_figures() {
    for element in [Element::F32, Element::F16, Element::Bf16] {
        let folder = written(&adapter([("q", balanced()), ("v", balanced())]), element, "update", &[]);
        let found = verified(folder.path()).unwrap();
        assert_eq!((found.layers, found.parameters), (2, 2 * (2 * 3 + 4 * 2)));
        assert_eq!((found.min_rank, found.max_rank, found.scale), (2, 2, Some(2.0)));
        assert_eq!(found.bytes, fs::metadata(folder.path().join(TENSORS_FILE)).unwrap().len());
        assert_eq!(found.largest_relative_update, None);
        assert_eq!(not_made(&found), ["no base was given"]);
        let text = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<Verification>(&text).unwrap(), found);
    }
}

/// The oracle forms the update and divides the norms.
#[test]
fn the_relative_update_is_that_of_the_formed_product() {
    let model = tempfile::tempdir().unwrap();
    let path = model.path().join("model.safetensors");
    let values: Vec<f64> = (0..12).map(f64::from).collect();
    write_tensors(&path, &[("bert.q.weight", Element::F32, vec![4, 3], values.clone())]);
    let base = checkpoint(&path);
    let pair = factors(4, 3, 2);
    let update = &pair.b * &pair.a;
    let weight = values.iter().map(|value| value * value).sum::<f64>().sqrt();
    let expected = 2.0 * f64::from(update.norm_l2()) / weight;

    let mut record = provenance("update", &[("q", "bert.q.weight")]);
    record.remove("method");
    let folder = tempfile::tempdir().unwrap();
    try_write(folder.path(), &adapter([("q", pair)]), Element::F32, &record, Format::Peft).unwrap();
    let given = BTreeMap::from([("q".to_owned(), vec![base.whole("bert.q.weight").unwrap()])]);
    for tensors in [BTreeMap::new(), given.clone()] {
        let found = verify(folder.path(), Some(&base), &tensors).unwrap();
        assert!((found.largest_relative_update.unwrap() - expected).abs() < 1e-5 * expected);
        assert_eq!(not_made(&found), ["cntlora.json names no start"]);
    }
    fs::remove_file(folder.path().join(RECORD_FILE)).unwrap();
    assert!(verify(folder.path(), Some(&base), &given).is_ok());
    let problems = verify(folder.path(), Some(&base), &BTreeMap::new()).unwrap_err();
    assert!(
        problems.to_string().contains("tensor \"q.weight\": expected the weight of module \"q\""),
        "{problems}"
    );
}

#[test]
fn a_base_that_does_not_fit_is_refused() {
    let model = tempfile::tempdir().unwrap();
    let path = model.path().join("model.safetensors");
    let folder = written(&adapter([("q", balanced())]), Element::F32, "update", &[]);
    for (shape, values, complaint) in [
        (vec![3, 4], vec![0.0; 12], "expected shape [4, 3], as its factors have it, found [3, 4]"),
        (vec![12], vec![0.0; 12], "expected shape [4, 3], as its factors have it, found [12]"),
        (vec![4, 3], vec![f64::NAN; 12], "found a norm that is not finite"),
    ] {
        write_tensors(&path, &[("q.weight", Element::F32, shape, values)]);
        let problems = verify(folder.path(), Some(&checkpoint(&path)), &BTreeMap::new()).unwrap_err();
        assert!(problems.to_string().contains(complaint), "{problems}");
    }
    // The update of a weight of zeros has no relative size.
    write_tensors(&path, &[("q.weight", Element::F32, vec![4, 3], vec![0.0; 12])]);
    let found = verify(folder.path(), Some(&checkpoint(&path)), &BTreeMap::new()).unwrap();
    assert_eq!(found.largest_relative_update, Some(0.0));
}

/// What each method promises of its factors is checked, and factors that break it are refused.
#[test]
fn the_promises_of_methods_are_checked() {
    let unit = |rows, columns| Mat::from_fn(rows, columns, |i, j| if i == j { 1.0 } else { 0.0 });
    let zero_up = || Factors { a: factors(4, 3, 2).a, b: Mat::zeros(4, 2) };
    let orthonormal_up = || Factors { a: factors(4, 3, 2).a, b: unit(4, 2) };
    let with_an_empty_unit = |length: f32| Factors {
        a: Mat::from_fn(2, 3, |i, j| {
            if i != j {
                0.0
            } else if i == 1 {
                length
            } else {
                3.0
            }
        }),
        b: Mat::from_fn(4, 2, |i, j| if (i, j) == (2, 0) { 3.0 } else { 0.0 }),
    };
    // One half of the rank is used by each factor.
    let zero_product =
        || Factors { a: Mat::from_fn(2, 3, |i, _| i as f32), b: Mat::from_fn(4, 2, |_, j| 1.0 - j as f32) };
    for (method, start, good, bad, complaint) in [
        ("pissa", "residual", balanced(), orthonormal_up(), "expected balanced factors"),
        (
            "pissa",
            "residual",
            with_an_empty_unit(1.0),
            with_an_empty_unit(2.0),
            "zero columns of B must be orthonormal",
        ),
        ("pissa", "mirrored", mirrored(&balanced()), balanced(), "must be exactly opposite"),
        ("cntlora", "mirrored", mirrored(&with_an_empty_unit(1.0)), zero_up(), "must be exactly opposite"),
        ("olora", "residual", orthonormal_up(), zero_up(), "expected orthonormal columns of B"),
        ("eva", "zero", Factors { a: unit(2, 3), b: Mat::zeros(4, 2) }, zero_up(), "orthonormal rows of A"),
        ("lora", "zero", zero_up(), orthonormal_up(), "expected B = 0"),
        ("orthogonal", "zero", zero_product(), orthonormal_up(), "expected B A = 0"),
    ] {
        let written = |pair| {
            let mut record = provenance(start, &[]);
            record.insert("method".into(), serde_json::json!({ "method": method, "start": start }));
            let folder = tempfile::tempdir().unwrap();
            let adapter = adapter([("q", pair)]);
            try_write(folder.path(), &adapter, Element::F32, &record, Format::Peft).unwrap();
            folder
        };
        assert_eq!(not_made(&verified(written(good).path()).unwrap()), ["no base was given"], "{method}");
        assert_only(&refused(written(bad).path()), complaint);
    }
    // Of an embedding the other factor of lora is zero, and of a linear layer beside it is not.
    let mut adapter = adapter([("e", Factors { a: Mat::zeros(2, 3), b: unit(4, 2) }), ("q", zero_up())]);
    adapter.shapes.insert("e".into(), LayerShape::Embedding);
    let mut record = provenance("zero", &[]);
    record.insert("method".into(), serde_json::json!({ "method": "lora", "start": "zero" }));
    let folder = tempfile::tempdir().unwrap();
    let write = |adapter: &Adapter| {
        try_write(folder.path(), adapter, Element::F32, &record, Format::Peft).unwrap();
    };
    write(&adapter);
    let found = verified(folder.path()).unwrap();
    assert!(found.checks.iter().any(|check| check.what == "B is zero; A of embeddings is zero"));
    adapter.layers.insert("e".into(), zero_up());
    write(&adapter);
    assert_only(&refused(folder.path()), "module \"e\": expected A = 0");
}

#[test]
fn an_adapter_of_others_passes_without_a_record() {
    let folder = written(&adapter([("q", factors(4, 3, 2))]), Element::F32, "update", &[]);
    fs::remove_file(folder.path().join(RECORD_FILE)).unwrap();
    let found = verified(folder.path()).unwrap();
    assert_eq!(
        not_made(&found),
        ["there is no cntlora.json", "there is no cntlora.json", "no base was given"]
    );
}

#[test]
fn a_changed_byte_is_found_by_the_hash() {
    let folder = written(&adapter([("q", balanced())]), Element::F32, "update", &[]);
    let path = folder.path().join(TENSORS_FILE);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_only(&refused(folder.path()), "as cntlora.json says, found");
}

#[test]
fn a_record_that_cannot_be_used_is_refused() {
    let folder = written(&adapter([("q", balanced())]), Element::F32, "update", &[]);
    for (record, complaint) in [
        ("{", "expected the record of an adapter"),
        (r#"{"format":"cntlora-adapter","version":9}"#, "found 9"),
        (r#"{"format":"cntlora-adapter","version":1}"#, "expected the hash of adapter_model.safetensors"),
    ] {
        fs::write(folder.path().join(RECORD_FILE), record).unwrap();
        assert_only(&refused(folder.path()), complaint);
    }
}

#[test]
fn factors_must_be_what_the_start_promises() {
    let scaled =
        |a: f32, b: f32| Factors { a: balanced().a * faer::Scale(a), b: balanced().b * faer::Scale(b) };
    let skew = {
        let mut factors = scaled(1.0, 0.0);
        factors.a[(0, 1)] = 0.5;
        factors
    };
    for (pair, start, complaint) in [
        (scaled(1.0, 1.0), "update", None),
        (scaled(1.0, 1.0), "residual", None),
        // Units that are zero in both factors can never be trained.
        (scaled(0.0, 0.0), "update", Some("zero columns of B must be orthonormal")),
        (scaled(1.0, 1.01), "update", Some("expected balanced factors")),
        (scaled(0.5, 2.0), "residual", Some("expected balanced factors")),
        (scaled(1.0, 0.0), "zero", None),
        (scaled(1.0, 1e-20), "zero", Some("expected B = 0")),
        (scaled(1.01, 0.0), "zero", Some("expected orthonormal rows of A")),
        (skew, "zero", Some("expected orthonormal rows of A")),
    ] {
        let folder = written(&adapter([("q", pair)]), Element::F32, start, &[]);
        match complaint {
            None => assert!(verified(folder.path()).is_ok()),
            Some(complaint) => assert_only(&refused(folder.path()), complaint),
        }
    }
}

#[test]
fn a_residual_adapter_says_which_base_it_needs() {
    let folder = written(&adapter([("q", balanced())]), Element::F32, "residual", &[]);
    let notes = verified(folder.path()).unwrap().notes;
    assert!(
        notes.len() == 1 && notes[0].contains("residual base") && notes[0].contains("\"tiny\""),
        "{notes:?}"
    );
}

/// Writes an adapter without a record and edits its configuration.
fn with_config(edit: impl FnOnce(&mut serde_json::Value)) -> TempDir {
    let folder = written(&adapter([("q", balanced()), ("x.v", balanced())]), Element::F32, "update", &[]);
    let path = folder.path().join(CONFIG_FILE);
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(&path, config.to_string()).unwrap();
    folder
}

#[test]
fn targets_must_be_the_modules_with_tensors() {
    let with_targets = |targets: &str| {
        let targets = serde_json::from_str(targets).unwrap();
        with_config(|config| config["target_modules"] = targets)
    };
    for targets in [r#"["q","x.v"]"#, r#"["q","v"]"#, r#""q|x\\.v""#, r#""all-linear""#] {
        assert!(verified(with_targets(targets).path()).is_ok(), "{targets}");
    }
    for (targets, complaint) in [
        (r#"["q"]"#, "found that \"x.v\" is not named"),
        (r#""q|v""#, "found that \"x.v\" is not named"),
        (r#"["q","v","k"]"#, "found none for \"k\""),
        ("null", "expected target_modules, found none"),
    ] {
        assert_only(&refused(with_targets(targets).path()), complaint);
    }
}

#[test]
fn the_scale_is_told_when_all_layers_share_it() {
    for (alpha, expected) in [(6.0, Some(3.0)), (6.0 * (1.0 + 1e-15), Some(3.0)), (6.1, None)] {
        let patterns = serde_json::json!({"q": 6.0, "v": alpha});
        let folder = with_config(|config| config["alpha_pattern"] = patterns);
        assert_eq!(verified(folder.path()).unwrap().scale, expected);
    }
}

#[test]
fn everything_wrong_is_reported_together() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &adapter([("q", balanced())]));
    let config = r#"{"peft_type":"LORA","r":2,"target_modules":["q","k"],"rank_pattern":{"v":7}}"#;
    fs::write(folder.path().join(CONFIG_FILE), config).unwrap();
    let pair = |module: &str, value: f64| {
        [
            (format!("base_model.model.{module}.lora_A.weight"), Element::F32, vec![2, 1], vec![value; 2]),
            (format!("base_model.model.{module}.lora_B.weight"), Element::F32, vec![1, 2], vec![value; 2]),
        ]
    };
    let tensors: Vec<_> =
        [pair("q", f64::NAN), pair("v", 1.0), pair("w", 1.0)].into_iter().flatten().collect();
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, element, shape, values)| (name.as_str(), *element, shape.clone(), values.clone()))
        .collect();
    write_tensors(&folder.path().join(TENSORS_FILE), &tensors);
    let texts = refused(folder.path()).join("\n");
    for complaint in [
        "expected rank 7, as adapter_config.json says, found 2",
        "as cntlora.json says, found",
        "found that \"w\" is not named",
        "found none for \"k\"",
        "module \"q\": expected finite values, found NaN in row 0, column 0 of A",
        "module \"q\": expected finite values, found NaN in row 0, column 0 of B",
    ] {
        assert!(texts.contains(complaint), "expected {complaint:?} in:\n{texts}");
    }
    assert_eq!(texts.lines().count(), 6, "{texts}");
}
