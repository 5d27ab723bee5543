//! Tests of adapters in PEFT itself. Each test records activations, computes an adapter, loads it without a warning, checks it layer by
//! layer and trains it. The tests need Python with torch, transformers and peft, but no network. Without these packages, a test reports
//! that it is skipped and passes. One model is tested in every run of the tests. The other models and the full list of methods are the
//! slow set.
//!
//! ```text
//! CNTLORA_PYTHON=python3 cargo test --test peft -- --ignored --nocapture
//! ```

use cntlora::factors::Start;
use cntlora::method::Method;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::Command;

fn python() -> OsString {
    std::env::var_os("CNTLORA_PYTHON").unwrap_or_else(|| "python3".into())
}

/// True if Python can import these modules.
fn has(modules: &str) -> bool {
    let found = Command::new(python()).args(["-c", &format!("import {modules}")]).output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        // Writes to stderr directly, because the test harness hides the prints of a test that passes.
        let message = format!("skipped: {} cannot import {modules}\n", python().display());
        std::io::stderr().write_all(message.as_bytes()).unwrap();
    }
    found
}

/// Runs a command in a folder. The command must succeed.
#[track_caller]
fn succeed(folder: &Path, program: &OsString, words: &[&str]) -> String {
    let output = Command::new(program).current_dir(folder).args(words).output().expect("it starts");
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{words:?}:\n{out}\n{error}");
    out.into_owned()
}

struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new(models: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        succeed(folder.path(), &python(), &[&[&*here("tests/peft/models.py"), "."], models].concat());
        Self { folder }
    }

    fn cntlora(&self, words: &[&str]) -> String {
        succeed(self.folder.path(), &env!("CARGO_BIN_EXE_cntlora").into(), words)
    }

    fn record(&self, model: &str, options: &[&str]) {
        let inputs = format!("{model}-inputs.safetensors");
        let (script, out) = (here("examples/peft/record.py"), format!("{model}-activations"));
        // The shards are small, so that there are several.
        let words =
            [&script, model, "--inputs", &inputs, "--batch-size", "5", "--shard-rows", "30", "--out", &out];
        println!("{model}: {}", succeed(self.folder.path(), &python(), &[&words, options].concat()).trim());
    }

    /// Returns the number of recorded rows of each site. All rows must be bf16.
    fn recorded_rows(&self, model: &str) -> BTreeMap<String, usize> {
        let mut rows = BTreeMap::new();
        for entry in std::fs::read_dir(self.folder.path().join(format!("{model}-activations"))).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            for (site, tensor) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                assert_eq!(tensor.dtype(), Dtype::BF16, "{site}");
                *rows.entry(site).or_default() += tensor.shape()[0];
            }
        }
        rows
    }

    /// Computes an adapter, verifies it, and trains it with PEFT.
    fn adapt(&self, model: &str, method: Method, options: &[&str]) {
        self.adapt_from(model, method, method.starts()[0], options);
    }

    fn adapt_from(&self, model: &str, method: Method, start: Start, options: &[&str]) {
        let name = format!("{model}-{}", method.name());
        let activations = format!("{model}-activations");
        let words = [
            "init",
            model,
            "-a",
            &activations,
            "-o",
            &name,
            "--rank",
            "4",
            "--method",
            method.name(),
            "--start",
            start.name(),
        ];
        self.cntlora(&[&words[..], options].concat());
        self.cntlora(&["verify", &name, "--base", model]);
        let changed = format!("{name}/base");
        let anchor = format!("{name}/anchor");
        let is_anchored = options.contains(&"anchor");
        let base = if start == Start::Residual && !is_anchored { &changed } else { model };
        let (script, inputs) = (here("examples/peft/train.py"), format!("{model}-inputs.safetensors"));
        let trained = format!("{name}-trained");
        let mut words =
            vec![script.as_str(), base, &name, "--inputs", &inputs, "--steps", "2", "--out", &trained];
        if start != Start::Update {
            words.extend(["--same-as", model]);
        }
        if is_anchored {
            words.extend(["--anchor", &anchor]);
        }
        let said = succeed(self.folder.path(), &python(), &words);
        println!("{name}: {}", said.lines().take(2).collect::<Vec<_>>().join("; "));
        self.cntlora(&["verify", &trained]);
        if start == Start::Residual && matches!(method, Method::Pissa | Method::CordaIpm) {
            let plain = format!("{name}-plain");
            self.cntlora(&["convert", &trained, "--init", &name, "--out", &plain, "--force"]);
            self.same_outputs(base, &trained, is_anchored.then_some(&anchor), model, &plain, &inputs);
        }
    }
}

