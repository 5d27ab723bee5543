//! Runs of plans on small models. The tests check which settings change the result, which do not, and which inputs are refused.

use cntlora::constraint::{Coupling, Norm};
use cntlora::element::Element;
use cntlora::factors::{Factors, LayerName, Start};
use cntlora::method::Options;
use cntlora::plan::{self, Nonfinite, Request};
use cntlora::random::gaussian;
use cntlora::rank::{Limits, Policy};
use cntlora::run::{self, Event, Observer, Outcome};
use cntlora::simd::Precision;
use cntlora::storage::{Access, Problems, safetensors};
use faer::Mat;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const ROWS: usize = 1300;
const WIDTH: usize = 24;

/// A model of three linear layers and the activations of its two sites. Two of the layers read the same input.
struct Fixture {
    folder: TempDir,
    /// Number format of the activations.
    element: Element,
    target: BTreeMap<&'static str, Mat<f32>>,
    source: BTreeMap<&'static str, Mat<f32>>,
}

const SITES: [&str; 2] = ["block.attention", "block.mlp"];

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let weights = [("block.query", 20), ("block.value", 12), ("block.mlp", 40)];
        let weights: Vec<_> = weights
            .iter()
            .map(|(name, outputs)| (format!("{name}.weight"), gaussian::<f32>(*outputs, WIDTH, 5, name)))
            .collect();
        let weights: Vec<_> = weights.iter().map(|(name, weight)| (name.as_str(), weight)).collect();
        write(&folder.path().join("model.safetensors"), &weights, Element::F32, false);
        let rows = |name: &'static str, seed, mean: f32| {
            let mixing = gaussian::<f32>(WIDTH, WIDTH, seed, name) * faer::Scale(0.4);
            let rows =
                gaussian::<f32>(ROWS, WIDTH, seed, name) * (mixing + Mat::<f32>::identity(WIDTH, WIDTH));
            (name, Mat::from_fn(ROWS, WIDTH, |i, j| rows[(i, j)] + mean * (j % 2) as f32))
        };
        let target = SITES.into_iter().map(|name| rows(name, 1, 1.0)).collect();
        let source = SITES.into_iter().map(|name| rows(name, 2, 0.5)).collect();
        Self { folder, element: Element::F32, target, source }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes activations to several files. `ends` holds the row after the last row of each file.
    fn write_rows(&self, folder: &str, sites: &BTreeMap<&'static str, Mat<f32>>, ends: &[usize]) -> PathBuf {
        let folder = self.path(folder);
        fs::create_dir(&folder).unwrap();
        let mut first = 0;
        for (index, end) in ends.iter().enumerate() {
            let parts: Vec<_> = sites
                .iter()
                .map(|(name, rows)| (*name, rows.subrows(first, end - first).to_owned()))
                .collect();
            let parts: Vec<_> = parts.iter().map(|(name, rows)| (*name, rows)).collect();
            write(&folder.join(format!("part-{index}.safetensors")), &parts, self.element, true);
            first = *end;
        }
        folder
    }

    fn request(&self, activations: PathBuf) -> Request {
        let method = Options {
            ranks: Policy::Fixed(4),
            limits: Limits { min: 0, max: 4, multiple: 1 },
            ..Options::default()
        };
        Request { method, ..Request::new(self.path("model.safetensors"), vec![activations]) }
    }
}

fn write(path: &Path, tensors: &[(&str, &Mat<f32>)], element: Element, activations: bool) {
    let tensors = tensors
        .iter()
        .map(|(name, matrix)| {
            let mut bytes = Vec::new();
            let values =
                (0..matrix.nrows()).flat_map(|i| (0..matrix.ncols()).map(move |j| f64::from(matrix[(i, j)])));
            element.encode(values, &mut bytes);
            let shape = vec![matrix.nrows() as u64, matrix.ncols() as u64];
            ((*name).to_string(), (element.name().to_string(), shape, bytes))
        })
        .collect();
    let sites = r#"{"format":"activations","version":1,"sites":
        {"block.attention":["block.query","block.value"],"block.mlp":["block.mlp"]}}"#;
    let metadata = activations.then(|| ("cntlora".to_string(), sites.to_string())).into_iter().collect();
    safetensors::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

