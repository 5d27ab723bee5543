//! The methods that take a subspace, against their formulas in numpy and float64 (`golden/subspaces.py`).

use cntlora_numerics::constraint::Evidence;
use cntlora_numerics::factors::Factors;
use cntlora_numerics::initializer::Initializer;
use cntlora_numerics::method::{Draft, Method};
use cntlora_numerics::moments::Moments;
use faer::Mat;
use serde::Deserialize;

type Rectangle = Vec<Vec<f64>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Golden {
    rank: usize,
    scale: f64,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    target: Rectangle,
    source: Rectangle,
    weight: Rectangle,
    sc_lora: Vec<Balanced>,
    effective_rank: f64,
    lora_null: Pair,
    olora_tail: Pair,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Balanced {
    beta: f64,
    b: Rectangle,
    a: Rectangle,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    b: Rectangle,
    a: Rectangle,
}

/// Agreement of products and of factors.
const TOLERANCE: f64 = 1e-4;

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/subspaces.json")).expect("the golden file has this form")
}

fn matrix(rows: &Rectangle) -> Mat<f64> {
    Mat::from_fn(rows.len(), rows[0].len(), |i, j| rows[i][j])
}

fn single(rows: &Rectangle) -> Mat<f32> {
    Mat::from_fn(rows.len(), rows[0].len(), |i, j| rows[i][j] as f32)
}

fn double(m: &Mat<f32>) -> Mat<f64> {
    Mat::from_fn(m.nrows(), m.ncols(), |i, j| f64::from(m[(i, j)]))
}

/// The decomposed layer and the factors of a method.
fn made(case: &Case, method: Method, rank: usize, scale: f64, beta: Option<f64>) -> (Draft, Factors) {
    let [target, source] =
        [&case.target, &case.source].map(|rows| Moments::of(single(rows).as_ref()).unwrap());
    let mut builder = Initializer::builder().method(method).rank(rank).max_rank(rank).scale(scale);
    if let Some(beta) = beta {
        builder = builder.beta(beta);
    }
    let source = method.reads_source().then_some(&source);
    let evidence = Evidence { target: &target, source, change: None };
    let site = builder.build().unwrap().site(evidence).unwrap();
    let layer = site.layer("layer", single(&case.weight).as_ref()).unwrap();
    let factors = layer.factors_of_rank(rank).unwrap();
    (layer.into_draft(), factors)
}

/// The relative distance of the products, and of each pair of factors up to signs that do not change the product.
#[track_caller]
fn check(label: &str, found: &Factors, b: &Rectangle, a: &Rectangle) {
    if a.is_empty() {
        return;
    }
    let (b, a, up, down) = (matrix(b), matrix(a), double(&found.b), double(&found.a));
    let wanted = &b * &a;
    let product = (&up * &down - &wanted).norm_l2() / wanted.norm_l2();
    assert!(product < TOLERANCE, "{label}: the product is {product:e} off");
    for i in 0..a.nrows() {
        let sign = (b.col(i).transpose() * up.col(i)).signum();
        let columns = (b.col(i) - up.col(i) * faer::Scale(sign)).norm_l2() / b.col(i).norm_l2();
        let rows = (a.row(i) - down.row(i) * faer::Scale(sign)).norm_l2() / a.row(i).norm_l2();
        assert!(columns < TOLERANCE && rows < TOLERANCE, "{label}, unit {i}: {columns:e}, {rows:e}");
    }
}

#[test]
fn sc_lora_is_that_of_the_formula() {
    let golden = golden();
    for case in &golden.cases {
        assert_eq!(case.sc_lora.len(), 5);
        for Balanced { beta, b, a } in &case.sc_lora {
            // Few rows give several directions without outputs, of which any are right.
            if case.name == "few rows" && *beta > 0.5 {
                continue;
            }
            let label = format!("sc-lora, {}, β = {beta}", case.name);
            let (_, found) = made(case, Method::ScLora, golden.rank, golden.scale, Some(*beta));
            // With β = 1 no eigenvalue is positive, and directions that the weight does not reach lead: A is zero there.
            let beyond =
                if *beta == 1.0 { case.weight.len().saturating_sub(case.weight[0].len()) } else { 0 };
            let unreached = beyond.min(golden.rank);
            assert!(found.a.subrows(0, unreached).norm_max() < 1e-4, "{label}");
            let rest = golden.rank - unreached;
            let found = Factors {
                a: found.a.subrows(unreached, rest).to_owned(),
                b: found.b.subcols(unreached, rest).to_owned(),
            };
            let b = b.iter().map(|row| row[unreached..].to_vec()).collect();
            check(&label, &found, &b, &a[unreached..].to_vec());
        }
        let (_, found) = made(case, Method::ScLora, golden.rank, golden.scale, None);
        let Balanced { beta, b, a } = &case.sc_lora[2];
        assert_eq!(*beta, 0.5);
        check(&format!("sc-lora, {}, the default β", case.name), &found, b, a);
    }
}

/// Astra is SC-LoRA with `β = 0`, and has the effective rank of the outputs.
#[test]
fn astra_is_that_of_the_formula() {
    let golden = golden();
    for case in &golden.cases {
        let (draft, found) = made(case, Method::Astra, golden.rank, golden.scale, None);
        let Balanced { beta, b, a } = &case.sc_lora[0];
        assert_eq!(*beta, 0.0);
        check(&format!("astra, {}", case.name), &found, b, a);
        let effective_rank = draft.as_layer(Method::Astra.starts()[0]).effective_rank.unwrap();
        let off = effective_rank / case.effective_rank - 1.0;
        assert!(off.abs() < TOLERANCE, "{}: effective rank {effective_rank}, {off:e} off", case.name);
    }
}

#[test]
fn lora_null_is_that_of_the_formula() {
    let golden = golden();
    for case in &golden.cases {
        // Five rows of nine channels leave four directions without activations, so that the last three are arbitrary.
        if case.name != "few rows" {
            let (_, found) = made(case, Method::LoraNull, golden.rank, golden.scale, None);
            check(&format!("lora-null, {}", case.name), &found, &case.lora_null.b, &case.lora_null.a);
        }
    }
}

/// OLoRA's tail, and MiCA, which has its `B` and an `A` of zero.
#[test]
fn minor_vectors_are_those_of_the_formula() {
    let golden = golden();
    for case in &golden.cases {
        let Pair { b, a } = &case.olora_tail;
        let (_, found) = made(case, Method::OloraTail, golden.rank, golden.scale, None);
        check(&format!("olora-tail, {}", case.name), &found, b, a);
        let (_, mica) = made(case, Method::Mica, golden.rank, golden.scale, None);
        assert!(mica.a.norm_max() == 0.0);
        let with_rows = Factors { a: found.a.clone(), b: mica.b };
        for i in 0..golden.rank {
            let sign = (with_rows.b.col(i).transpose() * found.b.col(i)).signum();
            let off = (with_rows.b.col(i) * faer::Scale(sign) - found.b.col(i)).norm_l2();
            assert!(off < 1e-4, "mica, {}, column {i}: {off:e}", case.name);
        }
    }
}