impl Fixture {
    /// Checks that the trained adapter on its base gives the same outputs as the converted adapter on the original base.
    fn same_outputs(
        &self,
        base: &str,
        trained: &str,
        anchor: Option<&String>,
        model: &str,
        plain: &str,
        inputs: &str,
    ) {
        let script = here("tests/peft/compare.py");
        let mut words = vec![script.as_str(), inputs, base, trained, model, plain];
        words.extend(anchor.map(String::as_str));
        println!("{}", succeed(self.folder.path(), &python(), &words).trim());
    }
}

fn here(path: &str) -> String {
    format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))
}

/// Takes one small model through all steps.
#[test]
fn a_model_goes_from_its_activations_to_training() {
    if !has("torch, transformers, peft, safetensors") {
        return;
    }
    let fixture = Fixture::new(&["llama"]);
    fixture.record("llama", &["--target", "q_proj,v_proj,down_proj"]);
    // There are 12 examples with 9 tokens each. Every second example has 3 tokens of padding.
    assert!(fixture.recorded_rows("llama").values().all(|&rows| rows == 90));
    fixture.adapt("llama", Method::Cntlora, &["--scale", "2"]);
}

/// Padding is left out even if the inputs are flattened before a layer reads them. In a decoder, the mask of the decoder is used.
#[test]
#[ignore = "slow set: needs Python with torch, transformers and peft, see the head of this file"]
fn padding_is_left_out() {
    if !has("torch, transformers, peft, safetensors") {
        return;
    }
    let fixture = Fixture::new(&["opt", "t5"]);
    fixture.record("opt", &[]);
    let rows = fixture.recorded_rows("opt");
    assert!(rows.contains_key("model.decoder.layers.0.fc1"));
    assert!(rows.values().all(|&rows| rows == 90), "{rows:?}");
    fixture.record("t5", &[]);
    for (site, rows) in fixture.recorded_rows("t5") {
        // The second attention of the decoder computes its keys and values from the states of the encoder. The mask of the decoder
        // keeps 8 of 9 tokens.
        let of_decoder = site.starts_with("decoder.") && !site.ends_with("EncDecAttention.k");
        assert_eq!(rows, if of_decoder { 96 } else { 90 }, "{site}");
    }
}

/// Tests every method on a language model, on Conv1D of GPT-2 with q, k and v in one weight, and on convolutions of one to three
/// dimensions, also in groups. Also tests vision transformers whose checkpoints use other names.
#[test]
#[ignore = "slow set: needs Python with torch, transformers and peft, see the head of this file"]
fn peft_loads_and_trains_linear_layers_and_convolutions() {
    if !has("torch, transformers, peft, safetensors") {
        return;
    }
    let fixture =
        Fixture::new(&["llama", "bert", "gpt2", "vit", "dinov2", "resnet", "videomae", "wav2vec2", "regnet"]);
    let script = here("examples/peft/record.py");
    let words = [&script, "llama", "--text", "llama.txt", "--target", "q_proj,v_proj", "--out", "from-text"];
    assert!(succeed(fixture.folder.path(), &python(), &words).contains("4 layers at 2 sites"));
    // There are as many rows as words, because padding is left out.
    assert!(fixture.cntlora(&["inspect", "from-text"]).contains("126"));
    fixture.record("llama", &[]);
    for method in Method::ALL {
        fixture.adapt("llama", method, &["--scale", "2"]);
    }
    fixture.adapt("llama", Method::Pissa, &["--residual", "anchor", "--force"]);
    for method in Method::ALL {
        for &start in &method.starts()[1..] {
            fixture.adapt_from("llama", method, start, &["--force"]);
        }
    }
    // With a budget, the ranks differ.
    fixture.adapt("llama", Method::Cntlora, &["--budget", "--force"]);
    for model in ["gpt2", "resnet", "regnet", "videomae", "wav2vec2"] {
        // wav2vec2 has a convolution whose weight is stored in two factors. The targets leave it out.
        let targets = "conv_layers.0.conv,conv_layers.1.conv,q_proj,out_proj";
        let options: &[&str] = if model == "wav2vec2" { &["--target", targets] } else { &[] };
        fixture.record(model, options);
        for method in Method::ALL {
            // A changed base cannot hold the residual of a convolution in groups.
            let is_anchored = model == "regnet" && method.starts()[0] == Start::Residual;
            fixture.adapt(model, method, if is_anchored { &["--residual", "anchor"] } else { &[] });
        }
    }
    for model in ["bert", "vit", "dinov2"] {
        fixture.record(model, &[]);
        for method in [Method::Cntlora, Method::CordaIpm] {
            fixture.adapt(model, method, &[]);
        }
    }
}

