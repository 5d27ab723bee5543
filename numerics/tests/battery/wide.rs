//! Layers with both sides above 512, which the iteration decomposes: named cases, since the oracle is slow.
//!
//! # Tolerances
//!
//! The iteration stops when the residual of each triplet is 1e-2 of its own singular value (`KrylovParams::tolerance`). Its
//! values are those of the operator on a subspace: each of them is at most that of the operator plus rounding, and at least that minus
//! the residual. The error of the product has the tail and the residuals as its orthogonal parts. f32 rounding adds at most 64 u of the
//! weight times the standard deviations, times `‖D G⁻ᵀ‖ ≤ √(d / ρ)`: below 1e-3 here.

use crate::inputs::{Activations, Stream, Table, Weight};
use crate::oracle::{Matrix, cholesky, eigen, eigenvalues_of_large, norm, qr, solve_lower, svd};
use crate::subject::{self, Answer, MIRRORED, Site, units_per_component};
use crate::truth::{Facts, Sample, change, ridge};
use crate::updates::{check_balance, halves};
use cntlora_numerics::constraint::Coupling;
use cntlora_numerics::factors::{Start, Strength};
use cntlora_numerics::method::{Method, Options};

const RESIDUAL: f64 = 1e-2;
const ROUNDING: f64 = 1e-3;

/// `W = P Q`, so that the oracle decomposes weights of low rank at that size.
struct Wide {
    label: String,
    left: Option<Matrix>,
    right: Matrix,
}

impl Wide {
    fn whole(label: &str, weight: Table) -> Self {
        let weight = weight.matrix();
        let live: Vec<usize> =
            (0..weight.rows).filter(|i| weight.row(*i).iter().any(|value| *value != 0.0)).collect();
        let right = Matrix::from_fn(live.len(), weight.columns, |i, j| weight[(live[i], j)]);
        let left = Matrix::from_fn(weight.rows, live.len(), |i, k| if i == live[k] { 1.0 } else { 0.0 });
        Self { label: label.into(), left: (live.len() < weight.rows).then_some(left), right }
    }

    fn weight(&self) -> Matrix {
        self.left.as_ref().map_or_else(|| self.right.clone(), |left| left.times(&self.right))
    }

    fn ones(outputs: usize, width: usize) -> Self {
        let one = |_, _| 1.0;
        let left = Some(Matrix::from_fn(outputs, 1, one));
        Self { label: "ones".into(), left, right: Matrix::from_fn(1, width, one) }
    }

    fn integers(outputs: usize, width: usize) -> Self {
        let mut stream = Stream::new(9);
        let mut small = |_, _| stream.below(7) as f64 - 3.0;
        let left = Some(Matrix::from_fn(outputs, 2, &mut small));
        Self { label: "integers of rank 2".into(), left, right: Matrix::from_fn(2, width, small) }
    }
}

/// Leading singular values of `P N`.
fn singular_values(left: Option<&Matrix>, right: &Matrix, count: usize) -> Vec<f64> {
    if right.rows == 0 {
        return vec![0.0; count];
    }
    let core = left.map_or_else(|| right.clone(), |left| qr(left).1.times(right));
    let mut values = if core.rows <= 16 {
        svd(&core).s
    } else {
        // Columns of zeros are left out.
        let live: Vec<usize> =
            (0..core.columns).filter(|j| (0..core.rows).any(|i| core[(i, *j)] != 0.0)).collect();
        let core = Matrix::from_fn(core.rows, live.len(), |i, j| core[(i, live[j])]);
        let thin = if core.rows <= core.columns { core } else { core.transposed() };
        let values = eigenvalues_of_large(&thin.times(&thin.transposed()), count);
        // The root of a rounding error of the largest value is not a rounding error.
        let least = 1e-12 * values[0];
        values.iter().map(|value| if *value > least { value.sqrt() } else { 0.0 }).collect()
    };
    values.resize(count, 0.0);
    values
}

/// The result for `M`, in f64: its leading singular values and its energy.
struct Found<'a> {
    spectrum: &'a [f64],
    energy: f64,
    residual: f64,
    /// `X F`, of this rank.
    product: Matrix,
    rank: usize,
}

