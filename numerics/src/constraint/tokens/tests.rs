//! Against the formulas of the method, with every matrix formed over the whole vocabulary, in f64.

use super::*;
use crate::initializer::Initializer;
use crate::method::{Draft, Method, Options};
use crate::moments::Counts;
use crate::random::gaussian;
use expect_test::expect;
use quickcheck::quickcheck;

const RIDGE: f64 = 0.03;

fn diagonal(values: impl IntoIterator<Item = f64>) -> Mat<f64> {
    let values: Vec<f64> = values.into_iter().collect();
    Mat::from_fn(values.len(), values.len(), |i, j| if i == j { values[i] } else { 0.0 })
}

fn identity(width: usize, scale: f64) -> Mat<f64> {
    diagonal(vec![scale; width])
}

fn outer(a: &[f64], b: &[f64]) -> Mat<f64> {
    Mat::from_fn(a.len(), b.len(), |i, j| a[i] * b[j])
}

fn power(matrix: &Mat<f64>, exponent: f64) -> Mat<f64> {
    let (values, vectors) = dense::self_adjoint_eigen("test", matrix.as_ref(), Par::Seq).unwrap();
    &vectors * diagonal(values.into_iter().map(|value| value.max(0.0).powf(exponent))) * vectors.transpose()
}

fn ridge(matrix: &Mat<f64>) -> f64 {
    RIDGE * (0..matrix.nrows()).map(|i| matrix[(i, i)]).sum::<f64>() / matrix.nrows() as f64
}

/// `C`, `(K − C) (C + ρ_p S + λI)⁻¹`, and the Fréchet distance of the damped Gaussians.
struct Reference {
    second: Mat<f64>,
    update: Mat<f64>,
    distance: f64,
}

fn reference(target: &Counts, source: Option<&Counts>, terms: Terms) -> Reference {
    let p = target.frequencies();
    let width = p.len();
    let second = diagonal(p.clone());
    let covariance = &second - outer(&p, &p);
    let q = source.map_or_else(|| p.clone(), Counts::frequencies);
    let other = match source {
        None => identity(width, ridge(&covariance) / RIDGE),
        Some(_) => {
            let measured = diagonal(q.clone()) - outer(&q, &q);
            &measured + identity(width, ridge(&measured))
        }
    };
    let damped = &covariance + identity(width, ridge(&covariance));
    let (root, inverse) = (power(&damped, 0.5), power(&damped, -0.5));
    let middle = power(&(&root * &other * &root), 0.5);
    let cross = match terms.coupling {
        Coupling::Transport => outer(&q, &p) + &inverse * &middle * &inverse * &covariance,
        _ => outer(&q, &p),
    };
    let denominator =
        &second + (&other + outer(&q, &q)) * faer::Scale(terms.preserve) + identity(width, ridge(&second));
    let trace = |matrix: &Mat<f64>| (0..width).map(|i| matrix[(i, i)]).sum::<f64>();
    let means: f64 = p.iter().zip(&q).map(|(p, q)| (p - q).powi(2)).sum();
    let distance = (means + trace(&damped) + trace(&other) - 2.0 * trace(&middle)).max(0.0).sqrt();
    Reference { update: (cross - &second) * power(&denominator, -1.0), second, distance }
}

/// Counts like those of a Zipf law: most tokens occur never or once, some often. At least two occur.
fn counts(width: usize, seed: u64) -> Counts {
    let draws = gaussian::<f64>(width, 1, seed, "counts");
    let counts = (0..width).map(|i| draws[(i, 0)].exp().powi(2) as u64);
    Counts::new(counts.enumerate().map(|(i, count)| count + u64::from(i < 2)).collect()).unwrap()
}

/// Edge cases: large classes of tokens that occur never or once, all tokens once, and one token nearly alone.
fn corners() -> Vec<Counts> {
    let of = |counts: Vec<u64>| Counts::new(counts).unwrap();
    let mut often = vec![0; 17];
    (often[3], often[5]) = (1_000_000, 1);
    vec![of(vec![1; 14]), of(often), of([vec![0; 9], vec![1; 8], vec![2, 2, 9, 40]].concat())]
}

fn terms(coupling: Coupling, preserve: f64) -> Terms {
    Terms { coupling, preserve, ridge: RIDGE, ..Options::default().terms() }
}

fn all_terms() -> impl Iterator<Item = Terms> {
    [Coupling::Transport, Coupling::Uncorrelated]
        .into_iter()
        .flat_map(|coupling| [0.0, 0.7].into_iter().map(move |preserve| terms(coupling, preserve)))
}

fn double(matrix: &Mat<f32>) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| f64::from(matrix[(i, j)]))
}

/// If nothing changes, the result is rounding errors.
fn close(found: &Mat<f64>, wanted: &Mat<f64>, tolerance: f64) -> bool {
    (found - wanted).norm_l2() <= tolerance * (1e-6 + wanted.norm_l2())
}

