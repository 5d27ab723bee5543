//! Tests of embeddings on the command line. The activations of an embedding are counts of tokens. Each embedding must agree with a
//! linear layer that reads the same tokens as unit vectors.

use cntlora::adapter::PeftAdapter;
use cntlora::element::Element;
use cntlora::moments_file::MomentsSet;
use cntlora::random::gaussian;
use cntlora::storage::{Access, Source, safetensors};
use expect_test::{Expect, expect};
use faer::Mat;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

const TOKENS: usize = 30;
const WIDTH: usize = 8;

/// The count of each token. Most tokens are rare, and some never occur.
const TARGET: [i64; TOKENS] =
    [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 5, 7, 9, 12, 20, 31, 44, 80, 3];
const SOURCE: [i64; TOKENS] =
    [0, 0, 1, 0, 4, 0, 1, 0, 1, 1, 3, 1, 0, 1, 2, 2, 0, 2, 3, 1, 9, 5, 7, 1, 2, 20, 11, 24, 30, 50];

type Tensors = BTreeMap<String, (String, Vec<u64>, Vec<u8>)>;

/// A folder with a model and its activations in `target` and `source`. The model has one embedding `e` and one linear layer `l` with
/// the transposed table.
struct Model {
    folder: TempDir,
}

impl Model {
    fn new() -> Self {
        let model = Self { folder: tempfile::tempdir().unwrap() };
        let table = gaussian::<f32>(TOKENS, WIDTH, 3, "table");
        fs::create_dir(model.path("model")).unwrap();
        model.configure("{}");
        let weights = [("e.weight", table.clone()), ("l.weight", table.transpose().to_owned())];
        let weights = weights.into_iter().map(|(name, matrix)| (name.to_owned(), stored(&matrix)));
        write(&model.path("model/model.safetensors"), &weights.collect());
        for (folder, counts) in [("target", TARGET), ("source", SOURCE)] {
            fs::create_dir(model.path(folder)).unwrap();
            write_npy(&model.path(&format!("{folder}/e.npy")), &counts);
            let rows: Vec<usize> =
                (0..TOKENS).flat_map(|token| vec![token; counts[token] as usize]).collect();
            let rows = Mat::from_fn(rows.len(), TOKENS, |i, j| f32::from(u8::from(rows[i] == j)));
            let path = model.path(&format!("{folder}/l.safetensors"));
            write(&path, &BTreeMap::from([("l".to_owned(), stored(&rows))]));
        }
        model
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn configure(&self, config: &str) {
        fs::write(self.path("model/config.json"), config).unwrap();
    }

    fn run(&self, words: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cntlora"));
        command.current_dir(self.folder.path()).env("NO_COLOR", "1").args(words.split_whitespace());
        command.output().unwrap()
    }

    #[track_caller]
    fn succeed(&self, words: &str) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr)
    }

    #[track_caller]
    fn refused(&self, words: &str, message: Expect) {
        let output = self.run(words);
        assert!(!output.status.success(), "{words} was not refused");
        message.assert_eq(&String::from_utf8(output.stderr).unwrap());
    }

    /// Returns `s B A` of these layers.
    fn updates<const N: usize>(&self, adapter: &str, modules: [&str; N]) -> [Mat<f32>; N] {
        let adapter = PeftAdapter::open(&self.path(adapter)).unwrap();
        modules.map(|module| {
            let layer = &adapter.layers()[&module.into()];
            let factors = adapter.factors(layer).unwrap();
            factors.b * factors.a * faer::Scale(layer.scale as f32)
        })
    }

    /// Returns the projections on the row spaces of `A` of both layers. The rows of `A` are orthonormal if `B` is zero.
    fn row_spaces(&self, adapter: &str) -> [Mat<f32>; 2] {
        let adapter = PeftAdapter::open(&self.path(adapter)).unwrap();
        ["e", "l"].map(|module| {
            let a = adapter.factors(&adapter.layers()[&module.into()]).unwrap().a;
            a.transpose() * &a
        })
    }
}

/// Checks that two matrices agree to a thousandth of the largest wanted entry, and that the wanted matrix is not zero.
#[track_caller]
fn assert_near(found: &Mat<f32>, wanted: &Mat<f32>, what: &str) {
    let difference = (found - wanted).norm_max();
    assert!(
        wanted.norm_max() > 0.0 && difference <= 1e-3 * wanted.norm_max(),
        "{what}: {difference:e} of {:e}",
        wanted.norm_max()
    );
}