fn assert_near(label: &str, found: &Found<'_>, image: &Matrix, wanted: &[f64]) {
    let whole = image.norm();
    let residual = RESIDUAL.max(found.residual);
    for (i, (value, wanted)) in found.spectrum.iter().zip(wanted).enumerate() {
        let range = (1.0 - residual) * wanted - ROUNDING * whole..=wanted + ROUNDING * whole;
        assert!(
            range.contains(value),
            "{label}: singular value {i} is {value:e} and not {wanted:e}: {:?}",
            found.spectrum
        );
    }
    let kept = norm(&wanted[..found.rank]).powi(2);
    let tail = (whole * whole - kept).max(0.0);
    let bound = (tail + residual * residual * kept).sqrt() + ROUNDING * whole;
    let error = image.minus(&found.product).norm();
    assert!(error <= bound, "{label}: the product is {error:e} off, {bound:e} allowed, of {whole:e}");
    // The part outside the subspace is estimated from sixteen probes.
    let allowed = (2.0 * ROUNDING + residual * residual) * whole * whole + 0.5 * tail;
    let error = (found.energy - whole * whole).abs();
    assert!(
        error <= allowed,
        "{label}: the energy is {error:e} off, {allowed:e} allowed, of {:e}",
        whole * whole
    );
}

/// `B A` for the balanced starts, without scale and strength.
fn product(made: &Answer, start: Start, scale: f64) -> (Matrix, Matrix) {
    if Some(start) == MIRRORED {
        let (up, down) = halves(made).unwrap();
        (up.scaled(scale), down)
    } else {
        let product = made.update();
        (product.up, product.down)
    }
}

/// The update of cntlora for each of these weights, by one recording.
fn check(activations: &Activations, source: bool, coupling: Coupling, weights: &[Wide], rank: usize) {
    let target = activations.draw(5);
    let source = source.then(|| Activations { offset: 0.5, ..activations.clone() }.draw(6));
    let start = MIRRORED.unwrap_or(Start::Residual);
    let options =
        Options { coupling, ..subject::options(Method::Cntlora, start, rank * units_per_component(start)) };
    let facts = Facts::of(&target, source.as_ref(), coupling == Coupling::Paired);
    let second = facts.target.second_moment();
    let factor = cholesky(&second.plus_diagonal(ridge(&second, options.ridge))).unwrap();
    let change = change(&facts, &subject::terms(&options));
    let site = Site::new(&target, source.as_ref(), &options).unwrap();
    for weight in weights {
        let label = format!("{}, {coupling:?}, {activations:?}", weight.label);
        // `Q (K − C) G⁻ᵀ`.
        let right = solve_lower(&factor, &weight.right.times(&change).transposed()).transposed();
        let image = weight.left.as_ref().map_or_else(|| right.clone(), |left| left.times(&right));
        let layer = site
            .layer(&Table::of(&weight.weight()), &options)
            .unwrap_or_else(|error| panic!("{label}: {error}"));
        let count = layer.spectrum().len();
        let wanted = singular_values(weight.left.as_ref(), &right, count);
        let made = layer
            .factors(rank * units_per_component(start), &options)
            .unwrap_or_else(|error| panic!("{label}, {:?}: {error}", layer.spectrum()));
        let (up, down) = product(&made, start, options.scale);
        check_balance(&up, &down).unwrap_or_else(|complaint| panic!("{label}: {complaint}"));
        let product = up.times(&down.times(&factor));
        let (spectrum, energy, residual) = (layer.spectrum(), layer.energy(), layer.residual());
        assert_near(&label, &Found { spectrum, energy, residual, product, rank }, &image, &wanted);
        check_shift(&label, &site, weight, &target, rank, &options);
    }
}

