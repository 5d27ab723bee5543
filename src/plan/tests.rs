//! Plans of small checkpoints and activations in a temporary folder, laid out as those of all-MiniLM-L6-v2.

use super::*;
use crate::constraint::Coupling;
use crate::factors::Start;
use crate::method::Method;
use crate::rank::{Limits, Policy};
use crate::storage::{Category, safetensors};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

const WIDTH: u64 = 6;
const INNER: u64 = 10;
const QUERY: &str = "encoder.layer.0.attention.self.query";
const INTERMEDIATE: &str = "encoder.layer.0.intermediate.dense";

/// A safetensors file of zeros.
fn write<'a>(
    path: &Path,
    metadata: Option<&str>,
    tensors: impl IntoIterator<Item = (&'a str, &'a str, &'a [u64])>,
) {
    let tensors = tensors
        .into_iter()
        .map(|(name, dtype, shape)| {
            let size = Element::from_name(dtype).map_or(8, Element::size) as u64;
            let length = shape.iter().product::<u64>() * size;
            (name.to_owned(), (dtype.to_owned(), shape.to_vec(), vec![0; length as usize]))
        })
        .collect();
    let metadata = metadata.map(|text| ("cntlora".to_owned(), text.to_owned())).into_iter().collect();
    safetensors::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

fn sites(of: &[(&str, &[&str])]) -> String {
    let sites: BTreeMap<_, _> = of.iter().copied().collect();
    serde_json::json!({ "format": "activations", "version": 1, "sites": sites }).to_string()
}

/// A model and its activations, and the request that a user would make with defaults.
struct Fixture {
    folder: tempfile::TempDir,
    request: Request,
}

impl Fixture {
    /// One layer of BERT: query, key and value share a site.
    fn bert() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fixture = Self { request: request(folder.path()), folder };
        let [query, key, value] = ["query", "key", "value"]
            .map(|part| format!("bert.encoder.layer.0.attention.self.{part}.weight"));
        fixture.model(&[
            ("bert.embeddings.LayerNorm.weight", "F32", &[WIDTH]),
            ("bert.embeddings.position_ids", "I64", &[1, 4]),
            (&query, "F32", &[WIDTH, WIDTH]),
            (&key, "F32", &[WIDTH, WIDTH]),
            (&value, "BF16", &[WIDTH, WIDTH]),
            ("bert.encoder.layer.0.intermediate.dense.weight", "F32", &[INNER, WIDTH]),
        ]);
        fixture.activations("target", 8, WIDTH);
        fixture
    }

    fn model(&self, tensors: &[(&str, &str, &[u64])]) {
        write(&self.request.model, None, tensors.iter().copied());
    }

    fn activations(&self, name: &str, rows: u64, width: u64) -> PathBuf {
        let modules = ["query", "key", "value"].map(|part| format!("encoder.layer.0.attention.self.{part}"));
        let modules = modules.each_ref().map(String::as_str);
        let path = self.folder.path().join(name).with_extension("safetensors");
        write(
            &path,
            Some(&sites(&[(QUERY, &modules)])),
            [(QUERY, "BF16", [rows, width].as_slice()), (INTERMEDIATE, "F32", &[2, rows, width])],
        );
        path
    }

    #[track_caller]
    fn plan(&self) -> Plan {
        plan(&self.request).map(|(plan, _)| plan).unwrap_or_else(|problems| panic!("{problems}"))
    }

    /// All complaints, one to a line.
    #[track_caller]
    fn refused(&self) -> Problems {
        plan(&self.request).map(|(plan, _)| plan).expect_err("must be refused")
    }

    #[track_caller]
    fn refused_with(&self, words: &str, category: Category) {
        let problems = self.refused();
        assert_eq!(problems.0.len(), 1, "{problems}");
        assert!(problems.to_string().contains(words), "expected {words:?} in: {problems}");
        assert_eq!(problems.category(), category, "{problems}");
    }
}

