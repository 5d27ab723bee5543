//! Small problems from rows to factors, against the numpy reference of the method (`golden/generate.py`).

use cntlora_numerics::constraint::{ChannelScale, Coupling, Evidence, Norm};
use cntlora_numerics::factors::{Start, Strength};
use cntlora_numerics::initializer::Initializer;
use cntlora_numerics::method::{Draft, Options};
use cntlora_numerics::moments::{Moments, PairedMoments};
use cntlora_numerics::rank::{self, Layer, Limits, Policy};
use cntlora_numerics::simd::{Rows, Values, Workspace};
use faer::{Mat, MatRef};
use serde::Deserialize;

type Rectangle = Vec<Vec<f64>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Golden {
    data: Vec<Data>,
    cases: Vec<Case>,
    budgets: Vec<Budget>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    target: Rectangle,
    source: Rectangle,
    weight: Rectangle,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    data: usize,
    coupling: Coupling,
    source: bool,
    preserve: f64,
    norm: Norm,
    rank: usize,
    ridge: f64,
    up: Rectangle,
    down: Rectangle,
    singular_values: Vec<f64>,
    strength: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    spectra: Vec<Vec<f64>>,
    params: Vec<u64>,
    budget: u64,
    min: usize,
    max: usize,
    ranks: Vec<usize>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/reference.json")).expect("the golden file has this form")
}

fn matrix(rows: &Rectangle) -> Mat<f32> {
    Mat::from_fn(rows.len(), rows[0].len(), |i, j| rows[i][j] as f32)
}

/// Largest difference, relative to the largest entry.
fn distance(a: MatRef<'_, f32>, wanted: &Rectangle) -> f32 {
    let wanted = matrix(wanted);
    assert_eq!(a.shape(), wanted.shape());
    (a - &wanted).norm_max() / wanted.norm_max()
}

/// The moments of pairs, from differences and rows side by side.
fn paired(data: &Data) -> PairedMoments {
    let values: Vec<f32> = data
        .source
        .iter()
        .zip(&data.target)
        .flat_map(|(z, x)| z.iter().zip(x).map(|(z, x)| z - x).chain(x.iter().copied()))
        .map(|v| v as f32)
        .collect();
    let width = data.target[0].len();
    let mut moments = PairedMoments::new(width);
    let rows =
        Rows { values: Values::F32(&values), rows: data.target.len(), width: 2 * width, stride: 2 * width };
    moments.add(rows, &mut Workspace::default(), 1).expect("finite rows");
    moments
}

/// Factors, singular values and strength agree for every coupling, with and without a source, a preservation weight and the activations'
/// norm.
#[test]
fn factors_are_those_of_the_reference() {
    let golden = golden();
    assert_eq!(golden.cases.len(), 60);
    for case in &golden.cases {
        let data = &golden.data[case.data];
        let (mut target, mut source) = (
            Moments::of(matrix(&data.target).as_ref()).unwrap(),
            Moments::of(matrix(&data.source).as_ref()).unwrap(),
        );
        let mut change = None;
        if case.coupling == Coupling::Paired {
            let split = paired(data).split().unwrap();
            (source, target, change) = (split.source, split.target, Some(split.change));
        }
        let options = Options {
            coupling: case.coupling,
            preserve: case.preserve,
            ridge: case.ridge,
            channel_scale: ChannelScale::Mean,
            norm: case.norm,
            strength: Strength::Fixed(1.0),
            start: Start::Update,
            ranks: Policy::Fixed(case.rank),
            limits: Limits { min: 0, max: case.rank, multiple: 1 },
            ..Options::default()
        };
        let evidence = Evidence {
            target: &target,
            source: case.source.then_some(&source),
            change: change.as_ref().map(Mat::as_ref),
        };
        let label = format!(
            "data {}, {:?}, source {}, preserve {}, {:?}",
            case.data, case.coupling, case.source, case.preserve, case.norm
        );
        let weight = matrix(&data.weight);
        let layer = Initializer::new(options)
            .unwrap()
            .site(evidence)
            .unwrap()
            .layer("layer", weight.as_ref())
            .unwrap();
        let Draft::Update(decomposition) = layer.draft() else { panic!("{label}: no update") };
        let sigma = &decomposition.components.sigma;
        for (found, wanted) in sigma.iter().zip(&case.singular_values) {
            assert!((found - wanted).abs() < 1e-4 * case.singular_values[0], "{label}: {found} for {wanted}");
        }
        let energy: f64 = case.singular_values.iter().map(|s| s * s).sum();
        assert!((decomposition.energy / energy - 1.0).abs() < 1e-4, "{label}");

        let made = layer.factors().unwrap();
        let down = distance(made.a.as_ref(), &case.down);
        let up = distance(made.b.as_ref(), &case.up);
        assert!(down < 2e-3 && up < 2e-3, "{label}: {down} {up}");
        let strength = decomposition.components.strength(case.rank, Strength::MaxShift(0.05));
        assert!((strength / case.strength - 1.0).abs() < 1e-3, "{label}: {strength} for {}", case.strength);
    }
}

/// The greedy allocation, including the order of ties, is that of the reference.
#[test]
fn budgets_are_spent_as_the_reference_spends_them() {
    let golden = golden();
    assert!(golden.budgets.len() > 8);
    for budget in &golden.budgets {
        let layers: Vec<Layer<'_>> = budget
            .spectra
            .iter()
            .zip(&budget.params)
            .map(|(spectrum, cost)| Layer {
                spectrum,
                energy: spectrum.iter().map(|sigma| sigma * sigma).sum(),
                cost: *cost,
                rank_per_component: 1,
                parts: 1,
                effective_rank: None,
            })
            .collect();
        let limits = Limits { min: budget.min, max: budget.max, multiple: 1 };
        assert_eq!(
            rank::allocate(Policy::Budget(budget.budget), limits, &layers).as_ref(),
            Ok(&budget.ranks)
        );
    }
}
