use super::super::testing::{adapter, checkpoint, factors, provenance, try_write, write, write_tensors};
use super::super::{Adapter, CONFIG_FILE, Format, TENSORS_FILE};
use super::*;
use crate::element::Element;
use crate::factors::{Factors, mirrored};
use crate::storage::{Category, snapshot};
use expect_test::expect;
use faer::Mat;
use std::fs;
use tempfile::TempDir;

/// Balanced factors of rank 2. The rows of `A` are orthonormal.
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

fn refused(folder: &Path) -> String {
    let problems = verified(folder).unwrap_err();
    assert_eq!(problems.category(), Category::Data, "{problems}");
    snapshot(problems)
}

fn not_made(verification: &Verification) -> Vec<&str> {
    let reasons = verification.checks.iter().filter_map(|check| match &check.outcome {
        Outcome::Passed => None,
        Outcome::NotMade(reason) => Some(reason.as_str()),
    });
    reasons.collect()
}

#[test]
fn a_written_adapter_passes() {
    for element in [Element::F32, Element::F16, Element::Bf16] {
        let folder = written(&adapter([("q", balanced()), ("v", balanced())]), element, "update", &[]);
        let found = verified(folder.path()).unwrap();
        assert_eq!((found.layers, found.parameters), (2, 2 * (2 * 3 + 4 * 2)));
        assert_eq!((found.min_rank, found.max_rank, found.scale), (2, 2, Some(2.0)));
        assert_eq!(found.bytes, fs::metadata(folder.path().join(TENSORS_FILE)).unwrap().len());
        assert_eq!(found.largest_relative_update, None);
        assert_eq!(not_made(&found), ["no base was given"; 2]);
        let text = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<Verification>(&text).unwrap(), found);
    }
}