fn run(request: &Request, threads: usize) -> Result<Outcome, Problems> {
    let (plan, inputs) = plan::plan(&Request { threads, ..request.clone() })?;
    run::run(&plan, &inputs, &())
}

fn layers(outcome: &Outcome) -> &BTreeMap<LayerName, Factors> {
    &outcome.adapter.layers
}

fn same_bits(a: &BTreeMap<LayerName, Factors>, b: &BTreeMap<LayerName, Factors>) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|((n, x), (m, y))| n == m && x.a == y.a && x.b == y.b)
}

/// The number of threads, the reader, and files that are cut at block borders change no bit of the result.
#[test]
fn threads_readers_and_cuts_at_block_borders_do_not_matter() {
    let fixture = Fixture::new();
    let whole = fixture.request(fixture.write_rows("whole", &fixture.target, &[ROWS]));
    let first = run(&whole, 1).unwrap();
    let names = ["block.mlp", "block.query", "block.value"].map(LayerName::of_module);
    assert!(layers(&first).keys().eq(&names));
    for threads in [2, 7] {
        assert!(same_bits(layers(&first), layers(&run(&whole, threads).unwrap())), "{threads} threads");
    }
    let mapped = Request { access: Access::Mmap, ..whole.clone() };
    assert!(same_bits(layers(&first), layers(&run(&mapped, 2).unwrap())));
    let block = cntlora::simd::BLOCK_ROWS;
    let cut = fixture.request(fixture.write_rows("cut", &fixture.target, &[block, 2 * block, ROWS]));
    assert!(same_bits(layers(&first), layers(&run(&cut, 2).unwrap())));
}

/// Products of bf16 are used when they are requested. The report names them, and their result is close to that of f32.
#[test]
fn bf16_products_are_used_on_request_and_reported() {
    let fixture = Fixture { element: Element::Bf16, ..Fixture::new() };
    let exact = fixture.request(fixture.write_rows("target", &fixture.target, &[ROWS]));
    let fast = Request { precision: Precision::Bf16, ..exact.clone() };
    let (exact, fast) = (run(&exact, 1).unwrap(), run(&fast, 1).unwrap());
    assert_eq!((exact.report.precision, fast.report.precision), (Precision::F32, Precision::Bf16));
    let way = Precision::Bf16.products_name();
    assert_eq!(
        (exact.report.bf16_products.as_deref(), fast.report.bf16_products.as_deref()),
        (None, Some(way))
    );
    for (a, b) in exact.report.layers.iter().zip(&fast.report.layers) {
        assert!((a.energy / b.energy - 1.0).abs() < 1e-4, "{} {}", a.energy, b.energy);
        assert_eq!(a.energy == b.energy, way == "f32");
    }
}

/// The random start of a layer depends only on its own name. Leaving out other layers does not change it.
#[test]
fn other_layers_do_not_matter() {
    let fixture = Fixture::new();
    let all = fixture.request(fixture.write_rows("target", &fixture.target, &[ROWS]));
    let mut one = all.clone();
    one.selection.targets = vec!["value".into()];
    let (all, mut one) = (run(&all, 1).unwrap(), run(&one, 1).unwrap());
    let value = one.adapter.layers.remove(&"block.value".into()).unwrap();
    assert!(one.adapter.layers.is_empty());
    assert_eq!(value.a, layers(&all)[&"block.value".into()].a);
    assert_eq!(value.b, layers(&all)[&"block.value".into()].b);
}