/// Tests fused experts. Their checkpoint stores them one by one, or in one tensor of shape `[inputs, outputs]`.
#[test]
#[ignore = "slow set: needs Python with torch, transformers and peft, see the head of this file"]
fn peft_loads_and_trains_experts() {
    if !has("torch, transformers, peft, safetensors") {
        return;
    }
    let fixture = Fixture::new(&["mixtral", "gptoss"]);
    fixture.record("mixtral", &[]);
    fixture.record("gptoss", &["--per-expert"]);
    for model in ["mixtral", "gptoss"] {
        for method in Method::ALL {
            // All experts get the same rank: PEFT applies rank patterns to experts, but still warns about them.
            let options: &[&str] = if method == Method::Eva { &["--rho", "1"] } else { &[] };
            fixture.adapt(model, method, options);
        }
    }
    fixture.adapt("mixtral", Method::Cntlora, &["--budget", "--exclude", "experts", "--force"]);
}

/// Tests embeddings, whose activations are counts. The models are a language model with an embedding and a linear layer, an encoder, a
/// model that multiplies its embedding, and a model that shares it with the output head. One more model has so many layers that PEFT
/// shortens their names and also saves the base of the embedding.
#[test]
#[ignore = "slow set: needs Python with torch, transformers and peft, see the head of this file"]
fn peft_loads_and_trains_embeddings() {
    if !has("torch, transformers, peft, safetensors") {
        return;
    }
    let fixture = Fixture::new(&["llama", "bert", "deep", "tied", "gemma3"]);
    fixture.record("llama", &["--target", "embed_tokens,q_proj"]);
    for method in Method::ALL.into_iter().filter(|method| method.reason_against_embeddings().is_none()) {
        fixture.adapt("llama", method, &["--scale", "2"]);
    }
    fixture.adapt("llama", Method::Pissa, &["--residual", "anchor", "--force"]);
    for method in Method::ALL {
        for &start in &method.starts()[1..] {
            fixture.adapt_from("llama", method, start, &["--force"]);
        }
    }
    fixture.record("bert", &["--target", "word_embeddings,query"]);
    fixture.adapt("bert", Method::Cntlora, &["--source", "bert-activations"]);
    fixture.adapt("bert", Method::CordaIpm, &[]);
    let all = "embed_tokens,q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj";
    fixture.record("deep", &["--target", all]);
    fixture.adapt("deep", Method::Pissa, &[]);
    for model in ["tied", "gemma3"] {
        fixture.record(model, &["--target", "embed_tokens,q_proj"]);
        fixture.adapt(model, Method::Pissa, &["--residual", "anchor"]);
    }
}

/// Diffusers reads adapters in its own format and in the format of kohya's scripts. Both equal the adapter in the format of PEFT.
#[test]
#[ignore = "slow set: needs Python with torch, peft and diffusers, see the head of this file"]
fn diffusers_reads_adapters_of_one_file() {
    if !has("torch, peft, diffusers, safetensors") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = here("tests/peft/pipelines.py");
    succeed(folder.path(), &python(), &[&script, "make", "."]);
    let methods = Method::ALL.map(Method::name);
    for part in ["unet", "text-encoder"] {
        for method in Method::ALL {
            write_formats(folder.path(), part, method);
        }
    }
    let words = [&[&*script, "check", "."], &methods[..]].concat();
    println!("{}", succeed(folder.path(), &python(), &words));
}

/// Computes the adapter of a part of a pipeline in every format.
fn write_formats(folder: &Path, part: &str, method: Method) {
    let tool = env!("CARGO_BIN_EXE_cntlora").into();
    let activations = format!("{part}-activations");
    for format in ["peft", "diffusers", "kohya"] {
        let out = format!("{part}-{}-{format}", method.name());
        let mut words = vec!["init", part, "-a", &activations, "--method", method.name(), "-o", &out];
        words.extend(["--rank", "2", "--scale", "3", "--format", format]);
        if method.starts()[0] == Start::Residual {
            words.extend(["--residual", "anchor"]);
        }
        if method == Method::Eva {
            // All layers get the same rank: versions of diffusers before August 2026 read different ranks at wrong scales.
            words.extend(["--rho", "1"]);
        }
        if format != "peft" {
            words.extend(["--component", part]);
        }
        succeed(folder, &tool, &words);
        succeed(folder, &tool, &["verify", &out, "--base", part]);
    }
}