fn request(folder: &Path) -> Request {
    let method = Options {
        ranks: Policy::Fixed(4),
        limits: Limits { min: 0, max: 4, multiple: 1 },
        ..Options::default()
    };
    let activations = vec![folder.join("target.safetensors")];
    Request { method, ..Request::new(folder.join("model.safetensors"), activations) }
}

#[test]
fn a_plan_says_what_the_headers_say() {
    let mut fixture = Fixture::bert();
    let source = fixture.activations("source", 3, WIDTH);
    fixture.request.source = vec![source];
    let plan = fixture.plan();
    assert_eq!(plan.sites.len(), 2);
    let site = &plan.sites[0];
    assert_eq!((site.name.as_str(), site.width, site.rows, site.source_rows), (QUERY, 6, 8, Some(3)));
    assert_eq!(site.bytes, (8 + 3) * WIDTH * 2);
    let modules: Vec<_> = site.layers.iter().map(|layer| layer.module.rsplit('.').next().unwrap()).collect();
    assert_eq!(modules, ["key", "query", "value"]);
    let value = &site.layers[2];
    assert_eq!(value.tensors(), "bert.encoder.layer.0.attention.self.value.weight");
    assert_eq!((value.element, value.outputs, value.inputs, value.max_rank), (Element::Bf16, 6, 6, 4));
    assert_eq!(plan.sites[1].rows, 16);
    assert_eq!(plan.sites[1].layers[0].outputs, 10);
    assert!(plan.skipped.is_empty());
}

/// A plan is data: it survives JSON, and the same request gives the same one.
#[test]
fn plans_round_trip_and_are_deterministic() {
    let fixture = Fixture::bert();
    let plan = fixture.plan();
    let json = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
    assert_eq!(serde_json::to_string(&fixture.plan()).unwrap(), json);
}

/// More rows are more work and no more memory.
#[test]
fn memory_does_not_depend_on_rows() {
    let fixture = Fixture::bert();
    let few = fixture.plan();
    fixture.activations("target", 800, WIDTH);
    let many = fixture.plan();
    assert_eq!(few.peak_memory, many.peak_memory);
    assert_eq!(many.work.moments, 100.0 * few.work.moments);
    assert_eq!(many.work.factors, few.work.factors);
}

#[test]
fn faults_of_every_kind_are_reported_together() {
    let mut fixture = Fixture::bert();
    fixture.request.selection.targets = vec!["dense".into(), "querry".into(), "self.key".into()];
    fixture.request.renames = vec!["(=x".parse().unwrap()];
    fixture.request.method.ridge = -1.0;
    fixture.request.method.coupling = Coupling::Paired;
    fixture.request.model = fixture.folder.path().join("missing.safetensors");
    let problems = fixture.refused();
    let texts = problems.to_string();
    for words in [
        "the ridge is -1",
        "the coupling paired needs pre-training activations",
        r#"--rename: "(" is no regular expression"#,
        "missing.safetensors: cannot open",
        r#"no module is named "querry"; the nearest names are "query""#,
    ] {
        assert!(texts.contains(words), "expected {words:?} in: {texts}");
    }
    assert_eq!(problems.0.len(), 5, "{problems}");
    assert_eq!(problems.category(), Category::Io);
}

