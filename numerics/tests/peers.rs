//! The other methods against PEFT's results on small layers (`golden/peers.py`), and the properties of each method.

use cntlora_numerics::constraint::Evidence;
use cntlora_numerics::error::{Error, Result};
use cntlora_numerics::factors::{Factors, LayerShape, Start};
use cntlora_numerics::initializer::Initializer;
use cntlora_numerics::low_rank::truncated_svd;
use cntlora_numerics::method::{Draft, Method, Options, RankRule};
use cntlora_numerics::moments::Moments;
use cntlora_numerics::random::gaussian;
use cntlora_numerics::rank::{self, Layer, Limits, Policy};
use expect_test::expect;
use faer::{Mat, MatRef, Par};
use serde::Deserialize;
use std::collections::BTreeMap;

type Rectangle = Vec<Vec<f64>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Golden {
    scale: f64,
    rank: usize,
    weights: BTreeMap<String, Rectangle>,
    activations: BTreeMap<String, Rectangle>,
    pissa: BTreeMap<String, Pair>,
    olora: BTreeMap<String, Pair>,
    mica: BTreeMap<String, Pair>,
    corda_ipm: BTreeMap<String, Pair>,
    corda_kpm: BTreeMap<String, Pair>,
    eva: Vec<Eva>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    a: Rectangle,
    b: Rectangle,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Eva {
    rank: usize,
    rho: f64,
    down: BTreeMap<String, Rectangle>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/peers.json")).expect("the golden file has this form")
}

fn matrix(rows: &Rectangle) -> Mat<f32> {
    Mat::from_fn(rows.len(), rows[0].len(), |i, j| rows[i][j] as f32)
}

impl Golden {
    /// The moments of the layer's input.
    fn moments(&self, layer: &str) -> Moments {
        let site = if layer == "o" { "z" } else { "x" };
        Moments::of(matrix(&self.activations[site]).as_ref()).unwrap()
    }
}

fn options(method: Method, rank: usize) -> Options {
    Options {
        method,
        start: method.starts()[0],
        ranks: Policy::Fixed(rank),
        limits: Limits { min: 0, max: rank, multiple: 1 },
        ..Options::default()
    }
}

fn draft(moments: &Moments, weight: MatRef<'_, f32>, name: &str, options: &Options) -> Draft {
    draft_of(moments, weight, &LayerShape::Linear, name, options).unwrap()
}

/// Methods that need pre-training activations get some.
fn draft_of(
    moments: &Moments,
    weight: MatRef<'_, f32>,
    shape: &LayerShape,
    name: &str,
    options: &Options,
) -> Result<Draft> {
    let source = Moments::of(gaussian::<f32>(30, moments.width(), 5, "source").as_ref())?;
    let source = options.method.needs_source().then_some(&source);
    let site = Initializer::new(options.clone())?.site(Evidence { target: moments, source, change: None })?;
    Ok(site.layer_of_shape(name, weight, shape)?.into_draft())
}

/// Difference relative to the larger of the two.
fn distance(a: &Mat<f32>, b: &Mat<f32>) -> f32 {
    (a - b).norm_l2() / a.norm_l2().max(b.norm_l2())
}

/// The orthogonal projection on the rows of a matrix.
fn row_space(a: &Mat<f32>) -> Mat<f32> {
    let svd = truncated_svd(&a.as_ref(), a.nrows(), 0, "rows", Par::Seq).unwrap();
    &svd.v * svd.v.transpose()
}

/// The products, and so the residual base, agree with PEFT, and so do the spaces that both factors span.
#[test]
fn products_and_subspaces_are_those_of_peft() {
    let golden = golden();
    for (method, expected) in [
        (Method::Pissa, &golden.pissa),
        (Method::Olora, &golden.olora),
        (Method::CordaIpm, &golden.corda_ipm),
        (Method::CordaKpm, &golden.corda_kpm),
    ] {
        let options = Options { scale: golden.scale, ..options(method, golden.rank) };
        for (layer, weight) in &golden.weights {
            let draft = draft(&golden.moments(layer), matrix(weight).as_ref(), layer, &options);
            let Factors { a, b } = draft.initialize(golden.rank, &options).unwrap().factors;
            let (wanted_a, wanted_b) = (matrix(&expected[layer].a), matrix(&expected[layer].b));
            let product = distance(&(&b * &a), &(&wanted_b * &wanted_a));
            let rows = distance(&row_space(&a), &row_space(&wanted_a));
            let columns =
                distance(&row_space(&b.transpose().to_owned()), &row_space(&wanted_b.transpose().to_owned()));
            let label = format!("{}, {layer}: {product:e}, {rows:e}, {columns:e}", method.name());
            assert!(product < 1e-4 && rows < 1e-4 && columns < 1e-4, "{label}");
        }
    }
}

/// Factors that are defined up to signs agree with PEFT up to signs: PiSSA's singular vectors, OLoRA's basis.
#[test]
fn factors_are_those_of_peft_up_to_signs() {
    let golden = golden();
    for (method, expected) in [(Method::Pissa, &golden.pissa), (Method::Olora, &golden.olora)] {
        let options = Options { scale: golden.scale, ..options(method, golden.rank) };
        for (layer, weight) in &golden.weights {
            let draft = draft(&golden.moments(layer), matrix(weight).as_ref(), layer, &options);
            let found = draft.initialize(golden.rank, &options).unwrap().factors;
            let wanted = Factors { a: matrix(&expected[layer].a), b: matrix(&expected[layer].b) };
            for i in 0..golden.rank {
                let sign = (found.a.row(i) * wanted.a.row(i).transpose()).signum();
                let down = (found.a.row(i) * faer::Scale(sign) - wanted.a.row(i)).norm_l2();
                let up = (found.b.col(i) * faer::Scale(sign) - wanted.b.col(i)).norm_l2();
                assert!(down < 1e-4 && up < 1e-4, "{}, {layer}, row {i}: {down:e}, {up:e}", method.name());
            }
        }
    }
}

/// MiCA's `B` agrees with PEFT up to signs, and `A` is zero, for wide and for tall weights.
#[test]
fn mica_is_that_of_peft() {
    let golden = golden();
    let options = options(Method::Mica, golden.rank);
    for (layer, weight) in &golden.weights {
        let draft = draft(&golden.moments(layer), matrix(weight).as_ref(), layer, &options);
        let found = draft.initialize(golden.rank, &options).unwrap().factors;
        let wanted = matrix(&golden.mica[layer].b);
        assert!(found.a.norm_max() == 0.0 && matrix(&golden.mica[layer].a).norm_max() == 0.0, "{layer}");
        for i in 0..golden.rank {
            let sign = (found.b.col(i).transpose() * wanted.col(i)).signum();
            let off = (found.b.col(i) * faer::Scale(sign) - wanted.col(i)).norm_l2();
            assert!(off < 1e-4, "{layer}, column {i}: {off:e}");
        }
    }
}

/// EVA's directions with their signs, and its ranks, agree with PEFT.
#[test]
fn eva_is_that_of_peft() {
    let golden = golden();
    let mut shared = false;
    for case in &golden.eva {
        let max = (case.rank as f64 * case.rho).round_ties_even() as usize;
        let options = Options {
            ranks: Policy::Shared(case.rank),
            limits: Limits { min: 0, max, multiple: 1 },
            ..options(Method::Eva, case.rank)
        };
        let drafts: Vec<(&String, Draft)> = golden
            .weights
            .iter()
            .map(|(layer, weight)| {
                (layer, draft(&golden.moments(layer), matrix(weight).as_ref(), layer, &options))
            })
            .collect();
        let layers: Vec<Layer<'_>> = drafts.iter().map(|(_, draft)| draft.as_layer(options.start)).collect();
        let ranks = rank::allocate(options.ranks, options.limits, &layers).unwrap();
        for ((layer, draft), rank) in drafts.iter().zip(ranks) {
            let wanted = &case.down[*layer];
            assert_eq!(rank, wanted.len(), "{layer}, rho {}", case.rho);
            shared |= rank != case.rank;
            let Factors { a, b } = draft.initialize(rank, &options).unwrap().factors;
            assert!((&a - matrix(wanted)).norm_max() < 1e-4, "{layer}, rho {}", case.rho);
            assert_eq!(b.norm_max(), 0.0);
        }
    }
    assert!(shared, "some layer must get another rank than the others");
}

/// MiLoRA's product is the weight minus its leading triplets.
#[test]
fn milora_takes_the_last_triplets() {
    let weight = gaussian::<f32>(9, 7, 0, "weight");
    let moments = Moments::new(7);
    let product = |method, rank| {
        let options = options(method, rank);
        let Factors { a, b } =
            draft(&moments, weight.as_ref(), "w", &options).initialize(rank, &options).unwrap().factors;
        b * a
    };
    let first = product(Method::Pissa, 5);
    let last = product(Method::Milora, 2);
    assert!(distance(&(first + last), &weight) < 1e-5);
}

/// Random factors have the bounds and deviations of PEFT.
#[test]
fn random_factors_are_distributed_as_in_peft() {
    let (outputs, inputs, rank) = (50, 400, 40);
    let weight = gaussian::<f32>(outputs, inputs, 0, "weight");
    let of_shape = |method, shape: &LayerShape, part_rank| {
        let options = options(method, rank);
        let draft = draft_of(&Moments::new(inputs), weight.as_ref(), shape, "w", &options).unwrap();
        draft.initialize(part_rank, &options).unwrap().factors
    };
    let factors = |method| of_shape(method, &LayerShape::Linear, rank);
    let deviation = |a: &Mat<f32>| a.norm_l2() / ((a.nrows() * a.ncols()) as f32).sqrt();
    let near = |found: f32, wanted: f32| (found / wanted - 1.0).abs() < 0.05;

    let kaiming = factors(Method::Lora).a;
    let bound = 1.0 / (inputs as f32).sqrt();
    assert!(kaiming.norm_max() <= bound && near(deviation(&kaiming), bound / 3f32.sqrt()));
    assert!(near(deviation(&factors(Method::Gaussian).a), 1.0 / rank as f32));

    // A group has its share of the rows, and they are as large as those of the whole module.
    let group = LayerShape::Group { count: 4, kernel: vec![1] };
    let a = of_shape(Method::Gaussian, &group, rank / 4).a;
    assert!(a.nrows() == rank / 4 && near(deviation(&a), 1.0 / rank as f32), "{}", deviation(&a));

    for method in [Method::Lora, Method::Gaussian] {
        let Factors { a, b } = of_shape(method, &LayerShape::Embedding, rank);
        assert!(a.norm_max() == 0.0 && near(deviation(&b), 1.0), "{}", deviation(&b));
    }

    let Factors { a, b } = factors(Method::Orthogonal);
    let wanted = (rank as f32 / 2.0).sqrt() / 10.0 / (rank as f32).sqrt();
    assert!(
        near(deviation(&a), wanted) && near(deviation(&b), wanted),
        "{} {}",
        deviation(&a),
        deviation(&b)
    );
    assert!((&b * &a).norm_max() < 1e-5);
}

/// The factors come in pairs, so there are none for a layer with one output.
#[test]
fn orthogonal_factors_have_no_rank_of_one() {
    let weight = gaussian::<f32>(1, 5, 0, "weight");
    let options = options(Method::Orthogonal, 4);
    let refused =
        draft_of(&Moments::new(5), weight.as_ref(), &LayerShape::Linear, "w", &options).unwrap_err();
    expect!["the method orthogonal does not support a rank below 2: its factors come in pairs"]
        .assert_eq(&refused.to_string());
}

/// The computed variance of equal rows with a large mean is rounding error, and gives no directions.
#[test]
fn equal_rows_have_no_directions() {
    for exponent in 0..20 {
        let value = 1.7f32.powi(exponent);
        let rows = Mat::from_fn(8, 6, |_, j| value * (1.0 + 0.1 * j as f32));
        let moments = Moments::of(rows.as_ref()).unwrap();
        let refused = Initializer::new(options(Method::Eva, 2)).unwrap().site(&moments).unwrap_err();
        assert_eq!(refused, Error::NoVariation { what: "all rows of activations are equal" }, "{value}");
    }
}

/// For every method and shape: starts that do not change the model do not, and the same layer gives the same bits.
#[test]
fn every_method_is_reproducible_and_keeps_its_start() {
    for method in Method::ALL {
        for (outputs, inputs) in [(6, 10), (10, 6), (8, 8)] {
            let rows = gaussian::<f32>(60, inputs, 1, "rows");
            let moments = Moments::of(rows.as_ref()).unwrap();
            let weight = gaussian::<f32>(outputs, inputs, 2, "weight");
            let options = options(method, 4);
            assert_eq!(options.complaints(), []);
            let make = |name: &str| {
                draft(&moments, weight.as_ref(), name, &options).initialize(4, &options).unwrap()
            };
            let (one, again) = (make("w"), make("w"));
            let Factors { a, b } = &one.factors;
            assert_eq!((a.shape(), b.shape()), ((4, inputs), (outputs, 4)), "{}", method.name());
            assert!(*a == again.factors.a && *b == again.factors.b, "{}", method.name());
            if options.start == Start::Zero {
                assert!((b * a).norm_max() < 1e-5, "{}", method.name());
                assert_eq!(one.shift, 0.0);
            }
            let random = matches!(method, Method::Lora | Method::Gaussian | Method::Orthogonal);
            assert_eq!(make("other").factors.a != *a, random, "{}", method.name());
        }
    }
}

/// An unsupported combination is refused with the supported ones.
#[test]
fn missing_combinations_are_refused() {
    let texts =
        |options: Options| -> Vec<String> { options.complaints().iter().map(ToString::to_string).collect() };
    for method in Method::ALL {
        for start in [Start::Mirrored, Start::Update, Start::Residual, Start::Zero] {
            let refused = !texts(Options { start, ..options(method, 4) }).is_empty();
            assert_eq!(refused, !method.starts().contains(&start), "{} {start:?}", method.name());
        }
        for ranks in [
            Policy::Energy(0.5),
            Policy::Budget(9),
            Policy::BudgetOfRank(4),
            Policy::Shared(4),
            Policy::Proportional(4),
        ] {
            let refused = !texts(Options { ranks, ..options(method, 4) }).is_empty();
            let legal = match method.rank_rule() {
                RankRule::Spectrum => !matches!(ranks, Policy::Shared(_) | Policy::Proportional(_)),
                RankRule::Proportional => matches!(ranks, Policy::Proportional(_)),
                RankRule::Shared => matches!(ranks, Policy::Shared(_)),
                RankRule::Fixed => false,
            };
            assert_eq!(refused, !legal, "{} {ranks:?}", method.name());
        }
    }
    let refused = [
        Options { start: Start::Zero, ranks: Policy::Energy(0.5), ..options(Method::Milora, 4) },
        Options { ranks: Policy::Budget(9), ..options(Method::Eva, 4) },
        Options { ranks: Policy::Shared(4), ..options(Method::Pissa, 4) },
        Options { ranks: Policy::Shared(4), ..options(Method::Astra, 4) },
        Options { ranks: Policy::Proportional(4), ..options(Method::ScLora, 4) },
        Options { start: Start::Residual, ..options(Method::Mica, 4) },
        options(Method::Orthogonal, 3),
        Options { start: Start::Mirrored, ..options(Method::Pissa, 3) },
    ];
    expect![[r#"
        the method milora does not support start zero: it supports residual, mirrored
        the method milora does not support this choice of ranks: it supports one rank for all layers
        the method eva does not support this choice of ranks: it supports a rank that layers share, or one rank for all layers
        the method pissa does not support this choice of ranks: it supports one rank for all layers, a share of the energy, or a budget
        the method astra does not support this choice of ranks: it supports ranks in proportion to effective ranks, or one rank for all layers
        the method sc-lora does not support this choice of ranks: it supports one rank for all layers
        the method mica does not support start residual: it supports zero
        rank 3 is odd, but the method orthogonal needs an even rank
        rank 3 is odd, but the mirrored start needs an even rank"#]].assert_eq(&refused.map(|options| texts(options).join("\n")).join("\n"));
}

/// A method refuses the kinds of layers that it does not adapt, with the reason.
#[test]
fn kinds_of_layers_that_a_method_does_not_adapt_are_refused() {
    let weight = gaussian::<f32>(6, 8, 0, "weight");
    let group = LayerShape::Group { count: 2, kernel: vec![1] };
    let expert = LayerShape::Expert { count: 2, transposed: false };
    let texts = [
        (Method::Mica, LayerShape::Convolution(vec![2])),
        (Method::Mica, group),
        (Method::Mica, expert),
        (Method::LoraNull, LayerShape::Embedding),
    ]
    .map(|(method, shape)| {
        let refused = draft_of(&moments(8), weight.as_ref(), &shape, "w", &options(method, 2)).unwrap_err();
        refused.to_string()
    });
    expect![[r#"
        the method mica does not support convolutions: PEFT keeps B during training only in linear layers and embeddings
        the method mica does not support convolutions in groups: PEFT keeps B during training only in linear layers and embeddings
        the method mica does not support experts in one parameter: PEFT keeps B during training only in linear layers and embeddings
        the method lora-null does not support embeddings: tokens that do not occur are all alike, so there are no last directions"#]]
    .assert_eq(&texts.join("\n"));
    for shape in [LayerShape::Transposed, LayerShape::Embedding] {
        draft_of(&moments(8), weight.as_ref(), &shape, "w", &options(Method::Mica, 2)).unwrap();
    }
}

/// The moments of ordinary rows.
fn moments(width: usize) -> Moments {
    Moments::of(gaussian::<f32>(40, width, 0, "rows").as_ref()).unwrap()
}