/// Every combination of coupling, norm and start works. The coupling and the norm change the factors.
#[test]
fn every_combination_of_coupling_norm_and_start_works() {
    let fixture = Fixture::new();
    let target = fixture.write_rows("target", &fixture.target, &[700, ROWS]);
    let source = fixture.write_rows("source", &fixture.source, &[100, ROWS]);
    let mut seen: Vec<Mat<f32>> = Vec::new();
    for coupling in [Coupling::Transport, Coupling::Uncorrelated, Coupling::Paired] {
        for norm in [Norm::Activations, Norm::Weights] {
            for start in [Start::Mirrored, Start::Update, Start::Residual, Start::Zero] {
                let mut request = fixture.request(target.clone());
                request.source = vec![source.clone()];
                request.method = Options { coupling, norm, start, ..request.method };
                let outcome = run(&request, 2).unwrap();
                let report = &outcome.report.layers[0];
                let factors = &layers(&outcome)[&report.name()];
                match start {
                    Start::Update => {
                        // Two of the three layers read the same input.
                        let trust_region = outcome.report.trust_region.unwrap();
                        assert_eq!((trust_region.model, trust_region.depth), (0.05, 2));
                        assert!((trust_region.layer - 0.05 / 2f64.sqrt()).abs() < 1e-12);
                        let shifts = outcome.report.layers.iter().map(|layer| layer.shift);
                        let largest = shifts.fold(0.0, f64::max);
                        assert!((largest / trust_region.layer - 1.0).abs() < 1e-9, "{largest}");
                        assert!(!seen.contains(&factors.a), "{coupling:?} {norm:?} gives what another gave");
                        seen.push(factors.a.clone());
                    }
                    Start::Residual => assert_eq!((report.strength, report.shift), (1.0, 0.0)),
                    Start::Zero => assert_eq!(factors.b.norm_max(), 0.0),
                    Start::Mirrored => assert!(factors.is_mirrored() && factors.b.norm_max() > 0.0),
                }
                assert_eq!(outcome.report.sites[0].source_rows, Some(ROWS as u64));
            }
        }
    }
}

/// The message gives the row and column of the value. Rows count from the first row of the tensor in its file. This holds for both sides
/// of a pair.
#[test]
fn non_finite_rows_are_refused_with_their_place() {
    let mut fixture = Fixture::new();
    fixture.target.get_mut("block.mlp").unwrap()[(1250, 7)] = f32::NAN;
    fixture.source.get_mut("block.attention").unwrap()[(3, 0)] = f32::INFINITY;
    let target = fixture.write_rows("target", &fixture.target, &[600, ROWS]);
    let source = fixture.write_rows("source", &fixture.source, &[ROWS]);
    let mut request = fixture.request(target);
    request.selection.targets = vec!["mlp".into()];
    let refusal = |request: &Request| run(request, 1).map(|_| ()).unwrap_err().to_string();
    let text = refusal(&request);
    assert!(text.contains("part-1.safetensors"), "{text}");
    assert!(text.contains("tensor \"block.mlp\": row 650, column 7 is not a finite f32 number"), "{text}");

    request.selection.targets = vec!["query".into()];
    request.source = vec![source];
    request.method.coupling = Coupling::Paired;
    let text = refusal(&request);
    assert!(text.contains("source"), "{text}");
    assert!(
        text.contains("tensor \"block.attention\": row 3, column 0 is not a finite f32 number"),
        "{text}"
    );
}

/// Skipped rows are counted, and the result is the same as without these rows.
#[test]
fn skipped_rows_are_counted_and_left_out() {
    let mut fixture = Fixture::new();
    let clean = fixture.write_rows("clean", &fixture.target, &[ROWS]);
    let mut request = fixture.request(clean);
    request.nonfinite = Nonfinite::SkipRows;
    let clean = run(&request, 1).unwrap();
    assert_eq!(clean.report.sites[0].skipped_rows, 0);

    // Two bad rows come before the other rows, in a separate file.
    for rows in fixture.target.values_mut() {
        let spoilt = rows.clone();
        *rows = Mat::from_fn(ROWS + 2, WIDTH, |i, j| match i {
            0 | 1 if j == 3 => f32::NAN,
            0 | 1 => 1.0,
            _ => spoilt[(i - 2, j)],
        });
    }
    request.activations = vec![fixture.write_rows("spoilt", &fixture.target, &[2, ROWS + 2])];
    let spoilt = run(&request, 1).unwrap();
    let site = &spoilt.report.sites[0];
    assert_eq!((site.skipped_rows, site.rows), (2, ROWS as u64));
    assert!(same_bits(layers(&clean), layers(&spoilt)));
}