fn stored(matrix: &Mat<f32>) -> (String, Vec<u64>, Vec<u8>) {
    let mut bytes = Vec::new();
    let places = (0..matrix.nrows()).flat_map(|i| (0..matrix.ncols()).map(move |j| (i, j)));
    Element::F32.encode(places.map(|place| f64::from(matrix[place])), &mut bytes);
    ("F32".into(), vec![matrix.nrows() as u64, matrix.ncols() as u64], bytes)
}

fn write(path: &Path, tensors: &Tensors) {
    safetensors::write(&mut File::create(path).unwrap(), &BTreeMap::new(), tensors).unwrap();
}

/// Writes counts as `numpy.save` writes the result of `numpy.bincount`.
fn write_npy(path: &Path, counts: &[i64]) {
    let mut text = format!("{{'descr': '<i8', 'fortran_order': False, 'shape': ({},), }}", counts.len());
    text.push_str(&" ".repeat(117 - text.len()));
    text.push('\n');
    let data: Vec<u8> = counts.iter().flat_map(|count| count.to_le_bytes()).collect();
    fs::write(path, [b"\x93NUMPY\x01\x00\x76\x00".as_slice(), text.as_bytes(), &data].concat()).unwrap();
}

/// Doubles the numbers of the tensor whose name has this ending.
fn double(path: &Path, ending: &str) {
    let mut bytes = fs::read(path).unwrap();
    let header = safetensors::Header::read(&Source::from_bytes("a", bytes.clone())).unwrap();
    let (_, tensor) = header.tensors.iter().find(|(name, _)| name.ends_with(ending)).unwrap();
    let data = &mut bytes[tensor.offset as usize..][..tensor.length as usize];
    let mut values = vec![0.0; data.len() / 4];
    Element::F32.decode_f32(data, &mut values);
    let mut doubled = Vec::new();
    Element::F32.encode(values.iter().map(|value| 2.0 * f64::from(*value)), &mut doubled);
    data.copy_from_slice(&doubled);
    fs::write(path, bytes).unwrap();
}

/// The linear layer is the reference. Its activations are the tokens as unit vectors.
#[test]
fn an_embedding_agrees_with_a_linear_layer_of_unit_vectors() {
    let model = Model::new();
    for (at, options) in [
        "--start update",
        "--start update --coupling transport",
        "--start update --coupling transport --source source",
        "--start update --source source --preserve 0.5",
        "--start update --coupling transport --preserve 0.5 --norm weights",
        "--start update --coupling transport --source source --preserve 2 --strength 1",
        "--start residual --residual anchor",
        "--start zero",
        // This budget pays for rank 3 in both layers.
        "--start update --budget=228",
        "--method corda-ipm --residual anchor",
        "--method corda-kpm --residual anchor",
        "--method pissa",
        "--method milora --residual anchor",
        "--method olora",
        "--method sc-lora --source source --residual anchor",
        "--method sc-lora --source source --beta 0.2",
        "--method astra --residual anchor",
        "--method olora-tail",
    ]
    .into_iter()
    .enumerate()
    {
        let out = format!("out-{at}");
        let rank = if options.contains("--budget") { "" } else { "--rank 3" };
        // Embeddings always have this scale, so the linear layer gets it too.
        let rank =
            if options.contains("--start") { format!("{rank} --channel-scale mean") } else { rank.into() };
        model.succeed(&format!("init model --activations target {rank} --out {out} {options}"));
        model.succeed(&format!("verify {out} --base model"));
        let [embedding, linear] = model.updates(&out, ["e", "l"]);
        if options.contains("zero") {
            assert_eq!(embedding.norm_max(), 0.0);
            let [embedding, linear] = model.row_spaces(&out);
            assert_near(&embedding, &linear, options);
            continue;
        }
        assert_near(&embedding, &linear, options);
        if options.contains("anchor") {
            let [taken_away] = model.updates(&format!("{out}/anchor"), ["e"]);
            assert_near(&-taken_away, &embedding, options);
        }
    }
}