/// The product of three triplets from `first` on, and a tolerance for how well f32 can separate them from the others.
fn triplets(matrix: &Mat<f64>, first: usize) -> (Mat<f64>, f64) {
    let svd = dense::thin_svd("test", matrix.as_ref(), Par::Seq).unwrap();
    let left = Mat::from_fn(matrix.nrows(), 3, |i, j| svd.u[(i, first + j)] * svd.s[first + j]);
    let border = if first == 0 { 3 } else { first };
    let tolerance = 5e-6 * svd.s[0] / (svd.s[border - 1] - svd.s[border]);
    (left * svd.v.subcols(first, 3).transpose(), tolerance.max(1e-5))
}

/// `B A` of an embedding `W (m × V)`, and its components' energies.
fn made(weight: &Mat<f32>, target: &Counts, source: Option<&Counts>, options: &Options) -> (Mat<f64>, Draft) {
    let site = Initializer::new(options.clone()).unwrap().site(TokenEvidence { target, source }).unwrap();
    let draft = site.layer("embedding", weight.as_ref()).unwrap().into_draft();
    let factors = draft.initialize(options.limits.max, options).unwrap().factors;
    (double(&factors.b) * double(&factors.a), draft)
}

fn options(method: Method, terms: Terms, norm: Norm) -> Options {
    use crate::factors::{Start, Strength};
    use crate::rank::{Limits, Policy};
    let start = if method == Method::Cntlora { Start::Update } else { Start::Residual };
    Options {
        method,
        coupling: terms.coupling,
        preserve: terms.preserve,
        ridge: RIDGE,
        norm,
        strength: Strength::Fixed(1.0),
        start,
        ranks: Policy::Fixed(3),
        limits: Limits { min: 0, max: 3, multiple: 1 },
        ..Options::default()
    }
}

/// Everything about one embedding: the operator and its transpose, the same product `B A` for every coupling and norm, the
/// energies and the distance.
fn agrees(target: &Counts, source: Option<&Counts>, seed: u64) -> bool {
    let width = target.width();
    let weight = gaussian::<f32>(7, width, seed, "weight");
    let wide = double(&weight);
    all_terms().all(|terms| {
        let wanted = reference(target, source, terms);
        let constraint = TokenConstraint::new(TokenEvidence { target, source }, terms, Par::Seq).unwrap();
        let unit = Mat::<f32>::identity(width, width);
        let found = double(&constraint.apply(Norm::Weights, unit.as_ref(), Par::Seq));
        let transposed = double(&constraint.apply_transpose(Norm::Weights, unit.as_ref(), Par::Seq));
        let energy = |matrix: &Mat<f64>| {
            let moved = matrix * &wanted.second * matrix.transpose();
            (0..moved.nrows()).map(|i| moved[(i, i)]).sum::<f64>()
        };
        let output = constraint.output_energy(weight.as_ref(), Par::Seq);
        let each = constraint.activation_energy(weight.transpose(), Par::Seq).iter().sum::<f64>();
        let near = |found: f64, wanted: f64| (found - wanted).abs() <= 1e-5 * (1.0 + wanted);
        let distance = (terms.coupling == Coupling::Transport && source.is_some()).then_some(wanted.distance);
        let update = &wide * &wanted.update;
        close(&found, &wanted.update, 1e-5)
            && close(&transposed.transpose().to_owned(), &wanted.update, 1e-5)
            && near(output, energy(&wide))
            && near(each, energy(&wide))
            && constraint.frechet_distance().is_some() == distance.is_some()
            && distance.is_none_or(|wanted| near(constraint.frechet_distance().unwrap(), wanted))
            && [Norm::Activations, Norm::Weights].into_iter().all(|norm| {
                let metric = match norm {
                    Norm::Activations => {
                        power(&(&wanted.second + identity(width, ridge(&wanted.second))), 0.5)
                    }
                    Norm::Weights => identity(width, 1.0),
                };
                let (best, tolerance) = triplets(&(&update * &metric), 0);
                let (product, draft) = made(&weight, target, source, &options(Method::Cntlora, terms, norm));
                let Draft::Update(decomposition) = draft else { return false };
                let change: f64 = (0..3)
                    .map(|i| {
                        decomposition.components.sigma[i].powi(2)
                            * decomposition.components.activation_energy[i]
                    })
                    .sum();
                close(&(&product * &metric), &best, tolerance)
                    && (change - energy(&product)).abs() <= 3e-5 * (1e-9 + change)
                    && near(decomposition.components.output_energy, output)
            })
    })
}