/// If the ridge had to be raised, the run warns about it and the report contains the value.
#[test]
fn a_raised_ridge_is_reported() {
    #[derive(Default)]
    struct Warnings(std::sync::Mutex<Vec<String>>);
    impl Observer for Warnings {
        fn event(&self, event: Event<'_>) {
            if let Event::Warning { message } = event {
                self.0.lock().unwrap().push(message);
            }
        }
    }
    let fixture = Fixture::new();
    // There are fewer rows than columns. The ridge is almost zero in the second run.
    let mut request = fixture.request(fixture.write_rows("few", &fixture.target, &[5]));
    request.method.coupling = Coupling::Uncorrelated;
    let told = |request: &Request| {
        let (plan, inputs) = plan::plan(request).unwrap();
        let warnings = Warnings::default();
        let outcome = run::run(&plan, &inputs, &warnings).unwrap();
        (warnings.0.into_inner().unwrap(), outcome.report.sites[0].damping)
    };
    let (warnings, damping) = told(&request);
    assert_eq!(damping, request.method.ridge);
    // All sites with few rows share one warning.
    let [few] = &warnings[..] else { panic!("{warnings:?}") };
    assert!(few.starts_with("2 of 2 sites have fewer fine-tuning rows than 4 times their width"), "{few}");
    assert!(few.contains("5 rows of width") && few.ends_with("or try --shrinkage oas"), "{few}");
    request.method.ridge = 1e-18;
    let (warnings, damping) = told(&request);
    assert!(damping > 1e-18);
    assert_eq!(warnings.len(), 3);
    assert!(
        warnings[0].starts_with(
            "site \"block.attention\": the ridge 1e-18 was too small to factor the second moment of the activations"
        ),
        "{warnings:?}"
    );
}

/// Layers of rank 0 are left out of the adapter, and the report says so.
#[test]
fn layers_of_rank_zero_are_reported() {
    let fixture = Fixture::new();
    let mut request = fixture.request(fixture.write_rows("target", &fixture.target, &[ROWS]));
    // The budget pays for one unit of rank of the cheapest layer, and for no other layer.
    request.method.start = Start::Residual;
    request.method.ranks = Policy::Budget((12 + WIDTH) as u64);
    let outcome = run(&request, 1).unwrap();
    assert!(layers(&outcome).keys().eq(&[LayerName::of_module("block.value")]));
    assert_eq!(outcome.report.parameters, (12 + WIDTH) as u64);
    let ranks: Vec<_> =
        outcome.report.layers.iter().map(|layer| (layer.module.as_str(), layer.rank)).collect();
    assert_eq!(ranks, [("block.mlp", 0), ("block.query", 0), ("block.value", 1)]);
}

/// Weights with NaN and activations that are all zero are refused. The message names the tensor.
#[test]
fn unusable_values_are_refused_by_name() {
    let mut fixture = Fixture::new();
    *fixture.target.get_mut("block.mlp").unwrap() = Mat::zeros(ROWS, WIDTH);
    let mut request = fixture.request(fixture.write_rows("target", &fixture.target, &[ROWS]));
    request.selection.targets = vec!["mlp".into()];
    let text = run(&request, 1).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("tensor \"block.mlp\": all activations are zero"), "{text}");

    let mut weight = gaussian::<f32>(20, WIDTH, 5, "block.query");
    weight[(2, 2)] = f32::NAN;
    write(&fixture.path("model.safetensors"), &[("block.query.weight", &weight)], Element::F32, false);
    request.selection.targets = vec!["query".into()];
    let text = run(&request, 1).map(|_| ()).unwrap_err().to_string();
    assert!(
        text.contains("tensor \"block.query.weight\": the weight contains a value that is not finite"),
        "{text}"
    );
}

/// A run ends with an error if an input file changes during the run, because the rows that were read may mix old and new contents.
#[test]
fn inputs_that_change_during_the_run_are_refused() {
    struct Touch(PathBuf);
    impl Observer for Touch {
        fn event(&self, event: Event<'_>) {
            if matches!(event, Event::MomentsReady { .. }) {
                File::options().append(true).open(&self.0).unwrap().set_len(1 << 20).unwrap();
            }
        }
    }
    let fixture = Fixture::new();
    let folder = fixture.write_rows("target", &fixture.target, &[ROWS]);
    let request = fixture.request(folder.clone());
    let (plan, inputs) = plan::plan(&request).unwrap();
    let touch = Touch(folder.join("part-0.safetensors"));
    let text = run::run(&plan, &inputs, &touch).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("changed"), "{text}");
}