/// The changed base plus the adapter equals the model, for every row of the table. `convert --init` gives the change from training
/// on the original base.
#[test]
fn the_changed_base_plus_the_adapter_is_the_model() {
    let model = Model::new();
    model.succeed("init model -a target --target e --method pissa --rank 3 --scale 2 -o out");
    let table = |path: &str| {
        let bytes = fs::read(model.path(path)).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut values = vec![0.0; TOKENS * WIDTH];
        Element::F32.decode_f32(&bytes[8 + header..][..4 * TOKENS * WIDTH], &mut values);
        values
    };
    let adapter = PeftAdapter::open(&model.path("out")).unwrap();
    let layer = &adapter.layers()[&"e".into()];
    let factors = adapter.factors(layer).unwrap();
    let update = factors.b * factors.a * faer::Scale(layer.scale as f32);
    let (old, new) = (table("model/model.safetensors"), table("out/base/model.safetensors"));
    for token in 0..TOKENS {
        for j in 0..WIDTH {
            let at = token * WIDTH + j;
            assert!((new[at] + update[(j, token)] - old[at]).abs() < 1e-5);
        }
    }
    // The simulated training doubles B, so the change from training equals the initial update.
    fs::create_dir(model.path("trained")).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(model.path("out").join(name), model.path("trained").join(name)).unwrap();
    }
    double(&model.path("trained/adapter_model.safetensors"), "embedding_B");
    model.succeed("convert trained --init out --out plain");
    assert!(PeftAdapter::open(&model.path("plain")).unwrap().layers()[&"e".into()].rank == 6);
    assert_near(&model.updates("plain", ["e"])[0], &update, "convert");
    let said = model.succeed("inspect out");
    assert!(said.contains("e"), "{said}");
}