/// The trust region on the rows.
fn check_shift(label: &str, site: &Site, weight: &Wide, rows: &Table, rank: usize, options: &Options) {
    let share = 0.05;
    let strength = Strength::MaxShift(share);
    let options =
        Options { strength, ..subject::options(Method::Cntlora, Start::Update, rank) }.with_terms(options);
    let weight = weight.weight();
    let made =
        site.layer(&Table::of(&weight), &options).and_then(|layer| layer.factors(rank, &options)).unwrap();
    let added = made.added();
    let inputs = rows.matrix().transposed();
    let (change, output) = (added.up.times(&added.down.times(&inputs)).norm(), weight.times(&inputs).norm());
    if output == 0.0 {
        assert_eq!(change, 0.0, "{label}");
        return;
    }
    let found = change / output;
    let said = format!("{label}: the shift is {found:e}, reported {:e}, η = {:e}", made.shift, made.strength);
    assert!(found <= share * (1.0 + ROUNDING) && (made.shift - found).abs() <= ROUNDING * found, "{said}");
    assert!(made.strength == 1.0 || found >= share * (1.0 - ROUNDING), "{said}");
}

trait WithTerms {
    fn with_terms(self, other: &Options) -> Self;
}

impl WithTerms for Options {
    fn with_terms(self, other: &Options) -> Self {
        Self { coupling: other.coupling, ridge: other.ridge, norm: other.norm, ..self }
    }
}

fn live(count: usize, width: usize) -> Activations {
    Activations { zero: width - count, offset: 0.3, ..Activations::plain(3 * count, width) }
}

#[test]
fn inputs_that_are_mostly_zero() {
    let dense = || [Wide::whole("dense", Weight::Dense.draw(560, 600, 1))];
    check(&live(33, 600), false, Coupling::Uncorrelated, &dense(), 8);
    check(&live(33, 600), false, Coupling::Transport, &dense(), 16);
    check(&live(80, 600), false, Coupling::Transport, &dense(), 1);
    check(&live(60, 600), true, Coupling::Paired, &dense(), 8);
}

#[test]
fn weights_of_low_rank() {
    let (outputs, width) = (700, 560);
    let weights = [
        Wide::ones(outputs, width),
        Wide::integers(outputs, width),
        Wide::whole("ten outputs", {
            let dense = Weight::Dense.draw(outputs, width, 2).matrix();
            Table::of(&Matrix::from_fn(outputs, width, |i, j| if i % 70 == 3 { dense[(i, j)] } else { 0.0 }))
        }),
        Wide::whole("zero", Weight::Zero.draw(outputs, width, 3)),
    ];
    let activations = Activations { offset: 0.3, ..Activations::plain(900, width) };
    check(&activations, false, Coupling::Uncorrelated, &weights, 16);
    check(&activations, true, Coupling::Uncorrelated, &weights, 1);
}

#[test]
fn blocks_and_permutations() {
    let weights = |side| {
        [
            Wide::whole("blocks", Weight::Blocks.draw(side, side, 4)),
            Wide::whole("permutation", Weight::Permutation.draw(side, side, 4)),
        ]
    };
    check(&Activations::plain(800, 516), false, Coupling::Uncorrelated, &weights(516), 8);
}

#[test]
fn few_rows_and_outlier_channels() {
    let dense = [Wide::whole("dense", Weight::Dense.draw(513, 640, 5))];
    check(&Activations::plain(40, 640), false, Coupling::Uncorrelated, &dense, 64);
    let outliers = Activations { outliers: 3, offset: 0.3, ..Activations::plain(900, 640) };
    check(&outliers, false, Coupling::Uncorrelated, &dense, 16);
}

/// A permuted diagonal, whose singular triplets are its entries.
fn permuted(side: usize, exponent: f64) -> (Matrix, Vec<f64>) {
    let value = |i: usize| f64::from(10f64.powf(-exponent * i as f64 / (side - 1) as f64) as f32);
    let matrix = Matrix::from_fn(side, side, |i, j| if (i * 11 + 3) % side == j { value(i) } else { 0.0 });
    (matrix, (0..side).map(value).collect())
}