/// The oracle computes the update and divides the norms.
#[test]
fn the_relative_update_is_correct() {
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
    let given = BTreeMap::from([("q".into(), vec![base.whole("bert.q.weight").unwrap()])]);
    for tensors in [BTreeMap::new(), given.clone()] {
        let found = verify(folder.path(), Some(&base), &tensors).unwrap();
        assert!((found.largest_relative_update.unwrap() - expected).abs() < 1e-5 * expected);
        assert_eq!(
            not_made(&found),
            ["cntlora.json has no start", "cntlora.json has no fingerprints of the weights"]
        );
    }
    fs::remove_file(folder.path().join(RECORD_FILE)).unwrap();
    assert!(verify(folder.path(), Some(&base), &given).is_ok());
    let problems = verify(folder.path(), Some(&base), &BTreeMap::new()).unwrap_err();
    expect![[r#"
        FOLDER/model.safetensors: tensor "q.weight": the base does not contain the weight of module "q"; help: give the base that the adapter was made for
    "#]].assert_eq(&snapshot(problems));
}

#[test]
fn an_adapter_without_factors_is_refused() {
    let folder = written(&adapter([("q", balanced())]), Element::F32, "update", &[]);
    fs::remove_file(folder.path().join(RECORD_FILE)).unwrap();
    write_tensors(&folder.path().join(TENSORS_FILE), &[]);
    expect![[r#"
        FOLDER/adapter_model.safetensors: the adapter has no factors; help: DeepSpeed ZeRO-3 saves such adapters if it does not gather the parameters: set stage3_gather_16bit_weights_on_model_save, or save with state_dict=accelerator.get_state_dict(model)
    "#]]
    .assert_eq(&refused(folder.path()));
}

#[test]
fn a_base_that_does_not_fit_is_refused() {
    let model = tempfile::tempdir().unwrap();
    let path = model.path().join("model.safetensors");
    let folder = written(&adapter([("q", balanced())]), Element::F32, "update", &[]);
    let mut texts = String::new();
    for (shape, values) in [(vec![3, 4], 0.0), (vec![12], 0.0), (vec![4, 3], f64::NAN)] {
        let values = vec![values; 12];
        write_tensors(&path, &[("q.weight", Element::F32, shape, values)]);
        let problems = verify(folder.path(), Some(&checkpoint(&path)), &BTreeMap::new()).unwrap_err();
        texts += &snapshot(problems);
    }
    expect![[r#"
        FOLDER/model.safetensors: tensor "q.weight": the weight has shape [3, 4], but its factors need [4, 3]
        FOLDER/model.safetensors: tensor "q.weight": the weight has shape [12], but its factors need [4, 3]
        FOLDER/model.safetensors: tensor "q.weight": the weight has NaN, infinite or extremely large values
    "#]]
    .assert_eq(&texts);
    // The update of a weight of zeros has no relative size.
    write_tensors(&path, &[("q.weight", Element::F32, vec![4, 3], vec![0.0; 12])]);
    let found = verify(folder.path(), Some(&checkpoint(&path)), &BTreeMap::new()).unwrap();
    assert_eq!(found.largest_relative_update, Some(0.0));
}

#[test]
fn the_properties_that_methods_promise_are_checked() {
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
    let mut texts = String::new();
    for (method, start, good, bad) in [
        ("pissa", "residual", balanced(), orthonormal_up()),
        ("pissa", "residual", with_an_empty_unit(1.0), with_an_empty_unit(2.0)),
        ("pissa", "mirrored", mirrored(&balanced()), balanced()),
        ("cntlora", "mirrored", mirrored(&with_an_empty_unit(1.0)), zero_up()),
        ("olora", "residual", orthonormal_up(), zero_up()),
        ("olora-tail", "residual", Factors { a: unit(2, 3), b: unit(4, 2) }, orthonormal_up()),
        ("mica", "zero", Factors { a: Mat::zeros(2, 3), b: unit(4, 2) }, orthonormal_up()),
        (
            "mica",
            "zero",
            Factors { a: Mat::zeros(2, 3), b: unit(4, 2) },
            Factors { a: Mat::zeros(2, 3), b: Mat::zeros(4, 2) },
        ),
        ("sc-lora", "residual", orthonormal_up(), zero_up()),
        ("astra", "residual", orthonormal_up(), zero_up()),
        ("lora-null", "residual", balanced(), orthonormal_up()),
        ("eva", "zero", Factors { a: unit(2, 3), b: Mat::zeros(4, 2) }, zero_up()),
        ("lora", "zero", zero_up(), orthonormal_up()),
        ("orthogonal", "zero", zero_product(), orthonormal_up()),
    ] {
        let written = |pair| {
            let mut record = provenance(start, &[]);
            record.insert("method".into(), serde_json::json!({ "method": method, "start": start }));
            let folder = tempfile::tempdir().unwrap();
            let adapter = adapter([("q", pair)]);
            try_write(folder.path(), &adapter, Element::F32, &record, Format::Peft).unwrap();
            folder
        };
        assert_eq!(not_made(&verified(written(good).path()).unwrap()), ["no base was given"; 2], "{method}");
        texts += &refused(written(bad).path());
    }
    // With lora, A of an embedding is zero, and B of other layers.
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
    texts += &refused(folder.path());
    expect![[r#"
        FOLDER/adapter_model.safetensors: module "q": the factors must be balanced (BᵀB = A Aᵀ), but the relative deviation is 4.2e-1; the tolerance is 1e-3
        FOLDER/adapter_model.safetensors: module "q": rows of A whose columns of B are zero must be orthonormal, but deviate by 3.0e0
        FOLDER/adapter_model.safetensors: module "q": rows 2k and 2k + 1 of A must be exactly opposite, and columns 2k and 2k + 1 of B must be equal
        FOLDER/adapter_model.safetensors: module "q": rows 2k and 2k + 1 of A must be exactly opposite, and columns 2k and 2k + 1 of B must be equal
        FOLDER/adapter_model.safetensors: module "q": the columns of B must be orthonormal, but the relative deviation is 1.0e0; the tolerance is 1e-3
        FOLDER/adapter_model.safetensors: module "q": the columns of B and the rows of A must be orthonormal, but the relative deviation is 5.7e-1; the tolerance is 1e-3
        FOLDER/adapter_model.safetensors: module "q": A must be zero, but |A Aᵀ| = 1.9204187846432466e0
        FOLDER/adapter_model.safetensors: module "q": the columns of B must be orthonormal, but the relative deviation is 1.0e0; the tolerance is 1e-3
        FOLDER/adapter_model.safetensors: module "q": the columns of B must be orthonormal, but the relative deviation is 1.0e0; the tolerance is 1e-3
        FOLDER/adapter_model.safetensors: module "q": the columns of B must be orthonormal, but the relative deviation is 1.0e0; the tolerance is 1e-3
        FOLDER/adapter_model.safetensors: module "q": the factors must be balanced (BᵀB = A Aᵀ), but the relative deviation is 4.2e-1; the tolerance is 1e-3
        FOLDER/adapter_model.safetensors: module "q": the rows of A must be orthonormal, but the relative deviation is 5.7e-1; the tolerance is 1e-3
        FOLDER/adapter_model.safetensors: module "q": B must be zero, but |BᵀB| = 1.4142135623730951e0
        FOLDER/adapter_model.safetensors: module "q": B A must be zero, but the relative deviation is 7.1e-1; the tolerance is 1e-3
        FOLDER/adapter_model.safetensors: module "e": A must be zero, but |A Aᵀ| = 1.9204187846432466e0
    "#]].assert_eq(&texts);
}

#[test]
fn an_adapter_without_a_record_passes() {
    let folder = written(&adapter([("q", factors(4, 3, 2))]), Element::F32, "update", &[]);
    fs::remove_file(folder.path().join(RECORD_FILE)).unwrap();
    let found = verified(folder.path()).unwrap();
    assert_eq!(
        not_made(&found),
        ["there is no cntlora.json", "there is no cntlora.json", "no base was given", "no base was given"]
    );
}

#[test]
fn a_changed_byte_is_detected() {
    let folder = written(&adapter([("q", balanced())]), Element::F32, "update", &[]);
    let path = folder.path().join(TENSORS_FILE);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(refused(folder.path()).contains("checksum mismatch"));
}

#[test]
fn invalid_records_are_refused() {
    let folder = written(&adapter([("q", balanced())]), Element::F32, "update", &[]);
    let records = [
        "{",
        r#"{"format":"moments","version":1}"#,
        r#"{"format":"cntlora-adapter","version":9}"#,
        r#"{"format":"cntlora-adapter","version":1}"#,
    ];
    let texts = records.map(|record| {
        fs::write(folder.path().join(RECORD_FILE), record).unwrap();
        refused(folder.path())
    });
    expect![[r#"
        FOLDER/cntlora.json: invalid adapter record: EOF while parsing an object at line 1 column 1; help: write the adapter again, or remove the record to use the adapter without it
        FOLDER/cntlora.json: invalid adapter record: expected format "cntlora-adapter", found "moments"; help: write the adapter again, or remove the record to use the adapter without it
        FOLDER/cntlora.json: unsupported version 9 of the adapter record: the newest known version is 1; help: use the version of cntlora that wrote it, or a newer one
        FOLDER/cntlora.json: the record has no checksum of adapter_model.safetensors
    "#]].assert_eq(&texts.concat());
}

#[test]
fn factors_must_have_the_properties_of_the_start() {
    let scaled =
        |a: f32, b: f32| Factors { a: balanced().a * faer::Scale(a), b: balanced().b * faer::Scale(b) };
    let skew = {
        let mut factors = scaled(1.0, 0.0);
        factors.a[(0, 1)] = 0.5;
        factors
    };
    let written = |pair, start| written(&adapter([("q", pair)]), Element::F32, start, &[]);
    for (pair, start) in
        [(scaled(1.0, 1.0), "update"), (scaled(1.0, 1.0), "residual"), (scaled(1.0, 0.0), "zero")]
    {
        assert!(verified(written(pair, start).path()).is_ok());
    }
    let texts = [
        // Units that are zero in both factors can never be trained.
        (scaled(0.0, 0.0), "update"),
        (scaled(1.0, 1.01), "update"),
        (scaled(0.5, 2.0), "residual"),
        (scaled(1.0, 1e-20), "zero"),
        (scaled(1.01, 0.0), "zero"),
        (skew, "zero"),
    ]
    .map(|(pair, start)| refused(written(pair, start).path()));
    expect![[r#"
        FOLDER/adapter_model.safetensors: module "q": rows of A whose columns of B are zero must be orthonormal, but deviate by 1.4e0
        FOLDER/adapter_model.safetensors: module "q": the factors must be balanced (BᵀB = A Aᵀ), but the relative deviation is 2.0e-2; the tolerance is 1e-3
        FOLDER/adapter_model.safetensors: module "q": the factors must be balanced (BᵀB = A Aᵀ), but the relative deviation is 1.5e1; the tolerance is 1e-3
        FOLDER/adapter_model.safetensors: module "q": B must be zero, but |BᵀB| = 1.4142134726144396e-40
        FOLDER/adapter_model.safetensors: module "q": the rows of A must be orthonormal, but the relative deviation is 2.0e-2; the tolerance is 1e-3
        FOLDER/adapter_model.safetensors: module "q": the rows of A must be orthonormal, but the relative deviation is 5.3e-1; the tolerance is 1e-3
    "#]].assert_eq(&texts.concat());
}

#[test]
fn residual_adapters_have_notes_about_their_base_or_anchor() {
    let folder = written(&adapter([("q", balanced())]), Element::F32, "residual", &[]);
    let mut notes = verified(folder.path()).unwrap().notes;
    let mut record = provenance("residual", &[]);
    record.insert("residual".into(), "anchor".into());
    try_write(folder.path(), &adapter([("q", balanced())]), Element::F32, &record, Format::Peft).unwrap();
    notes.extend(verified(folder.path()).unwrap().notes);
    expect![[r#"
        load this adapter on the residual base that was written with it ("tiny"); on the original weights, the update would be added twice
        load this adapter together with its anchor, and keep the anchor frozen: at the start, both together do not change the model"#]].assert_eq(&notes.join("\n"));
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
fn targets_must_match_the_modules_with_tensors() {
    let with_targets = |targets: &str| {
        let targets = serde_json::from_str(targets).unwrap();
        with_config(|config| config["target_modules"] = targets)
    };
    for targets in [r#"["q","x.v"]"#, r#"["q","v"]"#, r#""q|x\\.v""#, r#""all-linear""#] {
        assert!(verified(with_targets(targets).path()).is_ok(), "{targets}");
    }
    let texts = [r#"["q"]"#, r#""q|v""#, r#"["q","v","k"]"#, "null"];
    expect![[r#"
        FOLDER/adapter_config.json: target_modules does not match module "x.v", which has tensors
        FOLDER/adapter_config.json: target_modules does not match module "x.v", which has tensors
        FOLDER/adapter_config.json: target_modules has the name "k", but there are no tensors for it
        FOLDER/adapter_config.json: target_modules is missing
    "#]]
    .assert_eq(&texts.map(|targets| refused(with_targets(targets).path())).concat());
}

#[test]
fn the_scale_is_reported_if_all_layers_have_the_same() {
    for (alpha, expected) in [(6.0, Some(3.0)), (6.0 * (1.0 + 1e-15), Some(3.0)), (6.1, None)] {
        let patterns = serde_json::json!({"q": 6.0, "v": alpha});
        let folder = with_config(|config| config["alpha_pattern"] = patterns);
        assert_eq!(verified(folder.path()).unwrap().scale, expected);
    }
}

#[test]
fn all_problems_are_reported_together() {
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
    expect![[r#"
        FOLDER/adapter_model.safetensors: tensor "base_model.model.v.lora_A.weight": A has rank 2, but adapter_config.json says 7
        FOLDER/adapter_model.safetensors: checksum mismatch: the file has 584 bytes and SHA-256 cf065edb21686f69f7aa79a2c32948740d2ac99b062917d64bbda9eb423f15a1, but cntlora.json says 272 bytes and 9a4d99e1950f07a6e581017dfb64ae4057ffe8d75b568cad2db51179c949ccc9; help: the file was changed or damaged: write the adapter again
        FOLDER/adapter_config.json: target_modules does not match module "w", which has tensors
        FOLDER/adapter_config.json: target_modules has the name "k", but there are no tensors for it
        FOLDER/adapter_model.safetensors: module "q": A has the value NaN in row 0, column 0
        FOLDER/adapter_model.safetensors: module "q": B has the value NaN in row 0, column 0
    "#]].assert_eq(&refused(folder.path()));
}

/// Adapters with many experts have a pattern for each layer. A comparison of each layer with each pattern, name or entry of the record would
/// take hours here.
#[test]
fn adapters_with_many_layers_and_ranks_are_verified() {
    let names: Vec<String> =
        (0..20_000).map(|index| format!("layers.{}.experts.{}.up", index % 40, index / 40)).collect();
    let layer = |(index, name): (usize, &String)| {
        let unit = |i: usize, j: usize| if i == j { 1.0 } else { 0.0 };
        let rank = 1 + index % 2;
        (name.as_str().into(), Factors { a: Mat::from_fn(rank, 3, unit), b: Mat::from_fn(4, rank, unit) })
    };
    let layers = names.iter().enumerate().map(layer).collect();
    let adapter = Adapter {
        layers,
        shapes: BTreeMap::new(),
        components: BTreeMap::new(),
        scale: 1.0,
        base: "many".into(),
    };
    let tensors: Vec<String> = names.iter().map(|name| format!("{name}.kernel")).collect();
    let recorded: Vec<(&str, &str)> =
        names.iter().map(String::as_str).zip(tensors.iter().map(String::as_str)).collect();
    let folder = written(&adapter, Element::F32, "update", &recorded);
    let base = folder.path().join("base.safetensors");
    let weights: Vec<_> =
        tensors.iter().map(|name| (name.as_str(), Element::F32, vec![4, 3], vec![1.0; 12])).collect();
    write_tensors(&base, &weights);
    let verification = verify(folder.path(), Some(&checkpoint(&base)), &BTreeMap::new()).unwrap();
    assert_eq!((verification.layers, verification.min_rank, verification.max_rank), (20_000, 1, 2));
}

/// The experts of a module share one tensor, which is read once.
#[test]
fn a_module_with_many_experts_is_verified() {
    let folder = tempfile::tempdir().unwrap();
    let count: u64 = 20_000;
    let tensors = [
        ("base_model.model.experts.lora_A.weight", Element::F32, vec![count, 1], vec![1.0; count as usize]),
        (
            "base_model.model.experts.lora_B.weight",
            Element::F32,
            vec![2, count],
            vec![0.5; 2 * count as usize],
        ),
    ];
    write_tensors(&folder.path().join(TENSORS_FILE), &tensors);
    let config = r#"{"peft_type":"LORA","r":1,"target_modules":[],"target_parameters":["experts.w"]}"#;
    fs::write(folder.path().join(CONFIG_FILE), config).unwrap();
    assert_eq!(verified(folder.path()).unwrap().layers, count);
    let many = [
        ("base_model.model.experts.lora_A.weight", Element::F32, vec![1 << 17, 1], vec![1.0; 1 << 17]),
        ("base_model.model.experts.lora_B.weight", Element::F32, vec![1, 1 << 17], vec![0.5; 1 << 17]),
    ];
    write_tensors(&folder.path().join(TENSORS_FILE), &many);
    expect![[r#"
        FOLDER/adapter_model.safetensors: tensor "base_model.model.experts.lora_A.weight": A has 131072 blocks of rank 1, but at most 65536 are supported
        FOLDER/adapter_config.json: target_parameters has the name "experts.w", but there are no tensors for it
    "#]].assert_eq(&refused(folder.path()));
}

/// PEFT initializes factors under names with wrappers at random, and says so only in a warning.
#[test]
fn names_with_wrappers_are_refused() {
    let text = |module: &'static str| {
        let folder = written(&adapter([(module, balanced())]), Element::F32, "update", &[]);
        refused(folder.path())
    };
    expect![[r#"
        FOLDER/adapter_model.safetensors: 2 tensor names have parts of a wrapper, so that PEFT and diffusers do not find the modules and start from random factors: "base_model.model._orig_mod.model.q.lora_A.weight" must be "base_model.model.model.q.lora_A.weight"; help: write the adapter with the right names: cntlora convert "FOLDER" --out NEW
    "#]].assert_eq(&text("_orig_mod.model.q"));
    let inner = written(&adapter([("model.q", balanced())]), Element::F32, "update", &[]);
    assert!(verified(inner.path()).unwrap().notes.is_empty());
}

/// Tensors that are not factors are named in the notes, and their numbers are checked.
#[test]
fn tensors_that_are_not_factors_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"peft_type":"LORA","r":1,"target_modules":["q"],"modules_to_save":["score"]}"#;
    fs::write(folder.path().join(CONFIG_FILE), config).unwrap();
    let write = |value: f64| {
        write_tensors(
            &folder.path().join(TENSORS_FILE),
            &[
                ("base_model.model.q.lora_A.weight", Element::F32, vec![1, 2], vec![1.0; 2]),
                ("base_model.model.q.lora_B.weight", Element::F32, vec![3, 1], vec![1.0; 3]),
                ("base_model.model.score.weight", Element::Bf16, vec![2, 2], vec![1.0, 2.0, value, 4.0]),
            ],
        );
    };
    write(3.0);
    expect![[
        r#"besides the factors, the adapter has 1 tensor of a whole module: "base_model.model.score.weight""#
    ]]
    .assert_eq(&verified(folder.path()).unwrap().notes.join("\n"));
    write(f64::NAN);
    expect![[r#"
        FOLDER/adapter_model.safetensors: tensor "base_model.model.score.weight": expected a finite number, found NaN at index 2
    "#]].assert_eq(&refused(folder.path()));
}

/// The old code passed an adapter without any effect, and one whose products are infinite.
#[test]
fn scales_without_an_effect_are_refused() {
    let with_alpha = |alpha: f64| {
        let folder = written(&adapter([("q", balanced()), ("v", balanced())]), Element::F32, "update", &[]);
        let path = folder.path().join(CONFIG_FILE);
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["lora_alpha"] = alpha.into();
        fs::write(&path, config.to_string()).unwrap();
        refused(folder.path())
    };
    expect![[r#"
        FOLDER/adapter_model.safetensors: module "q": the scale, lora_alpha divided by the rank, is 0, so that the layer has no effect (2 of 2 layers have such a scale); help: correct lora_alpha
        FOLDER/adapter_model.safetensors: module "q": the scale, lora_alpha divided by the rank, is 5e307, which is infinite in single precision (2 of 2 layers have such a scale); help: correct lora_alpha
        FOLDER/adapter_model.safetensors: module "q": the scale, lora_alpha divided by the rank, is 5e-301, which is zero in single precision (2 of 2 layers have such a scale); help: correct lora_alpha
    "#]].assert_eq(&[0.0, 1e308, 1e-300].map(with_alpha).concat());
}