/// Methods that use only weights can adapt a table without activations if `--target` names the table.
#[test]
fn named_tables_need_no_activations() {
    let model = Model::new();
    let table = gaussian::<f32>(TOKENS, WIDTH, 3, "table");
    let weights = [("embed_tokens.weight", table.clone()), ("l.weight", table.transpose().to_owned())];
    let weights = weights.into_iter().map(|(name, matrix)| (name.to_owned(), stored(&matrix)));
    write(&model.path("named.safetensors"), &weights.collect());
    for method in ["pissa", "milora", "olora", "olora-tail"] {
        let options = format!("--method {method} --residual anchor --rank 3 -o {method}");
        model.succeed(&format!("init named.safetensors --target embed_tokens,l {options}"));
        model.succeed(&format!("verify {method} --base named.safetensors"));
        let [embedding, linear] = model.updates(method, ["embed_tokens", "l"]);
        assert_near(&embedding, &linear, method);
    }
    let all = model.succeed("plan named.safetensors --method pissa --target all-linear --rank 2 --json");
    assert!(!all.contains("embed_tokens"), "{all}");
    model.refused("plan named.safetensors --method orthogonal --target embed_tokens --rank 2", expect![[r#"
        error: named.safetensors: module "embed_tokens" cannot be adapted: it is an embedding, and the method orthogonal does not adapt embeddings: PEFT supports it for other layers only, and gives embeddings the factors of lora
          help: remove it from --target, or add it to --exclude
    "#]]);
}

/// If all counts differ, the transport between them is as large as a transport between rows. The plan includes its work and memory,
/// and the message names options that need less memory.
#[test]
fn transport_between_different_counts_is_planned() {
    let model = Model::new();
    let tokens = 3000;
    write(
        &model.path("large.safetensors"),
        &BTreeMap::from([("e.weight".to_owned(), stored(&Mat::zeros(tokens, 4)))]),
    );
    for (folder, step) in [("many", 1), ("others", 7)] {
        fs::create_dir(model.path(folder)).unwrap();
        let counts: Vec<i64> = (0..tokens as i64).map(|token| token * step % 3001).collect();
        write_npy(&model.path(&format!("{folder}/e.npy")), &counts);
    }
    let transport = "plan large.safetensors -a many --source others --rank 2 --coupling transport --json";
    model.refused(
        &format!("{transport} --max-memory 300MiB"),
        expect![[r#"
            error: the run needs at least 853 MiB of memory, but the limit is 300 MiB
              help: give --max-memory 853MiB or more; --coupling uncorrelated and smaller ranks need less
        "#]],
    );
    let uncorrelated = "plan large.safetensors -a many --source others --rank 2 --max-memory 300MiB --json";
    for (plan, least, most) in [(transport, 15.0 * 2.7e10, 6e11), (uncorrelated, 0.0, 1e7)] {
        let plan: serde_json::Value = serde_json::from_slice(&model.run(plan).stdout).unwrap();
        let work = plan["work"]["factors"].as_f64().unwrap();
        assert!((least..most).contains(&work), "{plan}");
        assert_eq!(plan["sites"][0]["classes"], tokens);
    }
}

#[test]
fn the_report_marks_the_sites_of_embeddings() {
    let model = Model::new();
    let output = model.run("init model -a target --source source --rank 4 -o out --json");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let sites: Vec<_> = report["sites"].as_array().unwrap().iter().map(|site| &site["embedding"]).collect();
    // The second site has rows. Its report has no such field, as in older versions.
    assert_eq!(sites, [&serde_json::Value::Bool(true), &serde_json::Value::Null], "{report}");
}

/// The parts of a divided run give the same adapter as one process.
#[test]
fn divided_runs_give_the_same_adapter() {
    let model = Model::new();
    model.succeed("init model -a target --source source --rank 4 -o whole");
    for shard in ["0/2", "1/2"] {
        model.succeed(&format!("init model -a target --source source --rank 4 -o parts --shard {shard}"));
    }
    model.succeed("merge parts --out joined");
    let bytes = |name: &str| fs::read(model.path(name).join("adapter_model.safetensors")).unwrap();
    assert!(bytes("whole") == bytes("joined"));
}

/// Moments files hold counts as they hold rows. Counts can be measured once, whole or in parts, and merged. An adapter from a moments
/// file has the same bits as an adapter from the activations.
#[test]
fn counts_from_moments_files_give_the_same_adapter() {
    let model = Model::new();
    let adapter = |name: &str| fs::read(model.path(name).join("adapter_model.safetensors")).unwrap();
    model.succeed("moments target -o t.m");
    model.succeed("moments source -o s.m");
    model.succeed("init model -a target --source source --rank 4 -o rows");
    for (at, inputs) in [
        "--moments t.m --source-moments s.m",
        "-a target --source-moments s.m",
        "--moments t.m --source source",
    ]
    .into_iter()
    .enumerate()
    {
        model.succeed(&format!("init model {inputs} --rank 4 -o {at}"));
        assert!(adapter("rows") == adapter(&at.to_string()), "{inputs}");
    }
    model.succeed("init model -a target --target e --rank 4 -o one");
    for count in [1, 2, 5] {
        for index in 0..count {
            model.succeed(&format!("moments target --shard {index}/{count} -o parts-{count}"));
        }
        model.succeed(&format!("init model --moments parts-{count} --target e --rank 4 -o of-{count}"));
        assert!(adapter("one") == adapter(&format!("of-{count}")), "{count} parts");
        model.succeed(&format!("merge parts-{count} -o {count}.m"));
        let merged = MomentsSet::open(&[model.path(&format!("{count}.m"))], Access::Auto).unwrap();
        assert_eq!(merged.counts("e").unwrap().counts(), TARGET.map(|count| count as u64));
    }
    let said = model.succeed("inspect t.m");
    assert!(said.contains(&format!("30  {} tokens", TARGET.iter().sum::<i64>())), "{said}");

    // Each token must count once, like each row. Counts from separate recordings are added.
    model.succeed("moments target/e.npy -o e.m");
    model.refused(
        "merge t.m e.m -o x.m",
        expect![[r#"
            error: e.m: tensor "e": rows 0 to 236 of the recording "target/e.npy" are counted twice, also in "t.m"
              help: remove one of the two: every row must count once
        "#]],
    );
    fs::create_dir(model.path("apart")).unwrap();
    let mut rest = TARGET;
    let half = TARGET.map(|count| count / 2);
    rest.iter_mut().zip(half).for_each(|(count, half)| *count -= half);
    write_npy(&model.path("apart/e.0.npy"), &half);
    write_npy(&model.path("apart/e.1.npy"), &rest);
    for part in [0, 1] {
        model.succeed(&format!("moments apart/e.{part}.npy -o apart-{part}.m"));
    }
    model.succeed("init model --moments apart-1.m apart-0.m --rank 4 -o apart-adapter");
    assert!(adapter("one") == adapter("apart-adapter"));
    model.succeed("moments apart -o apart.m");
    model.refused("merge apart.m apart-1.m -o x.m", expect![[r#"
        error: apart-1.m: tensor "e": rows 0 to 125 of the recording "apart/e.1.npy" are counted twice, also in "apart.m"
          help: remove one of the two: every row must count once
    "#]]);
    model.refused(
        "merge e.m s.m t.m -o x.m",
        expect![[r#"
            error: t.m: tensor "e": rows 0 to 236 of the recording "target/e.npy" are counted twice, also in "e.m"
              help: remove one of the two: every row must count once
        "#]],
    );
}

#[test]
fn inspect_and_plan_show_token_counts() {
    let model = Model::new();
    let said = model.succeed("inspect target/e.npy");
    assert!(said.contains("I64"), "{said}");
    let said = model.succeed("inspect target");
    let tokens: i64 = TARGET.iter().sum();
    assert!(said.contains(&format!("{tokens} tokens of a vocabulary of 30, read by e")), "{said}");
    let plan = String::from_utf8(model.run("plan model -a target --rank 4 --json").stdout).unwrap();
    let classes = BTreeSet::from(TARGET).len();
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["sites"][0]["classes"], classes, "{plan}");
}

/// An embedding is skipped with a reason if the method or the coupling does not support it, and refused if the user names it.
/// Formats without embeddings refuse it, and so does a changed base for a tied embedding.
#[test]
fn unsupported_embeddings_are_skipped_or_refused() {
    let model = Model::new();
    for (method, message) in [
        (
            "eva",
            expect![[r#"
                error: model: module "e" cannot be adapted: it is an embedding, and the method eva does not adapt embeddings: tokens that occur equally often vary alike, so they have no leading directions
                  help: remove it from --target, or add it to --exclude
            "#]],
        ),
        (
            "orthogonal",
            expect![[r#"
                error: model: module "e" cannot be adapted: it is an embedding, and the method orthogonal does not adapt embeddings: PEFT supports it for other layers only, and gives embeddings the factors of lora
                  help: remove it from --target, or add it to --exclude
            "#]],
        ),
    ] {
        let said = model.succeed(&format!("plan model -a target --method {method} --rank 2"));
        assert!(said.contains(&format!("the method {method} does not adapt embeddings")), "{said}");
        let named = format!("plan model -a target --method {method} --rank 2 --target e");
        model.refused(&named, message);
    }
    for method in ["lora", "gaussian"] {
        model.succeed(&format!("init model -a target --method {method} --rank 2 -o {method}"));
        model.succeed(&format!("verify {method} --base model"));
        let read = PeftAdapter::open(&model.path(method)).unwrap();
        let embedding = read.factors(&read.layers()[&"e".into()]).unwrap();
        assert!(embedding.a.norm_max() == 0.0 && embedding.b.norm_max() > 0.0);
    }
    let pairs = "plan model -a target --source target --coupling paired --rank 2";
    assert!(model.succeed(pairs).contains("token counts have no pairs"));
    model.refused(
        &format!("{pairs} --target e"),
        expect![[r#"
            error: model: module "e" cannot be adapted: it is an embedding, and token counts have no pairs
              help: remove it from --target, or add it to --exclude
        "#]],
    );
    for (format, message) in [
        (
            "kohya",
            expect![[r#"
                error: this format does not support module "e": it is an embedding
                  help: give --format peft, or leave the module out with --exclude
            "#]],
        ),
        (
            "diffusers",
            expect![[r#"
                error: this format does not support module "e": it is an embedding
                  help: give --format peft, or leave the module out with --exclude
            "#]],
        ),
    ] {
        let words = format!("plan model -a target --rank 2 --format {format}");
        model.refused(&words.replace("plan", "init").replace("--rank", "-o x --rank"), message);
    }

    let residual = "init model -a target --method pissa --rank 2 -o x";
    model.configure(r#"{"tie_word_embeddings":true}"#);
    model.refused(residual, expect![[r#"
        error: model: tensor "e.weight": this embedding is also the output head of the model (tie_word_embeddings in config.json): a changed base would change both
          help: give --start mirrored or --residual anchor, which do not change the base, or exclude the layer with --exclude
    "#]]);
    assert!(!model.path("x").exists());
    model.succeed(&format!("{residual} --residual anchor"));
    model.configure(r#"{"tie_word_embeddings":false}"#);
    model.succeed(&format!("{residual} --force"));
}

/// Counts for a vocabulary of another size are refused. Rows on one side with counts on the other side are refused too.
#[test]
fn counts_that_do_not_fit_are_refused() {
    let model = Model::new();
    write_npy(&model.path("target/e.npy"), &[1; TOKENS - 1]);
    model.refused("plan model -a target", expect![[r#"
        error: module "e" has a weight of shape [30, 8]: expected counts of 30 tokens in site "e", found 29
          help: record numpy.bincount(ids, minlength=30)
        error: rank 16 is over the limit of "l"
          help: the largest rank that is possible for all layers is 8: give --rank 8, or exclude layers with --exclude
        2 problems were found
    "#]]);
    write_npy(&model.path("target/e.npy"), &TARGET);
    fs::remove_file(model.path("source/e.npy")).unwrap();
    fs::copy(model.path("source/l.safetensors"), model.path("rows.safetensors")).unwrap();
    let rows = BTreeMap::from([("e".to_owned(), stored(&Mat::full(4, TOKENS, 1.0)))]);
    write(&model.path("source/e.safetensors"), &rows);
    model.refused("plan model -a target --source source", expect![[r#"
        error: source/e.safetensors: tensor "e": expected counts of tokens as in the fine-tuning activations, found rows
        error: rank 16 is over the limit of "e", "l"
          help: the largest rank that is possible for all layers is 8: give --rank 8, or exclude layers with --exclude
        2 problems were found
    "#]]);
}