#[test]
fn pissa_of_structured_weights() {
    let side = 560;
    let (decaying, values) = permuted(side, 4.0);
    let mut cases = vec![
        (Wide::ones(600, side), None),
        (Wide::integers(600, side), None),
        (Wide::whole("zero", Weight::Zero.draw(600, side, 1)), None),
        (Wide::whole("permutation", Weight::Permutation.draw(side, side, 1)), Some(vec![1.0; side])),
        (Wide::whole("decaying", Table::of(&decaying)), Some(values)),
    ];
    for rank in [1, 16] {
        let start = Start::Residual;
        let options = subject::options(Method::Pissa, start, rank);
        for (weight, values) in &mut cases {
            let table = Table::of(&weight.weight());
            let site = Site::new(&Activations::plain(1, side).draw(1), None, &options).unwrap();
            let layer = site.layer(&table, &options).unwrap();
            let made = layer.factors(rank, &options).unwrap();
            let count = layer.spectrum().len();
            let wanted = values
                .get_or_insert_with(|| singular_values(weight.left.as_ref(), &weight.right, 64))
                .clone();
            let (up, down) = product(&made, start, options.scale);
            check_balance(&up, &down).unwrap_or_else(|complaint| panic!("{}: {complaint}", weight.label));
            let product = up.times(&down);
            let (spectrum, energy, residual) = (layer.spectrum(), layer.energy(), layer.residual());
            let found = Found { spectrum, energy, residual, product, rank };
            assert_near(&weight.label, &found, &table.matrix(), &wanted[..count]);
        }
    }
}

/// The same below 512, where the whole matrix is decomposed: its singular values must be in order, also if most of them are zero.
#[test]
fn dense_decompositions_of_low_rank() {
    for side in [128, 256, 512] {
        let weight = Wide::integers(side + 40, side);
        let table = Table::of(&weight.weight());
        let wanted = singular_values(weight.left.as_ref(), &weight.right, 16);
        for method in [Method::Pissa, Method::Milora] {
            let options = subject::options(method, Start::Residual, 2);
            let site = Site::new(&Activations::plain(1, side).draw(1), None, &options).unwrap();
            let layer = site.layer(&table, &options).unwrap();
            let made = layer.factors(2, &options).unwrap();
            let product = made.up.times(&made.down);
            let error = match method {
                Method::Pissa => table.matrix().minus(&product).norm(),
                _ => product.norm(),
            };
            let label = format!("{}, side {side}", method.name());
            assert!(
                error <= 1e-5 * wanted[0],
                "{label}: {error:e} off, of {wanted:?}: {:?}",
                layer.spectrum()
            );
        }
    }
}

/// The last components are exact in f64 for every condition.
#[test]
fn milora_of_ill_conditioned_weights() {
    for exponent in [4.0, 8.0] {
        let (weight, values) = permuted(520, exponent);
        let options = subject::options(Method::Milora, Start::Residual, 4);
        let site = Site::new(&Activations::plain(1, 520).draw(1), None, &options).unwrap();
        let made =
            site.layer(&Table::of(&weight), &options).and_then(|layer| layer.factors(4, &options)).unwrap();
        let found = made.up.times(&made.down);
        let wanted = Matrix::from_fn(520, 520, |i, j| if i >= 516 { weight[(i, j)] } else { 0.0 });
        // Neighbours differ by a factor of 10^(−exponent / 519): the gap that f64 has to resolve.
        let error = found.minus(&wanted).norm();
        assert!(error <= 1e-5 * values[516], "1e{exponent}: {error:e} off, of {:e}", values[516]);
    }
}

#[test]
fn eva_of_wide_activations() {
    for activations in [live(33, 600), Activations { outliers: 2, ..live(60, 600) }] {
        let target = activations.draw(8);
        let options = subject::options(Method::Eva, Start::Zero, 8);
        let made = Site::new(&target, None, &options)
            .and_then(|site| site.layer(&Weight::Dense.draw(530, 600, 1), &options)?.factors(8, &options))
            .unwrap();
        let sample = Sample::of(&target.matrix());
        let (values, _) = eigen(&sample.covariance);
        let explained = made.down.times(&sample.covariance).times(&made.down.transposed());
        for (i, wanted) in values.iter().enumerate().take(8) {
            let found = explained[(i, i)];
            let range = (1.0 - RESIDUAL) * wanted - ROUNDING * values[0]..=wanted + ROUNDING * values[0];
            assert!(
                range.contains(&found),
                "{activations:?}: direction {i} explains {found:e} and not {wanted:e}"
            );
        }
    }
}
