//! Adapters in PEFT itself: recorded, computed, loaded without a warning, checked layer by layer, trained. Slow set: needs Python
//! with torch, transformers and peft, and no network; without them it says so and passes.
//!
//! ```text
//! CNTLORA_PYTHON=python3 cargo test --test peft -- --ignored --nocapture
//! ```

use cntlora::factors::Start;
use cntlora::method::Method;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

fn python() -> OsString {
    std::env::var_os("CNTLORA_PYTHON").unwrap_or_else(|| "python3".into())
}

/// Whether there is a Python that can import these.
fn has(modules: &str) -> bool {
    let found = Command::new(python()).args(["-c", &format!("import {modules}")]).output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        println!("skipped: {:?} cannot import {modules}", python());
    }
    found
}

/// Runs a command in a folder, which must succeed.
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
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        succeed(folder.path(), &python(), &[&here("tests/peft/models.py"), "."]);
        Self { folder }
    }

    fn cntlora(&self, words: &[&str]) -> String {
        succeed(self.folder.path(), &env!("CARGO_BIN_EXE_cntlora").into(), words)
    }

    fn record(&self, model: &str, options: &[&str]) {
        let inputs = format!("{model}-inputs.safetensors");
        let (script, out) = (here("examples/peft/record.py"), format!("{model}-activations"));
        // Small shards, so that there are several.
        let words =
            [&script, model, "--inputs", &inputs, "--batch-size", "5", "--shard-rows", "30", "--out", &out];
        println!("{model}: {}", succeed(self.folder.path(), &python(), &[&words, options].concat()).trim());
    }

    /// Computes an adapter, verifies it, and hands it to PEFT.
    fn adapt(&self, model: &str, method: Method, options: &[&str]) {
        let name = format!("{model}-{}", method.name());
        let activations = format!("{model}-activations");
        let words =
            ["init", model, "-a", &activations, "-o", &name, "--rank", "4", "--method", method.name()];
        self.cntlora(&[&words[..], options].concat());
        self.cntlora(&["verify", &name, "--base", model]);
        let start = method.starts()[0];
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
        if matches!(method, Method::Pissa | Method::CordaIpm) {
            let plain = format!("{name}-plain");
            self.cntlora(&["convert", &trained, "--init", &name, "--out", &plain, "--force"]);
            self.same_outputs(base, &trained, is_anchored.then_some(&anchor), model, &plain, &inputs);
        }
    }
}

impl Fixture {
    /// The trained adapter on its base and the converted one on the original base are one model.
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

/// Every method on a language model; and the kinds of layers: linear with shared inputs, Conv1D of GPT-2 with q, k and v in one
/// weight, vision transformers whose checkpoints have other names, and convolutions of one, two and three dimensions.
#[test]
#[ignore = "slow set: needs Python with torch, transformers and peft, see the head of this file"]
fn peft_loads_and_trains_what_is_written() {
    if !has("torch, transformers, peft, safetensors") {
        return;
    }
    let fixture = Fixture::new();
    let script = here("examples/peft/record.py");
    let words = [&script, "llama", "--text", "llama.txt", "--target", "q_proj,v_proj", "--out", "from-text"];
    assert!(succeed(fixture.folder.path(), &python(), &words).contains("4 layers at 2 sites"));
    // As many rows as words: padding is left out.
    assert!(fixture.cntlora(&["inspect", "from-text"]).contains("126"));
    fixture.record("llama", &[]);
    for method in Method::ALL {
        fixture.adapt("llama", method, &["--scale", "2"]);
    }
    fixture.adapt("llama", Method::Pissa, &["--residual", "anchor", "--force"]);
    // Ranks that differ.
    fixture.adapt("llama", Method::Cntlora, &["--budget", "--force"]);
    for model in ["bert", "gpt2", "vit", "dinov2", "resnet", "videomae", "wav2vec2"] {
        // The last has a convolution whose weight is stored in two factors.
        let targets = "conv_layers.0.conv,conv_layers.1.conv,q_proj,out_proj";
        let options: &[&str] = if model == "wav2vec2" { &["--target", targets] } else { &[] };
        fixture.record(model, options);
        for method in [Method::Cntlora, Method::CordaIpm] {
            fixture.adapt(model, method, &[]);
        }
    }
}

/// Fused experts, whose checkpoint has them one by one or in one tensor stored as `[inputs, outputs]`; convolutions in groups.
#[test]
#[ignore = "slow set: needs Python with torch, transformers and peft, see the head of this file"]
fn peft_loads_and_trains_experts_and_groups() {
    if !has("torch, transformers, peft, safetensors") {
        return;
    }
    let fixture = Fixture::new();
    fixture.record("mixtral", &[]);
    fixture.record("gptoss", &["--per-expert"]);
    for model in ["mixtral", "gptoss"] {
        for method in Method::ALL {
            // One rank for all experts: PEFT follows patterns for those, and warns of them all the same.
            let options: &[&str] = if method == Method::Eva { &["--rho", "1"] } else { &[] };
            fixture.adapt(model, method, options);
        }
    }
    fixture.adapt("mixtral", Method::Cntlora, &["--budget", "--exclude", "experts", "--force"]);
    fixture.record("regnet", &[]);
    fixture.adapt("regnet", Method::Cntlora, &[]);
    fixture.adapt("regnet", Method::CordaIpm, &["--residual", "anchor"]);
}

/// Embeddings, whose activations are counts: of a language model beside a linear layer, and of an encoder.
#[test]
#[ignore = "slow set: needs Python with torch, transformers and peft, see the head of this file"]
fn peft_loads_and_trains_embeddings() {
    if !has("torch, transformers, peft, safetensors") {
        return;
    }
    let fixture = Fixture::new();
    fixture.record("llama", &["--target", "embed_tokens,q_proj"]);
    let methods =
        [Method::Cntlora, Method::Pissa, Method::Milora, Method::Olora, Method::CordaIpm, Method::CordaKpm];
    for method in methods {
        fixture.adapt("llama", method, &["--scale", "2"]);
    }
    fixture.adapt("llama", Method::Pissa, &["--residual", "anchor", "--force"]);
    fixture.record("bert", &["--target", "word_embeddings,query"]);
    fixture.adapt("bert", Method::Cntlora, &["--source", "bert-activations"]);
    fixture.adapt("bert", Method::CordaIpm, &[]);
}

/// What is written for diffusers and for kohya's scripts, diffusers reads as the adapter that PEFT would have.
#[test]
#[ignore = "slow set: needs Python with torch, peft and diffusers, see the head of this file"]
fn diffusers_reads_adapters_of_one_file() {
    if !has("torch, peft, diffusers, safetensors") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = here("tests/peft/pipelines.py");
    succeed(folder.path(), &python(), &[&script, "make", "."]);
    for format in ["peft", "diffusers", "kohya"] {
        let words =
            ["init", "unet", "--method", "pissa", "--target", "to_q,to_k,to_v,to_out.0", "--rank", "2"];
        let output = ["--residual", "anchor", "--scale", "3", "--format", format, "-o", format];
        let tool = env!("CARGO_BIN_EXE_cntlora").into();
        succeed(folder.path(), &tool, &[&words[..], &output[..]].concat());
    }
    println!("{}", succeed(folder.path(), &python(), &[&script, "check", "."]));
}