#[test]
fn faults_of_layers_are_reported_together() {
    let mut fixture = Fixture::bert();
    fixture.model(&[
        ("encoder.layer.0.attention.self.query.weight", "F32", &[INNER, WIDTH + 1]),
        ("encoder.layer.0.attention.self.keys.weight", "F32", &[WIDTH, WIDTH]),
        ("a.encoder.layer.0.attention.self.value.weight", "F32", &[WIDTH, WIDTH]),
        ("b.encoder.layer.0.attention.self.value.weight", "F32", &[WIDTH, WIDTH]),
        ("encoder.layer.0.intermediate.dense.weight", "F32", &[INNER, WIDTH + 2]),
    ]);
    let problems = fixture.refused();
    let texts = problems.to_string();
    for words in [
        "has a weight of shape [10, 7]: expected 7 numbers in each row of site",
        r#"the nearest names are "encoder.layer.0.attention.self.keys.weight""#,
        r#"found several that fit: "a.encoder.layer.0.attention.self.value.weight", "b."#,
        "has a weight of shape [10, 8]: expected 8 numbers in each row of site",
    ] {
        assert!(texts.contains(words), "expected {words:?} in: {texts}");
    }
    assert_eq!(problems.0.len(), 4, "{problems}");
    assert_eq!(problems.category(), Category::Data);
    assert!(problems.0.iter().all(|problem| problem.next_step().is_some()));
    // Ambiguity is mended by saying what is meant.
    fixture.request.renames = vec!["^=b.".parse().unwrap()];
    assert_eq!(fixture.refused().0.len(), 3);
}

#[test]
fn what_cannot_be_adapted_is_skipped_unless_it_is_named() {
    let mut fixture = Fixture::bert();
    fixture.model(&[
        ("encoder.layer.0.attention.self.query.weight", "F32", &[3, INNER, WIDTH]),
        ("encoder.layer.0.attention.self.key.weight", "F32", &[WIDTH, 1, 1]),
        ("encoder.layer.0.attention.self.value.weight", "I64", &[WIDTH, WIDTH]),
        ("encoder.layer.0.intermediate.dense.weight", "F32", &[INNER, WIDTH]),
    ]);
    let skipped = fixture.plan().skipped;
    let reasons: Vec<_> = skipped.iter().map(|skipped| skipped.reason.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "it is a convolution in 6 groups, whose rank must be a multiple of 12 and at most 12, because each group needs an even \
             rank",
            "it holds several matrices, and is no parameter of fused experts",
            r#"its weight holds "I64" and not F64, F32, F16 or BF16 numbers"#
        ]
    );
    fixture.request.selection.targets = vec!["all-linear".into()];
    assert_eq!(fixture.plan().skipped, skipped);
    fixture.request.selection.targets = vec!["key".into(), "dense".into()];
    fixture.refused_with("cannot be adapted: it is a convolution in 6 groups", Category::Data);
    fixture.request.selection = Selection { include: vec!["(key|value)$".into()], ..Selection::default() };
    fixture.refused_with("no selected module has a weight that can be adapted", Category::Data);
    // What is not selected is not mentioned.
    fixture.request.selection = Selection { exclude: vec!["query|key|value".into()], ..Selection::default() };
    assert!(fixture.plan().skipped.is_empty());
}