quickcheck! {
    fn agrees_with_the_dense_formulas(width: u8, seed: u64) -> bool {
        let width = usize::from(width % 29) + 12;
        agrees(&counts(width, seed), None, seed)
    }

    fn agrees_with_the_dense_formulas_with_a_source(width: u8, seed: u64) -> bool {
        let width = usize::from(width % 29) + 12;
        agrees(&counts(width, seed), Some(&counts(width, !seed)), seed)
    }
}

#[test]
fn corners_agree_with_the_dense_formulas() {
    for target in corners() {
        assert!(agrees(&target, None, 1), "{target:?}");
        let source = Counts::new((0..target.width()).map(|i| [0, 0, 1, 5][i % 4]).collect()).unwrap();
        assert!(agrees(&target, Some(&source), 2), "{target:?}");
        assert!(agrees(&source, Some(&target), 3), "{target:?}");
        assert!(agrees(&target, Some(&target), 4), "{target:?}");
    }
}

/// A single pre-training token is legal.
#[test]
fn a_source_of_one_token() {
    let source = Counts::new([vec![0; 13], vec![5]].concat()).unwrap();
    assert!(agrees(&corners()[0], Some(&source), 5));
}

/// CorDA of a diagonal second moment: `svd(W C')` and back.
#[test]
fn corda_agrees_with_the_dense_formula() {
    let target = &corners()[2];
    let weight = gaussian::<f32>(7, target.width(), 1, "weight");
    let second = diagonal(target.frequencies());
    let damped = &second + identity(target.width(), ridge(&second));
    for (method, first) in [(Method::CordaIpm, 0), (Method::CordaKpm, 4)] {
        let (wanted, tolerance) = triplets(&(double(&weight) * &damped), first);
        let terms = terms(Coupling::Transport, 0.0);
        let (product, _) = made(&weight, target, None, &options(method, terms, Norm::Weights));
        assert!(close(&(product * &damped), &wanted, tolerance), "{method:?}");
    }
}

/// Counts that give nothing to initialize from are refused with their reason, as rows are.
#[test]
fn counts_without_variation_are_refused() {
    let one = Counts::new(vec![0, 7, 0]).unwrap();
    let terms = |coupling| terms(coupling, 0.0);
    let refusal = |coupling, source: Option<&Counts>| {
        TokenConstraint::new(TokenEvidence { target: &one, source }, terms(coupling), Par::Seq)
            .map(|_| ())
            .unwrap_err()
    };
    let constant = Error::NoVariation { what: "all rows of activations are equal" };
    // A single token varies in no coupling: there is nothing to update.
    assert_eq!(refusal(Coupling::Transport, None), constant);
    assert_eq!(refusal(Coupling::Uncorrelated, None), constant);
    assert_eq!(refusal(Coupling::Uncorrelated, Some(&Counts::new(vec![1, 2, 3]).unwrap())), constant);
    assert_eq!(refusal(Coupling::Paired, Some(&one)), Error::NoPairs);
    let shape = Error::Shape { what: "tokens of the source activations", expected: 3, found: 2 };
    let other = Counts::new(vec![1, 1]).unwrap();
    assert_eq!(refusal(Coupling::Transport, Some(&other)), shape);
    let weight = Mat::<f32>::zeros(4, 2);
    let site = Initializer::builder().rank(2).build().unwrap().site(&other).unwrap();
    let decomposed = |weight: &Mat<f32>| site.layer("e", weight.as_ref());
    assert!(decomposed(&Mat::zeros(4, 3)).is_err());
    assert!(decomposed(&weight).is_ok());
    let refused = [Method::Eva, Method::Orthogonal].map(|method| {
        let options = Options { method, start: method.starts()[0], ..Options::default() };
        Initializer::new(options).unwrap().site(&other).unwrap_err().to_string()
    });
    expect![[r#"
        the method eva does not support embeddings: tokens that occur equally often vary alike, so they have no leading directions
        the method orthogonal does not support embeddings: PEFT supports it for other layers only, and gives embeddings the factors of lora"#]].assert_eq(&refused.join("\n"));
}

/// Every ridge terminates: legal ones give a result, the others are refused.
#[test]
fn every_ridge_terminates() {
    let target = counts(30, 1);
    let evidence = TokenEvidence { target: &target, source: None };
    for coupling in [Coupling::Transport, Coupling::Uncorrelated] {
        for ridge in [f64::from_bits(1), 1e-300, 1e-18, 1.0] {
            let made = TokenConstraint::new(evidence, Terms { ridge, ..terms(coupling, 0.0) }, Par::Seq);
            let dampings = made.unwrap().dampings();
            assert_eq!(dampings.denominator, ridge);
            assert_eq!(dampings.covariance.is_some(), coupling == Coupling::Transport);
        }
        for ridge in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
            let made = TokenConstraint::new(evidence, Terms { ridge, ..terms(coupling, 0.0) }, Par::Seq);
            assert!(matches!(made, Err(Error::Option { what: "the ridge", .. })), "{ridge}");
        }
    }
}
