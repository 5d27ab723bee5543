//! Tests of the main job on a real model against the float64 reference. They are in the slow set and need the data and some time.
//!
//! ```text
//! CNTLORA_MINILM=../shared/minilm cargo test --release --test minilm -- --ignored
//! ```
//!
//! `CNTLORA_MINILM` is a folder with `model`, `activations`, `activations-source` and `expected.json`.

use cntlora::report::Report;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Deserialize)]
struct Expected {
    rho: f64,
    rank: usize,
    layers: BTreeMap<String, BTreeMap<String, Layer>>,
}

#[derive(Deserialize)]
struct Layer {
    singular_values: Vec<f64>,
    energy: f64,
    #[serde(rename = "BA_fro")]
    product_norm: f64,
}

/// Returns the folder of the data and the expected values. A relative path starts at the package, where cargo runs tests.
fn data() -> (PathBuf, Expected) {
    let folder = std::env::var_os("CNTLORA_MINILM").expect("CNTLORA_MINILM names the folder with the data");
    let folder = PathBuf::from(folder);
    let expected = std::fs::read(folder.join("expected.json")).expect("expected.json is there");
    (folder, serde_json::from_slice(&expected).expect("expected.json has this form"))
}

/// Runs the tool, which must succeed. Returns its standard output.
fn cntlora(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Vec<u8> {
    let output = Command::new(env!("CARGO_BIN_EXE_cntlora"))
        .args(arguments.iter().map(|argument| argument.as_ref()))
        .output()
        .expect("the tool starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn init(data: &Path, out: &Path, expected: &Expected, options: &[&str]) -> Report {
    let (model, activations) = (data.join("model"), data.join("activations"));
    let (rank, ridge) = (expected.rank.to_string(), expected.rho.to_string());
    let mut arguments: Vec<&dyn AsRef<std::ffi::OsStr>> =
        vec![&"init", &model, &"--activations", &activations, &"--out", &out, &"--json"];
    arguments.extend([&"--rank" as &dyn AsRef<std::ffi::OsStr>, &rank, &"--ridge", &ridge]);
    arguments.extend(options.iter().map(|option| option as &dyn AsRef<std::ffi::OsStr>));
    serde_json::from_slice(&cntlora(&arguments)).expect("the report has its own form")
}

/// Returns `|s B A|_F` of a layer, with the factors of the written adapter.
fn product_norm(adapter: &cntlora::adapter::PeftAdapter, module: &str) -> f64 {
    let layer = &adapter.layers()[&module.into()];
    let factors = adapter.factors(layer).expect("the factors are readable");
    layer.scale * f64::from((&factors.b * &factors.a).norm_l2())
}

/// The singular values, the energy and the norm of the written product agree with the reference, for all 36 layers in four
/// settings. The adapter of each setting passes `verify` against the model.
#[test]
#[ignore = "slow set: needs the MiniLM data, see the head of this file"]
fn all_layers_agree_with_the_reference() {
    let (data, expected) = data();
    let source = data.join("activations-source").display().to_string();
    let settings: [(&str, &[&str]); 4] = [
        ("transport", &["--coupling", "transport"]),
        ("transport_source", &["--coupling", "transport", "--source", &source]),
        ("uncorrelated", &["--coupling", "uncorrelated"]),
        ("uncorrelated_source", &["--coupling", "uncorrelated", "--source", &source]),
    ];
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (setting, options) in settings {
        let out = folder.path().join(setting);
        // The reference measures the ridge by the mean eigenvalue.
        let options =
            [options, &["--channel-scale", "mean", "--start", "update", "--strength", "1"]].concat();
        let report = init(&data, &out, &expected, &options);
        assert_eq!(report.layers.len(), 36);
        let adapter = cntlora::adapter::PeftAdapter::open(&out).expect("the adapter is readable");
        let mut worst = 0.0f64;
        for layer in &report.layers {
            let wanted = &expected.layers[&layer.module][setting];
            assert_eq!(wanted.singular_values.len(), 16);
            assert!(layer.singular_values.len() >= 16, "{}", layer.module);
            let near = |what: &str, found: f64, wanted: f64, tolerance: f64| {
                let difference = (found / wanted - 1.0).abs();
                assert!(difference < tolerance, "{setting}, {}, {what}: {found} for {wanted}", layer.module);
                difference
            };
            for (found, wanted) in layer.singular_values.iter().zip(&wanted.singular_values) {
                worst = worst.max(near("singular value", *found, *wanted, 1e-3));
            }
            near("energy", layer.energy, wanted.energy, 1e-3);
            near("|BA|", product_norm(&adapter, &layer.module), wanted.product_norm, 1e-3);
        }
        let model = data.join("model");
        let verified = cntlora(&[&"verify", &out, &"--base", &model]);
        assert!(String::from_utf8_lossy(&verified).contains("36 layers"));
        println!("{setting}: singular values within {worst:.1e}, in {:.1} s", report.seconds);
    }
}

/// The same inputs and options give the same bytes with one thread and with two threads.
#[test]
#[ignore = "slow set: needs the MiniLM data, see the head of this file"]
fn the_adapter_is_reproducible() {
    let (data, expected) = data();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let files = ["1", "2"].map(|threads| {
        let out = folder.path().join(threads);
        init(&data, &out, &expected, &["--threads", threads, "--dtype", "bf16"]);
        ["adapter_model.safetensors", "adapter_config.json", "cntlora.json"]
            .map(|name| std::fs::read(out.join(name)).expect("the file is there"))
    });
    assert_eq!(files[0], files[1]);
}