/// Without activations the checkpoint names the layers, and what is no linear layer by its name is no candidate.
#[test]
fn weights_name_the_layers_where_nothing_else_does() {
    let mut fixture = Fixture::bert();
    fixture.request.method =
        Options { start: Start::Residual, method: Method::Pissa, ..fixture.request.method };
    let with_activations = fixture.plan();
    assert_eq!(with_activations.layers().count(), 4);
    assert!(with_activations.sites.iter().all(|site| (site.rows, site.bytes) == (0, 0)));
    assert_eq!(with_activations.work.moments, 0.0);

    fixture.model(&[
        ("embeddings.word_embeddings.weight", "F32", &[30, WIDTH]),
        ("layer.0.query.weight", "F32", &[WIDTH, WIDTH]),
        ("layer.0.norm.weight", "F32", &[WIDTH]),
        ("layer.0.dense.weight", "F32", &[INNER, WIDTH]),
        ("layer.0.relative_attention_bias.weight", "F32", &[32, WIDTH]),
        ("layer.0.scales.weight", "I64", &[WIDTH, WIDTH]),
        ("lm_head.weight", "F32", &[30, WIDTH]),
    ]);
    fixture.request.activations = vec![];
    fixture.refused_with("because there are no activations to name them", Category::Usage);
    fixture.request.selection.targets = vec!["all-linear".into()];
    let plan = fixture.plan();
    let modules: Vec<_> = plan.layers().map(|layer| layer.module.as_str()).collect();
    assert_eq!(modules, ["layer.0.dense", "layer.0.query"]);
    assert_eq!(plan.skipped[0].name, "layer.0.scales");
    fixture.request.selection.targets = vec!["queri".into()];
    fixture.refused_with(r#"no module is named "queri"; the nearest names are "query""#, Category::Usage);
    fixture.request.selection.targets = vec!["all-linear".into()];
    fixture.request.method =
        Options { method: Method::Cntlora, start: Start::Update, ..fixture.request.method };
    fixture.refused_with("expected at least one file or folder with activations", Category::Usage);
}

/// How a weight is stored follows from its shape and the width of what it reads, and for square weights from the family of
/// the model.
#[test]
fn shapes_tell_the_kinds_of_layers() {
    let fixture = Fixture::bert();
    fixture.model(&[
        ("encoder.layer.0.attention.self.query.weight", "F32", &[WIDTH, 3 * WIDTH]),
        ("encoder.layer.0.attention.self.key.weight", "F32", &[7, WIDTH]),
        ("encoder.layer.0.attention.self.value.weight", "F32", &[4, WIDTH / 2, 2]),
        ("encoder.layer.0.intermediate.dense.weight", "F32", &[5, 1, 3, 2]),
    ]);
    let shapes: Vec<_> =
        fixture.plan().layers().map(|layer| (layer.outputs, layer.inputs, layer.shape.clone())).collect();
    assert_eq!(
        shapes,
        [
            (7, 6, LayerShape::Linear),
            (18, 6, LayerShape::Transposed),
            (4, 6, LayerShape::Convolution(vec![2])),
            (5, 6, LayerShape::Convolution(vec![3, 2])),
        ]
    );
}

#[test]
fn square_weights_of_gpt2_are_transposed() {
    let mut fixture = Fixture::bert();
    fixture.request.model = fixture.folder.path().join("gpt2.safetensors");
    fixture.model(&[
        ("h.0.attn.c_attn.weight", "F32", &[WIDTH, 3 * WIDTH]),
        ("h.0.attn.c_proj.weight", "F32", &[WIDTH, WIDTH]),
        ("h.0.mlp.dense.weight", "F32", &[WIDTH, WIDTH]),
    ]);
    let metadata = sites(&[("x", &["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.dense"])]);
    write(&fixture.request.activations[0], Some(&metadata), [("x", "F32", [3, WIDTH].as_slice())]);
    let transposed = |fixture: &Fixture| -> Vec<bool> {
        fixture.plan().layers().map(|layer| layer.shape == LayerShape::Transposed).collect()
    };
    let problems = fixture.refused();
    assert_eq!(problems.0.len(), 2, "{problems}");
    assert!(problems.to_string().contains("c_proj\": expected config.json beside the weights"), "{problems}");
    std::fs::write(fixture.folder.path().join("config.json"), r#"{"model_type":"gpt2"}"#).unwrap();
    assert_eq!(transposed(&fixture), [true, true, false]);
}

#[test]
fn tied_weights_are_refused() {
    let mut fixture = Fixture::bert();
    fixture.request.renames = vec!["key$=query".parse().unwrap()];
    fixture.model(&[
        ("encoder.layer.0.attention.self.query.weight", "F32", &[WIDTH, WIDTH]),
        ("encoder.layer.0.attention.self.value.weight", "F32", &[WIDTH, WIDTH]),
        ("encoder.layer.0.intermediate.dense.weight", "F32", &[INNER, WIDTH]),
    ]);
    fixture.refused_with("tied weights cannot be adapted one by one", Category::Data);
}

#[test]
fn source_activations_must_fit() {
    let mut fixture = Fixture::bert();
    fixture.request.source = vec![fixture.activations("source", 3, WIDTH)];
    fixture.request.method.coupling = Coupling::Paired;
    let problems = fixture.refused();
    assert_eq!(problems.0.len(), 2, "{problems}");
    assert!(
        problems.to_string().contains("expected 8 rows as among the fine-tuning activations"),
        "{problems}"
    );
    fixture.activations("source", 8, WIDTH);
    fixture.plan();
    fixture.request.method.coupling = Coupling::Uncorrelated;
    fixture.activations("source", 3, WIDTH + 1);
    assert_eq!(fixture.refused().0.len(), 2);
    fixture.request.selection.targets = vec!["dense".into()];
    fixture.refused_with("expected 6 numbers per row", Category::Data);
    write(&fixture.request.source[0], None, [("other", "F32", [1, WIDTH].as_slice())]);
    fixture.refused_with(&format!("expected the site {INTERMEDIATE:?} among"), Category::Data);
}

#[test]
fn ranks_must_fit_the_layers() {
    let mut fixture = Fixture::bert();
    let with = |fixture: &mut Fixture, ranks, min, max, multiple| {
        fixture.request.method.ranks = ranks;
        fixture.request.method.limits = Limits { min, max, multiple };
    };
    let help = |fixture: &Fixture| {
        let problems = fixture.refused();
        assert_eq!(problems.0.len(), 1, "{problems}");
        assert_eq!(problems.category(), Category::Usage, "{problems}");
        problems.0[0].next_step().unwrap_or_default().to_owned()
    };
    with(&mut fixture, Policy::Fixed(7), 0, 7, 1);
    assert_eq!(help(&fixture), "give --rank 6 or 8");
    fixture.refused_with("rank 7 is odd, but the mirrored start needs an even rank", Category::Usage);
    with(&mut fixture, Policy::Fixed(1), 0, 4, 1);
    assert_eq!(help(&fixture), "give --rank 2");
    with(&mut fixture, Policy::Budget(23), 0, 128, 1);
    assert_eq!(help(&fixture), "give --budget=24 or more", "the least rank of a mirrored start is 2");
    fixture.request.method.start = Start::Residual;
    with(&mut fixture, Policy::Fixed(7), 0, 7, 1);
    fixture
        .refused_with(r#"rank 7 is over the limit of "encoder.layer.0.attention.self.key""#, Category::Usage);
    assert!(help(&fixture).contains("give --rank 6"));
    assert!(fixture.refused().to_string().ends_with("value\" and 1 more"));
    with(&mut fixture, Policy::Fixed(3), 0, 4, 2);
    assert!(help(&fixture).starts_with("give --rank 2"));
    // A rank that is legal, and not only near.
    with(&mut fixture, Policy::Fixed(5), 5, 8, 4);
    assert!(help(&fixture).starts_with("give --rank 8,"));
    with(&mut fixture, Policy::Fixed(3), 0, 3, 4);
    assert_eq!(help(&fixture), "give --rank 4 and --max-rank 4");
    with(&mut fixture, Policy::Fixed(8), 0, 8, 8);
    assert!(help(&fixture).starts_with("one of them can have 0 at most: leave it out"));
    with(&mut fixture, Policy::Fixed(0), 0, 4, 1);
    fixture.refused_with("the rank is 0, but must be at least 1", Category::Usage);
    with(&mut fixture, Policy::Energy(f64::NAN), 0, 128, 1);
    fixture.refused_with("the energy share is NaN", Category::Usage);
    with(&mut fixture, Policy::Energy(0.9), 5, 4, 1);
    fixture.refused_with("the least rank is 5, but must be at most the largest rank", Category::Usage);
    // The cheapest rank costs 6 + 6 parameters; one for each of the four layers costs 3 · 12 + 16.
    with(&mut fixture, Policy::Budget(11), 0, 128, 1);
    assert_eq!(help(&fixture), "give --budget=12 or more");
    with(&mut fixture, Policy::Budget(51), 1, 128, 1);
    assert_eq!(help(&fixture), "give --budget=52 or more");
    with(&mut fixture, Policy::Budget(52), 1, 128, 1);
    assert!(fixture.plan().sites[0].layers.iter().all(|layer| layer.max_rank == 6));
}

#[test]
fn renames_are_split_at_the_first_equals_sign() {
    let rename = |pattern: &str, replacement: &str| {
        Ok(Rename { pattern: pattern.into(), replacement: replacement.into() })
    };
    assert_eq!("^a=b=c".parse(), rename("^a", "b=c"));
    assert_eq!(r"a\x3Db=".parse(), rename(r"a\x3Db", ""));
    assert!("a".parse::<Rename>().is_err());
    assert!("=a".parse::<Rename>().is_err());
}

/// The parts of a run are the run: no work is lost or done twice, and what a node holds does not grow with their number.
#[test]
fn a_divided_run_is_the_whole() {
    let mut fixture = Fixture::bert();
    fixture.activations("target", 9000, WIDTH);
    fixture.request.source = vec![fixture.activations("source", 3000, WIDTH)];
    let (plan, inputs) = plan(&fixture.request).unwrap();
    let alone = Division::new(&plan, &inputs, 1);
    assert_eq!(alone.layers.operations, plan.work.factors);
    assert_eq!(alone.layers.memory, plan.peak_memory);
    assert_eq!(alone.moments.operations, plan.work.moments);
    for nodes in [2, 3, 8] {
        let division = Division::new(&plan, &inputs, nodes);
        for (part, whole) in [(division.moments, alone.moments), (division.layers, alone.layers)] {
            assert!(
                part.operations * nodes as f64 >= whole.operations * (1.0 - 1e-12),
                "{part:?} of {whole:?}"
            );
            assert!(part.operations <= whole.operations && part.memory <= whole.memory);
        }
        assert_eq!(division.joining, alone.joining);
        let mut sites: Vec<_> =
            (0..nodes).flat_map(|index| plan.sites_of(Shard { index, count: nodes })).collect();
        sites.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(sites.into_iter().eq(&plan.sites));
    }
}

/// Moments in place of rows: nothing is read but them, and pairs and other precisions are refused.
#[test]
fn moments_take_the_place_of_rows() {
    use crate::moments::Moments;
    use crate::moments_file::{Content, MeasuredSite, MeasuredSource, write};
    let mut fixture = Fixture::bert();
    let modules = vec!["encoder.layer.0.attention.self.query".to_owned()];
    let width = WIDTH as usize;
    let content = Content {
        precision: Precision::F32,
        sites: [(QUERY.to_owned(), MeasuredSite { width, counts: false, modules, skipped_rows: 5 })].into(),
        sources: vec![MeasuredSource {
            path: "a.safetensors".into(),
            bytes: 100,
            fingerprint: String::new(),
            rows: [(QUERY.to_owned(), std::iter::once(0..5).collect())].into(),
        }],
        part: None,
    };
    let path = fixture.folder.path().join("m.moments.safetensors");
    write(&path, &content, &|_| Ok(Moments::new(width).into())).unwrap();
    fixture.request.activations = Vec::new();
    fixture.request.moments = vec![path.clone()];
    let (plan, inputs) = plan(&fixture.request).unwrap();
    assert_eq!((plan.sites[0].rows, plan.sites[0].rows_to_read, plan.work.moments), (5, 0, 0.0));
    assert_eq!(Division::new(&plan, &inputs, 4).moments, Share::default());
    fixture.request.precision = Precision::Bf16;
    fixture.refused_with("expected moments in precision bf16, found f32", Category::Usage);
    fixture.request.precision = Precision::F32;
    fixture.request.source_moments = vec![path];
    fixture.request.method.coupling = Coupling::Paired;
    fixture.refused_with("cannot start from moments", Category::Usage);
}

/// A model of experts, and the activations of its parameters, each of `rows` rows.
fn experts(tensors: &[(&str, &[u64])], sites: &[(&str, u64)], config: Option<&str>) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("model")).unwrap();
    let mut request = request(folder.path());
    request.model = folder.path().join("model");
    write(
        &request.model.join("model.safetensors"),
        None,
        tensors.iter().map(|&(name, shape)| (name, "F32", shape)),
    );
    if let Some(model_type) = config {
        let config = serde_json::json!({ "model_type": model_type }).to_string();
        std::fs::write(request.model.join("config.json"), config).unwrap();
    }
    let shapes: Vec<(&str, [u64; 2])> = sites.iter().map(|&(name, width)| (name, [8, width])).collect();
    write(&request.activations[0], None, shapes.iter().map(|(name, shape)| (*name, "F32", shape.as_slice())));
    Fixture { folder, request }
}

fn shapes(plan: &Plan) -> Vec<(&str, usize, usize, &LayerShape)> {
    plan.layers().map(|layer| (layer.module.as_str(), layer.outputs, layer.inputs, &layer.shape)).collect()
}

#[test]
fn each_expert_is_a_layer() {
    const DOWN: &str = "layers.0.mlp.experts.down_proj";
    let fixture = experts(&[("model.layers.0.mlp.experts.down_proj", &[3, 6, 10])], &[(DOWN, 10)], None);
    let expert = |transposed| LayerShape::Expert { count: 3, transposed };
    let names: Vec<String> = (0..3).map(|number| format!("{DOWN}.{number}")).collect();
    let plan = fixture.plan();
    let wanted: Vec<_> = names.iter().map(|name| (name.as_str(), 6, 10)).collect();
    let found: Vec<_> = shapes(&plan).into_iter().map(|(name, m, d, _)| (name, m, d)).collect();
    assert_eq!(found, wanted);
    let pieces: Vec<_> = plan.layers().map(|layer| (layer.weight[0].first, layer.weight[0].count)).collect();
    assert_eq!(pieces, [(0, 60), (60, 60), (120, 60)]);
    assert!(plan.layers().all(|layer| layer.shape == expert(false)));

    // What PEFT knows to be stored as [inputs, outputs], and what it does not.
    let stored = [("layers.0.mlp.experts.down_proj", [3_u64, 10, 6].as_slice())];
    let transposed = experts(&stored, &[(DOWN, 10)], Some("gpt_oss")).plan();
    assert!(transposed.layers().all(|layer| layer.shape == expert(true) && layer.outputs == 6));
    let mut other = experts(&stored, &[(DOWN, 10)], Some("llama4"));
    other.request.selection.targets = vec!["down_proj".into()];
    other.refused_with("which PEFT takes for [outputs, inputs] in this model", Category::Data);
    experts(&stored, &[(DOWN, 9)], None).refused_with("expected 6 numbers in each row", Category::Data);
}

/// Experts that were recorded each by itself have sites of their own; PEFT adapts all of them, or none.
#[test]
fn experts_have_all_their_siblings() {
    const NAMES: [&str; 2] = ["layers.0.mlp.experts.gate_up_proj.0", "layers.0.mlp.experts.gate_up_proj.1"];
    let tensors: [(&str, &[u64]); 5] = [
        ("layers.0.block_sparse_moe.experts.0.w1.weight", &[5, 6]),
        ("layers.0.block_sparse_moe.experts.0.w3.weight", &[5, 6]),
        ("layers.0.block_sparse_moe.experts.1.w1.weight", &[5, 6]),
        ("layers.0.block_sparse_moe.experts.1.w3.weight", &[5, 6]),
        ("layers.0.q_proj.weight", &[6, 6]),
    ];
    let fixture = experts(&tensors, &NAMES.map(|name| (name, 6)), None);
    let plan = fixture.plan();
    let expert = LayerShape::Expert { count: 2, transposed: false };
    assert_eq!(shapes(&plan), NAMES.map(|name| (name, 10, 6, &expert)));
    assert_eq!(plan.sites.len(), 2);
    assert_eq!(
        plan.sites[1].layers[0].tensors(),
        "layers.0.block_sparse_moe.experts.1.w1.weight + layers.0.block_sparse_moe.experts.1.w3.weight"
    );

    let alone = experts(&tensors, &[(NAMES[1], 6), ("layers.0.q_proj", 6)], None);
    let plan = alone.plan();
    assert_eq!(shapes(&plan), [("layers.0.q_proj", 6, 6, &LayerShape::Linear)]);
    assert_eq!(plan.skipped[0].name, "layers.0.mlp.experts.gate_up_proj");
    let reason = "activations of 1 of its 2 experts were recorded, and PEFT adapts all of them";
    assert_eq!(plan.skipped[0].reason, reason);
}

#[test]
fn halves_of_a_tensor_are_layers() {
    let tensors: [(&str, &[u64]); 1] = [("dinov2.encoder.layer.0.mlp.weights_in.weight", &[10, 6])];
    let sites = [("encoder.layer.0.mlp.gate_proj", 6), ("encoder.layer.0.mlp.up_proj", 6)];
    let plan = experts(&tensors, &sites, None).plan();
    let pieces: Vec<_> = plan.layers().map(|layer| (layer.outputs, layer.weight[0].first)).collect();
    assert_eq!(pieces, [(5, 0), (5, 30)]);
    experts(&tensors, &[(sites[0].0, 5)], None)
        .refused_with("expected 6 numbers in each row", Category::Data);
    let odd: [(&str, &[u64]); 1] = [("encoder.layer.0.mlp.weights_in.weight", &[9, 6])];
    experts(&odd, &sites[..1], None).refused_with("it is one of 2 shares of a weight", Category::Data);
}

/// A kernel that is as large as that of the weight may be another, and groups that are told are those of the weight.
#[test]
fn convolutions_that_are_told_are_those_of_the_weight() {
    let told = |kernel: [u64; 2], channels: u64, groups: Option<u64>| {
        let fixture = experts(&[("patches.weight", &[8, 2, 3, 2])], &[], None);
        let mut convolution = serde_json::json!({ "kernel": kernel, "stride": [1, 1], "padding": [0, 0] });
        if let Some(groups) = groups {
            convolution["groups"] = groups.into();
        }
        let metadata = serde_json::json!({
            "format": "activations", "version": 1, "sites": {}, "convolutions": { "patches": convolution }
        });
        let images = [2, channels, 5, 5];
        let tensors = [("patches", "F32", images.as_slice())];
        write(&fixture.request.activations[0], Some(&metadata.to_string()), tensors);
        fixture
    };
    for (channels, groups, layers) in [(2, None, 1), (2, Some(1), 1), (4, None, 2), (4, Some(2), 2)] {
        assert_eq!(told([3, 2], channels, groups).plan().layers().count(), layers);
    }
    told([2, 3], 2, None).refused_with(
        "expected the kernel [3, 2] in the metadata of site \"patches\", found [2, 3]",
        Category::Data,
    );
    told([3, 2], 4, Some(4)).refused_with("expected the number of groups 2 in the metadata", Category::Data);
}

/// The rank of a convolution in groups is divided among them.
#[test]
fn groups_are_layers_that_divide_a_rank() {
    let mut fixture = experts(&[("patches.weight", &[8, 2, 3])], &[("patches", 12)], None);
    let plan = fixture.plan();
    let group = LayerShape::Group { count: 2, kernel: vec![3] };
    assert_eq!(shapes(&plan), [("patches.0", 4, 12, &group), ("patches.1", 4, 12, &group)]);
    assert!(plan.layers().all(|layer| layer.max_rank == 4));
    fixture.request.method.ranks = Policy::Fixed(6);
    fixture.request.method.limits.max = 6;
    fixture.request.selection.targets = vec!["patches".into()];
    fixture.refused_with("whose rank must be a multiple of 4 and at most 8", Category::Data);
    fixture.request.method.start = Start::Residual;
    fixture.request.method.ranks = Policy::Fixed(3);
    fixture.refused_with("whose rank must be a multiple of 2 and at most 8", Category::Data);
}
